"""How ``flink run`` starts programs: path, arguments, entry points, exit codes, errors. Needs no cluster: the programs
write to the result file what ``execute()`` would."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
import zipfile

import pytest

from tests.process.script_cluster import ROOT, alive, wait_until
from tests.testing.patience import best_of

SUBMIT = 'import json, os\nopen(json.load(open(os.environ["_FLINK_CLIENT_CONTEXT"]))["result_file"], "a").write({!r})\n'
JOB = SUBMIT.format('{"job_id": "' + "0" * 32 + '"}\n')
SUBMITTED = "Job has been submitted with JobID " + "0" * 32
FRAME = "-" * 60 + "\n The program finished with the following exception:\n\n"


@pytest.fixture
def flink(tmp_path):
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("FLINK_", "_FLINK", "PYTHON"))
    }
    environment |= {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "tmp")}
    (tmp_path / "tmp").mkdir()
    (tmp_path / "conf").mkdir()
    environment["FLINK_CONF_DIR"] = str(tmp_path / "conf")

    def run(*words: object, **more_environment):
        command = [sys.executable, "-m", "flink_yarn.cli", *map(str, words)]
        return subprocess.run(
            command, env=environment | more_environment, capture_output=True, text=True, cwd=tmp_path, timeout=120
        )

    run.environment = environment
    yield run
    assert os.listdir(tmp_path / "tmp") == []


def script(tmp_path, text: str, name: str = "job.py"):
    path = tmp_path / name
    path.write_text(textwrap.dedent(text))
    return path


def test_a_script_runs_as_python_would_run_it(flink, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "beside.py").write_text("NAME = 'beside'")
    script(
        tmp_path,
        JOB
        + """
import sys, beside
assert __name__ == "__main__" and sys.modules["__main__"].__file__ == __file__ == sys.argv[0], sys.argv
print(sys.argv[1:], sys.path[0], beside.NAME)
""",
        "sub/job.py",
    )
    ended = flink("run", "-t", "local", "sub/job.py", "-p", "3", "--input", "a b")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert f"['-p', '3', '--input', 'a b'] {tmp_path}/sub beside" in ended.stdout
    assert SUBMITTED in ended.stdout


def test_the_program_sees_the_configuration(flink, tmp_path):
    (tmp_path / "conf" / "config.yaml").write_text("parallelism:\n  default: 2\n")
    script(tmp_path, JOB + 'c = json.load(open(os.environ["_FLINK_CLIENT_CONTEXT"]))["configuration"]; print(c)')
    ended = flink("run", "-t", "local", "-Dpipeline.name=n", "job.py")
    for part in ("'parallelism.default': '2'", "'pipeline.name': 'n'", "'execution.attached': 'true'"):
        assert part in ended.stdout


def test_results_are_printed_in_flinks_words(flink, tmp_path):
    line = '{"job_id": "%s", "status": "FINISHED", "net_runtime_ms": 12, "accumulators": {"words": 3}}\n' % ("0" * 32)
    script(tmp_path, JOB + SUBMIT.format(line))
    ended = flink("run", "-t", "local", "job.py")
    assert ended.stdout.splitlines() == [
        SUBMITTED,
        "Program execution finished",
        f"Job with JobID {'0' * 32} has finished.",
        "Job Runtime: 12 ms",
        "Accumulator Results: ",
        "- words (int): 3",
    ]


def test_a_program_that_never_executes_is_told(flink, tmp_path):
    ended = flink("run", "-t", "local", script(tmp_path, "print('hello')"))
    assert (ended.returncode, ended.stdout) == (1, "hello\n")
    assert ended.stderr == (
        "\nThe program didn't contain a Flink job. Perhaps you forgot to call execute() on the execution environment.\n"
    )


def test_an_error_while_building_shows_the_users_frames_only(flink, tmp_path):
    path = script(tmp_path, "def build():\n    return 1 / 0\n\nbuild()\n")
    ended = flink("run", "-t", "local", path)
    assert ended.returncode == 1
    assert ended.stderr.startswith(
        f'\n{FRAME}Traceback (most recent call last):\n  File "{path}", line 4, in <module>\n'
    )
    assert ended.stderr.endswith("ZeroDivisionError: division by zero\n")
    assert ended.stderr.count("File ") == 2


def test_a_syntax_error_names_file_and_line(flink, tmp_path):
    path = script(tmp_path, "x = 1\nx = = 2\n")
    ended = flink("run", "-t", "local", path)
    assert ended.returncode == 1
    assert f'File "{path}", line 2' in ended.stderr
    assert "SyntaxError: invalid syntax" in ended.stderr


def test_an_error_of_the_engine_is_one_message_with_the_place(flink, tmp_path):
    path = script(tmp_path, "from engine.core.errors import ProgramError\nraise ProgramError('No sinks; add one.')\n")
    ended = flink("run", "-t", "local", path)
    assert ended.stderr.startswith(f'\n{FRAME}No sinks; add one.\n  File "{path}", line 2, in <module>')


@pytest.mark.parametrize(("text", "code"), [("3", 3), ("0", 0), ("'went wrong'", 1)])
def test_a_program_that_ends_itself_keeps_its_exit_code(flink, tmp_path, text, code):
    ended = flink("run", "-t", "local", script(tmp_path, f"{JOB}\nimport sys\nsys.exit({text})"))
    assert ended.returncode == code
    assert ended.stderr == ("went wrong\n" if code == 1 else "")


def test_a_program_that_dies_by_a_signal_is_told(flink, tmp_path):
    ended = flink("run", "-t", "local", script(tmp_path, "import os\nos.kill(os.getpid(), 9)"))
    assert ended.returncode == 1
    assert "The interpreter of the program was ended by signal SIGKILL." in ended.stderr


def archive(tmp_path, files: dict[str, str], name: str = "job.zip"):
    with zipfile.ZipFile(tmp_path / name, "w") as stream:
        for path, text in files.items():
            stream.writestr(path, text)
    return tmp_path / name


GUARDED = JOB + "if __name__ == '__main__':\n    import sys; print('guard', sys.argv[1:])\n"
WITH_MAIN = JOB + "def main():\n    print('main', __name__)\n\ndef other():\n    print('other', __name__)\n"


@pytest.mark.parametrize(
    ("files", "words", "said"),
    [
        ({"__main__.py": GUARDED}, [], "guard ['a']"),
        ({"pkg/__init__.py": "", "pkg/job.py": GUARDED}, ["-c", "pkg.job"], "guard ['a']"),
        ({"pkg/__init__.py": "", "pkg/__main__.py": GUARDED}, ["-c", "pkg"], "guard ['a']"),
        ({"pkg/__init__.py": "", "pkg/job.py": WITH_MAIN}, ["-c", "pkg.job"], "main pkg.job"),
        ({"pkg/__init__.py": "", "pkg/job.py": WITH_MAIN}, ["-c", "pkg.job:other"], "other pkg.job"),
    ],
)
def test_an_archive_starts_where_it_is_told(flink, tmp_path, files, words, said):
    ended = flink("run", "-t", "local", *words, archive(tmp_path, files), "a")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert said in ended.stdout


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("pkg.job:none", "pkg.job has no function none; name another with -c module:function."),
        ("pkg.none", "There is no module pkg.none in the program"),
        ("pkg.none:main", "There is no module pkg.none in the program"),
        ("nosuch:main", "There is no module nosuch in the program"),
        ("pkg.passive", "The module pkg.passive has no main"),
    ],
)
def test_a_missing_main_is_told(flink, tmp_path, entry, told):
    files = {"pkg/__init__.py": "", "pkg/job.py": WITH_MAIN, "pkg/passive.py": "X = 1\ndef f(): pass\n"}
    ended = flink("run", "-t", "local", "-c", entry, archive(tmp_path, files))
    assert ended.returncode == 1
    assert f"{FRAME}{told}" in ended.stderr


def test_a_module_is_run_with_its_python_files(flink, tmp_path):
    (tmp_path / "lib").mkdir()
    script(tmp_path, GUARDED, "lib/job.py")
    ended = flink("run", "-t", "local", "-pym", "job", "-pyfs", tmp_path / "lib", "a")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "guard ['a']" in ended.stdout


def test_a_module_that_a_script_does_not_have_is_told(flink, tmp_path):
    ended = flink("run", "-t", "local", "-c", "nosuch:main", script(tmp_path, WITH_MAIN))
    assert ended.returncode == 1
    assert f"{FRAME}There is no module nosuch in the program" in ended.stderr


def test_a_function_of_a_script_can_be_named(flink, tmp_path):
    ended = flink("run", "-t", "local", "-c", "other", script(tmp_path, WITH_MAIN))
    assert "other job" in ended.stdout, ended.stderr


def test_another_interpreter_runs_the_program(flink, tmp_path):
    wrapper = tmp_path / "python"
    wrapper.write_text(f'#!/bin/sh\necho wrapped\nexec {sys.executable} "$@"\n')
    wrapper.chmod(0o755)
    ended = flink("run", "-t", "local", "-pyclientexec", wrapper, script(tmp_path, JOB))
    assert "wrapped" in ended.stdout
    ended = flink("run", "-t", "local", "-pyclientexec", "/none/python", script(tmp_path, JOB))
    assert ended.returncode == 1
    assert "python.client.executable is '/none/python'; expected a Python interpreter" in ended.stderr


def test_output_is_passed_on_at_once(flink, tmp_path):
    path = script(tmp_path, "import sys\nprint('begin')\nsys.stdin.readline()\n")
    command = [sys.executable, "-m", "flink_yarn.cli", "run", "-t", "local", str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=flink.environment, text=True, **pipes) as process:
        assert process.stdout.readline() == "begin\n"
        process.communicate("\n")


def test_info_prints_the_plan_and_nothing_else(flink, tmp_path):
    text = SUBMIT.format('{"plan": {"nodes": []}}\n')
    text += "print('noise')\nclass ProgramAbort(BaseException): pass\nraise ProgramAbort()\n"
    ended = flink("info", script(tmp_path, text))
    assert (ended.returncode, ended.stderr) == (0, "noise\n")
    assert ended.stdout.splitlines() == [
        "----------------------- Execution Plan -----------------------",
        '{"nodes": []}',
        "--------------------------------------------------------------",
        "",
        "No description provided.",
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_an_interrupted_run_ends_its_program(flink, tmp_path, number):
    path = script(tmp_path, JOB + "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(250)\n")
    command = [sys.executable, "-m", "flink_yarn.cli", "run", "-t", "local", str(path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=flink.environment, text=True, **pipes) as process:
        pid = int(process.stdout.readline())
        assert process.stdout.readline().strip() == SUBMITTED
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (128 + number, "Interrupted.\n")
    assert not alive(pid)


def test_a_run_under_nohup_outlives_its_terminal(flink, tmp_path):
    path = script(tmp_path, JOB + "print('begun', flush=True)\ninput()\nprint('ended well')\n")
    command = ["nohup", sys.executable, "-m", "flink_yarn.cli", "run", "-t", "local", str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env=flink.environment, text=True, start_new_session=True, **pipes) as process:
        next(line for line in process.stdout if line == "begun\n")
        os.killpg(process.pid, signal.SIGHUP)
        output, _ = process.communicate("go on\n", timeout=120)
    assert process.returncode == 0
    assert "ended well" in output.splitlines()


def test_a_program_does_not_outlive_a_killed_client(flink, tmp_path):
    path = script(tmp_path, "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(250)\n")
    command = [sys.executable, "-m", "flink_yarn.cli", "run", "-t", "local", str(path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = {**flink.environment, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as process:
        pid = int(process.stdout.readline())
        process.kill()
    wait_until(lambda: not alive(pid), "end of the orphan")
    assert [name for name in os.listdir(tmp_path) if name.startswith("flink-program-")] != []
    flink("run", "-t", "local", script(tmp_path, JOB), TMPDIR=str(tmp_path))
    assert [name for name in os.listdir(tmp_path) if name.startswith("flink-program-")] == []


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 1, "Please specify an action."),
        (["bogus"], 1, '"bogus" is not a valid action.'),
        (["-h"], 0, 'Action "run" runs a program.'),
        (["cancel", "-h"], 0, "Syntax: cancel [OPTIONS] <job id>"),
        (["run", "-bogus"], 1, "Unrecognized option: -bogus\n\nUse the help option (-h or --help)"),
        (["run", "-Dparallelism.default=many", "x.py"], 1, "parallelism.default is 'many'; expected a whole number."),
    ],
)
def test_wrong_command_lines_are_told_on_stdout(flink, words, code, said):
    ended = flink(*words)
    assert ended.returncode == code
    assert said in ended.stdout
    assert ended.stderr == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "-t", "local"], "The program is missing"),
        (["run", "-t", "local", "none.py"], "The program file does not exist: none.py"),
        (["run", "-t", "local", "none.jar"], "The program file does not exist: none.jar"),
        (["list", "-m", "localhost:1"], "No cluster answers at http://localhost:1"),
        (["list", "-t", "local"], "A local run has no cluster that could be asked"),
        (["cancel"], "Missing JobID. Specify a JobID to cancel a job."),
        (["stop", "-m", "localhost:1", "0" * 32], "No cluster answers at http://localhost:1"),
        (["savepoint"], "Missing JobID. Specify a JobID to trigger a savepoint."),
        (["checkpoint"], "Missing JobID. Specify a JobID to trigger a checkpoint."),
        (["modify"], "Missing JobID. Specify a JobID to modify a job."),
        (["cancel", "xyz"], "'xyz' is not a valid JobID; expected 32 hexadecimal digits"),
    ],
)
def test_errors_are_framed_on_stderr(flink, words, said):
    def run() -> float:
        started = time.monotonic()
        ended = flink(*words)
        assert ended.returncode == 1
        assert f"{FRAME}{said}" in ended.stderr
        assert "Traceback" not in ended.stderr
        return time.monotonic() - started

    best_of(run, 10, "seconds until the error is told")


def test_an_unreachable_cluster_is_told_before_the_program_runs(flink, tmp_path):
    ended = flink("run", "-m", "localhost:1", script(tmp_path, "print('ran')"))
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "No cluster answers at http://localhost:1" in ended.stderr
    assert "scripts/start-cluster.sh" in ended.stderr


def test_a_session_file_is_found(flink, tmp_path):
    user = os.environ.get("USER") or __import__("pwd").getpwuid(os.getuid()).pw_name
    (tmp_path / f".yarn-properties-{user}").write_text("applicationID=application_1_0001\n")
    (tmp_path / "conf" / "config.yaml").write_text(f"yarn.properties-file.location: {tmp_path}\n")
    ended = flink("list")
    assert ended.stdout.startswith(f"Found Yarn properties file under {tmp_path}/.yarn-properties-{user}.\n")
    assert ended.returncode == 1
