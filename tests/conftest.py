"""How tests are dealt to workers: one Hadoop cluster is enough, so all tests that use it are one worker's."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Deal by folder: marks of xdist_group are not heard with each pair of releases of pytest and pytest-xdist."""
    from xdist.scheduler import LoadScopeScheduling

    class ByCluster(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "hadoop" if nodeid.startswith("tests/hadoop/") else nodeid

    return ByCluster(config, log)
