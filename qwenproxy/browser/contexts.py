"""A context per account with its own cookies and storage, and in it one page that speaks for the account.

Each account that is used has one task, `Account.run`: it opens the page, watches it, closes it when it is
lost and opens the next. Callers only wait for it, so one that leaves never leaves a half-open page behind.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from ipaddress import ip_address
from types import TracebackType
from typing import Any, Self, TypeAlias
from urllib.parse import urlsplit

import anyio
from anyio.abc import TaskGroup
from anyio.to_thread import run_sync
from playwright.async_api import BrowserContext, CDPSession, Frame, Page, Response
from playwright.async_api import Error as PlaywrightError

from qwenproxy.browser.bridge import Bridge
from qwenproxy.browser.chromium import Chromium, Running, reaching
from qwenproxy.browser.install import Say
from qwenproxy.errors import BrowserLost, QwenProxyError, TokenRejected, Unreachable
from qwenproxy.qwen.transport import Fetch, Fetched
from qwenproxy.settings import Settings

StorageState: TypeAlias = dict[str, Any]
"""Cookies and local storage, in the shape Playwright saves and loads."""
StateOf: TypeAlias = Callable[[str], StorageState]

CALL_S = 10.0
"""Seconds for one call about a page or context."""
BOOT_S = 20.0
"""Seconds for the site to answer and its scripts to boot; usually 2 to 4."""
LIST_S = 10.0
"""Seconds of those that wait for the site's own list of chats; then a quiet network will do."""
RENEW_S = 20.0
RENEW_POLL_S = 0.1
WATCH_EVERY_S = 2.0
"""Seconds between two looks at a page; also how long silence raises doubt while a call is open."""
IDLE_S = 10.0
"""Seconds of silence after which a page is asked for a sign of life before it is used."""
SAVE_EVERY_S = 60.0
"""Seconds between two copies of an account's cookies and storage, from which a lost context is rebuilt."""
LIVED_S = 5.0
"""A page that is lost younger counts as a failed opening."""
BACK_OFF_LIMIT_S = 60.0

log = logging.getLogger(__name__)


def state_from_token(token: str, upstream: str) -> StorageState:
    """What a browser holds that signed in with this token (protocol §1.2, eras A and B)."""
    url = urlsplit(upstream)
    host = url.hostname or ""
    cookie = {
        "name": "token",
        "value": token,
        "domain": ".qwen.ai" if host.endswith(".qwen.ai") else host,
        "path": "/",
        "expires": -1,
        "httpOnly": False,
        "secure": url.scheme == "https",
        "sameSite": "Lax",
    }
    origin = {"origin": upstream, "localStorage": [{"name": "token", "value": token}]}
    return {"cookies": [cookie], "origins": [origin]}


def mark_of(token: str | None) -> str:
    """Tells one token from another without telling the token; as `fetch.js` does."""
    return hashlib.sha256(token.encode()).hexdigest()[:16] if token else ""


def is_loopback(origin: str) -> bool:
    host = urlsplit(origin).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


async def new_context(running: Running, upstream: str, state: StorageState | None) -> BrowserContext:
    """Raises: BrowserLost."""
    with anyio.CancelScope(shield=True), reaching("the browser", CALL_S):
        context = await running.browser.new_context(
            storage_state=state,  # type: ignore[arg-type]
            ignore_https_errors=is_loopback(upstream),
        )
    return context  # noqa: RET504 - mypy holds that the scope above may swallow


def at_sign_in(page: Page) -> bool:
    return urlsplit(page.url).path.startswith("/auth")


def _is_own_list(response: Response) -> bool:
    """The site's own list of chats, answered well: the app has booted (protocol §1.4, §2)."""
    url = urlsplit(response.url)
    if url.path.rstrip("/") != "/api/v2/chats" or "page=" not in url.query:
        return False
    return response.status < 400 and response.headers.get("x-actual-status-code", "200") < "400"


async def open_site(page: Page, url: str) -> None:
    """Raises: Unreachable, BrowserLost."""
    try:
        with anyio.fail_after(BOOT_S):
            response = await page.goto(url, wait_until="commit", timeout=BOOT_S * 1000)
    except TimeoutError:
        raise Unreachable(f"the site did not answer within {BOOT_S:g} s") from None
    except PlaywrightError as exc:
        log.debug("Playwright: %s", exc.message)
        if "net::ERR" in exc.message or "Timeout" in exc.message:
            raise Unreachable("the browser could not reach the site") from None
        raise BrowserLost("the page went away while it opened") from None
    if response is not None and response.status >= 500:
        raise Unreachable(f"the site answered with status {response.status}")


async def boot(page: Page, upstream: str) -> None:
    """Until the site's scripts have booted: a call fired into a cold page is refused (protocol §2).

    Raises:
        TokenRejected: the site shows its sign-in page.
        Unreachable, BrowserLost
    """
    settled = anyio.Event()

    def answered(response: Response) -> None:
        if _is_own_list(response):
            settled.set()

    def navigated(_frame: Frame) -> None:
        if at_sign_in(page):
            settled.set()

    page.on("response", answered)
    page.on("framenavigated", navigated)
    try:
        with anyio.move_on_after(BOOT_S):
            await open_site(page, f"{upstream}/")
            with anyio.move_on_after(LIST_S):
                await settled.wait()
            if not settled.is_set():
                log.info("the site did not list its chats; waiting for its network to be quiet")
                with reaching("the page", BOOT_S):
                    await page.wait_for_load_state("networkidle", timeout=0)
    finally:
        page.remove_listener("response", answered)
        page.remove_listener("framenavigated", navigated)
    if at_sign_in(page):
        raise TokenRejected("the site asks this account to sign in")


async def close(thing: Page | BrowserContext) -> None:
    """Within a deadline, whatever becomes of the caller."""
    with anyio.CancelScope(shield=True), suppress(BrowserLost), reaching("the page", CALL_S):
        await thing.close()


class SitePage:
    """One booted page with its bridge, from opening to loss."""

    def __init__(self, page: Page, session: CDPSession) -> None:
        self._page = page
        self._session = session
        self._gone = anyio.Event()
        self.bridge = Bridge(session)
        self.lost: str | None = None

    @classmethod
    async def open(cls, context: BrowserContext, settings: Settings) -> Self:
        """Raises: TokenRejected, Unreachable, BrowserLost."""
        with anyio.CancelScope(shield=True), reaching("the browser", CALL_S):
            page = await context.new_page()
        try:
            await boot(page, settings.upstream)
            with reaching("the page", CALL_S):
                session = await context.new_cdp_session(page)
            opened = cls(page, session)
            await opened._watch_document()
            await opened.bridge.install(settings.auth_upstream)
        except BaseException:
            await close(page)
            raise
        return opened

    async def _watch_document(self) -> None:
        """A page crashes, is closed, or navigates, which kills its calls; `pushState` is no navigation."""
        self._page.on("crash", lambda _page: self.lose("the page crashed"))
        self._page.on("close", lambda _page: self.lose("the page was closed"))
        self._session.on("Page.frameNavigated", self._navigated)
        with reaching("the page", CALL_S):
            await self._session.send("Page.enable")

    def _navigated(self, event: dict[str, Any]) -> None:
        if "parentId" not in event["frame"]:
            self.lose("the page navigated away")

    def lose(self, why: str) -> None:
        if self.lost is None:
            self.lost = why
            self.bridge.lose(why)
            self._gone.set()

    async def answers(self) -> bool:
        try:
            await self.bridge.ping()
        except BrowserLost:
            self.lose("the page hung")
        return self.lost is None

    async def watch(self) -> None:
        """Until the page is lost."""
        while self.lost is None:
            with anyio.move_on_after(WATCH_EVERY_S):
                await self._gone.wait()
            if self.lost is None and self.bridge.open_calls and self.bridge.quiet_s > WATCH_EVERY_S:
                await self.answers()

    async def close(self) -> None:
        self.lose("the page was closed")
        await close(self._page)


class Account:
    """One account's context and page."""

    def __init__(self, account_id: str, settings: Settings, chromium: Chromium, state_of: StateOf) -> None:
        self._id = account_id
        self._settings = settings
        self._chromium = chromium
        self._state_of = state_of
        self._state: StorageState | None = None
        self._context: BrowserContext | None = None
        self._running: Running | None = None
        self._attempt = anyio.Event()
        self._wanted = anyio.Event()
        self._scope = anyio.CancelScope()
        self._ended = anyio.Event()
        self._renewing = anyio.Lock()
        self._making_context = anyio.Lock()
        self._opening = anyio.CancelScope()
        self._deaf: Callable[[], None] = lambda: None
        self.page: SitePage | None = None
        self.problem: QwenProxyError | None = None

    def __repr__(self) -> str:
        return f"<Account {self._id} {'ready' if self.page else self.problem or 'opening'}>"

    async def usable_page(self) -> SitePage:
        """Raises: TokenRejected, Unreachable, BrowserMissing, BrowserLost."""
        page = self.page
        if page is not None and page.lost is None and (page.bridge.quiet_s < IDLE_S or await page.answers()):
            return page
        attempt = self._attempt
        self._wanted.set()
        await attempt.wait()
        if self.problem is not None:
            raise type(self.problem)(*self.problem.args)
        if self.page is None or self.page.lost is not None:
            raise BrowserLost("the page was lost as soon as it opened")
        return self.page

    async def run(self) -> None:
        """The account's one task, until `stop`."""
        failures = 0
        try:
            with self._scope:
                while True:
                    failures = failures + 1 if not await self._live() else 0
                    await self._back_off(failures)
        finally:
            with anyio.CancelScope(shield=True):
                await self._drop_context()
            self._settle(None, BrowserLost("the account was put away"))
            self._ended.set()

    async def stop(self) -> None:
        self._scope.cancel()
        await self._ended.wait()

    async def _live(self) -> bool:
        """One page, from its opening to its loss. False when it failed or died young."""
        try:
            page = await self._open()
        except QwenProxyError as exc:
            log.warning("account %s has no page: %s", self._id, exc)
            self._settle(None, exc)
            return False
        opened_at_s = time.monotonic()
        self._settle(page, None)
        try:
            await self._watch(page)
            log.warning("account %s lost its page: %s", self._id, page.lost)
        finally:
            self.page = None
            await page.close()
        return time.monotonic() - opened_at_s > LIVED_S

    async def _watch(self, page: SitePage) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._keep_saving)
            await page.watch()
            tasks.cancel_scope.cancel()

    async def _back_off(self, failures: int) -> None:
        """A caller ends the wait at once; a signed-out account is not tried again without one."""
        if failures == 0:
            return
        longest_s = min(BACK_OFF_LIMIT_S, 0.5 * 2.0**failures)
        with anyio.move_on_after(None if isinstance(self.problem, TokenRejected) else longest_s):
            await self._wanted.wait()

    def _settle(self, page: SitePage | None, problem: QwenProxyError | None) -> None:
        self.page, self.problem = page, problem
        self._attempt.set()
        # Who asks from now on, also while the lost page is being closed, wants another attempt.
        self._attempt, self._wanted = anyio.Event(), anyio.Event()

    async def _open(self) -> SitePage:
        """Raises: TokenRejected, Unreachable, BrowserMissing, BrowserLost."""
        context = await self._usable_context()
        with anyio.CancelScope() as self._opening:
            try:
                return await SitePage.open(context, self._settings)
            except BrowserLost:
                await self._drop_context()
                raise
        raise BrowserLost("the browser was lost while the page opened")

    async def _usable_context(self) -> BrowserContext:
        """Raises: BrowserMissing, BrowserLost."""
        async with self._making_context:
            running = await self._chromium.current()
            if self._context is None or self._running is not running:
                state = self._state or await run_sync(self._state_of, self._id)
                self._context = await new_context(running, self._settings.upstream, state)
                self._running = running
                self._deaf = running.on_lost(self._browser_lost)
            return self._context

    def _browser_lost(self, why: str) -> None:
        self._context = None
        self._opening.cancel()
        if self.page is not None:
            self.page.lose(why)

    async def _drop_context(self) -> None:
        context, self._context = self._context, None
        self._deaf()
        if context is not None:
            await close(context)

    async def _keep_saving(self) -> None:
        while True:
            await self._save_state()
            await anyio.sleep(SAVE_EVERY_S)

    async def _save_state(self) -> None:
        """A renewed token or session cookie must outlive this context."""
        context = self._context
        if context is not None:
            with suppress(BrowserLost), reaching("the browser", CALL_S):
                self._state = dict(await context.storage_state(indexed_db=True))

    async def renew(self, rejected: str) -> bool:
        """Raises: Unreachable, BrowserMissing, BrowserLost."""
        async with self._renewing:
            page = self.page
            if page is not None and page.lost is None:
                with suppress(BrowserLost):
                    if await page.bridge.credential() not in {"", rejected}:
                        return True
            return await self._renew_in_second_page(rejected)

    async def _renew_in_second_page(self, rejected: str) -> bool:
        context = await self._usable_context()
        with anyio.CancelScope(shield=True), reaching("the browser", CALL_S):
            page = await context.new_page()
        try:
            with anyio.move_on_after(RENEW_S):
                if await _renewed(page, self._settings.upstream, rejected):
                    await self._save_state()
                    return True
        finally:
            await close(page)
        return False


async def _renewed(page: Page, upstream: str, rejected: str) -> bool:
    """Waits until the page holds another token, or shows the sign-in page."""
    if not rejected:
        # Any token counts then, so the site must have had its say about the one it holds.
        with suppress(TokenRejected):
            await boot(page, upstream)
    else:
        await open_site(page, f"{upstream}/")
    while not at_sign_in(page):
        if mark_of(await token_of(page)) not in {"", rejected}:
            return True
        await anyio.sleep(RENEW_POLL_S)
    return False


async def token_of(page: Page) -> str | None:
    """What the page's storage holds now; None also while the page navigates."""
    try:
        with anyio.fail_after(CALL_S):
            found: str | None = await page.evaluate("localStorage.getItem('token')")
    except PlaywrightError:
        return None
    except TimeoutError:
        raise BrowserLost(f"the page did not answer within {CALL_S:g} s") from None
    return found


class BrowserTransport:
    """A `Transport` over one Chromium: `async with` it; everything it started is gone after.

    `state_of` gives an account's stored sign-in, in a thread; it is asked once per account and start.
    """

    def __init__(
        self,
        settings: Settings,
        state_of: StateOf,
        *,
        chromium: Chromium | None = None,
        say: Say = log.info,
    ) -> None:
        self._settings = settings
        self._state_of = state_of
        self._lent = chromium is not None
        self.chromium = chromium or Chromium(settings, say=say)
        self._accounts: dict[str, Account] = {}
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
        await self._life.aclose()

    @asynccontextmanager
    async def fetch(self, account_id: str, call: Fetch) -> AsyncGenerator[Fetched]:
        """Raises: TokenRejected, Unreachable, NeedsHuman, BrowserMissing, BrowserLost."""
        page = await self._account(account_id).usable_page()
        async with page.bridge.fetch(call) as fetched:
            yield fetched

    async def renew(self, account_id: str, rejected: str) -> bool:
        """Raises: Unreachable, BrowserMissing, BrowserLost."""
        return await self._account(account_id).renew(rejected)

    async def warm(self, account_id: str) -> None:
        """Returns when the account's page has booted. Raises as `fetch` does."""
        await self._account(account_id).usable_page()

    def ready(self, account_id: str) -> bool:
        account = self._accounts.get(account_id)
        return account is not None and account.page is not None and account.page.lost is None

    def problem(self) -> str | None:
        """Why no page can be opened, or why one could not."""
        found = (str(account.problem) for account in self._accounts.values() if account.problem is not None)
        return self.chromium.problem() or next(found, None)

    async def forget(self, account_id: str) -> None:
        """Ends the account's calls and closes its context."""
        account = self._accounts.pop(account_id, None)
        if account is not None:
            await account.stop()

    def _account(self, account_id: str) -> Account:
        account = self._accounts.get(account_id)
        if account is None:
            account = Account(account_id, self._settings, self.chromium, self._state_of)
            self._accounts[account_id] = account
            self._tasks.start_soon(account.run)
        return account
