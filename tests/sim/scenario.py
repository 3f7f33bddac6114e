"""One seed, one history: a cluster, its jobs, its faults, and what must hold in the end."""

from __future__ import annotations

import ast
import logging
import os
import random
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final, final

from engine.core.config import Configuration
from engine.core.errors import ConfigError, ExternalError, JobNotFoundError
from engine.core.ids import JobID
from engine.core.options import ClusterOptions
from engine.graph.execution_graph import ExecutionGraph
from engine.graph.job_graph import JobGraph
from engine.graph.rescale import rescaled
from engine.protocol.lifecycle import JobStatus
from engine.runtime.jobmanager.dispatcher import Dispatcher
from engine.runtime.jobmanager.job_master import JobMaster
from engine.runtime.jobmanager.scheduling import RescaleRequested
from tests.sim.checkpoint_checks import CHECKPOINTS, CheckpointChecks
from tests.sim.faults import Disturbance, Faults
from tests.sim.processes import Cluster
from tests.sim.programs import Ledger, Program, make_job, output_path, simulated_classes_may_travel, slots_needed
from tests.sim.telling import format_story
from tests.sim.world import SimulationError, World, running

__all__ = ["Outcome", "Simulation", "run_seed"]

#: Simulated seconds that a job has to finish when no fault comes any more.
LIVENESS_S: Final = 120.0
#: Beyond the heartbeat timeout, a TaskManager that hears nothing has this time to kill its slots.
ORPHANS_S: Final = 2.0
#: Of a job without checkpoints: nobody could tell what of it is visible.
LOST_WHILE_PUBLISHING: Final = "made its output visible"
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

    def report(self, lines_max: int | None = 400) -> str:
        head = f"seed {self.seed} FAILED: {self.error}\nrepeat: python -m tests.sim --seed {self.seed}\n"
        return f"{head}\n{format_story(self.story, lines_max)}\n\nseed {self.seed} FAILED: {self.error}"


@final
class _LogTap(logging.Handler):
    """The engine catches its own bugs, logs them and goes on: here they count."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.WARNING)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        if self._world.is_over:
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
        """``failover``: with high availability; JobManagers die too, are paused and deposed."""
        self.seed = seed
        self.failover = failover
        #: by job, as its client knows it
        self._program_of: dict[JobID, Program] = {}
        self._accepted: set[JobID] = set()
        self.world = World(seed)
        #: of jobs that were submitted, and their programs, in the order of submission
        self.masters: list[JobMaster] = []
        self.submitted: list[Program] = []
        self.checkpoints: list[CheckpointChecks] = []
        rng = self.world.rng("scenario")
        self.programs = [self._draw_program(rng) for _ in range(rng.choice((1, 1, 1, 2)))]
        self.slots_per_taskmanager = rng.choice((1, 2, 2))
        needed = sum(map(slots_needed, self.programs)) + rng.choice((0, 0, 1, 2))
        self.num_taskmanagers = max(2, -(-needed // self.slots_per_taskmanager))
        self.faults_until = rng.choice((0.0, 3.0, 6.0, 10.0))
        self.fault_pause = rng.choice((0.3, 1.0, 2.5))
        self.cancel_at = rng.uniform(0.1, 6.0) if rng.random() < 0.1 else None
        self.rescale_at = rng.uniform(0.5, 2.5) if rng.random() < 0.15 else None
        self.cluster_config = {
            "heartbeat.interval": "500 ms",
            "heartbeat.timeout": rng.choice(("2 s", "4 s")),
            "taskmanager.registration.timeout": "60 s",
            "task.cancellation.timeout": rng.choice(("1 s", "5 s")),
            "slot.request.timeout": "60 s" if self.rescale_at is None else "5 s",
            "taskmanager.numberOfTaskSlots": str(self.slots_per_taskmanager),
            "taskmanager.memory.segment-size": rng.choice(("200 b", "2 kb", "32 kb")),
        }
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
        if rng.random() < 0.3:
            self.checkpoint_config["execution.checkpointing.unaligned.enabled"] = "true"
            self.checkpoint_config["execution.checkpointing.max-concurrent-checkpoints"] = "1"
            self.checkpoint_config["execution.checkpointing.aligned-checkpoint-timeout"] = rng.choice(("0 ms", "20 ms"))
        if rng.random() < 0.8:
            self.checkpoint_config["execution.checkpointing.dir"] = CHECKPOINTS

    @staticmethod
    def _draw_program(rng: random.Random) -> Program:
        shape = rng.choice(("chained", "chained", "wide", "union", "batch"))
        checkpoints = shape != "batch" and rng.random() < 0.75
        return Program(
            shape=shape,
            checkpoints=checkpoints,
            sink="ledger" if checkpoints else rng.choice(("ledger", "files")),
            parallelism=rng.choice((1, 2, 2, 3)),
            num_splits=rng.choice((3, 6)),
            split_rows=rng.choice((5, 15)),
            interval_ms=rng.choice(((1, 5), (10, 80), (50, 300))),
            buffer_timeout_ms=rng.choice((0, 10, 100, -1)),
        )

    def run(self) -> Outcome:
        world = self.world
        error: BaseException | None = None
        tap = _LogTap(world)
        logger = logging.getLogger("engine")
        level, propagates = logger.level, logger.propagate
        logger.addHandler(tap)
        logger.setLevel(logging.WARNING)
        logger.propagate = False
        # Slots spill here: in memory, a disk that others keep busy would take longer than all the rest.
        temp_dir = tempfile.mkdtemp(prefix="sim-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
        try:
            with running(world), simulated_classes_may_travel():
                self.cluster = Cluster(world, temp_dir, Configuration(self.cluster_config), failover=self.failover)
                self.cluster.on_master.append(self._master_starts)
                self.cluster.on_elected.append(lambda: self.world.after(0.01, self._watch_slot_book))
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
            shutil.rmtree(temp_dir, ignore_errors=True)
        statuses = [master.graph.status.name for master in self.masters]
        if error is None:
            statuses = [self._graph_of(master).status.name for master in self.masters]
        attempts = sum(master.graph.all_subtasks()[0].current.attempt_number + 1 for master in self.masters)
        return Outcome(
            self.seed, error, world.story, world.digest(), world.now, world.num_events, statuses, attempts,
            self.faults.num_faults if hasattr(self, "faults") else 0,
            sum(checks.num_completed for checks in self.checkpoints),
            sum(checks.num_restored for checks in self.checkpoints),
        )  # fmt: skip

    # --- the run ------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        world, cluster = self.world, self.cluster
        world.parts["ledger"] = self.ledger = Ledger()
        world.parts["disturbance"] = Disturbance()
        #: Records that a checkpoint found under way come again in a later attempt.
        world.parts["keeps records"] = "execution.checkpointing.unaligned.enabled" in self.checkpoint_config
        world.tell("seed", "begins", f"{self.seed}: {self.programs} on {self.num_taskmanagers} TaskManagers")
        self.taskmanager_config = Configuration(self.cluster_config)
        for _ in range(self.num_taskmanagers):
            cluster.add_taskmanager(self.slots_per_taskmanager, self.taskmanager_config)
        self._submit()
        self._look_for_orphans()
        self.faults = Faults(self)
        self.faults.begin()
        ended = world.run(lambda: self._all_ended(), self.faults_until)
        self.faults.end()
        if not ended and not world.run(lambda: self._all_ended(), max(world.now, self.faults_until) + LIVENESS_S):
            raise SimulationError(f"no end within {LIVENESS_S:g} s after the last fault: {self._where_jobs_are()}")
        self._check_results()
        if not world.run(self._is_quiet, world.now + QUIET_S):
            left = [path for checks in self.checkpoints for path in checks.left_behind()]
            if left:
                raise SimulationError(f"checkpoints of a job that has ended are left behind: {left[:5]}")
            raise SimulationError(f"slots were not given back within {QUIET_S:g} s: {self._where_slots_are()}")

    def _submit(self) -> None:
        async def submit(dispatcher: Dispatcher, program: Program, job_graph: JobGraph) -> None:
            try:
                self._accepted.add(await dispatcher.submit_job(job_graph))
            except (ConfigError, ExternalError) as error:  # the disk is full just now: a user tries again
                self.world.tell("user", "refused", str(error)[:80])
                if not self.failover:
                    self.world.after(0.5, lambda: begin(program))

        def begin(program: Program, again: JobGraph | None = None) -> None:
            leader = self.cluster.jobmanager
            if not leader.is_published or leader.loop.is_dead:
                self.world.after(0.2, lambda: begin(program, again))
                return
            config = {**self.job_config, **(self.checkpoint_config if program.checkpoints else {})}
            job_graph = again or make_job(program, JobID.generate(), config)
            self._program_of[job_graph.job_id] = program
            leader.loop.create_task(submit(leader.dispatcher, program, job_graph))
            if self.failover:  # the answer may be lost with the leader
                self.world.after(1.0, lambda: submit_again(program, job_graph))

        def submit_again(program: Program, job_graph: JobGraph) -> None:
            if job_graph.job_id not in self._accepted:
                begin(program, job_graph)

        rng = self.world.rng("submissions")
        for program in self.programs:
            when = rng.uniform(0.05, 1.0)
            self.world.at(when, lambda p=program: begin(p))  # type: ignore[misc]
        if self.cancel_at is not None:
            self.world.at(self.cancel_at, self._cancel)
        if self.rescale_at is not None:
            self.world.at(self.rescale_at, self._rescale)
        self.world.at(0.01, self._watch_slot_book)

    def _master_starts(self, master: JobMaster) -> None:
        """A job begins, or goes on under another leader."""
        self.world.tell("jm", "job", f"{master.job_id[:4]} starts")
        known = [one.job_id for one in self.masters]
        if master.job_id not in known:
            self.masters.append(master)
            self.submitted.append(self._program_of[master.job_id])
            self.checkpoints.append(CheckpointChecks(self.cluster, master))
        else:
            index = known.index(master.job_id)
            self.masters[index] = master
            self.checkpoints[index] = CheckpointChecks(self.cluster, master, self.checkpoints[index])
        self._watch(master)

    def _graph_of(self, master: JobMaster) -> ExecutionGraph:
        """Return the job as the leader shows it. Raises JobNotFoundError."""
        return self.cluster.jobmanager.dispatcher.job(master.job_id) if self.failover else master.graph

    def _has_ended(self, master: JobMaster) -> bool:
        if not self.failover:
            return master.has_ended
        leader = self.cluster.jobmanager
        if leader.loop.is_dead or not leader.is_published:
            return False
        try:
            graph = self._graph_of(master)
        except JobNotFoundError:
            return False
        return graph.status.is_globally_terminal_state() and not graph.is_result_pending

    def _cancel(self) -> None:
        if self.masters:
            self.world.tell("user", "cancels", self.masters[0].job_id[:4])

            async def cancel() -> None:
                self.masters[0].cancel()

            self.cluster.jobmanager.loop.create_task(cancel())

    def _rescale(self) -> None:
        """To a parallelism for which there may be no slots."""
        if not self.masters:
            return
        master, parallelism = self.masters[0], self.world.rng("rescale").choice((1, 2, 3, 4))
        graph = master.graph.job_graph
        changed = rescaled(graph, {vertex.vertex_id: parallelism for vertex in graph.vertices if vertex.is_parallel})
        self.world.tell("user", "rescales", f"{master.job_id[:4]} to {parallelism}")

        async def rescale() -> None:
            master.post(RescaleRequested(changed))

        self.cluster.jobmanager.loop.create_task(rescale())

    # --- invariants of deciders -----------------------------------------------------------------------------------

    def _watch(self, master: JobMaster) -> None:
        scheduler = master._scheduler
        handle = scheduler.handle
        world = self.world

        def watched(event: Any, now_ms: int) -> Any:
            before = master.graph.status
            commands = handle(event, now_ms)
            scheduler.check_invariants()
            if master.graph.status is not before:
                world.tell("jm", "job", f"{master.job_id[:4]} {before.name} → {master.graph.status.name}")
            return commands

        scheduler.handle = watched  # type: ignore[method-assign]

    def _watch_slot_book(self) -> None:
        if not hasattr(self.cluster.jobmanager, "dispatcher"):
            return  # it died first
        book = self.cluster.jobmanager.dispatcher.resource_manager._book
        handle = book.handle

        def watched(event: Any, now_ms: int) -> Any:
            commands = handle(event, now_ms)
            book.check_invariants()
            return commands

        book.handle = watched  # type: ignore[method-assign]

    def _look_for_orphans(self) -> None:
        """Slots end when their TaskManager has not heard of the JobManager for the heartbeat timeout: nobody else can
        keep what the JobManager has given up from going on."""
        timeout_s = self.taskmanager_config.get(ClusterOptions.HEARTBEAT_TIMEOUT) / 1000 + ORPHANS_S
        for taskmanager in self.cluster.live_taskmanagers():
            if taskmanager.link is None or taskmanager.loop.is_stopped or not taskmanager.slots():
                continue
            heard_at = max(taskmanager.link.taskmanager_end.last_arrival, taskmanager.loop.continued_at)
            if self.world.now - heard_at > timeout_s:
                raise SimulationError(f"{taskmanager.name} has heard nothing since {heard_at:.3f}, its slots go on")
        self.world.after(0.5, self._look_for_orphans)

    # --- what must hold -------------------------------------------------------------------------------------------

    def _all_ended(self) -> bool:
        return len(self.masters) == len(self.programs) and all(map(self._has_ended, self.masters))

    def _is_quiet(self) -> bool:
        """All slots are free, in the book and in fact."""
        manager = self.cluster.jobmanager.dispatcher.resource_manager
        expected = sum(one.num_slots for one in self.cluster.live_taskmanagers())
        return (
            not self.cluster.live_slots
            and manager._book.num_free_slots == manager._book.num_slots == expected
            and not manager._allocations
            and not any(checks.left_behind() for checks in self.checkpoints)
        )

    def _where_jobs_are(self) -> str:
        return "; ".join(
            f"{master.job_id[:4]} {master.graph.status.name} "
            f"{Counter(subtask.current.state.name for subtask in master.graph.all_subtasks())}"
            for master in self.masters
        )

    def _where_slots_are(self) -> str:
        book = self.cluster.jobmanager.dispatcher.resource_manager._book
        return (
            f"{book.num_free_slots} of {book.num_slots} free, {len(self.cluster.live_taskmanagers())} TaskManagers, "
            f"processes: {[slot.name for slot in self.cluster.live_slots]}"
        )

    def _check_results(self) -> None:
        for program, master in zip(self.submitted, self.masters, strict=True):
            graph = self._graph_of(master)
            status = graph.status
            if status is JobStatus.CANCELED and self.cancel_at is not None:
                continue
            if self.failover and graph.failure is not None and LOST_WHILE_PUBLISHING in graph.failure.message:
                assert not program.checkpoints, graph.failure.message
                continue
            if status is not JobStatus.FINISHED:
                raise SimulationError(f"job {master.job_id[:4]} is {status.name}: {graph.failure}")
            self._check_rows(program, self._rows_of(program, master.job_id))

    def _rows_of(self, program: Program, job_id: str) -> list[tuple[int, int, int]]:
        if program.sink == "ledger":
            return self.ledger.rows(job_id)
        path, files = output_path(job_id), self.cluster.files.files
        found = [content for name, content in files.items() if name == path or name.startswith(path + "/")]
        return [ast.literal_eval(line) for content in found for line in content.decode().splitlines()]

    @staticmethod
    def _check_rows(program: Program, rows: list[tuple[int, int, int]]) -> None:
        ids = Counter(row[2] for row in rows)
        missing = [row_id for row_id in range(program.num_rows) if not ids[row_id]]
        twice = [row_id for row_id, num in ids.items() if num > 1]
        if missing or twice:
            raise SimulationError(f"not exactly once: lost {missing[:10]}, twice {sorted(twice)[:10]}, of {len(rows)}")
        for key in range(program.num_keys):
            counts = sorted(count for at, count, _ in rows if at == key)
            if counts != list(range(1, len(counts) + 1)):
                raise SimulationError(f"counts of key {key} are {counts}")


def run_seed(seed: int, *, failover: bool = False) -> Outcome:
    return Simulation(seed, failover=failover).run()
