"""How the engine's kernels are taken from numba's cache: quicker than numba does, and also from beside their source.

Before it looks into its cache, numba makes itself ready to compile, 0.12 s, which a kernel that is there does not need.
And it looks into one folder: that of NUMBA_CACHE_DIR, or the source's ``__pycache__`` if this user may write there,
or one of the user's. What has been compiled at set-up, or came with an archive, lies beside the source in any case.
"""

from __future__ import annotations

import inspect
import os
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["TAKEN", "KernelMissing", "forbid_compiling", "quicken"]


@dataclass
class Taken:
    """How many kernels this process has taken since ``quicken``."""

    loaded: int = 0
    compiled: int = 0


TAKEN: Final = Taken()
_forbidden = False


class KernelMissing(Exception):
    """A kernel is in no cache, and this is no time to compile it."""


def quicken() -> None:
    """Have kernels loaded so from now on, in this process and its forks. May be called again. Imports numba."""
    from numba.core import caching
    from numba.core.runtime import rtsys

    kind: Any = caching.Cache
    numbas_own: Any = kind.load_overload
    if not hasattr(kind, "_load_overload") or hasattr(numbas_own, "is_quick"):
        return  # a numba with another cache: its own way is right, if slower

    def load_overload(cache: Any, signature: Any, target: Any) -> Any:
        if not cache._py_func.__module__.startswith("engine."):
            return numbas_own(cache, signature, target)
        rtsys.initialize(target)
        found = cache._load_overload(signature, target)
        if found is None:
            found = _beside_source(cache, signature, target)
        if found is not None:
            TAKEN.loaded += 1
            return found
        if _forbidden:
            raise KernelMissing(f"{cache._py_func.__qualname__}{signature}")
        TAKEN.compiled += 1
        return numbas_own(cache, signature, target)  # not there; but now numba is ready to compile

    load_overload.is_quick = True  # type: ignore[attr-defined]
    kind.load_overload = load_overload


def forbid_compiling(forbidden: bool) -> None:
    """From now on a kernel that is in no cache raises KernelMissing, or is compiled again."""
    global _forbidden
    _forbidden = forbidden


def _beside_source(cache: Any, signature: Any, target: Any) -> Any | None:
    from numba.core.caching import IndexDataCacheFile

    folder = os.path.join(os.path.dirname(inspect.getfile(cache._py_func)), "__pycache__")
    if folder == cache.cache_path:
        return None
    parts = cache._impl
    there = IndexDataCacheFile(folder, parts.filename_base, parts.locator.get_source_stamp())
    found = there.load(cache._index_key(signature, target.codegen()))
    return None if found is None else parts.rebuild(target, found)
