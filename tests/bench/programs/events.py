"""The events of the keyed workloads, as columns: those of ``peers/flink/Gen.java``, splitmix64 of the index."""

import numpy as np

_A, _B, _C = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_U1, _U27, _U30, _U31, _U33 = (np.uint64(n) for n in (1, 27, 30, 31, 33))


def mix(z):
    z = z + _A
    z = (z ^ (z >> _U30)) * _B
    z = (z ^ (z >> _U27)) * _C
    return z ^ (z >> _U31)


def users_and_amounts(indexes, keys):
    mixed = mix(indexes.view(np.uint64))
    user = ((mixed >> _U1) % np.uint64(keys)).view(np.int64)
    return user, (mixed & np.uint64(0xFFFFF)) / 1000.0


def further_values(indexes, number):
    """As many int64 columns, which no compression of files makes smaller."""
    return tuple((indexes.view(np.uint64) * (_A + np.uint64(2 * field))).view(np.int64) for field in range(number))


def times_ms(indexes):
    """100,000 events a second of event time, up to 5 s out of order."""
    late = (mix(indexes.view(np.uint64) ^ np.uint64(0x5555)) >> _U33) % np.uint64(5000)
    return 1_700_000_000_000 + indexes // 100 + 5000 - late.view(np.int64)
