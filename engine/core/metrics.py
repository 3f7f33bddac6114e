"""User metrics and accumulators: plain values that are counted in a subtask and merged in the JobManager."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, final

__all__ = [
    "Accumulator",
    "AverageAccumulator",
    "Counter",
    "Distribution",
    "DoubleCounter",
    "Gauge",
    "Histogram",
    "IntCounter",
    "ListAccumulator",
    "LongCounter",
    "Meter",
    "MetricGroup",
]


class Accumulator(abc.ABC):
    """Counts in one subtask; ``merge`` adds another subtask's. Picklable. ``add`` is called by user code."""

    @abc.abstractmethod
    def add(self, value: Any) -> None: ...

    @abc.abstractmethod
    def get_local_value(self) -> Any: ...

    @abc.abstractmethod
    def merge(self, other: Any) -> None: ...


class _Sum(Accumulator):
    def __init__(self, value: Any = 0) -> None:
        self._value = value

    def add(self, value: Any = 1) -> None:
        self._value += value

    def get_local_value(self) -> Any:
        return self._value

    def merge(self, other: _Sum) -> None:
        self._value += other._value


@final
class IntCounter(_Sum):
    pass


@final
class LongCounter(_Sum):
    pass


@final
class DoubleCounter(_Sum):
    def __init__(self, value: float = 0.0) -> None:
        super().__init__(value)


@final
class AverageAccumulator(Accumulator):
    def __init__(self) -> None:
        self._sum = 0.0
        self._count = 0

    def add(self, value: float) -> None:
        self._sum += value
        self._count += 1

    def get_local_value(self) -> float:
        return self._sum / self._count if self._count else 0.0

    def merge(self, other: AverageAccumulator) -> None:
        self._sum += other._sum
        self._count += other._count


@final
class ListAccumulator(Accumulator):
    def __init__(self) -> None:
        self._values: list[Any] = []

    def add(self, value: Any) -> None:
        self._values.append(value)

    def get_local_value(self) -> list[Any]:
        return self._values

    def merge(self, other: ListAccumulator) -> None:
        self._values.extend(other._values)


@final
class Histogram(Accumulator):
    """Counts how often each integer value came; the result is {value: count}, sorted by value."""

    def __init__(self) -> None:
        self._count_by_value: dict[int, int] = {}

    def add(self, value: int) -> None:
        self._count_by_value[value] = self._count_by_value.get(value, 0) + 1

    def get_local_value(self) -> dict[int, int]:
        return dict(sorted(self._count_by_value.items()))

    def merge(self, other: Histogram) -> None:
        for value, count in other._count_by_value.items():
            self._count_by_value[value] = self._count_by_value.get(value, 0) + count


@final
class Counter:
    """A metric that only its subtask changes."""

    def __init__(self) -> None:
        self._count = 0

    def inc(self, n: int = 1) -> None:
        self._count += n

    def dec(self, n: int = 1) -> None:
        self._count -= n

    def get_count(self) -> int:
        return self._count


@final
class Meter:
    """Counts events; the rate is computed where it is read."""

    def __init__(self) -> None:
        self._count = 0

    def mark_event(self, value: int = 1) -> None:
        self._count += value

    def get_count(self) -> int:
        return self._count


@final
class Distribution:
    """Minimum, maximum, sum and count of updates."""

    def __init__(self) -> None:
        self.count = 0
        self.sum = 0
        self.min: int | None = None
        self.max: int | None = None

    def update(self, value: int) -> None:
        self.count += 1
        self.sum += value
        self.min = value if self.min is None else min(self.min, value)
        self.max = value if self.max is None else max(self.max, value)


@final
class Gauge:
    """A value read when it is asked for."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function

    def get_value(self) -> Any:
        return self._function()


class MetricGroup:
    """A scope of named metrics, as PyFlink's: ``group.add_group("a").counter("n")``."""

    def __init__(self, scope: tuple[str, ...] = (), metrics: dict[str, Any] | None = None) -> None:
        self._scope = scope
        self._metrics: dict[str, Any] = {} if metrics is None else metrics

    def add_group(self, name: str, extra: str | None = None) -> MetricGroup:
        added = (name,) if extra is None else (name, extra)
        return MetricGroup(self._scope + added, self._metrics)

    def _register(self, name: str, metric: Any) -> Any:
        self._metrics[".".join((*self._scope, name))] = metric
        return metric

    def counter(self, name: str) -> Counter:
        return self._register(name, Counter())

    def gauge(self, name: str, obj: Callable[[], Any]) -> Gauge:
        return self._register(name, Gauge(obj))

    def meter(self, name: str, time_span_in_seconds: int = 60) -> Meter:
        return self._register(name, Meter())

    def distribution(self, name: str) -> Distribution:
        return self._register(name, Distribution())

    def snapshot(self) -> dict[str, Any]:
        """Return {dotted name: JSON-able value} now."""
        values: dict[str, Any] = {}
        for name, metric in self._metrics.items():
            match metric:
                case Counter() | Meter():
                    values[name] = metric.get_count()
                case Gauge():
                    values[name] = metric.get_value()
                case Distribution():
                    values[name] = {
                        "count": metric.count,
                        "sum": metric.sum,
                        "min": metric.min,
                        "max": metric.max,
                    }
        return values
