"""Does the simulation find bugs? ``python -m tests.sim.mutations [--seeds 300] [WORDS OF A NAME]``.

Each mutation is a small bug put into a copy of the engine; seeds are run on the copy until one fails. What survives is
a hole in the story or in the checks, or a mutation that changes nothing that must hold. Some need a moment that no seed
of some hundreds meets: ``DIRECTED`` names the test that leads there, and is run instead. Not part of the test command:
all of them take some minutes. One whose text the engine does not have any more is told.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

__all__ = ["MUTATIONS", "applied"]

ROOT: Final = Path(__file__).resolve().parents[2]
#: One mutation may take so much of a processor: 300 seeds take 40 s when all is well.
_CPU_S_MAX: Final = 300

COORDINATOR: Final = "engine/checkpoint/coordinator.py"
LEFTOVERS: Final = "engine/checkpoint/leftovers.py"
LAYERS: Final = "engine/checkpoint/layers.py"
STORE: Final = "engine/checkpoint/store.py"
ALIGNMENT: Final = "engine/checkpoint/alignment.py"
CAPTURE: Final = "engine/runtime/taskmanager/snapshot_capture.py"
TASK: Final = "engine/runtime/taskmanager/task_checkpoints.py"
JOB_MASTER: Final = "engine/runtime/jobmanager/job_master.py"
COORDINATORS: Final = "engine/runtime/jobmanager/coordinators.py"
PARTS: Final = "engine/connectors/file_commits.py"
FILE_SINK: Final = "engine/connectors/file_sink.py"
SOURCE: Final = "engine/connectors/source.py"
CHECKPOINTING: Final = "engine/runtime/jobmanager/checkpointing.py"
RECOVERY: Final = "engine/runtime/jobmanager/recovery.py"
VALVE: Final = "engine/runtime/exchange/watermark_valve.py"
EXECUTOR: Final = "engine/runtime/taskmanager/task_executor.py"
TAKEOVER: Final = "engine/runtime/jobmanager/takeover.py"

#: Begins the names of those that are run with ``--failover``.
HA: Final = "whoever leads:"

#: name → (file, text, what stands there instead)
MUTATIONS: Final[dict[str, tuple[str, str, str]]] = {
    # --- checkpoints
    "late files are deleted with kept ones": (
        LEFTOVERS,
        "self._store.unreferenced([path for path in files if path.startswith(own) and path not in used])",
        "Garbage((), tuple(sorted(files)))",
    ),
    "the folder of a kept checkpoint goes with late files": (
        LEFTOVERS,
        "and is_dead and not is_kept and",
        "and is_dead and",
    ),
    "late files are left behind": (
        COORDINATOR,
        "            self._discard(self._leftovers.late(ack.checkpoint_id, files, live))\n            return",
        "            return",
    ),
    "late files of savepoints are left behind": (
        LEFTOVERS,
        'own = (self._folders.job + "/", folder + "/")',
        'own = (self._folders.job + "/",)',
    ),
    "acknowledgements of former attempts count": (
        COORDINATOR,
        "            attempt_number == self._attempt_number\n            and ",
        "            True\n            and ",
    ),
    "what becomes durable after a restart is kept": (
        COORDINATOR,
        "        self._drop_written()\n        if new_layout",
        "        if new_layout",
    ),
    "older checkpoints may complete later": (
        COORDINATOR,
        "        self._subsume_before(completed.checkpoint_id)\n        if self._is_active:",
        "        if self._is_active:",
    ),
    "a savepoint that stops is no restore point": (
        COORDINATOR,
        "garbage = self._store.add(completed, is_owned=False)",
        "garbage = Garbage()",
    ),
    "a savepoint that stops is the job's own": (
        COORDINATOR,
        "self._store.add(completed, is_owned=False)",
        "self._store.add(completed)",
    ),
    "nothing is pinned for increments": (STORE, "self._pins[checkpoint_id] += 1", "self._pins[checkpoint_id] += 0"),
    "one reference is enough to delete": (
        STORE,
        "            if not self._references[path]:\n                del",
        "            if True:\n                del",
    ),
    "claimed checkpoints are not the job's": (
        "engine/runtime/jobmanager/job_preparation.py",
        "StoredCheckpoint(restored, is_claimed)",
        "StoredCheckpoint(restored, False)",
    ),
    "savepoints that nobody claims are deleted": (
        "engine/runtime/jobmanager/job_preparation.py",
        "StoredCheckpoint(restored, is_claimed)",
        "StoredCheckpoint(restored, True)",
    ),
    "numbers begin anew after a restore": (
        COORDINATOR,
        "        self._next_id = counter + 1\n        for stored in restored:\n"
        "            self._store.add(stored.checkpoint, is_owned=stored.is_owned)\n"
        "            self._next_id = max(self._next_id, stored.checkpoint.checkpoint_id + 1)\n",
        "        self._next_id = 1\n        for stored in restored:\n"
        "            self._store.add(stored.checkpoint, is_owned=stored.is_owned)\n",
    ),
    "channels are unblocked before the snapshot": (
        ALIGNMENT,
        "        yield TakeSnapshot(pending.barrier)\n        if pending.blocks:",
        "        if pending.blocks:\n            yield from _unblocked(pending.delivered)\n"
        "        yield TakeSnapshot(pending.barrier)\n        if False:",
    ),
    "records in flight are forgotten": (ALIGNMENT, "if p.is_capturing and channel not in p.delivered]", "if False]"),
    "bytes are made when the task has gone on": (
        CAPTURE,
        "chunks, lists = [self._chunks_of(key, part, base)",
        "chunks, lists = [self._chunks_of(key, part, base, lazy=True)",
    ),
    "bytes of small parts beside noted ones are made when the task has gone on": (
        CAPTURE,
        "chunks = self._chunks_of(key, part, base)\n",
        "chunks = self._chunks_of(key, part, base, lazy=True)\n",
    ),
    "increments forget a layer": (
        LAYERS,
        "LayerStack((*self.layers, layer), (*self.barriers, checkpoint_id))",
        "LayerStack((layer,), (checkpoint_id,))",
    ),
    "a task goes on after an operator failed": (
        TASK,
        "        committables = self._ask_operators(checkpoint_id)\n",
        "        try:\n            committables = self._ask_operators(checkpoint_id)\n"
        "        except Exception as error:\n"
        "            self._refuse(checkpoint_id, error)\n            return\n",
    ),
    "suspended sources go on": (
        TASK,
        "        return self._stop is not None and self._stop[1] is StopMode.SUSPEND",
        "        return False",
    ),
    # --- the JobMaster
    "events are not held behind a snapshot": (JOB_MASTER, "if snapshot_of == self._holding:", "if False:"),
    "events of former attempts are heard": (
        JOB_MASTER,
        "and found[1] is found[0].current:\n            self._coordinators.handle_event",
        "and found is not None:\n            self._coordinators.handle_event",
    ),
    "events for former attempts are kept": (JOB_MASTER, "        self._undelivered.clear()\n", ""),
    "coordinators forget what they are restored with": (
        COORDINATORS,
        "coordinator.restore(state, _decoded(encoded))",
        "coordinator.restore(state, {})",
    ),
    # --- sinks and sources
    "restored parts are not committed": (
        PARTS,
        "            self._commit(self._restored, again=True)",
        "            pass",
    ),
    "pending parts are swept before the commit": (
        PARTS,
        "            self._commit(self._restored, again=True)\n",
        "            self._sweep(self._base_path, IN_PROGRESS, PENDING)\n"
        "            self._commit(self._restored, again=True)\n",
    ),
    "parts of killed attempts stay": (
        PARTS,
        "            self._sweep(self._base_path, IN_PROGRESS, PENDING)\n        self._restored = None",
        "            pass\n        self._restored = None",
    ),
    "part numbers begin anew": (
        FILE_SINK,
        "self._next_number = max(self._counter.get(), default=0)",
        "self._next_number = 0",
    ),
    "parts stay open at a barrier": (
        FILE_SINK,
        "        self._roll_all()\n        self._counter",
        "        self._counter",
    ),
    "offered parts are offered for ever": (FILE_SINK, "number == NO_CHECKPOINT or number > checkpoint_id", "True"),
    "uncommitted parts are offered once": (FILE_SINK, "number == NO_CHECKPOINT or number > checkpoint_id", "False"),
    "restored splits are read by nobody": (SOURCE, "self._restored.extend(self._splits.get())", "pass"),
    "a reader forgets restored splits": (
        SOURCE,
        "[*self._reader.snapshot(), *self._restored]",
        "self._reader.snapshot()",
    ),
    "a restored enumerator begins afresh": (
        SOURCE,
        "if self._restored is None:\n            self._enumerator.start",
        "if True:\n            self._enumerator.start",
    ),
    # --- windows and timers
    "restored timers do not fire": (
        "engine/state/timers.py",
        "    def restore(",
        "    def restore(self, chunks):\n        pass\n\n    def _restore(",
    ),
    "idle inputs hold event time": (
        VALVE,
        "        status.is_aligned = False\n        return self._after_leaving()\n\n    def end(",
        "        return self._after_leaving()\n\n    def end(",
    ),
    "event time does not wait for the slowest input": (
        VALVE,
        "self._told(min(aligned, default=NEVER_MS))",
        "self._told(max(aligned, default=NEVER_MS))",
    ),
    # --- leaders
    "slots outlive their leader": (
        EXECUTOR,
        "            await self._kill_all_slots()\n            await connection.close()",
        "            await connection.close()",
    ),
    "tokens are not looked at": (
        "engine/rpc/endpoint.py",
        "if not envelope.token or envelope.token != self.token:",
        "if False:",
    ),
    # --- high availability
    f"{HA} whoever has a number may write": (
        "engine/ha/memory.py",
        "_check(self, token: FencingToken) -> None:\n        if token != self._cluster.token:",
        "_check(self, token: FencingToken) -> None:\n        if False:",
    ),
    f"{HA} coordinators start whoever leads": (
        COORDINATORS,
        "        if not self._is_fenced(attempt_number):\n            return\n        for hosted in all_hosted:",
        "        for hosted in all_hosted:",
    ),
    f"{HA} what is given up is cleaned up whoever leads": (
        COORDINATORS,
        "if not self._is_fenced(self._attempt_number, is_over=True):\n                return\n            for hosted",
        "for hosted",
    ),
    f"{HA} the end is published whoever leads": (
        COORDINATORS,
        "if not self._is_fenced(self._attempt_number, publishes=publishes, is_over=True):\n            return\n",
        "pass\n",
    ),
    f"{HA} nobody knows that a job without checkpoints has published": (
        COORDINATORS,
        "self._is_fenced(self._attempt_number, publishes=publishes, is_over=True)",
        "self._is_fenced(self._attempt_number, is_over=True)",
    ),
    f"{HA} checkpoints are complete before they are pointed to": (
        CHECKPOINTING,
        "store.put_checkpoint(checkpoint, self.settings.num_retained)",
        "pass",
    ),
    f"{HA} pointers to what was given up are kept": (
        CHECKPOINTING,
        "        if self._store is None or (self._is_settled() and self._pointed == ids):",
        "        if True:",
    ),
    f"{HA} numbers of checkpoints begin anew": (
        "engine/ha/job_store.py",
        "            if checkpoint_id > pointers.counter:\n",
        "            if False:\n",
    ),
    f"{HA} attempts begin anew": (RECOVERY, "        attempt_number + 1,\n", "        0,\n"),
    f"{HA} all that is restored is the job's own": (
        RECOVERY,
        "    return is_claimed and checkpoint.folder",
        "    return True or checkpoint.folder",
    ),
    f"{HA} what a job was started from is not taken for its checkpoint": (
        "engine/ha/job_store.py",
        "is_of_job = checkpoint.job_id == job_id or not",
        "is_of_job = checkpoint.job_id == job_id and not",
    ),
    f"{HA} results are not written": (CHECKPOINTING, "lambda: store.put_result(result), written", "int, written"),
    f"{HA} a suspended job goes on": (
        JOB_MASTER,
        "        self._events.clear()\n        self._coordinators.abandon()\n        self.checkpoints.suspend()\n",
        "        self._is_suspended = False\n        self.checkpoints.suspend()\n",
    ),
    f"{HA} tasks that have ended are taken over": (
        TAKEOVER,
        "if task.state is not ExecutionState.RUNNING:",
        "if False:",
    ),
    f"{HA} splits are handed out again to readers that run on": (
        SOURCE,
        "        self._enumerator.assigned(assigned)\n",
        "",
    ),
    f"{HA} what running tasks write is swept": (
        PARTS,
        "        self._begin(ctx)\n        self._knows_folders = False\n",
        "        self.start(ctx)\n",
    ),
    f"{HA} TaskManagers stay with a leader that was replaced": (
        EXECUTOR,
        "        await self._leader_replaced()\n        raise",
        "        await _never()\n        raise",
    ),
}


_JOBMANAGER: Final = "tests/unit/runtime/jobmanager"
_TASKMANAGER: Final = "tests/unit/runtime/taskmanager"

#: name of a mutation → the directed test that has to fail
DIRECTED: Final[dict[str, str]] = {
    "the folder of a kept checkpoint goes with late files": (
        "tests/unit/checkpoint/test_coordinator.py::test_a_file_that_comes_late_for_a_kept_checkpoint_goes_alone"
    ),
    "bytes of small parts beside noted ones are made when the task has gone on": (
        f"{_TASKMANAGER}/test_snapshot_after_barrier.py"
    ),
    f"{HA} what is given up is cleaned up whoever leads": (
        f"{_JOBMANAGER}/test_coordinators.py::test_who_is_deposed_between_the_end_and_the_clean_up_cleans_nothing_up"
    ),
    f"{HA} nobody knows that a job without checkpoints has published": (
        f"{_JOBMANAGER}/test_leadership.py::test_a_batch_job_whose_leader_was_lost_while_it_published_is_not_run_again"
    ),
    f"{HA} pointers to what was given up are kept": (
        f"{_JOBMANAGER}/test_leadership.py::test_a_checkpoint_that_is_given_up_while_it_is_written_is_not_pointed_to"
    ),
    f"{HA} attempts begin anew": (
        f"{_JOBMANAGER}/test_leadership.py::"
        "test_a_new_leader_goes_on_from_the_newest_checkpoint_with_numbers_that_were_never_used"
    ),
    f"{HA} all that is restored is the job's own": (
        f"{_JOBMANAGER}/test_recovery.py::test_only_checkpoints_of_the_job_and_what_it_claims_are_its_own"
    ),
    f"{HA} a suspended job goes on": (
        f"{_JOBMANAGER}/test_leadership.py::test_a_suspended_leader_does_nothing_of_what_it_had_begun"
    ),
    f"{HA} TaskManagers stay with a leader that was replaced": (
        f"{_TASKMANAGER}/test_leaders.py::test_a_taskmanager_leaves_a_leader_that_was_replaced_though_it_still_answers"
    ),
}


def applied(name: str) -> tuple[Path, str] | None:
    """Return the file and its text with the mutation; None when the text is not there, or not once."""
    file, text, instead = MUTATIONS[name]
    source = ROOT / file
    content = source.read_text() if source.exists() else ""
    return (Path(file), content.replace(text, instead)) if text and content.count(text) == 1 else None


def _run(name: str, seeds: int) -> str:
    mutated = applied(name)
    if mutated is None:
        return "DOES NOT APPLY"
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        root = Path(folder)
        leave = shutil.ignore_patterns("__pycache__", "*.pyc")
        directed = DIRECTED.get(name)
        shutil.copytree(ROOT / "engine", root / "engine", ignore=leave)
        shutil.copytree(ROOT / "tests", root / "tests", ignore=leave)
        shutil.copy(ROOT / "setup.cfg", root)
        (root / mutated[0]).write_text(mutated[1])
        command = [sys.executable, "-m", "tests.sim", "--seeds", str(seeds)]
        command += ["--failover"] if name.startswith(HA) else []
        if directed is not None:
            command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", directed]
        env = {**os.environ, "PYTHONPATH": folder}
        limit = lambda: resource.setrlimit(resource.RLIMIT_CPU, (_CPU_S_MAX, _CPU_S_MAX))  # noqa: E731
        ran = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, preexec_fn=limit)
    if ran.returncode < 0:
        return "killed: it takes for ever"
    if ran.returncode == 0:
        return "SURVIVES"
    if directed is not None:  # 1: a test has failed; all else is no verdict
        return f"killed by {directed}" if ran.returncode == 1 else f"NO VERDICT: {ran.stdout.strip()[-200:]}"
    found = re.search(r"seed (\d+) FAILED: (.*)", ran.stdout)
    return f"killed by seed {found[1]}: {found[2][:90]}" if found else f"killed: {ran.stderr.strip()[-120:]}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.mutations", description=__doc__)
    parser.add_argument("words", nargs="*", help="only those whose name has these words")
    parser.add_argument("--seeds", type=int, default=300, help="how many are tried on each")
    options = parser.parse_args()
    names = [name for name in MUTATIONS if " ".join(options.words) in name]
    survivors = 0
    for name in names:
        outcome = _run(name, options.seeds)
        survivors += not outcome.startswith("killed")
        print(f"{name}: {outcome}", flush=True)
    print(f"{len(names)} mutations, {survivors} survive")
    return bool(survivors)


if __name__ == "__main__":
    sys.exit(main())
