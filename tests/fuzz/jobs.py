"""A program and its records, drawn from a seed.

A program is text, for a failure shows it and functions compile from their source. Records have the same seven fields
before and after every step: ``k`` (few integers), ``s`` (texts that repeat), ``v`` (integers), ``f`` (floats), ``d``
(decimals), ``n`` (integers and nulls), ``t`` (event times, out of order by less than ``DISORDER_MS``). What is
drawn gives one answer only: where the order of records is not given, nothing behind it depends on it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import pyarrow as pa

__all__ = ["DISORDER_MS", "NAMES", "Job", "draw_job", "draw_table"]

NAMES = ("k", "s", "v", "f", "d", "n", "t")
DISORDER_MS = 300
_TIMES = "WatermarkStrategy.for_bounded_out_of_orderness(Duration.of_millis(1000))"


@dataclass
class Job:
    seed: int
    lines: list[str] = field(default_factory=list)
    tables: list[pa.Table] = field(default_factory=list)
    form: str = "tuple"  #: of the sources' records: tuple or row
    typed: bool = True  #: the sources' types are declared
    decimals: bool = True  #: ``d`` is decimals, else integers
    collection: bool = False  #: columns are made of typed rows, not read from a file
    row_group: int = 500
    batch: bool = False
    checkpoint_ms: int = 0
    backend: str = "hashmap"
    incremental: bool = False
    buffer_timeout_ms: int = -1
    fails_at: int = 0  #: the result, counted from 1, before which the job fails once; 0 = never
    compare: str = "ordered"  #: "ordered", "sorted" or "final": what is left of a changelog

    @property
    def text(self) -> str:
        return "\n".join(["def program(sources, Rec, opaque):", *(f"    {line}" for line in self.lines), ""])

    @property
    def settings(self) -> str:
        told = {name: value for name, value in vars(self).items() if name not in ("lines", "tables")}
        return ", ".join(f"{name}={value}" for name, value in told.items())


def draw_table(rng: random.Random, *, decimal: bool) -> pa.Table:
    num = rng.choice((0, 1, 40, 400, 400, 400, 1500, 1500, 3000))
    num_keys = rng.choice((1, 5, 5, 60, 800))
    texts = [rng.choice(("", "a", "é", "long text of more than sixteen bytes ")) + str(i) for i in range(num_keys)]
    largest = rng.choice((10, 1000, 2**40))
    exact, special = rng.random() < 0.6, rng.random() < 0.3
    odd = [float("nan"), -0.0, 0.0, float("inf")]
    floats = [rng.randrange(-1000, 1000) / 8 if exact else rng.uniform(-1e6, 1e6) for _ in range(num)]
    if special:
        floats = [rng.choice(odd) if rng.random() < 0.1 else value for value in floats]
    precision = rng.choice((9, 18, 30)) if decimal else 9
    decimals: list[Any] = [
        Decimal(rng.randrange(-(10 ** (precision - 1)), 10 ** (precision - 1))).scaleb(-2) for _ in range(num)
    ]
    kind: pa.DataType = pa.decimal128(rng.choice((precision + 3, 38)), 2)
    if not decimal:
        decimals, kind = [int(value) for value in decimals], pa.int64()
    nulls = rng.random() < 0.7
    step = rng.choice((1, 10, 70))
    columns = {
        "k": pa.array([rng.randrange(num_keys) - 2 for _ in range(num)], pa.int64()),
        "s": pa.array([rng.choice(texts) for _ in range(num)], pa.string()),
        "v": pa.array([rng.randrange(-largest, largest) for _ in range(num)], pa.int64()),
        "f": pa.array(floats, pa.float64()),
        "d": pa.array(decimals, kind),
        "n": pa.array([None if nulls and rng.random() < 0.2 else rng.randrange(9) for _ in range(num)], pa.int64()),
        "t": pa.array([i * step + rng.randrange(DISORDER_MS) for i in range(num)], pa.int64()),
    }
    return pa.table(columns)


def draw_job(seed: int) -> Job:
    return _Drawing(seed).job


class _Drawing:
    """One program; ``job`` is it."""

    def __init__(self, seed: int) -> None:
        rng = self.rng = random.Random(seed)
        job = self.job = Job(seed)
        job.form = rng.choice(("tuple", "row"))
        job.decimals = rng.random() < 0.4
        job.collection = not job.decimals and rng.random() < 0.25
        job.typed = job.collection or rng.random() < 0.9
        job.row_group = rng.choice((7, 64, 500, 5000))
        job.batch = rng.random() < 0.2
        job.checkpoint_ms = 0 if job.batch else rng.choice((0, 10, 20, 50))
        job.backend = rng.choice(("hashmap", "hashmap", "rocksdb"))
        job.incremental = rng.random() < 0.5
        job.buffer_timeout_ms = rng.choice((0, 5, -1))
        job.fails_at = rng.randrange(1, 2000) if job.checkpoint_ms and rng.random() < 0.5 else 0
        self.parallelism = rng.choice((1, 1, 2))
        joins = rng.random() < 0.35
        self.slides = False  #: the window is made of slices
        self.forms: list[str] = []
        self.is_typed: list[bool] = []  #: whether the plan knows the types of the joined streams' fields
        for number, name in enumerate("ab" if joins else "a"):
            job.tables.append(draw_table(rng, decimal=job.decimals))
            self.forms.append(self._prepared(name, f"sources[{number}]"))
        if joins:
            self._joined()
        else:
            self._add(f"keyed = a.key_by({self._key(self.forms[0])})")
            self._stateful(self.forms[0])
        self._add("return out")

    def _add(self, line: str) -> None:
        self.job.lines.append(line)

    def _at(self, form: str, name: str, record: str = "r") -> str:
        if form == "tuple":
            return f"{record}[{NAMES.index(name)}]"
        if form == "object":
            return f"{record}.{name}"
        return self.rng.choice((f"{record}.{name}", f"{record}[{NAMES.index(name)}]", f'{record}["{name}"]'))

    def _field(self, form: str, name: str) -> str:
        """Return how an aggregation names a field."""
        return str(NAMES.index(name)) if form == "tuple" or (form == "row" and self.rng.random() < 0.3) else repr(name)

    def _prepared(self, name: str, source: str) -> str:
        """Add steps without state, and event times; return the form of the records behind."""
        rng, form = self.rng, self.job.form
        self.is_typed.append(form == "row" or self.job.typed)
        self._add(f"{name} = {source}")
        times_at = rng.choice((0, 1))
        for turn in range(2):
            if turn == times_at:
                own = _TIMES
                if form != "object" and rng.random() < 0.7:
                    own += f".with_timestamp_field({self._field(form, 't')})"
                else:
                    own += f".with_timestamp_assigner(lambda r, _: {self._at(form, 't')})"
                self._add(f"{name} = {name}.assign_timestamps_and_watermarks({own})")
            form = self._step(name, form)
        return form

    def _step(self, name: str, form: str) -> str:
        rng = self.rng
        at = {field: self._at(form, field) for field in NAMES}
        kind = rng.choice(("filter", "map", "map", "flat_map", "none", "none"))
        if kind == "filter":
            conditions = (
                f"{at['v']} % 3 != 0", f"{at['f']} > 0.5", f"{at['s']} != 'a1'", f"{at['n']} is not None",
                f"opaque({at['k']}) % 5 != 0", f"not {at['s']}.startswith('a') and {at['k']} > 0",
            )  # fmt: skip
            self._add(f"{name} = {name}.filter(lambda r: {rng.choice(conditions)})")
        elif kind == "map":
            made = dict(at)
            for _ in range(rng.randrange(3)):
                changes = (
                    ("v", f"{at['v']} * 2 + 1"), ("v", f"{at['v']} // 3"), ("v", f"{at['v']} % 11"),
                    ("f", f"{at['f']} / 4"), ("f", f"{at['f']} + {at['v']}"), ("k", f"{at['k']} % 3"),
                    ("s", f"{at['s']}.upper()"), ("s", f"{at['s']} + '!'"), ("v", f"opaque({at['v']})"),
                    ("v", f"len({at['s']})"), ("f", f"-{at['f']} if {at['v']} > 3 else {at['f']}"),
                    ("k", f"{at['v']} % 13"),
                )  # fmt: skip
                field, made[field] = rng.choice(changes)
            form = rng.choice(("tuple", "tuple", "object"))
            values = ", ".join(made[field] for field in NAMES)
            given = f"Rec({values})" if form == "object" else f"({values})"
            declared = ", output_type=TUPLE" if form == "tuple" and rng.random() < 0.3 else ""
            self.is_typed[-1] = bool(declared)
            self._add(f"{name} = {name}.map(lambda r: {given}{declared})")
        elif kind == "flat_map":
            same = ", ".join(at[field] for field in NAMES)
            other = ", ".join(f"{at['v']} + 1" if field == "v" else at[field] for field in NAMES)
            form, body = "tuple", rng.choice((f"[({same}), ({other})]", f"[({same})] if {at['v']} > 2 else []"))
            self._add(f"{name} = {name}.flat_map(lambda r: {body})")
            self.is_typed[-1] = False
        return form

    def _key(self, form: str) -> str:
        at = {field: self._at(form, field) for field in NAMES}
        fields = [f"lambda r: {at[field]}" for field in ("k", "s", "k", "s", "d", "n")]
        computed = (
            f"lambda r: ({at['k']}, {at['s']})", f"lambda r: {at['v']} % 7", f"lambda r: {at['k']} + 1",
            f"lambda r: ({at['k']} % 3, {at['s']})", f"lambda r: {at['s']}.lower()", f"lambda r: opaque({at['k']})",
        )  # fmt: skip
        plain = [self._field(form, field) for field in ("k", "s")] if form != "object" else []
        return self.rng.choice((self.rng.choice(fields), self.rng.choice(computed), *plain))

    def _own_parallelism(self) -> str:
        return f".set_parallelism({self.parallelism})"

    def _stateful(self, form: str) -> None:
        self.job.compare = "ordered" if self.parallelism == 1 and not self.job.batch else "sorted"
        kind = self.rng.choice(("running", "window", "window", "changelog"))
        if kind == "running":
            self._add(f"out = keyed{self._running(form)}{self._own_parallelism()}")
            if self.parallelism == 1 and not self.job.batch and self.rng.random() < 0.3:
                self._add(f"out = out.key_by(lambda r: {self._at(form, 's')}).max({self._field(form, 'v')})")
        elif kind == "window":
            self.job.compare = "sorted"
            window = f"keyed.window({self._window()}){self._lateness()}"
            self._add(f"out = {window}{self._of_window(form)}{self._own_parallelism()}")
        else:
            self._add(f"out = keyed{self._changelog(form)}{self._own_parallelism()}")
            if self.parallelism == 1 and not self.job.batch and form != "object":
                self._behind_changelog()

    def _behind_changelog(self) -> None:
        if self.rng.random() < 0.5 or "aggregate" in self.job.lines[-1]:
            return
        own = self.rng.choice((
            ".sum(2)", ".top_n(2, 2)", ".last_row()", ".aggregate(count(), sum_(2), avg(2), min_(2))",
            ".max(2)", ".sum(4)",
        ))  # fmt: skip
        self._add(f"out = out.key_by({self.rng.choice((0, 1))}){own}")

    def _running(self, form: str) -> str:
        rng = self.rng
        name = rng.choice("vvfd")
        own = self._field(form, name)
        if rng.random() < 0.3:
            return f".reduce({self._reduce(form)})"
        return f".{rng.choice(('sum', 'min', 'max', 'min_by', 'max_by'))}({own})"

    def _reduce(self, form: str) -> str:
        rng = self.rng
        a = {field: self._at(form, field, "a") for field in NAMES}
        b = {field: self._at(form, field, "b") for field in NAMES}
        if form == "row" or rng.random() < 0.4:
            return rng.choice((
                f"lambda a, b: b if {b['v']} > {a['v']} else a", "lambda a, b: b", "lambda a, b: a",
                f"lambda a, b: a if {a['f']} >= {b['f']} else b", f"lambda a, b: a if {a['s']} <= {b['s']} else b",
            ))  # fmt: skip
        made = dict(a)
        for name, text in (
            ("v", f"{a['v']} + {b['v']}"), ("f", f"{a['f']} + {b['f']}"), ("f", f"max({a['f']}, {b['f']})"),
            ("t", f"max({a['t']}, {b['t']})"), ("n", b["n"]), ("v", f"min({a['v']}, {b['v']})"),
            ("f", b["f"]), ("d", b["d"]),
        ):  # fmt: skip
            if rng.random() < 0.4:
                made[name] = text
        values = ", ".join(made[field] for field in NAMES)
        return f"lambda a, b: Rec({values})" if form == "object" else f"lambda a, b: ({values})"

    def _changelog(self, form: str) -> str:
        rng = self.rng
        kind = rng.choice(("first_row", "last_row", "top_n", "aggregate"))
        if kind == "top_n":
            by = self._field(form, rng.choice("vvfsd"))
            ascending, with_rank = rng.random() < 0.5, rng.random() < 0.5
            return f".top_n({rng.choice((1, 3))}, {by}, {ascending}, with_rank={with_rank})"
        return f".aggregate({self._aggregates(form)})" if kind == "aggregate" else f".{kind}()"

    def _aggregates(self, form: str, *, window: bool = False) -> str:
        rng = self.rng
        kinds = ["sum_", "avg", "min_", "max_"] + (["first", "last", "count_distinct"] if window else [])
        found = ["count()"]
        for _ in range(rng.randrange(1, 4)):
            kind = rng.choice(kinds)
            fields = "vfdn" if kind in ("sum_", "avg") else "vfdsn"
            if window:
                fields = fields.replace("n", "")
            if self.slides and kind in ("sum_", "avg"):
                fields = fields.replace("f", "")  # slices are added: the last digits may differ (decision 56)
            found.append(f"{kind}({self._field(form, rng.choice(fields))})")
        return ", ".join(dict.fromkeys(found))

    def _window(self) -> str:
        def ms(value: int) -> str:
            return f"Time.milliseconds({value})"

        size = self.rng.choice((100, 500, 3000))
        found = self.rng.choice((
            f"TumblingEventTimeWindows.of({ms(size)})",
            f"SlidingEventTimeWindows.of({ms(size * 2)}, {ms(size)})",
            f"SlidingEventTimeWindows.of({ms(size)}, {ms(size * 2 // 5)})",
            f"EventTimeSessionWindows.with_gap({ms(size // 4)})",
        ))  # fmt: skip
        self.slides = found.startswith("Sliding")
        return found

    def _lateness(self) -> str:
        return self.rng.choice(("", "", ".allowed_lateness(500)"))

    def _of_window(self, form: str) -> str:
        rng = self.rng
        kind = rng.choice(("aggregate", "aggregate", "reduce", "field"))
        if kind == "aggregate":
            return f".aggregate({self._aggregates(form, window=True)})"
        if kind == "reduce":
            return f".reduce({self._reduce(form)})"
        kind = rng.choice(("sum", "min", "max", "min_by", "max_by"))
        name = rng.choice("vvd" if self.slides and kind == "sum" else "vvfd")
        return f".{kind}({self._field(form, name)})"

    def _joined(self) -> None:
        rng, job = self.rng, self.job
        job.compare = "sorted"
        left, right = self.forms
        names = rng.choice((("k",), ("s",), ("k", "s")))
        keys = []
        computed = rng.choice(("", "", " + 1" if names[0] == "k" else ".lower()"))
        for form in self.forms:
            values = [self._at(form, name) for name in names]
            values[0] += computed
            keys.append(f"lambda r: ({', '.join(values)})" if len(values) > 1 else f"lambda r: {values[0]}")
        made = [
            self._at(left, "k", "a"),
            self._at(left, "v", "a"),
            self._at(right, "s", "b"),
            self._at(right, "v", "b"),
        ]
        function = rng.choice((
            f"lambda a, b: ({', '.join(made)})", f"lambda a, b: ({made[0]}, {made[1]} + {made[3]}, {made[2]})",
            f"lambda a, b: ({made[0]}, opaque({made[1]}), {made[2]})",
        ))  # fmt: skip
        kind = rng.choice(("interval", "window", "regular"))
        own = self._own_parallelism()
        if kind == "interval":
            low, high = rng.choice(((-50, 50), (0, 200), (-300, -10)))
            between = f".between(Time.milliseconds({low}), Time.milliseconds({high}))"
            self._add(f"joined = a.key_by({keys[0]}).interval_join(b.key_by({keys[1]})){between}")
            self._add(f"out = joined.process({function}){own}")
        elif kind == "window":
            self._add(f"joined = a.join(b).where({keys[0]}).equal_to({keys[1]}).window({self._window()})")
            self._add(f"out = joined.apply({function}){own}")
        else:
            job.compare = "final"
            how = rng.choice(("inner", "left", "right", "full"))
            more = ""
            if how == "inner" and rng.random() < 0.5:
                more = f", output={function}"
            if rng.random() < 0.3:
                more += f", condition=lambda a, b: {made[1]} > {made[3]}"
            if not all(self.is_typed) and not more.startswith(", output"):
                parts = (("a", left, "k"), ("a", left, "v"), ("b", right, "s"), ("b", right, "v"))
                given = [f"None if {of} is None else {self._at(form, name, of)}" for of, form, name in parts]
                more = f", output=lambda a, b: ({', '.join(given)})" + more
            self._add(f"out = a.regular_join(b, {keys[0]}, {keys[1]}, {how!r}{more}){own}")
        if kind != "window" and rng.random() < 0.4 and not job.batch and "output" not in job.lines[-1]:
            job.compare = "final"
            key = rng.choice((0, 1, 2) if kind == "interval" else (0, 1))
            self._add(f"out = out.key_by({key}).aggregate(count(), sum_(0), max_(1))")
