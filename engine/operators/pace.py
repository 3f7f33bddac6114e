"""When a loop over many calls of Python functions lets others work: after about 10 ms, whatever a call takes."""

from __future__ import annotations

from typing import Final, final

from engine.core.clock import Clock

__all__ = ["Pace"]

_PIECE_MS: Final = 10
#: Calls that are a piece in any case.
_CALLS_MAX: Final = 8192
#: Calls between two looks at the clock: few of slow ones, and of fast ones so many that the looks cost nothing.
_STRIDE_MAX: Final = 64


@final
class Pace:
    """``stride``: calls to be made before ``is_over`` is asked."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.begin()

    def begin(self) -> None:
        """A piece begins, also: others have worked."""
        self._since_ms = self._clock.monotonic_ms()
        self._num_calls = 0
        self.stride = 1

    def is_over(self) -> bool:
        """Whether the piece has come to its end."""
        self._num_calls += self.stride
        took_ms = self._clock.monotonic_ms() - self._since_ms
        if took_ms >= _PIECE_MS or self._num_calls >= _CALLS_MAX:
            return True
        if not took_ms:
            self.stride = min(_STRIDE_MAX, 2 * self.stride)
        return False
