"""The window before a person, and what is seen of it; the stand-in's page plays the person."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from qwenproxy.browser import login as module
from qwenproxy.browser.chromium import Chromium
from qwenproxy.browser.contexts import BrowserTransport
from qwenproxy.browser.login import CLOSED, PENDING, Window, screen_problem, window
from qwenproxy.browser.site_page import close, mark_of, proves_somebody, token_in
from qwenproxy.errors import BrowserLost, SignInFailed, Unreachable
from qwenproxy.qwen.transport import Fetch
from qwenproxy.settings import Settings
from tests.serve import Standin, free_port
from tests.xvfb import virtual_screen

pytestmark = [pytest.mark.anyio]
ONE = "one@example.com"


def browser(test: Any) -> Any:
    return pytest.mark.browser(pytest.mark.timeout(90)(test))


def settings_of(standin: Standin, **more: Any) -> Settings:
    return Settings(upstream=standin.site, auth_upstream=standin.auth, **more)


@asynccontextmanager
async def open_window(standin: Standin, chromium: Chromium, **more: Any) -> AsyncIterator[Window]:
    async with window(chromium, settings_of(standin), say=lambda _: None, **more) as opened:
        yield opened
    assert (await chromium.current()).browser.contexts == []


async def status(opened: Window) -> str:
    async with opened.transport.fetch("", Fetch("GET", "/api/v2/chats/?page=1")) as fetched:
        return fetched.headers["x-actual-status-code"]


@browser
async def test_what_a_sign_in_leaves_is_enough_for_the_road(chromium: Chromium, standin: Standin) -> None:
    standin.options(demo=True)
    async with open_window(standin, chromium) as opened:
        await opened.signed_in()
        await opened.settled()
        assert await status(opened) == "200"
        state = await opened.state()
    assert proves_somebody(state, standin.site)
    async with (
        BrowserTransport(settings_of(standin), lambda _: state, chromium=chromium) as transport,
        transport.fetch("demo", Fetch("GET", "/api/v2/chats/?page=1")) as fetched,
    ):
        assert fetched.headers["x-actual-status-code"] == "200"
        assert fetched.credential == mark_of(token_in(state, standin.site))


@browser
async def test_nothing_is_typed_and_nobody_is_signed_in_by_a_program(
    chromium: Chromium, standin: Standin
) -> None:
    async with open_window(standin, chromium) as opened:
        with anyio.move_on_after(1.5):
            await opened.signed_in()
        assert opened.at_sign_in
        (page,) = opened._own_pages()
        assert await page.evaluate("[...document.querySelectorAll('input')].map((each) => each.value)") == [
            "",
            "",
        ]
    assert not [each for each in standin.received() if "signin" in each["path"]]


@browser
async def test_the_windows_road_renews_only_when_the_page_has(chromium: Chromium, standin: Standin) -> None:
    state = standin.storage_state(ONE)
    async with open_window(standin, chromium, state=state, at_sign_in=False) as opened:
        await opened.signed_in()
        old = mark_of(token_in(state, standin.site))
        assert not await opened.transport.renew("", old)
        await opened._own_pages()[0].evaluate("localStorage.token = 'another'")
        assert await opened.transport.renew("", old)


@browser
async def test_its_calls_go_on_in_the_next_document(chromium: Chromium, standin: Standin) -> None:
    state = standin.storage_state(ONE)
    async with open_window(standin, chromium, state=state, at_sign_in=False) as opened:
        await opened.settled()
        assert await status(opened) == "200"
        before = opened.navigations
        await opened._own_pages()[0].reload()
        assert await status(opened) == "200"
        assert opened.navigations == before + 1


@browser
async def test_only_the_sites_own_things_are_kept_of_a_window(chromium: Chromium, standin: Standin) -> None:
    state = standin.storage_state(ONE)
    async with open_window(standin, chromium, state=state, at_sign_in=False) as opened:
        await opened.signed_in()
        (page,) = opened._own_pages()
        other = await page.context.new_page()
        await other.goto(standin.site.replace("127.0.0.1", "localhost"))
        await other.evaluate("document.cookie = 'theirs=1; max-age=1000'; localStorage.theirs = '1'")
        await page.evaluate("document.cookie = 'ours=1; max-age=1000'")
        kept = await opened.state()
    assert {cookie["name"] for cookie in kept["cookies"]} == {"refresh_token", "ours"}
    assert [origin["origin"] for origin in kept["origins"]] == [standin.site]


@browser
async def test_a_refusing_provider_is_noted_once_and_chrome_is_named_to_others_alone(
    chromium: Chromium, standin: Standin
) -> None:
    standin.options(demo=True, identity="page")
    for own, named in (("", True), ("chrome", False)):
        async with window(chromium, settings_of(standin, browser=own), say=lambda _: None) as opened:
            await opened._context.pages[0].wait_for_url("**/rejected**")
            for _ in range(2):
                await opened.look()
        (note,) = opened.notes
        assert ("--browser chrome" in note) is named


@browser
async def test_a_sign_in_refused_as_pending_is_noted(chromium: Chromium, standin: Standin) -> None:
    standin.options(demo=True, people=["pending@example.com"], pending="refused")
    said = list[str]()
    async with window(chromium, settings_of(standin), say=said.append) as opened:
        with anyio.move_on_after(30):
            while not said:
                await opened.look()
                await anyio.sleep(0.05)
    assert said == opened.notes == [PENDING]


@browser
async def test_a_window_tells_the_dialog_and_its_end(chromium: Chromium, standin: Standin) -> None:
    state = standin.storage_state(ONE)
    standin._control("POST", "challenge", {"account": ONE})
    async with open_window(standin, chromium, state=state, at_sign_in=False) as opened:
        await opened._own_pages()[0].locator(".baxia-dialog").wait_for()
        assert await opened.asks_human()
        standin.solve()
        await opened._own_pages()[0].locator(".baxia-dialog").wait_for(state="detached")
        assert not await opened.asks_human()


@browser
async def test_a_closed_window_says_so(chromium: Chromium, standin: Standin) -> None:
    async with open_window(standin, chromium) as opened:
        assert not opened.closed
        for page in opened._context.pages:
            await close(page)
        assert opened.closed
        with pytest.raises(SignInFailed, match=CLOSED):
            await opened.signed_in()
        with pytest.raises(BrowserLost):
            await opened.site_page()


@browser
async def test_a_site_that_is_not_there_leaves_no_window(chromium: Chromium) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(Unreachable):
        async with window(chromium, Settings(upstream=nowhere, auth_upstream=nowhere)):
            raise AssertionError("it cannot open")
    assert (await chromium.current()).browser.contexts == []


def test_a_realm_is_what_shares_cookies() -> None:
    hosts = ("chat.qwen.ai", "qwen.ai", "accounts.google.com", "127.0.0.1", "localhost", None)
    assert [module._realm(host) for host in hosts] == [
        "qwen.ai",
        "qwen.ai",
        "google.com",
        "127.0.0.1",
        "localhost",
        "",
    ]


@pytest.mark.parametrize(
    ("platform", "variable", "can"),
    [
        ("linux", "", False),
        ("linux", "DISPLAY", True),
        ("linux", "WAYLAND_DISPLAY", True),
        ("darwin", "", True),
        ("win32", "", True),
    ],
)
def test_a_screen_is_looked_for_where_there_may_be_none(
    monkeypatch: pytest.MonkeyPatch, platform: str, variable: str, can: bool
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, ":7")
    problem = screen_problem()
    assert (problem is None) is can
    if problem:
        assert "\n" not in problem
        assert all(way in problem for way in ("session folder", "--token-stdin", "xvfb-run"))


@pytest.fixture
async def on_screen(chromium_path: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Chromium]:
    """A Chromium whose windows a person could see."""
    with virtual_screen() as display:
        monkeypatch.setenv("DISPLAY", display)
        async with Chromium(Settings(browser=chromium_path, headless=False)) as started:
            yield started


@browser
async def test_a_person_signs_in_in_a_visible_window(on_screen: Chromium, standin: Standin) -> None:
    """Only in one: the stand-in plays a person who sees no headless page."""
    standin.options(demo=True, people=[ONE], person_in="windows")
    settings = settings_of(standin, headless=False)
    async with window(on_screen, settings) as opened:
        await opened.signed_in()
        agent, *sizes = await opened._own_pages()[0].evaluate(
            "[navigator.userAgent, innerWidth, outerWidth, document.visibilityState]"
        )
        assert "Headless" not in agent
        assert sizes[0] == sizes[1]
        assert sizes[2] == "visible"
        assert await status(opened) == "200"


@browser
async def test_a_page_of_a_visible_browser_speaks_as_well(on_screen: Chromium, standin: Standin) -> None:
    """It is put out of the way, where there is a window manager; its scripts must not fall asleep there."""
    state = standin.storage_state(ONE)
    settings = settings_of(standin, headless=False)
    async with BrowserTransport(settings, lambda _: state, chromium=on_screen) as transport:
        await transport.warm("a")
        standin.expire()
        assert await transport.renew("a", mark_of(token_in(state, standin.site)))
        async with transport.fetch("a", Fetch("GET", "/api/v2/chats/?page=1")) as fetched:
            assert fetched.headers["x-actual-status-code"] == "200"
        page = (await transport._page("a"))._page
        ticks = await page.evaluate(
            "new Promise((done) => { let n = 0; const timer = setInterval(() => n++, 10);"
            "setTimeout(() => { clearInterval(timer); done(n); }, 1500); })"
        )
    assert ticks > 20, "timers of a hidden page would tick once a second"
    assert os.environ["DISPLAY"]
