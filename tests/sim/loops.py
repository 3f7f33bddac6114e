"""An asyncio loop in simulated time, one per process: a process that is stopped or dead is a loop that is not turned.

Tasks and futures hash by number: sets of them are gone through in the same order in every run.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from typing import Any, Final, final

from tests.sim.world import SimulationError, Timer, World

__all__ = ["SimLoop"]

_numbers = itertools.count(1)
#: Turns that a loop gets at the end of the simulation to unwind what is left.
_LAST_TURNS: Final = 2000


class _Numbered:
    def __hash__(self) -> int:
        number: int | None = getattr(self, "_sim_number", None)
        if number is None:
            number = self._sim_number = next(_numbers)
        return number


class SimTask(_Numbered, asyncio.Task):  # type: ignore[type-arg]
    pass


class SimFuture(_Numbered, asyncio.Future):  # type: ignore[type-arg]
    pass


class _NothingToSelect:
    def select(self, timeout: float | None) -> list[Any]:
        return []


@final
class SimLoop(asyncio.BaseEventLoop):
    def __init__(self, world: World, name: str) -> None:
        super().__init__()
        self.world = world
        self.name = name
        self.is_stopped = False  #: SIGSTOP
        self.is_dead = False
        self.continued_at = 0.0
        self._handed_over_at = 0.0
        self._selector = _NothingToSelect()
        self._armed: Timer | None = None
        self._armed_at = 0.0
        self._time_passed = 0.0  #: at the very end, when the world's time stands still
        self._live: dict[SimTask, None] = {}
        self.set_task_factory(self._make_task)
        self.set_exception_handler(self._on_exception)

    # --- asyncio

    def time(self) -> float:
        return self.world.now + self._time_passed

    def create_future(self) -> asyncio.Future[Any]:
        return SimFuture(loop=self)

    def _make_task(self, loop: Any, work: Coroutine[Any, Any, Any], **options: Any) -> SimTask:
        task = SimTask(work, loop=loop, **options)
        self._live[task] = None
        task.add_done_callback(lambda task: self._live.pop(task, None))  # type: ignore[arg-type]
        return task

    def _process_events(self, events: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> Any:
        handle = super().call_soon(callback, *args, context=context)
        self._arm(self.world.now)
        return handle

    def call_soon_threadsafe(self, callback: Any, *args: Any, context: Any = None) -> Any:
        """What a thread hands over comes in order, and a moment later: the loop has to wake up, or is busy."""
        rng = self.world.rng(f"{self.name} threads")
        delay = rng.uniform(0.01, 0.05) if rng.random() < 0.1 else rng.uniform(0.00002, 0.002)
        self._handed_over_at = max(self._handed_over_at + 1e-9, self.world.now + delay)
        self.world.at(self._handed_over_at, lambda: self.call_soon(callback, *args, context=context))

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> Any:
        handle = super().call_at(when, callback, *args, context=context)
        self._arm(when)
        return handle

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        """Blocking work: done at one instant, some time later."""
        future = self.create_future()

        def work() -> None:
            if future.cancelled() or self.is_dead:
                return
            try:
                future.set_result(func(*args))
            except BaseException as error:
                future.set_exception(error)

        self.call_later(self.world.rng(f"{self.name} io").uniform(0.0002, 0.003), work)
        return future

    def _on_exception(self, loop: Any, context: dict[str, Any]) -> None:
        if self.world.is_over or self.is_dead:
            return
        error = context.get("exception")
        self.world.tell(self.name, "EXCEPTION", f"{context.get('message')}: {error!r}")
        failure = SimulationError(f"{self.name}: {context.get('message')}: {error!r}")
        failure.__cause__ = error
        self.world.fail(failure)

    # --- turns

    def _arm(self, when: float) -> None:
        if self.is_dead or self.world.is_over:
            return
        when = max(when, self.world.now)
        if self._armed is not None:
            if self._armed_at <= when:
                return
            self._armed.cancel()
        self._armed_at = when
        self._armed = self.world.at(when, self._turn)

    def _turn(self) -> None:
        self._armed = None
        if self.is_dead or self.is_stopped:
            return
        self._turn_once()
        if self._ready:  # type: ignore[attr-defined]
            self._arm(self.world.now)
        elif self._scheduled:  # type: ignore[attr-defined]
            self._arm(self._scheduled[0]._when)  # type: ignore[attr-defined]

    def _turn_once(self) -> None:
        asyncio._set_running_loop(self)
        try:
            self._run_once()  # type: ignore[attr-defined]
        finally:
            asyncio._set_running_loop(None)

    def stop_process(self) -> None:
        self.is_stopped = True

    def continue_process(self) -> None:
        self.is_stopped = False
        self.continued_at = self.world.now
        self._arm(self.world.now)

    def kill(self) -> None:
        self.is_dead = True

    def unwind(self) -> None:
        """The simulation is over: end what is left without a trace, so that nothing is destroyed while it waits."""
        assert self.world.is_over
        for _ in range(_LAST_TURNS):
            if not self._live:
                break
            for task in list(self._live):
                task.cancel()
            self._time_passed += 1.0
            self._turn_once()
        self._ready.clear()  # type: ignore[attr-defined]
        self._scheduled.clear()  # type: ignore[attr-defined]
        self._closed = True
