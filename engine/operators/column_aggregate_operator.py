"""Keyed running sum, min, max, min_by, max_by, and reduce with a function that folds field by field or picks a record,
over columns: what ``operators/aggregate`` does on rows, a batch at a time.

Results are those of the row operator, value by value. Where columns cannot give them (a record that is no column batch,
a null to be added, a sum beyond 64 bits, a sum of decimals that Python rounds, nested types, another function than was
thought) the operator hands its state to the row operator and goes on with that: the stream does not notice. Streaming
emits a result per record, ``emit_final`` (batch) one per key at the end.

Each key's state is in one of two parts, the slots or the row operator's own. A restored subtask may find both, as those
it follows may have worked in different ways; what the row operator has, only rows can go on with.

State that is more than its share of memory lies in files, partition by partition (``state/spilling_slots``). Then rows
wait until there are many, and all of a partition are taken up together; their results come in the order of the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, final

from engine.core.arrow_arrays import arrow_of
from engine.core.dictionaries import plain_columns, plain_type
from engine.core.records import BATCH_ROWS_MAX, Batch, ColumnBatch, Named, RowBatch
from engine.operators.after_columns import SLOTS_PART
from engine.operators.base import Operator, OperatorContext, Output
from engine.operators.column_aggregate import ColumnAggregateSpec, ColumnReduceSpec, fields_of, row_spec
from engine.operators.column_fields import KEY_FIELDS, has_fields, named_schema
from engine.operators.column_layout import (
    Layout,
    batch_of,
    folded_of,
    held_kinds,
    layout_of,
    result,
    rows_before_null,
)
from engine.operators.computed_keys import KeysBeside, WithoutKeys, own_records, python_keys
from engine.operators.handed_over import BEYOND_64_BITS, NEEDS_A_VALUE, ROUNDED_DECIMALS, why_handed_over
from engine.operators.held_part import HELD_PART, HeldPart, Waiting
from engine.operators.held_rows import HeldRows, Results, TakenRows
from engine.operators.keyed import KEYED_PART
from engine.operators.keys import ComposedKey
from engine.operators.memory_watch import MemoryWatch
from engine.operators.record_choice import RecordChoice
from engine.state.key_groups import key_group_range
from engine.time.windows import TIME_MAX_MS

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from engine.operators.column_choice import ChosenRows
    from engine.operators.column_ranks import Ranks
    from engine.operators.row_columns import RowColumns
    from engine.operators.small_rows import SmallRows
    from engine.state.slot_state import SlotState
    from engine.state.spilling_slots import SpillingSlots

    Array = np.ndarray[Any, Any]

__all__ = ["ColumnAggregateOperator"]

#: Rows wait for so long at least, and for so many times what the last ones took, unless there is no room for more.
_WAIT_MIN_MS: Final = 20
_WAIT_FACTOR: Final = 3
#: So long rows are taken up when it is time to, before it is the turn of others.
_TURN_MS: Final = 5
#: A partition that is taken up, in batches of results that are emitted: steps are of about the same time.
_PART_STEPS: Final = 8


@final
class ColumnAggregateOperator(Operator):
    takes_objects = True

    def __init__(self, spec: ColumnAggregateSpec | ColumnReduceSpec) -> None:
        self._spec = spec
        self._row_spec = row_spec(spec)
        self._rows: Any = self._row_spec.build_on_rows()
        self._keys = KeysBeside(spec.key)
        #: the row operator has taken over
        self._is_on_rows = False
        self._layout: Layout | None = None
        self._chosen: ChosenRows | None = None
        self._small: SmallRows | None = None
        #: slots to hand over when the last batch was left half way; None = all
        self._trimmed: Array | None = None

    def open(self, ctx: OperatorContext, out: Output) -> None:
        from engine.operators import decimal_kernels
        from engine.operators.column_kernels import RUNNING
        from engine.operators.small_rows import small_rows_of
        from engine.state.slot_expiry import Expiry
        from engine.state.spilling_slots import HELD_SHARE, NUM_PARTITIONS, SpillingSlots

        super().open(ctx, out)
        self._watch = MemoryWatch(ctx)
        self._rows.open(ctx, out)
        if self._spec.key is not None and self._spec.key.num_computed:
            self.out = WithoutKeys(out)
        self._small_rows = small_rows_of
        #: by kind and whether values are floats, None = lanes of decimals
        self._kernels: dict[tuple[str, bool | None], Any] = {
            **RUNNING,
            ("min", None): decimal_kernels.running_min_of_lanes,
            ("max", None): decimal_kernels.running_max_of_lanes,
        }
        runtime = ctx.runtime_context
        max_parallelism = runtime.get_max_number_of_parallel_subtasks()
        is_tuple = self._is_tuple = isinstance(self._spec.key_selector, ComposedKey)
        self._slots: SpillingSlots = SpillingSlots(
            max_parallelism,
            key_group_range(
                runtime.get_index_of_this_subtask(), runtime.get_number_of_parallel_subtasks(), max_parallelism
            ),
            is_tuple=is_tuple,
            folder=ctx.work_dir,
            bytes_max=self._watch.limit_bytes,
            expiry=Expiry(self._spec.ttl_ms, ctx.clock) if self._spec.ttl_ms else None,
        )
        #: what rows that wait may have, who need three times as much while they are taken up, and partitions that stay
        self._part_bytes_max = int(self._watch.limit_bytes * HELD_SHARE)
        self._held_rows = HeldRows(self._part_bytes_max, NUM_PARTITIONS)
        #: takes up rows that were held while others gather; steps of it, and the time that they took
        self._run: Iterator[int] | None = None
        #: what it takes up, how much of that it has, and what came of it
        self._taken: TakenRows | None = None
        self._num_taken_up = 0
        self._results: Results | None = None
        self._steps_done = self._steps_max = self._run_ms = 0
        #: when to begin with the rows that are held, or to go on, and how long they are to wait
        self._due_ms: int | None = None
        self._wait_ms = _WAIT_MIN_MS
        ctx.state.add_keyed(SLOTS_PART, self._slots)
        self._held_part = HeldPart(max_parallelism, is_tuple=is_tuple)
        ctx.state.add_keyed(HELD_PART, self._held_part)
        self._held_part.waiting, self._held_part.num_waiting = self._all_waiting, self._num_waiting
        if self._held_part.is_restored:
            self._due_ms = ctx.clock.now_ms()
        #: all slots, or those of the partition that is taken up
        self._state: SlotState = self._slots.slots
        self._is_on_rows = ctx.state.keyed[KEYED_PART].num_entries() > 0
        if self._state.note:
            self._layout = self._layout_of_note(self._state.note)
            if self._layout is not None:
                self._slots.take_longer(held_kinds(self._layout))

    # --- records -----------------------------------------------------------------------------------------------------

    def process_batch(self, input_index: int, batch: Batch) -> None:
        if self._held_part.is_restored:
            self._take_restored()
        columns = None
        if not self._is_on_rows and not self._slots.has_others and isinstance(batch, ColumnBatch) and not batch.scalar:
            keyed = self._keys.of(batch)
            if keyed is None:
                self._note_rows(self._keys.why)
            else:
                columns = self._known_columns(keyed.columns, batch.named)
            if columns is not None and self._slots.is_spilled:
                columns = self._with_room(plain_columns(columns), batch.timestamps_ms)
        if columns is None:
            if not self._slots.has_others:
                self._note_rows(why_handed_over(batch))
            self._hand_over()
            self._rows.process_batch(input_index, batch)
            return
        assert isinstance(batch, ColumnBatch)
        if self._slots.is_spilled:
            self._hold(columns, batch.timestamps_ms)
            return
        done = self._process_columns(columns, batch.timestamps_ms)
        if done < len(batch):
            self._note_rows(self._why_not(columns.slice(done)))  # if it was no sum
        self._end_batch(input_index, batch, done)

    def _end_batch(self, input_index: int, batch: Batch, done: int) -> None:
        """So many rows have been taken up: let rows go on with the others; look after the memory."""
        if done < len(batch):
            self._hand_over()
            self._rows.process_batch(input_index, batch.slice(done, len(batch)))
            return
        self._give_back_expired()
        if self._slots.is_being_cut or self._watch.must_spill(self._state.nbytes):
            self._slots.spill(len(batch))
            if self._slots.is_spilled:
                self._state, self._chosen = self._slots.slots, None

    def _give_back_expired(self, *, is_epoch_over: bool = False) -> None:
        if not self._slots.is_being_cut and self._state.give_back_expired(is_epoch_over=is_epoch_over):
            self._chosen = None  # slots have got other numbers

    def process_typed(self, input_index: int, batch: RowBatch, columns: RowColumns) -> None:
        is_off = self._is_on_rows or self._slots.has_others or self._slots.is_spilled or self._held_part.is_restored
        is_small = self._spec.rows_behind and not is_off
        self._small = small = self._small_rows(self._small, self._layout, columns) if is_small else None
        if small is None or (few := small.read(batch)) is None:
            return super().process_typed(input_index, batch, columns)
        found = self._state.find_prepared(few.keys, len(batch))
        results = None if found[1].size else small.results(few, found[0], self._state, self._chosen)
        if results is None:  # keys that are new have to be begun
            made: Any = columns.of(batch)
            self._end_batch(input_index, batch, self._process_columns(made.columns, made.timestamps_ms, found))
            return None
        self.out.emit(results)
        if len(results) < len(batch):
            self._note_rows(BEYOND_64_BITS)
        if small.has_grown or self._slots.is_being_cut or len(results) < len(batch):
            self._end_batch(input_index, batch, len(results))

    def _known_columns(self, columns: pa.RecordBatch, named: Named) -> pa.RecordBatch | None:
        """Return the columns if they can be taken up, None if rows have to."""
        layout = self._layout
        if layout is not None and layout.named != named:
            return None
        if layout is not None and layout.schema.equals(columns.schema):
            return columns
        if layout is not None:
            is_known = layout.schema.types == list(map(plain_type, columns.schema.types))
            tidy = layout.only_keys
            return plain_columns(columns, lambda: tidy) if is_known else None
        columns = plain_columns(columns)
        if not has_fields(named, fields_of(self._spec)):
            return None
        schema = named_schema(columns.schema, named)
        layout = layout_of(schema, self._spec.key_selector, self._row_spec)
        if layout is None or layout.sums_a_key:
            return None
        self._layout = layout
        if self._spec.key is not None:  # rows that go on with this are told by nobody else what the key is
            fields = ",".join(map(str, layout.keys)).encode()
            schema = schema.with_metadata({**(schema.metadata or {}), KEY_FIELDS: fields})
        self._state.note = schema.serialize().to_pybytes()
        self._state.define(
            [columns.schema.types[key] for key in layout.keys],
            held_kinds(layout),
        )
        return columns

    def _why_not(self, columns: pa.RecordBatch) -> str:
        """Return why the first of these rows is not for columns."""
        assert self._layout is not None
        compared = [(self._layout.is_decimal(index), columns.column(index)) for index in self._layout.folded]
        is_rounded = any(is_decimal and column[0].is_valid for is_decimal, column in compared)
        return ROUNDED_DECIMALS if is_rounded else NEEDS_A_VALUE

    def _process_columns(self, columns: pa.RecordBatch, stamps: Array | None, found: Any = None) -> int:
        """Take up the rows and emit; return how many, fewer than all if the next one is not for columns. ``found``:
        what the state has found for their keys, if it has."""
        import numpy as np

        from engine.state.arrow_views import values_of

        layout = self._layout
        assert layout is not None
        given_columns, num_valid = columns, rows_before_null(layout, columns)
        if num_valid < columns.num_rows:
            columns = columns.slice(0, num_valid)
            stamps = None if stamps is None else stamps[:num_valid]
        given = folded_of(layout, columns, self._state) if num_valid else None
        if given is None:
            if given_columns.num_rows:
                is_cut = num_valid < given_columns.num_rows
                self._note_rows(self._why_not(given_columns) if is_cut else "values that kernels do not take")
            return 0
        state = self._state
        slots, first = found or state.find([columns.column(key) for key in layout.keys])
        before = state.num_slots - first.size
        begun = state.touch(slots, first)  # the first rows of new slots, and of those whose values have expired
        for index, values in given.items():
            if layout.values is not None and begun.size and layout.values.is_computed(index):
                values[begun] = values_of(columns.column(index))[begun]  # the first record is the result
        new = slice(before, before + first.size) if begun.size == first.size else slots[begun]
        self._begin_slots(layout, new, columns, begun, given)
        if layout.choice is not None:
            self._choose(layout, layout.choice, columns, given, (slots, begun), stamps)
            return num_valid
        after, done = self._fold(layout, slots, given)
        state.mark(slots)
        if done < slots.size:  # forget the slots that rows behind have begun
            self._note_rows(ROUNDED_DECIMALS if any(map(layout.is_decimal, layout.folded)) else BEYOND_64_BITS)
            self._trimmed = np.setdiff1d(np.arange(state.num_slots), slots[begun[begun >= done]])
        if not self._spec.emit_final:
            some = columns if done == columns.num_rows else columns.slice(0, done)
            self._emit(layout, some, slots[:done], after, stamps)
        return done

    def _fold(self, layout: Layout, slots: Array, given: dict[int, Any]) -> tuple[dict[int, Any], int]:
        """Take up the values of all rows, or of those before a sum that does not fit; return what each row
        gives, by column, and how many rows these are."""
        import numpy as np

        done: int = slots.size
        after: dict[int, Any] = {}
        sums = [index for index, kind in layout.folded.items() if kind == "sum" and self._held(index).dtype.kind == "i"]
        reached: dict[int, int] = {}
        for index in sums:  # first, as they may stop; what is too much is taken back
            if layout.is_decimal(index):
                from engine.operators.decimal_folds import add_up

                column: Any = self._state.columns[layout.name_of(index)]
                after[index], done = add_up(column, slots, given[index])  # of decimals, there is but one aggregate
                continue
            after[index] = np.empty(slots.size, np.int64)
            reached[index] = int(self._kernels["sum", False](slots, given[index], self._held(index), after[index]))
            done = min(done, reached[index])
        for index in reached if done < slots.size else ():
            excess = slice(done, reached[index])
            np.subtract.at(self._held(index), slots[excess], given[index][excess].astype(np.int64, copy=False))
            after[index] = after[index][:done]
        slots = slots[:done]
        for index, kind in layout.folded.items():
            if kind == "last":
                after[index] = given[index][:done]
                last = result(kind, after[index], layout.types[index])
                self._state.columns[layout.name_of(index)].put(slots, last)
            elif layout.is_ranked(index):
                ranks = self._ranks(layout, index, given[index].slice(0, done), slots)
                reached_ranks = np.empty(done, np.int64)
                self._kernels[kind, False](slots, ranks.values, ranks.held, reached_ranks)
                ranks.put_back()
                after[index] = ranks.column(reached_ranks)
            elif index not in after:
                held = self._held(index)
                after[index] = np.empty((done, *held.shape[1:]), held.dtype)
                is_float = None if held.ndim == 2 else held.dtype == np.float64
                self._kernels[kind, is_float](slots, given[index][:done], held, after[index])
        return after, done

    def _ranks(self, layout: Layout, index: int, values: pa.Array, slots: Array) -> Ranks:
        from engine.operators.column_ranks import Ranks

        return Ranks(values, self._state.columns[layout.name_of(index)], slots, self._state.num_slots)

    def _choose(
        self,
        layout: Layout,
        choice: RecordChoice,
        columns: pa.RecordBatch,
        given: dict[int, Any],
        found: tuple[Array, Array],
        stamps: Array | None,
    ) -> None:
        """Let the records of new values take the place of those so far, and emit. ``found``: slots, first rows."""
        import numpy as np

        from engine.operators.column_choice import ChosenRows, mixed_column

        slots, first = found
        (compared,) = layout.folded
        if self._chosen is None:
            self._chosen = ChosenRows(choice)
        values = columns.column(compared)
        if layout.is_ranked(compared):
            ranks = self._ranks(layout, compared, values, slots)
            reached, chosen = self._chosen.choose(slots, first, ranks.values, ranks.held)
            ranks.put_back()
            after = ranks.column(reached)
        else:
            after, chosen = self._chosen.choose(slots, first, given[compared], self._held(compared))
        held = {index: self._state.columns[layout.name_of(index)] for index in layout.kept}
        if not self._spec.emit_final:
            arrays = list(columns.columns)
            arrays[compared] = result("compared", after, layout.types[compared])
            earlier = np.flatnonzero(chosen < 0)
            for index, column in held.items():
                arrays[index] = mixed_column(columns.column(index), column, slots, (chosen, earlier))
        taken = np.flatnonzero(chosen == np.arange(chosen.size))
        if taken.size:  # in a long stream of small batches that is rare
            rows = arrow_of(taken)
            for index, column in held.items():
                column.put(slots[taken], columns.column(index).take(rows))
        self._state.mark(slots if self._spec.ttl_ms else slots[taken])
        if not self._spec.emit_final:
            self.out.emit(ColumnBatch(batch_of(arrays, layout.names), stamps, named=layout.named))

    def _begin_slots(
        self, layout: Layout, new: Array | slice, columns: pa.RecordBatch, first: Array, given: dict[int, Any]
    ) -> None:
        """Give slots what the aggregation begins with, and the rest of their first record. ``new``: the slots; of a
        slice they were never used, and are zero."""
        if not first.size:
            return
        for index, kind in layout.folded.items():
            if layout.is_ranked(index):
                self._state.columns[layout.name_of(index)].put(new, given[index].take(arrow_of(first)))
            elif kind in ("min", "max", "compared"):
                self._held(index)[new] = given[index][first]
            elif kind == "sum" and self._held(index).dtype.kind == "f":
                self._held(index)[new] = -0.0  # the only float that leaves every other one as it is when it is added
            elif kind == "sum" and not isinstance(new, slice):
                self._held(index)[new] = 0
        if layout.choice is None:
            rows = arrow_of(first)
            for index in layout.kept:
                self._state.columns[layout.name_of(index)].put(new, columns.column(index).take(rows))

    def _held(self, index: int) -> Array:
        """Return what is held of a column that is folded to a number, by slot."""
        assert self._layout is not None
        column: Any = self._state.columns[self._layout.name_of(index)]
        held: Array = column.values.array
        return held

    def _emit(
        self, layout: Layout, columns: pa.RecordBatch, slots: Array, after: dict[int, Any], stamps: Array | None
    ) -> None:
        if not len(slots):
            return
        arrays = list(columns.columns)
        for index in layout.kept:
            arrays[index] = self._state.columns[layout.name_of(index)].get(slots)
        for index, kind in layout.folded.items():
            arrays[index] = result(kind, after[index], layout.types[index])
        stamps = None if stamps is None else stamps[: slots.size]
        self.out.emit(ColumnBatch(batch_of(arrays, layout.names), stamps, named=layout.named))

    # --- rows of state that is on the disk ---------------------------------------------------------------------------

    def _with_room(self, columns: pa.RecordBatch, stamps: Array | None) -> pa.RecordBatch | None:
        """Take up the rows beside which these cannot be held; return the columns, or None if rows are to go on."""
        if not self._held_rows.fits(stamps):
            self._take_up_all()
        return None if self._is_on_rows else columns

    def _hold(self, columns: pa.RecordBatch, stamps: Array | None) -> None:
        import pyarrow as pa

        layout, held = self._layout, self._held_rows
        assert layout is not None
        if columns.schema.names != layout.schema.names or columns.schema.metadata:
            columns = pa.RecordBatch.from_arrays(columns.columns, names=layout.schema.names)
        if self._due_ms is None and not self._spec.emit_final:
            self._due_ms = self.ctx.clock.now_ms() + self._wait_ms
        partitions = self._slots.partitions_of([columns.column(key) for key in layout.keys])
        held.add(columns, stamps, partitions)
        # The rows before are taken up while these gather, a bit with each batch: there is no pause.
        while self._run is not None and self._steps_done < held.filled * self._steps_max:
            self._step()
        if self._run is None and held.filled >= 1 and not self._is_on_rows:
            self._begin_run()

    def _begin_run(self) -> None:
        taken = self._taken = self._held_rows.take()
        self._num_taken_up, self._results = 0, Results(taken)
        parts = taken.parts()
        num_loads = len(parts) + sum(self._slots.is_unmoved(number) for number, _, _ in parts)
        self._steps_done, self._steps_max = 0, num_loads * _PART_STEPS + taken.num_rows // BATCH_ROWS_MAX + 1
        self._run_ms, self._run = 0, self._take_up(taken, parts)

    def _step(self) -> None:
        """Go on with taking up rows."""
        assert self._run is not None
        begin_ms = self.ctx.clock.monotonic_ms()
        num_steps = next(self._run, 0)
        is_over = not num_steps
        self._steps_done += num_steps
        self._run_ms += self.ctx.clock.monotonic_ms() - begin_ms
        if is_over:
            self._run = self._due_ms = self._taken = self._results = None
            self._wait_ms = max(_WAIT_MIN_MS, _WAIT_FACTOR * self._run_ms)
            if self._held_rows.num_rows:
                self._due_ms = self.ctx.clock.now_ms() + self._wait_ms
            else:
                for watermark_ms in self._held_rows.take_watermarks():
                    self.out.emit_watermark(watermark_ms)

    def _take_up_all(self) -> None:
        """Process the rows that are held, and emit."""
        if self._held_part.is_restored:
            self._take_restored()
        while self._run is not None or self._held_rows.num_rows:
            if self._run is None:
                self._begin_run()
            self._step()

    def _take_up(self, taken: TakenRows, parts: list[tuple[int, int, int]]) -> Iterator[int]:
        """Take up rows partition by partition, then emit; yield the number of steps that it was after each bit."""
        results, out = self._results, self.out
        assert results is not None
        for at, (number, begin, end) in enumerate(parts):
            for later, _, _ in parts[at + 1 : at + 2]:
                self._slots.expect(later)
            if self._slots.is_unmoved(number):
                self._slots.load(number)
                yield _PART_STEPS
            self._state, self._chosen = self._slots.load(number), None
            self._state.give_back_expired()
            columns, stamps, _ = taken.of_partition(number)
            self.out = results
            try:
                done = self._process_columns(columns, stamps)
            finally:
                self.out = out
            if done < end - begin:
                for _ in results.emit_in_order(out):
                    pass
                self._go_on_on_rows(taken, begin + done)
                return
            self._slots.put_back(number, self._part_bytes_max)
            self._state, self._chosen = self._slots.slots, None
            self._num_taken_up = end
            yield _PART_STEPS
        for _ in results.emit_in_order(out):
            yield 1

    def _go_on_on_rows(self, taken: TakenRows, done: int) -> None:
        """The next row is not for columns: all that are left, of any partition, are for rows, in their order."""
        rest, later = taken.as_they_came(done), self._held_rows.take_batches()
        watermarks = [*(watermark_ms for _, watermark_ms in taken.watermarks), *self._held_rows.take_watermarks()]
        self._run = self._taken = self._results = None
        self._note_rows(NEEDS_A_VALUE)  # if it was no sum
        self._hand_over()
        assert self._layout is not None
        for batch in (rest, *later):
            for at in range(0, len(batch), BATCH_ROWS_MAX):
                part = own_records(batch.slice(at, min(len(batch), at + BATCH_ROWS_MAX)))
                self._rows.process_batch(0, replace(part, named=self._layout.named))
        for watermark_ms in watermarks:
            self.out.emit_watermark(watermark_ms)

    def process_watermark(self, watermark_ms: int) -> None:
        if self._held_part.is_restored:
            self._take_restored()
        if watermark_ms == TIME_MAX_MS:
            self._take_up_all()  # the end of all time: results come before the barrier of a last savepoint
        if (self._held_rows.num_rows or self._run is not None) and not self._spec.emit_final:
            self._held_rows.add_watermark(watermark_ms)
        else:
            self.out.emit_watermark(watermark_ms)

    def process_idle(self, idle: bool) -> None:
        self._take_up_all()
        self.out.emit_idle(idle)

    def end_superstep(self, superstep: int) -> None:
        self._take_up_all()
        self.out.emit_superstep_end(superstep)

    def prepare_snapshot(self, checkpoint_id: int) -> None:
        # What waits is part of the snapshot (``held_part``): the task does not stand still for it.
        self._give_back_expired(is_epoch_over=True)

    def _all_waiting(self) -> tuple[Layout, Iterator[Waiting]] | None:
        return None if self._layout is None else (self._layout, self._waiting(self._layout))

    def _waiting(self, layout: Layout) -> Iterator[Waiting]:
        """Yield what a snapshot has to have besides the slots, in the order in which it came."""
        if self._taken is not None and self._results is not None:
            made = self._results.unemitted()
            if made is not None:
                yield Waiting(made, is_result=True)
            if self._num_taken_up < self._taken.num_rows:
                yield Waiting(
                    replace(self._taken.as_they_came(self._num_taken_up), named=layout.named), is_result=False
                )
        for batch in self._held_rows.batches():
            yield Waiting(replace(batch, named=layout.named), is_result=False)

    def _num_waiting(self) -> int:
        num_taken = 0 if self._taken is None else self._taken.num_rows
        return self._held_rows.num_rows + num_taken

    def _take_restored(self) -> None:
        """Send on and take up what waited when the checkpoint was made, before anything else."""
        self._due_ms = None
        for waiting in self._held_part.take():
            if waiting.is_result:
                self.out.emit(waiting.batch)
            else:
                self.process_batch(0, own_records(waiting.batch))

    def next_timer_ms(self) -> int | None:
        return self._due_ms

    def on_timer(self, now_ms: int) -> None:
        if self._held_part.is_restored:
            self._take_restored()
            return
        if self._run is None:
            self._begin_run()
        end_ms = self.ctx.clock.monotonic_ms() + _TURN_MS
        while self._run is not None and self.ctx.clock.monotonic_ms() <= end_ms:
            self._step()
        if self._run is not None:
            self._due_ms = self.ctx.clock.now_ms() + _TURN_MS  # others have a turn

    # --- the end, and the way to rows --------------------------------------------------------------------------------

    def finish(self) -> None:
        self._take_up_all()
        if self._is_on_rows or self._slots.has_others:
            self._hand_over()
        if self._is_on_rows or not self._slots.num_entries():
            self._rows.finish()
        elif self._spec.emit_final:
            assert self._layout is not None
            for state in self._slots.states():
                for batch in self._batches(self._layout, state, None):
                    self.out.emit(batch)
            self._slots.clear()

    def _batches(self, layout: Layout, state: SlotState, kept: Array | None) -> Any:
        """Yield all slots, or ``kept``, as records: the first of each key, with the aggregate as its value."""
        import numpy as np

        assert state.table is not None
        every = state.unexpired(np.arange(state.num_slots) if kept is None else kept)
        for start in range(0, every.size, BATCH_ROWS_MAX):
            slots = every[start : start + BATCH_ROWS_MAX]
            arrays: list[Any] = [None] * len(layout.schema)
            for index, column in zip(layout.keys, state.table.keys_of(slots), strict=True):
                arrays[index] = column
            for index in layout.kept:
                arrays[index] = state.columns[layout.name_of(index)].get(slots)
            for index, kind in layout.folded.items():
                held: Any = state.columns[layout.name_of(index)]
                is_own = kind == "last" or layout.is_ranked(index)
                values = held.get(slots) if is_own else held.values.array[slots]
                arrays[index] = result(kind, values, layout.types[index])
            yield ColumnBatch(batch_of(arrays, layout.names), named=layout.named)

    def _hand_over(self) -> None:
        """Give all state to the row operator; it takes every record from now on.

        Not in ``open``, where nobody notes yet what changes since the checkpoint that was restored: an increment on it
        would bring the slots back and know nothing of the rows.
        """
        self._take_up_all()
        self._is_on_rows = True
        if not self._slots.num_entries():
            return
        for state in self._slots.states():
            if state.num_slots:
                layout = self._layout_of_note(state.note)
                assert layout is not None
                trimmed = self._trimmed if state is self._state else None
                for batch in self._batches(layout, state, trimmed):
                    keys = [batch.columns.column(key) for key in layout.keys]
                    records = own_records(batch).to_rows().rows
                    self._rows.adopt(python_keys(keys, is_tuple=self._is_tuple), records)
        self._slots.clear()
        self._state, self._trimmed = self._slots.slots, None

    def _layout_of_note(self, note: bytes) -> Layout | None:
        import pyarrow as pa

        return layout_of(pa.ipc.read_schema(pa.py_buffer(note)), self._spec.key_selector, self._row_spec)

    def close(self) -> None:
        self._rows.close()
        self._slots.close()
