from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager, suppress
from time import monotonic
from typing import Any

import anyio
import psutil
import pytest
from playwright.async_api import Error as PlaywrightError

from qwenproxy.browser.chromium import Chromium, runs
from qwenproxy.browser.contexts import BrowserTransport
from qwenproxy.browser.site_page import StorageState, mark_of, state_from_token
from qwenproxy.errors import AccountGone, BrowserLost, QwenProxyError, SessionDamaged, Unreachable
from qwenproxy.qwen.transport import Fetch
from qwenproxy.settings import Settings
from tests.serve import free_port, until_async

pytestmark = pytest.mark.anyio
BodyOf = Callable[[BrowserTransport, str, str], Coroutine[Any, Any, bytes]]
SOON_S = 10
"""Seconds; half a second on a quiet machine."""
ENDLESS = Fetch("POST", "/endless", body="{}", stream=True)


def browser(test: Any) -> Any:
    return pytest.mark.browser(pytest.mark.timeout(90)(test))


class Reader:
    """Reads an endless stream until it fails."""

    def __init__(self) -> None:
        self.pieces = 0
        self.error: QwenProxyError | None = None

    async def read(self, road: BrowserTransport, account_id: str) -> None:
        try:
            async with road.fetch(account_id, ENDLESS) as fetched, aclosing(fetched.pieces()) as pieces:
                async for _ in pieces:
                    self.pieces += 1
        except QwenProxyError as exc:
            self.error = exc


@asynccontextmanager
async def reading(road: BrowserTransport, *account_ids: str) -> AsyncIterator[list[Reader]]:
    readers = [Reader() for _ in account_ids]
    async with anyio.create_task_group() as tasks:
        for reader, account_id in zip(readers, account_ids, strict=True):
            tasks.start_soon(reader.read, road, account_id)
        await until_async(lambda: all(reader.pieces for reader in readers))
        yield readers
        tasks.cancel_scope.cancel()


async def ended_s(reader: Reader) -> float:
    start_s = monotonic()
    await until_async(lambda: reader.error is not None)
    assert isinstance(reader.error, BrowserLost)
    return monotonic() - start_s


async def goes_on(reader: Reader) -> bool:
    before = reader.pieces
    await until_async(lambda: reader.pieces > before + 5)
    return reader.error is None


async def next_call_s(road: BrowserTransport, body_of: BodyOf, account_id: str) -> float:
    """Seconds until a call works, trying as a client would."""
    start_s = monotonic()
    while True:
        try:
            assert json.loads(await body_of(road, account_id, "/echo"))
        except BrowserLost:
            await anyio.sleep(0.05)
        else:
            return monotonic() - start_s


def pages(road: BrowserTransport, account_id: str) -> int:
    context = road._account(account_id)._context
    return len(context.pages) if context else 0


@browser
async def test_the_mark_is_the_one_of_the_page(road: BrowserTransport) -> None:
    async with road.fetch("a", Fetch("GET", "/echo")) as fetched:
        assert fetched.credential == mark_of("token-of-a")


@browser
async def test_accounts_share_neither_cookies_nor_storage(road: BrowserTransport, body_of: BodyOf) -> None:
    for account_id in ("a", "b", "a"):
        headers = json.loads(await body_of(road, account_id, "/echo"))["headers"]
        assert headers["authorization"] == f"Bearer token-of-{account_id}"
        assert headers["cookie"] == f"token=token-of-{account_id}"
    page = (await road._account("a").usable_page())._page
    await page.evaluate("document.cookie = 'mine=a'")
    assert "mine" not in json.loads(await body_of(road, "b", "/echo"))["headers"]["cookie"]
    assert "mine=a" in json.loads(await body_of(road, "a", "/echo"))["headers"]["cookie"]


@browser
async def test_many_first_calls_open_one_page_once_it_has_booted(
    road: BrowserTransport, body_of: BodyOf
) -> None:
    before = json.loads(await body_of(road, "other", "/counts"))["lists"]
    assert not road.ready("a")
    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(body_of, road, "a", "/echo")
    assert road.ready("a")
    assert road.problem() is None
    assert pages(road, "a") == 1
    assert json.loads(await body_of(road, "a", "/counts"))["lists"] == before + 1


@browser
async def test_entering_waits_for_no_browser_and_leaving_ends_it(small_settings: Settings) -> None:
    start_s = monotonic()
    async with BrowserTransport(small_settings, lambda _: state_from_token("t", "x")) as transport:
        assert monotonic() - start_s < 2
        assert transport.problem() == "Chromium is starting"
        running = await transport.chromium.current()
        processes = [psutil.Process(running.browser_pid), psutil.Process(running.driver_pid)]
    assert not any(process.is_running() for process in processes)


@browser
async def test_a_crashed_page_ends_its_own_streams_and_is_replaced(
    road: BrowserTransport, body_of: BodyOf
) -> None:
    async with reading(road, "a", "b") as (one, other):
        session = (await road._account("a").usable_page())._session
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_crash, session)
            assert await ended_s(one) < SOON_S
            tasks.cancel_scope.cancel()
        assert await next_call_s(road, body_of, "a") < SOON_S
        assert await goes_on(other)
        assert pages(road, "a") == 1


async def _crash(session: Any) -> None:
    """`Page.crash` answers never, or with the page's end."""
    with pytest.raises(PlaywrightError):
        await session.send("Page.crash")
    await anyio.sleep_forever()


@browser
async def test_killed_renderers_are_replaced(road: BrowserTransport, body_of: BodyOf) -> None:
    async with reading(road, "a") as (one,):
        main = psutil.Process((await road.chromium.current()).browser_pid)
        for process in main.children(recursive=True):
            with suppress(psutil.Error):
                if "--type=renderer" in process.cmdline():
                    process.kill()
        assert await ended_s(one) < SOON_S
        assert await next_call_s(road, body_of, "a") < SOON_S


@browser
@pytest.mark.parametrize("victim", ["browser", "driver"])
async def test_after_a_killed_browser_or_driver_the_next_call_works(
    road: BrowserTransport, body_of: BodyOf, victim: str
) -> None:
    async with reading(road, "a", "b") as (one, other):
        running = await road.chromium.current()
        psutil.Process(running.browser_pid if victim == "browser" else running.driver_pid).kill()
        assert await ended_s(one) < SOON_S
        assert await ended_s(other) < SOON_S
        assert not road.ready("a")
        assert await next_call_s(road, body_of, "a") < SOON_S
        assert json.loads(await body_of(road, "a", "/echo"))["headers"]["cookie"] == "token=token-of-a"
        await until_async(lambda: road.ready("b"))


@browser
async def test_a_frozen_browser_ends_its_streams_and_is_replaced(
    road: BrowserTransport, body_of: BodyOf
) -> None:
    async with reading(road, "a") as (one,):
        running = await road.chromium.current()
        frozen = psutil.Process(running.browser_pid)
        frozen.suspend()
        took_s = await ended_s(one)
        assert took_s + await next_call_s(road, body_of, "a") < 20
        assert running.lost == "the browser froze"
        await until_async(lambda: not runs(frozen))


@browser
async def test_a_hung_page_is_replaced_and_other_accounts_go_on(
    road: BrowserTransport, body_of: BodyOf
) -> None:
    async with reading(road, "a", "b") as (one, other):
        page = (await road._account("a").usable_page())._page
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_hang, page)
            assert await ended_s(one) < 12
        assert await next_call_s(road, body_of, "a") < SOON_S
        assert await goes_on(other)


async def _hang(page: Any) -> None:
    with pytest.raises(PlaywrightError):
        await page.evaluate("for (;;) {}")


@browser
async def test_a_navigation_ends_the_streams_but_a_new_address_alone_does_not(
    road: BrowserTransport, body_of: BodyOf
) -> None:
    async with reading(road, "a") as (one,):
        page = (await road._account("a").usable_page())._page
        await page.evaluate("history.pushState({}, '', '/c/new-chat')")
        assert await goes_on(one)
        await page.evaluate("() => { location.href = '/?again'; }")
        assert await ended_s(one) < SOON_S
        assert await next_call_s(road, body_of, "a") < SOON_S


@browser
async def test_a_forgotten_account_leaves_no_context(road: BrowserTransport, body_of: BodyOf) -> None:
    async with reading(road, "a", "b") as (one, other):
        await road.forget("a")
        assert await ended_s(one) < SOON_S
        assert len((await road.chromium.current()).browser.contexts) == 1
        assert await goes_on(other)
    await road.forget("a")
    assert json.loads(await body_of(road, "a", "/echo"))


@browser
async def test_after_a_new_sign_in_running_calls_end_in_the_old_context_and_new_ones_use_the_new(
    small_settings: Settings, chromium: Chromium, body_of: BodyOf
) -> None:
    tokens = iter(["first", "second"])

    def state_of(_: str) -> StorageState:
        return state_from_token(next(tokens), small_settings.upstream)

    async with BrowserTransport(small_settings, state_of, chromium=chromium) as road:
        async with reading(road, "a") as (old,):
            road.replace("a")
            headers = json.loads(await body_of(road, "a", "/echo"))["headers"]
            assert headers["authorization"] == "Bearer second"
            assert await goes_on(old)
            assert len((await chromium.current()).browser.contexts) == 2
        running = await chromium.current()
        await until_async(lambda: len(running.browser.contexts) == 1)
        assert json.loads(await body_of(road, "a", "/echo"))["headers"]["cookie"] == "token=second"


@browser
async def test_a_deleted_account_ends_its_calls_in_an_old_context_too(
    road: BrowserTransport, body_of: BodyOf
) -> None:
    async with reading(road, "a") as (old,):
        road.replace("a")
        async with reading(road, "a") as (new,):
            await road.forget("a")
            assert await ended_s(old) < SOON_S
            assert await ended_s(new) < SOON_S
    assert (await road.chromium.current()).browser.contexts == []


@browser
async def test_callers_that_wait_for_a_page_get_the_one_of_the_new_sign_in(
    small_settings: Settings, chromium: Chromium, body_of: BodyOf
) -> None:
    tokens = iter(["first", "second"])

    def state_of(_: str) -> StorageState:
        return state_from_token(next(tokens), small_settings.upstream)

    echoes = list[bytes]()
    async with BrowserTransport(small_settings, state_of, chromium=chromium) as road:

        async def call() -> None:
            echoes.append(await body_of(road, "a", "/echo"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            await until_async(lambda: pages(road, "a"))
            road.replace("a")
        await until_async(
            lambda: road.chromium._running and len(road.chromium._running.browser.contexts) == 1
        )
    assert [json.loads(echo)["headers"]["authorization"] for echo in echoes] == ["Bearer second"]


@browser
async def test_a_deleted_account_gets_no_page(small_settings: Settings, chromium: Chromium) -> None:
    def state_of(_: str) -> StorageState:
        raise AccountGone("this account has been deleted")

    async with BrowserTransport(small_settings, state_of, chromium=chromium) as road:
        for _ in range(2):
            with pytest.raises(AccountGone):
                await road.warm("a")
        assert (await chromium.current()).browser.contexts == []


@browser
async def test_an_accounts_cookies_are_told_as_the_browser_would_send_them(
    road: BrowserTransport, small_settings: Settings
) -> None:
    picture = f"{small_settings.upstream}/output/cat.png?key=k"
    # Also of an account that nothing was asked of yet.
    assert await road.cookies("a", picture) == {"token": "token-of-a"}
    await road.warm("b")
    assert await road.cookies("b", picture) == {"token": "token-of-b"}
    assert await road.cookies("b", "https://example.org/output/cat.png") == {}


async def test_an_account_that_is_gone_has_no_cookies_and_gets_no_context() -> None:
    wrong: list[Exception] = [AccountGone("this account has been deleted"), PermissionError(13, "Denied")]

    def state_of(_: str) -> StorageState:
        raise wrong.pop(0)

    async with BrowserTransport(Settings(), state_of, chromium=Chromium(Settings())) as road:
        with pytest.raises(AccountGone):
            await road.cookies("a", "https://chat.qwen.ai/")
        with pytest.raises(SessionDamaged, match="cannot be read: Denied"):
            await road.cookies("a", "https://chat.qwen.ai/")
        assert "AccountContext" not in repr(road)


@browser
async def test_an_account_that_cannot_be_read_says_so(small_settings: Settings, chromium: Chromium) -> None:
    def state_of(_: str) -> StorageState:
        raise PermissionError(13, "Permission denied", "/secret/path")

    async with BrowserTransport(small_settings, state_of, chromium=chromium) as road:
        with pytest.raises(
            SessionDamaged, match=r"^this account's sign-in cannot be read: Permission denied$"
        ):
            await road.warm("a")


@browser
async def test_a_caller_that_leaves_while_the_page_opens_leaves_one_page(
    road: BrowserTransport, body_of: BodyOf
) -> None:
    with anyio.move_on_after(0.05):
        await road.warm("a")
    await body_of(road, "a", "/echo")
    assert pages(road, "a") == 1
    assert len((await road.chromium.current()).browser.contexts) == 1


@browser
async def test_a_site_that_is_not_there_is_unreachable_and_tried_again(chromium: Chromium) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    settings = Settings(upstream=nowhere, auth_upstream=nowhere)
    await chromium.current()
    async with BrowserTransport(
        settings, lambda _: state_from_token("t", nowhere), chromium=chromium
    ) as transport:
        for _ in range(2):
            with pytest.raises(Unreachable):
                await transport.warm("a")
        assert transport.problem() == "the browser could not reach the site"
        assert not transport.ready("a")
