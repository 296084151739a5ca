"""The window in which a person signs in or passes a check, and what can be seen of it meanwhile.

Nothing here ever types or clicks: the person does, or the stand-in's page itself. Of what passes through the
window only the site's own cookies and storage are kept, not those of the identity provider that was used.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

import anyio
from playwright.async_api import BrowserContext, Frame, Page, Response
from playwright.async_api import Error as PlaywrightError

from qwenproxy.browser.chromium import Chromium
from qwenproxy.browser.install import CHANNELS
from qwenproxy.browser.site_page import (
    SitePage,
    StorageState,
    at_sign_in,
    close,
    is_own_list,
    new_context,
    new_page,
    open_site,
    state_in,
    token_of,
)
from qwenproxy.errors import BrowserLost, SignInFailed
from qwenproxy.qwen.transport import Fetch, Fetched
from qwenproxy.settings import Settings, has_screen

CALL_S = 10.0
LOOK_EVERY_S = 0.2
SETTLE_S = 5.0
"""Longest wait for the site's scripts to boot after somebody has signed in; usually 1 s."""

CLOSED = "the window was closed before anybody had signed in"
PENDING = "the e-mail address is not confirmed yet: open the link in the mail that came; this window waits"
NO_SCREEN = (
    "there is no screen here to show a window on; sign in on another computer and copy its session folder "
    "here, or run `accounts add --token-stdin`, or start with a virtual screen: xvfb-run -a"
)
_REFUSED = "the identity provider refuses this window: sign in with your e-mail address instead"
_OTHER_BROWSER = ", or use an installed Chrome (--browser chrome)"
_REFUSAL = re.compile(r"rejected|disallowed")
_SHOWN = """(selector) => [...document.querySelectorAll(selector)].some((element) => {
  const box = element.getBoundingClientRect();
  return box.width > 0 && box.height > 0;
})"""
_OVERLAY = ".account-pending-overlay"
"""What the site shows until the e-mail address is confirmed (protocol §1.1)."""

log = logging.getLogger(__name__)


def screen_problem() -> str | None:
    """Why no window can be shown here, and the ways that work."""
    return None if has_screen() else NO_SCREEN


class Window:
    """One context with its pages and pop-ups, in front of a person."""

    def __init__(self, context: BrowserContext, settings: Settings, say: Callable[[str], object]) -> None:
        self._context = context
        self._settings = settings
        self._say = say
        self._site: SitePage | None = None
        self._inside: Page | None = None
        self._sign_ins: list[Response] = []
        self._elsewhere: set[str] = set()
        self._lost = False
        self._listed = anyio.Event()
        self.transport = _PageTransport(self)
        self.notes: list[str] = []
        """What the person should read now; each is said once, as it comes."""
        self.navigations = 0
        """How often a page of the window has shown another document."""
        context.on("page", self._watch_page)
        context.on("response", self._answered)

    def __repr__(self) -> str:
        return f"<Window {'closed' if self.closed else f'{len(self._context.pages)} pages'}>"

    @property
    def closed(self) -> bool:
        """The person has closed it, or its browser is gone."""
        return self._lost or not self._context.pages

    @property
    def at_sign_in(self) -> bool:
        pages = self._own_pages()
        return bool(pages) and all(map(at_sign_in, pages))

    def lose(self, _why: str = "") -> None:
        self._lost = True

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)
            self._say(text)

    async def signed_in(self) -> None:
        """Until a page of the site, other than its sign-in, holds a token.

        Raises:
            SignInFailed: the window was closed.
        """
        while not await self._find_inside():
            await self.look()
            await anyio.sleep(LOOK_EVERY_S)

    async def settled(self) -> None:
        """Until the site's scripts have booted, as far as can be seen."""
        with anyio.move_on_after(SETTLE_S):
            await self._listed.wait()

    async def look(self) -> None:
        """Notes what stands in the person's way.

        Raises:
            SignInFailed: the window was closed.
        """
        if self.closed:
            raise SignInFailed(CLOSED)
        if any(map(self._is_refusal, self._context.pages)):
            self.note(_REFUSED + ("" if self._settings.browser in CHANNELS else _OTHER_BROWSER))
        if await self._says_pending() or await self._shows(_OVERLAY):
            self.note(PENDING)

    async def asks_human(self) -> bool:
        """Whether a verification dialog can be seen (protocol §6.3). Raises: BrowserLost."""
        return await (await self.site_page()).bridge.asks_human()

    async def state(self) -> StorageState:
        """What the browser holds of the site. Raises: BrowserLost."""
        state = await state_in(self._context, CALL_S)
        kept = (c for c in state["cookies"] if _realm(c["domain"].lstrip(".")) not in self._elsewhere)
        origins = (
            o for o in state["origins"] if _realm(urlsplit(o["origin"]).hostname) not in self._elsewhere
        )
        return {"cookies": list(kept), "origins": list(origins)}

    async def site_page(self) -> SitePage:
        """Over the document that the site's page shows now. Raises: BrowserLost."""
        if self._site is None or self._site.lost is not None:
            pages = self._own_pages()
            page = self._inside if self._inside in pages else next(iter(pages), None)
            if page is None:
                raise BrowserLost("the window shows no page of the site")
            self._site = await SitePage.of(page, self._settings)
        return self._site

    def _own_pages(self) -> list[Page]:
        return [page for page in self._context.pages if _origin(page.url) == self._settings.upstream]

    async def _find_inside(self) -> bool:
        for page in self._own_pages():
            with suppress(BrowserLost):
                if not at_sign_in(page) and await token_of(page):
                    self._inside = page
                    return True
        return False

    def _is_refusal(self, page: Page) -> bool:
        url = urlsplit(page.url)
        return self._is_elsewhere(page.url) and bool(_REFUSAL.search(f"{url.path}?{url.query}"))

    def _is_elsewhere(self, url: str) -> bool:
        own = {
            _realm(urlsplit(each).hostname)
            for each in (self._settings.upstream, self._settings.auth_upstream)
        }
        return urlsplit(url).scheme in {"http", "https"} and _realm(urlsplit(url).hostname) not in own

    async def _says_pending(self) -> bool:
        """Whether a sign-in was refused for that; nothing else of the answer is kept."""
        answers, self._sign_ins = self._sign_ins, []
        for answer in answers:
            with suppress(PlaywrightError, ValueError, TimeoutError), anyio.fail_after(CALL_S):
                said = await answer.json()
                data = said.get("data") if isinstance(said, dict) else None
                if isinstance(data, dict) and data.get("code") == "ACCOUNT_PENDING":
                    return True
        return False

    async def _shows(self, selector: str) -> bool:
        for page in self._own_pages():
            with suppress(PlaywrightError, TimeoutError), anyio.fail_after(CALL_S):
                if await page.evaluate(_SHOWN, selector):
                    return True
        return False

    def _watch_page(self, page: Page) -> None:
        page.on("framenavigated", self._navigated)

    def _navigated(self, frame: Frame) -> None:
        if frame.parent_frame is None:
            self.navigations += 1
            if self._is_elsewhere(frame.url):
                self._elsewhere.add(_realm(urlsplit(frame.url).hostname))

    def _answered(self, response: Response) -> None:
        if is_own_list(response):
            self._listed.set()
        elif urlsplit(response.url).path.endswith("/auths/signin") and response.request.method == "POST":
            self._sign_ins.append(response)


class _PageTransport:
    """The road over the window's own page."""

    def __init__(self, window: Window) -> None:
        self._window = window

    @asynccontextmanager
    async def fetch(self, account_id: str, call: Fetch) -> AsyncGenerator[Fetched]:
        page = await self._window.site_page()
        async with page.bridge.fetch(call) as fetched:
            yield fetched

    async def renew(self, account_id: str, rejected: str) -> bool:
        """True when the page has renewed by itself meanwhile: a person's page is not made to."""
        page = await self._window.site_page()
        return await page.bridge.credential() not in {"", rejected}


@asynccontextmanager
async def window(
    chromium: Chromium,
    settings: Settings,
    *,
    state: StorageState | None = None,
    at_sign_in: bool = True,
    say: Callable[[str], object] = log.info,
) -> AsyncGenerator[Window]:
    """Opens the site's sign-in page, or the site itself, before the person's eyes.

    Raises:
        SignInFailed: it was closed while it opened.
        TokenRejected: Chromium does not take this state.
        Unreachable, BrowserMissing, BrowserLost
    """
    running = await chromium.current()
    context = await new_context(running, settings.upstream, state, visible=not settings.headless)
    opened = Window(context, settings, say)
    deaf = running.on_lost(opened.lose)
    try:
        page = await new_page(context)
        try:
            await open_site(page, f"{settings.upstream}/{'auth' if at_sign_in else ''}")
        except BrowserLost:
            if opened.closed:
                raise SignInFailed(CLOSED) from None
            raise
        yield opened
    finally:
        deaf()
        await close(context)


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _realm(host: str | None) -> str:
    """What a host's cookies may be shared with: the last two names of it; all of an address."""
    parts = (host or "").split(".")
    return ".".join(parts if parts[-1].isdigit() else parts[-2:])
