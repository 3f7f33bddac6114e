"""High availability in memory and through files keeps the contract. Through ZooKeeper: tests/hadoop."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from unittest import mock

import pytest

from engine.core.config import Configuration
from engine.core.errors import ConfigError
from engine.core.ids import FencingToken
from engine.ha.contracts import HighAvailabilityServices, LeaderElection, LeadershipLostError
from engine.ha.files import FileElection
from engine.ha.memory import MemoryCluster, MemoryElection, MemoryServices
from engine.ha.services import high_availability_services
from tests.testing.ha_contract import (
    Cluster,
    Contender,
    HaBackend,
    HaContract,
    HaProcessContract,
    run,
    scenario,
)


class MemoryBackend:
    config = None
    session_timeout_s = 0.0

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._cluster: MemoryCluster | None = None

    def services(self) -> HighAvailabilityServices:
        if self._cluster is None:
            self._cluster = MemoryCluster(f"file://{self._folder}")
        return MemoryServices(self._cluster)

    async def expire(self, services: HighAvailabilityServices, election: LeaderElection) -> None:
        assert self._cluster is not None
        assert isinstance(election, MemoryElection)
        self._cluster.expire(election)


class FileBackend:
    session_timeout_s = 3.0

    def __init__(self, folder: Path) -> None:
        self.config = {
            "high-availability.type": "filesystem",
            "high-availability.storageDir": f"file://{folder}",
            "high-availability.zookeeper.client.session-timeout": f"{self.session_timeout_s} s",
        }

    def services(self) -> HighAvailabilityServices:
        services = high_availability_services(Configuration(self.config))
        assert services is not None
        return services

    async def expire(self, services: HighAvailabilityServices, election: LeaderElection) -> None:
        """As another contender does with one that gives no sign of life."""
        assert isinstance(election, FileElection)
        with contextlib.suppress(FileNotFoundError):  # expired before, and does not know yet
            os.remove(os.path.join(election._folder.contenders, election._name))


class TestMemory(HaContract):
    @pytest.fixture
    def backend(self, tmp_path: Path) -> HaBackend:
        return MemoryBackend(tmp_path / "ha")


class TestFiles(HaContract, HaProcessContract):
    killed_within_s = 1.5  # the kernel lets go of its lock at once

    @pytest.fixture
    def backend(self, tmp_path: Path) -> HaBackend:
        return FileBackend(tmp_path / "ha")

    @scenario
    async def test_a_write_that_is_paused_before_its_last_step_is_refused_and_holds_up_nobody(
        self, cluster: Cluster
    ) -> None:
        contender, token = await cluster.leader()
        await cluster.put(contender, "x", b"old", token)
        election = cluster.election(contender)
        assert isinstance(election, FileElection)
        folder, replace = election._folder, os.replace

        def paused(source: str, target: str) -> None:
            assert folder.grant(token, FencingToken.generate())
            replace(source, target)

        with mock.patch("os.replace", paused), pytest.raises(LeadershipLostError, match="another one was elected"):
            await cluster.put(contender, "x", b"late", token)
        assert await cluster.get(contender, "x") == b"old"

    @scenario
    async def test_what_a_killed_writer_left_half_written_is_removed(self, cluster: Cluster) -> None:
        contender, _ = await cluster.leader()
        election = cluster.election(contender)
        assert isinstance(election, FileElection)
        left, fresh = (Path(election._folder.root) / f".partial-{name}" for name in ("left", "fresh"))
        for path in (left, fresh):
            path.write_bytes(b"half")
        os.utime(left, (0, 0))
        await cluster.join()
        assert (left.exists(), fresh.exists()) == (False, True)


def test_a_storage_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")

    async def play() -> None:
        services = FileBackend(tmp_path / "file").services()
        with pytest.raises(ConfigError, match=r"file/default.*high-availability\.storageDir.*cannot be written"):
            await services.election().start(Contender())
        await services.close()

    run(play())
