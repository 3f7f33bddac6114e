"""The dashboard in a real Chromium: what is shown is what the cluster does, clicks work, the console stays silent."""

from __future__ import annotations

import http.client
import http.server
import threading
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from engine.core.ids import JobID, JobVertexID, ResourceID
from engine.graph.execution_graph import ExceptionEntry
from engine.ha.history import LeaderRecord
from engine.protocol.control import ErrorInfo
from engine.protocol.lifecycle import ExecutionState, JobStatus
from tests.browser.conftest import ERROR, Site, go
from tests.browser.webdriver import Browser
from tests.testing.fake_gateway import count, end, word_count_job

pytestmark = pytest.mark.browser

JOB = JobID.from_text("WordCount")
JOINED = JobID.from_text("Word count with stop words")
BROKEN = JobID.from_text("Broken job")
FLAT_MAP = JobVertexID.from_text("flat_map -> key_by")
TASKMANAGER = "host-1:40001-3fa2b1"


def test_a_user_finds_a_job_looks_at_it_and_cancels_it(browser: Browser, site: Site, tmp_path: Path):
    go(browser, site.address, "/overview")
    assert "1 of 4" in browser.text(".tiles")
    assert browser.text("#running").count("RUNNING") == 2
    browser.screenshot(str(tmp_path / "overview.png"))
    browser.click(f"#running a[href='#/job/{JOB}']")
    browser.wait_ready(f"/job/{JOB}")
    assert browser.text("h1") == "WordCount"
    nodes = browser.script("return [...document.querySelectorAll('.graph .node strong')].map(n => n.textContent)")
    assert nodes == ["Source: lines", "flat_map -> key_by", "sum -> Sink: print"]
    assert len(browser.script("return [...document.querySelectorAll('.graph path.edge')].map(e => e.outerHTML)")) == 2
    assert "Busy 55 %" in browser.text(f".node[data-key='{FLAT_MAP}']")
    browser.screenshot(str(tmp_path / "job.png"))

    browser.click("#cancel")
    browser.wait_text("Cancel this job?", "dialog")
    browser.screenshot(str(tmp_path / "cancel.png"))
    assert site.gateway.job(JOB).status is JobStatus.RUNNING, "only confirmed cancels are sent"
    browser.click("dialog [data-action=confirm]")
    browser.wait_text("CANCELED", ".head-card")
    assert site.gateway.job(JOB).status is JobStatus.CANCELED
    assert browser.script("return document.querySelector('#cancel')") is None
    browser.script("location.hash = '#/overview'")
    browser.wait_text("WordCount", "#completed")


def test_keeping_a_job_in_the_dialog_sends_nothing(browser: Browser, site: Site):
    go(browser, site.address, f"/job/{JOB}")
    browser.click("#cancel")
    browser.click("dialog button:first-child")
    browser.wait(lambda: browser.script("return document.querySelector('dialog') === null"), "closed dialog")
    assert site.gateway.job(JOB).status is JobStatus.RUNNING


def test_a_vertex_opens_its_subtasks_and_leads_to_their_taskmanager(browser: Browser, site: Site, tmp_path: Path):
    go(browser, site.address, f"/job/{JOB}")
    browser.click(f".node[data-key='{FLAT_MAP}']")
    browser.wait_text("Subtasks of flat_map -> key_by", ".detail")
    rows = browser.script(
        "return [...document.querySelectorAll('.detail table')].map((one) => one.tBodies[0].rows.length)"
    )
    assert rows[:2] == [2, 2], "operators and subtasks"
    for shown in ("interpreted (it calls print)", "with split"):
        assert shown in browser.text(".detail"), "how each operator is run"
    assert "lines" in browser.text(".detail"), "accumulators"
    browser.screenshot(str(tmp_path / "subtasks.png"))
    browser.click(f".detail a[href='#/taskmanager/{quote(TASKMANAGER)}']")
    browser.wait_text("Memory in use")
    assert browser.text("h1") == TASKMANAGER
    browser.screenshot(str(tmp_path / "taskmanager.png"))


def test_numbers_follow_the_cluster_without_rebuilding_the_page(browser: Browser, site: Site):
    go(browser, site.address, f"/job/{JOB}")
    browser.script(
        "document.querySelector('.node').kept = true; document.body.style.minHeight = '3000px'; scrollTo(0, 120)"
    )
    graph = site.gateway.job(JOB)
    site.call(lambda: count(graph, 4_000_000))
    browser.wait_text("4.0 M", ".graph")
    assert browser.script("return document.querySelector('.node').kept === true")
    assert browser.script("return scrollY") == 120
    site.call(lambda: end(graph, JobStatus.FINISHED, graph.start_ms + 200_000))
    browser.wait_text("FINISHED", ".head-card")


def test_backpressure_is_shown_where_it_is(browser: Browser, site: Site, tmp_path: Path):
    go(browser, site.address, f"/job/{JOINED}")
    assert "Backpressure 70 %" in browser.text(".graph")
    browser.screenshot(str(tmp_path / "backpressure.png"))
    places = browser.script(
        "return [...document.querySelectorAll('.node')].map(n => { const r = n.getBoundingClientRect();"
        " return [r.left, r.top, r.right, r.bottom]; })"
    )
    for i, a in enumerate(places):
        for b in places[i + 1 :]:
            apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
            assert apart, "vertices must not cover each other"


def test_a_failed_job_shows_its_cause_first(browser: Browser, site: Site, tmp_path: Path):
    go(browser, site.address, f"/job/{BROKEN}")
    assert "ZeroDivisionError in Source: lines (1/1)" in browser.text(".failure")
    assert "on record: ('', 0)" in browser.text(".failure pre")
    browser.screenshot(str(tmp_path / "failed.png"))
    browser.click(".failure a")
    browser.wait_text("word_count.py", ".exceptions")
    assert ERROR.message in browser.text(".exceptions pre")
    assert f"TaskManager {TASKMANAGER} · Log" in browser.text(".exceptions article")
    browser.click(".exceptions article a")
    browser.wait_text("registered at the JobManager", "pre")


def test_exceptions_of_before_a_failover_and_former_leaders_lead_to_their_containers_logs(
    browser: Browser, site: Site, tmp_path: Path
):
    container, logs = "container_1700000000000_0001_02_000003", "/node/containerlogs/container_1/user"
    graph = site.gateway.add_running_job(word_count_job("After a failover"), age_ms=60_000)
    error = ErrorInfo("SlotLost", "The slot process that ran the job's tasks was ended by SIGKILL.", "", "external")
    lost = ExceptionEntry(error, graph.start_ms, "sum (2/2)", "host-1:40001", ResourceID(container), logs)
    graph.exceptions.append(lost)
    site.gateway.leaders = [
        LeaderRecord("1", "http://host-1:8081", graph.start_ms - 9000, graph.start_ms, "It was told to end."),
        LeaderRecord("2", "http://host-2:8081", graph.start_ms, container=container, log_url=logs),
    ]
    go(browser, site.address, f"/job/{graph.job_graph.job_id}/exceptions")
    assert f"Container {container} · Log" in browser.text(".exceptions article")
    assert f"-containerId {container}" in browser.text(".exceptions article code")
    assert browser.script("return document.querySelector('.exceptions article a').getAttribute('href')") == logs
    browser.screenshot(str(tmp_path / "exceptions.png"))
    go(browser, site.address, "/jobmanager/leaders")
    rows = browser.script("return [...document.querySelectorAll('tbody tr')].map(row => row.innerText)")
    assert [("leads now" in row, "told to end" in row) for row in rows] == [(True, False), (False, True)]
    assert browser.script("return document.querySelector('tbody a').getAttribute('href')") == logs
    browser.screenshot(str(tmp_path / "leaders.png"))


def test_the_timeline_draws_every_subtask(browser: Browser, site: Site, tmp_path: Path):
    go(browser, site.address, f"/job/{JOB}/timeline")
    drawn = browser.script("return document.querySelectorAll('.timeline .track i.state-running').length")
    assert drawn == 5
    browser.screenshot(str(tmp_path / "timeline.png"))


def test_logs_of_both_processes_can_be_read(browser: Browser, site: Site):
    go(browser, site.address, f"/taskmanager/{quote(TASKMANAGER)}/stdout")
    assert "1> (hello,1)" in browser.text("pre.log")
    go(browser, site.address, f"/taskmanager/{quote(TASKMANAGER)}/logs")
    browser.click("a[href$='taskexecutor.log']")
    browser.wait_text("one file", "pre.log")
    go(browser, site.address, "/jobmanager/log")
    assert "the JobManager is ready" in browser.text("pre.log")
    go(browser, site.address, "/jobmanager/stdout")
    assert "The file is empty" in browser.page_text()
    go(browser, site.address, "/jobmanager")
    assert "parallelism.default" in browser.page_text()


def test_an_empty_cluster_says_so_on_every_page(browser: Browser, empty_site: Site, tmp_path: Path):
    for path, text in (
        ("/overview", "No job is running"),
        ("/taskmanagers", "No TaskManager has registered"),
        ("/jobmanager/logs", "There are no log files"),
        ("/submit", "No program has been uploaded"),
        ("/nonsense", "There is no such page"),
    ):
        browser.open(f"{empty_site.address}/#{path}")
        browser.wait_text(text)
    go(browser, empty_site.address, "/overview")
    browser.screenshot(str(tmp_path / "empty.png"))


PROGRAM = """
import json, os, sys
context = json.load(open(os.environ["_FLINK_CLIENT_CONTEXT"]))
if "fail" in sys.argv:
    raise ValueError("the input is missing")
plan = {"jid": "%(job)s", "name": "x", "type": "STREAMING", "nodes": [
    {"id": "a", "parallelism": 1, "description": "Source: numbers"},
    {"id": "b", "parallelism": 2, "description": "map",
     "inputs": [{"num": 0, "id": "a", "ship_strategy": "REBALANCE"}]}]}
with open(context["result_file"], "a") as stream:
    stream.write(json.dumps({"plan": plan} if context["mode"] == "plan" else {"job_id": "%(job)s"}) + "\\n")
""" % {"job": JOB}  # noqa: UP031 (braces everywhere)


def test_a_program_is_uploaded_planned_and_submitted(browser: Browser, site: Site, tmp_path: Path):
    program = tmp_path / "count.py"
    program.write_text(PROGRAM)
    go(browser, site.address, "/submit")
    browser.type("#file", str(program))
    browser.wait_text("count.py", "table")
    browser.type("input[name=args]", "fail")
    browser.script("window.field = document.querySelector('input[name=args]')")
    browser.click("#submit")
    browser.wait_text("ValueError: the input is missing", ".failure")
    assert browser.script("return document.querySelector('input[name=args]').value") == "fail", "typed text stays"
    browser.screenshot(str(tmp_path / "submit-failed.png"))
    browser.console_problems()  # the browser itself notes the answer 400
    browser.script("field.focus(); [...document.querySelectorAll('.failure button')].forEach((b) => b.click())")
    browser.wait(lambda: browser.script("return document.querySelector('.failure') === null"), "dismissed error")
    assert browser.script("return document.activeElement === field && field.isConnected"), "the form is not rebuilt"
    browser.script(
        "const i = document.querySelector('input[name=args]'); i.value = ''; i.dispatchEvent(new Event('input'))"
    )
    browser.click("#show-plan")
    browser.wait_text("Source: numbers", "#plan")
    browser.screenshot(str(tmp_path / "plan.png"))
    browser.click("#submit")
    browser.wait_ready(f"/job/{JOB}")
    go(browser, site.address, "/submit")
    browser.click("table button")
    browser.click("dialog [data-action=confirm]")
    browser.wait_text("No program has been uploaded")


def test_what_is_switched_off_is_not_offered(browser: Browser, site: Site):
    site.call(lambda: site.gateway.config.set("web.submit.enable", "false").set("web.cancel.enable", "false"))
    go(browser, site.address, f"/job/{JOB}")
    assert "Submit program" not in browser.text("#top")
    assert browser.script("return document.querySelector('#cancel')") is None


def test_a_job_that_waits_for_slots_says_how_many_there_are(browser: Browser, site: Site, tmp_path: Path):
    graph = site.call(lambda: site.gateway.add_job(word_count_job("patient", parallelism=8)))
    path = f"/job/{graph.job_graph.job_id}"
    go(browser, site.address, path)
    assert "Waiting for slots" not in browser.page_text(), "nothing has been scheduled yet"

    def schedule() -> None:
        for owner in graph.all_subtasks():
            owner.current.transition(ExecutionState.SCHEDULED, graph.start_ms + 20)

    site.call(schedule)
    browser.wait_text("Waiting for slots", "#waiting")
    assert "17 tasks wait; the cluster has 4 slots" in browser.text("#waiting")
    assert "a parallelism of 8 needs at least 8" in browser.text("#waiting")
    browser.screenshot(str(tmp_path / "waiting.png"))
    go(browser, site.address, f"/job/{JOB}")
    assert "Waiting for slots" not in browser.page_text()


def test_a_job_that_is_not_known_is_an_answer_and_not_a_blank_page(browser: Browser, site: Site):
    go(browser, site.address, f"/job/{'0' * 32}")
    assert f"Job {'0' * 32} not found" in browser.page_text()
    browser.console_problems()  # the browser itself notes the answer 404


def test_a_lost_jobmanager_is_shown_and_the_page_recovers(browser: Browser, site: Site):
    proxy = GetOnlyProxy(site.address, "/")
    try:
        go(browser, proxy.address, "/overview")
        proxy.broken = True
        browser.wait_text("does not answer", "#problem")
        assert "WordCount" in browser.text("#running"), "what was known stays on the page"
        proxy.broken = False
        browser.wait(lambda: browser.script("return document.querySelector('#problem').hidden"), "recovery")
    finally:
        proxy.close()
    browser.open("about:blank")
    browser.console_problems()  # the browser itself notes each failed request


def test_it_works_below_the_path_of_a_proxy_that_passes_only_get(browser: Browser, site: Site):
    proxy = GetOnlyProxy(site.address, "/proxy/application_1_0001/")
    try:
        go(browser, f"{proxy.address}/proxy/application_1_0001", "/overview")
        browser.click(f"#running a[href='#/job/{JOB}']")
        browser.click("#cancel")
        browser.click("dialog [data-action=confirm]")
        browser.wait_text("CANCELED", ".head-card")
        browser.open("about:blank")
    finally:
        proxy.close()
    assert proxy.outside == []


def test_dark_colours_are_used_when_asked_for_and_remembered(browser: Browser, site: Site, tmp_path: Path):
    go(browser, site.address, f"/job/{JOINED}")
    light = browser.script("return getComputedStyle(document.body).backgroundColor")
    browser.click("#top button")
    dark = browser.script("return getComputedStyle(document.body).backgroundColor")
    assert light != dark
    browser.screenshot(str(tmp_path / "dark.png"))
    go(browser, site.address, "/overview")
    assert browser.script("return getComputedStyle(document.body).backgroundColor") == dark
    browser.script("localStorage.clear()")


def test_a_job_of_many_vertices_and_subtasks_stays_readable(browser: Browser, site: Site, tmp_path: Path):
    graph = site.call(lambda: site.gateway.add_running_job(word_count_job("wide " * 20, parallelism=300)))
    go(browser, site.address, f"/job/{graph.job_graph.job_id}/vertex/{FLAT_MAP}")
    assert browser.script("return document.querySelectorAll('.detail tbody tr').length") >= 300
    assert browser.script("return document.documentElement.scrollWidth <= innerWidth"), (
        "the page itself never scrolls sideways"
    )
    browser.screenshot(str(tmp_path / "wide.png"))
    go(browser, site.address, f"/job/{graph.job_graph.job_id}/timeline")
    assert "Too many subtasks" in browser.page_text()


class GetOnlyProxy:
    """Passes GET below a prefix on to the dashboard, as YARN's proxy does; ``broken`` cuts every connection."""

    def __init__(self, target: str, prefix: str) -> None:
        self.broken = False
        self.outside: list[str] = []
        outer = self
        host = urlsplit(target).netloc

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if outer.broken or not self.path.startswith(prefix):
                    if not outer.broken:
                        outer.outside.append(self.path)
                    self.close_connection = True
                    return
                connection = http.client.HTTPConnection(host, timeout=20)
                connection.request("GET", "/" + self.path.removeprefix(prefix))
                answer = connection.getresponse()
                body = answer.read()
                connection.close()
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() in ("content-type", "content-security-policy"):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)
