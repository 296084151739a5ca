"""Anthropic's own client against the served proxy, over conversations that play a script."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import anyio
import httpx
import pytest
from anthropic.types import MessageParam, ToolParam
from anthropic.types.beta import BetaMessageParam
from anyio.to_thread import run_sync
from pydantic import BaseModel

from qwenproxy.chat import (
    ChatRequest,
    Finished,
    Message,
    Source,
    Started,
    Text,
    Thinking,
    ToolCall,
    ToolChoice,
    Usage,
)
from qwenproxy.errors import NoAccount, QueueFull, Severed
from qwenproxy.server.relay import Bounds
from tests.server.serving import FOREVER, START, Running, Step, hello, running
from tests.server.test_token_routes import CountingGateway

pytestmark = pytest.mark.anyio

ASKED: list[MessageParam] = [{"role": "user", "content": "The weather in Omsk?"}]
WEATHER: ToolParam = {
    "name": "get_weather",
    "description": "The weather in a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CALL = ToolCall("call_1", "get_weather", json.dumps({"city": "Omsk", "why": "x" * 5000}))
PLAIN: dict[str, Any] = {"model": "claude-sonnet-5", "max_tokens": 1024, "messages": ASKED}


def agent(request: ChatRequest) -> Sequence[Step]:
    """Thinks where it is asked to, calls the tool, and tells what the tool gave."""
    if request.messages[-1].role == "tool":
        return [START, Text("It is "), Text(request.messages[-1].text), Finished("stop", Usage(20, 6))]
    thoughts = [Thinking("I "), Thinking("look.")] if request.thinking else []
    begun = Started("chat-1", "response-1", "qwen3.7-plus", input_tokens=9 if request.counts_input else 0)
    return [begun, *thoughts, Text("Wait."), CALL, Finished("tool_calls", Usage(12, 9, 3))]


@asynccontextmanager
async def served(
    script: Callable[[ChatRequest], Sequence[Step]] = hello, bounds: Bounds | None = None
) -> AsyncGenerator[tuple[CountingGateway, Running, anthropic.AsyncAnthropic]]:
    gateway = CountingGateway(script)
    async with running(gateway, bounds) as proxy, client_of(proxy) as client:
        yield gateway, proxy, client


def client_of(proxy: Running) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=proxy.url, api_key="none", max_retries=0)


async def test_a_whole_message() -> None:
    async with served() as (gateway, _, client):
        message = await client.messages.create(**PLAIN, system="Be brief.")
        (block,) = message.content
        assert block.type == "text"
        assert block.text == "Hello, you!"
        assert (message.id, message.model, message.role) == ("msg_response-1", "qwen3.7-plus", "assistant")
        assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
        assert (message.usage.input_tokens, message.usage.output_tokens) == (3, 2)
        assert message._request_id is not None
        assert gateway.asked[0].messages == (
            Message("system", "Be brief."),
            Message("user", "The weather in Omsk?"),
        )


async def test_the_client_that_blocks() -> None:
    async with served() as (_, proxy, _):

        def ask() -> str:
            blocking = anthropic.Anthropic(base_url=proxy.url, api_key="none", max_retries=0)
            with blocking as client, client.messages.stream(**PLAIN) as stream:
                return "".join(stream.text_stream)

        assert await run_sync(ask) == "Hello, you!"


async def test_a_stream_comes_piece_by_piece() -> None:
    """Claude Code hides a broken stream by asking again without one: the pieces themselves are looked at."""
    go_on = anyio.Event()
    script: list[Step] = [START, Text("Hello, "), go_on, Text("you!"), Finished("stop", Usage(3, 2))]
    async with served(lambda request: script) as (_, _, client), client.messages.stream(**PLAIN) as stream:
        heard = ""
        async for text in stream.text_stream:
            heard += text
            if heard == "Hello, ":
                go_on.set()
        message = await stream.get_final_message()
    assert go_on.is_set()
    assert heard == await stream.get_final_text() == "Hello, you!"
    assert (message.stop_reason, message.usage.output_tokens) == ("end_turn", 2)


async def test_the_names_of_raw_events() -> None:
    async with served(agent) as (_, _, client):
        stream = await client.messages.create(**PLAIN, tools=[WEATHER], stream=True)
        kinds = [event.type async for event in stream]
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 2
    assert kinds.count("content_block_delta") == 1 + 1 + 3


async def test_the_size_of_the_prompt_is_told_at_the_beginning() -> None:
    async with served(agent) as (_, _, client):
        async for event in await client.messages.create(**PLAIN, tools=[WEATHER], stream=True):
            if event.type == "message_start":
                assert event.message.usage.input_tokens == 9


@pytest.mark.parametrize("beta", [False, True])
async def test_thoughts_a_call_its_result_and_what_follows(*, beta: bool) -> None:
    async with served(agent) as (gateway, _, client):
        messages: Any = client.beta.messages if beta else client.messages
        more = {"tools": [WEATHER], "thinking": {"type": "enabled", "budget_tokens": 1024}}
        async with messages.stream(**PLAIN, **more) as stream:
            message = await stream.get_final_message()
        whole = await messages.create(**PLAIN, **more)
        assert [block.to_dict() for block in whole.content] == [block.to_dict() for block in message.content]
        assert message.stop_reason == whole.stop_reason == "tool_use"
        thinking, text, use = message.content
        assert (thinking.type, thinking.thinking, bool(thinking.signature)) == ("thinking", "I look.", True)
        assert (text.type, text.text) == ("text", "Wait.")
        assert (use.type, use.id, use.name, use.input["city"]) == (
            "tool_use",
            "call_1",
            "get_weather",
            "Omsk",
        )
        assert len(use.input["why"]) == 5000
        result = {"type": "tool_result", "tool_use_id": use.id, "content": "-12 °C"}
        said = [
            *ASKED,
            {"role": "assistant", "content": message.content},
            {"role": "user", "content": [result]},
        ]
        answer = await messages.create(**{**PLAIN, **more, "messages": said})
        assert answer.content[0].text == "It is -12 °C"
    *_, asked = gateway.asked
    assert asked.messages[1:] == (
        Message(
            "assistant",
            "Wait.",
            calls=(ToolCall("call_1", "get_weather", json.dumps(use.input, separators=(",", ":"))),),
        ),
        Message("tool", "-12 °C", call_id="call_1"),
    )


async def test_choosing_tools() -> None:
    async with served(agent) as (gateway, _, client):
        await client.messages.create(
            **PLAIN,
            tools=[WEATHER],
            tool_choice={"type": "tool", "name": "get_weather", "disable_parallel_tool_use": True},
        )
        assert gateway.asked[0].tool_choice == ToolChoice("required", ("get_weather",), parallel=False)


async def test_the_runner_of_tools() -> None:
    async with served(agent) as (gateway, _, client):

        @anthropic.beta_async_tool
        async def get_weather(city: str, why: str) -> str:
            """The weather in a city."""
            return f"-12 °C in {city}"

        runner = client.beta.messages.tool_runner(**PLAIN, tools=[get_weather])
        final = await runner.until_done()
        assert final.content[0].type == "text"
        assert final.content[0].text == "It is -12 °C in Omsk"
        # Asked for a conversation kept on the server, it went on with whole ones.
        assert [len(request.messages) for request in gateway.asked] == [1, 3]


async def test_a_search_and_its_citations() -> None:
    pages = [Source(1, "https://example.org/1", "One"), Source(2, "https://example.org/2", "Two")]
    script: list[Step] = [START, *pages, Text("So [[1]]."), Finished("stop", Usage(3, 2))]
    async with served(lambda request: script) as (gateway, _, client):
        async with client.messages.stream(
            **PLAIN, tools=[{"type": "web_search_20250305", "name": "web_search"}]
        ) as stream:
            message = await stream.get_final_message()
        assert gateway.asked[0].search
        blocks: list[Any] = [block.to_dict() for block in message.content]
        assert [block["type"] for block in blocks] == ["server_tool_use", "web_search_tool_result", "text"]
        for told in (blocks[1]["content"], blocks[2]["citations"]):
            assert [page["url"] for page in told] == [page.url for page in pages]
        assert message.usage.server_tool_use is not None
        said = [*ASKED, {"role": "assistant", "content": message.content}, *ASKED]
        await client.messages.create(**{**PLAIN, "messages": said})
        assert "https://example.org/2" in gateway.asked[1].messages[1].text


class City(BaseModel):
    name: str


async def test_an_answer_that_is_parsed() -> None:
    script: list[Step] = [START, Text('{"name": "Omsk"}'), Finished("stop", Usage(3, 2))]
    async with served(lambda request: script) as (gateway, _, client):
        message = await client.messages.parse(**PLAIN, output_format=City)
        assert message.parsed_output == City(name="Omsk")
        form = gateway.asked[0].answer_format
        assert form is not None
        assert form.schema["properties"]["name"]["type"] == "string"


async def test_tokens_are_counted() -> None:
    async with served() as (gateway, _, client):
        count = await client.messages.count_tokens(model="qwen", messages=ASKED, tools=[WEATHER])
        assert count.input_tokens == 17
        assert count.to_dict()["estimated"] is True
        hello_there: BetaMessageParam = {"role": "user", "content": "Hello"}
        beta = await client.beta.messages.count_tokens(model="qwen", messages=[hello_there])
        assert beta.input_tokens == 17
        assert [request.tools != () for request in gateway.counted] == [True, False]


async def test_errors_are_those_of_the_client() -> None:
    failing: list[Exception] = [QueueFull("too many"), NoAccount("nobody is signed in")]
    async with served(lambda request: [failing.pop(0)]) as (_, _, client):
        with pytest.raises(anthropic.RateLimitError) as limited:
            await client.messages.create(**PLAIN)
        assert (limited.value.type, limited.value.error_code) == ("rate_limit_error", "queue_full")
        assert limited.value.api_message == "too many"
        assert limited.value.response.headers["retry-after"] == "5"
        assert limited.value.request_id is not None
        with pytest.raises(anthropic.APIStatusError) as nobody:
            await client.messages.create(**PLAIN, stream=True)
        assert (nobody.value.status_code, nobody.value.error_code) == (503, "no_account")
        with pytest.raises(anthropic.BadRequestError) as wrong:
            await client.messages.create(**{**PLAIN, "max_tokens": 0})
        assert wrong.value.type == "invalid_request_error"


async def test_a_stream_that_breaks_off() -> None:
    async with served(lambda request: [START, Text("Hel"), Severed("it broke off")]) as (_, _, client):
        heard = ""
        async with client.messages.stream(**PLAIN) as stream:
            with pytest.raises(anthropic.APIStatusError) as caught:  # noqa: PT012 - it breaks on the way
                async for text in stream.text_stream:
                    heard += text
        assert heard == "Hel"
        assert (caught.value.type, caught.value.api_message) == ("api_error", "it broke off")


async def test_waiting_does_no_harm() -> None:
    """What keeps a silent stream alive is nothing to the client (clients.md 3)."""
    script: list[Step] = [START, 0.3, Text("Hello"), 0.3, Finished("stop", Usage(3, 2))]
    gateway = CountingGateway(lambda request: script)
    async with (
        running(gateway, Bounds(decide_s=0.05), heartbeat_s=0.1) as proxy,
        client_of(proxy) as client,
        client.messages.stream(**PLAIN) as stream,
    ):
        assert await stream.get_final_text() == "Hello"


async def test_leaving_ends_the_answer() -> None:
    async with served(lambda request: [START, Text("Hello"), FOREVER]) as (gateway, _, client):
        async with client.messages.stream(**PLAIN) as stream:
            async for _text in stream.text_stream:
                break
        await gateway.all_closed(1, within_s=5)


async def test_what_claude_code_sends_by_wire() -> None:
    body = {
        **PLAIN,
        "stream": True,
        "system": [{"type": "text", "text": "You are an agent.", "cache_control": {"type": "ephemeral"}}],
        "messages": [*ASKED, {"role": "system", "content": "Be brief."}],
        "metadata": {"user_id": "user"},
        "context_management": {"edits": []},
        "tools": [{**WEATHER, "eager_input_streaming": True}],
    }
    headers = {
        "authorization": "Bearer none",
        "anthropic-version": "2023-06-01",
        "anthropic-beta": "a,b-2026",
    }
    async with (
        served() as (gateway, proxy, _),
        httpx.AsyncClient(base_url=proxy.url, timeout=15, trust_env=False) as plain,
    ):
        answer = await plain.post("/v1/messages?beta=true", json=body, headers=headers)
        assert answer.status_code == 200
        assert answer.text.startswith("event: message_start\ndata: {")
        assert answer.text.endswith('event: message_stop\ndata: {"type":"message_stop"}\n\n')
        assert gateway.asked[0].messages[-1] == Message("system", "Be brief.")
