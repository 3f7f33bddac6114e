"""An attached ``yarn-session.sh`` is told to end, at bad moments: its session is stopped, never left."""

from __future__ import annotations

import os
import pty
import signal
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from engine.core.config import Configuration
from flink_yarn import session_client, yarn_session
from flink_yarn.cli_signals import EndedBySignal, held_signals

ID = "application_1_0001"


class Session:
    """What is known of the one that is started; ``at``: a moment → what happens then."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[str] = []
        self.said: list[str] = []
        self.at = dict[str, object]()
        monkeypatch.setattr(yarn_session, "load_config_dir", lambda folder: Configuration())
        monkeypatch.setattr(yarn_session, "find_config_dir", lambda: None)
        monkeypatch.setattr(yarn_session, "deploy", self.deploy)
        monkeypatch.setattr(yarn_session, "write_properties", lambda *words: self.happens("properties"))
        monkeypatch.setattr(yarn_session, "_await_slots", lambda *words: self.happens("slots"))
        monkeypatch.setattr(yarn_session, "_remove_properties", lambda *words: None)
        monkeypatch.setattr(yarn_session, "kill", lambda *words: self.happens("kill"))
        monkeypatch.setattr(yarn_session, "yarn_client", lambda: None)
        monkeypatch.setattr(yarn_session, "_stop", lambda *words: self.happens("stop"))
        monkeypatch.setattr(yarn_session, "say", self.say)

    def happens(self, moment: str) -> None:
        self.at.get(moment, lambda: None)()  # type: ignore[operator]
        self.done.append(moment)

    def say(self, text: str, stream: object = None) -> None:
        self.said.append(text)
        self.happens(text.partition(":")[0])

    def deploy(self, config: Configuration, mode: object, submitted: list[str]) -> SimpleNamespace:
        submitted.append(ID)
        self.happens("submitted")
        return SimpleNamespace(application_id=ID, rest=None, plan=None, address="http://here")


@pytest.fixture
def session(monkeypatch):
    return Session(monkeypatch)


def hang_up() -> None:
    os.kill(os.getpid(), signal.SIGHUP)


def test_a_signal_between_the_start_and_the_first_look_at_the_terminal_stops_the_session(session, capfd):
    session.at = {"JobManager Web Interface": hang_up}
    assert yarn_session.main([]) == 0
    assert "Interrupted: the session is stopped." in session.said
    assert session.done[-1] == "stop"
    assert "kill" not in session.done


def test_more_signals_while_it_is_stopped_change_nothing(session):
    session.at = {"JobManager Web Interface": hang_up, "Interrupted": hang_up, "stop": hang_up}
    assert yarn_session.main([]) == 0
    assert session.done[-1] == "stop"


@pytest.mark.parametrize("moment", ["submitted", "properties", "slots"])
def test_a_signal_before_its_slots_are_there_ends_it_again(session, moment):
    session.at = {moment: hang_up, "kill": hang_up}
    assert yarn_session.main([]) == 128 + signal.SIGHUP
    assert session.done[-2:] == ["kill", "Interrupted."]


def test_the_end_of_a_terminal_that_has_gone_is_not_the_end_of_input(session, monkeypatch):
    """The kernel says end-of-file there, and may do so before the signal has arrived."""
    ours, theirs = pty.openpty()
    with open(theirs, encoding="utf-8", closefd=True) as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        session.at = {"Available commands": lambda: os.close(ours)}
        assert yarn_session.main([]) == 0
    assert session.done[-1] == "stop"


def test_the_end_of_piped_input_leaves_the_session_running(session, monkeypatch):
    with open(os.devnull, encoding="utf-8") as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        assert yarn_session.main([]) == 0
    assert session.said[-1].startswith("No more input; the session goes on.")
    assert "stop" not in session.done


def test_signals_that_are_held_raise_when_they_are_released_and_once():
    with held_signals() as held:
        hang_up()
        with pytest.raises(EndedBySignal), held.released():
            pytest.fail("it had been heard before")
        with pytest.raises(EndedBySignal), held.released():
            hang_up()
            time.sleep(60)
        with held.released():
            pass
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt), held.released():
            pytest.fail("it had been heard before")


def test_another_thread_leaves_signals_alone():
    seen = []

    def look() -> None:
        with held_signals() as held, held.released():
            seen.append(signal.getsignal(signal.SIGHUP))

    before = signal.getsignal(signal.SIGHUP)
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [before]


def test_an_application_that_is_submitted_while_a_signal_waits_is_killed(monkeypatch):
    """Its id is known to nobody else."""
    killed: list[str] = []
    monkeypatch.setattr(session_client, "_submit", lambda *words: (hang_up(), ID)[1])
    monkeypatch.setattr(session_client, "_kill_quietly", lambda driver, name: killed.append(name) or True)
    for name in ("YarnClient", "HadoopConf", "plan_cluster", "limits_of", "file_system_of", "_check_name_node"):
        monkeypatch.setattr(session_client, name, FakeAnything())
    for name in ("_prepare_files", "start_driver", "application_spec", "skein_module", "_home"):
        monkeypatch.setattr(session_client, name, FakeAnything())
    submitted: list[str] = []
    with pytest.raises(EndedBySignal):
        session_client.deploy(Configuration(), yarn_session.Mode.SESSION, submitted=submitted, say=lambda line: None)
    assert killed == [ID]
    assert submitted == []


class FakeAnything:
    """Stands for whatever is of no account here."""

    attempts = 1

    def __call__(self, *words: object, **more: object) -> FakeAnything:
        return self

    def __getattr__(self, name: str) -> FakeAnything:
        return self

    def __enter__(self) -> FakeAnything:
        return self

    def __exit__(self, *words: object) -> None:
        pass
