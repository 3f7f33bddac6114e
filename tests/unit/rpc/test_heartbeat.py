"""Silence is noticed once, at the right moment."""

from __future__ import annotations

from engine.rpc.heartbeat import HeartbeatMonitor


def test_a_peer_expires_after_the_timeout_and_once() -> None:
    monitor: HeartbeatMonitor[str] = HeartbeatMonitor(100)
    monitor.track("a", 0)
    assert monitor.expired(99) == []
    assert monitor.expired(100) == ["a"]
    assert monitor.expired(1000) == []


def test_a_heartbeat_moves_the_deadline() -> None:
    monitor: HeartbeatMonitor[str] = HeartbeatMonitor(100)
    monitor.track("a", 0)
    monitor.received("a", 60)
    monitor.received("a", 50)
    assert monitor.next_deadline_ms() == 160
    assert monitor.expired(159) == []
    assert monitor.expired(160) == ["a"]


def test_the_longest_silence_comes_first() -> None:
    monitor: HeartbeatMonitor[str] = HeartbeatMonitor(100)
    for peer, now_ms in (("a", 5), ("b", 0), ("c", 500)):
        monitor.track(peer, now_ms)
    assert monitor.expired(200) == ["b", "a"]


def test_untracked_and_unknown_peers_never_expire() -> None:
    monitor: HeartbeatMonitor[str] = HeartbeatMonitor(100)
    monitor.track("a", 0)
    monitor.untrack("a")
    monitor.untrack("a")
    monitor.received("b", 0)
    assert monitor.expired(10_000) == []
    assert monitor.next_deadline_ms() is None
