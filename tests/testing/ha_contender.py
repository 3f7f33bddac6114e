"""A contender as a process of its own: ``python -m tests.testing.ha_contender '<configuration as JSON>'``.

While it leads it writes growing numbers and says one line for each thing that happens: joined, granted, wrote, refused,
revoked, violation. It goes on writing until a write is refused, whether or not it was told that it is deposed.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading

from engine.core.config import Configuration
from engine.core.errors import EngineError, ExternalError
from engine.core.ids import FencingToken
from engine.ha.contracts import LeadershipLostError, MetadataStore
from engine.ha.services import high_availability_services

NAME = "register/value"


class Register:
    """One leader's use of a value that must only grow: (number of the leadership, number of the write).

    A leader begins with what it reads, and writes under the next greater number of leadership. If a write of an earlier
    leader took effect after one of ours, we would read less than we wrote.
    """

    def __init__(self, store: MetadataStore, token: FencingToken) -> None:
        self._store = store
        self._token = token
        self.num_written = 0
        self.violation = ""

    def _read(self) -> tuple[int, int]:
        value = self._store.get(NAME)
        return (0, 0) if value is None else tuple(json.loads(value))

    def write_until_refused(self, stop: threading.Event) -> None:
        """Return when a write was refused, when ``stop`` is set, or when a violation was seen."""
        epoch = None
        while not stop.is_set() and not self.violation:
            try:
                if epoch is None:
                    epoch = self._read()[0] + 1
                wanted = (epoch, self.num_written + 1)
                self._store.put(self._token, NAME, json.dumps(wanted).encode())
                self.num_written += 1
                found = self._read()
            except LeadershipLostError:
                return
            except ExternalError:
                continue  # not known whether it was written: the same again
            if found < wanted:
                self.violation = f"wrote {wanted}, then read {found}"


class Teller:
    def __init__(self, store: MetadataStore) -> None:
        self._store = store

    def leadership_granted(self, token: FencingToken) -> None:
        say(f"granted {token}")
        threading.Thread(target=self._write, args=(token,), daemon=True).start()

    def _write(self, token: FencingToken) -> None:
        register, pause = Register(self._store, token), threading.Event()
        while True:
            before = register.num_written
            one_write = _AfterOne(register)
            register.write_until_refused(one_write)
            if register.violation:
                say(f"violation {register.violation}")
                return
            if register.num_written == before:
                say(f"refused {token}")
                return
            if before == 0:
                say(f"wrote {token}")
            pause.wait(0.001)

    def leadership_revoked(self, reason: str) -> None:
        say(f"revoked {reason}")

    def election_failed(self, error: EngineError) -> None:
        say(f"failed {error}")


class _AfterOne(threading.Event):
    """Set as soon as the register has written once more."""

    def __init__(self, register: Register) -> None:
        super().__init__()
        self._register = register
        self._before = register.num_written

    def is_set(self) -> bool:
        return self._register.num_written > self._before


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())  # at once: two threads say something


async def main() -> None:
    services = high_availability_services(Configuration(json.loads(sys.argv[1])))
    assert services is not None
    await services.election().start(Teller(services.metadata()))
    say("joined")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
