"""Conversions of Python's and numpy's values into Arrow's: pyarrow imports pandas at the first one, if it is installed.

0.2 s, once for all slots: for jobs with operators that convert in other ways than ``core/arrow_arrays``.
"""

from __future__ import annotations

__all__ = ["warm_up"]


def warm_up() -> None:
    import pyarrow as pa

    pa.array([0])
