"""What the service made, through the whole server."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import httpx
import pytest

from qwenproxy.api_keys import KeyRing
from qwenproxy.errors import QwenProxyError, Unreachable
from qwenproxy.server.access import Gate
from qwenproxy.server.relay import Bounds
from qwenproxy.shelf import UNKNOWN_TYPE, Opened
from tests.serve import until_async
from tests.server.serving import FOREVER, Running, ScriptedGateway, running

pytestmark = pytest.mark.anyio
ID = "0" * 32
PATH = f"/api/media/{ID}"


async def played(pieces: Sequence[bytes | float | QwenProxyError]) -> AsyncGenerator[bytes]:
    for piece in pieces:
        if isinstance(piece, QwenProxyError):
            raise piece
        if isinstance(piece, bytes):
            yield piece
        else:
            await anyio.sleep(piece)


def made(*pieces: bytes | float | QwenProxyError, **changes: object) -> Opened:
    told: dict[str, object] = {"status": 200, "type": "image/png", "length": None, "content_range": ""}
    return Opened(**{**told, **changes}, pieces=played(pieces))  # type: ignore[arg-type]


@asynccontextmanager
async def given(
    opened: Opened | None, bounds: Bounds | None = None, gate: Gate | None = None
) -> AsyncIterator[tuple[ScriptedGateway, Running, httpx.AsyncClient]]:
    gateway = ScriptedGateway()
    if opened is not None:
        gateway.media.made[ID] = opened
    async with (
        running(gateway, bounds, gate) as proxy,
        httpx.AsyncClient(base_url=proxy.url, timeout=15, trust_env=False) as client,
    ):
        yield gateway, proxy, client


async def test_a_picture_comes_as_one() -> None:
    async with given(made(b"abc", b"def", length=6)) as (gateway, proxy, client):
        answer = await client.get(PATH)
        await proxy.empty()
    assert (answer.status_code, answer.content, gateway.media.left) == (200, b"abcdef", 1)
    wanted = {
        "content-type": "image/png",
        "content-length": "6",
        "content-disposition": "inline",
        "x-content-type-options": "nosniff",
        "content-security-policy": "sandbox",
        "cache-control": "private, max-age=3600",
        "accept-ranges": "bytes",
    }
    assert {name: answer.headers[name] for name in wanted} == wanted


async def test_what_has_no_type_is_for_saving() -> None:
    async with given(made(b"<script>", type=UNKNOWN_TYPE)) as (_, _, client):
        answer = await client.get(PATH)
    assert answer.headers["content-disposition"] == "attachment"
    assert answer.headers["content-type"] == UNKNOWN_TYPE


async def test_a_part_is_asked_for_and_told() -> None:
    part = made(b"bc", status=206, length=2, content_range="bytes 1-2/6", type="video/mp4")
    async with given(part) as (gateway, _, client):
        answer = await client.get(PATH, headers={"Range": "bytes=1-2"})
    assert (answer.status_code, answer.content) == (206, b"bc")
    assert answer.headers["content-range"] == "bytes 1-2/6"
    assert gateway.media.parts == ["bytes=1-2"]


async def test_only_the_head_is_given_where_only_that_is_wanted() -> None:
    async with given(made(b"abc", FOREVER, length=3)) as (_, proxy, client):
        answer = await client.head(PATH)
        await proxy.empty()
    assert (answer.status_code, answer.headers["content-length"], answer.content) == (200, "3", b"")


async def test_an_unknown_one_is_a_404_and_other_methods_a_405() -> None:
    async with given(None) as (_, _, client):
        unknown = await client.get(PATH)
        wrong = await client.post(PATH, json={})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "file_not_found")
    assert wrong.status_code == 405


async def test_it_needs_no_key(tmp_path: Path) -> None:
    keys = tmp_path / "Authorization.txt"
    keys.write_text("sk-key-of-the-owner-0123456789\n")
    ring = KeyRing([keys])
    ring.open()
    async with given(made(b"abc"), gate=Gate(ring)) as (_, _, client):
        assert (await client.get(PATH)).content == b"abc"
        assert (await client.get("/v1/models")).status_code == 401


async def test_what_breaks_off_is_not_taken_for_whole() -> None:
    async with given(made(b"abc", Unreachable("the service's store broke off"))) as (_, proxy, client):
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get(PATH)
        await proxy.empty()


async def test_who_leaves_ends_it() -> None:
    async with given(made(b"abc", FOREVER)) as (gateway, proxy, client):
        async with client.stream("GET", PATH) as answer:
            assert await anext(answer.aiter_bytes()) == b"abc"
        await until_async(lambda: gateway.media.left == 1)
        await proxy.empty()


async def test_who_does_not_read_is_dropped() -> None:
    large = [bytes(1_000_000)] * 100
    async with (
        given(made(*large), Bounds(write_stall_s=0.1)) as (gateway, proxy, _),
        await proxy.connect() as connection,
    ):
        await connection.send(proxy.head("GET", PATH))
        await until_async(lambda: gateway.media.left == 1)
        await proxy.empty()


async def test_it_ends_with_the_server() -> None:
    async with given(made(b"abc", FOREVER)) as (_, proxy, client):
        async with client.stream("GET", PATH) as answer:
            pieces = answer.aiter_bytes()
            await anext(pieces)
            proxy.admission.stopped.set()
            with pytest.raises(httpx.HTTPError):
                await anext(pieces)
        await proxy.empty()


async def test_a_page_of_another_origin_may_show_it() -> None:
    shown = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
    async with given(made(b"abc")) as (_, _, client):
        assert (await client.get(PATH, headers={**shown, "Sec-Fetch-Mode": "cors"})).status_code == 403
        assert (await client.get("/v1/models", headers=shown)).status_code == 403
        assert (await client.get(PATH, headers=shown)).content == b"abc"
