"""Entry point of the child interpreter that runs an uploaded program.

``python -m engine.rest.program_main path name entry argument…`` is no command for people: ``flink run`` is. It imports
nothing of the engine, so that a program sees the modules that it would see when it is started by itself.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import runpy
import signal
import sys
import traceback
from typing import Final

PR_SET_PDEATHSIG: Final = 1


def main() -> int:
    path, name, entry, *arguments = sys.argv[1:]
    die_with_parent()
    sys.argv = [name, *arguments]
    try:
        run(path, entry)
    except SystemExit as error:
        if error.code not in (None, 0) and not isinstance(error.code, int):
            report(str(error.code))
        raise
    except Exception as error:
        report(describe(error, path))
        return 1
    except BaseException as error:
        # execute() ends a program like this when only the plan was wanted; the class is above this layer.
        if type(error).__name__ != "ProgramAbort":
            raise
    return 0


def die_with_parent() -> None:
    """Ask the kernel to end this process with the JobManager, however that ends."""
    parent = os.getppid()
    try:
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    except (OSError, AttributeError):
        return
    if parent == 1 or os.getppid() != parent:
        sys.exit("The JobManager is gone.")


def run(path: str, entry: str) -> None:
    """Run a ``.py`` file or an archive. ``entry``: "" = as a script, "module" = ``python -m``, "module:function"."""
    module_name, _, function_name = entry.partition(":")
    if path.endswith(".py"):
        sys.path.insert(0, os.path.dirname(path))
        own_names = ("", "__main__", sys.argv[0].removesuffix(".py"))
        if function_name or module_name not in own_names:
            # A single file has one module; what was named is the function.
            names = runpy.run_path(path, run_name="__flink_program__")
            call(names.get(function_name or module_name), function_name or module_name, path)
        else:
            runpy.run_path(path, run_name="__main__")
        return
    path = extracted(path)
    sys.path.insert(0, path)
    if function_name:
        module = importlib.import_module(module_name)
        call(getattr(module, function_name, None), function_name, module_name)
    elif module_name and module_name != "__main__":
        runpy.run_module(module_name, run_name="__main__", alter_sys=True)
    elif os.path.exists(os.path.join(path, "__main__.py")):
        runpy.run_path(path, run_name="__main__")
    else:
        raise LookupError(
            f"{sys.argv[0]} has no __main__.py; name the entry class: package.module or package.module:function."
        )


def extracted(path: str) -> str:
    """Return a folder with the archive's content, below the working folder, which is private to this run.

    Importing from the archive itself would fail for native modules, data files and packages without ``__init__``.
    """
    import zipfile

    folder = os.path.abspath("program")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
    return folder


def call(function: object, name: str, where: str) -> None:
    if not callable(function):
        raise LookupError(f"{os.path.basename(where)} has no function {name}.")
    function()


def describe(error: BaseException, path: str) -> str:
    """Return the traceback from the program's first frame on; ours above it says nothing to its author."""
    frames = traceback.extract_tb(error.__traceback__)
    own = os.path.dirname(os.path.abspath(__file__))
    while frames and (frames[0].filename.startswith((own, "<frozen")) or frames[0].filename == runpy.__file__):
        del frames[0]
    head = "".join(traceback.format_exception_only(error)).strip()
    text = f"{head}\nTraceback (most recent call last):\n{''.join(frames.format()).rstrip()}" if frames else head
    return text.replace(path, sys.argv[0]).replace(os.path.abspath("program") + os.sep, "")


def report(text: str) -> None:
    """Write the error where the web server looks first; the log gets it too."""
    print(text, file=sys.stderr)
    try:
        with open(os.environ["_FLINK_CLIENT_CONTEXT"], encoding="utf-8") as stream:
            result_path = json.load(stream)["result_file"]
        with open(result_path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps({"error": text}) + "\n")
    except (KeyError, OSError, ValueError):
        pass


if __name__ == "__main__":
    sys.exit(main())
