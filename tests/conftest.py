"""How tests are dealt to workers. Those that share a Hadoop cluster are one worker's and come first, as they take
longest; those that start clusters of their own come last, file by file. Temporary files are in memory."""

from __future__ import annotations

from typing import Any, Final

import pytest
from hypothesis import HealthCheck, settings

from tests.testing.memory_folder import temporary_files_in_memory

#: Files of tests/hadoop with clusters of their own → which; in the order in which they run.
_OWN_CLUSTER: Final = {
    "test_yarn_rm_ha.py": "yarn pair",
    "test_yarn_rm_nodes.py": "yarn pair",
    "test_yarn_rm_preemption.py": "yarn pair",
    "test_chaos.py": "chaos",
    "test_faults_zookeeper.py": "zookeeper",
    "test_jobmanager_ha.py": "zookeeper",
    "test_zookeeper.py": "zookeeper",
    "test_hdfs_ha.py": "pair",
    "test_faults_hdfs.py": "data nodes",
}
_HADOOP: Final = "tests/hadoop/"


def _scope(nodeid: str) -> str:
    """Return what has to run in one worker."""
    path = nodeid.partition("::")[0]
    if not path.startswith(_HADOOP):
        return nodeid
    return _OWN_CLUSTER.get(path.removeprefix(_HADOOP), "hadoop")


def _turn(nodeid: str) -> int:
    scope = _scope(nodeid)
    if scope == "hadoop":
        return 0
    return 1 if scope == nodeid else 2 + list(_OWN_CLUSTER.values()).index(scope)


# How long an example takes says more of the machine than of what is tested.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # workers inherit it
        folder = temporary_files_in_memory()
        folder.__enter__()
        config.add_cleanup(lambda: folder.__exit__(None, None, None))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _turn(item.nodeid))  # otherwise as they were collected


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Marks of xdist_group are not heard with each pair of releases of pytest and pytest-xdist."""
    from xdist.scheduler import LoadScopeScheduling

    class ByCluster(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _scope(nodeid)

    return ByCluster(config, log)
