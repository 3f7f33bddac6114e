"""From a configuration to services: what is wrong is told at once, with key, value and expectation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from engine.core.config import Configuration
from engine.core.errors import ConfigError
from engine.ha.files import FileServices
from engine.ha.services import high_availability_services
from engine.ha.zookeeper import ZooKeeperServices
from engine.ha.zookeeper_client import zookeeper_settings

ZOOKEEPER = {
    "high-availability.type": "zookeeper",
    "high-availability.storageDir": "hdfs:///flink/ha",
    "high-availability.zookeeper.quorum": "a:2181,b:2181",
}


@pytest.mark.parametrize("settings", [{}, {"high-availability.type": "NONE"}, {"high-availability": "standalone"}])
def test_without_a_type_there_are_none(settings):
    assert high_availability_services(Configuration(settings)) is None


def test_the_type_says_which():
    assert isinstance(high_availability_services(Configuration(ZOOKEEPER)), ZooKeeperServices)
    files = Configuration({"high-availability.type": "filesystem", "high-availability.storageDir": "/tmp/x"})
    services = high_availability_services(files)
    assert isinstance(services, FileServices)
    assert services.storage_dir == "file:///tmp/x/default"


def test_flinks_older_names_are_understood():
    old = {
        "recovery.mode": "ZooKeeper",
        "recovery.zookeeper.quorum": "h:1",
        "recovery.zookeeper.storageDir": "file:/x/",
        "recovery.zookeeper.path.namespace": "/one/two",
        "recovery.zookeeper.path.root": "/old/top",
        "recovery.zookeeper.client.session-timeout": "4000",
    }
    services = high_availability_services(Configuration(old))
    assert isinstance(services, ZooKeeperServices)
    assert services.storage_dir == "file:///x/one/two"
    settings = services.connection.settings
    assert (settings.quorum, settings.path, settings.session_timeout_s) == ("h:1", "/old/top/one/two", 4.0)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"high-availability.type": "etcd"},
            r"high-availability\.type is 'etcd'; expected NONE, zookeeper or filesystem",
        ),
        ({"high-availability.storageDir": ""}, r"high-availability\.storageDir is not set"),
        ({"high-availability.storageDir": "relative/path"}, "expected an absolute path or a URI"),
        (
            {"high-availability.type": "filesystem"},
            r"'hdfs:///flink/ha'; .*filesystem expected a folder of this machine",
        ),
        ({"high-availability.zookeeper.quorum": ""}, r"zookeeper\.quorum is ''; expected"),
        ({"high-availability.zookeeper.quorum": "host:port"}, "'host:port'; expected"),
        ({"high-availability.zookeeper.quorum": "http://host:1"}, "'http://host:1'; expected"),
        ({"high-availability.cluster-id": "/"}, "cluster-id is '/'; expected a name"),
        ({"high-availability.cluster-id": "a/../b"}, "cluster-id is 'a/../b'; expected a name"),
        ({"high-availability.zookeeper.client.acl": "creator"}, r"client\.authorization is not set"),
        ({"high-availability.zookeeper.client.acl": "closed"}, "expected open or creator"),
        ({"high-availability.zookeeper.client.session-timeout": "0"}, "expected a duration"),
    ],
)
def test_a_bad_value_is_named(changed, said):
    with pytest.raises(ConfigError, match=said):
        high_availability_services(Configuration({**ZOOKEEPER, **changed}))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ()),
        ("digest:word", (("digest", "word"),)),
        ("digest:'user:word'", (("digest", "user:word"),)),
        ("digest:'u:a,b', ip:\"1.2.3.4\"", (("digest", "u:a,b"), ("ip", "1.2.3.4"))),
        ("digest:user:word", (("digest", "user:word"),)),
    ],
)
def test_credentials_are_read(text, expected):
    config = Configuration({**ZOOKEEPER, "high-availability.zookeeper.client.authorization": text})
    assert zookeeper_settings(config, "x").authorization == expected


def test_credentials_that_cannot_be_read_are_not_printed():
    config = Configuration({**ZOOKEEPER, "high-availability.zookeeper.client.authorization": "digest:'secret"})
    with pytest.raises(ConfigError, match="cannot be understood") as caught:
        zookeeper_settings(config, "x")
    assert "secret" not in str(caught.value)


def test_a_process_that_needs_no_zookeeper_does_not_import_its_client():
    script = (
        "import sys; from engine.core.config import Configuration; from engine.ha import services, job_store;"
        "services.high_availability_services(Configuration({'high-availability.type': 'filesystem',"
        "'high-availability.storageDir': '/tmp/x'})); assert 'kazoo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).resolve().parents[3])
