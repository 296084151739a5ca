"""What every dialect of chats owes its clients, whatever its words: each scenario on each of them.

A dialect stands in `server.app.DIALECTS` and tells in its folder of golden files how it is read
(`wire_reader.py`); with these two it is tested here.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
import httpx
import pytest

from qwenproxy.chat import (
    Delta,
    Finished,
    Media,
    Message,
    Source,
    Started,
    Text,
    Thinking,
    ToolCall,
    Usage,
    fold,
)
from qwenproxy.dialects.base import Dialect
from qwenproxy.errors import EmptyAnswer, QueueFull, Severed
from qwenproxy.server.app import DIALECTS
from tests.dialects.golden import events, streamed
from tests.dialects.wire_reader import HEARD, REQUESTS, Call, Contract, Heard, contracts
from tests.server.serving import FOREVER, Running, ScriptedGateway, Step, running

NOT_OF_CHATS: Final = {
    "OpenAIImages": "it draws",
    "OpenAIEdits": "it draws",
    "NativeRegenerate": "it is NativeChat, with a question that was asked before",
}
START = Started("chat-1", "response-1", "qwen3.7-plus", "acc_1", conversation_id="kept-1", message_id="m-1")
USAGE = Usage(12, 9, 3)
OMSK = ToolCall("call_1", "get_weather", '{"city": "Omsk"}')
TOMSK = ToolCall("call_2", "get_weather", '{"city": "Tomsk", "note": "' + "Ёж 😀 " * 1000 + '"}')
PICTURE = "https://example.org/a.png"
PAGE = Source(1, "https://example.org/a?b=1", 'A "page"')

SCENARIOS: Final[dict[str, tuple[str, tuple[Delta, ...]]]] = {
    "text": ("plain", (Text("It is "), Text("-12 °C\n\u2028«ё» 😀 \\."), Finished("stop", USAGE))),
    "thinking": (
        "plain",
        (Thinking("Should I "), Thinking("look?"), Text("No."), Finished("stop", USAGE)),
    ),
    "thinking between": (
        "plain",
        (Text("Well. "), Thinking("Should I look?"), Text("No."), Finished("stop", USAGE)),
    ),
    "call": ("tools", (Thinking("I look."), OMSK, Finished("tool_calls", USAGE))),
    "call between texts": ("tools", (Text("I look."), OMSK, Text("Wait."), Finished("tool_calls", USAGE))),
    "parallel calls": ("tools", (Text("Both."), OMSK, TOMSK, Finished("tool_calls", USAGE))),
    "call then result then text": ("result", (Text("It is -12 °C."), Finished("stop", USAGE))),
    "media": ("plain", (Text("Here:"), Media(PICTURE, 4, 3), Finished("stop", USAGE))),
    "media alone": ("plain", (Media(PICTURE), Finished("stop", USAGE))),
    "sources": ("plain", (PAGE, Text("It is so [["), Text("1]]."), Finished("stop", USAGE))),
    "length": ("plain", (Text("It is"), Finished("length", USAGE))),
    "empty": ("plain", (Finished("stop", USAGE),)),
}


def of_chats() -> list[tuple[str, Dialect]]:
    """The dialects, each with the path where it is served."""
    found = [(prefixes[0] + dialect.paths[0], dialect) for prefixes, dialect in DIALECTS]
    return [each for each in found if type(each[1]).__name__ not in NOT_OF_CHATS]


def contract_of(dialect: Dialect) -> Contract:
    name = type(dialect).__name__
    if name not in contracts():
        pytest.fail(
            f"{name} stands in DIALECTS, but no tests/wire/*/contract.json has it as its dialect: "
            "add one, as tests/dialects/wire_reader.py says, or tell in NOT_OF_CHATS why it has no chats"
        )
    return contracts()[name]


def with_tools() -> list[tuple[str, Dialect]]:
    """Those that speak of tools; a dialect without a contract may."""
    names = [name for name, contract in contracts().items() if "tools" not in contract.raw["requests"]]
    return [each for each in of_chats() if type(each[1]).__name__ not in names]


def ids(found: Sequence[tuple[str, Dialect]]) -> list[str]:
    return [type(dialect).__name__ for _, dialect in found]


each_dialect = pytest.mark.parametrize(("path", "dialect"), of_chats(), ids=ids(of_chats()))
each_with_tools = pytest.mark.parametrize(("path", "dialect"), with_tools(), ids=ids(with_tools()))
each_scenario = pytest.mark.parametrize(
    ("dialect", "name"),
    [
        pytest.param(dialect, name, id=f"{type(dialect).__name__}-{name}")
        for name, (asked, _) in SCENARIOS.items()
        for _, dialect in (of_chats() if asked == "plain" else with_tools())
    ],
)


def body_of(contract: Contract, name: str, *, stream: bool) -> dict[str, Any]:
    assert name in contract.raw["requests"], f"tests/wire/{contract.folder}/contract.json: {REQUESTS[name]}?"
    return {**contract.raw["requests"][name], "stream": stream}


def both_ways(
    dialect: Dialect, contract: Contract, name: str, deltas: Sequence[Delta]
) -> tuple[Heard, Heard]:
    """What a client hears of a stream, and of a whole answer."""
    request = dialect.parse(body_of(contract, name, stream=True), {})
    stream = streamed(dialect, request, [(0, delta) for delta in deltas])
    asked = dialect.parse(body_of(contract, name, stream=False), {})
    return contract.stream(events(stream)), contract.whole(dialect.reply(asked, [fold(deltas)]))


def told(calls: Sequence[Call]) -> list[tuple[str, str, Any]]:
    return [(call.id, call.name, call.arguments) for call in calls]


def test_a_contract_tells_all_there_is_to_tell() -> None:
    for contract in contracts().values():
        assert set(contract.raw["requests"]) in ({"plain"}, set(REQUESTS)), contract.folder
        parts = set(HEARD) if len(contract.raw["requests"]) > 1 else set(HEARD) - {"calls"}
        assert set(contract.raw["stream"]) == parts, contract.folder
        assert set(contract.raw["whole"]) == parts - {"end"}, contract.folder


def test_dialects_are_found() -> None:
    names = {type(dialect).__name__ for _, dialect in DIALECTS}
    assert {"OpenAIChat", "NativeChat"} <= {type(dialect).__name__ for _, dialect in of_chats()}
    assert set(NOT_OF_CHATS) <= names
    assert set(contracts()) <= names


# ---- what an answer says ----


@each_scenario
def test_both_ways_of_answering_say_it_all(dialect: Dialect, name: str) -> None:
    asked, said = SCENARIOS[name]
    contract = contract_of(dialect)
    reply = fold((START, *said))
    for heard in both_ways(dialect, contract, asked, (START, *said)):
        if reply.media:
            assert heard.text.startswith(reply.text)
            assert PICTURE in heard.text
        else:
            assert heard.text == reply.text
        assert heard.thinking == reply.thinking
        assert set(heard.sources) == {source.url for source in reply.sources}
        assert told(heard.calls) == told([Call(c.id, c.name, c.arguments) for c in reply.calls])
        assert heard.finish == [contract.finish(reply.finished.reason)]
        assert heard.errors == 0


@each_scenario
def test_the_two_ways_say_the_same(dialect: Dialect, name: str) -> None:
    asked, said = SCENARIOS[name]
    stream, whole = both_ways(dialect, contract_of(dialect), asked, (START, *said))
    assert stream.ends == 1
    assert (stream.text, stream.thinking, stream.finish) == (whole.text, whole.thinking, whole.finish)
    assert told(stream.calls) == told(whole.calls)
    assert set(stream.sources) == set(whole.sources)


@each_with_tools
def test_a_result_reaches_the_model_with_its_call(path: str, dialect: Dialect) -> None:
    request = dialect.parse(body_of(contract_of(dialect), "result", stream=False), {})
    *_, (asked, called, result) = [request.messages]
    assert asked == Message("user", "The weather in Omsk?")
    (call,) = called.calls
    assert (call.id, call.name, json.loads(call.arguments)) == ("call_1", "get_weather", {"city": "Omsk"})
    assert (result.role, result.text, result.call_id) == ("tool", "-12 °C", "call_1")
    assert [tool.name for tool in request.tools] == ["get_weather"]


@each_with_tools
def test_tools_are_offered(path: str, dialect: Dialect) -> None:
    request = dialect.parse(body_of(contract_of(dialect), "tools", stream=True), {})
    assert [tool.name for tool in request.tools] == ["get_weather"]
    assert request.stream


@each_dialect
def test_each_piece_is_an_event_of_its_own(path: str, dialect: Dialect) -> None:
    """Nothing waits for the end, and what is said once is not said again."""
    contract = contract_of(dialect)
    request = dialect.parse(body_of(contract, "plain", stream=True), {})
    encoder = dialect.encoder(request)
    pieces: list[Delta] = [START, Thinking("one"), Thinking("two"), Text("three"), Text("four")]
    heard = [contract.stream(events("".join(encoder.encode(piece)))) for piece in pieces]
    assert [each.thinking for each in heard] == ["", "one", "two", "", ""]
    assert [each.text for each in heard] == ["", "", "", "three", "four"]
    assert not any(each.ends or each.finish for each in heard)


@each_dialect
@pytest.mark.parametrize("said", [(), (START,), (START, Text("Hel")), (START, Thinking("Hm")), (START, OMSK)])
def test_after_a_failure_comes_no_normal_end(path: str, dialect: Dialect, said: Sequence[Delta]) -> None:
    contract = contract_of(dialect)
    encoder = dialect.encoder(dialect.parse(body_of(contract, "plain", stream=True), {}))
    frames = [frame for delta in said for frame in encoder.encode(delta)]
    heard = contract.stream(events("".join([*frames, *encoder.fail(Severed("it broke off"))])))
    assert (heard.errors, heard.ends, heard.finish) == (1, 0, [])


# ---- over a real socket ----


@asynccontextmanager
async def asked_of(proxy: Running, path: str, body: Any) -> AsyncIterator[httpx.Response]:
    async with (
        httpx.AsyncClient(base_url=proxy.url, timeout=10, trust_env=False) as client,
        client.stream("POST", path, json=body) as response,
    ):
        yield response


def plays(*steps: Step) -> ScriptedGateway:
    return ScriptedGateway(lambda request: steps)


@each_dialect
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("error", [QueueFull("too many wait"), EmptyAnswer("it said nothing")])
@pytest.mark.anyio
async def test_refused_before_the_first_piece(path: str, dialect: Dialect, stream: bool, error: Any) -> None:
    contract = contract_of(dialect)
    gateway = plays(error)
    async with running(gateway) as proxy:
        async with asked_of(proxy, path, body_of(contract, "plain", stream=stream)) as response:
            answer = await response.aread()
        await gateway.all_closed(1, within_s=10)
    assert (response.status_code, response.headers["content-type"]) == (error.status, "application/json")
    heard = contract.whole(response.json())
    assert (heard.errors, heard.text, heard.finish) == (1, "", [])
    assert str(error) in answer.decode()
    assert error.code in answer.decode()


@each_dialect
@pytest.mark.anyio
async def test_cut_midway(path: str, dialect: Dialect) -> None:
    contract = contract_of(dialect)
    gateway = plays(START, Text("It is "), 0.1, Severed("it broke off"))
    async with running(gateway) as proxy:
        async with asked_of(proxy, path, body_of(contract, "plain", stream=True)) as response:
            stream = (await response.aread()).decode()
        await gateway.all_closed(1, within_s=10)
        async with asked_of(proxy, path, body_of(contract, "plain", stream=False)) as refused:
            await refused.aread()
    assert response.status_code == 200
    heard = contract.stream(events(stream))
    assert (heard.text, heard.errors, heard.ends, heard.finish) == ("It is ", 1, 0, [])
    assert "it broke off" in stream
    assert refused.status_code == Severed.status
    assert contract.whole(refused.json()).errors == 1


@each_dialect
@pytest.mark.anyio
async def test_a_whole_stream_on_a_socket(path: str, dialect: Dialect) -> None:
    contract = contract_of(dialect)
    gateway = plays(START, Thinking("Hm."), Text("It is "), 0.05, Text("-12 °C."), Finished("stop", USAGE))
    async with running(gateway) as proxy:
        async with asked_of(proxy, path, body_of(contract, "plain", stream=True)) as response:
            heard = contract.stream(events((await response.aread()).decode()))
        async with asked_of(proxy, path, body_of(contract, "plain", stream=False)) as reply:
            await reply.aread()
    assert (response.status_code, reply.status_code) == (200, 200)
    assert response.headers["content-type"].startswith("text/event-stream")
    whole = contract.whole(reply.json())
    assert (heard.text, heard.thinking, heard.ends) == (whole.text, whole.thinking, 1)
    assert whole.text == "It is -12 °C."


@each_dialect
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.anyio
async def test_a_client_that_leaves_ends_its_answer(path: str, dialect: Dialect, stream: bool) -> None:
    contract = contract_of(dialect)
    gateway = plays(START, Text("It is "), FOREVER)
    async with running(gateway) as proxy:
        connection = await proxy.connect()
        await connection.send(proxy.post(body_of(contract, "plain", stream=stream), path))
        with anyio.fail_after(10):
            while gateway.given < 2:
                await anyio.sleep(0.01)
        await connection.aclose()
        await gateway.all_closed(1, within_s=10)
        await proxy.empty()
    assert gateway.completed == 0
