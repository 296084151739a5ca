"""The protocol client over a scripted road."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import anyio
import pytest

from qwenproxy.chat import Delta, Finished, Source, Started, Text, Thinking
from qwenproxy.clock import SystemClock
from qwenproxy.errors import (
    ChatBusy,
    EmptyAnswer,
    ProtocolChanged,
    Severed,
    TokenRejected,
    Unreachable,
    UpstreamError,
    UpstreamTimeout,
)
from qwenproxy.qwen import client as client_module
from qwenproxy.qwen import payload
from qwenproxy.qwen.client import QwenClient, Turn
from qwenproxy.qwen.models import BUILT_IN
from qwenproxy.settings import Settings
from tests.scripted import Answer, Piece, ScriptedTransport, frames, said
from tests.serve import Standin
from tests.visiting import VisitingTransport

pytestmark = pytest.mark.anyio

TURN = Turn(BUILT_IN[0], "Hello")
CREATED = {
    "response.created": {"chat_id": "c1", "parent_id": "u1", "response_id": "r1", "response_index": "0"}
}
END = {
    "choices": [{"delta": {"content": "", "role": "assistant", "status": "finished", "phase": "answer"}}],
    "response_id": "r1",
}
FILES = {"md": {"name": "Report", "size": 9, "link": "https://cdn.example.org/r.md"}}
FILED = {
    "choices": [
        {
            "delta": {
                "content": "",
                "role": "assistant",
                "status": "finished",
                "phase": "PdfMdGen",
                "extra": {"deep_research": FILES},
            }
        }
    ],
    "response_id": "r1",
}
REFUSED = {"success": False, "data": {"code": "Unauthorized", "details": "401 Unauthorized"}}
STOPPED = {"success": True, "data": {"status": True}}


def says(text: str, **more: Any) -> dict[str, Any]:
    delta = {"role": "assistant", "content": text, "phase": "answer", "status": "typing", **more}
    return {"choices": [{"delta": delta}], "response_id": "r1", "timestamp": 1787200003}


def client(transport: ScriptedTransport, **settings: float) -> QwenClient:
    return QwenClient(transport, Settings(**settings), SystemClock())  # type: ignore[arg-type]


async def answer(client: QwenClient, turn: Turn = TURN) -> list[Delta]:
    async with aclosing(client.stream("a", "c1", turn)) as deltas:
        return [delta async for delta in deltas]


def text(deltas: list[Delta]) -> str:
    return "".join(d.text for d in deltas if isinstance(d, Text))


async def test_an_answer_in_pieces_of_any_size() -> None:
    whole = frames(CREATED, says("Hé"), says("llo"), END)
    transport = ScriptedTransport(Answer([whole[n : n + 1] for n in range(len(whole))]))
    deltas = await answer(client(transport))
    assert [type(d) for d in deltas] == [Started, Text, Text, Finished]
    assert text(deltas) == "Héllo"
    assert transport.open == 0
    call = transport.calls[0]
    assert call.path == "/api/v2/chat/completions?chat_id=c1"
    assert call.stream
    assert json.loads(call.body or "")["messages"][0]["content"] == "Hello"


async def test_the_start_is_held_back_until_there_is_something_to_show() -> None:
    transport = ScriptedTransport(Answer([frames(CREATED), Severed("cut")]))
    seen: list[Delta] = []
    with pytest.raises(Severed):
        async with aclosing(client(transport).stream("a", "c1", TURN)) as deltas:
            await anext(deltas)
    assert seen == []


async def test_a_socket_left_open_after_the_end_is_not_waited_for() -> None:
    transport = ScriptedTransport(Answer([frames(CREATED, says("Hi"), END), 60.0]))
    with anyio.fail_after(5):
        assert text(await answer(client(transport))) == "Hi"
    assert transport.paths == ["/api/v2/chat/completions?chat_id=c1"]


async def test_silence_after_an_intermediate_end_makes_it_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "SETTLE_S", 0.1)
    intermediate = says("", status="finished")
    transport = ScriptedTransport(Answer([frames(CREATED, says("Hi"), intermediate), 60.0]))
    deltas = await answer(client(transport))
    assert isinstance(deltas[-1], Finished)


async def test_an_intermediate_end_is_not_the_end_while_more_comes() -> None:
    more = frames(CREATED, says("I will search."), says("", status="finished"))
    transport = ScriptedTransport(Answer([more, 0.05, frames(says(" Found.")), frames(END)]))
    assert text(await answer(client(transport))) == "I will search. Found."


async def test_an_end_without_its_frame_is_severed() -> None:
    with pytest.raises(Severed):
        await answer(client(ScriptedTransport(Answer([frames(CREATED, says("Hi"))]))))


async def test_a_body_that_ends_after_an_intermediate_end_is_severed() -> None:
    whole = frames(CREATED, says("I will search."), says("", status="finished"))
    with pytest.raises(Severed):
        await answer(client(ScriptedTransport(Answer([whole]))))


async def test_nothing_at_all_is_an_empty_answer() -> None:
    with pytest.raises(EmptyAnswer):
        await answer(client(ScriptedTransport(Answer([frames(CREATED)]))))


async def test_json_instead_of_a_stream_is_its_error() -> None:
    busy = {"success": False, "data": {"code": "Bad_Request", "details": "The chat is in progress!"}}
    with pytest.raises(ChatBusy):
        await answer(client(ScriptedTransport(said(busy, 400))))
    with pytest.raises(ProtocolChanged):
        await answer(client(ScriptedTransport(said({"success": True, "data": {}}))))


async def test_a_refused_token_is_renewed_once_and_the_call_repeated() -> None:
    transport = ScriptedTransport(
        said(REFUSED, 401), Answer([frames(CREATED, says("Hi"), END)], credential="second"), renews=True
    )
    assert text(await answer(client(transport))) == "Hi"
    assert transport.renewals == ["first"]
    assert transport.calls[0].path == transport.calls[1].path


async def test_a_token_that_expires_in_the_stream_is_renewed_while_nothing_was_given() -> None:
    expired = {"code": "unauthorized", "details": "Token has expired, please log in again."}
    transport = ScriptedTransport(
        Answer([frames(CREATED, {"error": expired})]), Answer([frames(CREATED, says("Hi"), END)]), renews=True
    )
    deltas = await answer(client(transport))
    assert [type(d) for d in deltas] == [Started, Text, Finished]


async def test_a_token_refused_after_a_piece_was_given_is_an_error() -> None:
    expired = {"code": "unauthorized", "details": "Token has expired, please log in again."}
    transport = ScriptedTransport(Answer([frames(CREATED, says("Hi"), {"error": expired})]), renews=True)
    with pytest.raises(TokenRejected):
        await answer(client(transport))
    assert transport.renewals == []


@pytest.mark.parametrize("renews", [True, False])
async def test_a_second_refusal_or_no_renewal_means_signed_out(*, renews: bool) -> None:
    transport = ScriptedTransport(said(REFUSED, 401), said(REFUSED, 401), renews=renews)
    with pytest.raises(TokenRejected):
        await answer(client(transport))
    assert len(transport.calls) == (2 if renews else 1)
    transport = ScriptedTransport(said(REFUSED, 401), said(REFUSED, 401), renews=renews)
    with pytest.raises(TokenRejected):
        await client(transport).new_chat("a", BUILT_IN[0])


async def test_leaving_stops_the_answer_on_the_service() -> None:
    transport = ScriptedTransport(Answer([frames(CREATED, says("Hi")), 60.0]), said(STOPPED))
    async with aclosing(client(transport).stream("a", "c1", TURN)) as deltas:
        assert isinstance(await anext(deltas), Started)
    assert transport.open == 0
    assert transport.paths[1:] == ["/api/v2/chat/completions/stop?chat_id=c1"]
    assert json.loads(transport.calls[1].body or "") == {"chat_id": "c1", "response_id": "r1"}


async def test_being_cancelled_stops_the_answer_on_the_service() -> None:
    transport = ScriptedTransport(Answer([frames(CREATED, says("Hi")), 60.0]), said(STOPPED))
    with anyio.move_on_after(0.1) as scope:
        await answer(client(transport))
    assert scope.cancelled_caught
    assert transport.open == 0
    assert len(transport.calls) == 2


async def test_a_stop_that_fails_hurts_nobody() -> None:
    transport = ScriptedTransport(
        Answer([frames(CREATED, says("Hi")), 60.0]), Answer(before_head=[Unreachable("net")])
    )
    async with aclosing(client(transport).stream("a", "c1", TURN)) as deltas:
        await anext(deltas)
    assert transport.open == 0


ALIVE: list[Piece] = [0.02, b": still here\n\n"]


@pytest.mark.parametrize(
    ("script", "limits"),
    [
        (Answer(before_head=[60.0]), {"first_byte_timeout_s": 0.1}),
        (Answer([60.0]), {"first_byte_timeout_s": 0.1}),
        (Answer([frames(CREATED, says("Hi")), 60.0]), {"idle_timeout_s": 0.1}),
        (Answer([frames(CREATED), *ALIVE * 100]), {"total_timeout_s": 0.2}),
    ],
    ids=["head", "first byte", "idle", "total"],
)
async def test_every_silence_has_an_end(script: Answer, limits: dict[str, float]) -> None:
    transport = ScriptedTransport(script, said(STOPPED))
    with anyio.fail_after(5), pytest.raises(UpstreamTimeout):
        await answer(client(transport, **limits))
    assert transport.open == 0


async def test_a_thinking_model_is_given_longer() -> None:
    script = Answer([frames(CREATED), 0.3, frames(says("Hi"), END)])
    thinking = Turn(BUILT_IN[0], "Hello", thinking=True)
    transport = ScriptedTransport(script)
    assert text(await answer(client(transport, idle_timeout_s=0.2), thinking)) == "Hi"


async def test_a_research_is_given_longest_and_its_files_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    research = replace(TURN, chat_type=payload.RESEARCH, sub_chat_type=payload.RESEARCH)
    script = Answer([frames(CREATED), 0.6, frames(says("Wind")), 0.6, frames(END), 0.6, frames(FILED), 60.0])
    monkeypatch.setattr(client_module, "SETTLE_S", 0.05)
    qwen = client(ScriptedTransport(script), idle_timeout_s=0.1, first_byte_timeout_s=0.1)
    with anyio.fail_after(10):
        assert text(await answer(qwen, research)) == "Wind\n\n[Report.md](https://cdn.example.org/r.md)"
    monkeypatch.setattr(client_module, "FILES_S", 0.05)
    script = Answer([frames(CREATED, says("Wind"), END), 60.0])
    with anyio.fail_after(10):
        assert text(await answer(client(ScriptedTransport(script)), research)) == "Wind"


async def test_the_start_of_a_research_is_told_at_once() -> None:
    research = replace(TURN, chat_type=payload.RESEARCH, sub_chat_type=payload.RESEARCH)
    transport = ScriptedTransport(Answer([frames(CREATED), 60.0]), said(STOPPED))
    async with aclosing(client(transport).stream("a", "c1", research)) as deltas:
        with anyio.fail_after(10):
            assert isinstance(await anext(deltas), Started)
    assert transport.paths[1:] == ["/api/v2/chat/completions/stop?chat_id=c1"]


@pytest.mark.parametrize(
    ("chat_type", "thinking", "expected"),
    [
        ("t2t", True, {"thinking_enabled": True, "auto_search": False, "research_mode": "normal"}),
        ("search", True, {"thinking_enabled": True, "auto_search": True, "research_mode": "normal"}),
        ("search", None, {"thinking_enabled": False, "auto_search": True, "research_mode": "normal"}),
        ("deep_research", None, {"thinking_enabled": False, "auto_search": True, "research_mode": "normal"}),
        ("deep_research", True, {"thinking_enabled": False, "auto_search": True, "research_mode": "advance"}),
    ],
)
async def test_what_a_turn_asks_of_the_model(chat_type: str, thinking: bool | None, expected: Any) -> None:
    turn = replace(TURN, chat_type=chat_type, thinking=thinking)
    (message,) = turn.body("c1", SystemClock())["messages"]
    assert {name: message["feature_config"][name] for name in expected} == expected
    assert (message["chat_type"], message["sub_chat_type"]) == (chat_type, chat_type)
    assert not turn.draws


# ---- searching, over the stand-in ----


@pytest.fixture
async def road(standin: Standin) -> AsyncIterator[VisitingTransport]:
    road = VisitingTransport(standin)
    yield road
    await road.aclose()


SEARCHED = replace(
    TURN, prompt="News? {{standin: search silence_s=0.05 think_s=0.01 rate=500}}", chat_type="search"
)
FOUND = "Here is what I found [[1]], and a second page [[2]] agrees."


@pytest.mark.parametrize("thinking", [True, False])
async def test_a_search_brings_its_sources_and_all_of_its_answer(
    road: VisitingTransport, *, thinking: bool
) -> None:
    qwen = QwenClient(road, Settings(), SystemClock())
    turn = replace(SEARCHED, thinking=thinking)
    chat = await qwen.new_chat("one", turn.model, turn.chat_type)
    async with aclosing(qwen.stream("one", chat, turn)) as deltas:
        heard = [delta async for delta in deltas]
    said = text(heard)
    assert said == (FOUND if thinking else f"I will search the web for that. {FOUND}")
    assert any(isinstance(delta, Thinking) for delta in heard) == thinking
    sources = [delta for delta in heard if isinstance(delta, Source)]
    assert [(source.number, source.url) for source in sources] == [
        (number, f"https://example.org/{number}") for number in (1, 2, 3)
    ]
    before = [delta for delta in heard[: heard.index(sources[0])] if isinstance(delta, Text)]
    assert FOUND not in text(list(before)), "the sources come after what cites them"
    assert isinstance(heard[-1], Finished)
    assert heard[-1].usage.output_tokens > 0
    (turned,) = road.standin.turns()
    assert (turned["chat_type"], turned["kind"], turned["features"]["auto_search"]) == (
        "search",
        "search",
        True,
    )


async def test_a_search_in_a_chat_that_goes_on_is_the_messages_own(road: VisitingTransport) -> None:
    qwen = QwenClient(road, Settings(), SystemClock())
    chat = await qwen.new_chat("one", TURN.model)
    first = replace(TURN, prompt="{{standin: say text=Hello}}")
    async with aclosing(qwen.stream("one", chat, first)) as deltas:
        started = await anext(deltas)
        assert isinstance(started, Started)
        assert text([delta async for delta in deltas]) == "Hello"
    turn = replace(SEARCHED, parent_id=started.response_id)
    async with aclosing(qwen.stream("one", chat, turn)) as deltas:
        assert any(isinstance(delta, Source) for delta in [delta async for delta in deltas])
    last = road.standin.turns()[-1]
    assert (last["chat_type"], last["kind"], last["parent"]) == ("t2t", "search", started.response_id)


async def test_keep_alives_count_as_life() -> None:
    alive = frames({"response.info": {"action": "keep_alive", "response_id": "r1"}})
    beats: list[Piece] = [0.1, alive] * 5
    transport = ScriptedTransport(Answer([frames(CREATED), *beats, frames(says("Hi"), END)]))
    assert text(await answer(client(transport, idle_timeout_s=0.3))) == "Hi"


async def test_plain_calls_say_what_the_reference_says() -> None:
    transport = ScriptedTransport(
        said({"success": True, "data": {"id": "chat-9"}}),
        said({"success": True, "data": {}}),
        said({"success": True, "data": {"status": True}}),
        said({"success": True, "data": {"data": [{"id": "qwen9-max", "name": "Nine"}]}}),
        said({"success": True, "data": {"id": "u", "email": "me@example.com"}}),
    )
    qwen = client(transport)
    assert await qwen.new_chat("a", BUILT_IN[0]) == "chat-9"
    await qwen.rename("a", "c/9", "Name")
    await qwen.delete("a", "chat-9")
    assert [m.id for m in await qwen.models("a")] == ["qwen9-max"]
    assert (await qwen.who("a"))["id"] == "u"
    assert [(call.method, call.path, call.host) for call in transport.calls] == [
        ("POST", "/api/v2/chats/new", "site"),
        ("POST", "/api/v2/chats/c%2F9", "site"),
        ("DELETE", "/api/v2/chats/chat-9", "site"),
        ("GET", "/api/v2/models/", "site"),
        ("GET", "/api/v2/auths/", "auth"),
    ]


async def test_deleting_may_be_answered_with_nothing() -> None:
    transport = ScriptedTransport(Answer(status=204, headers={}))
    await client(transport).delete("a", "chat-9")
    assert transport.open == 0


async def test_an_older_site_is_asked_who_am_i_the_older_way() -> None:
    transport = ScriptedTransport(
        Answer(before_head=[Unreachable("no such host")]), said({"id": "u", "email": "me@example.com"})
    )
    assert (await client(transport).who("a"))["id"] == "u"
    assert transport.paths == ["/api/v2/auths/", "/api/v1/auths/"]


async def test_who_am_i_that_nobody_understands() -> None:
    with pytest.raises(ProtocolChanged):
        await client(ScriptedTransport(said({"success": True, "data": []}))).who("a")


async def test_a_call_that_hangs_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "CALL_S", 0.1)
    with pytest.raises(UpstreamTimeout):
        await client(ScriptedTransport(Answer(before_head=[60.0]))).new_chat("a", BUILT_IN[0])


async def test_an_endless_answer_to_a_plain_call_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "WHOLE_BYTES", 10)
    with pytest.raises(UpstreamError):
        await client(ScriptedTransport(said({"success": True, "data": "long"}))).models("a")


async def test_what_fits_in_one_message_is_known_before_any_call() -> None:
    transport = ScriptedTransport()
    qwen = client(transport, max_prompt_bytes=2000)
    assert qwen.fits(Turn(BUILT_IN[0], "x" * 500))
    assert not qwen.fits(Turn(BUILT_IN[0], "ж" * 1000))
    roomy = client(transport, max_prompt_bytes=1_000_000)
    assert roomy.fits(Turn(BUILT_IN[0], "x" * 131_072))
    assert not roomy.fits(Turn(BUILT_IN[0], "x" * 131_073))
    assert transport.calls == []
