"""Waits in a fresh context until somebody has signed in, and keeps what the browser then holds.

Nothing here ever types into a page: the owner does, in a visible window, or the stand-in's page itself.
"""

from __future__ import annotations

import anyio
from playwright.async_api import BrowserContext, Page

from qwenproxy.browser.chromium import Chromium, reaching
from qwenproxy.browser.site_page import (
    StorageState,
    at_sign_in,
    boot,
    close,
    new_context,
    open_site,
    token_of,
)
from qwenproxy.errors import BrowserLost, TokenRejected

CALL_S = 10.0
LOOK_EVERY_S = 0.2


async def sign_in(chromium: Chromium, upstream: str, *, deadline_s: float) -> StorageState:
    """The cookies and storage of whoever signed in.

    Raises:
        TokenRejected: nobody did within `deadline_s`.
        Unreachable, BrowserMissing, BrowserLost
    """
    running = await chromium.current()
    context = await new_context(running, upstream, None)
    try:
        with anyio.fail_after(deadline_s):
            return await _state_after_sign_in(context, upstream)
    except TimeoutError:
        raise TokenRejected(f"nobody signed in within {deadline_s:g} s") from None
    finally:
        await close(context)


async def _state_after_sign_in(context: BrowserContext, upstream: str) -> StorageState:
    with reaching("the browser", CALL_S):
        page = await context.new_page()
    await open_site(page, f"{upstream}/auth")
    while at_sign_in(page) or not await token_of(page):
        if page.is_closed():
            raise BrowserLost("the sign-in window was closed")
        await anyio.sleep(LOOK_EVERY_S)
    return await _booted_state(page, upstream)


async def _booted_state(page: Page, upstream: str) -> StorageState:
    await boot(page, upstream)
    with reaching("the browser", CALL_S):
        return dict(await page.context.storage_state(indexed_db=True))


def screen_problem() -> str | None:
    """PLACEHOLDER by the lead; helper BROWSER replaces it."""
    return None
