"""RestClient against a web server whose answers are scripted. The real one: tests/process/test_cluster."""

from __future__ import annotations

import http.server
import json
import os
import signal
import threading

import pytest

from engine.client.executors import submit_to_session
from engine.client.rest_client import RestClient, _is_closed_by_server
from engine.core.config import Configuration
from engine.core.errors import ExternalError, JobNotFoundError, ProgramError
from engine.core.ids import JobID
from engine.graph.job_graph import JobGraph, JobType
from engine.protocol.lifecycle import JobStatus
from tests.testing.patience import until

JOB = JobID.from_text("job")


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle_one(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        self.server.requests.append((self.command, self.path, dict(self.headers), body))
        if self.server.interrupts:
            self.server.interrupts.pop()
            os.kill(os.getpid(), signal.SIGUSR1)
            self.server.go_on.wait(60)
        status, answer = self.server.answers.pop(0)
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        if self.server.closes:
            self.close_connection = True

    do_GET = do_POST = do_PATCH = do_DELETE = handle_one

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests, server.answers, server.closes = [], [], False
    server.interrupts, server.go_on = [], threading.Event()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.go_on.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def client(server):
    client = RestClient(f"http://127.0.0.1:{server.server_port}/proxy/app/")
    yield client
    client.close()


def test_a_path_in_front_is_kept(server, client):
    server.answers = [(200, {"status": "RUNNING"})]
    assert client.status(JOB) is JobStatus.RUNNING
    assert server.requests[0][:2] == ("GET", f"/proxy/app/jobs/{JOB}/status")


def test_an_unknown_job_is_told_as_such(server, client):
    server.answers = [(404, {"errors": ["Job x not found"]})]
    with pytest.raises(JobNotFoundError, match="Job x not found"):
        client.job(JOB)


@pytest.mark.parametrize(("status", "kind"), [(400, ProgramError), (500, ExternalError), (503, ExternalError)])
def test_errors_carry_the_clusters_own_words(server, client, status, kind):
    server.answers = [(status, {"errors": ["first", "second"]})]
    with pytest.raises(kind, match="first\nsecond"):
        client.overview()


def test_an_answer_that_is_no_json_is_shown(server, client):
    server.answers = [(502, b"<html>Bad gateway</html>")]
    with pytest.raises(ExternalError, match=r"502: <html>Bad gateway"):
        client.overview()


def test_a_kept_connection_that_was_closed_is_opened_again(server, client):
    server.closes = True
    server.answers = [(200, {"n": 1}), (200, {"n": 2})]
    assert client.overview() == {"n": 1}
    assert client.overview() == {"n": 2}


@pytest.fixture
def interrupts_on_request(server):
    """The next request interrupts the main thread before it is answered, as SIGTERM does in a program's process."""

    def interrupt(*_):
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGUSR1, interrupt)
    server.interrupts.append(True)
    yield
    signal.signal(signal.SIGUSR1, old)


@pytest.mark.usefixtures("interrupts_on_request")
def test_a_client_that_is_interrupted_while_it_waits_for_an_answer_can_still_cancel(server, client):
    server.answers += [(200, {}), (202, {})]
    with pytest.raises(KeyboardInterrupt):
        client.execution_result(JOB)
    client.cancel(JOB)
    assert server.requests[-1][:2] == ("PATCH", f"/proxy/app/jobs/{JOB}?mode=cancel")


@pytest.mark.usefixtures("interrupts_on_request")
@pytest.mark.parametrize("cancels", [True, False])
def test_a_submission_that_is_interrupted_is_cancelled_if_the_job_goes_with_its_client(server, client, cancels):
    server.answers += [(202, {"jobid": str(JOB)}), (202, {})]
    config = Configuration({"execution.shutdown-on-attached-exit": cancels})
    with pytest.raises(KeyboardInterrupt):
        submit_to_session(client, JobGraph(JOB, "a", JobType.STREAMING, (), ()), {}, config)
    methods = [method for method, *_ in server.requests]
    assert methods == (["POST", "PATCH"] if cancels else ["POST"])


def test_what_must_not_happen_twice_is_not_sent_into_a_connection_that_was_closed(server, client):
    server.closes = True
    server.answers = [(200, {"flink-version": "x"}), (200, {})]
    client.overview()
    until(lambda: _is_closed_by_server(client._connection), "it is closed")
    client.delete_program("id")
    assert [request[0] for request in server.requests] == ["GET", "DELETE"]


def test_nobody_at_the_address_says_where_and_what_to_check():
    with pytest.raises(ExternalError, match=r"(?s)http://127\.0\.0\.1:1: .*rest\.port"):
        RestClient("127.0.0.1:1").overview()


def test_an_address_that_is_none_is_an_error():
    with pytest.raises(ExternalError, match="expected http://host:port"):
        RestClient("ftp://x")


def test_a_running_job_has_no_result_yet(server, client):
    server.answers = [(200, {"status": {"id": "IN_PROGRESS"}, "job-execution-result": None})]
    assert client.execution_result(JOB) is None


def test_a_program_is_uploaded_whole(server, client, tmp_path):
    program = tmp_path / "job.py"
    program.write_bytes(b"print(1)\r\n" * 1000)
    server.answers = [(200, {"filename": "/x/abc_job.py", "status": "success"})]
    assert client.upload_program(str(program)) == "abc_job.py"
    _, _, headers, body = server.requests[0]
    assert int(headers["Content-Length"]) == len(body)
    assert program.read_bytes() in body
    assert b'filename="job.py"' in body


class Elected:
    """Says where the leader is, each time the next of ``addresses``, the last one again and again."""

    def __init__(self, *addresses, failover_s=20.0):
        self.addresses = list(addresses)
        self.failover_s = failover_s

    def address(self, timeout_s):
        return self.addresses.pop(0) if len(self.addresses) > 1 else self.addresses[0]


DEAD = "http://127.0.0.1:9"  # nobody listens there
ELECTING = {"errors": ["Service temporarily unavailable due to an ongoing leader election. Please refresh."]}
DEPOSED = {"errors": ["Job 'a' is not accepted: This JobManager does not lead any more; ask the one that does."]}


def test_a_client_that_knows_of_an_election_asks_on_until_somebody_leads(server):
    here = f"http://127.0.0.1:{server.server_port}"
    server.answers += [(503, ELECTING), (503, DEPOSED), (200, {"status": "RUNNING"})]
    client = RestClient(DEAD, leader=Elected(DEAD, here))
    assert client.status(JOB) is JobStatus.RUNNING
    assert client.base_url == here
    client.close()


def test_a_submission_is_repeated_with_all_its_files(server, tmp_path):
    here = f"http://127.0.0.1:{server.server_port}"
    (tmp_path / "file").write_bytes(b"content" * 100)
    server.answers += [(404, {}), (503, DEPOSED), (202, {"jobid": JOB})]
    client = RestClient(here, leader=Elected(here))
    graph = JobGraph(JOB, "a", JobType.BATCH, (), ())
    assert client.submit(graph, {"0" * 64: str(tmp_path / "file")}) == JOB
    first, second = (request for request in server.requests if request[0] == "POST")
    assert first[3].count(b"content" * 100) == second[3].count(b"content" * 100) == 1
    client.close()


def test_what_must_not_happen_twice_is_repeated_only_if_it_was_not_sent(server):
    here = f"http://127.0.0.1:{server.server_port}"
    # The second answer is not read; but a server that has none may close the connection while the body is being sent.
    server.answers += [(200, {"request-id": "1"}), (200, {"request-id": "2"})]
    client = RestClient(DEAD, leader=Elected(here))
    assert client.trigger_savepoint(JOB, "/savepoints") == "1"  # the connection was refused
    client.close()

    def lose(*_arguments, **_options):
        raise ConnectionResetError("the leader died")

    client = RestClient(here, leader=Elected(here))
    client._connect(1.0).getresponse = lose  # type: ignore[method-assign]
    with pytest.raises(ExternalError, match="the leader died"):
        client._request("POST", f"/jobs/{JOB}/savepoints", lambda: [b"body"], {"Content-Length": "4"})
    client.close()


def test_an_election_that_does_not_end_is_told_as_the_cluster_tells_it(server):
    here = f"http://127.0.0.1:{server.server_port}"
    server.answers += [(503, ELECTING)] * 50
    client = RestClient(here, leader=Elected(here, failover_s=0.5))
    with pytest.raises(ExternalError, match="ongoing leader election"):
        client.overview()
    client.close()
    client = RestClient(DEAD, leader=Elected(DEAD, failover_s=0.5))
    with pytest.raises(ExternalError, match="No cluster answers"):
        client.overview()
