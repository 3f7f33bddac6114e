"""Nodes on which containers end before they register: when they are avoided, when they are asked again."""

from __future__ import annotations

import os
import random

import pytest

from flink_yarn import bad_nodes
from flink_yarn.bad_nodes import AVOID_S, FAILURES_INTERVAL_S, FAILURES_MAX, PATIENCE_S, BadNodes, tell_skein
from flink_yarn.skein_classes import AGAIN_FOLDER, AVOID_FOLDER


def avoiding(*hosts: str, now_s: float = 0.0) -> BadNodes:
    nodes = BadNodes()
    for host in hosts:
        assert [nodes.failed(host, now_s) for _ in range(FAILURES_MAX)] == [False] * (FAILURES_MAX - 1) + [True]
    return nodes


def test_a_node_is_avoided_after_its_second_failure_and_others_are_not():
    nodes = avoiding("a")
    nodes.failed("b", 0.0)
    assert nodes.avoided(1.0) == {"a"}


def test_failures_of_long_ago_do_not_count():
    nodes = BadNodes()
    nodes.failed("a", 0.0)
    assert not nodes.failed("a", FAILURES_INTERVAL_S + 1)
    assert nodes.avoided(FAILURES_INTERVAL_S + 1) == frozenset()


def test_a_node_on_which_a_taskmanager_registers_begins_anew():
    nodes = BadNodes()
    nodes.failed("a", 0.0)
    nodes.registered("a")
    assert not nodes.failed("a", 1.0)


def test_a_node_is_asked_again_after_a_while_in_any_case():
    assert avoiding("a").avoided(AVOID_S + 1) == frozenset()


def test_nodes_are_asked_again_when_there_are_no_others_and_one_more_failure_is_enough_then():
    nodes = avoiding("a", "b")
    assert nodes.missing(True, 0.0) == frozenset()
    assert nodes.missing(True, PATIENCE_S - 0.1) == frozenset()
    assert nodes.missing(True, PATIENCE_S) == {"a", "b"}
    assert nodes.avoided(PATIENCE_S) == frozenset()
    assert nodes.failed("a", PATIENCE_S + 1)
    assert nodes.avoided(PATIENCE_S + 1) == {"a"}


def test_patience_begins_anew_with_each_container_and_grows_with_each_time_it_was_lost():
    nodes = avoiding("a")
    nodes.missing(True, 0.0)
    nodes.missing(False, PATIENCE_S / 2)
    assert nodes.missing(True, PATIENCE_S) == frozenset()
    assert nodes.missing(True, 2 * PATIENCE_S) == {"a"}
    nodes.failed("a", 100.0)
    assert nodes.missing(True, 100.0) == frozenset()
    assert nodes.missing(True, 100.0 + PATIENCE_S) == frozenset()
    assert nodes.missing(True, 100.0 + 2 * PATIENCE_S) == {"a"}


def test_missing_containers_mean_nothing_while_no_node_is_avoided():
    nodes = BadNodes()
    assert nodes.missing(True, 0.0) == nodes.missing(True, 1000.0) == frozenset()


def test_one_avoided_node_may_be_the_only_fault_until_it_had_its_second_chance():
    nodes = avoiding("a")
    assert nodes.may_be_the_only_fault({"a"}, 1.0)
    assert not nodes.may_be_the_only_fault({"a", "b"}, 1.0)
    nodes.missing(True, 1.0)
    nodes.missing(True, 1.0 + PATIENCE_S)
    nodes.failed("a", 20.0)
    assert not nodes.may_be_the_only_fault({"a"}, 20.0)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_somebody_is_asked_in_the_end(seed):
    """However the history went: while all nodes are avoided and containers are missing, all are asked again in time."""
    rng, nodes, now = random.Random(seed), BadNodes(), 0.0
    for _ in range(200):
        now += rng.choice((0.5, 5.0, 50.0))
        match rng.randrange(3):
            case 0:
                nodes.failed(rng.choice("ab"), now)
            case 1:
                nodes.registered(rng.choice("ab"))
            case 2:
                nodes.missing(rng.random() < 0.7, now)
    nodes.failed("a", now), nodes.failed("a", now), nodes.failed("b", now), nodes.failed("b", now)
    nodes.missing(True, now)
    asked = nodes.missing(True, now + bad_nodes.PATIENCE_MAX_S)
    assert asked == {"a", "b"}, f"seed {seed}"


def test_what_skein_is_told_is_in_one_folder_only(tmp_path):
    def said() -> tuple[list[str], list[str]]:
        return tuple(sorted(os.listdir(tmp_path / name)) for name in (AVOID_FOLDER, AGAIN_FOLDER))  # type: ignore[return-value]

    tell_skein({"a", "b"}, str(tmp_path))
    assert said() == (["a", "b"], [])
    tell_skein({"b", "c"}, str(tmp_path))
    assert said() == (["b", "c"], ["a"])
    tell_skein({"a"}, str(tmp_path))
    assert said() == (["a"], ["b", "c"])
    tell_skein(frozenset(), str(tmp_path))
    assert said() == ([], ["a", "b", "c"])
