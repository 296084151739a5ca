"""A page of the site, from a stored sign-in on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from playwright.async_api import BrowserContext

from qwenproxy.browser.chromium import Chromium
from qwenproxy.browser.site_page import (
    SitePage,
    close,
    is_loopback,
    mark_of,
    mark_of_state,
    new_context,
    proves_somebody,
    state_from_token,
    state_in,
    token_in,
)
from qwenproxy.errors import TokenRejected
from qwenproxy.settings import Settings
from tests.serve import until_async

pytestmark = pytest.mark.anyio
SITE = "https://chat.qwen.ai"


def browser(test: Any) -> Any:
    return pytest.mark.browser(pytest.mark.timeout(90)(test))


def test_state_from_a_token_holds_it_as_cookie_and_in_the_storage() -> None:
    state = state_from_token("abc", "https://chat.qwen.ai")
    (cookie,) = state["cookies"]
    assert (cookie["name"], cookie["value"], cookie["domain"], cookie["secure"]) == (
        "token",
        "abc",
        ".qwen.ai",
        True,
    )
    assert state["origins"] == [
        {"origin": "https://chat.qwen.ai", "localStorage": [{"name": "token", "value": "abc"}]}
    ]
    (cookie,) = state_from_token("abc", "http://127.0.0.1:80")["cookies"]
    assert (cookie["domain"], cookie["secure"]) == ("127.0.0.1", False)


@pytest.mark.parametrize(
    ("origin", "wanted"),
    [
        ("https://127.0.0.1:8443", True),
        ("https://[::1]", True),
        ("https://localhost", True),
        ("https://chat.qwen.ai", False),
        ("https://localhost.example.com", False),
        ("https://128.0.0.1", False),
    ],
)
def test_certificates_are_ignored_on_loopback_alone(origin: str, wanted: bool) -> None:
    assert is_loopback(origin) is wanted


def test_a_mark_does_not_tell_the_token() -> None:
    assert mark_of("one") != mark_of("two")
    assert "secret" not in mark_of("secret")
    assert mark_of(None) == mark_of("") == ""


def test_a_state_tells_its_sites_token_alone_and_whether_it_proves_somebody() -> None:
    state = state_from_token("abc", SITE)
    assert token_in(state, SITE) == "abc"
    assert token_in(state, "https://accounts.example") == ""
    assert proves_somebody(state, SITE)
    assert proves_somebody({"cookies": state["cookies"], "origins": []}, SITE)
    signed_out = {"cookies": [{**state["cookies"][0], "name": "locale"}], "origins": []}
    assert not proves_somebody(signed_out, SITE)
    assert not proves_somebody({"cookies": [{**state["cookies"][0], "value": ""}], "origins": []}, SITE)


def test_states_that_differ_in_order_alone_have_one_mark() -> None:
    cookies = [{"name": "a", "value": "1"}, {"name": "b", "value": "2"}]
    storage = [{"name": "x", "value": "1"}, {"name": "y", "value": "2"}]
    one = {"cookies": cookies, "origins": [{"origin": SITE, "localStorage": storage}]}
    other = {"origins": [{"localStorage": storage[::-1], "origin": SITE}], "cookies": cookies[::-1]}
    assert mark_of_state(one) == mark_of_state(other)
    assert mark_of_state(one) != mark_of_state({**one, "cookies": cookies[:1]})
    assert mark_of_state(one) != mark_of_state({**one, "origins": []})


@asynccontextmanager
async def context_of(chromium: Chromium, settings: Settings, state: Any) -> AsyncIterator[BrowserContext]:
    context = await new_context(await chromium.current(), settings.upstream, state)
    try:
        yield context
    finally:
        await close(context)


@browser
@pytest.mark.parametrize(
    "state",
    [
        {"cookies": [{"name": 1}], "origins": []},
        {"cookies": [{"name": "token", "value": "x"}], "origins": []},
        {"cookies": [], "origins": [{"origin": SITE}]},
    ],
)
async def test_a_state_that_chromium_does_not_take_is_a_sign_in_that_is_gone(
    chromium: Chromium, small_settings: Settings, state: Any
) -> None:
    with pytest.raises(TokenRejected, match="cannot be used"):
        await new_context(await chromium.current(), small_settings.upstream, state)
    assert (await chromium.current()).browser.contexts == []


STORE = """(value) => new Promise((done) => {
  const request = indexedDB.open("site", 1);
  request.onupgradeneeded = () => request.result.createObjectStore("things");
  request.onsuccess = () => {
    const change = request.result.transaction("things", "readwrite");
    change.objectStore("things").put({ value }, "key");
    change.oncomplete = () => { request.result.close(); done(); };
  };
})"""
RECALL = """() => new Promise((done) => {
  const request = indexedDB.open("site", 1);
  request.onsuccess = () => {
    const found = request.result.transaction("things").objectStore("things").get("key");
    found.onsuccess = () => done(found.result.value);
  };
})"""


@browser
async def test_what_the_site_put_into_indexed_db_comes_back(
    chromium: Chromium, small_settings: Settings
) -> None:
    state = state_from_token("abc", small_settings.upstream)
    async with context_of(chromium, small_settings, state) as context:
        page = await SitePage.open(context, small_settings)
        before = mark_of_state(await state_in(context, 10))
        await page._page.evaluate(STORE, "kept")
        kept = await state_in(context, 10)
        assert mark_of_state(kept) != before
    async with context_of(chromium, small_settings, kept) as context:
        page = await SitePage.open(context, small_settings)
        assert await page._page.evaluate(RECALL) == "kept"


@browser
async def test_a_token_that_another_page_writes_is_noticed(
    chromium: Chromium, small_settings: Settings
) -> None:
    state = state_from_token("abc", small_settings.upstream)
    async with context_of(chromium, small_settings, state) as context:
        page = await SitePage.open(context, small_settings)
        other = await SitePage.open(context, small_settings)
        await other._page.evaluate("localStorage.locale = 'en'")
        assert not page.token_changed.is_set()
        await other._page.evaluate("localStorage.token = 'new'")
        await until_async(page.token_changed.is_set)


@browser
async def test_a_page_closes_soon_even_while_it_navigates(
    chromium: Chromium, small_settings: Settings
) -> None:
    state = state_from_token("abc", small_settings.upstream)
    async with context_of(chromium, small_settings, state) as context:
        for _ in range(4):
            page = await SitePage.open(context, small_settings)
            await page._page.evaluate("() => { fetch('/endless'); location.href = '/?again'; }")
            await page.watch()
            await page.close()
            assert page._page.is_closed()


@browser
async def test_a_dialog_counts_when_it_can_be_seen(chromium: Chromium, small_settings: Settings) -> None:
    state = state_from_token("abc", small_settings.upstream)
    async with context_of(chromium, small_settings, state) as context:
        page = await SitePage.open(context, small_settings)
        html = "<div class='baxia-dialog' style='position:fixed;display:none'>slide</div>"
        await page._page.evaluate("(html) => document.body.insertAdjacentHTML('beforeend', html)", html)
        assert not await page.bridge.asks_human()
        await page._page.evaluate("document.querySelector('.baxia-dialog').style.display = 'block'")
        assert await page.bridge.asks_human()
