from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.core import rolling_file
from engine.core.rolling_file import RollingFile

PROGRAM = [sys.executable, "-I", "-S", rolling_file.__file__]


def number_of(path: Path) -> int:
    suffix = path.name.rsplit(".", 1)[1]
    return int(suffix) if suffix.isdigit() else 0


def files_of(path: Path) -> list[Path]:
    """Return the file and its backups, oldest first."""
    return sorted(path.parent.glob(path.name + "*"), key=number_of, reverse=True)


def content_of(path: Path) -> str:
    return "".join(file.read_text() for file in files_of(path))


def test_what_is_kept_is_bounded_and_is_the_end_without_a_gap(tmp_path):
    path = tmp_path / "x.log"
    file = RollingFile(str(path), size_bytes_max=1000, backups_max=3)
    lines = [f"line {number} {'x' * (number % 37)}\n" for number in range(1000)]
    for line in lines:
        file.write(line.encode())
    assert [one.name for one in files_of(path)] == ["x.log.3", "x.log.2", "x.log.1", "x.log"]
    assert all(one.stat().st_size <= 1000 for one in files_of(path))
    kept = content_of(path).splitlines(keepends=True)
    assert kept == lines[-len(kept) :]
    assert sum(map(len, kept)) > 3 * 900, "no more than a line's room is left in each file"


def test_a_line_that_is_larger_than_a_file_may_be_is_cut_at_the_bound(tmp_path):
    path = tmp_path / "x.log"
    file = RollingFile(str(path), size_bytes_max=100, backups_max=5)
    file.write(b"first\n")
    file.write(b"y" * 250 + b"\n")
    assert [one.read_text() for one in files_of(path)] == ["first\n", "y" * 100, "y" * 100, "y" * 50 + "\n"]


def test_several_processes_that_share_a_file_lose_and_tear_no_line(tmp_path):
    path = tmp_path / "x.log"
    program = (
        "import sys\n"
        "from engine.core.rolling_file import RollingFile\n"
        f"file = RollingFile({str(path)!r}, size_bytes_max=2000, backups_max=200)\n"
        "sys.stdin.read(1)\n"
        "for number in range(1500):\n"
        "    file.write(b'%s %d end\\n' % (sys.argv[1].encode(), number))\n"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", program, name], stdin=subprocess.PIPE, cwd=os.getcwd())
        for name in ("a", "b", "c")
    ]
    for writer in writers:  # all are up before the first one begins
        assert writer.stdin is not None
        writer.stdin.write(b"g")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=120)
        assert writer.returncode == 0
    lines = content_of(path).splitlines()
    for name in ("a", "b", "c"):
        assert [line for line in lines if line.startswith(name)] == [f"{name} {number} end" for number in range(1500)]
    assert len(lines) == 4500
    assert max(one.stat().st_size for one in files_of(path)) <= 2000
    assert len(files_of(path)) >= len(content_of(path)) // 2000


def test_backups_of_a_time_when_more_were_kept_are_deleted(tmp_path):
    for number in range(1, 8):
        (tmp_path / f"x.log.{number}").write_text(str(number))
    (tmp_path / "x.log.old").write_text("somebody's own")
    RollingFile(str(tmp_path / "x.log"), size_bytes_max=100, backups_max=2)
    assert sorted(os.listdir(tmp_path)) == ["x.log.1", "x.log.2", "x.log.old"]


def test_a_file_that_somebody_has_moved_away_is_made_anew(tmp_path):
    path = tmp_path / "x.log"
    file = RollingFile(str(path), size_bytes_max=100, backups_max=2)
    file.write(b"one\n")
    path.rename(tmp_path / "elsewhere")
    file.write(b"two\n")
    assert path.read_text() == "two\n"


def test_the_program_keeps_lines_whole_and_outlives_the_signals_that_end_a_daemon(tmp_path):
    path = tmp_path / "x.out"
    with subprocess.Popen([*PROGRAM, str(path), "5000", "3"], stdin=subprocess.PIPE) as writer:
        assert writer.stdin is not None
        writer.stdin.write(b"up\n")
        writer.stdin.flush()
        until(lambda: path.exists() and path.read_text() == "up\n")
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            writer.send_signal(number)
        writer.stdin.write(b"".join(b"%06d printed by a function\n" % number for number in range(20_000)))
        writer.stdin.close()
        assert writer.wait(120) == 0
    assert all(one.stat().st_size <= 5000 for one in files_of(path))
    for file in files_of(path):
        assert all(re.fullmatch(r"\d{6} printed by a function", line) for line in file.read_text().splitlines())
    numbers = [int(line[:6]) for line in content_of(path).splitlines()]
    assert numbers == list(range(20_000 - len(numbers), 20_000))


def test_a_part_of_a_line_is_seen_before_the_line_ends(tmp_path):
    path = tmp_path / "x.out"
    with subprocess.Popen([*PROGRAM, str(path), "5000", "3"], stdin=subprocess.PIPE) as writer:
        assert writer.stdin is not None
        writer.stdin.write("working …".encode())
        writer.stdin.flush()
        until(lambda: path.exists() and path.read_text() == "working …")
        writer.stdin.write(b" done\n")
        writer.stdin.close()
        assert writer.wait(120) == 0
    assert path.read_text() == "working … done\n"


def test_printing_goes_on_while_the_disk_takes_nothing_and_the_gap_is_told(tmp_path):
    folder = tmp_path / "logs"
    path = folder / "x.out"
    with subprocess.Popen([*PROGRAM, str(path), "5000", "3"], stdin=subprocess.PIPE) as writer:
        assert writer.stdin is not None
        writer.stdin.write(b"nobody reads this\n")
        writer.stdin.flush()
        until(lambda: is_idle(writer.pid))
        folder.mkdir()
        writer.stdin.write(b"this is read\n")
        writer.stdin.close()
        assert writer.wait(120) == 0
    assert path.read_text() == "[18 bytes could not be written here]\nthis is read\n"


def is_idle(pid: int) -> bool:
    """Return whether it has read all that there is, and waits for more."""
    return not reads_left(pid) and state_of(pid) == "S"


def reads_left(pid: int) -> bool:
    descriptor = os.open(f"/proc/{pid}/fd/0", os.O_RDONLY | os.O_NONBLOCK)
    try:
        return bool(select.select([descriptor], [], [], 0)[0])
    finally:
        os.close(descriptor)


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def until(holds, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("level", ["debug", "Trace", "OFF"])
def test_levels_of_flink_are_understood(level):
    from engine.core.config import Configuration
    from engine.core.options import LogOptions

    assert Configuration({"env.log.level": level}).get(LogOptions.LEVEL) == level.upper()
