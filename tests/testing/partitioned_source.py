"""A source that reads all its splits at the same time, as one of Kafka's partitions does: each file is a partition.

Lines are ``<partition>,<time>``. Each turn takes a line of another partition, so those that are further ahead in event
time stay ahead: what such a source gives without a watermark for each split is mostly late.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.connectors.files import FileSplit, TextFileSource
from engine.connectors.source import Source, SourceReader, SplitEnumerator, SplitOrder
from engine.core.records import Batch, RowBatch


@dataclass(frozen=True)
class PartitionedSource(Source):
    """``pauses``: whether the reader can stop reading single splits."""

    folder: str
    pauses: bool = True

    def create_enumerator(self) -> SplitEnumerator:
        return TextFileSource((self.folder,)).create_enumerator()

    def create_reader(self) -> SourceReader:
        return PartitionedReader(self.pauses)

    def without_user_code(self) -> Source:
        return TextFileSource((self.folder,))


class PartitionedReader(SourceReader):
    split_order = SplitOrder.TOGETHER

    def __init__(self, pauses: bool = True) -> None:
        self._pauses = pauses
        self.splits: list[FileSplit] = []
        self.paused: frozenset[str] = frozenset()
        self._current = ""

    def add_split(self, split: Any) -> None:
        self.splits.append(split)

    def poll(self, rows_max: int) -> Batch | None:
        split = next((split for split in self.splits if split.split_id not in self.paused), None)
        if split is None:
            return None
        self.splits.remove(split)
        self._current = split.split_id
        with open(split.path, "rb") as file:
            file.seek(split.start)
            line = file.readline()
        split = replace(split, start=split.start + len(line))
        if split.start < split.end:
            self.splits.append(split)  # the others have their turn first
        else:
            self.end_split(split.split_id)
        name, _, time = line.decode().partition(",")
        return RowBatch([(name, int(time))])

    def split_of_batch(self) -> str:
        return self._current

    def pause_splits(self, split_ids: frozenset[str]) -> bool:
        self.paused = split_ids
        return self._pauses

    def wants_split(self) -> bool:
        return True

    def is_drained(self) -> bool:
        return not self.splits

    def snapshot(self) -> list[Any]:
        return list(self.splits)


def write_partitions(folder: Path, times_of: dict[str, list[int]]) -> list[tuple[str, int]]:
    """Write a file for each partition; return all records."""
    for name, times in times_of.items():
        (folder / name).write_text("".join(f"{name},{time}\n" for time in times))
    return [(name, time) for name, times in times_of.items() for time in times]
