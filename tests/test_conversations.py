"""Answers that are continued by their id."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qwenproxy import gateway as gateway_module
from qwenproxy.caller import ANYBODY
from qwenproxy.chat import ChatRequest, ConversationRef, Message, Tool
from qwenproxy.errors import (
    BadRequest,
    UnknownChat,
    UnknownPrevious,
    UnsupportedParameter,
)
from tests.talking import OTHER, Upstream, kept

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_module, "RETRY_PAUSES_S", (0.0, 0.0, 0.0))


async def test_an_answer_is_continued_by_its_id_first_anew_then_in_its_twin(tmp_path: Path) -> None:
    upstream = Upstream()
    async with kept(tmp_path, upstream) as proxy:
        await proxy.complete("One", "Two", "Three")
        second = await proxy.complete("ignored", "ignored", "Four", after="chatcmpl-r1")
        third = await proxy.complete("Five", after="r2")
        branch = await proxy.complete("Six", after="chatcmpl-r2")
    assert (second.started.rebuilt, third.started.chat_id, branch.started.chat_id) == ("", "chat-2", "chat-2")
    told = upstream.said[1][2]
    assert all(text in told for text in ("One", "Two", "Three", "Hello you 1", "Four"))
    assert "ignored" not in told
    assert upstream.said[2:] == [("chat-2", "r2", "Five"), ("chat-2", "r2", "Six")]
    assert upstream.deleted == ["chat-1"]


async def test_an_answer_that_was_cut_is_continued_as_the_client_saw_it(tmp_path: Path) -> None:
    upstream = Upstream()
    async with kept(tmp_path, upstream) as proxy:
        await proxy.complete("One")
        await proxy.complete("Two", after="r1", stop=("you",))
        await proxy.complete("Three", after="r2")
    assert upstream.said[2][1] is None
    assert "Hello you 1" in upstream.said[2][2]
    assert "Hello you 2" not in upstream.said[2][2]
    assert upstream.deleted == ["chat-1", "chat-2"]


async def test_of_a_long_continued_conversation_the_newest_goes_to_the_model(tmp_path: Path) -> None:
    upstream = Upstream()
    async with kept(tmp_path, upstream, most=4) as proxy:
        await proxy.complete("One")
        await proxy.complete("Two", after="r1")
        await proxy.complete("Three", after="r2")
    told = upstream.said[2][2]
    assert all(text in told for text in ("Two", "Hello you 2", "Three"))
    assert "One" not in told


async def test_a_continued_answer_moves_when_its_account_is_away(tmp_path: Path) -> None:
    upstream = Upstream()
    async with kept(tmp_path, upstream) as proxy:
        await proxy.complete("One")
        home = (await proxy.complete("Two", after="r1")).started.account_id
        proxy.change_account(home, paused=True)
        moved = (await proxy.complete("Three", after="r2")).started
        assert (moved.account_id != home, moved.rebuilt) == (True, "account_paused")
    assert all(text in upstream.said[2][2] for text in ("One", "Hello you 1", "Two", "Hello you 2", "Three"))


async def test_what_is_not_to_be_stored_cannot_be_continued(tmp_path: Path) -> None:
    async with kept(tmp_path, Upstream()) as proxy:
        await proxy.complete("One", remember=False)
        with pytest.raises(UnknownChat):
            await proxy.complete("Two", after="r1")
        await proxy.complete("One", caller=OTHER)
        await proxy.complete("Two", after="r2", caller=OTHER, remember=False)
        with pytest.raises(UnknownChat):
            await proxy.complete("Three", after="r3", caller=OTHER)
        with pytest.raises(UnknownChat):
            await proxy.complete("Two", after="r2", caller=replace(OTHER, mark="key_third"))
        with pytest.raises(BadRequest):
            await proxy.complete("Two", after="r2", choices=2)


async def test_a_chat_is_continued_by_its_id_or_by_an_answers(tmp_path: Path) -> None:
    upstream = Upstream()
    async with kept(tmp_path, upstream) as proxy:
        chat_id = (await proxy.ask("One")).started.conversation_id
        assert (await proxy.complete("Two", after=chat_id)).started.conversation_id == chat_id
        await proxy.complete("Three", after="chatcmpl-r1")
        assert proxy.texts(chat_id) == ["One", "Hello you 1", "Three", "Hello you 3"]
    assert upstream.said[1:] == [("chat-1", "r1", "Two"), ("chat-1", "r1", "Three")]


async def test_chats_of_conversations_that_are_no_more_go(tmp_path: Path) -> None:
    upstream = Upstream()
    async with kept(tmp_path, upstream) as proxy:
        chat_id = (await proxy.ask("One")).started.conversation_id
        await proxy.ask("Two")
        await proxy.complete("One")
        await proxy.complete("Two", after="r3")
        (tmp_path / "history" / f"{chat_id}.json").unlink()
        await proxy.conversations.forget_unwanted()
    assert sorted(upstream.deleted) == ["chat-1", "chat-3"]


async def test_chats_that_something_else_wants_stay(tmp_path: Path) -> None:
    upstream = Upstream()
    async with kept(tmp_path, upstream) as proxy:
        chat_id = (await proxy.ask("One")).started.conversation_id
        (tmp_path / "history" / f"{chat_id}.json").unlink()
        (chat,) = proxy.conversations._twins.held()
        await proxy.conversations.forget_unwanted(lambda: frozenset([chat]))
    assert upstream.deleted == []


def appending(*messages: Message, after: str, **more: Any) -> ChatRequest:
    ref = ConversationRef(after, is_chat=False, appends=True)
    return ChatRequest("qwen", messages, conversation=ref, **more)


async def test_what_is_appended_follows_whole_under_system_messages_of_its_own(tmp_path: Path) -> None:
    upstream = Upstream()
    async with kept(tmp_path, upstream) as proxy:
        await proxy.talk(
            ChatRequest("qwen", (Message("system", "Rhyme"), Message("user", "One")), answer_id="a1")
        )
        added = (Message("system", "Be brief"), Message("user", "Two"), Message("user", "Three"))
        await proxy.talk(appending(*added, after="resp_a1", answer_id="a2"))
        await proxy.talk(appending(Message("user", "Four"), after="resp_a2", answer_id="a3"))
        await proxy.talk(appending(Message("user", "Five"), after="resp_a3"))
    told = upstream.said[1][2]
    assert "Rhyme" not in told
    assert all(text in told for text in ("Be brief", "One", "Hello you 1", "Two", "Three"))
    assert "Be brief" not in upstream.said[2][2]
    assert upstream.said[3][1:] == ("r3", "Five"), "the same system text: the twin knows the rest"


async def test_nothing_unknown_is_appended_to(tmp_path: Path) -> None:
    async with kept(tmp_path, Upstream()) as proxy:
        chat = (await proxy.ask("One")).started
        for after in ("resp_other", f"resp_{chat.response_id}"):
            with pytest.raises(UnknownPrevious) as caught:
                await proxy.talk(appending(Message("user", "Two"), after=after))
            assert caught.value.param == "previous_response_id"


async def test_a_kept_chat_has_no_place_for_calls(tmp_path: Path) -> None:
    async with kept(tmp_path, Upstream()) as proxy:
        chat_id = (await proxy.ask("One")).started.conversation_id
        with pytest.raises(UnsupportedParameter) as caught:
            await proxy.complete("Two", after=chat_id, tools=(Tool("read"),))
        assert caught.value.param == "tools"


async def test_a_forgotten_answer_cannot_be_continued_and_its_chat_goes(tmp_path: Path) -> None:
    upstream = Upstream()
    async with kept(tmp_path, upstream) as proxy:
        await proxy.complete("One")
        await proxy.complete("Two", after="r1")
        await proxy.conversations.forget("r2", OTHER)
        await proxy.complete("Three", after="r2")
        for answer_id in ("r1", "r2", "r3", "nobody"):
            await proxy.conversations.forget(answer_id, ANYBODY)
        for after in ("r1", "r2"):
            with pytest.raises(UnknownChat):
                await proxy.complete("Four", after=after)
    assert sorted(upstream.deleted) == ["chat-1", "chat-2"]
