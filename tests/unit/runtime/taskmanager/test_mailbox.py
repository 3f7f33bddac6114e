"""The selector loop: readiness, deadlines in order, wake-up from another thread."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from engine.runtime.taskmanager.mailbox import READ, WRITE, Mailbox


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    made = Mailbox()
    yield made
    made.close()


def test_deadlines_come_in_order_and_once(mailbox: Mailbox):
    called: list[str] = []
    now = time.monotonic()
    mailbox.call_at(now - 1, lambda: called.append("second"))
    mailbox.call_at(now - 2, lambda: called.append("first"))
    mailbox.call_at(now - 2, lambda: called.append("first too"))
    mailbox.call_at(now + 100, lambda: called.append("never"))
    mailbox.turn(0)
    mailbox.turn(0)
    assert called == ["first", "first too", "second"]


def test_a_cancelled_deadline_is_not_called(mailbox: Mailbox):
    called: list[int] = []
    deadline = mailbox.call_later(0, lambda: called.append(1))
    deadline.cancel()
    mailbox.turn(0)
    assert called == []


def test_the_loop_sleeps_until_the_next_deadline(mailbox: Mailbox):
    called: list[int] = []
    mailbox.call_later(0.02, lambda: called.append(1))
    mailbox.turn(None)
    if not called:  # epoll rounds to milliseconds: the second turn is due
        mailbox.turn(None)
    assert called == [1]


def test_files_are_told_when_ready_and_no_more_when_not_watched(mailbox: Mailbox):
    left, right = socket.socketpair()
    with left, right:
        told: list[int] = []
        mailbox.watch(left, READ, told.append)
        mailbox.turn(0)
        assert told == []
        right.send(b"x")
        mailbox.turn(1)
        assert told == [READ]
        mailbox.watch(left, READ | WRITE, told.append)
        mailbox.turn(1)
        assert told[-1] == READ | WRITE
        mailbox.watch(left, 0, told.append)
        mailbox.turn(0)
        assert len(told) == 2
        mailbox.watch(left, 0, told.append)


def test_a_callback_may_stop_another_one_that_is_ready_too(mailbox: Mailbox):
    first, first_peer = socket.socketpair()
    second, second_peer = socket.socketpair()
    with first, first_peer, second, second_peer:
        told: list[str] = []

        def stop(name: str, other: socket.socket) -> None:
            told.append(name)
            mailbox.watch(other, 0, lambda events: None)

        mailbox.watch(first, READ, lambda events: stop("first", second))
        mailbox.watch(second, READ, lambda events: stop("second", first))
        first_peer.send(b"x")
        second_peer.send(b"x")
        mailbox.turn(1)
        assert len(told) == 1


def test_another_thread_wakes_the_loop(mailbox: Mailbox):
    thread = threading.Thread(target=mailbox.wake)
    thread.start()
    mailbox.turn(300)
    thread.join()
    mailbox.wake()
    mailbox.wake()  # once is enough
    before = time.monotonic()
    mailbox.turn(300)
    assert time.monotonic() - before < 100
