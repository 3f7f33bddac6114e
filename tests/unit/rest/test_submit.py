"""Submitting a JobGraph, its files, and requests to coordinators."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pickle
from pathlib import Path

from starlette.testclient import TestClient

from engine.core.ids import JobID, OperatorID
from engine.protocol.control import UserFile
from engine.rpc import codec
from tests.testing.fake_gateway import FakeGateway, word_count_job

CONTENT = b"import os\n" * 400_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
GRAPH = dataclasses.replace(word_count_job("sent"), files=(UserFile("m.py", SHA256, len(CONTENT), "module"),))


def nothing_left(tmp_path: Path) -> bool:
    incoming = tmp_path / "upload" / "incoming"
    return not incoming.exists() or os.listdir(incoming) == []


def test_a_job_with_its_files_is_handed_on(gateway: FakeGateway, client: TestClient, tmp_path: Path):
    assert client.get(f"/blobs/{SHA256}").status_code == 404
    parts = {"request": ("request", codec.encode(GRAPH)), f"file_{SHA256}": ("m.py", CONTENT)}
    answer = client.post("/jobs", files=parts)
    assert answer.status_code == 202, answer.text
    assert answer.json()["jobUrl"] == f"/jobs/{GRAPH.job_id}"
    assert gateway.submitted == [GRAPH]
    assert gateway.blobs == {SHA256: CONTENT}
    assert client.get(f"/blobs/{SHA256}").status_code == 200
    assert nothing_left(tmp_path)


def test_files_that_the_jobmanager_has_need_not_be_sent_again(gateway: FakeGateway, client: TestClient):
    gateway.blobs[SHA256] = CONTENT
    assert client.post("/jobs", files={"request": ("request", codec.encode(GRAPH))}).status_code == 202


def test_a_job_whose_files_are_missing_is_refused(gateway: FakeGateway, client: TestClient):
    answer = client.post("/jobs", files={"request": ("request", codec.encode(GRAPH))})
    assert answer.status_code == 400
    assert "files that were not sent: m.py" in answer.json()["errors"][0]
    assert gateway.submitted == []


def test_a_file_that_was_damaged_on_the_way_is_refused(gateway: FakeGateway, client: TestClient, tmp_path: Path):
    parts = {"request": ("request", codec.encode(GRAPH)), f"file_{SHA256}": ("m.py", b"other")}
    answer = client.post("/jobs", files=parts)
    assert answer.status_code == 400
    assert "damaged" in answer.json()["errors"][0]
    assert gateway.submitted == []
    assert nothing_left(tmp_path)


class Exploit:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.system, ("touch /nonexistent/owned",))


def test_a_request_that_is_not_made_of_engine_classes_is_refused(gateway: FakeGateway, client: TestClient):
    for body in (pickle.dumps(Exploit()), b"rubbish", codec.encode("a text")):
        answer = client.post("/jobs", files={"request": ("request", body)})
        assert answer.status_code == 400
        assert "request" in answer.json()["errors"][0]
    assert gateway.submitted == []


def test_bodies_that_are_not_multipart_or_are_cut_off_are_refused_and_leave_nothing(client: TestClient, tmp_path: Path):
    assert client.post("/jobs", json={}).status_code == 400
    boundary = {"content-type": "multipart/form-data; boundary=b"}
    for body in (
        b"",
        b'--b\r\nContent-Disposition: form-data; name="request"\r\n\r\nhalf of',
        b"--b\r\nno header",
        b"--b\r\nX-Nothing: 1\r\n\r\nx\r\n--b--\r\n",
        b'--b\r\nContent-Disposition: form-data; name="../../x"\r\n\r\nx\r\n--b--\r\n',
    ):
        answer = client.post("/jobs", content=body, headers=boundary)
        assert answer.status_code == 400, body
        assert list(answer.json()) == ["errors"]
    assert nothing_left(tmp_path)


def test_a_coordinator_gets_the_request_and_its_answer_comes_back(gateway: FakeGateway, client: TestClient):
    operator = OperatorID.from_text("collect")
    gateway.coordinator_answers[operator] = "rows"
    path = f"/jobs/{JobID.from_text('running')}/coordinators"
    answer = client.post(f"{path}/{operator}", content=codec.encode({"offset": 3}))
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/octet-stream"
    assert codec.decode(answer.content, tuple) == ("rows", {"offset": 3})
    other = OperatorID.from_text("no coordinator")
    assert client.post(f"{path}/{other}", content=codec.encode(1)).status_code == 404
    assert client.post(f"{path}/{operator}", content=pickle.dumps(Exploit())).status_code == 400


def test_an_upload_that_is_cut_off_is_not_kept_as_a_program(client: TestClient, tmp_path: Path):
    body = b'--b\r\nContent-Disposition: form-data; name="jarfile"; filename="a.py"\r\n\r\nx = 1\r\n--b\r\n'
    answer = client.post("/jars/upload", content=body, headers={"content-type": "multipart/form-data; boundary=b"})
    assert answer.status_code == 400
    assert "cut off" in answer.json()["errors"][0]
    assert client.get("/jars").json()["files"] == []
    assert nothing_left(tmp_path)
