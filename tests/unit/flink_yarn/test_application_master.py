"""What the JobManager on YARN asks skein's Java process for while that is still starting."""

from __future__ import annotations

import pytest
import skein

from flink_yarn import application_master
from flink_yarn.application_master import PUBLISH_ATTEMPTS, _patiently


class Refusing:
    def __init__(self, times: int) -> None:
        self.times = times
        self.calls = 0

    def publish(self, handle: object) -> None:
        self.calls += 1
        if self.calls <= self.times:
            raise skein.exceptions.ApplicationError("")


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(application_master, "RETRY_S", 0.0)


def test_a_refused_address_is_published_again():
    refusing = Refusing(3)
    _patiently(refusing.publish, None)
    assert refusing.calls == 4


def test_who_is_always_refused_is_told():
    refusing = Refusing(PUBLISH_ATTEMPTS)
    with pytest.raises(skein.exceptions.ApplicationError):
        _patiently(refusing.publish, None)
    assert refusing.calls == PUBLISH_ATTEMPTS
