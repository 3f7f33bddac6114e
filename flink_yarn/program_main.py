"""The child interpreter that runs a user's program for ``flink run``; started by ``program.ProgramRun`` as a file.

Imports nothing of the engine before the program does, so that the program finds the modules that it would find when
Python ran it. Errors go to the result file as one clear message; the parent frames them.
"""

from __future__ import annotations

import ast
import importlib
import importlib.machinery
import importlib.util
import io
import json
import os
import runpy
import signal
import sys
import traceback
import types
from typing import Any, Final

_PR_SET_PDEATHSIG: Final = 1


class NoMain(Exception):
    """There is nothing to start under the given name."""


def main() -> int:
    with open(sys.argv[1], encoding="utf-8") as stream:
        spec = json.load(stream)
    _end_with_parent(int(spec["parent"]))
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Lines appear at once also in a pipe, and whole: the parent writes its own between them.
        sys.stdout.reconfigure(line_buffering=True)
    # Ctrl-C and the end of the terminal reach the whole process group; the parent decides what it means and ends this
    # process if it must.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _terminated)
    own_folder = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != own_folder]
    sys.argv[:] = [spec["path"] or spec["entry"].partition(":")[0], *sys.argv[2:]]
    sys.path[0:0] = spec["python_path"]
    try:
        run(spec["path"], spec["entry"])
    except SystemExit:
        raise
    except KeyboardInterrupt:
        return 130
    except BaseException as error:
        if type(error).__name__ == "ProgramAbort":  # the plan is recorded, which is all that was wanted
            return 0
        _flush()
        report(describe(error))
        return 1
    return 0


def _terminated(signum: int, frame: types.FrameType | None) -> None:
    # What waits for a job knows what an interrupt means: cancel it with -sae or when it runs in this process.
    raise KeyboardInterrupt


def _end_with_parent(parent: int) -> None:
    """Ask the kernel to end this process with ``flink``, however that ends: no orphan."""
    import ctypes

    try:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    except (OSError, AttributeError):
        return
    if os.getppid() != parent:
        sys.exit(128 + signal.SIGTERM)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass


# --- running ----------------------------------------------------------------------------------------------------------


def run(path: str, entry: str) -> None:
    """Run a file, an archive or folder, or a module of the Python path ("" as path)."""
    if path.endswith(".py"):
        sys.path.insert(0, os.path.dirname(path))
        _run_file(path, entry)
        return
    if path:
        sys.path.insert(0, path)
        if not entry:
            runpy.run_path(path, run_name="__main__")
            return
    else:
        sys.path.insert(0, os.getcwd())
    module_name, sep, function_name = entry.partition(":")
    if sep:
        _find_module(module_name)
        _call(importlib.import_module(module_name), function_name)
    else:
        _run_module(module_name)


def _run_file(path: str, entry: str) -> None:
    stem = os.path.basename(path)[: -len(".py")]
    module_name, sep, function_name = entry.partition(":")
    if entry and not sep and module_name not in (stem, "__main__"):
        function_name = module_name  # one file is one module, so this names a function in it
    if function_name:
        elsewhere = bool(sep) and module_name not in (stem, "__main__")  # in a file of -pyfs
        _call(importlib.import_module(_find_module(module_name).name if elsewhere else stem), function_name)
        return
    with open(path, "rb") as stream:
        # Without this module's own "annotations": with them the program's are texts, and its functions differ from
        # what their source compiles to, so that none would be taken for columns.
        code = compile(stream.read(), path, "exec", dont_inherit=True)
    module = types.ModuleType("__main__")
    module.__dict__.update(__file__=path, __builtins__=__builtins__, __cached__=None)
    sys.modules["__main__"] = module
    exec(code, module.__dict__)


def _call(module: types.ModuleType, name: str) -> None:
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise NoMain(f"{module.__name__} has no function {name}; name another with -c module:function.")
    found()


def _find_module(name: str) -> importlib.machinery.ModuleSpec:
    try:
        spec = importlib.util.find_spec(name) if name else None
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            spec = None
        else:
            raise
    if spec is None:
        raise NoMain(
            f"There is no module {name} in the program; expected -c package.module or -c package.module:function as "
            "Python would import it."
        )
    return spec


def _run_module(name: str) -> None:
    """``python -m`` if the module is a script, else import it and call its main()."""
    spec = _find_module(name)
    if spec.submodule_search_locations is not None and importlib.util.find_spec(name + ".__main__") is not None:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
        return
    get_source = getattr(spec.loader, "get_source", None)
    kind = kind_of((get_source(name) or "") if get_source is not None else "")
    if kind == "script":
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    elif kind == "main":
        _call(importlib.import_module(name), "main")
    else:
        raise NoMain(
            f'The module {name} has no main: no `if __name__ == "__main__"` and no function main(). Add one, or name '
            f"a function with -c {name}:function."
        )


def kind_of(source: str) -> str:
    """Return "script" for source that does something when it is run, "main" if only its main() would, else ""."""
    tree = ast.parse(source)
    guarded = any(
        isinstance(node, ast.If)
        and any(isinstance(part, ast.Name) and part.id == "__name__" for part in ast.walk(node.test))
        for node in tree.body
    )
    if guarded:
        return "script"
    if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
        return "main"
    passive = (ast.FunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom, ast.AsyncFunctionDef)
    acts = any(
        not isinstance(node, passive)
        and any(isinstance(part, ast.Call) for part in ast.walk(node))
        and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        for node in tree.body
    )
    return "script" if acts else ""


# --- errors -----------------------------------------------------------------------------------------------------------


def describe(error: BaseException) -> str:
    """Return one clear message: ours as it is, an error of the program with the program's own frames."""
    if isinstance(error, NoMain):
        return str(error)
    frames = _user_frames(error)
    tree = sys.modules.get("engine.core.errors")
    if tree is not None and isinstance(error, tree.EngineError):
        tells_place = isinstance(error, (tree.ProgramError, tree.ConfigError)) and frames
        return f"{error}\n{''.join(traceback.format_list(frames[-1:])).rstrip()}" if tells_place else str(error)
    inner = traceback.extract_tb(error.__traceback__)[-1:]
    if frames and inner != frames[-1:]:
        frames += inner  # where in the engine it happened: a wrong argument, or a bug of ours
    head = "".join(traceback.format_exception_only(error)).rstrip()
    if not frames:
        return head
    return f"Traceback (most recent call last):\n{''.join(traceback.format_list(frames))}{head}"


def _user_frames(error: BaseException) -> list[traceback.FrameSummary]:
    """Return the frames between our code above and the engine's below."""
    home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    ours = tuple(os.path.join(home, part) + os.sep for part in ("engine", "flink_yarn"))
    return [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not os.path.abspath(frame.filename).startswith(ours)
        and not frame.filename.startswith("<frozen")
        and frame.filename not in (runpy.__file__, importlib.__file__)
    ]


def report(text: str) -> None:
    """Write the error where the parent looks; without a parent it goes to stderr."""
    try:
        with open(os.environ["_FLINK_CLIENT_CONTEXT"], encoding="utf-8") as stream:
            result_path = json.load(stream)["result_file"]
        with open(result_path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps({"error": text}) + "\n")
    except (KeyError, OSError, ValueError):
        print(text, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
