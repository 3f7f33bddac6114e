from __future__ import annotations

import pytest

from flink_yarn.container_place import container_log_url, leader_place

PLACE = {"NM_HOST": "node1", "NM_HTTP_PORT": "8042", "CONTAINER_ID": "container_1_0001_01_000002", "USER": "ann"}


def test_the_link_leads_to_the_page_of_the_node_manager():
    assert container_log_url(PLACE) == "http://node1:8042/node/containerlogs/container_1_0001_01_000002/ann"
    as_user = {**PLACE, "USER": "", "HADOOP_USER_NAME": "bob"}
    assert container_log_url(as_user).endswith("/bob")


@pytest.mark.parametrize("missing", ["NM_HOST", "NM_HTTP_PORT", "CONTAINER_ID"])
def test_outside_of_a_container_there_is_no_link(missing):
    assert container_log_url({name: value for name, value in PLACE.items() if name != missing}) == ""


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("", ""),
        ("70", "Its process ended with exit code 70 and was started again in its container."),
        ("137", "Its process was ended by SIGKILL and was started again in its container."),
        ("250", "Its process was ended by signal 122 and was started again in its container."),
    ],
)
def test_the_end_of_the_process_before_is_told_by_its_exit_code(code, said):
    place = leader_place({**PLACE, "FLINK_LAST_EXIT": code}, lambda: "")
    assert (place.container, place.former_end) == (PLACE["CONTAINER_ID"], said)
