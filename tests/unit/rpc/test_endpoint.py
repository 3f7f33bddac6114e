"""The fence: which tokens each end of a connection takes."""

from __future__ import annotations

import pytest

from engine.core.errors import StaleLeaderError
from engine.core.ids import FencingToken
from engine.protocol.control import Envelope, HeartbeatFromJobManager
from engine.rpc.endpoint import Fence

LEADER, OTHER = FencingToken.from_text("leader"), FencingToken.from_text("other")
MESSAGE = HeartbeatFromJobManager()


def test_the_leader_takes_a_first_message_without_token():
    assert Fence(LEADER).admit(Envelope("", MESSAGE)) is MESSAGE


def test_the_leader_takes_no_later_message_without_token():
    fence = Fence(LEADER)
    fence.admit(Envelope("", MESSAGE))
    with pytest.raises(StaleLeaderError):
        fence.admit(Envelope("", MESSAGE))


def test_the_leader_refuses_the_token_of_another():
    with pytest.raises(StaleLeaderError, match="another JobManager leader"):
        Fence(LEADER).admit(Envelope(OTHER, MESSAGE))


def test_a_follower_learns_the_token_from_the_first_answer():
    fence = Fence()
    fence.admit(Envelope(LEADER, MESSAGE))
    assert fence.token == LEADER


def test_a_follower_refuses_a_second_leader():
    fence = Fence()
    fence.admit(Envelope(LEADER, MESSAGE))
    with pytest.raises(StaleLeaderError):
        fence.admit(Envelope(OTHER, MESSAGE))


def test_a_follower_takes_no_message_without_token():
    with pytest.raises(StaleLeaderError):
        Fence().admit(Envelope("", MESSAGE))
