"""What users do with a job: submit it, take savepoints, stop it with one and go on elsewhere, cancel it and go on from
what was retained, go on with another JobManager when theirs has died. Each from the seed, in the midst of faults.

With high availability jobs go on by themselves under the next leader; what a user had asked the last one is lost, and a
request whose answer was lost is made again only when it was the submission.

A user knows what he was answered and what is durable: the checkpoint that was completed last. Nothing else.
"""

from __future__ import annotations

import dataclasses
import functools
import random
import re
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, final

from engine.core.errors import EngineError
from engine.core.ids import JobID
from engine.graph.execution_graph import ExecutionGraph
from engine.graph.job_graph import JobGraph
from engine.graph.rescale import rescaled
from engine.protocol.checkpoint import CheckpointKind, StopMode
from engine.protocol.lifecycle import JobStatus
from engine.runtime.jobmanager.job_master import JobMaster
from engine.runtime.jobmanager.scheduling import RescaleRequested
from tests.sim.checkpoint_checks import SAVEPOINTS, CheckpointChecks
from tests.sim.leaders import SimJobManager
from tests.sim.programs import make_job
from tests.sim.shapes import Program
from tests.sim.world import SimulationError

if TYPE_CHECKING:
    from tests.sim.scenario import Simulation

__all__ = ["Plan", "UserJob", "draw_plan"]

#: A savepoint is asked for so often, at such distances in seconds.
_TRIES_MAX: Final = 4
_RETRY_S: Final = 0.3
#: Of a job without checkpoints whose leader was lost: nobody could tell what of it is visible.
_LOST_WHILE_PUBLISHING: Final = "made its output visible"


@dataclass(frozen=True)
class Plan:
    """Simulated seconds after the job was accepted; None = never."""

    savepoint_at: float | None = None
    cancels_with_savepoint: bool = False
    stop_at: float | None = None
    stop_mode: StopMode = StopMode.SUSPEND
    retain_at: float | None = None  #: cancel, and go on from the checkpoint that is retained
    claims: bool = False  #: whoever goes on owns what it goes on from
    #: of whoever goes on
    parallelism: int = 2


def draw_plan(rng: random.Random, program: Program, has_folder: bool) -> Plan:
    def at(probability: float) -> float | None:
        return program.about_s * rng.uniform(0.1, 0.9) if rng.random() < probability else None

    savepoint_at, stop_at, retain_at = at(0.2), at(0.2), at(0.1)
    parallelism, claims = rng.choice((1, 2, 3)), rng.random() < 0.5
    mode = StopMode.SUSPEND if program.has_windows else rng.choice((StopMode.SUSPEND, StopMode.DRAIN))
    cancels = rng.random() < 0.2
    if not program.checkpoints:
        return Plan()
    if stop_at is not None or not has_folder:
        retain_at = None
    return Plan(savepoint_at, cancels and retain_at is None, stop_at, mode, retain_at, claims, parallelism)


@final
class UserJob:
    """One program, until its results are there: one line of jobs, or several when one had to begin afresh."""

    def __init__(self, simulation: Simulation, number: int, program: Program, plan: Plan) -> None:
        self.program = program
        self.plan = plan
        self.masters: list[JobMaster] = []
        self.checks: list[CheckpointChecks] = []
        self.line = ""
        self.is_done = False
        self.was_canceled = False
        self._wants_cancel = False
        self._simulation = simulation
        self._world = simulation.world
        self._number = number
        self._num_lines = 0
        self._graph: JobGraph | None = None  #: of the current job
        self.restored_from = ""  #: the path that the current job began from
        self._claims = False
        #: the current job has been accepted by some JobManager
        self._is_accepted = False
        #: between two jobs: what follows is known
        self._is_between = False
        #: cancelled to go on from what is retained
        self._is_moving = False
        #: cancelled with this savepoint, to go on from it
        self._cancelled_with = ""
        #: a request that ends the job is under way: its answer says what follows
        self._awaits_stop = False
        #: savepoints that are this user's to throw away
        self._to_dispose: dict[str, None] = {}
        self._claimed: dict[str, None] = {}
        self._plan_begun = False
        self._leader_was_lost = False

    # --- submitting ---------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Submit the program afresh."""
        self._num_lines += 1
        self.line = f"{self._number}.{self._num_lines}"
        self._simulation.results.begin_line(self.line, self.program)
        self._submit_new(self.program.parallelism, "", claims=False)

    def _submit_new(self, parallelism: int, path: str, *, claims: bool) -> None:
        config = self._simulation.config_of(self.program)
        graph = make_job(self.program, self.line, JobID.generate(), config, parallelism)
        self._submit(graph, path, claims=claims)

    def _submit(self, graph: JobGraph, path: str, *, claims: bool) -> None:
        config = {key: value for key, value in graph.config.items() if not key.startswith("execution.state-recovery.")}
        if path:
            config["execution.state-recovery.path"] = path
            config["execution.state-recovery.claim-mode"] = "CLAIM" if claims else "NO_CLAIM"
        self._graph = dataclasses.replace(graph, config=config)
        self.restored_from, self._claims = path, claims
        self._awaits_stop = self._is_moving = self._is_between = self._is_accepted = False
        self._cancelled_with = ""
        self._send()

    def _send(self) -> None:
        graph = self._graph
        assert graph is not None
        if not self._simulation.cluster.jobmanager.is_ready:
            return  # ``leader_changed`` or ``leader_took_over`` follows
        dispatcher = self._simulation.cluster.jobmanager.dispatcher
        self._world.tell("user", "submits", f"{graph.job_id[:4]} of line {self.line} {self.restored_from[-40:]}")

        def answered(answer: Any) -> None:
            if isinstance(answer, EngineError):  # the disk is full just now: a user tries again
                self._world.tell("user", "refused", str(answer)[:80])
                self._world.after(0.5, lambda: self._send_again(graph))

        self._ask(lambda: dispatcher.submit_job(graph), answered)

    @property
    def job_id(self) -> JobID | None:
        """Of the current job."""
        return None if self._graph is None else self._graph.job_id

    def adopt(self, jobmanager: SimJobManager, master: JobMaster) -> None:
        """The current job begins, or goes on under another leader, who knows nothing of what the last one was asked."""
        former = None
        if self._is_accepted:
            former = self.checks[-1]
            self._leader_was_lost = True
            self._awaits_stop = self._is_moving = False
            if self._cancelled_with:
                self._to_dispose[self._cancelled_with] = None
                self._cancelled_with = ""
            self._world.tell("user", "sees", f"{master.job_id[:4]} go on under {jobmanager.name}")
        self._is_accepted = True
        self.masters.append(master)
        self.checks.append(self._simulation.watch(jobmanager, master, former))
        master._ended.add_done_callback(lambda ended: ended.exception() or self._soon(lambda: self._ended(master)))
        if not self._plan_begun:
            self._plan_begun = True
            self._begin_plan()

    def _send_again(self, graph: JobGraph) -> None:
        if self._graph is graph and not self._is_accepted:
            self._send()

    def _ask(self, question: Callable[[], Coroutine[Any, Any, Any]], answered: Callable[[Any], None]) -> None:
        """Call ``answered`` with the answer or the error; never when the JobManager dies before."""
        jobmanager = self._simulation.cluster.jobmanager
        if not jobmanager.is_ready:
            return

        async def ask() -> None:
            try:
                answer = await question()
            except EngineError as error:
                answer = error
            self._soon(lambda: answered(answer))

        jobmanager.loop.create_task(ask())

    def _soon(self, call: Callable[[], None]) -> None:
        """In the user's own time: an answer may be on its way when the JobManager dies."""
        self._world.after(0.001, call)

    @property
    def master(self) -> JobMaster | None:
        return self.masters[-1] if self.masters else None

    def _live_master(self) -> JobMaster | None:
        master = self.master
        if master is None or master.has_ended or not self._is_accepted:
            return None
        jobmanager = self._simulation.cluster.jobmanager
        return master if jobmanager.is_ready and self.checks[-1].jobmanager is jobmanager else None

    # --- the end of a job ---------------------------------------------------------------------------------------------

    def _ended(self, master: JobMaster) -> None:
        if master is self.master and master.has_ended and master._ended.exception() is None:
            self._ended_as(master.graph)

    def _ended_as(self, graph: ExecutionGraph) -> None:
        """The current job has ended so."""
        if self.is_done or self._awaits_stop or self._is_between:
            return
        status, job_id = graph.status, graph.job_graph.job_id
        checks = self.checks[-1]
        if self._is_moving and status is JobStatus.CANCELED:
            self._is_moving = False
            self._go_on_from_retained(checks)
            return
        if status is JobStatus.FINISHED and checks.stopped_with:
            self._go_on_from(checks.stopped_with)
            return
        if status is JobStatus.CANCELED and self._cancelled_with:
            self._go_on_from(self._cancelled_with)
            return
        self.is_done = True
        self.was_canceled = status is JobStatus.CANCELED
        if self.was_canceled and self.plan.retain_at is not None:
            for one in self.checks:
                one.is_retained = True
        if self._cancelled_with:
            self._to_dispose[self._cancelled_with] = None
        if status is JobStatus.CANCELED and not self._wants_cancel:
            self._world.fail(f"job {job_id[:4]} is CANCELED; nobody wanted that")
        elif graph.failure is not None and _LOST_WHILE_PUBLISHING in graph.failure.message:
            if self.program.checkpoints or not self._simulation.failover:
                self._world.fail(f"job {job_id[:4]}: {graph.failure.message}")
        elif status not in (JobStatus.FINISHED, JobStatus.CANCELED):
            self._world.fail(f"job {job_id[:4]} is {status.name}: {graph.failure}")
        elif status is JobStatus.FINISHED:
            self._simulation.check_results(self)

    def _go_on_from_retained(self, checks: CheckpointChecks) -> None:
        """A job that was cancelled. What it has retained is the user's."""
        durable = checks.durable
        if durable is None or durable.folder == self.restored_from:
            path, claims = self.restored_from, False
        else:
            path, claims = durable.folder, self.plan.claims
            checks.is_retained = not claims or self._simulation.num_retained > 1
        self._is_between = True
        self._world.tell("user", "moves", f"the job goes on from {path[-40:] or 'nothing'}")
        self._world.after(0.2, lambda: self._submit_new(self.plan.parallelism, path, claims=claims))

    def _go_on_from(self, savepoint: str) -> None:
        if self.plan.claims:
            self._claimed[savepoint] = None
        else:
            self._to_dispose[savepoint] = None
        self._is_between = True
        self._world.tell("user", "goes on", f"from {savepoint[-40:]} with parallelism {self.plan.parallelism}")
        claims = self.plan.claims
        self._world.after(0.2, lambda: self._submit_new(self.plan.parallelism, savepoint, claims=claims))

    # --- another JobManager -------------------------------------------------------------------------------------------

    def leader_changed(self) -> None:
        """The JobManager has died; another one is there and knows nothing. What goes on is another job: the numbers of
        attempts, which are in names of files, begin anew."""
        self._leader_was_lost = True
        if self.is_done or self._graph is None or self._is_between:
            return
        master = self.master
        if master is None or not self._is_accepted:
            self._send()
            return
        if master.has_ended:
            self._awaits_stop = False
            self._ended(master)
            return
        durable = self.checks[-1].durable
        if durable is not None and durable.folder:
            claims = durable.kind is CheckpointKind.CHECKPOINT
            self._world.tell("user", "recovers", f"{master.job_id[:4]} from {durable.checkpoint_id}")
            self._submit_new(self.plan.parallelism, durable.folder, claims=claims)
        elif durable is None and (self.restored_from or self.program.checkpoints):
            # From where it began: without a checkpoint it has committed nothing.
            self._submit_new(self.plan.parallelism, self.restored_from, claims=self._claims)
        else:
            self.begin()

    def leader_took_over(self) -> None:
        """With high availability: the jobs that have not ended go on already."""
        if self.is_done or self._graph is None or self._is_between:
            return
        if not self._is_accepted:
            self._send()
            return
        ended = self._simulation.cluster.jobmanager.dispatcher._ended_before.get(self._graph.job_id)
        if ended is not None:
            self._leader_was_lost = True
            self._awaits_stop = False
            self._world.tell("user", "hears", f"{self._graph.job_id[:4]} was {ended.status.name} before")
            self._ended_as(ended)

    # --- what the plan says -------------------------------------------------------------------------------------------

    def _begin_plan(self) -> None:
        plan, after = self.plan, self._world.after
        if plan.savepoint_at is not None:
            after(plan.savepoint_at, self._take_savepoint)
        if plan.stop_at is not None:
            after(plan.stop_at, self._stop)
        if plan.retain_at is not None:
            after(plan.retain_at, self._move)

    def _savepoint(self, master: JobMaster, answered: Callable[[Any], None], **options: Any) -> None:
        dispatcher = self._simulation.cluster.jobmanager.dispatcher
        self._ask(lambda: dispatcher.trigger_savepoint(master.job_id, SAVEPOINTS, **options), answered)

    def _again(self, what: Callable[[int], None], tries: int) -> None:
        """A user asks again when the job did not run just then."""
        if tries < _TRIES_MAX:
            self._world.after(_RETRY_S, lambda: what(tries + 1))

    def _take_savepoint(self, tries: int = 0) -> None:
        master = self._live_master()
        if master is None:
            self._again(self._take_savepoint, tries)
            return
        cancels = self.plan.cancels_with_savepoint
        self._world.tell("user", "savepoint", f"of {master.job_id[:4]}{', then cancels it' if cancels else ''}")

        def answered(answer: Any) -> None:
            if isinstance(answer, EngineError):
                self._world.tell("user", "no", f"savepoint: {str(answer)[:100]}")
                self._again(self._take_savepoint, tries)
                return
            self._world.tell("user", "has", f"savepoint {answer.checkpoint_id}")
            self._simulation.check_savepoint(answer.folder, answer.checkpoint_id)
            if cancels and master is self.master:
                self._cancelled_with = answer.folder
                self._awaits_stop = False
                if master.has_ended:
                    self._ended(master)
            else:
                self._to_dispose[answer.folder] = None

        self._awaits_stop = False
        self._savepoint(master, answered, cancel=cancels)

    def _stop(self, tries: int = 0) -> None:
        master = self._live_master()
        if master is None:
            self._again(self._stop, tries)
            return
        checks = self.checks[-1]
        self._world.tell("user", "stops", f"{master.job_id[:4]} with a savepoint: {self.plan.stop_mode.name}")
        self._awaits_stop = True

        def answered(answer: Any) -> None:
            self._awaits_stop = False
            if isinstance(answer, EngineError):
                self._world.tell("user", "no", f"stop: {str(answer)[:100]}")
                if (told := re.match(r"Savepoint (\S+) is complete, but", str(answer))) is not None:
                    self._to_dispose[told[1]] = None
                if "goes on from there" in str(answer) and checks.has_finished:
                    self._world.fail(f"job {master.job_id[:4]} is said to go on, but all of its tasks have finished")
                if master.has_ended:
                    self._ended(master)
                else:
                    self._again(self._stop, tries)
                return
            if master is not self.master:
                return  # the JobManager died meanwhile
            if not (master.has_ended and master.graph.status is JobStatus.FINISHED):
                self._world.fail(f"job {master.job_id[:4]} is stopped with a savepoint, but {master.graph.status.name}")
            if checks.stopped_with != answer.folder:
                self._world.fail(f"stopped with {checks.stopped_with}, but the answer is {answer.folder}")
            self._simulation.check_savepoint(answer.folder, answer.checkpoint_id)
            self._ended(master)

        self._savepoint(master, answered, stop=self.plan.stop_mode)

    def _move(self) -> None:
        master = self._live_master()
        if master is not None and not self._awaits_stop:
            self._world.tell("user", "cancels", f"{master.job_id[:4]} to go on elsewhere")
            self._is_moving = True
            self._cancel_job(master)

    def _cancel_job(self, master: JobMaster) -> None:
        dispatcher = self._simulation.cluster.jobmanager.dispatcher
        self._ask(lambda: dispatcher.cancel_job(master.job_id), lambda answer: None)

    def cancel(self) -> None:
        master = self._live_master()
        if master is not None:
            self._wants_cancel = True
            self._world.tell("user", "cancels", master.job_id[:4])
            self._cancel_job(master)

    def rescale(self, parallelism: int) -> None:
        """To a parallelism for which there may be no slots."""
        master = self._live_master()
        if master is None:
            return
        graph = master.graph.job_graph
        changed = rescaled(graph, {vertex.vertex_id: parallelism for vertex in graph.vertices if vertex.is_parallel})
        self._world.tell("user", "rescales", f"{master.job_id[:4]} to {parallelism}")

        async def rescale() -> None:
            master.post(RescaleRequested(changed))

        self._ask(rescale, lambda answer: None)

    # --- afterwards ---------------------------------------------------------------------------------------------------

    def dispose_savepoints(self) -> None:
        """All savepoints that are left must be whole; then none of their files may be left."""
        stopped_with = [folder for checks in self.checks for folder in checks.savepoints]
        for folder in dict.fromkeys([*self._to_dispose, *stopped_with]):
            if folder in self._claimed:
                continue
            self._simulation.check_savepoint(folder, None)

            def answered(answer: Any, folder: str = folder) -> None:
                if isinstance(answer, EngineError):
                    self._world.fail(f"savepoint {folder} cannot be disposed: {answer}")

            dispose = self._simulation.cluster.jobmanager.dispatcher.dispose_savepoint
            self._ask(functools.partial(dispose, folder), answered)

    def files_left(self) -> list[str]:
        """Return files of checkpoints and savepoints that nobody needs any more."""
        if self._leader_was_lost:  # a JobManager that dies leaves behind what only it knew
            checks = self.checks if self._simulation.failover else self.checks[-1:]
            return self._checkpoints_left(checks)
        savepoints = [f"{SAVEPOINTS}/savepoint-{master.job_id[:6]}-" for master in self.masters]
        files = self._simulation.cluster.files.files
        left = [path for path in files if path.startswith(tuple(savepoints))] if savepoints else []
        return left + self._checkpoints_left(self.checks)

    @staticmethod
    def _checkpoints_left(checks: list[CheckpointChecks]) -> list[str]:
        """A job's checkpoints are retained under whichever leader it ended."""
        retained = {one.job_id for one in checks if one.is_retained}
        return [path for one in checks if one.job_id not in retained for path in one.left_behind()]

    def where(self) -> str:
        master = self.master
        if master is None:
            return f"line {self.line} was never accepted"
        states = sorted(subtask.current.state.name for subtask in master.graph.all_subtasks())
        if master.graph.status is JobStatus.FAILED:
            raise SimulationError(f"job {master.job_id[:4]} is FAILED: {master.graph.failure}")
        return f"{master.job_id[:4]} of line {self.line} is {master.graph.status.name} {states}"
