"""Loads the kernels of columnar operators ahead: modules that specs name, for a zygote to import.

Kernels lie in numba's cache, but each process that loads them pays for numba itself (0.35 s of CPU time) and some
5 ms a kernel; what the cache lacks takes up to a second each. So each kind of operator has a module of its own, which
goes the ways that records of the usual types take. A test runs operators and sees that nothing was missing.
"""
