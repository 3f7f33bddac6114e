"""Options → configuration: keys, precedence, and where the cluster is."""

from __future__ import annotations

import pytest

from engine.core.config import Configuration
from engine.core.errors import ConfigError
from engine.core.options import MemoryOptions
from flink_yarn.cli_config import YarnProperties, effective_config, read_yarn_properties, yarn_properties_path
from flink_yarn.cli_options import ACTIONS, parse_options

SESSION = YarnProperties("/tmp/p", "application_1_0002", {"parallelism.default": "7"})


def config(line: str, base: dict[str, str] | None = None, properties: YarnProperties | None = None) -> Configuration:
    action, *words = line.split()
    return effective_config(parse_options(ACTIONS[action], words), Configuration(base or {}), properties)


@pytest.mark.parametrize(
    ("line", "base", "properties", "target"),
    [
        ("run x.py", {}, None, "remote"),
        ("run -m h:1 x.py", {}, None, "remote"),
        ("run -t local x.py", {}, None, "local"),
        ("run -t local -m yarn-cluster x.py", {}, None, "local"),
        ("run -Dexecution.target=local x.py", {}, SESSION, "local"),
        ("run x.py", {"execution.target": "yarn-per-job"}, None, "yarn-per-job"),
        ("run -m yarn-cluster x.py", {}, None, "yarn-per-job"),
        ("run -m yarn-cluster -yid application_1_0001 x.py", {}, None, "yarn-session"),
        ("run -yid application_1_0001 x.py", {}, None, "yarn-session"),
        ("run x.py", {}, SESSION, "yarn-session"),
        ("run -m h:1 x.py", {}, SESSION, "remote"),
        ("list -t yarn-session -Dyarn.application.id=application_1_0001", {}, None, "yarn-session"),
        ("run-application -t yarn-application x.py", {}, None, "yarn-application"),
    ],
)
def test_the_cluster_is_chosen_in_flinks_order(line, base, properties, target):
    assert config(line, base, properties).get_string("execution.target") == target


def test_the_old_yarn_line_becomes_todays_keys():
    found = config(
        "run -m yarn-cluster -yn 2 -ys 4 -yjm 1024 -ytm 2g -ynm wc -yqu fast -ynl gpu -yat mine -yz ns -yt a -yt b x.py"
    ).to_dict()
    expected = {
        "$internal.yarn.num-taskmanagers": "2",
        "taskmanager.numberOfTaskSlots": "4",
        "jobmanager.memory.process.size": "1024m",
        "taskmanager.memory.process.size": "2g",
        "yarn.application.name": "wc",
        "yarn.application.queue": "fast",
        "yarn.application.node-label": "gpu",
        "yarn.application.type": "mine",
        "high-availability.cluster-id": "ns",
        "yarn.ship-files": "a;b",
    }
    assert {key: found.get(key) for key in expected} == expected


def test_later_sources_win_over_earlier_ones():
    base = {"parallelism.default": "1", "taskmanager.numberOfTaskSlots": "1", "rest.port": "1"}
    found = config("run -ys 2 -yDtaskmanager.numberOfTaskSlots=3 -Dparallelism.default=4 -p 5 x.py", base).to_dict()
    assert (found["taskmanager.numberOfTaskSlots"], found["parallelism.default"], found["rest.port"]) == ("3", "5", "1")


def test_a_local_run_leaves_the_clusters_port_alone():
    base = {"rest.port": "8081", "rest.bind-port": "8081-8090", "web.port": "8081"}
    assert config("run -t local x.py", base).key_set() & set(base) == set()
    assert config("run -t local -Drest.port=9 x.py", base).get_string("rest.port") == "9"


def test_a_session_file_gives_id_and_properties():
    found = config("run x.py", {}, SESSION).to_dict()
    assert (found["yarn.application.id"], found["parallelism.default"]) == ("application_1_0002", "7")


@pytest.mark.parametrize(
    ("line", "attached"),
    [
        ("run x.py", "true"),
        ("run -d x.py", "false"),
        ("run -yd -m yarn-cluster x.py", "false"),
        ("run -Dexecution.attached=false x.py", "false"),
        ("run -d -t local x.py", "true"),
    ],
)
def test_a_run_is_attached_unless_told_otherwise(line, attached):
    assert config(line).get_string("execution.attached") == attached


def test_python_options_become_keys():
    line = (
        "run -pyfs a,b -pyfs c -pyreq r.txt#dir -pyarch v.zip#venv -pyexec py -pyclientexec pyc -C file:///d -sae x.py"
    )
    found = config(line).to_dict()
    assert found["python.files"] == "a,b,c,file:///d"
    assert found["python.requirements"] == "r.txt#dir"
    assert found["python.archives"] == "v.zip#venv"
    assert (found["python.executable"], found["python.client.executable"]) == ("py", "pyc")
    assert found["execution.shutdown-on-attached-exit"] == "true"


@pytest.mark.parametrize(
    ("text", "address"), [("h:1", ("h", "1")), ("[::1]:80", ("::1", "80")), ("http://h:2/", ("h", "2"))]
)
def test_an_address_names_host_and_port_of_rest(text, address):
    found = config(f"list -m {text}").to_dict()
    assert (found["rest.address"], found["rest.port"]) == address


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("run -m host x.py", "-m is 'host'; expected host:port"),
        ("run -t mars x.py", "execution.target is 'mars'; expected one of local, remote"),
        ("run -t kubernetes-session x.py", "Kubernetes comes later"),
        ("run -p none x.py", "The parallelism is 'none'; expected a whole number"),
        ("run -p 0 x.py", "The parallelism is '0'; expected a whole number"),
        ("run -cm later x.py", "The claim mode is 'later'; expected no_claim or claim"),
        ("run -rm legacy x.py", "The claim mode LEGACY is gone"),
        ("run -D =1 x.py", "has no key"),
    ],
)
def test_values_that_cannot_be_used_are_told(line, message):
    with pytest.raises(ConfigError) as caught:
        config(line)
    assert message in str(caught.value)


def test_a_savepoint_to_start_from_becomes_configuration(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = config("run -s sp/x -n -rm claim x.py").to_dict()
    assert found["execution.state-recovery.path"] == f"{tmp_path}/sp/x"
    assert found["execution.state-recovery.ignore-unclaimed-state"] == "true"
    assert found["execution.state-recovery.claim-mode"] == "CLAIM"
    remote = config("run -s hdfs:///sp x.py").to_dict()
    assert remote["execution.state-recovery.path"] == "hdfs:///sp"
    assert "execution.state-recovery.claim-mode" not in remote


def test_a_memory_without_unit_is_megabytes():
    assert config("run -yjm 1024 x.py").get(MemoryOptions.JM_PROCESS) == 1024 << 20


def test_flinks_properties_file_is_read(tmp_path):
    path = tmp_path / ".yarn-properties-me"
    path.write_text(
        "#Generated YARN properties file\n#Mon Jan 01 00:00:00 UTC 2024\n"
        "dynamicPropertiesString=a.b\\=1@@c\\=x\\:y\napplicationID=application_1700000000000_0003\n"
    )
    found = read_yarn_properties(str(path))
    assert found is not None
    assert found.application_id == "application_1700000000000_0003"
    assert found.dynamic_properties == {"a.b": "1", "c": "x:y"}


def test_no_properties_file_is_no_session(tmp_path):
    assert read_yarn_properties(str(tmp_path / "none")) is None


def test_a_properties_file_without_id_is_an_error(tmp_path):
    path = tmp_path / "p"
    path.write_text("applicationID=\n")
    with pytest.raises(ConfigError, match=r"applicationID=''; expected application_"):
        read_yarn_properties(str(path))


def test_the_properties_file_lies_where_the_configuration_says(tmp_path):
    found = yarn_properties_path(Configuration({"yarn.properties-file.location": str(tmp_path)}), "me")
    assert found == str(tmp_path / ".yarn-properties-me")
