"""User code on its way to other processes: pickled by value, with source lines; tracebacks cut to the user's frames.

"User code" is what is neither Python's standard library, nor installed in site-packages, nor the engine itself. Not
here: how an error is reported (``operators/failure``), how files travel with a job (``protocol/control.UserFile``).
"""

from __future__ import annotations

import functools
import io
import linecache
import os
import pickle
import reprlib
import sys
import sysconfig
import traceback
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from engine.core.errors import Domain, EngineError, ProgramError

__all__ = [
    "describe_record",
    "dumps",
    "dumps_value",
    "is_user_file",
    "loads",
    "told_briefly",
    "user_frames",
    "user_traceback",
]

_OWN_PACKAGES: Final = ("engine", "flink_yarn")
_SOURCE_SIZE_MAX: Final = 1 << 20  # characters of one file that travel for tracebacks; a longer one is generated code
_HIDDEN_FILENAME: Final = "<dynamic-code>"
_PATH_LENGTH_MAX: Final = 32  # steps from the root to the thing that cannot be pickled


# --- whose code is it -----------------------------------------------------------------------------------------------


@functools.cache
def _library_folders() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    folders = {os.path.realpath(paths[name]) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    folders |= {paths["stdlib"], os.path.dirname(os.__file__)}
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    folders |= {os.path.join(root, package) for package in _OWN_PACKAGES}
    return tuple(folder.rstrip("/") + "/" for folder in folders)


@functools.lru_cache(4096)
def is_user_file(filename: str) -> bool:
    """Return whether code of this file is the user's: a program, a module beside it, a cell, a shipped zip."""
    if filename.startswith("<frozen ") or "/site-packages/" in filename or "/dist-packages/" in filename:
        return False
    return not os.path.abspath(filename).startswith(_library_folders())


def _is_by_value(module: types.ModuleType) -> bool:
    """Return whether other processes may lack the module. ``__main__`` is pickled by value by cloudpickle itself."""
    filename = getattr(module, "__file__", None)
    name = getattr(module, "__name__", None)
    if not isinstance(filename, str) or not isinstance(name, str) or name == "__main__":
        return False
    if sys.modules.get(name) is not module or name.partition(".")[0] in _OWN_PACKAGES:
        return False
    # Compiled extensions cannot travel by value.
    return filename.endswith((".py", ".pyc")) and is_user_file(filename)


@functools.lru_cache(1)
def _modules_seen(num_modules: int) -> tuple[types.ModuleType, ...]:
    """State is pickled in many pieces: all modules are looked through again only when some came."""
    return _modules_by_value()


def _modules_by_value() -> tuple[types.ModuleType, ...]:
    modules = tuple(sys.modules.values())
    return _by_value(tuple(map(id, modules)))


@functools.lru_cache(1)
def _by_value(module_ids: tuple[int, ...]) -> tuple[types.ModuleType, ...]:
    """Looking at each module takes 2 ms and more in all, and a job is pickled in many pieces, too."""
    return tuple(m for m in list(sys.modules.values()) if isinstance(m, types.ModuleType) and _is_by_value(m))


@contextmanager
def _user_modules_by_value(modules: tuple[types.ModuleType, ...]) -> Iterator[None]:
    import cloudpickle

    before = cloudpickle.list_registry_pickle_by_value()
    added = [module for module in modules if module.__name__ not in before]
    for module in added:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in added:
            cloudpickle.unregister_pickle_by_value(module)


# --- there and back -------------------------------------------------------------------------------------------------


class _Shipment:
    """Unpickles to the object itself, after its source lines were made known. Plain ``pickle.loads`` does it too."""

    def __init__(self, sources: dict[str, str], blob: bytes) -> None:
        self._sources = sources
        self._blob = blob

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpack, (self._sources, self._blob)


def _unpack(sources: dict[str, str], blob: bytes) -> Any:
    for filename, text in sources.items():
        # No modification time: linecache then never compares it with a file, which may be absent or another one here.
        linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    return pickle.loads(blob)


def _pickle(obj: Any) -> tuple[bytes, set[str]]:
    """Return the pickle and the names of the files whose code is in it."""
    import cloudpickle

    filenames: set[str] = set()

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        def reducer_override(self, obj: Any) -> Any:
            if type(obj) is not types.CodeType:
                return super().reducer_override(obj)
            filenames.add(obj.co_filename)
            rebuild, arguments = self.dispatch_table[types.CodeType](obj)
            # cloudpickle hides file names from 3.1.3 on; without them no traceback could show the user's lines.
            return rebuild, tuple(
                obj.co_filename if type(argument) is str and argument == _HIDDEN_FILENAME else argument
                for argument in arguments
            )

    stream = io.BytesIO()
    Pickler(stream, protocol=5).dump(obj)
    return stream.getvalue(), filenames


def _sources_of(filenames: set[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for filename in sorted(filenames):
        text = "".join(linecache.getlines(filename) or _lines_by_loader(filename))
        if text and len(text) <= _SOURCE_SIZE_MAX:
            found[filename] = text
    return found


def _lines_by_loader(filename: str) -> list[str]:
    """Return the lines of a file inside a zip, which only its module's loader can read."""
    for module in list(sys.modules.values()):
        if getattr(module, "__file__", None) == filename:
            return linecache.getlines(filename, vars(module))
    return []


def dumps(obj: Any, what: str) -> bytes:
    """Return ``obj`` with all user code that it needs. ``what`` names it in the error, e.g. "Operator 'Map'".

    Raises: ProgramError that names the unpicklable thing and how it is reached.
    """
    with _user_modules_by_value(_modules_by_value()):
        try:
            blob, filenames = _pickle(obj)
        except Exception as error:
            raise _explain(obj, what, error) from error
    sources = _sources_of({name for name in filenames if is_user_file(name)})
    return pickle.dumps(_Shipment(sources, blob), protocol=5)


def dumps_value(obj: Any, what: str) -> bytes:
    """Return a value with the classes that it needs, without source lines: for state, of which there is much.

    Raises: ProgramError with Python's reason; what is at fault is not searched for, as in ``dumps``.
    """
    with _user_modules_by_value(_modules_seen(len(sys.modules))):
        try:
            return _pickle(obj)[0]
        except Exception as error:
            raise ProgramError(f"{what} cannot be pickled ({type(error).__name__}: {error})") from error


def loads(data: bytes) -> Any:
    """Return what ``dumps`` was given. Runs user code (module bodies are not run, ``__setstate__`` is)."""
    return pickle.loads(data)


# --- why it cannot be pickled ---------------------------------------------------------------------------------------


def _explain(obj: Any, what: str, error: Exception) -> ProgramError:
    steps, culprit = _find_culprit(obj)
    where = " → ".join(steps)
    kind = _type_name(culprit)
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    reached = f"{where} is a {kind}" if steps else f"it is a {kind}"
    return ProgramError(
        f"{what} cannot be sent to the cluster: {reached}, which cannot be pickled ({type(error).__name__}: {reason}). "
        + _hint(culprit)
        + (f"\n{frames}" if (frames := user_frames(error)) else "")
    )


def _hint(culprit: Any) -> str:
    if isinstance(culprit, types.GeneratorType):
        return "Pass a list or a function that makes the generator instead."
    if _is_own(culprit):
        return "Environments and streams exist in the program only: a function must not refer to them."
    return (
        "Make it where it is used: in open() of a Function class (self.x = …), or inside the function; "
        "only plain values should come from outside."
    )


def _type_name(obj: Any) -> str:
    kind = type(obj)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _is_picklable(obj: Any) -> bool:
    try:
        _pickle(obj)
    except Exception:
        return False
    return True


def _find_culprit(root: Any) -> tuple[list[str], Any]:
    """Return how the innermost unpicklable thing is reached, in the user's terms, and the thing."""
    path: list[tuple[Any, str]] = []  # (owner, label of the step out of it)
    seen = {id(root)}
    current = root
    while len(path) < _PATH_LENGTH_MAX:
        if _is_own(current) and not all(_is_plumbing(owner) for owner, _ in path):
            break  # the user's code refers to one of our objects: what is inside it is not their business
        for label, child in _children(current):
            if id(child) not in seen and not _is_picklable(child):
                seen.add(id(child))
                path.append((current, label))
                current = child
                break
        else:
            break
    while path and _is_plumbing(path[0][0]):  # the way from the chain to the user's function says nothing to them
        path.pop(0)
    if not path:
        return [], current
    return [_describe_owner(path[0][0]), *(label for _, label in path)], current


def _is_plumbing(owner: Any) -> bool:
    return isinstance(owner, (list, tuple, dict)) or _is_own(owner)


def _is_own(obj: Any) -> bool:
    return type(obj).__module__.partition(".")[0] in _OWN_PACKAGES


def _describe_owner(owner: Any) -> str:
    if isinstance(owner, types.MethodType):
        owner = owner.__func__
    if isinstance(owner, types.FunctionType):
        code = owner.__code__
        name = "lambda" if owner.__name__ == "<lambda>" else f"function {owner.__qualname__}"
        return f"{name} at {os.path.basename(code.co_filename)}:{code.co_firstlineno}"
    if isinstance(owner, type):
        return f"class {owner.__qualname__}"
    return f"{type(owner).__qualname__} object"


def _children(obj: Any) -> Iterator[tuple[str, Any]]:
    match obj:
        case types.FunctionType():
            yield from _children_of_function(obj)
        case types.MethodType():
            yield "self", obj.__self__
            yield "its function", obj.__func__
        case functools.partial():
            yield "its function", obj.func
            yield from ((f"argument {i}", value) for i, value in enumerate(obj.args))
            yield from ((f"argument {name!r}", value) for name, value in obj.keywords.items())
        case dict():
            yield from ((f"key {describe_record(key, 40)}", key) for key in obj)
            yield from ((f"[{describe_record(key, 40)}]", value) for key, value in obj.items())
        case list() | tuple() | set() | frozenset():
            yield from ((f"[{i}]", value) for i, value in enumerate(obj))
        case type():
            yield from ((f".{name}", value) for name, value in vars(obj).items() if not name.startswith("__"))
        case types.ModuleType():
            yield from ((f".{name}", value) for name, value in vars(obj).items() if not name.startswith("__"))
        case staticmethod() | classmethod():
            yield "its function", obj.__func__
        case _:
            yield from _children_of_instance(obj)


def _children_of_function(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    code = function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f"variable {name!r}", cell.cell_contents
        except ValueError:
            continue  # not assigned yet
    names: set[str] = set()
    pending = [code]
    while pending:
        block = pending.pop()
        names.update(block.co_names)
        pending.extend(const for const in block.co_consts if isinstance(const, types.CodeType))
    for name in sorted(names & function.__globals__.keys()):
        yield f"variable {name!r}", function.__globals__[name]
    for i, value in enumerate(function.__defaults__ or ()):
        yield f"default value {i}", value
    for name, value in (function.__kwdefaults__ or {}).items():
        yield f"default value of {name!r}", value
    yield from ((f".{name}", value) for name, value in vars(function).items())


def _children_of_instance(obj: Any) -> Iterator[tuple[str, Any]]:
    try:
        state = obj.__getstate__()
    except Exception:
        state = getattr(obj, "__dict__", None)
    for part in state if isinstance(state, tuple) else (state,):
        if isinstance(part, dict):
            yield from ((f".{name}", value) for name, value in part.items())
    yield "its class", type(obj)


# --- tracebacks and records -----------------------------------------------------------------------------------------


def told_briefly(error: EngineError) -> EngineError:
    """Return an error for the program's author without the frames and causes inside the engine; its message says all.

    Use: ``raise told_briefly(error) from error.__cause__``. Bugs of ours keep everything.
    """
    if error.domain is Domain.INTERNAL:
        return error
    error.__cause__ = None
    return error.with_traceback(None)


def _keep_user_frames(summary: traceback.TracebackException) -> None:
    kept = [frame for frame in summary.stack if is_user_file(frame.filename)]
    summary.stack = traceback.StackSummary.from_list(kept)
    for other in (summary.__cause__, summary.__context__, *(getattr(summary, "exceptions", None) or ())):
        if other is not None:
            _keep_user_frames(other)


def user_traceback(exc: BaseException) -> str:
    """Return the traceback as Python prints it, with the user's own frames only; causes included."""
    summary = traceback.TracebackException.from_exception(exc)
    _keep_user_frames(summary)
    return "".join(summary.format()).rstrip("\n")


def user_frames(exc: BaseException) -> str:
    """Return the user's frames of ``exc`` alone, without header, causes and message; "" when there are none."""
    frames = [frame for frame in traceback.extract_tb(exc.__traceback__) if is_user_file(frame.filename)]
    return "".join(traceback.StackSummary.from_list(frames).format()).rstrip("\n")


def describe_record(record: Any, limit: int = 200) -> str:
    """Return ``repr(record)`` in at most about ``limit`` characters; never raises, cheap on huge values."""
    printer = reprlib.Repr()
    printer.maxstring = printer.maxother = printer.maxlong = limit
    printer.maxlist = printer.maxtuple = printer.maxset = printer.maxfrozenset = printer.maxdict = 50
    printer.maxlevel = 5
    try:
        if isinstance(record, (bytes, bytearray)) and len(record) > limit:
            return f"{bytes(record[:limit])!r}… ({len(record)} bytes)"
        text = printer.repr(record)
    except Exception as error:  # a __repr__ or __len__ of the user's
        return f"<{type(record).__qualname__} whose repr() raised {type(error).__name__}>"
    if len(text) <= limit + 2:  # two quotes
        return text
    return f"{text[:limit]}… ({len(text)} characters)"
