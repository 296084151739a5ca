"""Sign-ins that come with a request: `Authorization: Bearer TOKEN1,TOKEN2`, as some older proxies had it.

A guest is an account of its own requests alone: never in the general turn, never on disk, known by a mark
of its token instead of the token. A bare token lives 15 minutes today (protocol §1.2), so guests come and go.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import anyio

from qwenproxy.clock import Clock
from qwenproxy.errors import QueueFull, TokenRejected

MOST = 8
"""Guests at once: each has a browser context, some 50 MB."""
IDLE_S = 600.0
"""A guest that asked nothing for so long is put away."""
SWEEP_EVERY_S = 30.0
TOKEN_MARK = "eyJ"  # noqa: S105 - how every JWT begins; the service's tokens are JWTs (protocol §1.2)


class Seats(Protocol):
    def invite(self, account_id: str) -> None: ...

    def dismiss(self, account_id: str) -> None: ...


@dataclass(slots=True)
class _Guest:
    token: str = field(repr=False)
    used_s: float
    inside: int = 0


class Guests:
    def __init__(
        self,
        seats: Seats,
        forget: Callable[[str], Awaitable[None]],
        who: Callable[[str], Awaitable[dict[str, Any]]],
        clock: Clock,
    ) -> None:
        """`forget` closes a guest's browser context; `who` asks the service who it is, free of charge."""
        self._seats = seats
        self._forget = forget
        self._who = who
        self._clock = clock
        self._guests: dict[str, _Guest] = {}

    def token(self, account_id: str) -> str | None:
        """The token of a guest, for the browser's storage alone; None for whoever is none."""
        guest = self._guests.get(account_id)
        return guest.token if guest is not None else None

    @asynccontextmanager
    async def inside(self, tokens: Sequence[str]) -> AsyncGenerator[frozenset[str]]:
        """The ids that stand for `tokens` while the request runs.

        Raises:
            QueueFull: too many other guests are being served.
        """
        ids: list[str] = []
        try:
            for token in dict.fromkeys(tokens):
                ids.append(await self._let_in(token))  # noqa: PERF401 - who is in is let out, whatever fails
            yield frozenset(ids)
        finally:
            for account_id in ids:
                self._guests[account_id].inside -= 1
                self._guests[account_id].used_s = self._clock.monotonic_s()

    async def token_lives(self, token: str) -> bool:
        """Whether the service still takes it; costs no message.

        Raises: whatever keeps the service from being asked.
        """
        async with self.inside([token]) as ids:
            try:
                await self._who(*ids)
            except TokenRejected:
                return False
            return True

    async def keep_few(self) -> None:
        """Until cancelled: puts idle guests away."""
        while True:
            await anyio.sleep(SWEEP_EVERY_S)
            old_s = self._clock.monotonic_s() - IDLE_S
            for account_id in [i for i, g in self._guests.items() if not g.inside and g.used_s < old_s]:
                await self._put_away(account_id)

    async def _let_in(self, token: str) -> str:
        account_id = "guest_" + hashlib.sha256(token.encode()).hexdigest()[:16]
        if account_id not in self._guests and len(self._guests) >= MOST:
            await self._make_room()
        if account_id not in self._guests:
            self._guests[account_id] = _Guest(token, self._clock.monotonic_s())
            self._seats.invite(account_id)
        self._guests[account_id].inside += 1
        return account_id

    async def _make_room(self) -> None:
        idle = [account_id for account_id, guest in self._guests.items() if not guest.inside]
        if not idle:
            raise QueueFull(f"{MOST} foreign tokens are being served already")
        await self._put_away(min(idle, key=lambda account_id: self._guests[account_id].used_s))

    async def _put_away(self, account_id: str) -> None:
        del self._guests[account_id]
        self._seats.dismiss(account_id)
        await self._forget(account_id)


def tokens_in(authorization: str) -> tuple[str, ...]:
    """The service's tokens in an `Authorization` header; none when something else is in it, such as a key."""
    scheme, _, value = authorization.partition(" ")
    found = tuple(part.strip() for part in value.split(",") if part.strip())
    sound = scheme.lower() == "bearer" and all(part.startswith(TOKEN_MARK) for part in found)
    return found if sound else ()
