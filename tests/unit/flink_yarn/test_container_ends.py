"""What YARN's words about an ended container mean. The texts are Hadoop 3.4's."""

from __future__ import annotations

import pytest

from flink_yarn.container_ends import ContainerEnd, end_of

FULL = (
    "1/1 local-dirs usable space is below configured utilization percentage/no more usable space "
    "[ /x/local : used space above threshold of 99.5% ] "
)


@pytest.mark.parametrize(
    ("status", "message", "end"),
    [
        (-100, "Container released on a *lost* node", ContainerEnd.NODE_LOST),
        (-100, "Container expired since it was unused", ContainerEnd.NODE_LOST),
        (-100, "Container Killed on NodeManager resync", ContainerEnd.NODE_LOST),
        (-101, f"Most of the disks failed. {FULL}", ContainerEnd.DISKS_FAILED),
        (-101, "All disks failed. ", ContainerEnd.DISKS_FAILED),
        (-102, "Container preempted by scheduler", ContainerEnd.PREEMPTED),
        (-108, "Container Killed to make room for Guaranteed Container.", ContainerEnd.PREEMPTED),
        (-105, "Container killed by the ApplicationMaster.", ContainerEnd.ENDED_BY_YARN),
        (-106, "Container Killed by ResourceManager", ContainerEnd.ENDED_BY_YARN),
        (-107, "Container killed on application-finish event: x", ContainerEnd.ENDED_BY_YARN),
        (-104, "Container killed by YARN for exceeding physical memory limits. 1 GB used.", ContainerEnd.FAILED),
        (1, "Container failed during execution, see logs for more information.", ContainerEnd.FAILED),
        (-1000, "Failed to localize: No space left on device", ContainerEnd.FAILED),
        (-1000, "", ContainerEnd.FAILED),
    ],
)
def test_each_exit_status_is_known_by_its_words(status, message, end):
    assert end_of(message) is end


def test_only_what_a_container_or_its_disk_has_done_counts_as_a_failure():
    assert {end for end in ContainerEnd if end.is_own_fault} == {ContainerEnd.FAILED, ContainerEnd.DISKS_FAILED}
