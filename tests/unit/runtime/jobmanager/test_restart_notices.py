"""What a terminal shows of restarts: each cause in full once, the same one ever more rarely."""

from __future__ import annotations

import logging

import pytest

from engine.protocol.control import ErrorInfo
from engine.runtime.jobmanager.restart_notices import RESTARTS_LOGGER, RestartNotices, TerminalHandler

BROKEN = ErrorInfo("ValueError", "ValueError: broken\n  in operator 'Map' on record: 5", "", "user")
LOST = ErrorInfo("ExternalError", "TaskManager tm-1 is gone", "", "external")


def test_a_cause_is_told_in_full_once_and_then_at_powers_of_two(caplog):
    notices = RestartNotices("counts")
    for attempt in range(1, 10):
        notices.tell(attempt, 1000, BROKEN)
    told = [record.getMessage() for record in caplog.records]
    start = "Job 'counts' has failed and is restarted in 1000 ms, attempt"
    assert told == [
        f"{start} 1: ValueError: broken\n  in operator 'Map' on record: 5",
        f"{start} 2: ValueError: broken (2 times)",
        f"{start} 4: ValueError: broken (4 times)",
        f"{start} 8: ValueError: broken (8 times)",
    ]


def test_another_cause_is_told_at_once_and_what_has_none_too(caplog):
    notices = RestartNotices("counts")
    for attempt, cause in enumerate([BROKEN, BROKEN, BROKEN, LOST, BROKEN, None], 1):
        notices.tell(attempt, 1, cause)
    told = [record.getMessage() for record in caplog.records]
    assert [int(text.split("attempt ")[1].split(":")[0]) for text in told] == [1, 2, 4, 5, 6]
    assert told[-1].endswith("the cause is not known")


@pytest.mark.parametrize("configured", [False, True])
def test_the_terminal_is_left_to_a_program_that_configures_logging(configured, monkeypatch, capsys):
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [logging.NullHandler()] if configured else [])
    record = logging.LogRecord(RESTARTS_LOGGER, logging.WARNING, "", 1, "restarted", (), None)
    TerminalHandler().handle(record)
    assert capsys.readouterr().err == ("" if configured else "restarted\n")
