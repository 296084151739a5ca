from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from hashlib import sha256
from random import Random
from time import monotonic
from typing import Any, cast

import anyio
import pytest
from playwright.async_api import CDPSession

from qwenproxy.browser import bridge as module
from qwenproxy.browser.bridge import Bridge, PageAnswer
from qwenproxy.browser.contexts import BrowserTransport
from qwenproxy.errors import BrowserLost, NeedsHuman, ProtocolChanged, Severed, Unreachable
from qwenproxy.qwen.transport import Fetch
from tests.serve import DEADLINE_S

pytestmark = pytest.mark.anyio
BodyOf = Callable[[BrowserTransport, str, str], Awaitable[bytes]]


def browser(test: Any) -> Any:
    return pytest.mark.browser(pytest.mark.timeout(90)(test))


async def open_calls(road: BrowserTransport, body_of: BodyOf) -> int:
    return int(json.loads(await body_of(road, "teller", "/counts")).get("open", 0))


async def until_open(road: BrowserTransport, body_of: BodyOf, wanted: int) -> float:
    """Seconds until the site has so many open calls.

    The site's server may miss that a call was aborted before it began, so tests count from what is open.
    """
    start_s = monotonic()
    while await open_calls(road, body_of) != wanted:
        assert monotonic() - start_s < DEADLINE_S, "the site's calls stay open"
        await anyio.sleep(0.01)
    return monotonic() - start_s


async def read_to_the_end(road: BrowserTransport, path: str, came: list[bytes] | None = None) -> None:
    async with road.fetch("a", Fetch("GET", path)) as fetched, aclosing(fetched.pieces()) as pieces:
        async for piece in pieces:
            if came is not None:
                came.append(piece)


def expected(seed: int, pieces: int) -> bytes:
    dice = Random(seed)
    body = b""
    for _ in range(pieces):
        body += dice.randbytes(dice.choice([1, 2, 3, 5, 100, 1000, 3000]))
        dice.random()
    return body


@browser
async def test_every_byte_of_many_streams_comes_once_and_in_order(
    road: BrowserTransport, body_of: BodyOf
) -> None:
    seen: dict[int, bytes] = {}

    async def read(seed: int) -> None:
        seen[seed] = await body_of(road, "a", f"/bytes?seed={seed}&pieces=300")

    async with anyio.create_task_group() as tasks:
        for seed in range(24):
            tasks.start_soon(read, seed)
    assert {seed: sha256(body).hexdigest() for seed, body in seen.items()} == {
        seed: sha256(expected(seed, 300)).hexdigest() for seed in range(24)
    }


@browser
async def test_headers_are_those_of_the_app(road: BrowserTransport) -> None:
    async with road.fetch("a", Fetch("POST", "/echo", body='{"text": "é\u2028"}', stream=True)) as fetched:
        assert fetched.status == 200
        assert fetched.headers["content-type"] == "application/json"
        async with aclosing(fetched.pieces()) as pieces:
            echo = json.loads(b"".join([piece async for piece in pieces]))
    assert json.loads(echo["body"]) == {"text": "é\u2028"}
    headers = echo["headers"]
    assert headers["accept"] == "application/json"
    assert headers["content-type"] == "application/json"
    assert headers["version"] == "0.3.99"
    assert headers["source"] == "web"
    assert len(headers["x-request-id"]) == 36
    assert "GMT" in headers["timezone"]
    assert "(" not in headers["timezone"]
    assert headers["x-accel-buffering"] == "no"
    assert headers["authorization"] == "Bearer token-of-a"
    assert "token=token-of-a" in headers["cookie"]
    assert "x-request-origin" not in headers


@browser
async def test_the_auth_host_is_told_the_sites_origin_and_short_calls_are_no_streams(
    road: BrowserTransport, small_site: str
) -> None:
    async with (
        road.fetch("a", Fetch("DELETE", "/echo", host="auth")) as fetched,
        aclosing(fetched.pieces()) as pieces,
    ):
        echo = json.loads(b"".join([piece async for piece in pieces]))
    assert echo["method"] == "DELETE"
    assert echo["headers"]["x-request-origin"] == small_site
    assert "x-accel-buffering" not in echo["headers"]


@browser
async def test_the_token_is_read_at_each_call_and_only_its_mark_is_told(road: BrowserTransport) -> None:
    async with road.fetch("a", Fetch("GET", "/echo")) as before:
        pass
    page = (await road._account("a").usable_page())._page
    await page.evaluate("localStorage.setItem('token', 'another')")
    async with road.fetch("a", Fetch("GET", "/echo")) as after:
        pass
    await page.evaluate("localStorage.removeItem('token')")
    async with road.fetch("a", Fetch("GET", "/echo")) as without:
        pass
    assert before.credential != after.credential
    assert len(after.credential) == 16
    assert without.credential == ""


@browser
async def test_nothing_of_ours_stays_on_window(road: BrowserTransport) -> None:
    page = (await road._account("a").usable_page())._page
    own = "(() => { const f = document.createElement('iframe'); document.body.append(f);"
    own += "const plain = new Set(Object.getOwnPropertyNames(f.contentWindow)); f.remove();"
    own += "return Object.getOwnPropertyNames(window).filter((name) => !plain.has(name)); })()"
    assert [name for name in await page.evaluate(own) if not name.isdigit()] == []


@browser
async def test_leaving_a_stream_closes_it_upstream_within_a_second(
    road: BrowserTransport, body_of: BodyOf
) -> None:
    before = await open_calls(road, body_of)
    async with road.fetch("a", Fetch("POST", "/endless", body="{}", stream=True)) as fetched:
        async with aclosing(fetched.pieces()) as pieces:
            assert await anext(pieces)
        await until_open(road, body_of, before + 1)
    assert await until_open(road, body_of, before) < 1


@browser
async def test_leaving_before_the_head_closes_it_too(road: BrowserTransport, body_of: BodyOf) -> None:
    before = await open_calls(road, body_of)

    async def wait_for_head() -> None:
        async with road.fetch("a", Fetch("GET", "/silent")):
            raise AssertionError("the site never answers this")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait_for_head)
        await until_open(road, body_of, before + 1)
        tasks.cancel_scope.cancel()
    assert await until_open(road, body_of, before) < 1


@browser
async def test_many_that_leave_at_once_at_any_moment_leave_nothing_open(
    road: BrowserTransport, body_of: BodyOf
) -> None:
    dice = Random(7)
    before = await open_calls(road, body_of)
    await body_of(road, "a", "/counts")

    async def leave_soon() -> None:
        with anyio.move_on_after(dice.random() * 0.2):
            await read_to_the_end(road, "/endless")

    async with anyio.create_task_group() as tasks:
        for _ in range(40):
            tasks.start_soon(leave_soon)
    assert await until_open(road, body_of, before) < 2
    page = await road._account("a").usable_page()
    assert page.bridge.open_calls == 0
    assert page.lost is None


@browser
async def test_a_connection_that_breaks_off_is_severed_after_what_came(road: BrowserTransport) -> None:
    came: list[bytes] = []
    with pytest.raises(Severed):
        await read_to_the_end(road, "/broken", came)
    assert b"".join(came) == b"the first half"


@browser
async def test_a_host_that_is_not_there_is_unreachable(road: BrowserTransport) -> None:
    page = (await road._account("a").usable_page())._page
    await page.evaluate("() => { window.fetch = () => Promise.reject(new TypeError('Failed to fetch')); }")
    with pytest.raises(Unreachable):
        async with road.fetch("a", Fetch("GET", "/echo")):
            pass


@browser
async def test_a_dialog_over_a_hanging_call_needs_a_human(road: BrowserTransport, body_of: BodyOf) -> None:
    before = await open_calls(road, body_of)
    page = (await road._account("a").usable_page())._page
    hidden = "<div class='nc_wrapper' style='display:none'>slide</div>"
    await page.evaluate(f"document.body.insertAdjacentHTML('beforeend', {json.dumps(hidden)})")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_meet_human_check, road)
        await until_open(road, body_of, before + 1)
        shown = "<div class='baxia-dialog' style='position:fixed;width:300px;height:200px'>slide</div>"
        await page.evaluate(f"document.body.insertAdjacentHTML('beforeend', {json.dumps(shown)})")
    assert await until_open(road, body_of, before) < 1


async def _meet_human_check(road: BrowserTransport) -> None:
    with pytest.raises(NeedsHuman):
        async with road.fetch("a", Fetch("GET", "/silent")):
            pass


def line(number: int, kind: str, payload: bytes = b"") -> str:
    return f"{number} {kind} {b64encode(payload).decode()}"


def bridge_with(answer: PageAnswer) -> Bridge:
    made = Bridge(cast(CDPSession, None))
    made._answers[1] = answer
    return made


def test_a_missing_batch_loses_the_page() -> None:
    answer = PageAnswer()
    made = bridge_with(answer)
    made._batch({"name": made._binding, "payload": "0\n" + line(1, "data", b"x")})
    assert not answer.done
    made._batch({"name": made._binding, "payload": "2\n" + line(1, "data", b"z")})
    assert isinstance(answer._error, BrowserLost)


@pytest.mark.parametrize("bad", ["1 data ???", "1 head " + b64encode(b"{}").decode(), "no line"])
def test_a_batch_that_cannot_be_read_loses_the_page_and_raises_nothing(bad: str) -> None:
    answer = PageAnswer()
    made = bridge_with(answer)
    made._batch({"name": made._binding, "payload": f"0\n{bad}"})
    assert isinstance(answer._error, BrowserLost)


async def test_a_reader_that_stands_still_does_not_fill_the_memory() -> None:
    answer = PageAnswer()
    for _ in range(module.UNREAD_LIMIT_BYTES // (1 << 20) + 1):
        answer.take("data", bytes(1 << 20))
    assert answer.in_page
    async with aclosing(answer.pieces()) as pieces:
        with pytest.raises(ProtocolChanged):
            await anext(pieces)


async def test_what_waits_is_given_as_one_piece_before_the_end() -> None:
    answer = PageAnswer()
    for part in (b"a", b"b", b"c"):
        answer.take("data", part)
    answer.take("end", b"")
    async with aclosing(answer.pieces()) as pieces:
        assert [piece async for piece in pieces] == [b"abc"]
