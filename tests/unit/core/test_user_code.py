"""User code travels by value, says what cannot travel, and its tracebacks show the user's lines only."""

from __future__ import annotations

import functools
import importlib
import os
import pickle
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from engine.core.errors import ProgramError
from engine.core.user_code import describe_record, dumps, is_user_file, user_frames, user_traceback

REPO = str(Path(__file__).resolve().parents[3])


def run_elsewhere(tmp_path: Path, blob: bytes, code: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a fresh interpreter in which ``f`` is the object; user modules cannot be imported there."""
    (tmp_path / "blob").write_bytes(blob)
    script = f"from engine.core.user_code import *\nf = loads(open({str(tmp_path / 'blob')!r}, 'rb').read())\n{code}"
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd="/",
        env={**os.environ, "PYTHONPATH": REPO},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    folder = tmp_path / "program"
    folder.mkdir()
    name = f"shop_{os.getpid()}"
    (folder / f"{name}.py").write_text("RATE = 3\n\n\ndef price(x):\n    return RATE * helper(x)\n\n\n"
                                       "def helper(x):\n    return 1 // x\n")  # fmt: skip
    monkeypatch.syspath_prepend(str(folder))
    yield importlib.import_module(name)
    sys.modules.pop(name, None)


def test_a_function_of_a_user_module_runs_where_the_module_is_not(user_module: Any, tmp_path: Path) -> None:
    done = run_elsewhere(tmp_path, dumps(user_module.price, "Operator 'Map'"), "print(f(1))")
    assert done.stdout == "3\n", done.stderr


def test_a_lambda_that_uses_a_user_module_takes_the_module_along(user_module: Any, tmp_path: Path) -> None:
    blob = dumps(lambda x: user_module.price(x) + 1, "Operator 'Map'")
    done = run_elsewhere(tmp_path, blob, "print(f(1))")
    assert done.stdout == "4\n", done.stderr


def test_plain_pickle_can_load_it_too(user_module: Any) -> None:
    assert pickle.loads(dumps(user_module.price, "x"))(1) == 3


def test_a_remote_traceback_shows_source_lines_of_a_file_that_is_not_there(user_module: Any, tmp_path: Path) -> None:
    blob = dumps(user_module.price, "x")
    os.rename(tmp_path / "program", tmp_path / "moved")
    done = run_elsewhere(tmp_path, blob, "try:\n    f(0)\nexcept Exception as e:\n    print(user_traceback(e))")
    assert "return RATE * helper(x)" in done.stdout, done.stderr
    assert "return 1 // x" in done.stdout
    assert done.stdout.rstrip().endswith("ZeroDivisionError: integer division or modulo by zero")


def test_registration_by_value_ends_with_the_call(user_module: Any) -> None:
    import cloudpickle

    dumps(user_module.price, "x")
    assert user_module.__name__ not in cloudpickle.list_registry_pickle_by_value()


def test_engine_and_library_code_goes_by_reference() -> None:
    from engine.state.key_groups import mix32

    assert len(dumps(mix32, "x")) < 400
    assert len(dumps(functools.partial(os.path.join, "a"), "x")) < 400


@pytest.mark.parametrize(
    ("filename", "is_users"),
    [
        (os.__file__, False),
        (pytest.__file__, False),
        (os.path.join(REPO, "engine", "core", "ids.py"), False),
        ("<frozen importlib._bootstrap>", False),
        ("/home/ada/job.py", True),
        ("job.py", True),
        ("/tmp/x/job.pyz/pkg/job.py", True),
        ("<ipython-input-3>", True),
    ],
)
def test_it_knows_whose_file_it_is(filename: str, is_users: bool) -> None:
    assert is_user_file(filename) is is_users


def test_a_lock_in_a_closure_is_named() -> None:
    lock = threading.Lock()
    with pytest.raises(ProgramError) as caught:
        dumps([{"f": lambda x: lock.acquire()}], "Operator 'Map'")
    text = str(caught.value)
    assert "Operator 'Map' cannot be sent to the cluster" in text
    assert "lambda at test_user_code.py:" in text
    assert "variable 'lock' is a _thread.lock" in text
    assert "open()" in text


def test_an_attribute_of_a_function_object_is_named() -> None:
    class Reader:
        def __init__(self) -> None:
            self.settings = {"connections": [socket.socket()]}

        def map(self, value: Any) -> Any:
            return value

    reader = Reader()
    with pytest.raises(ProgramError, match=r"\.settings → \['connections'\] → \[0\] is a socket\.socket") as caught:
        dumps(reader.map, "Operator 'Map'")
    reader.settings["connections"][0].close()
    assert "function test_an_attribute" in str(caught.value)


def test_an_open_file_that_a_called_function_uses_is_named(tmp_path: Path) -> None:
    with open(tmp_path / "log", "w") as log:

        def write(x: Any) -> None:
            log.write(str(x))

        with pytest.raises(ProgramError, match=r"variable 'write' → variable 'log' is a _io.TextIOWrapper"):
            dumps(lambda x: write(x), "Operator 'Map'")


def test_a_generator_gets_its_own_hint() -> None:
    with pytest.raises(ProgramError, match="Pass a list"):
        dumps((i for i in range(3)), "from_collection")


def test_a_getstate_that_raises_is_a_program_error() -> None:
    class Odd:
        def __getstate__(self) -> Any:
            raise RuntimeError("no")

    with pytest.raises(ProgramError, match="Odd"):
        dumps(Odd(), "from_collection")


def test_only_user_frames_are_shown_also_of_causes() -> None:
    def user(text: str) -> None:
        try:
            functools.reduce(lambda a, b: int(text), [1, 2])
        except ValueError as error:
            raise KeyError("later") from error

    try:
        user("x")
    except KeyError as error:
        text, frames = user_traceback(error), user_frames(error)
    assert "The above exception was the direct cause" in text
    assert "int(text)" in text
    assert "KeyError: " not in frames
    assert frames.startswith("  File ")


def test_library_frames_are_left_out() -> None:
    import json

    try:
        json.loads("{")
    except ValueError as error:
        text = user_traceback(error)
    assert "json/decoder.py" not in text
    assert 'json.loads("{")' in text


def test_records_are_described_shortly_and_safely() -> None:
    class Bad:
        def __repr__(self) -> str:
            raise RuntimeError("no repr")

    assert describe_record(("a", 0)) == "('a', 0)"
    assert describe_record("ü\n") == r"'ü\n'"
    assert len(describe_record("x" * 10_000_000)) < 260
    assert len(describe_record(b"x" * 10_000_000)) < 1000
    assert len(describe_record([["y" * 500] * 500] * 500)) < 260
    assert "Bad" in describe_record(Bad())
    assert "Bad" in describe_record((1, Bad()))
    assert describe_record(None) == "None"
