"""Deep research through the protocol client, over the stand-in; its odd ends over a script."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing
from typing import Any

import anyio
import httpx
import pytest

from qwenproxy import research as research_module
from qwenproxy.chat import Attachment, Delta, Finished, Source, Started, Text, Thinking, Usage, fold
from qwenproxy.clock import SystemClock
from qwenproxy.errors import ChatBusy, EmptyAnswer, QwenProxyError, Severed
from qwenproxy.qwen.client import QwenClient, Turn
from qwenproxy.qwen.models import BUILT_IN, Model
from qwenproxy.qwen.payload import RESEARCH
from qwenproxy.research import REPLY, research
from qwenproxy.settings import Settings
from tests.serve import Standin, until_async
from tests.visiting import VisitingTransport

pytestmark = pytest.mark.anyio
MODEL = BUILT_IN[0]
QUICK = "{{standin: research silence_s=0.05 rate=500}}"


# ---- over the stand-in ----


@pytest.fixture
async def road(standin: Standin) -> AsyncIterator[VisitingTransport]:
    road = VisitingTransport(standin)
    yield road
    await road.aclose()


def client_of(road: VisitingTransport) -> QwenClient:
    return QwenClient(road, Settings(), SystemClock())


async def researched(road: VisitingTransport, prompt: str, **more: Any) -> list[Delta]:
    client = client_of(road)
    chat = await client.new_chat("one", MODEL, RESEARCH)
    async with aclosing(research(client, "one", chat, Turn(MODEL, prompt, **more))) as deltas:
        return [delta async for delta in deltas]


async def test_both_turns_are_one_answer(road: VisitingTransport) -> None:
    heard = await researched(road, f"Wind power in Denmark. {QUICK}")
    assert isinstance(heard[0], Started)
    assert [type(delta) for delta in heard].count(Started) == 1
    assert [type(delta) for delta in heard].count(Finished) == 1
    reply = fold(heard)
    first, second = road.standin.turns()
    assert reply.started.response_id == second["response"], "who goes on must follow the report"
    assert reply.thinking.startswith(f"{first['said']}\n\n(Answered: {REPLY})\n\nI have what I need.")
    assert reply.thinking.count("Searching: the stand-in on loopback") == 1
    assert reply.thinking.count("Searching: ") == 2
    assert "to be found out: Wind power in Denmark." in reply.text
    assert "nowhere else [[2,3]]" in reply.text
    assert [source.number for source in reply.sources] == [1, 2, 3]
    links = re.findall(r"^\[Stand-in report\.(md|pdf)\]\((.+)\)$", reply.text, re.MULTILINE)
    assert [kind for kind, _ in links] == ["md", "pdf"]
    assert httpx.get(links[0][1]).text == second["said"]
    assert httpx.get(links[1][1]).content.startswith(b"%PDF-")
    usage = reply.finished.usage
    assert usage.input_tokens > 2 * 1040, "the hidden prompt of both turns"
    assert usage.output_tokens > 50
    assert not usage.estimated


async def test_what_the_service_is_told(road: VisitingTransport) -> None:
    await researched(road, f"Wind. {QUICK}", thinking=True)
    first, second = road.standin.turns()
    assert [turn["chat_type"] for turn in (first, second)] == ["deep_research"] * 2
    assert [turn["sub_kind"] for turn in (first, second)] == ["deep_thinking", "deep_research"]
    assert [turn["features"]["research_mode"] for turn in (first, second)] == ["advance"] * 2
    assert (first["parent"], second["parent"]) == ("", first["response"])
    assert second["content"] == REPLY


async def test_a_chat_that_is_busy_for_a_moment_is_waited_for(
    road: VisitingTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    await anyio.to_thread.run_sync(lambda: road.standin.options(settle_s=0.5))
    monkeypatch.setattr(research_module, "BUSY_PAUSES_S", (0.2, 0.4, 0.8, 5.0))
    assert fold(await researched(road, f"Wind. {QUICK}")).text.startswith("# Report")
    asked = [call for call in road.standin.received("/api/v2/chat/completions") if call["method"] == "POST"]
    assert len(asked) > 2


async def test_a_run_without_a_report_is_no_answer(road: VisitingTransport) -> None:
    with pytest.raises(EmptyAnswer):
        await researched(road, "Wind. {{standin: research silence_s=0.05 rate=500 report=0}}")


async def test_leaving_stops_the_run(road: VisitingTransport) -> None:
    client = client_of(road)
    chat = await client.new_chat("one", MODEL, RESEARCH)
    turn = Turn(MODEL, "Wind. {{standin: research silence_s=60 rate=500}}")
    async with aclosing(research(client, "one", chat, turn)) as deltas:
        async for delta in deltas:
            if isinstance(delta, Thinking) and "Searching" in delta.text:
                break
    await until_async(lambda: road.standin.turns()[-1]["ending"] in {"stopped", "aborted"})
    state = await road.standin.until(lambda state: state["open"] == 0)
    assert state["open"] == 0


# ---- over a script ----


class Scripted:
    """Answers turns in their order; an error in the place of an answer is raised."""

    def __init__(self, *answers: Iterable[Any]) -> None:
        self.answers = [list(answer) for answer in answers]
        self.turns: list[Turn] = []

    async def models(self, account_id: str) -> tuple[Model, ...]:
        return BUILT_IN

    async def new_chat(self, account_id: str, model: Model, chat_type: str = "t2t") -> str:
        return "c1"

    def fits(self, turn: Turn) -> bool:
        return True

    async def stream(self, account_id: str, chat_id: str, turn: Turn) -> AsyncGenerator[Delta]:
        self.turns.append(turn)
        for delta in self.answers.pop(0):
            if isinstance(delta, QwenProxyError):
                raise delta
            yield delta


def started(number: int) -> Started:
    return Started("c1", f"r{number}", MODEL.id)


QUESTION: list[Any] = [started(1), Text("Which "), Text("side?\n"), Finished("stop", Usage(10, 2, 1))]
REPORT: list[Any] = [started(2), Thinking("Looking."), Text("Wind."), Finished("stop", Usage(30, 4, 2))]


async def played(upstream: Scripted, **more: Any) -> list[Delta]:
    async with aclosing(research(upstream, "a", "c1", Turn(MODEL, "Wind", **more))) as deltas:
        return [delta async for delta in deltas]


async def test_attachments_go_with_the_first_message_alone() -> None:
    upstream = Scripted(QUESTION, REPORT)
    await played(upstream, attachments=(Attachment("image", "https://example.org/a.png"),), parent_id=None)
    first, second = upstream.turns
    assert (len(first.attachments), len(second.attachments)) == (1, 0)
    assert (first.parent_id, second.parent_id) == (None, "r1")


async def test_usage_is_that_of_both_turns_or_of_none() -> None:
    assert fold(await played(Scripted(QUESTION, REPORT))).finished.usage == Usage(40, 6, 3)
    for untold in ([*QUESTION[:-1], Finished("stop")], QUESTION):
        told = REPORT if untold is not QUESTION else [*REPORT[:-1], Finished("stop")]
        assert fold(await played(Scripted(untold, told))).finished.usage == Usage()


async def test_thoughts_of_the_first_turn_come_before_its_question() -> None:
    question = [started(1), Thinking("Hm."), Source(1, "https://example.org", ""), *QUESTION[1:]]
    thinking = fold(await played(Scripted(question, REPORT))).thinking
    assert thinking == f"Hm.\n\nWhich side?\n\n(Answered: {REPLY})\n\nLooking."


async def test_a_first_turn_that_asks_nothing_is_no_reason_to_stop() -> None:
    heard = await played(Scripted([started(1), Finished("stop")], REPORT))
    assert heard[:2] == [started(2), Thinking("Looking.")]


async def test_what_fails_in_the_first_turn_has_given_nothing_out() -> None:
    upstream = Scripted([*QUESTION[:2], Severed("cut")])
    async with aclosing(research(upstream, "a", "c1", Turn(MODEL, "Wind"))) as deltas:
        with pytest.raises(Severed):
            await anext(deltas)


async def test_being_busy_ends_somewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(research_module, "BUSY_PAUSES_S", (0.01, 0.01))
    busy = [ChatBusy("busy")]
    assert fold(await played(Scripted(QUESTION, busy, busy, REPORT))).text == "Wind."
    upstream = Scripted(QUESTION, busy, busy, busy, REPORT)
    with pytest.raises(ChatBusy):
        await played(upstream)
    assert len(upstream.answers) == 1
    # What has begun is not begun again.
    with pytest.raises(ChatBusy):
        await played(Scripted(QUESTION, [started(2), ChatBusy("busy")], REPORT))
