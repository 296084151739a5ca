"""The site in one page: from a stored sign-in to a booted page that speaks, and what becomes of it."""

from __future__ import annotations

import hashlib
import json
import logging
from contextlib import suppress
from ipaddress import ip_address
from typing import Any, Self, TypeAlias
from urllib.parse import urlsplit

import anyio
from playwright.async_api import BrowserContext, CDPSession, Frame, Page, Response
from playwright.async_api import Error as PlaywrightError

from qwenproxy.browser.bridge import Bridge
from qwenproxy.browser.chromium import Running, reaching
from qwenproxy.errors import BrowserLost, TokenRejected, Unreachable
from qwenproxy.settings import Settings

StorageState: TypeAlias = dict[str, Any]
"""Cookies and storage, in the shape Playwright saves and loads."""

CALL_S = 10.0
"""Seconds for one call about a page or context."""
BOOT_S = 20.0
"""Seconds for the site to answer and its scripts to boot; usually 2 to 4."""
LIST_S = 10.0
"""Seconds of those that wait for the site's own list of chats; then a quiet network will do."""
CLOSE_S = 1.0
"""Seconds until a page that was asked to close is asked again; usually 10 ms."""
WATCH_EVERY_S = 2.0
"""Seconds between two looks at a page; also how long silence raises doubt while a call is open."""
CREDENTIALS = ("token", "refresh_token")
"""Cookies that carry a sign-in; sources disagree which does (protocol §1.2, Appendix B)."""

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


def token_in(state: StorageState, upstream: str) -> str:
    """The token that the site's storage holds; "" for none."""
    stored = (
        item
        for origin in state.get("origins", [])
        if origin["origin"] == upstream
        for item in origin["localStorage"]
    )
    return next((str(item["value"]) for item in stored if item["name"] == "token"), "")


def proves_somebody(state: StorageState, upstream: str) -> bool:
    """Whether there is a sign-in in it: what a signed-out browser holds must not replace one."""
    cookies = state.get("cookies", [])
    return bool(
        token_in(state, upstream) or any(each["name"] in CREDENTIALS and each["value"] for each in cookies)
    )


def mark_of(token: str | None) -> str:
    """Tells one token from another without telling the token; as `fetch.js` does."""
    return hashlib.sha256(token.encode()).hexdigest()[:16] if token else ""


def mark_of_state(state: StorageState) -> str:
    """Tells one state from another; the browser gives their parts in any order."""

    def ordered(things: Any) -> list[str]:
        return sorted(json.dumps(thing, sort_keys=True) for thing in things)

    origins = (
        {**origin, "localStorage": ordered(origin.get("localStorage", []))}
        for origin in state.get("origins", [])
    )
    return mark_of(json.dumps([ordered(state.get("cookies", [])), ordered(origins)]))


def is_loopback(origin: str) -> bool:
    host = urlsplit(origin).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


async def new_context(
    running: Running, upstream: str, state: StorageState | None, *, visible: bool = False
) -> BrowserContext:
    """A visible one has its window's size, as a person's has.

    Raises:
        TokenRejected: Chromium does not take this state.
        BrowserLost
    """
    refused = False
    with anyio.CancelScope(shield=True), reaching("the browser", CALL_S):
        try:
            context = await running.browser.new_context(
                storage_state=state,  # type: ignore[arg-type]
                ignore_https_errors=is_loopback(upstream),
                no_viewport=True if visible else None,
            )
        except PlaywrightError as exc:
            log.debug("Playwright: %s", exc.message)
            refused = "storage state" in exc.message or "storageState" in exc.message
            if not refused:
                raise
    if refused:
        raise TokenRejected("what is stored of this account's sign-in cannot be used")
    return context


def at_sign_in(page: Page) -> bool:
    return urlsplit(page.url).path.startswith("/auth")


def is_own_list(response: Response) -> bool:
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
        if is_own_list(response):
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


async def state_in(context: BrowserContext, deadline_s: float) -> StorageState:
    """Cookies, local storage and IndexedDB as they are now. Raises: BrowserLost."""
    with anyio.CancelScope(shield=True), reaching("the browser", deadline_s):
        state = dict(await context.storage_state(indexed_db=True))
    return state  # noqa: RET504 - mypy holds that the scope above may swallow


async def close(thing: Page | BrowserContext) -> None:
    """Within a deadline, whatever becomes of the caller."""
    with anyio.CancelScope(shield=True), suppress(BrowserLost):
        if isinstance(thing, Page):
            await _close_page(thing)
        else:
            with reaching("the browser", CALL_S):
                await thing.close()


async def _close_page(page: Page) -> None:
    with suppress(BrowserLost), reaching("the page", CLOSE_S):
        await page.close()
    if not page.is_closed():
        # Chromium loses one request in five that meets a navigation with open calls, but not the second.
        with reaching("the page", CALL_S):
            session = await page.context.new_cdp_session(page)
            await session.send("Page.close")
            await page.close()


class SitePage:
    """One page with its bridge, from its document's boot to its loss."""

    def __init__(self, page: Page, session: CDPSession) -> None:
        self._page = page
        self._session = session
        self._gone = anyio.Event()
        self.bridge = Bridge(session)
        self.lost: str | None = None
        self.token_changed = anyio.Event()
        """Set when the site's script has written another token."""

    @classmethod
    async def open(cls, context: BrowserContext, settings: Settings) -> Self:
        """Raises: TokenRejected, Unreachable, BrowserLost."""
        page = await new_page(context, tucked_away=not settings.headless)
        try:
            await boot(page, settings.upstream)
            return await cls.of(page, settings)
        except BaseException:
            await close(page)
            raise

    @classmethod
    async def of(cls, page: Page, settings: Settings) -> Self:
        """Over the document that the page shows now. Raises: BrowserLost."""
        with reaching("the page", CALL_S):
            session = await page.context.new_cdp_session(page)
        opened = cls(page, session)
        await opened._watch_document()
        await opened.bridge.install(settings.auth_upstream)
        return opened

    async def _watch_document(self) -> None:
        """A page crashes, is closed, or navigates, which kills its calls; `pushState` is no navigation."""
        self._page.on("crash", lambda _page: self.lose("the page crashed"))
        self._page.on("close", lambda _page: self.lose("the page was closed"))
        self._session.on("Page.frameNavigated", self._navigated)
        for event in ("DOMStorage.domStorageItemAdded", "DOMStorage.domStorageItemUpdated"):
            self._session.on(event, self._stored)
        with reaching("the page", CALL_S):
            await self._session.send("Page.enable")
            await self._session.send("DOMStorage.enable")

    def _navigated(self, event: dict[str, Any]) -> None:
        if "parentId" not in event["frame"]:
            self.lose("the page navigated away")

    def _stored(self, event: dict[str, Any]) -> None:
        if event.get("key") == "token":
            self.token_changed.set()

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


async def new_page(context: BrowserContext, *, tucked_away: bool = False) -> Page:
    """Raises: BrowserLost."""
    with anyio.CancelScope(shield=True), reaching("the browser", CALL_S):
        page = await context.new_page()
        if tucked_away:
            await _minimise(page)
    return page


async def _minimise(page: Page) -> None:
    """A window that nobody needs to look at, out of the way; where there is no window manager it stays."""
    session = await page.context.new_cdp_session(page)
    try:
        window = await session.send("Browser.getWindowForTarget")
        bounds = {"windowId": window["windowId"], "bounds": {"windowState": "minimized"}}
        await session.send("Browser.setWindowBounds", bounds)
    except PlaywrightError as exc:
        log.debug("the window could not be minimised: %s", exc.message)
    finally:
        await session.detach()
