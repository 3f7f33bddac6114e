"""What jobs have made visible, checked whenever something is added: nothing twice, nothing changed; at the end: all.

A *line* is one computation of a program, whatever number of jobs it takes: each goes on from a checkpoint or savepoint
of the one before. A job that has to begin afresh begins another line.
"""

from __future__ import annotations

import ast
from collections import Counter
from typing import Any, Final, final

from tests.sim.shapes import Program
from tests.sim.world import SimulationError, World

__all__ = ["OUTPUT", "Results", "output_path"]

OUTPUT: Final = "sim://out"


def output_path(line: str) -> str:
    return f"{OUTPUT}/{line}"


@final
class Results:
    def __init__(self, world: World) -> None:
        self._world = world
        self._programs: dict[str, Program] = {}
        self.rows_by_line: dict[str, list[Any]] = {}
        self._seen: dict[str, set[Any]] = {}
        self._files: dict[str, bytes] = {}

    def begin_line(self, line: str, program: Program) -> None:
        self._programs[line] = program
        self.rows_by_line[line] = []
        self._seen[line] = set()

    def add(self, line: str, rows: list[Any]) -> None:
        """Rows of a line have become visible."""
        program, seen = self._programs[line], self._seen[line]
        self.rows_by_line[line] += rows
        ids = [one for row in rows for one in _identities(program, row)]
        twice = [one for one, num in Counter(ids).items() if num > 1 or one in seen]
        seen.update(ids)
        if twice and not program.at_least_once:
            self._world.fail(f"not exactly once: {sorted(twice)[:10]} of line {line} are committed twice")

    # --- files --------------------------------------------------------------------------------------------------------

    def file_changed(self, path: str, content: bytes | None) -> None:
        """A file below OUTPUT is there, has other bytes, or (None) is gone. Hidden ones are nobody's business."""
        parts = path[len(OUTPUT) + 1 :].split("/")
        line, names = parts[0], parts[1:]
        if line not in self._programs or self._programs[line].sink != "parts":
            return
        if any(name.startswith(".") for name in names):
            return
        if path in self._files:
            self._world.fail(f"{path} was finished and now {'is gone' if content is None else 'has other bytes'}")
        elif content is not None:
            self._files[path] = content
            self._world.tell("storage", "finished", f"{path}: {len(content)} bytes")
            self.add(line, _rows_of_file(content))

    def read_text_files(self, line: str, files: dict[str, bytes]) -> None:
        """Of a sink whose files appear at the job's end."""
        path = output_path(line)
        for name, content in files.items():
            if name == path or name.startswith(path + "/"):
                self.add(line, _rows_of_file(content))

    # --- the end ------------------------------------------------------------------------------------------------------

    def check_all(self, line: str) -> None:
        """The last job of the line has finished."""
        program, rows = self._programs[line], self.rows_by_line[line]
        missing = sorted(program.expected_identities() - self._seen[line])
        extra = sorted(self._seen[line] - program.expected_identities())
        if missing or extra:
            raise SimulationError(
                f"not exactly once: lost {missing[:10]}, of nowhere {extra[:10]}, of {len(rows)} rows"
            )
        if program.at_least_once:
            return
        if program.work in ("count", "hold"):
            for key in range(program.num_keys):
                counts = sorted(count for at, count, _ in rows if at == key)
                if counts != list(range(1, len(counts) + 1)):
                    raise SimulationError(f"counts of key {key} are {counts}")


def _identities(program: Program, row: Any) -> list[Any]:
    """Return what may be there once only: the id, or a whole window."""
    return [row[2]] if program.work in ("count", "hold") else [tuple(row)]


def _rows_of_file(content: bytes) -> list[Any]:
    return [ast.literal_eval(line) for line in content.decode().splitlines()]
