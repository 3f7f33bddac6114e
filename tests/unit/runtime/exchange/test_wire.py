"""Elements → frames → elements, and who may speak."""

from __future__ import annotations

import copy
import pickle
import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from engine.core.errors import UserCodeError
from engine.core.ids import JobID
from engine.core.records import ColumnBatch, Row, RowBatch, RowKind
from engine.protocol.stream import (
    END_OF_DATA,
    CheckpointBarrier,
    Element,
    EndOfSuperstep,
    Records,
    Watermark,
    WatermarkStatus,
)
from engine.runtime.exchange.wire import (
    CODECS,
    Decoder,
    Encoder,
    FrameKind,
    check_hello,
    estimate_row_bytes,
    hello,
)


def there_and_back(*elements: Element, codec: str = "") -> list[Any]:
    encoder, decoder = Encoder("", codec), Decoder()
    found = []
    for element in elements:
        for frame in encoder.encode(element):
            payload = b"".join(frame.buffers)
            assert len(payload) == frame.size_bytes
            decoded = decoder.decode(frame.kind, payload)
            if decoded is not None:
                found.append(decoded)
    return found


@pytest.mark.parametrize(
    "rows",
    [
        [("a", 1), ("b", 2)],
        ["x"],
        [1, 2.5, None, True, b"z"],
        [("a", [1, {"k": (2,)}])],
        [Row(name="a", n=1), Row(1, 2)],
        [("a", 1), ("b", Row(1))],
        [np.int64(3)],
        [("é", float("inf"))],
        [],
    ],
)
def test_rows_come_back_as_they_were(rows: list[Any]):
    assert there_and_back(Records(RowBatch(rows)), Records(RowBatch(rows, list(range(len(rows)))))) == [
        Records(RowBatch(rows)),
        Records(RowBatch(rows, list(range(len(rows))))),
    ]
    for element in there_and_back(Records(RowBatch(rows))):
        assert [type(row) for row in element.batch.rows] == [type(row) for row in rows]


class OwnRow(Row):
    """Of the program; pickle makes a Row of it."""


def exactly(row: Row) -> Any:
    return row._fields, row._kind, type(row._values), [(type(value), value) for value in row._values]


NAMED = Row("k", "v")


@pytest.mark.parametrize("stamps", [None, list(range(20))])
@pytest.mark.parametrize(
    ("rows", "as_values"),
    [
        ([NAMED(i, f"v{i}") for i in range(20)], True),
        ([NAMED(True, None), *(NAMED(2**70, i / 3) for i in range(19))], True),
        ([NAMED(i, [i, {"k": np.int64(i)}]) for i in range(20)], True),
        ([NAMED(1, Row(n=i)) for i in range(20)], True),
        ([Row(i) for i in range(20)], True),
        ([Row.of_kind(RowKind(i % 4), k=i, v=i) for i in range(20)], True),
        ([Row() for _ in range(20)], True),
        ([NAMED(i, i) for i in range(19)] + [Row(i=1, v=2)], False),
        ([NAMED(i, i) for i in range(19)] + [Row(1, 2)], False),
        ([NAMED(i, i) for i in range(19)] + [OwnRow(k=1, v=2)], False),
        ([OwnRow(k=i, v=2) for i in range(20)], False),
        ([NAMED(i, i) for i in range(19)] + [(1, 2)], False),
    ],
)
def test_rows_with_names_and_kinds_come_back_as_they_were(rows: list[Any], as_values: bool, stamps: list[int] | None):
    (frame,) = Encoder().encode(Records(RowBatch(rows, stamps)))
    assert (bytes(frame.buffers[0]) == b"\x02") is as_values
    (element,) = there_and_back(Records(RowBatch(rows, stamps)))
    found = element.batch.rows
    assert [exactly(row) if isinstance(row, Row) else row for row in found] == [
        exactly(row) if isinstance(row, Row) else row for row in rows
    ]
    assert element.batch.timestamps_ms == stamps


def test_the_row_that_cannot_be_sent_is_named_though_its_values_travel():
    rows = [NAMED(1, 2), NAMED(3, (value for value in ())), NAMED(5, 6)]
    with pytest.raises(UserCodeError, match=r"k=3"):
        Encoder("Source").encode(Records(RowBatch(rows)))


def test_a_row_that_holds_itself_passes():
    circle: list[Any] = []
    circle.append(circle)
    (element,) = there_and_back(Records(RowBatch([("a", 1), circle, ("b", 2)])))
    found = element.batch.rows[1]
    assert found[0] is found


@pytest.mark.parametrize(
    "element", [Watermark(5), WatermarkStatus(True), END_OF_DATA, EndOfSuperstep(3), CheckpointBarrier(1, 2)]
)
def test_events_come_back_and_need_no_credit(element: Element):
    assert there_and_back(element) == [element]
    assert not any(frame.kind.is_records for frame in Encoder().encode(element))


def columns_of(element: Element) -> ColumnBatch:
    assert isinstance(element, Records)
    assert isinstance(element.batch, ColumnBatch)
    return element.batch


def test_columns_come_back_with_stamps_and_the_schema_travels_once():
    batch = ColumnBatch(pa.record_batch({"a": ["x", None, "z"], "b": [1, 2, 3]}), np.array([7, 8, 9]), scalar=False)
    encoder = Encoder()
    assert [frame.kind for frame in encoder.encode(Records(batch))] == [FrameKind.SCHEMA, FrameKind.COLUMNS]
    assert [frame.kind for frame in encoder.encode(Records(batch))] == [FrameKind.COLUMNS]
    found = [columns_of(element) for element in there_and_back(Records(batch), Records(batch.slice(1, 3)))]
    assert found[0].columns.equals(batch.columns)
    assert found[1].columns.equals(batch.columns.slice(1))
    assert found[1].timestamps_ms.tolist() == [8, 9]


def test_a_new_schema_and_dictionaries_pass():
    words = pa.record_batch({"w": pa.array(["a", "b", "a"]).dictionary_encode()})
    lines = pa.record_batch({"line": ["one", "two"]})
    found = there_and_back(
        Records(ColumnBatch(lines, scalar=True)), Records(ColumnBatch(words)), Records(ColumnBatch(lines))
    )
    assert [columns_of(element).columns.to_pylist() for element in found] == [
        lines.to_pylist(),
        words.to_pylist(),
        lines.to_pylist(),
    ]
    [rows] = there_and_back(Records(ColumnBatch(lines, named=True)))
    assert columns_of(rows).to_rows().rows == [Row(line="one"), Row(line="two")]
    assert columns_of(found[0]).scalar
    assert not columns_of(found[2]).scalar


def test_columns_are_read_without_a_copy():
    batch = ColumnBatch(pa.record_batch({"n": np.arange(1000)}))
    encoder, decoder = Encoder(), Decoder()
    schema, columns = encoder.encode(Records(batch))
    decoder.decode(schema.kind, b"".join(schema.buffers))
    payload = bytearray(b"".join(columns.buffers))
    found = columns_of(decoder.decode(columns.kind, payload))
    start = pa.py_buffer(payload).address
    assert start <= found.columns.column(0).buffers()[1].address < start + len(payload)


def test_plain_columns_travel_as_they_lie_in_memory_and_others_do_not():
    whole = pa.record_batch(
        {
            "n": pa.array(range(9), pa.int64()),
            "b": pa.array(range(9), pa.int8()),
            "t": pa.array(range(9), pa.timestamp("ms")),
            "f": pa.array([n / 2 for n in range(9)], pa.float32()),
            "s": pa.array(range(9), pa.uint16()),
        }
    )
    for columns in (whole, whole.slice(2, 5), whole.slice(9), whole.slice(8)):
        encoder = Encoder()
        frames = encoder.encode(Records(ColumnBatch(columns, np.arange(columns.num_rows))))
        # Head, stamps, and each column with what fills it up to 8 bytes: no more.
        sizes = [-(-columns.num_rows * width // 8) * 8 for width in (8, 1, 8, 4, 2)]
        assert frames[-1].size_bytes == 16 + 8 * columns.num_rows + sum(sizes)
        [found] = there_and_back(Records(ColumnBatch(columns, np.arange(columns.num_rows), named=True)))
        assert columns_of(found).columns.equals(columns)
        assert columns_of(found).columns.schema.equals(columns.schema)
        assert columns_of(found).timestamps_ms.tolist() == list(range(columns.num_rows))
        assert columns_of(found).named
    with_null = pa.record_batch({"n": pa.array([1, None, 3])})
    without = pa.record_batch({"n": pa.array([4, 5, 6])})
    found = there_and_back(*(Records(ColumnBatch(one)) for one in (without, with_null, without, with_null.slice(2))))
    assert [columns_of(element).columns.to_pydict()["n"] for element in found] == [
        [4, 5, 6],
        [1, None, 3],
        [4, 5, 6],
        [3],
    ]


def test_the_values_of_plain_columns_are_not_copied_into_the_frame():
    values = np.arange(100)
    encoder = Encoder()
    *_, frame = encoder.encode(Records(ColumnBatch(pa.record_batch({"n": pa.array(values)}).slice(10, 50))))
    values[10] = 77
    assert np.frombuffer(frame.buffers[1], np.int64)[0] == 77


def test_very_many_plain_columns_still_fit_into_one_system_call():
    columns = pa.record_batch({f"c{i}": pa.array([i % 100], pa.int8()) for i in range(3000)})
    *_, frame = Encoder().encode(Records(ColumnBatch(columns)))
    assert len(frame.buffers) < 64
    [found] = there_and_back(Records(ColumnBatch(columns)))
    assert columns_of(found).columns.equals(columns)


def test_a_record_that_cannot_be_pickled_is_named():
    with pytest.raises(
        UserCodeError, match=r"cannot pickle 'generator'.*\n.*operator 'Map'\n.*record: \(2, <generator"
    ):
        Encoder("Map").encode(Records(RowBatch([(1, 1), (2, (x for x in "a")), (3, 3)])))


def test_a_class_of_the_program_is_sent_once_a_channel():
    source: dict[str, Any] = {"__name__": "__main__"}
    exec("class Point:\n    def __init__(self, x):\n        self.x = x\n", source)
    point = source["Point"]
    encoder = Encoder()
    first, second = (encoder.encode(Records(RowBatch([point(i)] * 3)))[0] for i in (1, 2))
    assert second.size_bytes < first.size_bytes / 2
    decoder = Decoder()
    rows = [row for f in (first, second) for row in decoder.decode(f.kind, b"".join(f.buffers)).batch.rows]
    assert [row.x for row in rows] == [1, 1, 1, 2, 2, 2]
    assert {type(row) for row in rows} == {point}  # this process has the class already


class Reading(Row):
    """A class of rows of the user's own, with what rows do not have."""

    __slots__ = ("_unit",)

    def __init__(self, unit, *values):
        super().__init__(*values)
        self._unit = unit


class Noted(Reading):
    def note(self, text):
        self.__dict__["text"] = text
        return self


def test_rows_of_a_class_of_the_users_stay_what_they_are():
    rows = [Reading("m", 1, [2]), Noted("s", 3), Row(4), Noted("km", 5).note("far")]
    rows[1].set_field_names(["at"])
    rows[1].set_row_kind(RowKind.DELETE)
    (found,) = there_and_back(Records(RowBatch(rows)))
    assert list(map(type, found.batch.rows)) == [Reading, Noted, Row, Noted]
    assert found.batch.rows == rows
    assert [row._unit for row in found.batch.rows if isinstance(row, Reading)] == ["m", "s", "km"]
    assert found.batch.rows[3].__dict__ == {"text": "far"}
    assert (found.batch.rows[1].at, found.batch.rows[1].get_row_kind()) == (3, RowKind.DELETE)
    copied = copy.copy(rows[0])
    copied[0] = 7
    assert (type(copied), rows[0][0]) == (Reading, 1)
    source: dict[str, Any] = {"__name__": "__main__", "Row": Row}
    exec("class Own(Row):\n    pass\n", source)
    (found,) = there_and_back(Records(RowBatch([source["Own"](1)])))
    assert type(found.batch.rows[0]) is source["Own"]


def test_row_size_is_estimated_from_few_rows():
    assert 5 < estimate_row_bytes(RowBatch([("word", 1)] * 1000)) < 40
    assert estimate_row_bytes(RowBatch([b"x" * 100_000] * 3)) > 90_000
    assert estimate_row_bytes(RowBatch([(x for x in "a")])) > 0


def test_only_slots_of_the_job_are_welcome():
    job = JobID.generate()
    assert check_hello(hello(job), job) == ""
    assert "belongs to job" in check_hello(hello(JobID.generate()), job)
    assert "does not speak" in check_hello(b"GET / HTTP/1.1\r\n" + bytes(24), job)
    assert "version" in check_hello(hello(job)[:4] + b"\x63\x00" + hello(job)[6:], job)


def test_a_frame_has_no_surprise_in_its_pickle():
    (frame,) = Encoder().encode(Records(RowBatch([("a", 1)])))
    assert pickle.loads(b"".join(frame.buffers)[1:]) == [("a", 1)]


@pytest.mark.parametrize("codec", CODECS)
def test_what_is_compressed_comes_back_as_it_was(codec: str):
    rows = Records(RowBatch([(f"word {i % 7}", i) for i in range(500)], list(range(500))))
    numbers = pa.record_batch([pa.array(range(1000)), pa.array([0.5, None] * 500)], names=["a", "b"])
    texts = pa.record_batch([pa.array(["ä", "b", None, "c"] * 250).dictionary_encode()], names=["t"])
    few = Records(RowBatch([("a", 1)]))
    events: list[Element] = [Watermark(5), CheckpointBarrier(1, 2), END_OF_DATA]
    columns = [Records(ColumnBatch(batch, np.arange(1000))) for batch in (numbers.select(["a"]), numbers, texts)]
    found = there_and_back(rows, *columns, few, *events, codec=codec)
    assert [found[0], found[4]] == [rows, few]
    for sent, came in zip(columns, found[1:4], strict=True):
        assert came.batch.columns.equals(sent.batch.columns)
        assert came.batch.timestamps_ms.tolist() == sent.batch.timestamps_ms.tolist()
    assert found[5:] == events


@pytest.mark.parametrize("codec", CODECS)
def test_only_what_gets_smaller_is_compressed(codec: str):
    def frames(batch: RowBatch, codec: str) -> list[tuple[FrameKind, int]]:
        return [(frame.kind, frame.size_bytes) for frame in Encoder("", codec).encode(Records(batch))]

    ((kind, size),) = frames(RowBatch(["word"] * 1000), codec)
    assert (kind, kind.is_records) == (FrameKind.PACKED_ROWS, True)
    assert size < frames(RowBatch(["word"] * 1000), "")[0][1] / 4
    noise = RowBatch([random.Random(3).randbytes(5000)])
    assert frames(noise, codec) == frames(noise, "")
    assert frames(RowBatch(["word"]), codec)[0][0] is FrameKind.ROWS
