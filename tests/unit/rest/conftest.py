"""A fake cluster with one running, one finished and one failed job, and an HTTP client on its application."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from engine.core.clock import ManualClock
from engine.graph.job_graph import JobType
from engine.protocol.control import ErrorInfo
from engine.protocol.lifecycle import JobStatus
from engine.rest.server import create_app
from tests.testing.fake_gateway import FakeGateway, end, taskmanager_view, word_count_job

NOW_MS = 1_700_000_000_000
ERROR = ErrorInfo("ZeroDivisionError", "ZeroDivisionError: division by zero", 'File "a.py", line 3, in f', "user")


@pytest.fixture
def gateway(tmp_path: Path) -> FakeGateway:
    made = FakeGateway(str(tmp_path), now_ms=NOW_MS)
    made.views = [taskmanager_view(1, now_ms=NOW_MS), taskmanager_view(2, now_ms=NOW_MS)]
    finished = made.add_running_job(word_count_job("done", job_type=JobType.BATCH), age_ms=3_600_000)
    end(finished, JobStatus.FINISHED, finished.start_ms + 95_000)
    finished.accumulator_results["lines"] = ("LongCounter", 7)
    failed = made.add_running_job(word_count_job("broken"), age_ms=600_000)
    end(failed, JobStatus.FAILED, failed.start_ms + 4_000, ERROR)
    for view in made.views:
        view.slots_by_job.clear()
    made.add_running_job(word_count_job("running"), age_ms=60_000)
    return made


@pytest.fixture
def client(gateway: FakeGateway, tmp_path: Path) -> Iterator[TestClient]:
    app = create_app(gateway, upload_dir=str(tmp_path / "upload"))
    app.state.rest.clock = ManualClock(NOW_MS)
    with TestClient(app) as opened:
        yield opened
