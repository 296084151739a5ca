"""One account's browser context and the page in it that speaks for the account.

Each account that is used has one task, `AccountContext.run`: it opens the page, watches it, closes it when it
is lost and opens the next. Callers only wait for it, so one that leaves never leaves a half-open page behind.

Who wins when the sign-in on disk is not the one this context came from: always the disk. Another program has
then signed in again or renewed, and where the service rotates its refresh token (protocol Appendix B) what
this context holds is dead or soon will be. So it writes nothing any more, and a fresh context takes over.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeAlias
from urllib.parse import urlsplit

import anyio
from anyio.to_thread import run_sync
from playwright.async_api import BrowserContext, Page, Response

from qwenproxy.browser.chromium import Chromium, Running, reaching
from qwenproxy.browser.site_page import (
    SitePage,
    StorageState,
    at_sign_in,
    boot,
    close,
    mark_of,
    mark_of_state,
    new_context,
    new_page,
    open_site,
    proves_somebody,
    state_in,
    token_of,
)
from qwenproxy.errors import AccountGone, BrowserLost, QwenProxyError, SessionDamaged, TokenRejected
from qwenproxy.settings import Settings

StateOf: TypeAlias = Callable[[str], StorageState]
KeepState: TypeAlias = Callable[[str, StorageState], object]

RENEW_S = 20.0
RENEW_POLL_S = 0.1
QUIET_S = 3.0
"""Seconds after the page's network has fallen quiet in which a renewal may still come."""
IDLE_S = 10.0
"""Seconds of silence after which a page is asked for a sign of life before it is used."""
SAVE_S = 5.0
"""Seconds for the browser to tell its cookies and storage; usually 10 ms."""
SAVE_EVERY_S = 60.0
"""Seconds between two looks whether they changed; a renewal is kept at once."""
SAVE_AGAIN_S = 5.0
"""Seconds until a disk that failed is tried again."""
LOOK_AGAIN_S = 0.5
"""Seconds until a browser that could not tell, because its page navigated, is asked again."""
COOKIES_S = 5.0
"""Seconds for the browser to tell the cookies of one address; usually 2 ms."""
LIVED_S = 5.0
"""A page that is lost younger counts as a failed opening."""
BACK_OFF_LIMIT_S = 60.0

log = logging.getLogger(__name__)


def renews(response: Response) -> bool:
    """The site's answer to a renewal, whose cookies may be new (protocol §1.3)."""
    return urlsplit(response.url).path.rstrip("/").endswith("/auths/refresh")


class AccountContext:
    def __init__(
        self,
        account_id: str,
        settings: Settings,
        chromium: Chromium,
        state_of: StateOf,
        keep_state: KeepState | None = None,
    ) -> None:
        self._id = account_id
        self._settings = settings
        self._chromium = chromium
        self._state_of = state_of
        self._keep_state = keep_state
        self._unkept: StorageState | None = None
        self._on_disk = ""
        self._offered = ""
        self._context: BrowserContext | None = None
        self._running: Running | None = None
        self._attempt = anyio.Event()
        self._wanted = anyio.Event()
        self._changed = anyio.Event()
        self._scope = anyio.CancelScope()
        self._ended = anyio.Event()
        self._renewing = anyio.Lock()
        self._making_context = anyio.Lock()
        self._saving = anyio.Lock()
        self._opening = anyio.CancelScope()
        self._deaf: Callable[[], None] = lambda: None
        self.page: SitePage | None = None
        self.problem: QwenProxyError | None = None
        self.retired = False
        """It opens and keeps nothing any more."""
        self.has_successor = False
        self.overtaken: Callable[[], None] = lambda: None
        """Called when the disk holds another sign-in, so that a successor takes over."""

    def __repr__(self) -> str:
        return f"<AccountContext {self._id} {'ready' if self.page else self.problem or 'opening'}>"

    async def usable_page(self) -> SitePage:
        """Raises: AccountGone, TokenRejected, Unreachable, BrowserMissing, BrowserLost."""
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
        try:
            with self._scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._keep_saving)
                    await self._keep_a_page()
        finally:
            with anyio.CancelScope(shield=True):
                await self._save()
                await self._drop_context()
            self._settle(None, BrowserLost("the account was put away"))
            self._ended.set()

    async def stop(self) -> None:
        """Its calls end now."""
        self._scope.cancel()
        await self._ended.wait()

    async def retire(self) -> None:
        """New calls are for its successor; ends when the calls that run have ended."""
        self.retired = True
        if self.page is not None:
            await self.page.bridge.drained()
        await self.stop()

    async def _keep_a_page(self) -> None:
        failures = 0
        while not self.retired:
            failures = failures + 1 if not await self._live() else 0
            await self._back_off(failures)
        await anyio.sleep_forever()

    async def _live(self) -> bool:
        """One page, from its opening to its loss. False when it failed or died young."""
        try:
            page = await self._open()
        except QwenProxyError as exc:
            log.warning("account %s has no page: %s", self._id, exc)
            self._settle(None, exc)
            return False
        opened_at_s = time.monotonic()
        try:
            # The page may have renewed as it booted: nothing is answered before that is on disk.
            await self._save()
            self._settle(page, None)
            await self._watch(page)
            log.warning("account %s lost its page: %s", self._id, page.lost)
        finally:
            self.page = None
            await self._put_away(page)
        return time.monotonic() - opened_at_s > LIVED_S

    async def _put_away(self, page: SitePage) -> None:
        """Ends its calls. As the account is stopped, a page that works stays until its context goes: without
        one, Playwright would open another to read what the context holds, which takes half a second.
        """
        with anyio.CancelScope(shield=True):
            works = page.lost is None and await page.answers()
        if works:
            page.lose("the page was closed")
        else:
            await page.close()

    async def _watch(self, page: SitePage) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch_token, page)
            await page.watch()
            tasks.cancel_scope.cancel()

    async def _watch_token(self, page: SitePage) -> None:
        while True:
            await page.token_changed.wait()
            page.token_changed = anyio.Event()
            self._changed.set()

    async def _back_off(self, failures: int) -> None:
        """A caller ends the wait at once; a signed-out account is not tried again without one."""
        if failures == 0:
            return
        longest_s = min(BACK_OFF_LIMIT_S, 0.5 * 2.0**failures)
        hopeless = isinstance(self.problem, TokenRejected | AccountGone)
        with anyio.move_on_after(None if hopeless else longest_s):
            await self._wanted.wait()

    def _settle(self, page: SitePage | None, problem: QwenProxyError | None) -> None:
        self.page, self.problem = page, problem
        self._attempt.set()
        # Who asks from now on, also while the lost page is being closed, wants another attempt.
        self._attempt, self._wanted = anyio.Event(), anyio.Event()

    async def _open(self) -> SitePage:
        """Raises: AccountGone, TokenRejected, Unreachable, BrowserMissing, BrowserLost."""
        try:
            return await self._open_page()
        except TokenRejected:
            if not await self.outdated():
                raise
            self._unkept = None
            await self._drop_context()
            return await self._open_page()

    async def _open_page(self) -> SitePage:
        context = await self._usable_context()
        with anyio.CancelScope() as self._opening:
            try:
                return await SitePage.open(context, self._settings)
            except BrowserLost:
                await self._save()
                await self._drop_context()
                raise
        raise BrowserLost("the browser was lost while the page opened")

    async def _usable_context(self) -> BrowserContext:
        """Raises: AccountGone, TokenRejected, BrowserMissing, BrowserLost."""
        async with self._making_context:
            running = await self._chromium.current()
            if self._context is None or self._running is not running:
                state = self._unkept or await self._stored()
                visible = not self._settings.headless
                self._context = await new_context(running, self._settings.upstream, state, visible=visible)
                self._running = running
                self._context.on("response", self._answered)
                self._deaf = running.on_lost(self._browser_lost)
            return self._context

    async def _stored(self) -> StorageState:
        """Raises: AccountGone, SessionDamaged."""
        state = await self._read()
        self._on_disk = self._offered = mark_of_state(state)
        return state

    async def _read(self) -> StorageState:
        try:
            return await run_sync(self._state_of, self._id)
        except OSError as exc:
            raise SessionDamaged(f"this account's sign-in cannot be read: {exc.strerror}") from None

    async def outdated(self) -> bool:
        """Whether the disk holds another sign-in than the one this context came from."""
        with suppress(QwenProxyError):
            return self._on_disk not in {"", mark_of_state(await self._read())}
        return False

    def _answered(self, response: Response) -> None:
        if renews(response):
            self._changed.set()

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
            self._changed = anyio.Event()
            again_s = await self._save()
            with anyio.move_on_after(again_s):
                await self._changed.wait()

    async def _save(self) -> float:
        """A renewed token or session cookie must outlive this context, and this process.

        Gives the seconds until the next look.
        """
        async with self._saving:
            context = self._context
            if context is None or self.retired:
                return SAVE_EVERY_S
            try:
                state = await state_in(context, SAVE_S)
            except BrowserLost:
                return LOOK_AGAIN_S
            mark = mark_of_state(state)
            if mark == self._offered or not proves_somebody(state, self._settings.upstream):
                return SAVE_EVERY_S
            self._unkept = state
            return SAVE_EVERY_S if await self._kept(state, mark) else SAVE_AGAIN_S

    async def _kept(self, state: StorageState, mark: str) -> bool:
        """False when the disk failed."""
        if self._keep_state is None:
            return True
        if await self.outdated():
            log.info("account %s: another program keeps a newer sign-in; that one is used", self._id)
            self.overtaken()
            return True
        try:
            kept = await run_sync(self._keep_state, self._id, state)
        except (QwenProxyError, OSError) as exc:
            log.warning("account %s: its renewed sign-in could not be stored yet: %s", self._id, exc)
            return False
        self._offered = mark
        if kept is not False:
            self._on_disk, self._unkept = mark, None
        return True

    async def cookies(self, url: str) -> dict[str, str]:
        """What the browser would send to `url` as this account; no page is opened for it.

        Raises: AccountGone, TokenRejected, BrowserMissing, BrowserLost.
        """
        context = await self._usable_context()
        with reaching("the browser", COOKIES_S):
            found = await context.cookies(url)
        return {cookie["name"]: cookie["value"] for cookie in found}

    async def renew(self, rejected: str) -> bool:
        """Raises: AccountGone, TokenRejected, Unreachable, BrowserMissing, BrowserLost."""
        async with self._renewing:
            page = self.page
            if page is not None and page.lost is None:
                with suppress(BrowserLost):
                    if await page.bridge.credential() not in {"", rejected}:
                        return True
            return await self._renew_in_second_page(rejected)

    async def _renew_in_second_page(self, rejected: str) -> bool:
        context = await self._usable_context()
        page = await new_page(context, tucked_away=not self._settings.headless)
        try:
            with anyio.move_on_after(RENEW_S):
                if await _renewed(page, self._settings.upstream, rejected):
                    await self._save()
                    return True
        finally:
            await close(page)
        return False


async def _renewed(page: Page, upstream: str, rejected: str) -> bool:
    """Waits until the page holds another token, shows the sign-in page, or has plainly done all it does."""
    if not rejected:
        # Any token counts then, so the site must have had its say about the one it holds.
        with suppress(TokenRejected):
            await boot(page, upstream)
    else:
        await open_site(page, f"{upstream}/")
    done = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_until_done, page, done)
        while not at_sign_in(page):
            if mark_of(await token_of(page)) not in {"", rejected}:
                tasks.cancel_scope.cancel()
                return True
            if done.is_set():
                break
            await anyio.sleep(RENEW_POLL_S)
        tasks.cancel_scope.cancel()
    return False


async def _until_done(page: Page, done: anyio.Event) -> None:
    with suppress(BrowserLost), reaching("the page", RENEW_S):
        await page.wait_for_load_state("networkidle", timeout=0)
        await anyio.sleep(QUIET_S)
        done.set()
