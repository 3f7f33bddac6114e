"""Uploaded programs: storing them, and running them in real child interpreters that write results by hand."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from engine.rest.server import create_app
from tests.testing.fake_gateway import FakeGateway

JOB_ID = "ab" * 16
#: What engine.client does for a program, in five lines: REST must work without it.
PRELUDE = """
import json, os, sys
context = json.load(open(os.environ["_FLINK_CLIENT_CONTEXT"]))
def result(line):
    with open(context["result_file"], "a") as stream:
        stream.write(json.dumps(line) + "\\n")
"""


def upload(client: TestClient, content: str | bytes, name: str = "program.py") -> str:
    answer = client.post("/jars/upload", files={"jarfile": (name, content)})
    assert answer.status_code == 200, answer.text
    assert answer.json()["status"] == "success"
    return str(answer.json()["filename"]).rsplit("/", 1)[1]


def archive(**files: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as opened:
        for name, text in files.items():
            opened.writestr(name.replace("__slash__", "/").replace("__dot__", "."), text)
    return stream.getvalue()


def wait_until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def runs(tmp_path: Path) -> list[str]:
    folder = tmp_path / "upload" / "runs"
    return os.listdir(folder) if folder.exists() else []


# --- upload, list, delete ---------------------------------------------------------------------------------------------


def test_an_uploaded_program_is_listed_newest_first_and_can_be_deleted(client: TestClient):
    first = upload(client, "print()", "old.py")
    path = Path(client.post("/jars/upload", files={"jarfile": ("new.py", "x")}).json()["filename"])
    os.utime(path, (2e9, 2e9))
    files = client.get("/jars").json()["files"]
    assert [file["name"] for file in files] == ["new.py", "old.py"]
    assert files[0]["uploaded"] == 2_000_000_000_000
    assert client.delete(f"/jars/{first}").json() == {}
    assert [file["name"] for file in client.get("/jars").json()["files"]] == ["new.py"]
    assert client.delete(f"/jars/{first}").status_code == 404


def test_a_wheel_shows_its_console_scripts_and_a_pyz_its_main(client: TestClient):
    upload(
        client, archive(**{"a-1.dist-info/entry_points.txt": "[console_scripts]\ncount = jobs.count:main\n"}), "a.whl"
    )
    upload(client, archive(**{"__main__.py": ""}), "b.pyz")
    entries = {file["name"]: file["entry"] for file in client.get("/jars").json()["files"]}
    assert entries == {
        "a.whl": [{"name": "jobs.count:main", "description": "count"}],
        "b.pyz": [{"name": "__main__", "description": ""}],
    }


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("WordCount.jar", archive(x=""), "runs Python programs"),
        ("notes.txt", b"x", "expected a file that ends with .py"),
        ("broken.zip", b"not a zip", "not a zip archive"),
    ],
    ids=["a jar", "a text", "a broken archive"],
)
def test_what_is_not_a_python_program_is_refused(
    client: TestClient, tmp_path: Path, name: str, content: bytes, message: str
):
    answer = client.post("/jars/upload", files={"jarfile": (name, content)})
    assert answer.status_code == 400
    assert message in answer.json()["errors"][0]
    assert client.get("/jars").json()["files"] == []
    assert os.listdir(tmp_path / "upload" / "incoming") == []


@pytest.mark.parametrize(
    "name", ["../../evil.py", "..\\evil.py", "/etc/evil.py", "..evil.py", "e\u202evil.py", "a" * 300 + ".py"]
)
def test_a_hostile_file_name_stays_in_the_folder(client: TestClient, tmp_path: Path, name: str):
    program = upload(client, "x", name)
    assert os.listdir(tmp_path / "upload" / "programs") == [program]
    assert sorted(os.listdir(tmp_path)) == ["upload"]


@pytest.mark.parametrize("program", ["..%2f..%2fx.py", "x.py", "..", "%2e%2e", f"{'0' * 32}_none.py"])
def test_only_uploaded_programs_can_be_named(client: TestClient, program: str):
    assert client.post(f"/jars/{program}/run").status_code in (404, 405)
    assert client.delete(f"/jars/{program}").status_code in (404, 405)


def test_everything_about_programs_is_forbidden_when_switched_off(gateway: FakeGateway, client: TestClient):
    program = upload(client, "x")
    gateway.config.set("web.submit.enable", "false")
    for method, path in (
        ("GET", "/jars"),
        ("POST", "/jars/upload"),
        ("DELETE", f"/jars/{program}"),
        ("POST", f"/jars/{program}/run"),
        ("GET", f"/jars/{program}/plan"),
    ):
        answer = client.request(method, path)
        assert answer.status_code == 403, path
        assert "web.submit.enable" in answer.json()["errors"][0]


# --- run --------------------------------------------------------------------------------------------------------------


def test_a_run_gets_arguments_and_a_context_that_points_here_and_answers_the_first_job(
    gateway: FakeGateway, client: TestClient, tmp_path: Path
):
    gateway.config.set("akka.x", "y")
    seen = tmp_path / "seen.json"
    program = upload(
        client,
        PRELUDE
        + f"json.dump([sys.argv, context, __name__, os.getcwd()], open({str(seen)!r}, 'w'))\n"
        + f"result({{'job_id': {JOB_ID!r}}}); result({{'job_id': 'second'}})\n",
    )
    client.app.state.rest.port = 12345  # type: ignore[attr-defined]
    body = {
        "programArgsList": ["--input", "two words", "--", "-x"],
        "parallelism": 3,
        "flinkConfiguration": {"a.b": "c"},
    }
    answer = client.post(f"/jars/{program}/run", json=body)
    assert (answer.status_code, answer.json()) == (200, {"jobid": JOB_ID})
    argv, context, name, folder = json.loads(seen.read_text())
    assert argv[0].endswith("program.py")
    assert argv[1:] == ["--input", "two words", "--", "-x"]
    assert name == "__main__"
    assert context["mode"] == "run"
    assert context["configuration"] == {
        "akka.x": "y",
        "a.b": "c",
        "parallelism.default": "3",
        "execution.target": "remote",
        "execution.attached": "false",
        "rest.address": "127.0.0.1",
        "rest.port": "12345",
    }
    assert folder.startswith(str(tmp_path / "upload" / "runs"))
    wait_until(lambda: runs(tmp_path) == [])


@pytest.mark.parametrize(
    ("query", "body", "expected"),
    [
        ({"programArg": "--a,1,--b"}, None, ["--a", "1", "--b"]),
        ({"programArgs": "--a 'x y'"}, None, ["--a", "x y"]),
        ({}, {"programArgs": "--a 'x y'"}, ["--a", "x y"]),
        ({"programArg": "query"}, {"programArgsList": ["body"]}, ["query"]),
        ({}, {}, []),
    ],
)
def test_arguments_come_by_query_or_body(
    client: TestClient, tmp_path: Path, query: dict[str, str], body: Any, expected: list[str]
):
    seen = tmp_path / "seen.json"
    text = PRELUDE + f"json.dump(sys.argv[1:], open({str(seen)!r}, 'w')); result({{'job_id': {JOB_ID!r}}})"
    program = upload(client, text)
    answer = client.post(f"/jars/{program}/run", params=query, json=body)
    assert answer.status_code == 200, answer.text
    assert json.loads(seen.read_text()) == expected


JOB = PRELUDE + f"def main():\n    result({{'job_id': {JOB_ID!r}}})\n"


@pytest.mark.parametrize(
    ("name", "content", "entry"),
    [
        ("a.py", JOB, "main"),
        ("a.py", JOB, "a:main"),
        ("a.py", JOB + "if __name__ == '__main__': main()", "a"),
        ("a.zip", archive(**{"jobs/__init__.py": "", "jobs/count.py": JOB}), "jobs.count:main"),
        ("a.whl", archive(**{"jobs/count.py": JOB + "if __name__ == '__main__': main()"}), "jobs.count"),
        ("a.pyz", archive(**{"__main__.py": JOB + "main()"}), ""),
    ],
)
def test_the_entry_class_is_a_module_or_a_function_of_one(
    client: TestClient, name: str, content: str | bytes, entry: str
):
    program = upload(client, content, name)
    answer = client.post(f"/jars/{program}/run", params={"entry-class": entry})
    assert (answer.status_code, answer.text) == (200, json.dumps({"jobid": JOB_ID}, separators=(",", ":")))


@pytest.mark.parametrize(
    ("name", "content", "entry", "message"),
    [
        ("a.py", "def f():\n    return 1 / 0\nf()", "", "ZeroDivisionError: division by zero"),
        ("a.py", "x = ", "", "SyntaxError"),
        ("a.py", "print('only this')", "", "without submitting a job. Does it call execute()?\nonly this"),
        ("a.py", "import sys; sys.exit('the input is missing')", "", "the input is missing"),
        ("a.py", "import sys; sys.exit(3)", "", "exit code 3"),
        ("a.py", "import os; os.kill(os.getpid(), 9)", "", "signal SIGKILL"),
        ("a.py", "x = 1", "main", "a.py has no function main"),
        ("a.zip", archive(**{"jobs.py": "x = 1"}), "", "name the entry class"),
        ("a.zip", archive(**{"jobs.py": "x = 1"}), "jobs:main", "jobs has no function main"),
        ("a.zip", archive(**{"jobs.py": "x = 1"}), "other", "other"),
    ],
)
def test_a_program_that_fails_first_is_a_bad_request_with_its_own_error(
    client: TestClient, tmp_path: Path, name: str, content: str | bytes, entry: str, message: str
):
    program = upload(client, content, name)
    answer = client.post(f"/jars/{program}/run", json={"entryClass": entry})
    assert answer.status_code == 400
    error = answer.json()["errors"][0]
    assert error.startswith(f"The program {name} failed before it submitted a job")
    assert message in error
    assert runs(tmp_path) == []


def test_the_error_shows_the_programs_own_frames_only(client: TestClient):
    program = upload(client, "def f():\n    return 1 / 0\nf()")
    error = client.post(f"/jars/{program}/run").json()["errors"][0]
    assert error.splitlines() == [
        "The program program.py failed before it submitted a job: ZeroDivisionError: division by zero",
        "Traceback (most recent call last):",
        '  File "program.py", line 3, in <module>',
        "    f()",
        '  File "program.py", line 2, in f',
        "    return 1 / 0",
        *(["           ~~^~~"] if "~~^~~" in error else []),
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"parallelism": 0}, "parallelism is 0"),
        ({"parallelism": "many"}, "parallelism is 'many'"),
        ({"programArgs": "'open"}, "cannot be split"),
        ({"savepointPath": "/s", "claimMode": "LATER"}, "claimMode is 'LATER'"),
        ({"savepointPath": "/s", "allowNonRestoredState": "perhaps"}, "allowNonRestoredState is 'perhaps'"),
        ({"flinkConfiguration": []}, "expected {key: value}"),
        ([], "expected an object"),
    ],
)
def test_bad_fields_are_refused_before_anything_runs(client: TestClient, tmp_path: Path, fields: Any, message: str):
    program = upload(client, "raise SystemExit(1)")
    answer = client.post(f"/jars/{program}/run", json=fields)
    assert answer.status_code == 400
    assert message in answer.json()["errors"][0]
    assert not (tmp_path / "upload" / "runs").exists()


def test_a_plan_is_answered_and_nothing_goes_on(client: TestClient, tmp_path: Path):
    plan = {"jid": JOB_ID, "name": "x", "type": "BATCH", "nodes": []}
    program = upload(
        client,
        PRELUDE
        + f"assert context['mode'] == 'plan'\nresult({{'plan': {plan!r}}})\n"
        + "class ProgramAbort(BaseException): pass\nraise ProgramAbort()\n",
    )
    for method in ("GET", "POST"):
        answer = client.request(method, f"/jars/{program}/plan")
        assert (answer.status_code, answer.json()) == (200, {"plan": plan})
    assert runs(tmp_path) == []


def test_a_program_goes_on_after_its_submission_and_ends_with_the_server(gateway: FakeGateway, tmp_path: Path):
    app = create_app(gateway, upload_dir=str(tmp_path / "upload"))
    pids = tmp_path / "pids"
    with TestClient(app) as client:
        program = upload(
            client,
            PRELUDE
            + "import subprocess, time\n"
            + "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
            + f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
            + f"result({{'job_id': {JOB_ID!r}}})\ntime.sleep(600)\n",
        )
        assert client.post(f"/jars/{program}/run").json() == {"jobid": JOB_ID}
        own, child = map(int, pids.read_text().split())
        os.kill(own, 0)
        os.kill(child, 0)
    wait_until(lambda: not alive(own) and not alive(child))
    assert runs(tmp_path) == []


def test_programs_that_wait_for_their_jobs_do_not_keep_others_out(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("engine.rest.program_runner.CONCURRENT_MAX", 1)
    program = upload(client, PRELUDE + f"import time\nresult({{'job_id': {JOB_ID!r}}})\ntime.sleep(600)\n")
    for _ in range(3):
        assert client.post(f"/jars/{program}/run").status_code == 200
    monkeypatch.setattr("engine.rest.program_runner.CONCURRENT_MAX", 0)
    answer = client.post(f"/jars/{program}/run")
    assert answer.status_code == 503
    assert "try again" in answer.json()["errors"][0]
    assert len(runs(tmp_path)) == 3


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as stream:
            return stream.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


SERVER = """
import asyncio, sys
from engine.rest.server import create_app, serve
from tests.testing.fake_gateway import FakeGateway
async def main():
    app = create_app(FakeGateway(sys.argv[1]), upload_dir=sys.argv[1] + "/upload")
    print((await serve(app, bind_address="127.0.0.1", port_range="0")).address, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


def test_a_program_dies_with_a_jobmanager_that_is_killed(tmp_path: Path):
    root = Path(__file__).resolve().parents[3]
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        pid_file = tmp_path / "pid"
        text = PRELUDE + f"import time\nopen({str(pid_file)!r}, 'w').write(str(os.getpid()))\n"
        text += f"result({{'job_id': {JOB_ID!r}}})\ntime.sleep(600)\n"
        with httpx.Client(base_url=address, timeout=120) as remote:
            answer = remote.post("/jars/upload", files={"jarfile": ("p.py", text)})
            name = answer.json()["filename"].rsplit("/", 1)[1]
            assert remote.post(f"/jars/{name}/run").json() == {"jobid": JOB_ID}
        pid = int(pid_file.read_text())
        assert alive(pid)
        process.kill()
        wait_until(lambda: not alive(pid))
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()
