"""Silence is noticed once, at the right moment."""

from __future__ import annotations

from engine.rpc.heartbeat import HeartbeatMonitor


def monitor_of_100_ms() -> HeartbeatMonitor[str]:
    return HeartbeatMonitor(100, look_ms=1000, grace_ms=30)


def monitor_that_looked(*, at_ms: int) -> HeartbeatMonitor[str]:
    """It means to look every 10 ms; silence of 100 ms is too long."""
    monitor: HeartbeatMonitor[str] = HeartbeatMonitor(100, look_ms=10, grace_ms=30)
    monitor.track("a", 0)
    monitor.track("b", 1)
    assert monitor.expired(at_ms) == []
    return monitor


def test_a_peer_expires_after_the_timeout_and_once() -> None:
    monitor = monitor_of_100_ms()
    monitor.track("a", 0)
    assert monitor.expired(99) == []
    assert monitor.expired(100) == ["a"]
    assert monitor.expired(1000) == []


def test_a_heartbeat_moves_the_deadline() -> None:
    monitor = monitor_of_100_ms()
    monitor.track("a", 0)
    monitor.received("a", 60)
    monitor.received("a", 50)
    assert monitor.next_deadline_ms() == 160
    assert monitor.expired(159) == []
    assert monitor.expired(160) == ["a"]


def test_the_longest_silence_comes_first() -> None:
    monitor = monitor_of_100_ms()
    for peer, now_ms in (("a", 5), ("b", 0), ("c", 500)):
        monitor.track(peer, now_ms)
    assert monitor.expired(200) == ["b", "a"]


def test_untracked_and_unknown_peers_never_expire() -> None:
    monitor = monitor_of_100_ms()
    monitor.track("a", 0)
    monitor.untrack("a")
    monitor.untrack("a")
    monitor.received("b", 0)
    assert monitor.expired(10_000) == []
    assert monitor.next_deadline_ms() is None


def test_a_monitor_that_was_stopped_itself_gives_each_peer_one_more_interval() -> None:
    monitor = monitor_that_looked(at_ms=20)
    assert monitor.expired(500) == []
    assert monitor.next_deadline_ms() == 530
    monitor.received("b", 505)  # had been sent, and waited to be read
    assert monitor.expired(515) == []
    assert monitor.expired(530) == ["a"]
    assert monitor.next_deadline_ms() == 605


def test_a_peer_whose_timeout_is_not_over_after_a_stop_has_the_interval_too() -> None:
    monitor = monitor_that_looked(at_ms=20)
    assert monitor.expired(95) == []
    assert monitor.expired(110) == []
    assert monitor.expired(125) == ["a", "b"]


def test_a_stop_that_was_short_leaves_the_deadline_where_it_was() -> None:
    monitor = monitor_that_looked(at_ms=20)
    assert monitor.expired(60) == []
    assert monitor.expired(80) == []
    assert monitor.expired(100) == ["a"]


def test_a_monitor_that_is_always_late_still_gives_up_who_stays_silent() -> None:
    monitor = monitor_that_looked(at_ms=20)
    given_up = [(now_ms, peer) for now_ms in range(50, 300, 25) for peer in monitor.expired(now_ms)]
    assert given_up == [(100, "a"), (125, "b")]


def test_who_was_heard_after_a_stop_is_spared_at_the_next_one_too() -> None:
    monitor = monitor_that_looked(at_ms=20)
    for now_ms in (500, 1000):
        assert monitor.expired(now_ms) == []
        monitor.received("a", now_ms + 5)
        monitor.received("b", now_ms + 5)
        assert monitor.expired(now_ms + 20) == []
