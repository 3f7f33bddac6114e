"""The codec carries protocol objects whole and refuses everything that could run code."""

from __future__ import annotations

import pickle

import pytest

from engine.core.errors import ExternalError
from engine.core.ids import ExecutionAttemptID, FencingToken, JobID, ResourceID
from engine.graph.job_graph import JobGraph, JobType
from engine.protocol.control import Envelope, HeartbeatFromJobManager, TaskManagerUnregistered, TaskStateChanged
from engine.protocol.lifecycle import ExecutionState
from engine.rpc.codec import decode, decode_envelope, encode


class _Evil:
    def __init__(self, call, *args):
        self._reduced = (call, args)

    def __reduce__(self):
        return self._reduced


def test_an_envelope_comes_back_equal():
    message = TaskStateChanged(JobID.generate(), ExecutionAttemptID("a_0_0"), ExecutionState.RUNNING)
    envelope = Envelope(FencingToken.generate(), message)
    assert decode_envelope(encode(envelope)) == envelope


def test_ids_keep_their_types():
    back = decode(encode(TaskManagerUnregistered(ResourceID("tm"), "gone")), TaskManagerUnregistered)
    assert type(back.resource_id) is ResourceID


def test_a_job_graph_comes_back_equal():
    graph = JobGraph(JobID.generate(), "job", JobType.BATCH, (), (), {"a": "b"}, plan={"nodes": [1, 2.5, None]})
    assert decode(encode(graph), JobGraph) == graph


@pytest.mark.parametrize(
    "evil",
    [
        _Evil(eval, "1 + 1"),
        _Evil(getattr, object, "__subclasses__"),
        _Evil(__import__, "os"),
        _Evil(exec, "pass"),
    ],
    ids=["eval", "getattr", "import", "exec"],
)
def test_a_function_call_in_the_bytes_is_refused(evil):
    with pytest.raises(ExternalError, match="not a class that a message may hold"):
        decode(pickle.dumps(evil), object)


def test_a_name_that_walks_through_an_engine_module_is_refused():
    # core.fs imports os: "os.system" would be found by attribute.
    data = b"\x80\x04\x8c\x0eengine.core.fs\x94\x8c\x09os.system\x94\x93\x94."
    with pytest.raises(ExternalError, match="not a class"):
        decode(data, object)


def test_a_function_of_the_engine_is_refused():
    data = b"\x80\x04\x8c\x0eengine.core.fs\x94\x8c\x0efile_system_of\x94\x93\x94."
    with pytest.raises(ExternalError, match="not a class"):
        decode(data, object)


def test_a_class_that_an_engine_module_only_imports_is_refused():
    data = b"\x80\x04\x8c\x12engine.core.config\x94\x8c\x08Callable\x94\x93\x94."
    with pytest.raises(ExternalError, match="not a class"):
        decode(data, object)


def test_shells_of_the_engine_cannot_be_built():
    data = b"\x80\x04\x8c\x0eengine.cluster\x94\x8c\x0cLocalCluster\x94\x93\x94."
    with pytest.raises(ExternalError, match="not a class"):
        decode(data, object)


def test_another_type_than_expected_is_refused():
    with pytest.raises(ExternalError, match="expected a Envelope"):
        decode_envelope(encode(HeartbeatFromJobManager()))


@pytest.mark.parametrize("data", [b"", b"garbage", encode({"a": 1})[:-1]])
def test_damaged_bytes_are_an_external_error(data):
    with pytest.raises(ExternalError, match="same release"):
        decode(data, dict)


class _AsOldPythons:
    """Pickles as a member of an enum did up to Python 3.11.3."""

    def __init__(self, owner, name):
        self._reduced = (getattr, (owner, name))

    def __reduce__(self):
        return self._reduced


def test_members_of_enums_are_read_from_older_pythons():
    assert decode(pickle.dumps(_AsOldPythons(ExecutionState, "RUNNING")), ExecutionState) is ExecutionState.RUNNING


@pytest.mark.parametrize(
    ("owner", "name"), [(ExecutionState, "__init__"), (ExecutionState, "mro"), (JobID, "generate"), ("text", "upper")]
)
def test_other_attributes_are_not_fetched(owner, name):
    with pytest.raises(ExternalError, match="are not a valid"):
        decode(pickle.dumps(_AsOldPythons(owner, name)), object)
