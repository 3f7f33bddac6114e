"""Charts of benchmark results as one SVG picture: from the rows of ``--json`` to bars and curves, without a library.

    python -m tests.bench charts RESULTS.json docs/performance.svg        (.html: the same picture in a page)

Of each workload, contender and point the newest row counts. Bars and points stand at the median, whiskers go from the
smallest to the largest run. What is charted how is said once, in ``charts_of``; the rest is drawing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final

__all__ = ["Chart", "Series", "charts_of", "drawn", "newest", "page_of", "write_charts"]

WIDTH, ROW, GAP, LEFT, RIGHT, TOP = 860, 18, 10, 190, 190, 46
CURVE_HEIGHT = 190
#: by how a contender's name begins; others are grey
COLOURS = {
    "engine": "#1f77b4",
    "flink-sql": "#f2a65a",
    "flink-tuned": "#f2a65a",
    "flink": "#e6762b",
    "pyflink": "#b8541a",
    "bytewax": "#2a9d63",
    "pathway": "#9467bd",
    "spark": "#b8860b",
    "duckdb": "#c9a800",
    "polars": "#5b8c8c",
}
STYLE = """text{font:12px sans-serif;fill:#222}.title{font-weight:bold;font-size:14px}.small{font-size:11px;fill:#666}
.axis{stroke:#999;stroke-width:1}.grid{stroke:#ddd;stroke-width:1}.whisker{stroke:#222;stroke-width:1.2}
@media(prefers-color-scheme:dark){text{fill:#ddd}.small{fill:#aaa}.grid{stroke:#444}.whisker{stroke:#eee}}"""

#: min, median, max
Spread = Sequence[float]


@dataclass(frozen=True)
class Series:
    """``points``: (x or label of the group, spread)."""

    name: str
    points: tuple[tuple[Any, Spread], ...]


@dataclass(frozen=True)
class Chart:
    """``curves``: lines over a logarithmic x; else bars in groups by the label of their points. ``better``: where."""

    title: str
    unit: str
    series: tuple[Series, ...]
    curves: bool = False
    logarithmic: bool = False
    better: str = "more is better"


_KEYED: Final = (
    ("keyed-sum", "Keyed running sum, 1 M keys"),
    ("keyed-sum-on-disk", "Keyed running sum, 10 M keys, state beyond memory"),
    ("window", "10 s windows, 100 k keys"),
    ("interval-join", "Interval join of two streams"),
    ("window-join", "Join of two streams in 10 s windows"),
)


# --- what there is to see ----------------------------------------------------------------------------------------


def newest(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Keep the last row of each workload, contender and point."""
    points = ("workload", "contender", "backend", "timeout_ms", "slots", "channels", "keys", "kind")
    kept: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        key = (*(row.get(name) for name in points), row.get("of", "keyed-sum"))
        kept.pop(key, None)
        kept[key] = row
    return list(kept.values())


def _scaled(values: Spread, factor: float) -> list[float]:
    return [value * factor for value in values]


def _bars(rows: Sequence[dict[str, Any]], measures: dict[str, str], factor: float = 1) -> tuple[Series, ...]:
    """``measures``: key in the rows → label of the group."""
    made = []
    for row in rows:
        points = tuple((label, _scaled(row[key], factor)) for key, label in measures.items() if key in row)
        if points:
            made.append(Series(row["contender"], points))
    return tuple(made)


def charts_of(rows: Iterable[dict[str, Any]]) -> list[Chart]:
    """Choose the charts that the rows have figures for."""
    of: dict[str, list[dict[str, Any]]] = {}
    for row in newest(rows):
        of.setdefault(row["workload"], []).append(row)
    charts = []
    for name, title in (("word-count", "Word count"), ("word-count-lambdas", "Word count, plain Python lambdas")):
        series = _bars(of.get(name, []), {"mb_per_cpu_s": "MB per CPU-s"})
        charts.append(Chart(title, "MB per CPU-second", series, logarithmic="lambdas" in name))
    kept = {"warm_events_per_cpu_s": "warm", "cold_events_per_cpu_s": "cold, with start-up"}
    for name, title in _KEYED:
        for backend in ("hashmap", "rocksdb"):
            mine = [row for row in of.get(name, []) if row.get("backend", "hashmap") == backend]
            charts.append(Chart(f"{title}, {backend}", "M events per CPU-second", _bars(mine, kept, 1e-6)))
    for name, title in (("keyed-python", "Keyed sum"), ("window-python", "10 s windows")):
        whole = [row for row in of.get(name, []) if row.get("kind") != "marginal"]
        series = _bars(whole, {"events_per_cpu_s": "start-up included"}, 1e-3)
        charts.append(Chart(f"{title}, Python functions", "k events per CPU-second", series, logarithmic=True))
    for name, title in (
        ("keyed-lambdas", "Keyed running sum, 1 M keys"),
        ("window-lambdas", "10 s windows, 100 k keys"),
    ):
        series = _bars(of.get(name, []), {"events_per_cpu_s": "M events per CPU-s"}, 1e-6)
        charts.append(Chart(f"{title}, untyped lambdas", "M events per CPU-second", series))
    charts += _latency_charts(of.get("latency", []))
    phases = {"full_s": "full checkpoint", "incremental_s": "incremental, 1 %", "recovery_s": "kill -9 → record"}
    series = _bars(of.get("recovery-beside-flink", []), phases)
    charts.append(Chart("Keyed state: checkpoints and recovery", "seconds", series, better="less is better"))
    series = _bars(of.get("start-up", []), {"first_result_s": "first result"})
    title = "Start of a program to its first result"
    charts.append(Chart(title, "seconds", series, logarithmic=True, better="less is better"))
    charts += _scaling_charts(of)
    return [chart for chart in charts if chart.series]


def _latency_charts(rows: Sequence[dict[str, Any]]) -> list[Chart]:
    charts = []
    for timeout_ms in sorted({row["timeout_ms"] for row in rows}):
        series = _bars(
            [row for row in rows if row["timeout_ms"] == timeout_ms],
            {"p50_ms": "median", "p99_ms": "99 %", "max_ms": "largest"},
        )
        title = f"Latency at 50,000 events/s, buffer timeout {timeout_ms} ms"
        charts.append(Chart(title, "milliseconds", series, logarithmic=True, better="less is better"))
    return charts


def _scaling_charts(of: dict[str, list[dict[str, Any]]]) -> list[Chart]:
    points = [(row["contender"], row) for row in of.get("scaling-slots", []) if row["slots"] == 2 and "of" in row]
    bars = tuple(
        Series(name, tuple((row["of"], row["ratio_to_first_wall"]) for contender, row in points if contender == name))
        for name in dict.fromkeys(contender for contender, _ in points)
    )
    charts = [Chart("From one slot to two", "times the events a second", bars)]
    for curve, measure, unit in (
        ("slots", "warm_events_per_s", "M events a second"),
        ("channels", "warm_events_per_cpu_s", "M events per CPU-second"),
        ("keys", "warm_events_per_cpu_s", "M events per CPU-second"),
    ):
        drawn = [(curve, "engine")]
        if curve == "slots":
            drawn.append(("ceiling", "jobs of one slot at once, nothing between them"))
        series = tuple(
            Series(name, tuple((row[key], _scaled(row[measure], 1e-6)) for row in rows))
            for key, name in drawn
            if (rows := sorted(filter(_is_keyed_sum, of.get(f"scaling-{key}", [])), key=lambda row: row[key]))
        )
        charts.append(Chart(f"Keyed sum by number of {curve}, warm", unit, series, curves=True))
    return charts


def _is_keyed_sum(row: dict[str, Any]) -> bool:
    return row["contender"] == "engine" and row.get("of", "keyed-sum") == "keyed-sum"


# --- drawing -----------------------------------------------------------------------------------------------------


def ticks(largest: float, count: int = 5) -> list[float]:
    """Return round numbers from 0 up to the first one that is not below ``largest``."""
    if largest <= 0:
        return [0.0, 1.0]
    magnitude = 10 ** math.floor(math.log10(largest / count))
    step = next(magnitude * m for m in (1, 2, 5, 10) if magnitude * m * count >= largest * (1 - 1e-9))
    return [round(step * i, 12) for i in range(math.ceil(largest / step - 1e-9) + 1)]


def decades(smallest: float, largest: float) -> list[float]:
    """Return powers of ten that enclose both; at least two."""
    first = math.floor(math.log10(smallest) + 1e-9)
    last = max(first + 1, math.ceil(math.log10(largest) - 1e-9))
    return [10.0**power for power in range(first, last + 1)]


def _number(value: float) -> str:
    if value >= 1_000_000:
        return f"{value / 1e6:g} M"
    if value >= 1000:
        return f"{value / 1e3:.4g} k"
    return f"{value:.3g}"


def _colour(name: str) -> str:
    return next((colour for begin, colour in COLOURS.items() if name.startswith(begin)), "#8c8c8c")


def _ratio(chart: Chart, series: Series, label: str) -> str:
    """Say how much better the first contender is than this one."""
    first = dict(chart.series[0].points).get(label)
    if series is chart.series[0] or first is None or not first[1]:
        return ""
    mine = dict(series.points)[label][1]
    better = mine / first[1] if chart.better.startswith("less") else first[1] / mine
    return f"   {chart.series[0].name} {f'{better:,.0f}' if better >= 10 else f'{better:.2g}'} ×"


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    css = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{css}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def _head(chart: Chart, y: float) -> list[str]:
    return [_text(8, y + 18, chart.title, "title"), _text(8, y + 34, f"{chart.unit}; {chart.better}", "small")]


def drawn(chart: Chart, y: float) -> tuple[list[str], float]:
    """Return the SVG elements of a chart whose top is at ``y``, and its height."""
    return _curves(chart, y) if chart.curves else _grouped_bars(chart, y)


def _grouped_bars(chart: Chart, y: float) -> tuple[list[str], float]:
    parts = _head(chart, y)
    spreads = [found for series in chart.series for _, found in series.points]
    marks = (
        decades(min(f[0] for f in spreads if f[0] > 0), max(f[2] for f in spreads))
        if chart.logarithmic
        else ticks(max(f[2] for f in spreads))
    )
    span = WIDTH - LEFT - RIGHT

    def x_of(value: float) -> float:
        if not chart.logarithmic:
            return LEFT + span * value / marks[-1]
        whole = math.log10(marks[-1] / marks[0])
        return LEFT + span * max(0.0, math.log10(max(value, marks[0]) / marks[0])) / whole

    labels = list(dict.fromkeys(label for series in chart.series for label, _ in series.points))
    at = y + TOP
    bars: list[str] = []
    for label in labels:
        if len(labels) > 1:
            bars.append(_text(8, at + 13, label))
        for series in chart.series:
            found = dict(series.points).get(label)
            if found is None:
                continue
            low, median, high = map(x_of, found)
            bars.append(_text(LEFT - 6, at + 13, series.name, anchor="end"))
            bars.append(
                f'<rect x="{LEFT}" y="{at + 2:.1f}" width="{max(1.0, median - LEFT):.1f}" height="{ROW - 4}" '
                f'fill="{_colour(series.name)}"/>'
            )
            bars.append(_line(low, at + ROW / 2, high, at + ROW / 2, "whisker"))
            bars.append(_text(max(median, high) + 5, at + 13, _number(found[1]) + _ratio(chart, series, label)))
            at += ROW
        at += GAP
    for mark in marks:
        parts.append(_line(x_of(mark), y + TOP, x_of(mark), at - GAP, "grid"))
        parts.append(_text(x_of(mark), at + 4, _number(mark), "small", "middle"))
    return parts + bars, at + 16 - y


def _curves(chart: Chart, y: float) -> tuple[list[str], float]:
    parts = _head(chart, y)
    xs = sorted({x for series in chart.series for x, _ in series.points})
    marks = ticks(max(found[2] for series in chart.series for _, found in series.points))
    bottom, left = y + TOP + CURVE_HEIGHT, 70
    span = WIDTH - left - RIGHT
    width = math.log(xs[-1] / xs[0]) or 1.0

    def x_of(value: float) -> float:
        return left + span * math.log(value / xs[0]) / width

    def y_of(value: float) -> float:
        return bottom - CURVE_HEIGHT * value / marks[-1]

    for mark in marks:
        parts.append(_line(left, y_of(mark), left + span, y_of(mark), "grid"))
        parts.append(_text(left - 6, y_of(mark) + 4, _number(mark), "small", "end"))
    parts += [_text(x_of(x), bottom + 16, _number(x), "small", "middle") for x in xs]
    for series in chart.series:
        colour = _colour(series.name)
        path = " ".join(f"{x_of(x):.1f},{y_of(found[1]):.1f}" for x, found in series.points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for x, found in series.points:
            parts.append(_line(x_of(x), y_of(found[0]), x_of(x), y_of(found[2]), "whisker"))
            parts.append(f'<circle cx="{x_of(x):.1f}" cy="{y_of(found[1]):.1f}" r="3" fill="{colour}"/>')
            parts.append(_text(x_of(x), y_of(found[2]) - 6, _number(found[1]), anchor="middle"))
    return parts, bottom + 28 - y


def picture(charts: Sequence[Chart]) -> str:
    """Return one SVG with the charts below each other."""
    parts: list[str] = []
    y = 0.0
    for chart in charts:
        made, height = drawn(chart, y)
        parts += made
        y += height + 14
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y:.0f}" width="{WIDTH}" height="{y:.0f}">'
    return "\n".join([head, f"<style>{STYLE}</style>", *parts, "</svg>"]) + "\n"


def page_of(svg: str) -> str:
    """Return a page that shows the picture."""
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><title>Performance</title>'
    return f'{head}<body style="margin:2em auto;max-width:{WIDTH}px;color-scheme:light dark">\n{svg}</body></html>\n'


def write_charts(results: str, target: str = "docs/performance.svg") -> int:
    """Draw ``results``, a JSON object a line, into ``target``."""
    with open(results, encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream if line.strip()]
    charts = charts_of(rows)
    if not charts:
        print(f"{results} has nothing that could be charted.")
        return 1
    svg = picture(charts)
    with open(target, "w", encoding="utf-8") as out:
        out.write(page_of(svg) if target.endswith(".html") else svg)
    print(f"{len(charts)} charts of {len(rows)} rows: {target}")
    return 0
