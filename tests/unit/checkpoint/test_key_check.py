"""Keys of another type than those of the savepoint are refused before the job is accepted, where the program tells."""

from __future__ import annotations

import datetime as dt
import zlib
from decimal import Decimal

import pytest

from engine.checkpoint.assignment import assign_state
from engine.checkpoint.key_check import check_key_kinds, state_names
from engine.checkpoint.model import (
    CompletedCheckpoint,
    JobLayout,
    OperatorLayout,
    SubtaskState,
    VertexLayout,
    VertexState,
)
from engine.checkpoint.state_files import ChunkWriter
from engine.common import Row, Types
from engine.core.errors import ProgramError
from engine.core.ids import JobID, JobVertexID, OperatorID
from engine.datastream.key_selectors import as_key_selector, declared_key_kind
from engine.protocol.checkpoint import (
    CheckpointKind,
    FileHandle,
    KeyedStateHandle,
    ListStateHandle,
    OperatorStateHandles,
)
from engine.state.chunks import StateChunk, dump_chunk, dump_keyed
from engine.state.descriptors import ListStateDescriptor
from engine.state.key_groups import key_group_of
from engine.state.operator_state import OperatorStateStore

JOB, VERTEX, OPERATOR = JobID.from_text("j"), JobVertexID.from_text("v"), OperatorID.from_text("count")


class Own(str):
    """A class of the user's: it may well be equal to what it is made of."""


def savepoint(keys, path="") -> CompletedCheckpoint:
    groups = {}
    for key in keys:
        groups.setdefault(key_group_of(key, 128), []).append(key)
    chunks = {
        group: dump_keyed({"total": StateChunk("value", False, [(None, own, [1] * len(own))])}, "count")
        for group, own in groups.items()
    }
    writer = ChunkWriter(path, 0)
    writer.add_layer(sorted(chunks.items()))
    timers = ChunkWriter("", 0)
    timers.add_layer([(3, dump_chunk([1, 2], "timers"))])
    parts = {"timers": timers, "keyed": writer}
    keyed = tuple(KeyedStateHandle(name, 0, 128, tuple(part.finish())) for name, part in parts.items())
    former = OperatorLayout(OPERATOR, "Count", "count")
    state = SubtaskState({OPERATOR: OperatorStateHandles(keyed)})
    vertex = VertexState(VERTEX, "Count", 1, 128, (former,), {0: state})
    return CompletedCheckpoint(7, JOB, CheckpointKind.SAVEPOINT, 0, (vertex,), folder="file:///sp")


def program(key_kind: str) -> JobLayout:
    operator = OperatorLayout(OPERATOR, "Count", "count", key_kind)
    return JobLayout(JOB, (VertexLayout(VERTEX, "Count", 1, 128, (operator,)),))


@pytest.mark.parametrize("in_file", [False, True])
def test_keys_of_another_type_are_told_with_uid_state_and_both_types(in_file, tmp_path):
    path = str(tmp_path / "state") if in_file else ""
    with pytest.raises(ProgramError) as raised:
        check_key_kinds(savepoint([1, 2, 300], path), program("str"))
    message = str(raised.value)
    for said in ("file:///sp", "(uid 'count')", "state 'total'", "keys of type number", "keys of type str"):
        assert said in message


@pytest.mark.parametrize(
    ("keys", "key_kind"),
    [
        ([1, 2], "number"),
        ([1.5, True], "number"),
        ([Decimal(1)], "number"),
        (["a"], "str"),
        (["a", 1], "number"),  # of several types
        ([(1, 2)], "tuple"),
        ([Row(1, 2)], "tuple"),
        ([Own("a")], "number"),  # who knows
        ([dt.date(2024, 1, 1)], "date"),
        ([1], "any"),  # of any type
        ([1], ""),  # the program does not tell
        ([], "str"),
    ],
)
def test_what_may_be_the_same_is_accepted(keys, key_kind):
    check_key_kinds(savepoint(keys), program(key_kind))


@pytest.mark.parametrize(
    ("selector", "key_type", "record_type", "expected"),
    [
        (lambda x: x.name, Types.STRING(), None, "str"),
        (lambda x: x.name, Types.LONG(), None, "number"),
        (lambda x: x.name, Types.BIG_DEC(), None, "Decimal"),
        (lambda x: x.name, Types.SQL_DATE(), None, "date"),
        (lambda x: x.name, Types.TUPLE([Types.INT()]), None, "tuple"),
        (lambda x: x.name, Types.PICKLED_BYTE_ARRAY(), None, "any"),
        (lambda x: x.name, None, Types.TUPLE([Types.INT()]), ""),
        (lambda x: x[1], None, Types.TUPLE([Types.INT(), Types.STRING()]), "str"),
        ("n", None, Types.ROW_NAMED(["s", "n"], [Types.STRING(), Types.INT()]), "number"),
        (7, None, Types.TUPLE([Types.INT()]), ""),
        (lambda x: x[0], Types.PICKLED_BYTE_ARRAY(), Types.TUPLE([Types.INT()]), "any"),
    ],
)
def test_what_a_program_says_of_its_keys(selector, key_type, record_type, expected):
    assert declared_key_kind(as_key_selector(selector), key_type, record_type) == expected


def test_state_without_a_place_is_told_by_the_names_that_the_program_gave_it(tmp_path):
    checkpoint = savepoint([1, 2], str(tmp_path / "state"))
    other = JobLayout(JOB, (VertexLayout(VERTEX, "Other", 1, 128, (OperatorLayout(OperatorID.from_text("o"), "O"),)),))
    told = r"operator 'Count' \(uid 'count'\) has keyed state 'timers', keyed state 'total'\."
    with pytest.raises(ProgramError, match=told):
        assign_state(checkpoint, other, state_names=state_names)
    (tmp_path / "state").unlink()  # the parts' names are better than an error about files
    with pytest.raises(ProgramError, match=r"keyed state 'timers', keyed state 'keyed'\."):
        assign_state(checkpoint, other, state_names=state_names)
    store = OperatorStateStore()
    store.get_list_state(ListStateDescriptor("offsets")).add(1)
    lists = dump_chunk(store.snapshot(), "lists")
    handle = ListStateHandle(FileHandle("", len(lists), zlib.crc32(lists), lists))
    assert state_names(handle) == ["operator state 'offsets'"]
