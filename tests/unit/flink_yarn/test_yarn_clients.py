"""The client's side of YARN without YARN: skein's jar, the ResourceManager's answers, options, the properties file."""

from __future__ import annotations

import json
import struct
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from engine.core.config import Configuration
from engine.core.errors import ConfigError, ExternalError
from engine.core.options import JobOptions, YarnOptions
from flink_yarn import yarn_client
from flink_yarn.cli_config import read_yarn_properties
from flink_yarn.cli_options import parse_options
from flink_yarn.hadoop_conf import HadoopConf
from flink_yarn.session_client import limits_of
from flink_yarn.skein_classes import class_changes
from flink_yarn.skein_driver import patched_jar
from flink_yarn.yarn_client import LeavingNodes, YarnClient, leaving_nodes
from flink_yarn.yarn_session import _ACTION, main, session_configuration, write_properties

# --- skein's jar -------------------------------------------------------------------------------------------------


def constant(text: str) -> bytes:
    return struct.pack(">BH", 1, len(text)) + text.encode()


rename = class_changes("Apache Flink", None)["com/anaconda/skein/Driver$DriverImpl.class"]


def test_a_constant_is_renamed_with_its_length_and_nothing_else_changes():
    code = b"\xca\xfe" + constant("skein") + constant("skeins") + b"skein"
    assert rename(code) == (b"\xca\xfe" + constant("Apache Flink") + constant("skeins") + b"skein")


@pytest.mark.parametrize("code", [b"", constant("skein") * 2])
def test_a_constant_that_is_not_there_once_is_an_error(code):
    with pytest.raises(ValueError, match="expected once"):
        rename(code)


@pytest.mark.parametrize("validity_ms", [None, -1, 10_000])
def test_skeins_real_jar_gets_our_type_page_and_ends_and_is_else_the_same(tmp_path, validity_ms):
    skein = pytest.importorskip("skein")
    original = Path(skein.core._SKEIN_JAR)
    patched = patched_jar(original, "Apache Flink", tmp_path, validity_ms=validity_ms)
    assert patched_jar(original, "Apache Flink", tmp_path, validity_ms=validity_ms) == patched
    with zipfile.ZipFile(original) as before, zipfile.ZipFile(patched) as after:
        assert after.namelist() == before.namelist()
        changed = [name for name in before.namelist() if before.read(name) != after.read(name)]
    assert sorted(changed) == [
        "com/anaconda/skein/ApplicationMaster.class",
        "com/anaconda/skein/Driver$DriverImpl.class",
        "com/anaconda/skein/Driver.class",
        "overview.mustache.html",
    ]


def test_a_jar_of_another_skein_is_left_as_it_is(tmp_path):
    jar = tmp_path / "skein.jar"
    with zipfile.ZipFile(jar, "w") as archive:
        archive.writestr("com/anaconda/skein/Driver.class", b"other")
    assert patched_jar(jar, "x", tmp_path / "cache") == jar
    assert list((tmp_path / "cache").iterdir()) == []


# --- the ResourceManager -----------------------------------------------------------------------------------------

ANSWERS = {
    "/info": {"clusterInfo": {"haState": "ACTIVE"}},
    "/nodes": {
        "nodes": {
            "node": [
                {
                    "id": f"n{i}:1",
                    "state": state,
                    "usedMemoryMB": 1000,
                    "availMemoryMB": memory,
                    "usedVirtualCores": 1,
                    "availableVirtualCores": 3,
                    "numContainers": 1,
                }
                for i, (state, memory) in enumerate([("RUNNING", 3000), ("RUNNING", 5000), ("LOST", 90000)])
            ]
        }
    },
    "/scheduler": {
        "scheduler": {
            "schedulerInfo": {
                "queueName": "root",
                "queues": {
                    "queue": [
                        {"queueName": "a", "queuePath": "root.a", "state": "RUNNING"},
                        {
                            "queueName": "b",
                            "queuePath": "root.b",
                            "state": "RUNNING",
                            "queues": {"queue": [{"queueName": "c", "queuePath": "root.b.c", "state": "STOPPED"}]},
                        },
                    ]
                },
            }
        }
    },
    "/apps/application_1_0001": {
        "app": {"id": "application_1_0001", "state": "FINISHED", "finalStatus": "FAILED", "diagnostics": " why \n"}
    },
}


@pytest.fixture
def resource_manager():
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            found = ANSWERS.get(self.path.removeprefix("/ws/v1/cluster"))
            body = json.dumps(found or {}).encode()
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def client(address: str, **values: str) -> YarnClient:
    return YarnClient(HadoopConf({"yarn.resourcemanager.webapp.address": address, **values}, "/conf"))


def test_limits_come_from_running_nodes_and_leaf_queues(resource_manager):
    limits = limits_of(client(resource_manager))
    assert (limits.memory_mb, limits.vcores) == (6000, 4)
    assert limits.queues == ("root.a", "root.b.c")
    assert limits.stopped_queues == {"c": "STOPPED"}


def test_nodes_that_leave_are_told_with_the_room_on_those_that_stay(resource_manager, monkeypatch):
    conf = HadoopConf({"yarn.resourcemanager.webapp.address": resource_manager}, "/conf")
    monkeypatch.setattr(HadoopConf, "load", staticmethod(lambda: conf))
    monkeypatch.setitem(ANSWERS, "/nodes?states=DECOMMISSIONING", {"nodes": None})
    assert leaving_nodes() == LeavingNodes()
    node = ANSWERS["/nodes"]["nodes"]["node"][0]
    going = {**node, "state": "DECOMMISSIONING", "nodeHTTPAddress": "n9:8042"}
    monkeypatch.setitem(ANSWERS, "/nodes?states=DECOMMISSIONING", {"nodes": {"node": [going]}})
    monkeypatch.setitem(ANSWERS, "/nodes?states=RUNNING", {"nodes": {"node": [node]}})
    assert leaving_nodes() == LeavingNodes(frozenset({"n9:8042"}), (3000,))


def test_the_schedulers_maximum_counts_when_it_is_less_than_a_node_has(resource_manager):
    assert client(resource_manager, **{"yarn.scheduler.maximum-allocation-mb": "2048"}).largest_container() == (2048, 4)


def test_an_application_is_reported_and_an_unknown_one_is_told(resource_manager):
    report = client(resource_manager).application("application_1_0001")
    assert (report.ended, report.final_status, report.diagnostics) == (True, "FAILED", "why")
    with pytest.raises(ExternalError, match="YARN knows no application application_2_0002"):
        client(resource_manager).application("application_2_0002")


def test_a_resource_manager_that_has_just_started_does_not_say_that_an_application_is_gone(
    resource_manager, monkeypatch
):
    known = client(resource_manager)
    assert known.has_ended("application_1_0001")
    assert known.has_ended("application_2_0002")
    monkeypatch.setitem(ANSWERS["/info"]["clusterInfo"], "haState", "INITIALIZING")
    with pytest.raises(ExternalError, match="HTTP 404"):
        known.has_ended("application_2_0002")


def test_the_second_resource_manager_is_asked_when_the_first_is_down(resource_manager):
    ha = {
        "yarn.resourcemanager.ha.rm-ids": "rm1,rm2",
        "yarn.resourcemanager.webapp.address.rm1": "127.0.0.1:1",
        "yarn.resourcemanager.webapp.address.rm2": resource_manager,
    }
    assert client("unused:1", **ha).application("application_1_0001").ended


@pytest.fixture
def standby():
    """Two ResourceManagers, of which none is active until the test says so: they send who asks round in circles."""

    class Pair:
        active = False
        questions = 0

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            path = self.path.removeprefix("/ws/v1/cluster")
            self.server.pair.questions += 1
            if path == "/info":
                found = {"clusterInfo": {"haState": "ACTIVE" if self.server.pair.active else "STANDBY"}}
            elif not self.server.pair.active:
                self.send_response(307)
                self.send_header("Location", f"http://{self.headers['Host']}{self.path}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            else:
                found = ANSWERS[path]
            body = json.dumps(found).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.pair = Pair()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    address = f"127.0.0.1:{server.server_address[1]}"
    conf = {
        "yarn.resourcemanager.ha.rm-ids": "rm1,rm2",
        "yarn.resourcemanager.webapp.address.rm1": "127.0.0.1:1",
        "yarn.resourcemanager.webapp.address.rm2": address,
        "yarn.resourcemanager.address.rm1": "127.0.0.1:1",
        "yarn.resourcemanager.address.rm2": "127.0.0.1:1",
    }
    yield server.pair, conf
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_question_waits_while_none_is_active(standby):
    pair, conf = standby
    answers = []
    asking = threading.Thread(
        target=lambda: answers.append(client("unused:1", **conf).application("application_1_0001"))
    )
    asking.start()
    while pair.questions < 20:  # some rounds
        pass
    assert asking.is_alive()
    pair.active = True
    asking.join(60)
    assert [report.final_status for report in answers] == ["FAILED"]


def test_when_none_becomes_active_that_is_told_with_the_way_out(standby, monkeypatch):
    _, conf = standby
    monkeypatch.setattr(yarn_client, "FAILOVER_S", 0.5)
    for ask in (client("unused:1", **conf).nodes, client("unused:1", **conf).check_reachable):
        with pytest.raises(ExternalError, match=r"No ResourceManager has become active within 0.5 s .*yarn rmadmin"):
            ask()


def test_without_high_availability_the_ids_of_resource_managers_are_left_alone(resource_manager):
    ha = {"yarn.resourcemanager.ha.enabled": "false", "yarn.resourcemanager.ha.rm-ids": "rm1"}
    assert client(resource_manager, **ha).application("application_1_0001").ended


def test_a_resource_manager_that_is_down_is_one_line_with_address_and_folder():
    down = client("127.0.0.1:1", **{"yarn.resourcemanager.address": "127.0.0.1:1"})
    for ask in (down.check_reachable, down.nodes):
        with pytest.raises(ExternalError, match=r"does not answer \(.*127.0.0.1:1: Connection refused\).*/conf"):
            ask()


def test_without_a_configuration_folder_there_is_no_client():
    with pytest.raises(ConfigError, match="Neither HADOOP_CONF_DIR nor YARN_CONF_DIR is set"):
        YarnClient(HadoopConf({}, None))


# --- yarn-session.sh ---------------------------------------------------------------------------------------------


def configuration(*words: str, base: dict[str, str] | None = None) -> Configuration:
    return session_configuration(parse_options(_ACTION, words), Configuration(base))


def test_the_options_become_keys_and_properties_win():
    config = configuration(
        "-n", "2", "-s", "3", "-jm", "1024", "-tm", "2g", "-nm", "x", "-qu", "q", "-at", "T", "-nl", "gpu", "-z", "/ns",
        "-t", "a", "-t", "b", "-st", "-j", "x.jar", "-d", "-D", "a.b=c", "-Dtaskmanager.numberOfTaskSlots=5",
        base={"yarn.application.queue": "old", "jobmanager.heap.size": "1g"},
    )  # fmt: skip
    said = config.to_dict()
    assert said["$internal.yarn.num-taskmanagers"] == "2"
    assert said["taskmanager.numberOfTaskSlots"] == "5"
    assert said["jobmanager.memory.process.size"] == "1024m"
    assert said["taskmanager.memory.process.size"] == "2g"
    assert (said["yarn.application.name"], said["yarn.application.queue"]) == ("x", "q")
    assert (said["yarn.application.type"], said["yarn.application.node-label"]) == ("T", "gpu")
    assert (said["high-availability.cluster-id"], said["yarn.ship-files"], said["a.b"]) == ("/ns", "a;b", "c")
    assert config.get(JobOptions.ATTACHED) is False


def test_an_application_id_of_the_configuration_file_does_not_turn_a_start_into_an_attach():
    assert configuration(base={"yarn.application.id": "application_1_0001"}).get(YarnOptions.ID) == ""
    assert configuration("-id", "application_1_0001").get(YarnOptions.ID) == "application_1_0001"


@pytest.mark.parametrize("number", ["0", "-1", "two", "1.5"])
def test_a_number_of_taskmanagers_that_is_none_is_told(number):
    with pytest.raises(ConfigError, match=f"-n is '{number}'"):
        configuration("-n", number)


@pytest.mark.parametrize("words", [["-x"], ["here"], ["-s"]])
def test_bad_options_are_one_line_and_exit_code_1(words, capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("HADOOP_CONF_DIR", raising=False)
    monkeypatch.delenv("YARN_CONF_DIR", raising=False)
    assert main(words) == 1
    said = capsys.readouterr().err
    assert said.startswith("Error while running the YARN session: ")
    assert said.count("\n") == 1


def test_help_shows_flinks_options(capsys):
    assert main(["-h"]) == 0
    said = capsys.readouterr().out
    for option in (
        "-n,--container",
        "-jm,--jobManagerMemory",
        "-id,--applicationId",
        "-q,--query",
        "-z,--zookeeperNamespace",
    ):
        assert option in said


def test_what_is_written_for_flink_is_what_flink_reads(tmp_path):
    path = str(tmp_path / ".yarn-properties-me")
    write_properties(path, "application_1_0001", {"high-availability.cluster-id": "/x", "a": "b=c"})
    found = read_yarn_properties(path)
    assert found is not None
    assert found.application_id == "application_1_0001"
    assert found.dynamic_properties == {"high-availability.cluster-id": "/x", "a": "b=c"}
    assert Path(path).stat().st_mode & 0o777 == 0o600
    assert len(list(tmp_path.iterdir())) == 1


def test_a_properties_file_that_cannot_be_written_is_a_warning(tmp_path, capsys):
    write_properties(str(tmp_path / "no" / "file"), "application_1_0001", {})
    assert "-yid application_1_0001" in capsys.readouterr().err
