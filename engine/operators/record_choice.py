"""Which of two records of a key stays: the law of ``min_by``, ``max_by`` and of reduce functions that pick a record."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, Final, final

__all__ = ["SIGNS", "RecordChoice"]

SIGNS: Final = ("<", "<=", ">", ">=")


@final
@dataclass(frozen=True, slots=True)
class RecordChoice:
    """The next record takes the place of the one so far if ``next[field] sign so_far[field]`` holds; ``negated``: if
    that does not hold, which is another law where one of both is NaN. ``sign``: one of SIGNS."""

    field: int | str
    sign: str
    negated: bool = False

    @classmethod
    def of_kind(cls, kind: str, field: int | str) -> RecordChoice:
        """Return the law of min_by or max_by: of equal records the first one stays."""
        return cls(field, {"min_by": "<", "max_by": ">"}[kind])

    def takes_over(self, following: Any, held: Any) -> Any:
        """Say of each pair of values, in two arrays, whether the next record takes the place of the one so far."""
        holds = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}[self.sign](following, held)
        return ~holds if self.negated else holds

    @property
    def law(self) -> tuple[int, bool]:
        """As kernels take it: (place of the sign in SIGNS, negated)."""
        return SIGNS.index(self.sign), self.negated
