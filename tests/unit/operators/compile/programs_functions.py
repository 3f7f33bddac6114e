"""Functions as programs write them, of Rows with id, price, name, count, ok, day and note (a text or None).

``REASONS``: of those that do not run on columns, a part of what ``explain`` says.
"""

from __future__ import annotations

import math
from typing import Any

RATE = 0.19
COUNTRIES = {"de": "Germany", "fr": "France"}
KNOWN = ("a", "b", "c")
BLOCKED = frozenset({3, 5})
LIMITS = [1, 2, 3]


def net(price, rate=RATE, *, digits=2):
    return round(price / (1 + rate), digits)


def grade(r):
    if r.price >= 90:
        return "A"
    elif r.price >= 50:
        return "B"
    return "C"


def clamped(value, low=0, high=100):
    return max(low, min(value, high))


def tax(r):
    base = r.price * r.count
    if base > 1000:
        rate = 0.2
    elif base > 100:
        rate = 0.1
    else:
        rate = 0.0
    return r.id, base * rate


def summed(r):
    total = 0
    for i in range(3):
        total += r.id * i
    return total


def powers(r):
    n = 0
    while n < 3:
        n += 1
    return r.id + n


def described(r):
    """What it is."""
    name = r.name.strip().lower()
    kind = "cheap" if r.price < 10 else "dear"
    return f"{name}:{kind}:{r.id}"


def collatz(r):
    n = abs(r.id)
    return n // 2 if n % 2 == 0 else 3 * n + 1


def safe(r):
    try:
        return int(r.name)
    except ValueError:
        return -1


def walrus(r):
    if (n := r.count * 2) > 6:
        return n
    return -n


COMPILED: list[Any] = [
    lambda r: r.price * r.count,
    lambda r: r.price * (1 + RATE),
    lambda r: (r.name, r.price),
    lambda r: (r.id, r.price * 2, r.name.upper()),
    lambda r: round(r.price, 2),
    lambda r: round(r.price),
    lambda r: round(r.id, 1),
    lambda r: net(r.price),
    lambda r: net(r.price, 0.07),
    lambda r: net(price=r.price, digits=1),
    grade,
    tax,
    described,
    collatz,
    summed,
    walrus,
    lambda r: clamped(r.count, high=5),
    lambda r: clamped(r.price, 0.0, 100.0),
    lambda r: min(r.id, r.count, 7),
    lambda r: max(r.price, 0.0),
    lambda r: abs(r.id - r.count),
    lambda r: r.id ** 2,
    lambda r: r.price ** 2,
    lambda r: r.price ** 0.5,
    lambda r: pow(r.id, 2),
    lambda r: r.price // 1,
    lambda r: r.price % 1.0,
    lambda r: r.id // 4 * 4,
    lambda r: -r.id % 7,
    lambda r: +r.id,
    lambda r: ~r.id,
    lambda r: r.id / r.count if r.count else 0.0,
    lambda r: r.name if r.name else "none",
    lambda r: r.name or "none",
    lambda r: r.ok and r.price > 3,
    lambda r: not r.ok,
    lambda r: 0 < r.price <= 10,
    lambda r: r.name == "a" or r.name == "b",
    lambda r: r.name in ("a", "b"),
    lambda r: r.name in {"a", "b"},
    lambda r: r.name in KNOWN,
    lambda r: r.name in COUNTRIES,
    lambda r: r.id in BLOCKED,
    lambda r: r.id not in LIMITS,
    lambda r: r.id in (1, 2, r.count),
    lambda r: r.id in range(3),
    lambda r: COUNTRIES.get(r.name, "other"),
    lambda r: COUNTRIES[r.name],
    lambda r: {"a": 1, "b": 2}.get(r.name, 0),
    lambda r: "x" in r.name,
    lambda r: "x" not in r.name,
    lambda r: r.note is None,
    lambda r: r.note if r.note is not None else "-",
    lambda r: r.note is not None and len(r.note) > 1,
    lambda r: r.note or "-",
    lambda r: len(r.name) > 1,
    lambda r: int(r.price),
    lambda r: float(r.id),
    lambda r: str(r.id),
    lambda r: str(r.price),
    lambda r: str(r.ok),
    lambda r: bool(r.count),
    lambda r: int(r.ok),
    lambda r: f"{r.name}-{r.id}",
    lambda r: f"{r.price:.2f}",
    lambda r: f"{r.price}",
    lambda r: f"{r.id:05d}",
    lambda r: "%s-%d" % (r.name, r.id),  # noqa: UP031
    lambda r: "{}-{}".format(r.name, r.id),  # noqa: UP032
    lambda r: r.name + "!" * 3,
    lambda r: r.name * 2,
    lambda r: "-".join([r.name, str(r.id)]),
    lambda r: r.name.lower(),
    lambda r: r.name.strip(),
    lambda r: r.name.lstrip(),
    lambda r: r.name.rstrip(),
    lambda r: r.name.strip("ab"),
    lambda r: r.name.title(),
    lambda r: r.name.capitalize(),
    lambda r: r.name.swapcase(),
    lambda r: r.name.startswith("a"),
    lambda r: r.name.startswith(("a", "b")),
    lambda r: r.name.endswith("c"),
    lambda r: r.name.replace("a", "b"),
    lambda r: r.name.replace(" ", ""),
    lambda r: r.name.find("b"),
    lambda r: r.name.count("a"),
    lambda r: r.name.isdigit(),
    lambda r: r.name.isalpha(),
    lambda r: r.name.isalnum(),
    lambda r: r.name.isspace(),
    lambda r: r.name.isupper(),
    lambda r: r.name[0],
    lambda r: r.name[:2],
    lambda r: r.name[1:],
    lambda r: r.name[-1],
    lambda r: r.name[-2:],
    lambda r: r.name[::-1],
    lambda r: r.name[:r.count],
    lambda r: r.name.split(",")[0],
    lambda r: r.name.split(",")[-1],
    lambda r: r.name.split()[0],
    lambda r: len(r.name.split(",")),
    lambda r: r.name.split(",", 1)[0],
    lambda r: r.name.partition("=")[2],
    lambda r: r.name.zfill(4),
    lambda r: r.name.rjust(4),
    lambda r: r.name.ljust(4, "."),
    lambda r: r.name.removeprefix("a"),
    lambda r: r.name.removesuffix("c"),
    lambda r: ord(r.name[0]),
    lambda r: chr(r.id),
    lambda r: math.sqrt(abs(r.price)),
    lambda r: math.floor(r.price),
    lambda r: math.ceil(r.price),
    lambda r: math.log(r.price + 100),
    lambda r: math.exp(r.price),
    lambda r: math.sin(r.price),
    lambda r: math.fabs(r.price),
    lambda r: math.trunc(r.price),
    lambda r: math.isnan(r.price),
    lambda r: math.isfinite(r.price),
    lambda r: math.pi * r.price,
    lambda r: math.hypot(r.price, 3.0),
    lambda r: r.day.year,
    lambda r: (r.day.month, r.day.day),
    lambda r: r.day.hour * 60 + r.day.minute,
    lambda r: r.day.weekday(),
    lambda r: r.day.isoformat(),
    lambda r: r.day.strftime("%Y-%m-%d"),
    lambda r: r.day,
    lambda r: r,
]  # fmt: skip

REASONS: list[tuple[Any, str]] = [
    (safe, "Try statement"),
    (powers, "While statement"),
    (lambda r: max(r.price, 0), "min or max of mixed types"),
    (lambda r: divmod(r.id, 3), "it calls divmod"),
    (lambda r: r.id / r.count if r.count != 0 else None, "it uses a NoneType"),
    (lambda r: r.name.encode(), "it calls .encode()"),
    (lambda r: hash(r.name), "it calls hash"),
    (lambda r: sorted([r.id, r.count])[0], "it has a List"),
    (lambda r: sum((r.id, r.count)), "it has a Tuple"),
    (lambda r: any([r.ok, r.id > 3]), "it has a List"),
    (lambda r: all((r.ok, r.id > 3)), "it has a Tuple"),
    (lambda r: (r.id, None), "it uses a NoneType"),
    (lambda r: {"id": r.id}, "it has a Dict"),
    (lambda r: [r.id, r.name], "it has a List"),
    (lambda r: isinstance(r.id, int), "it uses a type"),
    (lambda r: (lambda x: x + 1)(r.id), "it calls something"),
    (lambda r: print(r.id), "it calls print"),
]  # fmt: skip
