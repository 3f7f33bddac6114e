"""One generated loop for chained map, filter and flat_map: five lambdas in a chain cost one pass over the rows.

The loop calls each function on a row as it comes out of the one before, as nested calls would. What it raises is told
by the line it stands at: which function, on which record. Not here: the operators (``row_operator``), who runs in a run
(``runtime/taskmanager/chain_runner``), how a loop is cut short (``row_loop``).
"""

from __future__ import annotations

import enum
import functools
import itertools
import linecache
from collections.abc import Callable, Sequence
from typing import Any, Final, final

from engine.core.late_dataclass import dataclass
from engine.core.records import BATCH_ROWS_MAX
from engine.operators.bound_function import BoundFunction
from engine.operators.results import iterator_of
from engine.operators.row_loop import Rows

__all__ = ["RowStep", "RowSteps", "StepKind"]


class StepKind(enum.Enum):
    MAP = "map"
    FILTER = "filter"
    FLAT_MAP = "flat_map"


@final
@dataclass(frozen=True, slots=True)
class RowStep:
    kind: StepKind
    function: BoundFunction


#: ``emit(rows, stamps or None, counts)`` hands on results; ``counts[i]``: records that step i gave to step i + 1.
Emit = Callable[[list[Any], "list[int] | None", Sequence[int]], None]


@final
class RowSteps:
    """The loop over the rows of a batch through all steps. Rate: 4-6 ns a row and step on top of the calls."""

    def __init__(self, steps: Sequence[RowStep]) -> None:
        assert steps
        self.steps = tuple(steps)
        kinds = tuple(step.kind for step in self.steps)
        self._loops = {stamped: _generate(kinds, stamped) for stamped in (False, True)}
        self._is_one_to_one = all(kind is StepKind.MAP for kind in kinds)
        self._calls = tuple(step.function.call for step in self.steps)

    def run(self, rows: Rows, stamps: list[int] | None, emit: Emit) -> None:
        """Take ``rows``, which may be cut short, through the steps, handing results to ``emit``: at the end, and before
        when there are many. ``stamps``: one a row.

        Raises: UserCodeError for what a function raised; what ``emit`` raises as it is.
        """
        if stamps is not None and self._is_one_to_one:
            all_stamps = stamps
            loop = self._loops[False]

            def emit_stamped(results: list[Any], _: list[int] | None, counts: Sequence[int]) -> None:
                given = all_stamps if len(results) == len(all_stamps) else all_stamps[: len(results)]
                emit(results, given, counts)

            loop.call(rows, None, emit_stamped, lambda error: self._blame(error, loop), *self._calls)
            return
        loop = self._loops[stamps is not None]
        loop.call(rows, stamps, emit, lambda error: self._blame(error, loop), *self._calls)

    def _blame(self, error: BaseException, loop: _Loop) -> BaseException | None:
        """Return the error to raise instead, or None when no function raised it. Called where it was caught."""
        trace = error.__traceback__
        assert trace is not None
        place = loop.step_by_line.get(trace.tb_lineno)
        if place is None:
            return None
        index, variable = place
        return self.steps[index].function.error(error, trace.tb_frame.f_locals[variable])


# --- the code -------------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class _Loop:
    call: Callable[..., None]
    #: line of the generated code → (index of the step whose function it calls, name of the variable with the record)
    step_by_line: dict[int, tuple[int, str]]


#: In the engine's folder, so that no traceback takes it for a user's file.
_FILE_NAME: Final = __file__ + ":{kinds}"


@final
class _Writer:
    """Lines of code, indented, and which step each one belongs to."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.step_by_line: dict[int, tuple[int, str]] = {}
        self.depth = 0

    def write(self, line: str, step: tuple[int, str] | None = None) -> None:
        self.lines.append("    " * self.depth + line)
        if step is not None:
            self.step_by_line[len(self.lines)] = step


@functools.lru_cache(256)
def _generate(kinds: tuple[StepKind, ...], stamped: bool) -> _Loop:
    writer = _Writer()
    parameters = ", ".join(f"f{index}" for index in range(len(kinds)))
    writer.write(f"def loop(rows, stamps, emit, blame, {parameters}):")
    writer.depth += 1
    counters = _counters_of(kinds)
    writer.write("results = []")
    if stamped:
        writer.write("result_stamps = []")
    for counter in _counted(counters):
        writer.write(f"{counter} = 0")
    if _TAKEN in counters:
        writer.write("told = 0")
    writer.write("try:")
    writer.depth += 1
    _write_loops(writer, kinds, counters, stamped)
    writer.depth = 1
    writer.write("except BaseException as error:")
    writer.depth += 1
    writer.write("seen = blame(error)")
    writer.write("if seen is None:")
    writer.write("    raise")
    writer.write("raise seen from error")
    writer.depth -= 1
    writer.write(_emission(counters, stamped))
    source = "\n".join(writer.lines) + "\n"
    file_name = _FILE_NAME.format(kinds=" ".join(kind.value for kind in kinds) + (" stamped" if stamped else ""))
    linecache.cache[file_name] = (len(source), None, source.splitlines(keepends=True), file_name)
    names: dict[str, Any] = {"iterator_of": iterator_of, "islice": itertools.islice, "ROWS_MAX": BATCH_ROWS_MAX}
    names["__name__"] = __name__  # a profile names the module of each function
    exec(compile(source, file_name, "exec"), names)
    return _Loop(names["loop"], writer.step_by_line)


_TAKEN: Final = "rows.taken() - told"
_GIVEN: Final = "len(results)"


def _counted(counters: Sequence[str]) -> list[str]:
    return sorted(set(counters) - {_TAKEN, _GIVEN})


def _counters_of(kinds: tuple[StepKind, ...]) -> tuple[str, ...]:
    """Return, for each step but the last, the expression for how many records it has given since the last emission.

    Behind maps only it is what came in, before maps only it is what goes out; only else it has to be counted.
    """
    names: list[str] = []
    for index in range(len(kinds) - 1):
        if all(kind is StepKind.MAP for kind in kinds[index + 1 :]):
            names.append(_GIVEN)
        elif all(kind is StepKind.MAP for kind in kinds[: index + 1]):
            names.append(_TAKEN)
        elif kinds[index] is StepKind.MAP:
            names.append(names[-1])
        else:
            names.append(f"n{index}")
    return tuple(names)


def _emission(counters: tuple[str, ...], stamped: bool) -> str:
    stamps = "result_stamps" if stamped else "None"
    counts = "".join(f"{counter}, " for counter in counters)
    return f"emit(results, {stamps}, ({counts}))"


def _write_loops(writer: _Writer, kinds: tuple[StepKind, ...], counters: tuple[str, ...], stamped: bool) -> None:
    writer.write("for r0, stamp in zip(rows, stamps):" if stamped else "for r0 in rows:")
    writer.depth += 1
    record = "r0"
    last = len(kinds) - 1
    has_flat_map = StepKind.FLAT_MAP in kinds
    for index, kind in enumerate(kinds):
        step = (index, record)
        if kind is StepKind.MAP:
            result = f"r{index + 1}"
            if index < last:
                writer.write(f"{result} = f{index}({record})", step)
                record = result
            else:
                writer.write(f"results.append(f{index}({record}))", step)
        elif kind is StepKind.FILTER:
            writer.write(f"if not f{index}({record}):", step)
            writer.write("    continue")
            if index < last:
                _count(writer, counters, index)
            else:
                writer.write(f"results.append({record})")
        elif index < last:
            result = f"r{index + 1}"
            writer.write(f"given = f{index}({record})", step)
            writer.write("if given is None:")
            writer.write("    continue")
            writer.write(f"for {result} in given if type(given) is list else iterator_of(given, 'flat_map'):", step)
            writer.depth += 1
            _count(writer, counters, index)
            record = result
        else:
            _write_last_flat_map(writer, step, counters, stamped)
            return
    if stamped:
        writer.write("result_stamps.append(stamp)")
    if has_flat_map:  # else there are no more results than rows
        writer.write("if len(results) >= ROWS_MAX:")
        writer.depth += 1
        _write_early_emission(writer, counters, stamped)


def _count(writer: _Writer, counters: tuple[str, ...], index: int) -> None:
    if counters[index] == f"n{index}":
        writer.write(f"n{index} += 1")


def _write_early_emission(writer: _Writer, counters: tuple[str, ...], stamped: bool) -> None:
    writer.write(_emission(counters, stamped))
    writer.write("results = []")
    if stamped:
        writer.write("result_stamps = []")
    for counter in _counted(counters):
        writer.write(f"{counter} = 0")
    if _TAKEN in counters:
        writer.write("told = rows.taken()")


def _write_last_flat_map(writer: _Writer, step: tuple[int, str], counters: tuple[str, ...], stamped: bool) -> None:
    index, record = step
    writer.write(f"given = f{index}({record})", step)
    writer.write("if type(given) is list:")
    writer.write("    results += given")
    if stamped:
        writer.write("    result_stamps += [stamp] * len(given)")
    writer.write("elif given is None:")
    writer.write("    continue")
    writer.write("else:")
    writer.depth += 1
    # A record may yield millions: never more of them in memory than a batch.
    writer.write("given = iterator_of(given, 'flat_map')", step)
    fill = ["results += islice(given, ROWS_MAX)"]
    if stamped:
        fill.append("result_stamps += [stamp] * (len(results) - len(result_stamps))")
    writer.write(fill[0], step)
    for line in fill[1:]:
        writer.write(line)
    writer.write("while len(results) >= ROWS_MAX:")
    writer.depth += 1
    _write_early_emission(writer, counters, stamped)
    writer.write(fill[0], step)
    for line in fill[1:]:
        writer.write(line)
    writer.depth -= 2
    writer.write("if len(results) >= ROWS_MAX:")
    writer.depth += 1
    _write_early_emission(writer, counters, stamped)
