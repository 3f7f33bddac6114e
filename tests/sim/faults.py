"""What goes wrong: drawn one after the other while the faults last, each aimed at something that is there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, final

from tests.sim.processes import SimTaskManager, pick

if TYPE_CHECKING:
    from tests.sim.scenario import Simulation

__all__ = ["Disturbance", "Faults"]

#: Seconds from the loss of a TaskManager until another one starts.
_REPLACED_AFTER: Final = (0.1, 2.0)
_LEADERS_MAX: Final = 3


@dataclass
class Disturbance:
    """What user functions look at."""

    poisons: int = 0  #: so many records are still to fail
    slow_until: float = 0.0
    starts_fail_until: float = 0.0  #: coordinators cannot start
    commits_fail_until: float = 0.0  #: of jobs with checkpoints


@final
class Faults:
    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._world = simulation.world
        self._cluster = simulation.cluster
        self._rng = self._world.rng("faults")
        self._is_over = False
        self._stopped: list[Any] = []
        self.num_faults = 0
        self.kinds: list[tuple[int, Callable[[], str | None]]] = [
            (4, self._kill_slot),
            (2, self._stop_slot),
            (1, self._hang_slot),
            (2, self._kill_taskmanager),
            (1, self._lose_host),
            (2, self._stop_taskmanager),
            (1, self._stop_jobmanager),
            (2, self._cut_control),
            (2, self._stall_control),
            (2, self._cut_data),
            (2, self._stall_data),
            (2, self._poison),
            (1, self._be_slow),
            (1, self._refuse_forks),
            (1, self._refuse_writes),
            (2, self._refuse_starts),
            (1, self._kill_zygote),
            (1, self._refuse_commits),
            (1, self._hang_worker),
            (2 * simulation.leaders_die, self._kill_jobmanager),
        ]
        if simulation.failover:
            self.kinds += [(4, self._kill_jobmanager), (4, self._pause_leader), (3, self._depose_leader)]
        if simulation.mostly_leaders:
            self.kinds = [
                (5, self._kill_jobmanager),
                (4, self._pause_leader),
                (4, self._depose_leader),
                (1, self._stall_control),
                (1, self._stall_data),
                (1, self._be_slow),
                (1, self._kill_slot),
            ]

    def begin(self) -> None:
        if self._simulation.faults_until and self._rng.random() < 0.2:
            self._world.parts["disturbance"].starts_fail_until = 1.2  # for the first attempts
        self._schedule_next()
        self._watch_taskmanagers()
        dies_at = self._simulation.leader_dies_at
        if dies_at is not None and dies_at < self._simulation.faults_until:
            self._world.at(dies_at, self._kill_jobmanager)

    def end(self) -> None:
        """From now on all goes well: what was stopped goes on, what is dead is replaced."""
        self._is_over = True
        self._world.tell("faults", "end")
        for stopped in self._stopped:
            stopped()
        self._stopped.clear()
        disturbance = self._world.parts["disturbance"]
        disturbance.poisons, disturbance.slow_until = 0, 0.0
        disturbance.starts_fail_until = disturbance.commits_fail_until = 0.0
        self._cluster.files.refuses_until = 0.0
        self._cluster.worker_hangs_until = 0.0
        for taskmanager in self._cluster.taskmanagers:
            taskmanager.fork_fails_until = 0.0

    def _schedule_next(self) -> None:
        pause = self._rng.expovariate(1 / self._simulation.fault_pause)
        if self._world.now + pause < self._simulation.faults_until:
            self._world.after(pause, self._happen)

    def _happen(self) -> None:
        if self._is_over:
            return
        kinds = [kind for weight, kind in self.kinds for _ in range(weight)]
        what = self._rng.choice(kinds)()
        if what is not None:
            self.num_faults += 1
            self._world.tell("FAULT", "", what)
        self._schedule_next()

    def _watch_taskmanagers(self) -> None:
        """Replace those that are gone, as YARN or a person would."""
        cluster = self._cluster
        for one in cluster.live_taskmanagers():
            if one.main.done():
                one.kill("it gave up", silently=False)
        missing = self._simulation.num_taskmanagers - len(cluster.live_taskmanagers())
        for _ in range(missing):
            cluster.add_taskmanager(self._simulation.slots_per_taskmanager, self._simulation.taskmanager_config)
        self._world.after(self._rng.uniform(*_REPLACED_AFTER), self._watch_taskmanagers)

    # --- processes ----------------------------------------------------------------------------------------------------

    def _slot(self) -> Any:
        return pick(self._rng, self._cluster.live_slots)

    def _taskmanager(self) -> SimTaskManager | None:
        found: SimTaskManager | None = pick(self._rng, self._cluster.live_taskmanagers())
        return found

    def _kill_slot(self) -> str | None:
        slot = self._slot()
        if slot is None:
            return None
        slot.kill("kill -9")
        return f"slot {slot.name} is killed"

    def _stop_slot(self) -> str | None:
        slot = self._slot()
        if slot is None:
            return None
        seconds = self._rng.choice((0.05, 0.5, 3.0))
        slot.stop()
        self._continue_after(seconds, slot.continue_)
        return f"slot {slot.name} is stopped for {seconds} s"

    def _hang_slot(self) -> str | None:
        """A function never comes back; soon another slot of the job is lost, and the task does not hear its cancel."""
        slot = self._slot()
        others = [] if slot is None else [one for one in self._cluster.live_slots if one is not slot]
        other = pick(self._rng, [one for one in others if one.init.job.job_id == slot.init.job.job_id])
        if other is None:
            return None
        slot.hang()
        self._stopped.append(slot.come_back)
        self._world.after(0.3, lambda: other.kill("kill -9, while another hangs"))
        return f"a function in slot {slot.name} hangs for ever"

    def _continue_after(self, seconds: float, go_on: Callable[[], None]) -> None:
        self._stopped.append(go_on)
        self._world.after(seconds, go_on)

    def _kill_taskmanager(self) -> str | None:
        taskmanager = self._taskmanager()
        if taskmanager is None:
            return None
        taskmanager.kill("kill -9", silently=False)
        return f"{taskmanager.name} is killed"

    def _lose_host(self) -> str | None:
        taskmanager = self._taskmanager()
        if taskmanager is None:
            return None
        taskmanager.kill("its host lost power", silently=True)
        return f"the host of {taskmanager.name} is gone"

    def _stop_taskmanager(self) -> str | None:
        taskmanager = self._taskmanager()
        if taskmanager is None:
            return None
        seconds = self._rng.choice((0.3, 3.0, 6.0))
        taskmanager.loop.stop_process()
        self._continue_after(seconds, taskmanager.loop.continue_process)
        return f"{taskmanager.name} is stopped for {seconds} s"

    def _stop_jobmanager(self) -> str | None:
        seconds = self._rng.choice((0.1, 1.0, 5.0))
        loop = self._cluster.jobmanager.loop
        if loop.is_dead:
            return None
        loop.stop_process()
        self._continue_after(seconds, loop.continue_process)
        return f"the JobManager is stopped for {seconds} s"

    def _kill_jobmanager(self) -> str | None:
        """Another one becomes the leader, before or after the TaskManagers have noticed."""
        cluster, leader = self._cluster, self._cluster.jobmanager
        if leader.loop.is_dead:
            return None
        if not self._simulation.failover and (not leader.is_ready or len(cluster.jobmanagers) > _LEADERS_MAX):
            return None
        silently = self._rng.random() < 0.5
        self._delay_last_words()
        self._world.tell("FAULT", "", f"the JobManager {leader.name} dies")
        leader.die(silently=silently)
        self._world.after(self._rng.choice((0.05, 0.5, 3.0)), lambda: cluster.start_jobmanager(after=leader))
        return f"the JobManager {leader.name} is killed{', its host gone' if silently else ''}"

    def _delay_last_words(self) -> None:
        """Of a leader, to some TaskManagers."""
        for taskmanager in self._cluster.live_taskmanagers():
            if self._rng.random() < 0.3 and taskmanager.link is not None:
                taskmanager.link.stall(self._rng.choice((0.2, 1.0, 3.0)))

    def _pause_leader(self) -> str | None:
        """For longer than its session, mostly."""
        leader = self._cluster.jobmanager
        if leader.loop.is_dead or leader.loop.is_stopped:
            return None
        seconds, session = self._rng.choice((0.5, 3.0, 6.0)), self._rng.uniform(0.3, 2.0)
        told = seconds + self._rng.choice((0.0, 0.2, 2.0))
        leader.loop.stop_process()
        self._continue_after(seconds, leader.loop.continue_process)
        if seconds > session:
            self._world.after(session, lambda: self._cluster.start_jobmanager(after=leader))
            self._world.after(told, leader.revoke)
        return f"the leader {leader.name} is paused for {seconds} s, its session lasts {session:.1f} s"

    def _depose_leader(self) -> str | None:
        """Its session ends while it works, and it hears of it later: for a while two believe that they lead."""
        leader = self._cluster.jobmanager
        if leader.loop.is_dead or not leader.is_ready:
            return None
        told = self._rng.choice((0.001, 0.3, 3.0))
        self._delay_last_words()
        self._cluster.start_jobmanager(after=leader)
        self._world.after(told, leader.revoke)
        return f"the leader {leader.name} is deposed, and told after {told} s"

    def _refuse_forks(self) -> str | None:
        taskmanager = self._taskmanager()
        if taskmanager is None:
            return None
        taskmanager.fork_fails_until = self._world.now + 0.5
        return f"{taskmanager.name} cannot fork for 0.5 s"

    # --- wires --------------------------------------------------------------------------------------------------------

    def _cut_control(self) -> str | None:
        taskmanager = self._taskmanager()
        if taskmanager is None or taskmanager.link is None:
            return None
        taskmanager.link.cut()
        return f"the connection of {taskmanager.name} to the JobManager is cut"

    def _stall_control(self) -> str | None:
        taskmanager = self._taskmanager()
        if taskmanager is None or taskmanager.link is None:
            return None
        seconds = self._rng.choice((0.2, 1.0, 6.0))
        taskmanager.link.stall(seconds)
        self._cluster.unreachable_until[taskmanager.name] = self._world.now + seconds
        return f"the network between {taskmanager.name} and the JobManager is down for {seconds} s"

    def _cut_data(self) -> str | None:
        pair = pick(self._rng, self._cluster.network.live_pairs())
        if pair is None:
            return None
        self._cluster.network.cut(pair)
        return f"the data connection {pair[0].owner.name} – {pair[1].owner.name} is reset"

    def _stall_data(self) -> str | None:
        pair = pick(self._rng, self._cluster.network.live_pairs())
        if pair is None:
            return None
        seconds = self._rng.choice((0.2, 1.0, 3.0))
        self._cluster.network.stall(pair, seconds)
        return f"the data connection {pair[0].owner.name} – {pair[1].owner.name} stalls for {seconds} s"

    # --- user code and disks ------------------------------------------------------------------------------------------

    def _poison(self) -> str | None:
        self._world.parts["disturbance"].poisons += 1
        return "a record is poisoned"

    def _be_slow(self) -> str | None:
        self._world.parts["disturbance"].slow_until = self._world.now + 1.0
        return "user functions are slow for 1 s"

    def _refuse_writes(self) -> str | None:
        files = self._cluster.files
        seconds = self._rng.choice((0.1, 1.0, 3.0))
        files.refuses_until = self._world.now + seconds
        files.refuse_share = self._rng.choice((0.3, 1.0))
        return f"the disk is full for {seconds} s"

    def _refuse_starts(self) -> str | None:
        seconds = self._rng.choice((0.3, 1.0))
        self._world.parts["disturbance"].starts_fail_until = self._world.now + seconds
        return f"coordinators cannot start for {seconds} s"

    def _refuse_commits(self) -> str | None:
        self._world.parts["disturbance"].commits_fail_until = self._world.now + 0.5
        return "commits fail for 0.5 s"

    def _kill_zygote(self) -> str | None:
        taskmanager = self._taskmanager()
        if taskmanager is None or taskmanager.zygote is None:
            return None
        taskmanager.zygote.kill()
        return f"the zygote of {taskmanager.name} is killed"

    def _hang_worker(self) -> str | None:
        seconds = self._rng.choice((0.5, 3.0, 35.0))  # JobCoordinators gives up after 1 s, or after 30 s
        self._cluster.worker_hangs_until = self._world.now + seconds
        return f"the JobManager's file system hangs for {seconds} s"
