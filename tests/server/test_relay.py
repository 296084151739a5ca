from __future__ import annotations

import json
import logging
import socket
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import anyio
import httpx
import openai
import psutil
import pytest
from starlette.routing import Route

from qwenproxy.chat import ChatRequest, Delta, Finished, Media, Reply, Source, Started, Text, Thinking, Usage
from qwenproxy.dialects.openai_chat import ChunkEncoder, OpenAIChat
from qwenproxy.errors import AllWaiting, ContextTooLong, GenerationFailed, Severed, UpstreamTimeout
from qwenproxy.server.relay import Bounds, Relay
from tests.server.serving import END, FOREVER, HELLO, START, Running, ScriptedGateway, heard, running

pytestmark = pytest.mark.anyio

STREAM: dict[str, Any] = {**HELLO, "stream": True}
CHAT = "/v1/chat/completions"
AT_ONCE_S = 0.9
"""How soon a client's leaving must have closed the gateway's generator: well under a second."""


@asynccontextmanager
async def client_of(proxy: Running) -> AsyncGenerator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=proxy.url, timeout=15, trust_env=False) as client:
        yield client


def datas(text: str) -> list[Any]:
    found = [event.removeprefix("data: ") for event in text.split("\n\n") if event.startswith("data: ")]
    return [data if data == "[DONE]" else json.loads(data) for data in found]


def content(text: str) -> str:
    choices = [choice for chunk in datas(text)[:-1] for choice in chunk["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


async def test_streamed() -> None:
    gateway = ScriptedGateway()
    async with running(gateway) as proxy, client_of(proxy) as client:
        response = await client.post(CHAT, json=STREAM)
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert "content-encoding" not in response.headers
        assert content(response.text) == "Hello, you!"
        assert datas(response.text)[-1] == "[DONE]"
        await gateway.all_closed(1, within_s=5)
        assert gateway.completed == 1, "a whole answer runs to its own end, it is not cut at the last delta"
        await proxy.empty()


async def test_unstreamed_is_the_stream_folded() -> None:
    gateway = ScriptedGateway(
        lambda request: [START, Thinking("hm"), Source(1, "https://a.example/", "A"), Text("Yes [[1]]"), END]
    )
    async with running(gateway) as proxy, client_of(proxy) as client:
        response = await client.post(CHAT, json=HELLO)
        message = response.json()["choices"][0]["message"]
        assert response.status_code == 200
        assert response.headers["content-type"] == "application/json"
        assert (message["content"], message["reasoning_content"]) == ("Yes [[1]]", "hm")
        await gateway.all_closed(1, within_s=5)
        assert gateway.completed == 1


async def test_work_after_the_last_delta_is_not_cut_off() -> None:
    gateway = ScriptedGateway(lambda request: [START, Text("Hi"), END, 0.3])
    async with running(gateway) as proxy, client_of(proxy) as client:
        for body in (HELLO, STREAM):
            await client.post(CHAT, json=body)
        await gateway.all_closed(2, within_s=5)
    assert gateway.completed == 2


async def test_pieces_come_when_they_are_said() -> None:
    second = anyio.Event()
    gateway = ScriptedGateway(lambda request: [START, Text("one"), second, Text("two"), END])
    async with running(gateway) as proxy, await proxy.connect() as connection:
        await connection.send(proxy.post(STREAM))
        first = await heard(connection, b'"one"')
        assert b'"two"' not in first
        second.set()
        assert b'"two"' in await heard(connection, b"[DONE]")


@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_before_the_first_delta_has_its_own_status(stream: bool) -> None:
    gateway = ScriptedGateway(lambda request: [AllWaiting("all accounts wait", retry_after_s=12.2)])
    async with running(gateway) as proxy, client_of(proxy) as client:
        response = await client.post(CHAT, json={**HELLO, "stream": stream})
    assert response.status_code == 429
    assert response.headers["retry-after"] == "13"
    assert response.json()["error"]["code"] == "all_accounts_waiting"


async def test_an_error_later_is_an_event_and_never_a_normal_ending() -> None:
    gateway = ScriptedGateway(lambda request: [START, Text("Hel"), Severed("the answer broke off")])
    async with running(gateway) as proxy, client_of(proxy) as client:
        streamed = await client.post(CHAT, json=STREAM)
        assert streamed.status_code == 200
        assert datas(streamed.text)[-1]["error"]["code"] == "upstream_error"
        assert "[DONE]" not in streamed.text
        assert '"finish_reason":"stop"' not in streamed.text
        whole = await client.post(CHAT, json=HELLO)
        assert (whole.status_code, whole.json()["error"]["code"]) == (502, "upstream_error")
        await gateway.all_closed(2, within_s=5)


async def test_after_the_deciding_time_the_stream_begins_with_comments() -> None:
    gateway = ScriptedGateway(lambda request: [0.6, START, Text("late"), END])
    bounds = Bounds(decide_s=0.2)
    async with running(gateway, bounds, heartbeat_s=0.1) as proxy, client_of(proxy) as client:
        response = await client.post(CHAT, json=STREAM)
    before, _, _ = response.text.partition("data:")
    assert before.count(": keep-alive\n\n") >= 2
    assert content(response.text) == "late"


async def test_after_the_deciding_time_an_error_is_an_event() -> None:
    gateway = ScriptedGateway(lambda request: [0.4, UpstreamTimeout("no answer")])
    async with running(gateway, Bounds(decide_s=0.1)) as proxy, client_of(proxy) as client:
        response = await client.post(CHAT, json=STREAM)
    assert response.status_code == 200
    assert datas(response.text) == [
        {
            "error": {
                "message": "no answer",
                "type": "server_error",
                "param": None,
                "code": "upstream_timeout",
            }
        }
    ]


async def test_a_silent_stream_gets_comments_and_a_talking_one_none() -> None:
    gateway = ScriptedGateway(
        lambda request: [START, 0.5, Text("x"), END] if request.thinking else [START, Text("x"), END]
    )
    async with running(gateway, heartbeat_s=0.1) as proxy, client_of(proxy) as client:
        silent = await client.post(CHAT, json={**STREAM, "enable_thinking": True})
        talking = await client.post(CHAT, json=STREAM)
    assert silent.text.count(": keep-alive\n\n") >= 2
    assert ":" not in {line[:1] for line in talking.text.splitlines()}


async def test_a_late_unstreamed_answer_still_has_its_own_status() -> None:
    gateway = ScriptedGateway(lambda request: [0.4, ContextTooLong("too long")])
    async with running(gateway, Bounds(decide_s=0.1), heartbeat_s=0.1) as proxy, client_of(proxy) as client:
        response = await client.post(CHAT, json=HELLO)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"


DRAWING = {"prompt": "A cat"}


async def test_a_drawing_that_takes_long_begins_with_spaces() -> None:
    gateway = ScriptedGateway(lambda request: [0.4, START, Media("http://here/1"), 0.2, END])
    bounds = Bounds(silence_s=0.1)
    async with running(gateway, bounds, heartbeat_s=0.1) as proxy, client_of(proxy) as client:
        slow = await client.post("/v1/images/generations", json=DRAWING)
        late = await client.post(CHAT, json=DRAWING)
        await proxy.empty()
    for answer in (slow, late):
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/json"
        assert answer.text.startswith("  ")
        assert answer.json()["data"] == [{"url": "http://here/1"}]


async def test_a_drawing_that_is_there_in_time_begins_with_itself() -> None:
    gateway = ScriptedGateway(lambda request: [START, Media("http://here/1"), END])
    async with running(gateway) as proxy, client_of(proxy) as client:
        answer = await client.post("/v1/images/generations", json=DRAWING)
    assert answer.text.startswith("{")


@pytest.mark.parametrize("wrong", [GenerationFailed("no picture came of it"), ValueError("a bug")])
async def test_a_drawing_that_fails_late_says_so_in_its_body(wrong: Exception) -> None:
    gateway = ScriptedGateway(lambda request: [0.4, wrong])
    bounds = Bounds(silence_s=0.1)
    async with running(gateway, bounds, heartbeat_s=0.1) as proxy, client_of(proxy) as client:
        answer = await client.post("/v1/images/generations", json=DRAWING)
    assert answer.status_code == 200
    assert answer.text.startswith(" ")
    code = "generation_failed" if isinstance(wrong, GenerationFailed) else "internal_error"
    assert answer.json()["error"]["code"] == code


async def test_a_drawing_without_a_picture_has_its_own_status() -> None:
    gateway = ScriptedGateway(lambda request: [START, Text("No."), END])
    async with running(gateway) as proxy, client_of(proxy) as client:
        answer = await client.post("/v1/images/generations", json=DRAWING)
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "generation_failed")


async def test_a_request_knows_how_its_client_reaches_us() -> None:
    gateway = ScriptedGateway()
    async with running(gateway) as proxy, client_of(proxy) as client:
        await client.post(CHAT, json=HELLO, headers={"Host": f"localhost:{proxy.port}"})
        assert gateway.asked[0].base_url == f"http://localhost:{proxy.port}"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("steps", [[], [START], [START, Text("x")]], ids=["nothing", "start", "text"])
async def test_leaving_closes_the_gateway_at_once(stream: bool, steps: list[Any]) -> None:
    gateway = ScriptedGateway(lambda request: [*steps, FOREVER], cleanup_s=0.05)
    async with running(gateway) as proxy:
        async with await proxy.connect() as connection:
            await connection.send(proxy.post({**HELLO, "stream": stream}))
            if stream and steps:
                await heard(connection, b"data:")
            with anyio.fail_after(5):
                while not gateway.opened:
                    await anyio.sleep(0.005)
        await gateway.all_closed(1, within_s=AT_ONCE_S)
        await proxy.empty()


async def test_leaving_while_comments_are_sent_closes_the_gateway() -> None:
    gateway = ScriptedGateway(lambda request: [FOREVER], cleanup_s=0.05)
    async with running(gateway, Bounds(decide_s=0.05), heartbeat_s=0.05) as proxy:
        async with await proxy.connect() as connection:
            await connection.send(proxy.post(STREAM))
            await heard(connection, b": keep-alive\n\n")
        await gateway.all_closed(1, within_s=AT_ONCE_S)


async def test_a_generator_held_back_by_a_slow_client_is_closed_in_peace() -> None:
    gateway = ScriptedGateway(lambda request: [START, *[Text("x" * 60_000)] * 2000, END], 0.05, shields=False)
    async with running(gateway) as proxy:
        async with await proxy.connect() as connection:
            await connection.send(proxy.post(STREAM))
            with anyio.fail_after(5):
                while gateway.asked == [] or not await stands_still(gateway):
                    await anyio.sleep(0.005)
        await gateway.all_closed(1, within_s=AT_ONCE_S)


async def stands_still(gateway: ScriptedGateway) -> bool:
    """Whether no delta is taken any more: the client does not read, and what may wait is full."""
    before = gateway.given
    await anyio.sleep(0.1)
    return gateway.given == before


async def test_half_closing_counts_as_leaving() -> None:
    gateway = ScriptedGateway(lambda request: [START, Text("x"), FOREVER])
    async with running(gateway) as proxy, await proxy.connect() as connection:
        await connection.send(proxy.post(STREAM))
        await heard(connection, b"data:")
        await connection.send_eof()
        await gateway.all_closed(1, within_s=AT_ONCE_S)


async def test_many_leave_one_after_another() -> None:
    gateway = ScriptedGateway(lambda request: [START, Text("x"), FOREVER], cleanup_s=0.001)
    async with running(gateway) as proxy:
        for count in range(1, 31):
            async with await proxy.connect() as connection:
                await connection.send(proxy.post({**HELLO, "stream": bool(count % 2)}))
                if count % 2:
                    await heard(connection, b"data:")
            with anyio.fail_after(5):
                while gateway.opened < count:
                    if gateway.opened == gateway.closed == count - 1 and not proxy.admission.inside:
                        break
                    await anyio.sleep(0.002)
        await proxy.empty(AT_ONCE_S)
    assert gateway.opened == gateway.closed


async def test_a_client_that_stops_reading_is_dropped() -> None:
    big = Text("x" * 60_000)
    gateway = ScriptedGateway(lambda request: [START, *[big] * 2000, END])
    async with running(gateway, Bounds(write_stall_s=0.3)) as proxy:
        with socket.create_connection(("127.0.0.1", proxy.port)) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(proxy.post(STREAM))
            await gateway.all_closed(1, within_s=10)
            await proxy.empty()
            assert gateway.completed == 0
            with anyio.fail_after(5):
                while held(proxy.port):
                    await anyio.sleep(0.01)


def held(port: int) -> list[Any]:
    """The server's ends of connections, those still open."""
    mine = psutil.Process().net_connections("tcp")
    return [end for end in mine if end.laddr.port == port and end.raddr]


async def test_a_slow_reader_is_kept() -> None:
    gateway = ScriptedGateway(lambda request: [START, *[Text("x" * 60_000)] * 60, END])
    async with running(gateway, Bounds(write_stall_s=5)) as proxy, await proxy.connect() as connection:
        await connection.send(proxy.post(STREAM))
        data = b""
        with anyio.fail_after(15):
            while b"[DONE]" not in data[-100:]:
                data += await connection.receive(100_000)
                await anyio.sleep(0.005)
    assert data.count(b"x") >= 60 * 60_000


async def test_large_pieces_and_whole_answers() -> None:
    gateway = ScriptedGateway(lambda request: [START, Text("ж" * 200_000), END])
    async with running(gateway) as proxy, client_of(proxy) as client:
        streamed = await client.post(CHAT, json=STREAM)
        assert content(streamed.text) == "ж" * 200_000
        whole = await client.post(CHAT, json=HELLO)
        assert whole.headers["content-encoding"] == "gzip"
        assert whole.json()["choices"][0]["message"]["content"] == "ж" * 200_000


async def test_thousands_of_pieces_arrive_in_order() -> None:
    gateway = ScriptedGateway(lambda request: [START, *[Text(f"{n} ") for n in range(5000)], END])
    async with running(gateway) as proxy, client_of(proxy) as client:
        response = await client.post(CHAT, json=STREAM)
    assert content(response.text) == "".join(f"{n} " for n in range(5000))


async def test_choices_are_streams_of_their_own() -> None:
    numbers = iter("AB")
    second_may_end = anyio.Event()

    def script(request: ChatRequest) -> list[Any]:
        assert request.choices == 1
        name = next(numbers)
        hold = [second_may_end] if name == "B" else []
        return [Started("c", f"r-{name}", "m"), Text(name), *hold, Text(name), Finished("stop", Usage(1, 2))]

    gateway = ScriptedGateway(script)
    async with running(gateway) as proxy, await proxy.connect() as connection:
        body = {**STREAM, "n": 2, "stream_options": {"include_usage": True}}
        await connection.send(proxy.post(body))
        text = await heard(connection, b'"finish_reason":"stop"')
        second_may_end.set()
        text += await heard(connection, b"[DONE]")
    lines = [json.loads(line[6:]) for line in text.decode().splitlines() if line.startswith("data: {")]
    said = {0: "", 1: ""}
    for choice in (choice for chunk in lines for choice in chunk["choices"]):
        said[choice["index"]] += choice["delta"].get("content") or ""
    assert sorted(said.values()) == ["AA", "BB"]
    assert lines[-1]["usage"]["total_tokens"] == 6
    assert len({chunk["id"] for chunk in lines}) == 1
    await gateway.all_closed(2, within_s=5)


async def test_choices_unstreamed() -> None:
    async with running(ScriptedGateway()) as proxy, client_of(proxy) as client:
        response = await client.post(CHAT, json={**HELLO, "n": 3})
    assert [choice["index"] for choice in response.json()["choices"]] == [0, 1, 2]
    assert response.json()["usage"]["prompt_tokens"] == 9


@pytest.mark.parametrize("stream", [False, True])
async def test_one_failed_choice_fails_and_closes_all(stream: bool) -> None:
    turns: Iterator[list[Any]] = iter(
        [[START, Text("x"), FOREVER], [START, Text("y"), 0.05, Severed("the answer broke off")]]
    )
    gateway = ScriptedGateway(lambda request: next(turns), cleanup_s=0.05)
    async with running(gateway) as proxy, client_of(proxy) as client:
        response = await client.post(CHAT, json={**HELLO, "n": 2, "stream": stream})
        assert "the answer broke off" in response.text
        assert response.status_code == (200 if stream else 502)
        await gateway.all_closed(2, within_s=AT_ONCE_S)


@pytest.mark.parametrize(
    "steps",
    [
        [ZeroDivisionError("secret detail")],
        [],
        [START, Text("x")],
        [START, Text("x"), ZeroDivisionError("secret detail")],
        [START, Text("x"), object()],
        [Text("x"), object(), START],
    ],
    ids=["raises", "says nothing", "no end", "raises later", "no delta", "no delta first"],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_bug_is_logged_and_is_never_a_normal_ending(
    stream: bool, steps: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    gateway = ScriptedGateway(lambda request: steps)
    async with running(gateway) as proxy, client_of(proxy) as client:
        response = await client.post(CHAT, json={**HELLO, "stream": stream})
        assert "secret detail" not in response.text
        assert "[DONE]" not in response.text
        assert '"finish_reason":"stop"' not in response.text
        if response.status_code == 200:
            assert stream
            assert datas(response.text)[-1]["error"]["code"] == "internal_error"
        else:
            assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")
        await gateway.all_closed(1, within_s=5)
        await proxy.empty()
        assert (await client.get("/ping")).text == "pong"
    assert any(record.exc_info for record in caplog.records if record.levelno >= logging.ERROR)


async def test_no_more_requests_inside_than_allowed() -> None:
    gateway = ScriptedGateway(lambda request: [START, Text("x"), FOREVER])
    async with running(gateway, max_in_flight=2) as proxy, client_of(proxy) as client:
        async with await proxy.connect() as first, await proxy.connect() as second:
            for connection in (first, second):
                await connection.send(proxy.post(STREAM))
                await heard(connection, b"data:")
            refused = await client.post(CHAT, json=STREAM)
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "5")
            assert refused.json()["error"]["code"] == "queue_full"
            assert (await client.get("/health")).status_code == 200
        await proxy.empty()
        gateway.script = lambda request: [START, END]
        assert (await client.post(CHAT, json=STREAM)).status_code == 200


async def test_official_client() -> None:
    gateway = ScriptedGateway(
        lambda request: [START, Thinking("hm"), Text("Hello"), Text(" you"), Finished("length", Usage(3, 2))]
    )
    async with running(gateway) as proxy:
        official = openai.AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="none", max_retries=0)
        async with official as client:
            whole = await client.chat.completions.create(
                model="qwen", messages=[{"role": "user", "content": "Hello"}], max_completion_tokens=5, n=2
            )
            assert [choice.message.content for choice in whole.choices] == ["Hello you"] * 2
            assert whole.choices[0].finish_reason == "length"
            assert whole.model == "qwen3.7-plus"
            stream = await client.chat.completions.create(
                model="qwen",
                messages=[{"role": "user", "content": "Hello"}],
                stream=True,
                stream_options={"include_usage": True},
            )
            chunks = [chunk async for chunk in stream]
            text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
            assert text == "Hello you"
            assert chunks[-1].usage is not None
            assert chunks[-1].usage.total_tokens == 5
            gateway.script = lambda request: [AllWaiting("all accounts wait", retry_after_s=3)]
            with pytest.raises(openai.RateLimitError, match="all accounts wait"):
                await client.chat.completions.create(
                    model="qwen", messages=[{"role": "user", "content": "Hello"}], stream=True
                )
            gateway.script = lambda request: [START, Text("Hel"), Severed("the answer broke off")]
            broken = await client.chat.completions.create(
                model="qwen", messages=[{"role": "user", "content": "Hello"}], stream=True
            )
            with pytest.raises(openai.APIError, match="the answer broke off"):
                async for _ in broken:
                    pass
            gateway.script = lambda request: [START, Text("x"), FOREVER]
            left = await client.chat.completions.create(
                model="qwen", messages=[{"role": "user", "content": "Hello"}], stream=True
            )
            async for _ in left:
                break
            await left.close()
            await gateway.all_closed(6, within_s=AT_ONCE_S)


async def test_wrong_parameters_are_named_before_the_gateway_is_asked() -> None:
    gateway = ScriptedGateway()
    async with running(gateway) as proxy, client_of(proxy) as client:
        response = await client.post(CHAT, json={**HELLO, "tools": [{"type": "code_interpreter"}]})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "tools[0]"
    assert response.json()["error"]["code"] == "unsupported_parameter"
    assert not gateway.opened


async def test_two_requests_in_one_packet_are_answered_in_turn() -> None:
    async with running(ScriptedGateway()) as proxy, await proxy.connect() as connection:
        await connection.send(proxy.post(b"broken") + proxy.head("GET", "/ping"))
        answer = await heard(connection, b"pong")
    assert answer.index(b"HTTP/1.1 400 ") < answer.index(b"HTTP/1.1 200 ")


class Broken(OpenAIChat):
    """A dialect with a bug, wherever the request says."""

    def parse(self, body: Mapping[str, Any], params: Mapping[str, str]) -> ChatRequest:
        if body["bug"] == "parse":
            raise ZeroDivisionError("secret detail")
        return replace(super().parse(body, params), model=body["bug"])

    def encoder(self, request: ChatRequest) -> BrokenEncoder:
        if request.model == "encoder":
            raise ZeroDivisionError("secret detail")
        return BrokenEncoder(0, request)

    def reply(self, request: ChatRequest, replies: Sequence[Reply]) -> dict[str, Any]:
        raise ZeroDivisionError("secret detail")


class BrokenEncoder(ChunkEncoder):
    def encode(self, delta: Delta, choice: int = 0) -> list[str]:
        if delta == Text("bug"):
            raise ZeroDivisionError("secret detail")
        return super().encode(delta, choice)


@pytest.mark.parametrize(
    ("stream", "bug", "status"),
    [
        (True, "parse", 500),
        (False, "parse", 500),
        (True, "encoder", 500),
        (False, "reply", 500),
        (True, "encode", 200),
    ],
)
async def test_a_bug_of_a_dialect_ends_its_answer_alone(
    stream: bool, bug: str, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = ScriptedGateway(lambda request: [START, Text("x"), 0.1, Text("bug"), FOREVER, END])
    if bug == "reply":
        gateway.script = lambda request: [START, END]
    async with running(gateway) as proxy, client_of(proxy) as client:
        relay = Relay(Broken(), proxy.admission, Bounds(), 10)
        proxy.app.router.routes.append(Route("/broken", relay, methods=["POST"]))
        response = await client.post("/broken", json={**HELLO, "stream": stream, "bug": bug})
        assert response.status_code == status
        assert '"internal_error"' in response.text
        assert "secret detail" not in response.text
        assert "[DONE]" not in response.text
        await gateway.all_closed(gateway.opened, within_s=AT_ONCE_S)
        await proxy.empty()
    assert "ZeroDivisionError" in caplog.text
