from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest

from qwenproxy.errors import BadRequest, TooLarge
from qwenproxy.server.body import DEPTH, parse_json
from qwenproxy.server.relay import Bounds
from tests.server.serving import HELLO, Running, ScriptedGateway, heard, running

CHAT = "/v1/chat/completions"
AT_ONCE_S = 0.9


@asynccontextmanager
async def client_of(proxy: Running) -> AsyncGenerator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=proxy.url, timeout=15, trust_env=False) as client:
        yield client


BROKEN = {
    "empty": b"",
    "blank": b"  ",
    "not JSON": b"Hello",
    "cut": b'{"messages": [',
    "two values": b"{} {}",
    "list": b"[]",
    "string": b'"Hello"',
    "null": b"null",
    "deep list": b'{"messages": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "deep object": b'{"a":' * 100 + b"1" + b"}" * 100,
    "long number": b'{"n": ' + b"9" * 20_000 + b"}",
    "NaN": b'{"temperature": NaN, "messages": [{"role": "user", "content": "Hello"}]}',
    "infinity": b'{"temperature": -Infinity}',
    "bad UTF-8": b'{"model": "\xff\xfe"}',
    "UTF-16": '{"model": "qwen"}'.encode("utf-16"),
    "surrogate": b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    "surrogate key": b'{"messages": [{"role": "user", "content": "Hello", "\\udc00": 1}]}',
    "control character": b'{"model": "a\nb"}',
}


@pytest.mark.anyio
@pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN.keys())
async def test_broken_bodies_are_the_callers_fault(body: bytes) -> None:
    gateway = ScriptedGateway()
    async with running(gateway) as proxy, client_of(proxy) as client:
        response = await client.post(CHAT, content=body, headers={"Content-Type": "application/json"})
        assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_request")
        assert not gateway.opened
        again = await client.post(CHAT, json=HELLO)
        assert again.status_code == 200


def test_a_body_may_be_as_deep_as_that_and_no_deeper() -> None:
    deep: Any = 1
    for _ in range(DEPTH - 2):
        deep = [deep]
    assert parse_json(json.dumps({"a": deep}).encode()) == {"a": deep}
    with pytest.raises(BadRequest, match="64"):
        parse_json(json.dumps({"a": [[deep]]}).encode())


def test_a_byte_order_mark_and_a_whole_surrogate_pair_are_taken() -> None:
    assert parse_json(b'\xef\xbb\xbf{"a": "\\ud83d\\ude00"}') == {"a": "\U0001f600"}


@pytest.mark.anyio
async def test_a_large_body_is_read_whole() -> None:
    gateway = ScriptedGateway()
    text = "x" * 3_000_000
    async with running(gateway) as proxy, client_of(proxy) as client:
        response = await client.post(CHAT, json={"messages": [{"role": "user", "content": text}]})
        assert response.status_code == 200
    assert gateway.asked[0].messages[0].text == text


SMALL = Bounds(body_bytes=1000, body_idle_s=0.3, body_total_s=0.8)


@pytest.mark.anyio
async def test_a_body_that_says_it_is_too_large() -> None:
    async with running(ScriptedGateway(), SMALL) as proxy:
        head = proxy.head("POST", CHAT, "Content-Type: application/json\r\nContent-Length: 1001")
        answer = await proxy.say(head)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b'"too_large"' in answer


@pytest.mark.anyio
async def test_a_body_that_does_not_say_it_is_too_large() -> None:
    async with running(ScriptedGateway(), SMALL) as proxy, client_of(proxy) as client:

        async def endless() -> AsyncGenerator[bytes]:
            for _ in range(100):
                yield b"x" * 1000

        response = await client.post(CHAT, content=endless(), headers={"Content-Type": "application/json"})
        assert (response.status_code, response.json()["error"]["code"]) == (413, TooLarge.code)
        await proxy.empty()
        assert (await client.get("/ping")).text == "pong"


@pytest.mark.anyio
async def test_a_body_shorter_than_it_says_is_not_waited_for_long() -> None:
    async with running(ScriptedGateway(), SMALL) as proxy:
        head = proxy.head("POST", CHAT, "Content-Type: application/json\r\nContent-Length: 900")
        answer = await proxy.say(head + b'{"messages":')
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"connection: close" in answer.lower()
        await proxy.empty()


@pytest.mark.anyio
async def test_a_body_longer_than_it_says_ends_the_connection() -> None:
    async with running(ScriptedGateway()) as proxy, await proxy.connect() as connection:
        await connection.send(proxy.post(HELLO) + b'"more of it"}')
        answer = await heard(connection, b"\0")
        assert answer.count(b"HTTP/1.1 200 ") <= 1
        assert answer.count(b"HTTP/1.1 ") >= 1


@pytest.mark.anyio
async def test_a_body_that_drips_has_a_last_moment() -> None:
    async with running(ScriptedGateway(), SMALL) as proxy, await proxy.connect() as connection:
        await connection.send(
            proxy.head("POST", CHAT, "Content-Type: application/json\r\nContent-Length: 900")
        )
        answer = b""
        with anyio.fail_after(10):
            while not answer:
                with anyio.move_on_after(0.1):
                    answer = await connection.receive()
                if not answer:
                    await connection.send(b" ")
        assert answer.startswith(b"HTTP/1.1 400 ")


@pytest.mark.anyio
async def test_leaving_inside_the_body_frees_the_place() -> None:
    gateway = ScriptedGateway()
    async with running(gateway) as proxy:
        async with await proxy.connect() as connection:
            await connection.send(proxy.post(HELLO)[:-5])
            with anyio.fail_after(5):
                while not proxy.admission.inside:
                    await anyio.sleep(0.005)
        await proxy.empty(AT_ONCE_S)
    assert not gateway.opened
