"""What the proxy is doing: requests inside, the last failures, answers per account. In memory, and no texts.

The gateway writes it; the console's live view and the counts of answers read it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import count

from qwenproxy.clock import Clock
from qwenproxy.errors import CallerError, QwenProxyError

FAILURES_KEPT = 20


@dataclass(slots=True, eq=False)
class InFlight:
    """One answer being made, as it stands."""

    number: int
    """Counted from the start of the proxy."""
    model: str
    began_s: float
    """Monotonic, as every time here that is no `datetime`."""
    account_id: str = ""
    """Who answers; "" while it waits for an account."""
    started_s: float | None = None
    """When the first piece came."""
    pieces: int = 0
    place: int = 0
    """In the queue, 1 is the next; 0 when it does not wait."""
    step: str = ""
    """What is done with its files before it is asked; "" when nothing is."""


@dataclass(frozen=True, slots=True)
class Failure:
    at: datetime
    code: str
    message: str
    account_id: str
    """"" where no account was at work."""


class Activity:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._numbers = count(1)
        self._inside: dict[int, InFlight] = {}
        self._failures: deque[Failure] = deque(maxlen=FAILURES_KEPT)
        self._served: Counter[str] = Counter()

    @contextmanager
    def begin(self, model: str) -> Iterator[InFlight]:
        """A request that is inside until this is left, however that is."""
        request = InFlight(next(self._numbers), model, self._clock.monotonic_s())
        self._inside[request.number] = request
        try:
            yield request
        finally:
            del self._inside[request.number]

    def in_flight(self) -> tuple[InFlight, ...]:
        """Oldest first."""
        return tuple(self._inside.values())

    def fail(self, error: QwenProxyError, account_id: str = "") -> None:
        """Keeps a failure for the owner to see; what the caller did wrong is the caller's affair."""
        if not isinstance(error, CallerError):
            self._failures.appendleft(Failure(self._clock.now(), error.code, str(error), account_id))

    def failures(self) -> tuple[Failure, ...]:
        """The last ones, newest first."""
        return tuple(self._failures)

    def serve(self, account_id: str) -> None:
        """Counts a whole answer."""
        self._served[account_id] += 1

    def take_served(self) -> dict[str, int]:
        """Answers given by each account since this was asked last."""
        taken, self._served = dict(self._served), Counter()
        return taken
