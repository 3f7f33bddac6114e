"""High availability in memory and through files keeps the contract. Through ZooKeeper: tests/hadoop."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from engine.core.config import Configuration
from engine.ha.contracts import HighAvailabilityServices, LeaderElection
from engine.ha.files import FileElection
from engine.ha.memory import MemoryCluster, MemoryElection, MemoryServices
from engine.ha.services import high_availability_services
from tests.testing.ha_contract import HaBackend, HaContract, HaProcessContract


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
    session_timeout_s = 2.0

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
