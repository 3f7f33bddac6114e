"""Random DataStream programs, each drawn from a seed and run twice, on columns and on rows: the results are the same.

``jobs`` draws programs and records, ``runs`` runs them and compares, ``python -m tests.fuzz --seeds 0 500`` does it.
"""
