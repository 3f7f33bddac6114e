"""Whose code is running: the clock of operators, and looks at a thread's stack."""

from __future__ import annotations

import sys
import threading

from engine.core.ids import ExecutionAttemptID
from engine.operators.stateless import FilterSpec, MapSpec
from engine.runtime.taskmanager.operator_clock import OperatorClock
from engine.runtime.taskmanager.stack_sampler import StackSampler
from tests.testing.patience import until
from tests.unit.runtime.taskmanager.test_fused_chains import Run, columns_of


def test_time_goes_to_the_operator_that_runs_and_not_to_those_behind_it():
    now_ns = 0
    clock = OperatorClock(2, lambda: now_ns)
    clock.enter(0)
    now_ns += 3_000_000
    before = clock.enter(1)
    now_ns += 5_000_000
    exits = clock.enter(2)
    now_ns += 7_000_000
    clock.enter(exits)
    clock.enter(before)
    now_ns += 2_000_000
    clock.enter_nobody()
    now_ns += 100_000_000
    clock.enter(1)
    assert [clock.busy_ms(index) for index in (0, 1, 2)] == [5, 5, 7]


def test_operators_tell_records_batches_and_what_ran_them():
    with Run(MapSpec(lambda r: (r[0] + 1, r[1])), FilterSpec(lambda r: r[0] > 2), MapSpec(lambda r: print)) as run:
        for _ in range(2):
            run.chain.process_batch(0, columns_of([1, 2, 3], ["x", "y", "z"]))
        metrics = run.chain.operator_metrics()
    seen = [(one.name, one.records_out, one.batches_out, one.tier, one.fused_with) for one in metrics]
    assert seen == [
        ("op0", 6, 2, "compiled", ""),
        ("op1", 4, 2, "compiled", "op0"),
        ("op2", 4, 2, "interpreted (it uses a builtin_function_or_method)", "op0"),
        ("(exchange)", 4, 2, "", ""),
    ]


def test_generated_loops_are_seen_as_the_engines():
    seen = []

    def caller(row: tuple[int, str]) -> int:
        frame = sys._getframe(1)
        seen.append(f"{frame.f_globals.get('__name__')}.{frame.f_code.co_qualname}")
        return row[0]

    with Run(MapSpec(caller)) as run:
        run.chain.process_batch(0, columns_of([1], ["x"]))
    assert seen == ["engine.operators.row_steps.loop"]


def test_a_look_at_a_thread_finds_the_function_it_is_in_and_leaves_out_what_called_it():
    entered, go_on = threading.Event(), threading.Event()

    def busy_function() -> None:
        entered.set()
        go_on.wait(600)

    def base() -> None:
        busy_function()

    thread = threading.Thread(target=base)
    thread.start()
    try:
        assert entered.wait(60)
        attempt_id = ExecutionAttemptID("attempt")
        running: list[ExecutionAttemptID | None] = [attempt_id]
        assert thread.ident is not None
        sampler = StackSampler(thread.ident, lambda: running[0], base.__code__)
        seen_id, stack = sampler.look()
        assert seen_id == attempt_id
        assert "busy_function" in stack[0]
        assert "wait" in stack[-1]
        assert not any("base" in frame for frame in stack)

        counted = []
        sampler.start(5, 0.001, counted.append)
        until(lambda: counted, "a sample")
        assert sum(counted[0][attempt_id].values()) == 5

        running[0] = None
        assert sampler.look() == (None, ())
    finally:
        go_on.set()
        thread.join()


def test_while_a_thread_is_looked_at_the_interpreter_switches_at_once_and_as_before_afterwards():
    before_s = sys.getswitchinterval()
    seen_s: list[float] = []
    ended: list[object] = []
    go_on = threading.Event()

    def running() -> None:
        seen_s.append(sys.getswitchinterval())
        go_on.wait(60)

    for _ in range(2):  # at the same time, as of two vertices in one slot
        StackSampler(threading.get_ident(), running, (lambda: None).__code__).start(1, 0.0, ended.append)
    until(lambda: len(seen_s) == 2, "both looking")
    assert max(seen_s) <= 0.0001
    go_on.set()
    until(lambda: len(ended) == 2, "both done")
    assert sys.getswitchinterval() == before_s
