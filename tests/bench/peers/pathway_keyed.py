"""A keyed sum in Pathway: EVENTS KEYS. Its results come by commit, not by event, which is less work."""

import sys

import pathway as pw

num_events, num_keys = map(int, sys.argv[1:3])


class Event(pw.Schema):
    user: int
    amount: float


class Events(pw.io.python.ConnectorSubject):
    def run(self):
        for i in range(num_events):
            mixed = i * 2654435761 & 0xFFFFFFFF
            self.next(user=mixed % num_keys, amount=(mixed & 0xFFFFF) / 1000.0)


counts = {}


def see(key, row, time, is_addition):
    if is_addition:
        counts[row["user"]] = row["events"]


events = pw.io.python.read(Events(), schema=Event, autocommit_duration_ms=100)
sums = events.groupby(pw.this.user).reduce(
    pw.this.user, total=pw.reducers.sum(pw.this.amount), events=pw.reducers.count()
)
pw.io.subscribe(sums, see)
pw.run(monitoring_level=pw.MonitoringLevel.NONE)
print("events", sum(counts.values()))
