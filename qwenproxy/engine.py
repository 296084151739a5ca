"""Builds everything a running proxy consists of, in the order of the layers, and takes it down again.

While it runs it follows the session folder: the menu, the commands and other programs change accounts there,
and the pool takes the change up within a second.
"""

from __future__ import annotations

import logging
import secrets
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

import anyio
from anyio.abc import TaskGroup
from anyio.to_thread import run_sync

from qwenproxy.accounts.pool import Pool
from qwenproxy.accounts.registry import Registry
from qwenproxy.activity import Activity
from qwenproxy.addresses import ServiceHosts
from qwenproxy.browser.chromium import Chromium
from qwenproxy.browser.contexts import BrowserTransport
from qwenproxy.browser.site_page import StorageState, state_from_token
from qwenproxy.checkup import Checkup
from qwenproxy.clock import Clock, SystemClock
from qwenproxy.conversations import Conversations
from qwenproxy.copies import Copies
from qwenproxy.errands import Errands
from qwenproxy.errors import AccountGone, QwenProxyError, StoreError
from qwenproxy.exchanges import Exchanges
from qwenproxy.file_store import FileStore
from qwenproxy.filming import Videos
from qwenproxy.gateway import Gateway
from qwenproxy.guests import Guests
from qwenproxy.history import History
from qwenproxy.hosting import Hosting
from qwenproxy.intake import Attachments
from qwenproxy.janitor import Janitor
from qwenproxy.ledger import Ledger
from qwenproxy.library import Library
from qwenproxy.media_rows import MediaRows
from qwenproxy.model_names import ModelNames
from qwenproxy.qwen.client import QwenClient
from qwenproxy.qwen.file_uploads import Uploads
from qwenproxy.qwen.speech_service import SpeechService
from qwenproxy.qwen.video_service import VideoService
from qwenproxy.remote_file import RemoteFiles
from qwenproxy.response_store import ResponseStore
from qwenproxy.settings import Settings
from qwenproxy.shelf import Shelf
from qwenproxy.showing import Showing
from qwenproxy.speaking import Speech
from qwenproxy.studio import Studio
from qwenproxy.tokens import Tokens
from qwenproxy.turn_order import TurnOrder
from qwenproxy.video_tasks import VideoTasks

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.5
"""Between two looks at the session folder: one `stat` each."""
REMIND_EVERY = timedelta(days=1)
DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Engine:
    """What the server and the console are given."""

    gateway: Gateway
    conversations: Showing
    library: Library
    registry: Registry
    guests: Guests
    checkup: Checkup
    files: FileStore
    hosting: Hosting
    media: Shelf
    videos: Videos
    speech: Speech
    responses: ResponseStore


@asynccontextmanager
async def engine(settings: Settings, *, chromium: Chromium | None = None) -> AsyncGenerator[Engine]:
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
        token = guests.token(account_id)
        if token is not None:
            return state_from_token(token, settings.upstream)
        if not registry.known(account_id):
            raise AccountGone("this account has been deleted")
        saved = registry.browser_state(account_id)
        return saved or state_from_token(registry.token(account_id), settings.upstream)

    transport = BrowserTransport(settings, state_of, registry.keep_state, chromium=chromium)
    client = QwenClient(transport, settings, clock)
    guests = Guests(pool, transport.forget, client.who, clock)
    ledger = await run_sync(Ledger, settings.session_dir / "chats.jsonl")
    janitor = Janitor(ledger, client, keep=settings.keep_chats)
    activity = Activity(clock)

    def not_ready(usable: tuple[str, ...]) -> str | None:
        if any(transport.ready(account_id) for account_id in usable):
            return None
        if not usable and not settings.passthrough_tokens:
            return "no account is usable"
        return transport.problem() or (usable and "the first account's page is still opening") or None

    jitter = secrets.SystemRandom().random
    names = ModelNames(settings.session_dir)
    await run_sync(names.open)
    files = FileStore(settings.session_dir, clock, most_bytes=settings.max_file_bytes)
    copies = Copies(settings.session_dir, clock)
    hosting = Hosting(files, copies, Uploads(client, settings, clock), pool, clock)
    gateway = Gateway(
        pool,
        client,
        hosting,
        janitor,
        settings,
        clock,
        activity=activity,
        not_ready=not_ready,
        jitter=jitter,
        names=names,
        tokens=Tokens(),
    )
    hosts = ServiceHosts((settings.upstream, settings.storage_endpoint))
    media = MediaRows(settings.session_dir, clock)
    shelf = Shelf(media, files, hosts, transport.cookies, upstream=settings.upstream, proxy=settings.proxy)
    remote = RemoteFiles(settings)
    attachments = Attachments(files, remote, shelf, hosting, hosts, settings)
    history = History(settings.session_dir, clock)
    exchanges = Exchanges(settings.session_dir, clock, most=settings.remember_answers)
    responses = ResponseStore(settings.session_dir, clock, most=settings.remember_answers)
    turns = TurnOrder(settings.queue_timeout_s)
    conversations = Conversations(
        gateway,
        history,
        exchanges,
        janitor,
        turns,
        clock,
        attachments,
        most=settings.max_history,
        keeps_chats=settings.keep_chats,
    )
    library = Library(history, turns, janitor.discard, pool.knows, clock, attachments)
    errands = Errands(pool, activity)
    made = VideoTasks(settings.session_dir, clock)
    videos = Videos(
        made,
        pool,
        errands,
        VideoService(client, clock),
        janitor,
        attachments,
        hosting,
        Studio(shelf, files),
        gateway.models,
        clock,
        model=settings.default_model,
    )
    reader = SpeechService(client, transport, clock, idle_s=settings.idle_timeout_s)
    speech = Speech(
        pool, errands, client, reader, janitor, gateway.models, clock, model=settings.default_model
    )
    with (
        closing(history),
        closing(exchanges),
        closing(responses),
        closing(copies),
        closing(media),
        closing(made),
    ):
        async with transport, shelf, janitor.at_work(), anyio.create_task_group() as tasks:
            tasks.start_soon(_warm_up, pool.usable(), transport, janitor, gateway)
            tasks.start_soon(conversations.forget_unwanted, videos.chats)
            tasks.start_soon(videos.follow)
            tasks.start_soon(_Follower(gateway, hosting, registry, names, transport, janitor, clock).run)
            tasks.start_soon(guests.keep_few)
            tasks.start_soon(hosting.clear_left_over)
            tasks.start_soon(_tidy, files, settings.keep_files_days)
            checkup = Checkup(pool, registry, client.who, clock)
            shown = Showing(conversations, shelf)
            yield Engine(
                gateway,
                shown,
                library,
                registry,
                guests,
                checkup,
                files,
                hosting,
                shelf,
                videos,
                speech,
                responses,
            )
            tasks.cancel_scope.cancel()


async def _tidy(files: FileStore, days: int) -> None:
    """Deletes files that nobody needs, now and once a day, until cancelled."""
    while True:
        try:
            gone = await run_sync(files.sweep, days)
            if gone:
                log.info("%d files of messages, unused for %d days, were deleted", gone, days)
        except StoreError as exc:
            log.warning("files that nobody needs could not be deleted: %s", exc)
        await anyio.sleep(DAY_S)


async def _warm_up(
    account_ids: tuple[str, ...], transport: BrowserTransport, janitor: Janitor, gateway: Gateway
) -> None:
    """Opens the accounts' pages before anybody waits for them, then tidies what an earlier run left.

    Failures show at the first request.
    """
    for account_id in account_ids:
        with suppress(QwenProxyError):
            await transport.warm(account_id)
            await gateway.models()
    for account_id in account_ids:
        if transport.ready(account_id):
            await janitor.clear_left_over(account_id)


class _Follower:
    """Carries what changes in the session folder into the running proxy, and back what may be late."""

    def __init__(
        self,
        gateway: Gateway,
        hosting: Hosting,
        registry: Registry,
        names: ModelNames,
        transport: BrowserTransport,
        janitor: Janitor,
        clock: Clock,
    ) -> None:
        self._gateway = gateway
        self._hosting = hosting
        self._pool = gateway.pool
        self._registry = registry
        self._names = names
        self._transport = transport
        self._janitor = janitor
        self._clock = clock
        self._stamp: object = None
        self._complaint = ""
        self._owed: Counter[str] = Counter()
        self._reminded: dict[str, datetime] = {}

    async def run(self) -> None:
        """Until cancelled; what was served is counted to the end."""
        try:
            async with anyio.create_task_group() as tasks:
                # Apart, so that a slow disk under what is written holds up nothing that is read.
                tasks.start_soon(self._again_and_again, partial(self._look, tasks))
                tasks.start_soon(self._again_and_again, self._write)
                tasks.start_soon(self._again_and_again, partial(run_sync, self._names.look))
        finally:
            with anyio.CancelScope(shield=True):
                await self._write()

    async def _again_and_again(self, step: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await step()
            except Exception:  # a bug here must not end the answers under way
                log.exception("following the session folder failed")
            await anyio.sleep(LOOK_EVERY_S)

    async def _write(self) -> None:
        await self._pool.save()
        await self._count()
        self._remind()

    async def _look(self, tasks: TaskGroup) -> None:
        read_s = self._clock.monotonic_s()
        try:
            stamp = await run_sync(self._registry.stamp)
            if stamp == self._stamp:
                return
            accounts = await run_sync(self._registry.accounts)
        except (StoreError, OSError) as exc:
            await self._heal(f"cannot be read: {exc}")
            return
        if not accounts and not await run_sync(self._registry.there):
            await self._heal("is gone")
            return
        self._stamp, self._complaint = stamp, ""
        changes = self._pool.take_up(accounts, read_s=read_s)
        for account_id in changes.gone:
            log.info("account %s was deleted; its streams end", account_id)
            tasks.start_soon(self._transport.forget, account_id)
            tasks.start_soon(self._hosting.forget_account, account_id)
        for account_id in changes.signed_in:
            log.info("account %s was signed in again", account_id)
            self._transport.replace(account_id)
        if changes.woken:
            tasks.start_soon(_warm_up, changes.woken, self._transport, self._janitor, self._gateway)

    async def _heal(self, complaint: str) -> None:
        """Serving goes on with the accounts known; the file is rebuilt where it can be."""
        if complaint == self._complaint:
            return
        self._complaint = complaint
        log.error("tokens.json %s; serving goes on with the accounts known", complaint)
        with suppress(StoreError, OSError):
            for line in await run_sync(self._registry.open):
                log.warning("%s", line)

    def _remind(self) -> None:
        """Says ahead, once a day, that a sign-in ends."""
        now = self._clock.now()
        for account in (seat.account for seat in self._pool.view().seats):
            said_at = self._reminded.get(account.id)
            due = said_at is None or now - said_at >= REMIND_EVERY
            if due and account.holds_until is not None and account.ends_soon(now):
                self._reminded[account.id] = now
                log.warning(
                    "account %s: its sign-in ends on %s; sign in again from the menu",
                    account.id,
                    f"{account.holds_until:%Y-%m-%d %H:%M} UTC",
                )

    async def _count(self) -> None:
        """A disk that fails is owed the counts."""
        self._owed.update(self._gateway.activity.take_served())
        if not self._owed:
            return
        today = self._clock.now().astimezone().date()
        with suppress(StoreError, OSError):
            await run_sync(self._registry.add_served, today, dict(self._owed))
            self._owed.clear()
