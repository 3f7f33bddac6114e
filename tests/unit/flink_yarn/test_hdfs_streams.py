"""A file on an HDFS that goes away and comes back: whole, or an error; never half of it, never its bytes twice."""

from __future__ import annotations

import itertools
import os

import pytest

from engine.core.errors import ExternalError, OutputExistsError
from engine.core.fs import configure_file_systems, file_system_of, give_up, without_waiting
from flink_yarn import hdfs, hdfs_cluster, hdfs_streams
from flink_yarn.hadoop_conf import HadoopConf
from flink_yarn.hdfs import HdfsFileSystem
from flink_yarn.hdfs_client import Problem, ProblemKind, RawStatus, kind_of

PIECE = bytes(range(256)) * 16
PATH = "hdfs://host:1/folder/file"


class Upload:
    def __init__(self, client: Client, path: str) -> None:
        self.client, self.path = client, path
        self.serial = client.serials[path] = next(client.numbers)
        client.files[path] = b""

    def _check(self) -> None:
        self.client.check()
        if self.client.serials.get(self.path) != self.serial:
            raise OSError("LeaseExpiredException")

    def write(self, data: bytes) -> int:
        self._check()
        self.client.files[self.path] += data
        return len(data)

    def close(self) -> None:
        self._check()
        self.client.closed.add(self.serial)


class Client:
    """An HDFS in memory. ``away``: what each call says; ``back_after``: naps of who waits until it is back."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.serials: dict[str, int] = {}
        self.closed: set[int] = set()
        self.numbers = itertools.count()
        self.away: Exception | None = None
        self.back_after = 3

    def check(self) -> None:
        if self.away is not None:
            raise self.away

    def nap(self, seconds: float) -> None:
        self.back_after -= 1
        if self.back_after <= 0:
            self.away = None

    def status(self, path: str) -> RawStatus | None:
        self.check()
        return RawStatus(len(self.files[path]), False, 0) if path in self.files else None

    def create(self, path: str) -> Upload:
        self.check()
        if path in self.files:
            raise OSError("already exists")
        return Upload(self, path)

    def delete(self, path: str, recursive: bool) -> bool:
        self.check()
        self.serials.pop(path, None)
        return self.files.pop(path, None) is not None

    def problem(self, error: Exception) -> Problem:
        return Problem(kind_of(str(error)) or ProblemKind.OTHER, str(error))

    @property
    def complete(self) -> bytes | None:
        """What a reader may take for whole."""
        serial = self.serials.get("/folder/file")
        return self.files["/folder/file"] if serial in self.closed else None


REFUSED = OSError("Connection refused")
SAFE_MODE = OSError("Cannot create file. Name node is in safe mode.")


@pytest.fixture
def client(monkeypatch):
    client = Client()
    monkeypatch.setattr(hdfs_cluster, "_answered", set())
    for module in (hdfs_streams, hdfs_cluster):
        monkeypatch.setattr(module.time, "sleep", client.nap)
    monkeypatch.setitem(hdfs._CLIENTS, "webhdfs", lambda authority, conf: client)
    return client


@pytest.fixture
def fs(client):
    fs = HdfsFileSystem(HadoopConf({}, None), retry_timeout_s=60)
    fs.status(PATH)  # it has answered once
    return fs


@pytest.mark.parametrize("error", [REFUSED, SAFE_MODE])
@pytest.mark.parametrize("at", range(7))
def test_a_file_is_whole_whenever_the_name_node_goes_away(fs, client, at, error):
    """``at``: before which step."""

    def step(number: int) -> None:
        if number == at:
            client.away = error

    step(0)
    stream = fs.open_write(PATH, overwrite=True)
    for number in range(1, 6):
        step(number)
        stream.write(PIECE)
        stream.flush()
    assert client.back_after == 3, "the task waits before its file is to be closed"
    step(6)
    stream.close()
    assert client.complete == PIECE * 5
    assert client.away is None


def test_a_file_may_come_and_go_several_times(fs, client):
    stream = fs.open_write(PATH, overwrite=True)
    for away in (True, False, True):
        client.away = REFUSED if away else None
        stream.write(PIECE)
        stream.flush()
    client.back_after = 5
    stream.close()
    assert client.complete == PIECE * 3


def test_what_does_not_come_back_is_an_error_and_no_file(client, monkeypatch):
    fs = HdfsFileSystem(HadoopConf({}, None), retry_timeout_s=0)
    fs.status(PATH)
    stream = fs.open_write(PATH, overwrite=True)
    stream.write(PIECE)
    client.away = REFUSED
    with pytest.raises(ExternalError, match=f"Cannot write {PATH}: the NameNode or DataNode does not answer"):
        stream.close()
    assert client.complete is None


def test_who_was_never_answered_is_told_at_once(client):
    fs = HdfsFileSystem(HadoopConf({}, None), retry_timeout_s=60)
    client.away = REFUSED
    with pytest.raises(ExternalError, match="does not answer"):
        fs.open_write(PATH, overwrite=True)
    with pytest.raises(ExternalError, match="does not answer"):
        fs.status(PATH)
    assert client.back_after == 3


@pytest.mark.parametrize("is_default", [True, False])
def test_a_container_waits_for_the_cluster_that_its_files_came_from(client, monkeypatch, is_default):
    monkeypatch.setenv("CONTAINER_ID", "container_1_0001_02_000001")
    default_fs = PATH.removesuffix("/folder/file") if is_default else "hdfs://other:8020"
    fs = HdfsFileSystem(HadoopConf({"fs.defaultFS": default_fs}, None), retry_timeout_s=60)
    client.away = REFUSED
    if is_default:
        assert fs.status(PATH) is None
        assert client.away is None
    else:
        with pytest.raises(ExternalError, match="does not answer"):
            fs.status(PATH)


def test_a_quota_is_told_at_once_with_folder_and_number(fs, client):
    said = "The DiskSpace quota of /folder is exceeded: quota = 1024 B = 1 KB but diskspace consumed = 2048 B = 2 KB"
    stream = fs.open_write(PATH, overwrite=True)
    stream.write(PIECE)
    client.away = OSError(said)
    with pytest.raises(ExternalError, match=rf"Cannot write {PATH}: {said}\. Delete .* -setSpaceQuota\)"):
        stream.close()
    assert client.back_after == 3
    assert client.complete is None


def test_a_writer_that_has_failed_never_completes_its_file(fs, client):
    stream = fs.open_write(PATH, overwrite=True)
    stream.write(PIECE)
    client.away = OSError("the disk is on fire")
    with pytest.raises(ExternalError, match="on fire"):
        stream.flush()
    client.away = None
    with pytest.raises(ExternalError, match="on fire"):
        stream.close()
    assert client.complete is None


def test_a_file_that_is_too_large_to_be_kept_is_not_written_again(fs, client, monkeypatch):
    monkeypatch.setattr(hdfs_streams, "KEPT_MAX", 2 * len(PIECE))
    stream = fs.open_write(PATH, overwrite=True)
    for _ in range(3):
        stream.write(PIECE)
        stream.flush()
    client.away = REFUSED
    with pytest.raises(ExternalError, match="does not answer"):
        stream.close()
    assert client.complete is None


def test_what_becomes_too_large_to_be_kept_meanwhile_waits_then(fs, client, monkeypatch):
    monkeypatch.setattr(hdfs_streams, "KEPT_MAX", 2 * len(PIECE))
    stream = fs.open_write(PATH, overwrite=True)
    client.away = REFUSED
    for _ in range(5):
        stream.write(PIECE)
        stream.flush()
    assert client.away is None
    stream.close()
    assert client.complete == PIECE * 5


def test_a_full_local_disk_costs_only_the_second_try(fs, client, monkeypatch):
    class Full:
        def write(self, data: bytes) -> int:
            raise OSError(28, "No space left on device")

        def close(self) -> None: ...

    monkeypatch.setattr(hdfs_streams.tempfile, "SpooledTemporaryFile", lambda **words: Full())
    with fs.open_write(PATH, overwrite=True) as stream:
        stream.write(PIECE)
    assert client.complete == PIECE
    stream = fs.open_write(PATH, overwrite=True)
    client.away = REFUSED
    stream.write(PIECE)
    with pytest.raises(ExternalError, match=r"does not answer|HDFS is away, and .* cannot be kept"):
        stream.flush()
    with pytest.raises(ExternalError):
        stream.close()


def test_what_is_kept_lies_in_the_configured_folder(client, tmp_path):
    """A large file is kept on a disk, which is to be the one that was chosen for temporary files."""
    configure_file_systems({"io.tmp.dirs": f"{tmp_path}:/elsewhere"})
    try:
        with file_system_of(PATH).open_write(PATH, overwrite=True) as stream:
            stream.write(bytes(hdfs_streams.KEPT_IN_MEMORY_MAX + 1))
            stream.flush()
            files = [os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
    finally:
        configure_file_systems({})
    assert [name for name in files if name.startswith(f"{tmp_path}/")]


def test_whoever_gives_a_file_up_does_not_wait(fs, client):
    stream = fs.open_write(PATH, overwrite=True)
    stream.write(PIECE)
    client.away = REFUSED
    give_up(stream)
    assert stream.closed
    assert client.back_after == 3
    assert client.complete is None


def test_clean_up_does_not_wait(fs, client):
    client.away = REFUSED
    with without_waiting(), pytest.raises(ExternalError, match="does not answer"):
        fs.delete(PATH)
    assert client.back_after == 3
    assert fs.delete(PATH) is False  # others do
    assert client.back_after == 0


def test_a_former_writer_of_the_name_cannot_touch_the_file(fs, client):
    former = client.create("/folder/file")
    with fs.open_write(PATH, overwrite=True) as stream:
        stream.write(PIECE)
    with pytest.raises(OSError, match="Lease"):
        former.close()
    assert client.complete == PIECE


def test_a_file_that_exists_is_kept(fs, client):
    client.files["/folder/file"] = b"x"
    with pytest.raises(OutputExistsError):
        fs.open_write(PATH)
    assert client.files["/folder/file"] == b"x"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Call From h/1 to localhost:9 failed on connection exception: java.net.ConnectException", "UNREACHABLE"),
        ("RPC listener disconnected", "UNREACHABLE"),  # hdfs-native, whose NameNode ended during a call
        ("Timed out waiting for ack from DataNode after 60s", "UNREACHABLE"),
        ("Namenode is in startup mode", "STANDBY"),
        ("Cannot complete file /x. Name node is in safe mode.", "STANDBY"),
        ("File /x could only be written to 0 of the 1 minReplication nodes. There are 0 datanode(s)", "STANDBY"),
        ("The NameSpace quota (directories and files) of directory /x is exceeded: quota=1 file count=2", "QUOTA"),
        ("Permission denied: user=mallory", None),
    ],
)
def test_hadoops_words_say_where_the_problem_is(text, kind):
    found = kind_of(text)
    assert (found and found.name) == kind
