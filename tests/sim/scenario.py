"""One seed, one history: a cluster, its jobs, its faults, and what must hold in the end."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
from dataclasses import dataclass, field
from typing import Any, Final, final

from engine.checkpoint import storage
from engine.core.config import Configuration
from engine.core.errors import EngineError
from engine.core.options import ClusterOptions, HaOptions
from engine.operators import pace
from engine.protocol.control import ErrorInfo
from engine.runtime.jobmanager.job_master import JobMaster
from engine.runtime.jobmanager.scheduling import TasksTakenOver, TaskStateReported
from tests.sim.checkpoint_checks import CHECKPOINTS, CheckpointChecks, check_contents
from tests.sim.faults import Disturbance, Faults
from tests.sim.leaders import SimJobManager
from tests.sim.ledger import Ledger
from tests.sim.processes import Cluster
from tests.sim.programs import simulated_classes_may_travel
from tests.sim.results import Results
from tests.sim.shapes import Program, draw_program, lasting
from tests.sim.telling import format_story
from tests.sim.users import UserJob, draw_plan
from tests.sim.world import SimulationError, World, running

__all__ = ["Outcome", "Simulation", "run_seed"]

#: Simulated seconds that a job has to finish when no fault comes any more.
LIVENESS_S: Final = 120.0
#: Beyond the heartbeat timeout, a TaskManager that hears nothing has this time to kill its slots.
ORPHANS_S: Final = 2.0
#: Simulated seconds for slots to be given back when all jobs have ended.
QUIET_S: Final = 20.0


@dataclass
class Outcome:
    seed: int
    error: BaseException | None
    story: list[tuple[float, str, str, str]]
    digest: str
    simulated_s: float
    num_events: int
    statuses: list[str] = field(default_factory=list)
    num_attempts: int = 0
    num_faults: int = 0
    num_checkpoints: int = 0
    num_restored: int = 0
    failover: bool = False
    num_taken_over: int = 0  #: times that tasks ran on under another leader

    def report(self, lines_max: int | None = 400) -> str:
        repeat = f"python -m tests.sim --seed {self.seed}{' --failover' if self.failover else ''}"
        head = f"seed {self.seed} FAILED: {self.error}\nrepeat: {repeat}\n"
        return f"{head}\n{format_story(self.story, lines_max)}\n\nseed {self.seed} FAILED: {self.error}"


@final
class _LogTap(logging.Handler):
    """The engine catches its own bugs, logs them and goes on: here they count."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.WARNING)
        self._world = world
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        # All of a simulation is in one thread: another one is of a test before this one.
        if self._world.is_over or record.thread != self._thread:
            return
        text = record.getMessage()
        self._world.tell("log", record.levelname, text.replace("\n", " ")[:160])
        if record.levelno >= logging.ERROR and record.exc_info and record.exc_info[1] is not None:
            error = SimulationError(f"the engine logged: {text}: {record.exc_info[1]!r}")
            error.__cause__ = record.exc_info[1]
            self._world.fail(error)


@final
class Simulation:
    """Everything is drawn from the seed here. Directed tests make one and change it before ``run``."""

    def __init__(self, seed: int, *, failover: bool = False) -> None:
        """``failover``: with high availability. JobManagers die, are paused and deposed, and jobs go on under the next
        leader. Without it they may die as well; then users have to see how to go on."""
        self.seed = seed
        self.failover = failover
        self.world = World(seed)
        self.jobs: list[UserJob] = []
        rng = self.world.rng("scenario")
        at_least_once = rng.random() < 0.08
        self.programs = [draw_program(rng, at_least_once) for _ in range(rng.choice((1, 1, 1, 2)))]
        running = self.world.rng("running tasks")
        #: Little goes wrong but leaders: jobs run long enough for another one to find all of their tasks RUNNING.
        self.mostly_leaders = failover and running.random() < 0.5
        if self.mostly_leaders:
            self.programs = [lasting(program, at_least_once) for program in self.programs]
        self.slots_per_taskmanager = rng.choice((1, 2, 2))
        has_folder = rng.random() < 0.8
        self.plans = [draw_plan(rng, program, has_folder) for program in self.programs]
        pairs = zip(self.programs, self.plans, strict=True)
        needed = sum(one.slots_needed(max(one.parallelism, plan.parallelism)) for one, plan in pairs)
        needed += rng.choice((0, 0, 1, 2))
        self.num_taskmanagers = max(2, -(-needed // self.slots_per_taskmanager))
        self.faults_until = rng.choice((0.0, 3.0, 6.0, 10.0))
        self.fault_pause = rng.choice((0.3, 1.0, 2.5))
        self.cancel_at = rng.uniform(0.1, 6.0) if rng.random() < 0.1 else None
        self.rescale_at = rng.uniform(0.5, 2.5) if rng.random() < 0.15 else None
        #: JobManagers may die, and others follow
        self.leaders_die = self.faults_until > 0 and rng.random() < 0.2 and not failover
        longest_s = max(program.about_s for program in self.programs)
        self.leader_dies_at = 0.5 + longest_s * rng.uniform(0.3, 1.2) if self.leaders_die else None
        self.cluster_config = {
            "heartbeat.interval": "500 ms",
            "heartbeat.timeout": rng.choice(("2 s", "4 s")),
            "taskmanager.registration.timeout": "60 s",
            "task.cancellation.timeout": rng.choice(("1 s", "5 s")),
            "slot.request.timeout": "60 s" if self.rescale_at is None else "5 s",
            "taskmanager.numberOfTaskSlots": str(self.slots_per_taskmanager),
            "taskmanager.memory.segment-size": rng.choice(("200 b", "2 kb", "32 kb")),
        }
        #: Timers that fire between two looks of others: a watermark lasts for several turns.
        self.calls_max = self.world.rng("pieces").choice((1, 3, pace._CALLS_MAX))
        self.num_taken_over = 0
        if failover:
            self.cluster_config |= {
                "high-availability.running-tasks.keep-timeout": running.choice(("1 s", "20 s", "20 s")),
                "high-availability.running-tasks.report-timeout": running.choice(("0 ms", "500 ms", "3 s", "3 s")),
            }
        if self.mostly_leaders:
            self.faults_until = max(self.faults_until, 6.0)
        self.job_config = {
            "restart-strategy.type": "fixed-delay",
            "restart-strategy.fixed-delay.attempts": "1000000",
            "restart-strategy.fixed-delay.delay": rng.choice(("0 ms", "100 ms", "1 s")),
        }

        self.checkpoint_config = {
            "execution.checkpointing.interval": rng.choice(("30 ms", "150 ms", "600 ms")),
            "execution.checkpointing.timeout": rng.choice(("300 ms", "3 s")),
            "execution.checkpointing.max-concurrent-checkpoints": rng.choice(("1", "1", "3")),
            "execution.checkpointing.tolerable-failed-checkpoints": rng.choice(("0", "3", "1000")),
            "execution.checkpointing.num-retained": rng.choice(("1", "1", "3")),
            "execution.checkpointing.incremental": rng.choice(("true", "false")),
            "execution.checkpointing.data-inline-threshold": rng.choice(("0", "20 kb")),
        }
        if at_least_once:
            self.checkpoint_config["execution.checkpointing.mode"] = "AT_LEAST_ONCE"
        elif rng.random() < 0.3:
            self.checkpoint_config["execution.checkpointing.unaligned.enabled"] = "true"
            self.checkpoint_config["execution.checkpointing.max-concurrent-checkpoints"] = "1"
            self.checkpoint_config["execution.checkpointing.aligned-checkpoint-timeout"] = rng.choice(("0 ms", "20 ms"))
        if has_folder:
            self.checkpoint_config["execution.checkpointing.dir"] = CHECKPOINTS
        if any(plan.retain_at is not None for plan in self.plans):
            retention = "execution.checkpointing.externalized-checkpoint-retention"
            self.checkpoint_config[retention] = "RETAIN_ON_CANCELLATION"

    @property
    def num_retained(self) -> int:
        return int(self.checkpoint_config["execution.checkpointing.num-retained"])

    @property
    def masters(self) -> list[JobMaster]:
        """All that there were, job by job."""
        return [master for job in self.jobs for master in job.masters]

    @property
    def checkpoints(self) -> list[CheckpointChecks]:
        return [checks for job in self.jobs for checks in job.checks]

    def run(self) -> Outcome:
        world = self.world
        error: BaseException | None = None
        tap = _LogTap(world)
        logger = logging.getLogger("engine")
        level, propagates = logger.level, logger.propagate
        logger.addHandler(tap)
        logger.setLevel(logging.WARNING)
        logger.propagate = False
        calls_max, pace._CALLS_MAX = pace._CALLS_MAX, self.calls_max
        # Slots spill here: in memory, a disk that others keep busy would take longer than all the rest.
        temp_dir = tempfile.mkdtemp(prefix="sim-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
        try:
            with running(world), simulated_classes_may_travel():
                self.cluster = Cluster(world, temp_dir, Configuration(self.cluster_config), failover=self.failover)
                try:
                    self._run()
                except SimulationError as failure:
                    error = failure
                finally:
                    world.is_over = True
                    self.cluster.close()
        finally:
            logger.removeHandler(tap)
            logger.setLevel(level)
            logger.propagate = propagates
            pace._CALLS_MAX = calls_max
            shutil.rmtree(temp_dir, ignore_errors=True)
        statuses = [job.master.graph.status.name for job in self.jobs if job.master is not None]
        attempts = sum(master.graph.all_subtasks()[0].current.attempt_number + 1 for master in self.masters)
        return Outcome(
            self.seed, error, world.story, world.digest(), world.now, world.num_events, statuses, attempts,
            self.faults.num_faults if hasattr(self, "faults") else 0,
            sum(checks.num_completed for checks in self.checkpoints),
            sum(checks.num_restored for checks in self.checkpoints), self.failover, self.num_taken_over,
        )  # fmt: skip

    # --- the run ------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        world, cluster = self.world, self.cluster
        self.results = Results(world)
        cluster.files.on_change = self.results.file_changed
        world.parts["ledger"] = self.ledger = Ledger(self.results)
        world.parts["disturbance"] = Disturbance()
        world.parts["leaders count on"] = self.failover
        world.parts["faults until"] = self.faults_until
        #: Records that a checkpoint found under way come again in a later attempt.
        world.parts["keeps records"] = "execution.checkpointing.unaligned.enabled" in self.checkpoint_config
        world.tell("seed", "begins", f"{self.seed}: {self.programs} on {self.num_taskmanagers} TaskManagers")
        self.taskmanager_config = Configuration(self.cluster_config)
        for _ in range(self.num_taskmanagers):
            cluster.add_taskmanager(self.slots_per_taskmanager, self.taskmanager_config)
        cluster.on_leader = self._leader_is_ready
        cluster.on_master = self._master_starts
        self._begin_jobs()
        self._look_for_orphans()
        self.faults = Faults(self)
        self.faults.begin()
        ended = world.run(lambda: self._all_ended(), self.faults_until)
        self.faults.end()
        if not ended and not world.run(lambda: self._all_ended(), max(world.now, self.faults_until) + LIVENESS_S):
            raise SimulationError(f"no end within {LIVENESS_S:g} s after the last fault: {self._where_jobs_are()}")
        if not world.run(self._is_quiet, world.now + QUIET_S):
            raise SimulationError(f"slots were not given back within {QUIET_S:g} s: {self._where_slots_are()}")
        for job in self.jobs:
            job.dispose_savepoints()
        if not world.run(lambda: not any(job.files_left() for job in self.jobs), world.now + QUIET_S):
            left = [path for job in self.jobs for path in job.files_left()]
            raise SimulationError(f"checkpoints of a job that has ended are left behind: {left[:5]}")

    def config_of(self, program: Program) -> dict[str, str]:
        return {**self.job_config, **(self.checkpoint_config if program.checkpoints else {})}

    def _begin_jobs(self) -> None:
        rng = self.world.rng("submissions")
        for number, (program, plan) in enumerate(zip(self.programs, self.plans, strict=True)):
            self.jobs.append(job := UserJob(self, number, program, plan))
            self.world.at(rng.uniform(0.05, 1.0), job.begin)
        if self.cancel_at is not None:
            self.world.at(self.cancel_at, self._cancel)
        if self.rescale_at is not None:
            parallelism = self.world.rng("rescale").choice((1, 2, 3, 4))
            self.world.at(self.rescale_at, lambda: self.jobs[0].rescale(parallelism))

    def _master_starts(self, jobmanager: SimJobManager, master: JobMaster) -> None:
        """A job begins, or goes on under another leader."""
        if jobmanager is not self.cluster.jobmanager:
            return  # it takes over, and does not know that others lead already
        for job in self.jobs:
            if job.job_id == master.job_id:
                job.adopt(jobmanager, master)

    def _leader_is_ready(self, jobmanager: SimJobManager) -> None:
        self._watch_slot_book(jobmanager)
        for job in self.jobs:
            if self.failover:
                self.world.after(0.001, job.leader_took_over)
            elif jobmanager.number > 0:
                self.world.after(0.001, job.leader_changed)

    def _cancel(self) -> None:
        self.jobs[0].cancel()

    # --- invariants of deciders -----------------------------------------------------------------------------------

    def watch(self, jobmanager: SimJobManager, master: JobMaster, former: CheckpointChecks | None) -> CheckpointChecks:
        """``former``: of the same job under the leader before."""
        scheduler = master._scheduler
        handle = scheduler.handle
        world = self.world

        def watched(event: Any, now_ms: int) -> Any:
            before = master.graph.status
            if isinstance(event, TasksTakenOver):
                self.num_taken_over += 1
                world.tell("jm", "takes over", f"{master.job_id[:4]} attempt {event.attempt_number}")
            if isinstance(event, TaskStateReported) and event.report.error is not None:
                self._look_at_failure(event.report.error)
            commands = handle(event, now_ms)
            scheduler.check_invariants()
            if master.graph.status is not before:
                world.tell("jm", "job", f"{master.job_id[:4]} {before.name} → {master.graph.status.name}")
            return commands

        scheduler.handle = watched  # type: ignore[method-assign]
        return CheckpointChecks(jobmanager, master, former)

    def _look_at_failure(self, error: ErrorInfo) -> None:
        """Tasks fail because of users and of the world outside, not because of the engine."""
        if error.domain == "internal" and "poisoned record" not in error.message:
            self.world.fail(f"a task failed because of the engine: {error.type_name}: {error.message}\n{error.trace}")

    def _watch_slot_book(self, jobmanager: SimJobManager) -> None:
        book = jobmanager.dispatcher.resource_manager._book
        handle = book.handle

        def watched(event: Any, now_ms: int) -> Any:
            commands = handle(event, now_ms)
            book.check_invariants()
            return commands

        book.handle = watched  # type: ignore[method-assign]

    def _look_for_orphans(self) -> None:
        """Slots end when their TaskManager has not heard of the JobManager for the heartbeat timeout, or with high
        availability for as long as it may keep them then: nobody else can keep what the JobManager has given up from
        going on."""
        timeout_s = self.taskmanager_config.get(ClusterOptions.HEARTBEAT_TIMEOUT) / 1000 + ORPHANS_S
        if self.failover:
            timeout_s += self.taskmanager_config.get(HaOptions.KEEP_TASKS) / 1000
        for taskmanager in self.cluster.live_taskmanagers():
            if taskmanager.link is None or taskmanager.loop.is_stopped or not taskmanager.slots():
                continue
            heard_at = max(taskmanager.link.taskmanager_end.last_arrival, taskmanager.loop.continued_at)
            if self.world.now - heard_at > timeout_s:
                raise SimulationError(f"{taskmanager.name} has heard nothing since {heard_at:.3f}, its slots go on")
        self.world.after(0.5, self._look_for_orphans)

    # --- what must hold -------------------------------------------------------------------------------------------

    def _all_ended(self) -> bool:
        return all(job.is_done for job in self.jobs)

    def _is_quiet(self) -> bool:
        """All slots are free, in the book and in fact."""
        if not self.cluster.jobmanager.is_ready:
            return False
        manager = self.cluster.jobmanager.dispatcher.resource_manager
        expected = sum(one.num_slots for one in self.cluster.live_taskmanagers())
        return (
            not self.cluster.live_slots
            and manager._book.num_free_slots == manager._book.num_slots == expected
            and not manager._allocations
        )

    def _where_jobs_are(self) -> str:
        return "; ".join(job.where() for job in self.jobs if not job.is_done)

    def _where_slots_are(self) -> str:
        book = self.cluster.jobmanager.dispatcher.resource_manager._book
        return (
            f"{book.num_free_slots} of {book.num_slots} free, {len(self.cluster.live_taskmanagers())} TaskManagers, "
            f"processes: {[slot.name for slot in self.cluster.live_slots]}"
        )

    def check_results(self, job: UserJob) -> None:
        """The last job of a line has finished."""
        if job.program.sink == "text":
            self.results.read_text_files(job.line, self.cluster.files.files)
        try:
            self.results.check_all(job.line)
        except SimulationError as error:
            self.world.fail(error)

    def check_savepoint(self, folder: str, checkpoint_id: int | None) -> None:
        """It must be whole; with that number, unless that is None."""
        try:
            found = storage.read_checkpoint(folder)
            check_contents(found, self.cluster.files)
        except EngineError as error:
            self.world.fail(f"savepoint {folder} is not whole: {error}")
            return
        if checkpoint_id not in (None, found.checkpoint_id):
            self.world.fail(f"savepoint {folder} is number {found.checkpoint_id}, the answer was {checkpoint_id}")


def run_seed(seed: int, *, failover: bool = False) -> Outcome:
    return Simulation(seed, failover=failover).run()
