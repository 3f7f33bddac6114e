"""Rows → bytes → rows, as the exchange does it and as it could: by shape of record and size of batch.

    python -m tests.bench row_wire [--rounds 7]

CPU ns a record to write + to read, and bytes a record. "exchange" is what ``wire`` does; "columns" are Python's own
means: transposed, types checked, numbers by ``array``, texts joined; "turned" is the pickle of whole columns; marshal
is without the check that it needs, as it takes anything with a buffer (numpy's numbers, a bytearray) for bytes.
"""

from __future__ import annotations

import argparse
import marshal
import pickle
import random
import time
from array import array
from collections.abc import Callable
from typing import Any, Final

from engine.core.records import Row, RowBatch
from engine.protocol.stream import Records
from engine.runtime.exchange.wire import Decoder, Encoder
from tests.bench.stats import record

SHAPES: Final = {"(str, int)": "si", "(int, float, int)": "ifi", "(int, float, str, bool)": "ifsb", "10": "ifsbifsbis"}
SIZES: Final = (1, 10, 100, 1000, 16_000)
TIMES: Final = 20_000  #: records of a measurement

Way = tuple[Callable[[list[Any]], Any], Callable[[Any], list[Any]]]


#: Both have no schema or class to know, so all ways may share them.
ENCODER, DECODER = Encoder(), Decoder()


def through_exchange(rows: list[Any]) -> Any:
    (frame,) = ENCODER.encode(Records(RowBatch(rows)))
    return frame.kind, b"".join(frame.buffers)


def from_exchange(sent: Any) -> list[Any]:
    return DECODER.decode(*sent).batch.rows  # type: ignore[union-attr, no-any-return]


def to_columns(rows: list[Any]) -> bytes:
    columns = []
    for values in zip(*rows, strict=True):
        (kind,) = set(map(type, values))
        if kind is str:
            joined = "\0".join(values)
            assert joined.count("\0") == len(values) - 1
            columns.append((kind.__name__, joined))
        elif kind is bool:
            columns.append((kind.__name__, bytes(values)))
        else:
            columns.append((kind.__name__, array("q" if kind is int else "d", values).tobytes()))
    return marshal.dumps(columns)


def from_columns(sent: bytes) -> list[Any]:
    import numpy as np

    columns: list[Any] = []
    for kind, values in marshal.loads(sent):
        if kind == "str":
            columns.append(values.split("\0"))
        elif kind == "bool":
            columns.append(map((False, True).__getitem__, values))
        else:
            columns.append(np.frombuffer(values, "<i8" if kind == "int" else "<f8").tolist())
    return list(zip(*columns, strict=True))


def turned(rows: list[Any]) -> bytes:
    return pickle.dumps(list(zip(*rows, strict=True)), 5)


def turned_back(sent: bytes) -> list[Any]:
    return list(zip(*pickle.loads(sent), strict=True))


WAYS: Final[dict[str, Way]] = {
    "exchange": (through_exchange, from_exchange),
    "columns": (to_columns, from_columns),
    "turned": (turned, turned_back),
    "marshal": (marshal.dumps, marshal.loads),
}
WAYS_OF_ROWS: Final[dict[str, Way]] = {
    "exchange": (through_exchange, from_exchange),
    "pickle": (lambda rows: pickle.dumps(rows, 5), pickle.loads),
}


def made(shape: str, size: int) -> list[tuple[Any, ...]]:
    rng = random.Random(1)
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(3, 9))) for _ in range(50_000)]
    make = {
        "i": lambda: rng.randrange(1 << 31),
        "f": rng.random,
        "s": lambda: "".join(rng.choice(words)),
        "b": lambda: rng.random() < 0.5,
    }
    return [tuple(make[letter]() for letter in shape) for _ in range(size)]


def cpu_ns(work: Callable[[], Any], size: int, num_rounds: int) -> float:
    best = float("inf")
    times = max(1, TIMES // size)
    for _ in range(num_rounds):
        before = time.process_time_ns()
        for _ in range(times):
            work()
        best = min(best, (time.process_time_ns() - before) / times / size)
    return best


def show(name: str, rows: list[Any], ways: dict[str, Way], num_rounds: int) -> None:
    found = []
    for way, (write, read) in ways.items():
        sent = write(rows)
        assert read(sent) == rows, way
        num_bytes = len(sent if isinstance(sent, bytes) else sent[1]) / len(rows)
        write_ns = cpu_ns(lambda write=write: write(rows), len(rows), num_rounds)  # type: ignore[misc]
        read_ns = cpu_ns(lambda read=read, sent=sent: read(sent), len(rows), num_rounds)  # type: ignore[misc]
        record(
            {"shape": name, "rows": len(rows), "way": way, "write_ns": write_ns, "read_ns": read_ns, "bytes": num_bytes}
        )
        found.append(f"{way} {write_ns:.0f} + {read_ns:.0f} ({num_bytes:.0f} B)")
    print(f"{name:24} {len(rows):6}  {' | '.join(found)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    options = parser.parse_args()
    for name, shape in SHAPES.items():
        for size in options.sizes:
            show(name, made(shape, size), WAYS, options.rounds)
    row = Row("a", "b", "c")
    for size in options.sizes:
        show("Row(a=, b=, c=)", [row(*values) for values in made("ifi", size)], WAYS_OF_ROWS, options.rounds)


if __name__ == "__main__":
    main()
