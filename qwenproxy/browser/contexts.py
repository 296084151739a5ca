"""The road over one Chromium: a context per account, opened late, replaced when its sign-in is."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Self

import anyio
from anyio.abc import TaskGroup
from anyio.to_thread import run_sync

from qwenproxy.browser.account_context import AccountContext, KeepState, StateOf
from qwenproxy.browser.chromium import Chromium
from qwenproxy.browser.install import Say
from qwenproxy.browser.site_page import SitePage
from qwenproxy.errors import QwenProxyError, SessionDamaged
from qwenproxy.qwen.transport import Fetch, Fetched
from qwenproxy.settings import Settings

log = logging.getLogger(__name__)


class BrowserTransport:
    """A `Transport` over one Chromium: `async with` it; everything it started is gone after.

    `state_of` gives an account's stored sign-in and `keep_state` stores a newer copy of the same one; both
    are called in threads. `keep_state` gives False for an account that is not stored.
    """

    def __init__(
        self,
        settings: Settings,
        state_of: StateOf,
        keep_state: KeepState | None = None,
        *,
        chromium: Chromium | None = None,
        say: Say = log.info,
    ) -> None:
        self._settings = settings
        self._state_of = state_of
        self._keep_state = keep_state
        self._lent = chromium is not None
        self.chromium = chromium or Chromium(settings, say=say)
        self._accounts: dict[str, AccountContext] = {}
        self._retired: list[tuple[str, AccountContext]] = []
        self._closing = False
        self._life = AsyncExitStack()
        self._tasks: TaskGroup

    def __repr__(self) -> str:
        return f"<BrowserTransport {self.chromium!r} {list(self._accounts.values())}>"

    async def __aenter__(self) -> Self:
        if not self._lent:
            await self._life.enter_async_context(self.chromium)
        self._tasks = await self._life.enter_async_context(anyio.create_task_group())
        self._life.callback(self._tasks.cancel_scope.cancel)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        await self._life.aclose()

    @asynccontextmanager
    async def fetch(self, account_id: str, call: Fetch) -> AsyncGenerator[Fetched]:
        """Raises: AccountGone, TokenRejected, Unreachable, NeedsHuman, BrowserMissing, BrowserLost."""
        page = await self._page(account_id)
        async with page.bridge.fetch(call) as fetched:
            yield fetched

    async def renew(self, account_id: str, rejected: str) -> bool:
        """Raises: AccountGone, TokenRejected, Unreachable, BrowserMissing, BrowserLost."""
        account = self._account(account_id)
        if await account.renew(rejected):
            return True
        if account.retired or not await account.outdated():
            return False
        self._replace(account_id, account)
        return await (await self._page(account_id)).bridge.credential() not in {"", rejected}

    async def asks_human(self, account_id: str) -> bool:
        """Whether a verification dialog stands in the account's page. Raises as `fetch` does."""
        return await (await self._page(account_id)).bridge.asks_human()

    async def warm(self, account_id: str) -> None:
        """Returns when the account's page has booted from what is stored now. Raises as `fetch` does.

        Who has passed a check in a window has left its cookies there.
        """
        account = self._accounts.get(account_id)
        if account is not None and await account.outdated():
            self._replace(account_id, account)
        await self._page(account_id)

    async def cookies(self, account_id: str, url: str) -> dict[str, str]:
        """What the browser would send to `url` as this account.

        Raises: AccountGone, SessionDamaged, TokenRejected, BrowserMissing, BrowserLost.
        """
        if account_id not in self._accounts:
            try:
                await run_sync(self._state_of, account_id)  # no context is made for one that is gone
            except OSError as exc:
                raise SessionDamaged(f"this account's sign-in cannot be read: {exc.strerror}") from None
        return await self._account(account_id).cookies(url)

    def ready(self, account_id: str) -> bool:
        account = self._accounts.get(account_id)
        return account is not None and account.page is not None and account.page.lost is None

    def problem(self) -> str | None:
        """Why no page can be opened, or why one could not."""
        found = (str(account.problem) for account in self._accounts.values() if account.problem is not None)
        return self.chromium.problem() or next(found, None)

    async def forget(self, account_id: str) -> None:
        """Ends the account's calls and closes its context; nothing of it is kept any more."""
        current = self._accounts.pop(account_id, None)
        own = [account for name, account in self._retired if name == account_id]
        for account in [*own, *([current] if current else [])]:
            account.retired = True
            await account.stop()

    def replace(self, account_id: str) -> None:
        """Somebody has signed in again: new calls go to a fresh context, those that run end in the old."""
        account = self._accounts.get(account_id)
        if account is not None:
            self._replace(account_id, account)

    def _replace(self, account_id: str, account: AccountContext) -> None:
        account.retired = True
        if self._accounts.get(account_id) is account and not self._closing:
            account.has_successor = True
            del self._accounts[account_id]
            self._tasks.start_soon(self._retire, account_id, account)
            self._account(account_id)

    async def _retire(self, account_id: str, account: AccountContext) -> None:
        self._retired.append((account_id, account))
        try:
            await account.retire()
        finally:
            self._retired.remove((account_id, account))

    async def _page(self, account_id: str) -> SitePage:
        while True:
            account = self._account(account_id)
            try:
                page = await account.usable_page()
            except QwenProxyError:
                if not account.has_successor:
                    raise
            else:
                if not account.has_successor:
                    return page

    def _account(self, account_id: str) -> AccountContext:
        account = self._accounts.get(account_id)
        if account is None:
            account = AccountContext(
                account_id, self._settings, self.chromium, self._state_of, self._keep_state
            )
            account.overtaken = partial(self._replace, account_id, account)
            self._accounts[account_id] = account
            self._tasks.start_soon(account.run)
        return account
