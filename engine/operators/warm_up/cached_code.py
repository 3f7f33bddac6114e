"""How the engine's kernels are taken from numba's cache: quicker than numba does, and also from beside their source.

Before it looks into its cache, numba makes itself ready to compile, 0.12 s, which a kernel that is there does not need.
And it looks into one folder: that of NUMBA_CACHE_DIR, or the source's ``__pycache__`` if this user may write there,
or one of the user's. What has been compiled at set-up, or came with an archive, lies beside the source in any case.
"""

from __future__ import annotations

import inspect
import os
import sys
from dataclasses import dataclass, field
from typing import Any, Final

__all__ = ["TAKEN", "KernelMissing", "forbid_compiling", "quicken"]


@dataclass
class Taken:
    """Which kernels this process has taken since ``quicken``, with their signatures. Those that only others call are
    compiled before them, but are loaded within them."""

    loaded: set[str] = field(default_factory=set)
    compiled: set[str] = field(default_factory=set)


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
    _import_less()

    def load_overload(cache: Any, signature: Any, target: Any) -> Any:
        if not cache._py_func.__module__.startswith("engine."):
            return numbas_own(cache, signature, target)
        name = f"{cache._py_func.__module__}.{cache._py_func.__qualname__}{signature}"
        rtsys.initialize(target)
        _fix_target(target.codegen())
        found = cache._load_overload(signature, target)
        if found is None:
            found = _beside_source(cache, signature, target)
        if found is not None:
            TAKEN.loaded.add(name)
            return found
        if _forbidden:
            raise KernelMissing(name)
        TAKEN.compiled.add(name)
        return numbas_own(cache, signature, target)  # not there; but now numba is ready to compile

    load_overload.is_quick = True  # type: ignore[attr-defined]
    kind.load_overload = load_overload


def _import_less() -> None:
    """Have code that numba's own modules have given to a kernel loaded without them: ``numba.np.arrayobj`` and what it
    needs take 20 ms. Only what is not compiled looks into a module's names."""
    from numba.core import environment

    kind: Any = environment.Environment
    numbas_own: Any = getattr(environment, "_rebuild_env", None)
    if numbas_own is None or not hasattr(kind, "_memo"):
        return

    def rebuild_env(module: str, consts: Any, name: Any) -> Any:
        if module in sys.modules or not module.startswith("numba.") or name in kind._memo:
            return numbas_own(module, consts, name)
        made = kind({"__name__": module})  # a code that has no name cannot be kept in a cache
        made.consts[:] = consts
        made.env_name = name
        kind._memo[name] = made
        return made

    environment._rebuild_env = rebuild_env


def _fix_target(codegen: Any) -> None:
    """Ask for the processor once, not for each kernel."""
    if "magic_tuple" not in vars(codegen):
        known = codegen.magic_tuple()
        codegen.magic_tuple = lambda: known


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
