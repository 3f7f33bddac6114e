"""Late dataclasses beside those of the standard library."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.late_dataclass import dataclass as late

PARAMETERS = [
    {"eq": eq, "frozen": frozen, "slots": slots}
    for eq in (True, False)
    for frozen in (True, False)
    for slots in (True, False)
]


def made(decorator: Any, *, bases: tuple[type, ...] = (), **parameters: Any) -> Any:
    @decorator(**parameters)
    class Point(*bases):  # type: ignore[misc]
        """A point."""

        kind: ClassVar[str] = "flat"
        x: int
        y: int = 2
        tags: list[int] = dataclasses.field(default_factory=list, compare=False)
        hidden: str = dataclasses.field(default="h", repr=False, kw_only=True)
        fixed: int = dataclasses.field(default=4, init=False)
        filled: list[int] = dataclasses.field(default_factory=list, init=False, hash=False)

        def __post_init__(self) -> None:
            if self.x < 0:
                raise ValueError("x")

    return Point


def outcome(work: Any) -> Any:
    try:
        return work()
    except Exception as error:
        return type(error), str(error)


ARGUMENTS = st.tuples(
    st.lists(st.integers(-1, 2), max_size=5),
    st.dictionaries(st.sampled_from(["x", "y", "tags", "hidden", "other"]), st.integers(0, 1), max_size=3),
)
#: which method of a class is called first
USES = {
    "repr": repr,
    "fields": lambda p: [(f.name, f.type, f.kw_only) for f in dataclasses.fields(p)],
    "asdict": dataclasses.asdict,
    "replace": lambda p: repr(dataclasses.replace(p, x=1)),
    "copy": lambda p: repr(copy.copy(p)),
    "hashable": lambda p: (hash(p), True)[1],
    "set": lambda p: (setattr(p, "x", 5), p.x)[1],
    "set new": lambda p: (setattr(p, "z", 5), p.z)[1],
    "delete": lambda p: (delattr(p, "x"), hasattr(p, "x"))[1],
    "match": lambda p: type(p).__match_args__,
    "slots": lambda p: (getattr(type(p), "__slots__", None), hasattr(p, "__dict__")),
    "init": lambda p: (str(inspect.signature(type(p))), type(p).__init__.__qualname__),
    "itself": lambda p: (p.tags.append(p), repr(p))[1],
    "doc": lambda p: type(p).__doc__,
}


@settings(max_examples=40, deadline=None)
@given(arguments=ARGUMENTS, parameters=st.sampled_from(PARAMETERS))
def test_every_use_has_the_outcome_of_the_standard_library(arguments, parameters):
    positional, named = arguments
    for name, use in USES.items():
        if name == "set new" and parameters["frozen"] and parameters["slots"]:
            continue  # the standard library raises a TypeError of its own making; ours says frozen
        results = [
            outcome(lambda use=use, kind=made(decorator, **parameters): use(kind(*positional, **named)))
            for decorator in (dataclasses.dataclass, late)
        ]
        assert results[0] == results[1], parameters


@settings(max_examples=40, deadline=None)
@given(one=st.integers(0, 1), other=st.integers(0, 1), parameters=st.sampled_from(PARAMETERS))
def test_instances_are_equal_and_have_equal_hashes_when_the_standard_librarys_do(one, other, parameters):
    def compared(kind: Any) -> Any:
        a, b = kind(one, tags=[1]), kind(other, tags=[2])
        equal_hashes = outcome(lambda: hash(a) == hash(b))
        return a == b, a != b, a == object(), equal_hashes if parameters["eq"] else "by identity"

    assert compared(made(dataclasses.dataclass, **parameters)) == compared(made(late, **parameters))


@pytest.mark.parametrize("parameters", PARAMETERS, ids=str)
def test_a_dataclass_may_be_derived_from_it(parameters):
    def use(decorator: Any) -> Any:
        base = made(decorator, **parameters)
        derived = dataclasses.dataclass(frozen=parameters["frozen"])(
            type("Derived", (base,), {"__annotations__": {"z": int}, "z": 7})
        )
        plain = type("Plain", (base,), {})
        changed = outcome(lambda: setattr(plain(1), "x", 5))
        return outcome(lambda: repr(derived(1, z=3))), repr(plain(1)), plain(1) == base(1), changed

    assert use(dataclasses.dataclass) == use(late)


@late(frozen=True, slots=True)
class Frozen:
    a: int
    b: str = "b"


@late(slots=True)
class Changing:
    a: int
    b: str = "b"


@pytest.mark.parametrize("kind", [Frozen, Changing])
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_are_read_again(kind, protocol):
    assert pickle.loads(pickle.dumps(kind(3), protocol)) == kind(3)


def test_a_pickle_is_that_of_the_standard_library():
    late_bytes = pickle.dumps(Frozen(3))
    twin = dataclasses.dataclass(frozen=True, slots=True)(
        type("Frozen", (), {"__annotations__": {"a": "int", "b": "str"}, "b": "b", "__module__": __name__})
    )
    known = Frozen
    globals()["Frozen"] = twin
    try:
        assert pickle.dumps(twin(3)) == late_bytes
        assert pickle.loads(late_bytes) == twin(3)
    finally:
        globals()["Frozen"] = known


def test_methods_are_written_at_the_first_call_only():
    kind = made(late, frozen=True, slots=True)
    before = kind.__dict__["__init__"]
    kind(1)
    written = kind.__dict__["__init__"]
    kind(2)
    assert before is not written
    assert written is kind.__dict__["__init__"]
    assert written.__code__.co_varnames[:3] == ("self", "x", "y")


def test_what_is_unusual_is_left_to_the_standard_library():
    @late(frozen=True)
    class Own:
        a: int

        def __hash__(self) -> int:
            return 7

        def __repr__(self) -> str:
            return "own"

    assert (hash(Own(1)), repr(Own(1)), Own(1)) == (7, "own", Own(1))

    @late(order=True)  # type: ignore[call-overload,unused-ignore]
    class Ordered:
        a: int

    assert Ordered(1) < Ordered(2)


def test_two_threads_may_call_first():
    for _ in range(20):
        kind, results = made(late, frozen=True, slots=True), []
        threads = [threading.Thread(target=lambda k=kind, r=results: r.append(k(1))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [kind(1)] * 4


def test_most_classes_that_a_local_program_imports_have_no_methods_written_yet():
    """Writing them all took half of the time that the imports need."""
    program = textwrap.dedent("""
        import dataclasses, sys
        written = 0
        make = dataclasses._process_class
        def count(cls, init, *others, **named):
            global written
            written += init
            return make(cls, init, *others, **named)
        dataclasses._process_class = count
        import engine.datastream, engine.cluster
        print(written)
    """)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert int(done.stdout) < 150  # of four hundred


def test_writing_methods_at_exit_leaves_the_exit_code_of_an_interrupted_program():
    """Executing any text does not: Python then forgets that nobody has caught the KeyboardInterrupt."""
    program = """
import atexit
from engine.core.late_dataclass import dataclass
@dataclass(frozen=True)
class Point:
    x: int
atexit.register(lambda: print(Point(1)))
raise KeyboardInterrupt
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("Point(x=1)\n", -signal.SIGINT), done.stderr
