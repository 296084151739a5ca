"""Who answers next: accounts in turn, a slot each answer, a fair queue, and what an answer's end teaches.

The only mutable state is `_seats`, `_turn` and `_queue`; `_serve_queue` alone hands out slots, and a lease's
exit alone changes an account's state.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import anyio
from anyio.to_thread import run_sync

from qwenproxy.accounts.account import Account
from qwenproxy.accounts.registry import Registry
from qwenproxy.clock import Clock
from qwenproxy.errors import (
    AllWaiting,
    LimitReached,
    NeedsHuman,
    NoAccount,
    QueueFull,
    StoreError,
    TokenRejected,
)

log = logging.getLogger(__name__)

HUMAN_WAIT_S = 1800.0
"""How long an account rests after a human check was asked for; asking the service sooner only hardens it."""

LONGEST_WAIT = timedelta(hours=48)
"""No answer of the service rests an account longer than this."""


class AllTried(Exception):
    """Every account that could answer has been tried for this request."""


@dataclass(slots=True)
class _Seat:
    account: Account
    busy: int = 0
    next_start_s: float = 0.0


@dataclass(slots=True, eq=False)
class _Waiter:
    tried: frozenset[str]
    seat: _Seat | None = None
    changed: anyio.Event = field(default_factory=anyio.Event)


class Pool:
    def __init__(
        self,
        accounts: Iterable[Account],
        registry: Registry,
        clock: Clock,
        *,
        slots: int,
        pace_s: float,
        queue_timeout_s: float,
    ) -> None:
        self._seats = [_Seat(account) for account in accounts]
        self._registry = registry
        self._clock = clock
        self._slots = slots
        self._pace_s = pace_s
        self._queue_timeout_s = queue_timeout_s
        self._turn = 0
        self._queue: deque[_Waiter] = deque()

    def __repr__(self) -> str:
        now = self._clock.now()
        seats = ", ".join(
            f"{s.account.id} {s.account.state(now)} {s.busy}/{self._slots}" for s in self._seats
        )
        return f"<Pool [{seats}] queue={len(self._queue)}>"

    def usable(self) -> tuple[str, ...]:
        """Ids of the accounts that are OK now."""
        now = self._clock.now()
        return tuple(s.account.id for s in self._seats if s.account.state(now) == "OK")

    def has_other_than(self, tried: frozenset[str]) -> bool:
        """Whether an account is OK now that is not in `tried`."""
        return not tried.issuperset(self.usable())

    @asynccontextmanager
    async def lease(self, tried: frozenset[str] = frozenset()) -> AsyncGenerator[str]:
        """A slot of the next account in turn, waited for in order of arrival; gives the account's id.

        Raises:
            AllTried: accounts are usable, but each of them is in `tried`.
            NoAccount, AllWaiting, NeedsHuman: none is usable.
            QueueFull: no slot came free in time.
        """
        seat = await self._seat(tried)
        try:
            yield seat.account.id
        except (LimitReached, NeedsHuman, TokenRejected) as exc:
            with anyio.CancelScope(shield=True):
                await self._learn(seat, exc)
            raise
        finally:
            self._give_back(seat)

    async def _seat(self, tried: frozenset[str]) -> _Seat:
        self._refuse(tried)
        waiter = _Waiter(tried)
        self._queue.append(waiter)
        self._serve_queue()
        try:
            with anyio.move_on_after(self._queue_timeout_s):
                while waiter.seat is None:
                    await self._change(waiter)
                    self._serve_queue()
                    if waiter.seat is None:
                        self._refuse(tried)
            if waiter.seat is None:
                raise QueueFull(f"no account came free within {self._queue_timeout_s:g} s")
            return waiter.seat
        except BaseException:
            if waiter.seat is not None:
                self._give_back(waiter.seat)
            raise
        finally:
            if waiter in self._queue:
                self._queue.remove(waiter)

    async def _change(self, waiter: _Waiter) -> None:
        """Returns when something may have changed for `waiter`: a slot, an account's state, its pace."""
        waits = [seat.next_start_s - self._clock.monotonic_s() for seat in self._open(waiter.tried)]
        with anyio.move_on_after(max(min(waits), 0.0)) if waits else anyio.move_on_after(None):
            await waiter.changed.wait()
        waiter.changed = anyio.Event()

    def _serve_queue(self) -> None:
        """Gives every slot that can be given, first come first served."""
        for waiter in list(self._queue):
            seat = self._next(waiter.tried)
            if seat is not None:
                seat.busy += 1
                seat.next_start_s = self._clock.monotonic_s() + self._pace_s
                waiter.seat = seat
                self._queue.remove(waiter)
                waiter.changed.set()

    def _give_back(self, seat: _Seat) -> None:
        seat.busy -= 1
        self._serve_queue()
        for waiter in self._queue:  # an account may be out of turn now: each looks whether it still has hope
            waiter.changed.set()

    def _open(self, tried: frozenset[str]) -> list[_Seat]:
        """Seats with a free slot, whether their pace allows a start now or not."""
        now = self._clock.now()
        return [
            s
            for s in self._seats
            if s.account.state(now) == "OK" and s.busy < self._slots and s.account.id not in tried
        ]

    def _next(self, tried: frozenset[str]) -> _Seat | None:
        now_s = self._clock.monotonic_s()
        free = [s for s in self._open(tried) if s.next_start_s <= now_s]
        if not free:
            return None
        count = len(self._seats)
        seat = min(free, key=lambda s: (self._seats.index(s) - self._turn) % count)
        self._turn = (self._seats.index(seat) + 1) % count
        return seat

    def _refuse(self, tried: frozenset[str]) -> None:
        if self.has_other_than(tried):
            return
        now = self._clock.now()
        states = [s.account.state(now) for s in self._seats]
        if "OK" in states:
            raise AllTried
        waiting = [s.account for s, st in zip(self._seats, states, strict=True) if st == "WAIT"]
        if not waiting:
            raise NoAccount("no account is signed in" if not states else "every account's sign-in is gone")
        if all(account.why == "human" for account in waiting):
            raise NeedsHuman("the service asks for a human check on every account that could answer")
        soonest = min(account.wait_until or now for account in waiting)
        raise AllWaiting(
            f"every account waits out a limit; the first is free at {soonest:%Y-%m-%d %H:%M} UTC",
            retry_after_s=max((soonest - now).total_seconds(), 1.0),
        )

    async def _learn(self, seat: _Seat, exc: LimitReached | NeedsHuman | TokenRejected) -> None:
        """Changes the account in memory first: a disk that fails must not keep a limited account in turn."""
        account = seat.account
        match exc:
            case TokenRejected():
                seat.account = replace(account, invalid=True)
            case LimitReached():
                seat.account = replace(account, wait_until=self._until(exc.wait_s), why="limit")
            case NeedsHuman():
                seat.account = replace(account, wait_until=self._until(HUMAN_WAIT_S), why="human")
        log.warning("account %s: %s", account.id, exc)
        try:
            await run_sync(self._registry.record, seat.account)
        except (StoreError, OSError):
            log.exception("account %s: its new state could not be stored", account.id)

    def _until(self, wait_s: float) -> datetime:
        return self._clock.now() + min(timedelta(seconds=wait_s), LONGEST_WAIT)
