"""Bytes of a socket → frames, in whatever pieces they come."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable
from typing import Any, final

import pytest

from engine.runtime.exchange.connection import Connection
from engine.runtime.exchange.wire import HEADER, Buffer, FrameKind


class _NoLoop:
    """A loop that is turned by hand."""

    def watch(self, file: Any, events: int, on_ready: Callable[[int], None]) -> None:
        self.on_ready = on_ready if events else None

    def call_later(self, delay: float, action: Callable[[], None]) -> Any:
        raise AssertionError("nothing waits here")


@final
class _Kept(Connection):
    def __init__(self, loop: Any, sock: socket.socket) -> None:
        super().__init__(loop, sock)
        self.frames: list[tuple[FrameKind, int, bytes]] = []
        self.kept: list[Buffer] = []
        self.reason = ""

    def on_frame(self, kind: FrameKind, channel: int, payload: Buffer) -> None:
        self.kept.append(payload)  # what was handed over must not be written to any more
        self.frames.append((kind, channel, bytes(payload)))

    def on_closed(self, reason: str) -> None:
        self.reason = reason


KINDS = (FrameKind.ROWS, FrameKind.COLUMNS, FrameKind.EVENT)
SIZES = (0, 1, 100, 4080, 4096, 5000, 60_000, 65_519, 65_520, 65_521, 70_000, 262_144, 300_000)


@pytest.mark.parametrize("seed", range(12))
def test_frames_come_out_whole_and_in_order(seed: int):
    rng = random.Random(seed)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    loop = _NoLoop()
    connection = _Kept(loop, ours)
    connection.start()
    sizes = [rng.choice(SIZES) for _ in range(rng.choice((3, 30)))]
    sent = [(rng.choice(KINDS), number, rng.randbytes(size)) for number, size in enumerate(sizes)]
    stream = b"".join(HEADER.pack(len(payload), number, kind) + payload for kind, number, payload in sent)
    piece_max = rng.choice((3000, 10_000, 200_000))
    theirs.setblocking(False)
    at = 0
    while at < len(stream):
        try:
            at += theirs.send(stream[at : at + rng.randint(1, piece_max)])
        except BlockingIOError:
            pass
        while rng.random() < 0.7 and len(connection.frames) < len(sent):
            connection._on_ready(1)
    while len(connection.frames) < len(sent):
        connection._on_ready(1)
    assert connection.frames == sent
    assert [bytes(payload) for payload in connection.kept] == [payload for _, _, payload in sent]
    theirs.close()
    connection._on_ready(1)
    assert connection.reason == "end of stream"


def test_an_unknown_kind_behind_a_large_frame_closes_the_connection():
    ours, theirs = socket.socketpair()
    connection = _Kept(_NoLoop(), ours)
    connection.start()
    ours.setblocking(False)
    payload = b"x" * 70_000
    theirs.sendall(HEADER.pack(len(payload), 1, FrameKind.ROWS) + payload + HEADER.pack(0, 1, 99))
    while not connection.is_closed:
        connection._on_ready(1)
    assert connection.frames == [(FrameKind.ROWS, 1, payload)]
    assert connection.reason == "frame of unknown kind 99"
    theirs.close()
