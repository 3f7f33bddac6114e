"""Savepoints and checkpoints that users have asked for and that wait for their turn. Pure; part of ``coordinator``."""

from __future__ import annotations

from collections import deque
from typing import Final, final

from engine.checkpoint.messages import AnswerRequest
from engine.checkpoint.pending import Request
from engine.core.ids import JobID

__all__ = ["RequestQueue"]

#: More are a mistake.
QUEUE_MAX: Final = 100
#: A savepoint that tasks' ends made impossible is tried so often.
TRIES_MAX: Final = 10


@final
class RequestQueue:
    """In the order in which they came. What is returned answers those that leave without being begun."""

    def __init__(self, job_id: JobID, timeout_ms: int) -> None:
        self._job_id = job_id
        self._timeout_ms = timeout_ms
        self._waiting: deque[Request] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def first(self) -> Request:
        return self._waiting[0]

    def take(self) -> Request:
        return self._waiting.popleft()

    def put(self, request: Request, now_ms: int) -> list[AnswerRequest]:
        if len(self._waiting) >= QUEUE_MAX:
            return [self.refusal(request, f"{QUEUE_MAX} others wait for their turn")]
        request.deadline_ms = now_ms + self._timeout_ms
        self._waiting.append(request)
        return []

    def put_back(self, request: Request) -> bool:
        """It is to be tried again, before the others; return False when that was done too often."""
        if request.tries >= TRIES_MAX:
            return False
        request.tries += 1
        self._waiting.appendleft(request)
        return True

    def refusal(self, request: Request, why: str) -> AnswerRequest:
        what = "savepoint" if request.folder else "checkpoint"
        return AnswerRequest(request.request_id, error=f"No {what} of job {self._job_id} was taken: {why}.")

    def refuse_all(self, why: str) -> list[AnswerRequest]:
        refused = [self.refusal(request, why) for request in self._waiting]
        self._waiting.clear()
        return refused

    def expire(self, now_ms: int, why: str) -> list[AnswerRequest]:
        late = [request for request in self._waiting if request.deadline_ms <= now_ms]
        for request in late:
            self._waiting.remove(request)
        return [self.refusal(request, why) for request in late]

    def deadlines_ms(self) -> list[int]:
        return [request.deadline_ms for request in self._waiting]
