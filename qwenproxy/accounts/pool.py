"""Who answers next: accounts in turn, a slot each answer, a fair queue, and what an answer's end teaches.

The state is the seats, the guests, the queue and the lessons that may not be on disk yet. `_serve_queue`
alone hands out slots and turns waiters away; `_learn` and `take_up` alone change what is known of an account.
What an end teaches stands in `lessons.py`; it counts in memory first, then on disk, and not at all when the
account's sign-in was replaced, or its human check passed, since the answer began.
"""

from __future__ import annotations

import asyncio
import logging
from bisect import insort
from collections.abc import AsyncGenerator, Collection, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import count

import anyio

from qwenproxy.accounts.account import Account
from qwenproxy.accounts.lessons import TEACHING, Ended, Lessons, consequence, lesson_of
from qwenproxy.accounts.refusals import no_account, no_guest, nobody
from qwenproxy.accounts.registry import Registry
from qwenproxy.activity import InFlight
from qwenproxy.clock import Clock
from qwenproxy.errors import (
    AccountGone,
    LimitReached,
    NeedsHuman,
    NoAccount,
    ParallelLimited,
    QueueFull,
    TokenRejected,
)

log = logging.getLogger(__name__)

CARE_S = 3600.0
CARE_PACE_S = 4.0
"""After a sign that the service watches an account: for an hour one answer at a time, starts this far apart
(protocol §13: careful clients run one and keep 3 to 4 s)."""

PREFERRED_S = 30.0
"""How long the account that knows a conversation is waited for while others are free."""

SOONEST_ALARM_S = 0.001

OUT_OF_TURN = (LimitReached, NeedsHuman, TokenRejected, AccountGone)
"""After these the pool itself keeps the account from the request, for as long as there is reason to."""


class AllTried(Exception):
    """Every account that could answer has been tried for this request."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What a newer reading of the registry brought."""

    gone: tuple[str, ...]
    signed_in: tuple[str, ...]
    """Signed in again."""
    woken: tuple[str, ...]
    """May answer now, and could not before."""


@dataclass(frozen=True, slots=True)
class SeatView:
    account: Account
    busy: int
    slots: int
    """How many answers at once it may give now."""
    careful_until: datetime | None


@dataclass(frozen=True, slots=True)
class PoolView:
    seats: tuple[SeatView, ...]
    queue: int


@dataclass(slots=True, eq=False)
class _Seat:
    account: Account
    busy: int = 0
    turn: int = 0
    """The number of its last start: the lowest is next."""
    next_start_s: float = 0.0
    careful_until_s: float = 0.0
    era: int = 0
    """Changes with its sign-in and when a person has passed its check."""


@dataclass(slots=True, eq=False)
class _Waiter:
    tried: frozenset[str]
    model: str
    only: frozenset[str] | None
    prefer: str
    arrived_s: float
    request: InFlight | None
    seat: _Seat | None = None
    refusal: Exception | None = None
    over: anyio.Event = field(default_factory=anyio.Event)

    def stand(self, place: int) -> None:
        if self.request is not None:
            self.request.place = place


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
        preferred_s: float = PREFERRED_S,
    ) -> None:
        self._seats = {account.id: _Seat(account) for account in accounts}
        self._guests: dict[str, _Seat] = {}
        self._leaving: dict[str, _Seat] = {}
        """Seats of removed accounts whose answers still run: one that comes back finds its slots taken."""
        self._clock = clock
        self._slots = slots
        self._pace_s = pace_s
        self._queue_timeout_s = queue_timeout_s
        self._preferred_s = preferred_s
        self._turns = count(1)
        self._queue: list[_Waiter] = []
        self._alarm: asyncio.TimerHandle | None = None
        self._lessons = Lessons(registry, clock)

    def __repr__(self) -> str:
        now = self._clock.now()
        seats = ", ".join(
            f"{s.account.id} {s.account.state(now)} {s.busy}/{self._slots_of(s)}"
            for s in self._seats.values()
        )
        return f"<Pool [{seats}] queue={len(self._queue)}>"

    # ---- what is known ----

    def usable(self, model: str = "") -> tuple[str, ...]:
        """Ids of the accounts that may answer now, with this model where one is named."""
        now = self._clock.now()
        return tuple(s.account.id for s in self._seats.values() if s.account.ready(now, model))

    def has_other_than(
        self, tried: frozenset[str], model: str = "", only: frozenset[str] | None = None
    ) -> bool:
        """Whether an account may answer now that is not in `tried`."""
        now = self._clock.now()
        return any(s.account.id not in tried and s.account.ready(now, model) for s in self._candidates(only))

    def why_away(self, account_id: str, model: str = "") -> str:
        """Why this account does not answer now, in a word; "" when it may."""
        seat = self._seats.get(account_id) or self._guests.get(account_id)
        if seat is None:
            return "account_deleted"
        if seat.account.invalid:
            return "account_invalid"
        if seat.account.paused:
            return "account_paused"
        if not seat.account.ready(self._clock.now(), model):
            return "account_waiting"
        return "account_busy" if seat.busy >= self._slots_of(seat) else ""

    def knows(self, account_id: str) -> bool:
        """Whether it is an account, or a guest, that still is there."""
        return account_id in self._seats or account_id in self._guests

    def ended(self) -> NoAccount | None:
        """Why no account will ever answer as things are; None while one may: a wait or a pause ends."""
        accounts = [seat.account for seat in self._seats.values()]
        return no_account(accounts) if all(account.invalid for account in accounts) else None

    def view(self) -> PoolView:
        now, now_s = self._clock.now(), self._clock.monotonic_s()
        seats = tuple(
            SeatView(
                seat.account,
                seat.busy,
                self._slots_of(seat),
                now + timedelta(seconds=seat.careful_until_s - now_s)
                if seat.careful_until_s > now_s
                else None,
            )
            for seat in self._seats.values()
        )
        return PoolView(seats, len(self._queue))

    # ---- a slot ----

    @asynccontextmanager
    async def lease(
        self,
        tried: frozenset[str] = frozenset(),
        *,
        model: str = "",
        request: InFlight | None = None,
        only: frozenset[str] | None = None,
        prefer: str = "",
    ) -> AsyncGenerator[str]:
        """A slot of the next account in turn, waited for in order of arrival; gives the account's id.

        `request` is shown its place in the queue, and its age is its right of way; `only` are the guests
        that may answer it; `prefer` is the account that is waited for, for a while, even if others are free.

        Raises:
            AllTried: accounts could answer, but each of them is in `tried`.
            NoAccount, AllWaiting, NeedsHuman: none can answer.
            QueueFull: no slot came free in time.
        """
        arrived_s = request.began_s if request is not None else self._clock.monotonic_s()
        seat = await self._seat(_Waiter(tried, model, only, prefer, arrived_s, request))
        era, taught = seat.era, False
        try:
            yield seat.account.id
        except TEACHING as exc:
            if seat.era == era:
                taught = self._learn(seat, exc, model)
            raise
        finally:
            self._give_back(seat)
            if taught:
                with anyio.CancelScope(shield=True):
                    await self.save()

    async def _seat(self, waiter: _Waiter) -> _Seat:
        insort(self._queue, waiter, key=lambda each: each.arrived_s)
        self._serve_queue()
        try:
            with anyio.move_on_after(self._queue_timeout_s):
                if waiter.prefer:
                    with anyio.move_on_after(self._preferred_s):
                        await waiter.over.wait()
                if not waiter.over.is_set():
                    waiter.prefer = ""
                    self._serve_queue()
                await waiter.over.wait()
            if waiter.refusal is not None:
                raise waiter.refusal
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
                waiter.stand(0)
                self._number_queue()

    def _serve_queue(self) -> None:
        """Gives every slot that can be given, first come first served; turns away who has no hope left."""
        left: list[_Waiter] = []
        for waiter in self._queue:
            waiter.seat = self._next(waiter)
            if waiter.seat is None:
                waiter.refusal = self._refusal(waiter)
            if waiter.seat is None and waiter.refusal is None:
                left.append(waiter)
            else:
                waiter.stand(0)
                waiter.over.set()
        self._queue = left
        self._number_queue()
        self._set_alarm()

    def _number_queue(self) -> None:
        for place, waiter in enumerate(self._queue, 1):
            waiter.stand(place)

    def _next(self, waiter: _Waiter) -> _Seat | None:
        """Takes a slot of the account whose last start is the longest ago."""
        now, now_s = self._clock.now(), self._clock.monotonic_s()
        able = [
            seat
            for seat in self._candidates(waiter.only)
            if seat.account.id not in waiter.tried and seat.account.ready(now, waiter.model)
        ]
        able = [seat for seat in able if seat.account.id == waiter.prefer] or able
        free = [s for s in able if s.busy < self._slots_of(s) and s.next_start_s <= now_s]
        if not free:
            return None
        seat = min(free, key=lambda each: each.turn)
        seat.busy += 1
        seat.turn = next(self._turns)
        seat.next_start_s = now_s + self._pace_of(seat)
        return seat

    def _give_back(self, seat: _Seat) -> None:
        seat.busy -= 1
        if not seat.busy and self._leaving.get(seat.account.id) is seat:
            del self._leaving[seat.account.id]
        self._serve_queue()

    def _candidates(self, only: frozenset[str] | None) -> Collection[_Seat]:
        if only is None:
            return self._seats.values()
        return [seat for account_id, seat in self._guests.items() if account_id in only]

    def _slots_of(self, seat: _Seat) -> int:
        return 1 if self._careful(seat) else self._slots

    def _pace_of(self, seat: _Seat) -> float:
        return max(self._pace_s, CARE_PACE_S) if self._careful(seat) else self._pace_s

    def _careful(self, seat: _Seat) -> bool:
        return seat.careful_until_s > self._clock.monotonic_s()

    def _set_alarm(self) -> None:
        """Has the queue served again when time alone may open a seat: a pace, an hour of care, a limit."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if self._queue:
            waits_s = [wait_s for wait_s in self._waits_s() if wait_s > 0]
            if waits_s:
                wait_s = max(min(waits_s), SOONEST_ALARM_S)
                self._alarm = asyncio.get_running_loop().call_later(wait_s, self._serve_queue)

    def _waits_s(self) -> Iterable[float]:
        now, now_s = self._clock.now(), self._clock.monotonic_s()
        for seat in (*self._seats.values(), *self._guests.values()):
            yield seat.next_start_s - now_s
            yield seat.careful_until_s - now_s
            for until in (seat.account.wait_until, *(until for _, until in seat.account.model_waits)):
                if until is not None:
                    yield (until - now).total_seconds()

    def _refusal(self, waiter: _Waiter) -> Exception | None:
        """Why nobody can answer this, now or when a slot comes free; None while somebody may."""
        now = self._clock.now()
        accounts = [seat.account for seat in self._candidates(waiter.only)]
        ready = [account for account in accounts if account.ready(now, waiter.model)]
        if ready:
            return AllTried() if all(account.id in waiter.tried for account in ready) else None
        if waiter.only is not None:
            return no_guest(accounts, now, waiter.model)
        return nobody(accounts, now, waiter.model)

    # ---- what an end teaches ----

    def _learn(self, seat: _Seat, exc: Ended, model: str) -> bool:
        """Changes the account in memory first: a disk that fails must not keep a limited account in turn.

        Gives whether there is something to store: a guest, or an account that was removed, is nobody's.
        """
        account = seat.account
        lesson = lesson_of(exc, account, model, self._clock.now())
        seat.account = lesson(account)
        if isinstance(exc, ParallelLimited):
            seat.careful_until_s = self._clock.monotonic_s() + CARE_S
        if self._seats.get(account.id) is not seat:
            log.warning("%s: %s", account.id, exc)
            return False
        log.warning("account %s: %s; %s", account.id, exc, consequence(seat.account, exc, model))
        self._lessons.add(lesson)
        return True

    async def save(self) -> None:
        """Stores what was learnt and is not on disk yet; what the disk refuses waits for the next call."""
        await self._lessons.save()

    # ---- who comes and goes ----

    def take_up(self, accounts: Iterable[Account], *, read_s: float | None = None) -> Changes:
        """What the registry holds now becomes the truth here, under what it has not been told yet.

        `read_s` is the monotonic time before it was read: what was stored later was not in it either.
        """
        now = self._clock.now()
        before, ready_before = self._seats, set(self.usable())
        signed_in: list[str] = []
        self._seats = {}
        for read in accounts:
            account = self._lessons.laid_over(read, read_s)
            seat = before.get(read.id) or self._leaving.pop(read.id, None) or _Seat(account)
            if seat.account.signed_in_at != account.signed_in_at:
                seat.era += 1
                signed_in.append(read.id)
            if seat.account.why == "human" and account.why != "human":
                seat.era += 1
                seat.careful_until_s = self._clock.monotonic_s() + CARE_S
            seat.account = account
            self._seats[read.id] = seat
        gone = tuple(account_id for account_id in before if account_id not in self._seats)
        self._leaving.update(
            (account_id, before[account_id]) for account_id in gone if before[account_id].busy
        )
        self._lessons.forget_all_but(self._seats)
        self._serve_queue()
        return Changes(
            gone,
            tuple(account_id for account_id in signed_in if account_id in before),
            tuple(
                account_id
                for account_id, seat in self._seats.items()
                if account_id not in ready_before and seat.account.ready(now)
            ),
        )

    def invite(self, account_id: str) -> None:
        """Seats a guest: it answers only the requests that name it."""
        self._guests.setdefault(account_id, _Seat(Account(account_id)))

    def dismiss(self, account_id: str) -> None:
        self._guests.pop(account_id, None)
        self._serve_queue()
