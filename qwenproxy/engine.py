"""Builds everything a running proxy consists of, in the order of the layers, and takes it down again."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

import anyio
from anyio.to_thread import run_sync

from qwenproxy.accounts.pool import Pool
from qwenproxy.accounts.registry import Registry
from qwenproxy.browser.chromium import Chromium
from qwenproxy.browser.contexts import BrowserTransport, StorageState, state_from_token
from qwenproxy.clock import SystemClock
from qwenproxy.errors import QwenProxyError
from qwenproxy.gateway import Gateway
from qwenproxy.janitor import Janitor
from qwenproxy.ledger import Ledger
from qwenproxy.qwen.client import QwenClient
from qwenproxy.settings import Settings


@asynccontextmanager
async def engine(settings: Settings, *, chromium: Chromium | None = None) -> AsyncGenerator[Gateway]:
    """A gateway over the accounts of the session folder; its browser, unless lent, starts in the background.

    Raises:
        SessionDamaged: `tokens.json` cannot be read.
    """
    clock = SystemClock()
    registry = Registry(settings.session_dir, clock)
    pool = Pool(
        await run_sync(registry.accounts),
        registry,
        clock,
        slots=settings.slots_per_account,
        pace_s=settings.pace_s,
        queue_timeout_s=settings.queue_timeout_s,
    )

    def state_of(account_id: str) -> StorageState:
        saved = registry.browser_state(account_id)
        return saved or state_from_token(registry.token(account_id), settings.upstream)

    transport = BrowserTransport(settings, state_of, chromium=chromium)
    client = QwenClient(transport, settings, clock)
    ledger = await run_sync(Ledger, settings.session_dir / "chats.jsonl")
    janitor = Janitor(ledger, client, keep=settings.keep_chats)

    def not_ready(usable: tuple[str, ...]) -> str | None:
        if any(transport.ready(account_id) for account_id in usable):
            return None
        if not usable:
            return "no account is usable"
        return transport.problem() or "the first account's page is still opening"

    jitter = secrets.SystemRandom().random
    gateway = Gateway(pool, client, janitor, settings, clock, not_ready=not_ready, jitter=jitter)
    async with transport, janitor.at_work(), anyio.create_task_group() as tasks:
        tasks.start_soon(_warm_up, pool, transport, janitor, gateway)
        yield gateway
        tasks.cancel_scope.cancel()


async def _warm_up(pool: Pool, transport: BrowserTransport, janitor: Janitor, gateway: Gateway) -> None:
    """Opens the accounts' pages before anybody waits for them, then tidies what an earlier run left.

    Failures show at the first request.
    """
    usable = pool.usable()
    for account_id in usable:
        with suppress(QwenProxyError):
            await transport.warm(account_id)
            await gateway.models()
    for account_id in usable:
        if transport.ready(account_id):
            await janitor.clear_left_over(account_id)
