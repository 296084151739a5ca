"""How the accounts of a running proxy are: as it knows them, and as the service says when asked for free."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

import anyio
from anyio.to_thread import run_sync

from qwenproxy.accounts.account import Account
from qwenproxy.accounts.pool import Pool, PoolView
from qwenproxy.accounts.registry import Registry
from qwenproxy.clock import Clock
from qwenproxy.errors import NeedsHuman, QwenProxyError, StoreError, TokenRejected

log = logging.getLogger(__name__)

FRESH_S = 10.0
"""Who asks again sooner gets what was found: a script in a loop must not become a load on the service."""
BETWEEN_S = 1.0
"""Between two accounts: the same person's computer asks for all of them."""


class Checkup:
    def __init__(
        self, pool: Pool, registry: Registry, who: Callable[[str], Awaitable[dict[str, Any]]], clock: Clock
    ) -> None:
        self._pool = pool
        self._registry = registry
        self._who = who
        self._clock = clock
        self._one_at_a_time = anyio.Lock()
        self._notes: dict[str, str] = {}
        self._fresh_until_s = 0.0

    def view(self) -> PoolView:
        """The accounts as the running proxy knows them."""
        return self._pool.view()

    async def served_today(self) -> Mapping[str, int]:
        """Answers per account since midnight here; none while the disk cannot tell."""
        try:
            return await run_sync(self._registry.served, self._clock.now().astimezone().date())
        except (StoreError, OSError):
            return {}

    async def run(self) -> Mapping[str, str]:
        """What was found, by account id: "live", "signed out", or why it could not be asked.

        States are written to the registry. A limit's wait stays: it is the service's, not the sign-in's.
        """
        async with self._one_at_a_time:
            if self._clock.monotonic_s() >= self._fresh_until_s:
                self._notes = await self._ask_all()
                self._fresh_until_s = self._clock.monotonic_s() + FRESH_S
            return self._notes

    async def _ask_all(self) -> dict[str, str]:
        notes: dict[str, str] = {}
        for account in await run_sync(self._registry.accounts):
            if notes:
                await anyio.sleep(BETWEEN_S)
            notes[account.id] = await self._ask(account)
        return notes

    async def _ask(self, account: Account) -> str:
        try:
            await self._who(account.id)
        except TokenRejected:
            await self._learn(account, invalid=True)
            return "signed out"
        except NeedsHuman as exc:
            await self._learn(account, why="human")
            return str(exc)
        except QwenProxyError as exc:
            return str(exc)
        await self._learn(account, invalid=False)
        return "live"

    async def _learn(self, account: Account, **found: Any) -> None:
        if replace(account, **found) == account:
            return
        try:
            await run_sync(self._registry.update, account.id, lambda known: replace(known, **found))
        except (StoreError, OSError):
            log.exception("account %s: what the check found could not be stored", account.id)
