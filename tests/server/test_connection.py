from __future__ import annotations

import json

import anyio
import pytest
from anyio.abc import SocketStream

from qwenproxy.chat import Text
from qwenproxy.server import connection as connection_module
from qwenproxy.server.connection import HEAD_BYTES
from tests.server.serving import END, FOREVER, HELLO, START, ScriptedGateway, heard, running

pytestmark = pytest.mark.anyio


@pytest.fixture
def short_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "HEAD_S", 0.3)


@pytest.mark.parametrize("start", [b"", b"GET /ping HT", b"GET /ping HTTP/1.1\r\nHost: 127"])
async def test_a_head_that_never_ends_is_not_waited_for(start: bytes, short_head: None) -> None:
    async with running(ScriptedGateway()) as proxy, await proxy.connect() as connection:
        if start:
            await connection.send(start)
        assert await heard(connection, b"\0", within_s=8) == b""


async def test_a_head_that_drips_is_not_waited_for(short_head: None) -> None:
    async with running(ScriptedGateway()) as proxy, await proxy.connect() as connection:
        with anyio.fail_after(8), pytest.raises((anyio.BrokenResourceError, anyio.EndOfStream)):
            await drip(connection, b"GET /ping HTTP/1.1\r\n" + b"X" * 10_000)


async def drip(connection: SocketStream, data: bytes) -> None:
    for letter in data:
        await connection.send(bytes([letter]))
        await anyio.sleep(0.05)


async def test_a_second_head_that_never_ends_is_not_waited_for(short_head: None) -> None:
    async with running(ScriptedGateway()) as proxy, await proxy.connect() as connection:
        await connection.send(proxy.head("GET", "/ping") + b"GET /pi")
        answer = await heard(connection, b"\0", within_s=8)
    assert answer.count(b"HTTP/1.1 200") == 1
    assert answer.endswith(b"pong")


async def test_a_running_answer_outlives_the_heads_deadline(short_head: None) -> None:
    gateway = ScriptedGateway(lambda request: [START, 1.0, Text("late"), END])
    async with running(gateway, heartbeat_s=0.2) as proxy:
        for stream, end in ((True, b"[DONE]"), (False, b'"late"')):
            async with await proxy.connect() as connection:
                await connection.send(proxy.post({**HELLO, "stream": stream}) + b"GET /pi")
                assert end in await heard(connection, end)


async def test_a_head_too_large_to_wait_for_is_refused_while_it_comes() -> None:
    async with running(ScriptedGateway()) as proxy, await proxy.connect() as connection:
        with anyio.fail_after(10):
            try:
                await connection.send(b"GET /ping HTTP/1.1\r\nX: ")
                for _ in range(HEAD_BYTES // 1000 + 2):
                    await connection.send(b"x" * 1000)
            except anyio.BrokenResourceError:
                return
        answer = await heard(connection)
        assert answer.startswith(b"HTTP/1.1 400 ")


BROKEN = {
    "not HTTP": b"Hello\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "another host in the target": b"GET http://evil.example/ping HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n\r\n",
    "tunnel": b"CONNECT evil.example:443 HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n\r\n",
    "asterisk": b"OPTIONS * HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n\r\n",
    "two lengths": b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n"
    b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "length and chunks": b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n"
    b"Content-Type: application/json\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "negative length": b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n"
    b"Content-Length: -1\r\n\r\n",
    "folded header": b"GET /ping HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\nX: a\r\n b\r\n: c\r\n\r\n",
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN.keys())
async def test_what_is_no_request_of_ours(data: bytes) -> None:
    gateway = ScriptedGateway()
    async with running(gateway) as proxy:
        answer = await proxy.say(data.replace(b"PORT", str(proxy.port).encode()))
        assert answer.startswith(b"HTTP/1.1 400 ")
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"connection: close" in head.lower()
        assert json.loads(body)["error"]["code"] == "invalid_request"
    assert not gateway.opened


async def test_a_huge_chunk_header_is_refused() -> None:
    async with running(ScriptedGateway()) as proxy, await proxy.connect() as connection:
        head = proxy.head(
            "POST", "/v1/chat/completions", "Content-Type: application/json\r\nTransfer-Encoding: chunked"
        )
        await connection.send(head + b"f" * 40 + b"\r\n")
        assert (await heard(connection)).startswith(b"HTTP/1.1 400 ")
        await proxy.empty()


async def test_rubbish_after_a_running_stream_is_not_answered_inside_it() -> None:
    gateway = ScriptedGateway(lambda request: [START, FOREVER])
    async with running(gateway) as proxy, await proxy.connect() as connection:
        await connection.send(proxy.post({**HELLO, "stream": True}))
        await heard(connection, b"data: ")
        await connection.send(b"\x00rubbish\r\n\r\n")
        assert b"HTTP/1.1" not in await heard(connection, b"\0")
        await gateway.all_closed(1, within_s=1)
