"""450 seeds of the simulated cluster, and that the simulation itself can be trusted: it repeats, and it finds bugs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.checkpoint.alignment import _Pending
from engine.protocol.checkpoint import StopMode
from engine.protocol.control import SlotFreed
from engine.protocol.lifecycle import ExecutionState, JobStatus
from engine.runtime.exchange.partition import _PipelinedSubpartition
from engine.runtime.exchange.transport import _ConsumerConnection
from engine.runtime.jobmanager.coordinators import JobCoordinators
from engine.runtime.jobmanager.slot_manager import SlotManager
from engine.runtime.taskmanager.task_executor import TaskExecutor
from tests.sim.__main__ import main
from tests.sim.checkpoint_checks import CHECKPOINTS
from tests.sim.scenario import Simulation, run_seed
from tests.sim.shapes import Program
from tests.sim.users import Plan

SEEDS = 450  #: 50 more with high availability: ``test_failover``
CHUNK = 25


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_every_record_counts_exactly_once_whatever_happens(first):
    for seed in range(first, first + CHUNK):
        outcome = run_seed(seed)
        if outcome.error is not None:
            pytest.fail(outcome.report(), pytrace=False)


# --- the simulation itself ------------------------------------------------------------------------------------------


def test_a_seed_repeats_exactly_in_another_process_with_other_hashes():
    seeds = (3, 17, 23)
    script = f"from tests.sim.scenario import run_seed; print(*[run_seed(seed).digest for seed in {seeds}])"
    root = Path(__file__).resolve().parents[2]
    digests = set()
    for hash_seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": hash_seed}
        ran = subprocess.run([sys.executable, "-c", script], cwd=root, env=env, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        digests.add(ran.stdout)
    digests.add(" ".join(run_seed(seed).digest for seed in seeds) + "\n")
    assert len(digests) == 1


def quiet(seed: int = 1, **program: object) -> Simulation:
    """Return a simulation of one job without any fault but those that the test adds."""
    simulation = Simulation(seed)
    simulation.programs = [Program(**{"interval_ms": (100, 200), **program})]  # type: ignore[arg-type]
    simulation.plans = [Plan()]
    simulation.leaders_die, simulation.leader_dies_at, simulation.rescale_at = False, None, None
    simulation.num_taskmanagers, simulation.slots_per_taskmanager = 3, 1
    simulation.faults_until, simulation.cancel_at = 0.0, None
    return simulation


def when_it_runs(simulation: Simulation, action) -> None:
    """Do something to the cluster as soon as all tasks have run for a moment."""

    def look():
        states = {task.current.state for master in simulation.masters for task in master.graph.all_subtasks()}
        if states == {ExecutionState.RUNNING}:
            simulation.world.after(0.4, action)
        else:
            simulation.world.after(0.02, look)

    simulation.world.at(0.05, look)


def test_without_faults_a_job_is_tried_once():
    outcome = quiet().run()
    assert (outcome.error, outcome.statuses, outcome.num_attempts, outcome.num_faults) == (None, ["FINISHED"], 1, 0)


def first_slot(simulation: Simulation):
    return simulation.cluster.live_slots[0]


FAULTS = {
    "kill -9 of a slot": lambda sim: first_slot(sim).kill("kill -9"),
    "kill -9 of a TaskManager": lambda sim: first_slot(sim).taskmanager.kill("kill -9", silently=False),
    "a host without power": lambda sim: first_slot(sim).taskmanager.kill("no power", silently=True),
    "a TaskManager that is stopped for good": lambda sim: first_slot(sim).taskmanager.loop.stop_process(),
    "a connection to the JobManager that is cut": lambda sim: first_slot(sim).taskmanager.link.cut(),
    "a network that is down for long": lambda sim: first_slot(sim).taskmanager.link.stall(30.0),
    "a data connection that is reset": lambda sim: sim.cluster.network.cut(sim.cluster.network.live_pairs()[0]),
    "a user function that raises": lambda sim: setattr(sim.world.parts["disturbance"], "poisons", 1),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_job_survives(fault):
    simulation = quiet(shape="chained")
    if fault == "a TaskManager that is stopped for good":
        simulation.num_taskmanagers = 4  # it is not replaced
    when_it_runs(simulation, lambda: FAULTS[fault](simulation))
    outcome = simulation.run()
    if fault == "a TaskManager that is stopped for good":
        assert "slots were not given back" in str(outcome.error)  # its processes wait for it, and the test knows
    else:
        assert outcome.error is None, outcome.report()
    assert outcome.statuses == ["FINISHED"]
    assert outcome.num_attempts == 2, "the fault was not noticed"


def test_a_cancelled_job_commits_nothing():
    simulation = quiet()
    simulation.cancel_at = 1e6  # not then, but now:
    when_it_runs(simulation, simulation._cancel)
    outcome = simulation.run()
    assert outcome.error is None, outcome.report()
    assert outcome.statuses == [JobStatus.CANCELED.name]
    assert simulation.ledger.parts_by_line == {}


# --- users and leaders ----------------------------------------------------------------------------------------------

CHECKPOINTED = {
    "execution.checkpointing.interval": "150 ms",
    "execution.checkpointing.tolerable-failed-checkpoints": "1000",
    "execution.checkpointing.num-retained": "1",
    "execution.checkpointing.dir": CHECKPOINTS,
}


def checkpointed(seed: int, **program: object) -> Simulation:
    simulation = quiet(seed, checkpoints=True, **{"interval_ms": (30, 100), **program})
    simulation.checkpoint_config = dict(CHECKPOINTED)
    return simulation


def let_the_leader_die(simulation: Simulation, *, silently: bool = False) -> None:
    """The TaskManager whose slots run hears of it late: its tasks go on while the next leader begins."""
    first_slot(simulation).taskmanager.link.stall(3.0)
    simulation.cluster.jobmanager.die(silently=silently)
    simulation.world.after(0.05, simulation.cluster.start_jobmanager)


@pytest.mark.parametrize("sink", ["ledger", "parts"])
@pytest.mark.parametrize("source", ["own", "engine"])
def test_a_dead_leaders_tasks_and_those_of_the_next_do_not_mix(sink, source):
    restored = 0
    for seed in range(5):
        simulation = checkpointed(seed, sink=sink, source=source, parallelism=1)
        when_it_runs(simulation, lambda simulation=simulation: let_the_leader_die(simulation))
        outcome = simulation.run()
        assert outcome.error is None, outcome.report()
        assert [len(job.masters) for job in simulation.jobs] == [2]
        restored += bool(simulation.jobs[0].restored_from)
    assert restored


@pytest.mark.parametrize("mode", [StopMode.SUSPEND, StopMode.DRAIN])
@pytest.mark.parametrize("work", ["count", "hold"])
def test_a_job_that_was_stopped_goes_on_from_its_savepoint_at_another_parallelism(mode, work):
    simulation = checkpointed(2, work=work)
    simulation.plans = [Plan(stop_at=0.5, stop_mode=mode, parallelism=3)]
    outcome = simulation.run()
    assert outcome.error is None, outcome.report()
    first, second = simulation.jobs[0].masters
    assert second.graph.job_graph.vertices[0].parallelism == 3
    assert first.graph.status is second.graph.status is JobStatus.FINISHED


@pytest.mark.parametrize("claims", [True, False])
def test_a_job_moves_to_the_checkpoint_that_a_cancelled_one_retained(claims):
    simulation = checkpointed(1, work="sliding", shape="union")
    simulation.checkpoint_config["execution.checkpointing.externalized-checkpoint-retention"] = "RETAIN_ON_CANCELLATION"
    simulation.plans = [Plan(retain_at=0.7, claims=claims, parallelism=1)]
    outcome = simulation.run()
    assert outcome.error is None, outcome.report()
    assert [master.graph.status for master in simulation.jobs[0].masters] == [JobStatus.CANCELED, JobStatus.FINISHED]


def test_an_idle_input_does_not_hold_windows_back():
    simulation = checkpointed(1, shape="union", work="tumbling", quiet_s=20.0)
    outcome = simulation.run()
    assert outcome.error is None, outcome.report()
    first = next(when for when, who, what, _ in outcome.story if (who, what) == ("ledger", "commit"))
    assert first < 10.0
    assert outcome.simulated_s > 20.0


def with_commits_that_fail(seed: int) -> Simulation:
    """Checkpoints follow one another closely while what they hold cannot be committed."""
    simulation = quiet(seed, checkpoints=True, interval_ms=(5, 20))
    simulation.checkpoint_config = {
        "execution.checkpointing.interval": "30 ms",
        "execution.checkpointing.max-concurrent-checkpoints": "3",
        "execution.checkpointing.tolerable-failed-checkpoints": "1000",
    }
    simulation.world.parts["commits are slow"] = True
    refuse = lambda: setattr(simulation.world.parts["disturbance"], "commits_fail_until", 1.9)  # noqa: E731
    simulation.world.at(1.2, refuse)
    return simulation


def test_what_could_not_be_committed_is_committed_after_the_restart():
    outcomes = [with_commits_that_fail(seed).run() for seed in range(20)]
    for outcome in outcomes:
        assert outcome.error is None, outcome.report()
    assert any(outcome.num_restored for outcome in outcomes), "no commit has failed"


# --- broken engines are found ---------------------------------------------------------------------------------------


def give_no_credit_back(monkeypatch):
    monkeypatch.setattr(_ConsumerConnection, "add_credit", lambda self, channel, credit: None)


def lose_open_buffers(monkeypatch):
    def add_event(self, element):
        self.buffer.take()
        self.queue.append(element)
        self._notify()

    monkeypatch.setattr(_PipelinedSubpartition, "add_event", add_event)


def forget_freed_slots(monkeypatch):
    handle = SlotManager.handle
    monkeypatch.setattr(
        SlotManager,
        "handle",
        lambda self, event, now_ms: [] if type(event) is SlotFreed else handle(self, event, now_ms),
    )


def leave_slots_alive(monkeypatch):
    async def kill_nothing(self):
        self._slots.clear()

    monkeypatch.setattr(TaskExecutor, "_kill_all_slots", kill_nothing)


def do_not_align(monkeypatch):
    monkeypatch.setattr(_Pending, "blocks", False)


def test_tasks_that_hear_of_a_checkpoint_before_its_commit_lose_records(monkeypatch):
    completed = JobCoordinators.checkpoint_completed

    def tell_first(self, checkpoint_id, committables, done):
        done()
        completed(self, checkpoint_id, committables, lambda: None)

    monkeypatch.setattr(JobCoordinators, "checkpoint_completed", tell_first)
    assert any("not exactly once" in str(with_commits_that_fail(seed).run().error) for seed in range(20))


BROKEN = (
    give_no_credit_back,
    lose_open_buffers,
    forget_freed_slots,
    leave_slots_alive,
    do_not_align,
)


@pytest.mark.parametrize("break_it", BROKEN)
def test_a_broken_engine_is_found(break_it, monkeypatch):
    break_it(monkeypatch)
    for seed in range(200):
        if run_seed(seed).error is not None:
            return
    pytest.fail("200 seeds found nothing wrong")


def test_a_failing_seed_prints_its_story_and_repeats(monkeypatch, capsys):
    def run(*words: str) -> tuple[bool, str]:
        monkeypatch.setattr(sys, "argv", ["tests.sim", *words])
        return bool(main()), capsys.readouterr().out

    lose_open_buffers(monkeypatch)
    failed, told = run("--seeds", "20")
    assert failed
    head, repeat, _ = told.splitlines()[:3]
    seed = head.split()[1]
    assert head.startswith(f"seed {seed} FAILED: ")
    assert repeat == f"repeat: python -m tests.sim --seed {seed}"
    assert "task    vertex.subtask#attempt" in told
    assert "DeployTask" in told
    assert told.splitlines()[-1].endswith(f"failed: [{seed}]")
    failed, again = run("--seed", seed)
    assert failed
    assert again.startswith(f"{head}\n{repeat}\n")
