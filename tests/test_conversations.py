"""Conversations over a real gateway, real files and an upstream that plays a script."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from qwenproxy import gateway as gateway_module
from qwenproxy.accounts.registry import Registry
from qwenproxy.caller import ANYBODY, Caller
from qwenproxy.chat import (
    Attachment,
    ChatRequest,
    ConversationRef,
    Delta,
    Finished,
    Message,
    Reply,
    Source,
    Started,
    Text,
    Thinking,
    UpstreamChat,
    fold,
)
from qwenproxy.clock import SystemClock
from qwenproxy.conversations import Conversations
from qwenproxy.errors import (
    BadRequest,
    ChatBusy,
    ChatGone,
    ContentBlocked,
    LimitReached,
    QwenProxyError,
    Severed,
    StoreError,
    UnknownChat,
    UnknownModel,
)
from qwenproxy.exchanges import Exchanges
from qwenproxy.gateway import Gateway
from qwenproxy.history import History
from qwenproxy.janitor import Janitor
from qwenproxy.ledger import Ledger
from qwenproxy.qwen.client import Turn
from qwenproxy.transcript import Transcript
from qwenproxy.turn_order import TurnOrder
from tests.test_gateway import ScriptedUpstream, gateway, late

pytestmark = pytest.mark.anyio

OTHER = Caller("key_other", "other", frozenset({"chat"}))


class Upstream(ScriptedUpstream):
    """Numbers its answers, so that each can be told from the others."""

    def __init__(self, *ends: Any) -> None:
        super().__init__(*ends)
        self.answers = 0
        self.more: list[Delta] = []
        self.waits = anyio.Event()
        self.waits.set()

    async def stream(self, account_id: str, chat_id: str, turn: Turn) -> AsyncGenerator[Delta]:
        async with aclosing(super().stream(account_id, chat_id, turn)) as deltas:
            async for delta in deltas:
                if isinstance(delta, Started):
                    self.answers += 1
                    yield replace(delta, response_id=f"r{self.answers}")
                    for more in self.more:
                        yield more
                elif isinstance(delta, Finished):
                    yield Text(f" {self.answers}")
                    yield delta
                else:
                    yield delta
                    await self.waits.wait()

    @property
    def said(self) -> list[tuple[str, str | None, str]]:
        """By call: the chat, the parent, and the prompt."""
        return [(chat, turn.parent_id, turn.prompt) for _, chat, turn in self.calls]


@dataclass
class Kept:
    """All of it, and what a client does with it."""

    folder: Path
    gateway: Gateway
    conversations: Conversations
    history: History
    janitor: Janitor
    seen: list[Delta] = field(default_factory=list)

    async def talk(self, request: ChatRequest, caller: Caller = ANYBODY) -> Reply:
        self.seen.clear()
        async with aclosing(self.conversations.stream(request, caller)) as deltas:
            async for delta in deltas:
                self.seen.append(delta)
        return fold(self.seen)

    async def ask(self, text: str, chat_id: str = "", parent_id: str = "", **more: Any) -> Reply:
        return await self.talk(
            ChatRequest("qwen", (Message("user", text),), conversation=ConversationRef(chat_id, parent_id)),
            **more,
        )

    async def again(self, chat_id: str, message_id: str = "") -> Reply:
        ref = ConversationRef(chat_id, message_id, regenerate=True)
        return await self.talk(ChatRequest("", (), conversation=ref))

    async def complete(self, *texts: str, after: str = "", caller: Caller = ANYBODY, **more: Any) -> Reply:
        roles = ["user", "assistant"] * len(texts)
        messages = tuple(Message(role, text) for role, text in zip(roles, texts, strict=False))  # type: ignore[arg-type]
        ref = ConversationRef(after, is_chat=False) if after else None
        return await self.talk(ChatRequest("qwen", messages, conversation=ref, **more), caller)

    def chat(self, chat_id: str) -> Transcript:
        return self.history.read(chat_id, ANYBODY)

    def texts(self, chat_id: str) -> list[str]:
        return [entry.text for entry in self.chat(chat_id).branch()]

    def change_account(self, account_id: str, **change: Any) -> None:
        path = self.folder / "tokens.json"
        rows = json.loads(path.read_text())
        path.write_text(json.dumps([{**row, **(change if row["id"] == account_id else {})} for row in rows]))
        self.gateway.pool.take_up(Registry(self.folder, SystemClock()).accounts())


@asynccontextmanager
async def kept(
    folder: Path, upstream: ScriptedUpstream, *, most: int = 100, **more: Any
) -> AsyncIterator[Kept]:
    clock = SystemClock()
    async with gateway(folder, upstream, **more) as gate:
        with (
            closing(History(folder, clock)) as history,
            closing(Exchanges(folder, clock, most=5)) as exchanges,
        ):
            turns = TurnOrder(0.5)
            janitor = gate._janitor
            talks = Conversations(
                gate, history, exchanges, janitor, turns, clock, most=most, keeps_chats=False
            )
            yield Kept(folder, gate, talks, history, janitor)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_module, "RETRY_PAUSES_S", (0.0, 0.0, 0.0))


# ---- kept chats ----


async def test_a_chat_goes_on_in_its_twin_with_the_new_message_alone(tmp_path: Path) -> None:
    upstream = Upstream()
    async with kept(tmp_path, upstream) as proxy:
        first = (await proxy.ask("One")).started
        second = (await proxy.ask("Two", first.conversation_id)).started
        assert (second.conversation_id, second.rebuilt) == (first.conversation_id, "")
        chat = proxy.chat(first.conversation_id)
    assert upstream.said == [("chat-1", None, "One"), ("chat-1", "r1", "Two")]
    assert [entry.text for entry in chat.branch()] == ["One", "Hello you 1", "Two", "Hello you 2"]
    assert [entry.id for entry in chat.branch()][1::2] == [first.message_id, second.message_id]
    assert (chat.twin, chat.name) == (UpstreamChat("chat-1", "a0"), "One")
    assert upstream.deleted == []
    assert Ledger(tmp_path / "chats.jsonl").held() == (UpstreamChat("chat-1", "a0"),)


async def test_everything_of_an_answer_is_kept(tmp_path: Path) -> None:
    upstream = Upstream()
    upstream.more = [Thinking("Hm"), Source(1, "https://x", "X")]
    async with kept(tmp_path, upstream) as proxy:
        picture = Message("user", "What?", (Attachment("image", "https://x/a.png"),))
        system = Message("system", "Be brief")
        reply = await proxy.talk(ChatRequest("qwen-max", (system, picture), conversation=ConversationRef()))
        first, question, answer = proxy.chat(reply.started.conversation_id).branch()
    assert (first.role, first.text) == ("system", "Be brief")
    assert question.content == [
        {"type": "text", "text": "What?"},
        {"type": "image", "image": "https://x/a.png"},
    ]
    assert (answer.reasoning, answer.sources) == ("Hm", ({"number": 1, "url": "https://x", "title": "X"},))
    assert (answer.account, answer.model, answer.upstream_chat) == ("a0", "qwen3.8-max", "chat-1")
    assert answer.info
    (_, _, turn) = upstream.calls[0]
    assert "Be brief" in turn.prompt
    assert turn.attachments == picture.attachments


@pytest.mark.parametrize(
    ("change", "why"),
    [({"invalid": True}, "account_invalid"), ({"resetAt": "2099-01-01T00:00:00Z"}, "account_waiting")],
)
async def test_a_chat_whose_account_is_away_goes_on_elsewhere_and_stays_there(
    tmp_path: Path, change: dict[str, Any], why: str
) -> None:
    upstream = Upstream()
    async with kept(tmp_path, upstream) as proxy:
        chat_id = (await proxy.ask("One")).started.conversation_id
        proxy.change_account("a0", **change)
        moved = (await proxy.ask("Two", chat_id)).started
        assert (moved.account_id, moved.rebuilt) == ("a1", why)
        assert (await proxy.ask("Three", chat_id)).started.rebuilt == ""
        answers = proxy.chat(chat_id).branch()[1::2]
    assert [entry.rebuilt for entry in answers] == ["", why, ""]
    assert all(text in upstream.said[1][2] for text in ("One", "Hello you 1", "Two"))
    assert upstream.said[2] == ("chat-2", "r2", "Three")
    assert upstream.deleted == ["chat-1"]


async def test_a_twin_that_is_gone_is_made_anew(tmp_path: Path) -> None:
    upstream = Upstream(None, ChatGone("deleted"))
    async with kept(tmp_path, upstream) as proxy:
        chat_id = (await proxy.ask("One")).started.conversation_id
        assert (await proxy.ask("Two", chat_id)).started.rebuilt == "twin_gone"
        assert proxy.texts(chat_id) == ["One", "Hello you 1", "Two", "Hello you 2"]


async def test_a_chat_that_is_not_ours_is_neither_used_nor_deleted(tmp_path: Path) -> None:
    upstream = Upstream()
    async with kept(tmp_path, upstream) as proxy:
        chat_id = (await proxy.ask("One")).started.conversation_id
        theirs = UpstreamChat("somebodys", "a0")
        proxy.history.change(chat_id, ANYBODY, lambda chat: replace(chat, twin=theirs))
        assert (await proxy.ask("Two", chat_id)).started.rebuilt == "twin_gone"
    assert "somebodys" not in {chat for chat, *_ in upstream.said} | set(upstream.deleted)


async def test_an_edited_past_is_told_anew(tmp_path: Path) -> None:
    upstream = Upstream()
    async with kept(tmp_path, upstream) as proxy:
        first = (await proxy.ask("One")).started
        proxy.history.change(
            first.conversation_id, ANYBODY, lambda chat: chat.edited(first.message_id, "My words")
        )
        second = (await proxy.ask("Two", first.conversation_id)).started
        assert (second.rebuilt, second.account_id) == ("edited", "a0")
    assert "My words" in upstream.said[1][2]
    assert "Hello you 1" not in upstream.said[1][2]
    assert upstream.deleted == ["chat-1"]


async def test_an_answer_made_anew_is_a_sibling_in_the_same_twin(tmp_path: Path) -> None:
    upstream = Upstream()
    async with kept(tmp_path, upstream) as proxy:
        chat_id = (await proxy.ask("One")).started.conversation_id
        old = (await proxy.ask("Two", chat_id)).started
        new = (await proxy.again(chat_id)).started
        assert new.rebuilt == ""
        assert proxy.texts(chat_id) == ["One", "Hello you 1", "Two", "Hello you 3"]
        assert [entry.id for entry in proxy.chat(chat_id).others()] == [old.message_id]
        await proxy.ask("Three", chat_id, old.message_id)
        assert proxy.texts(chat_id) == ["One", "Hello you 1", "Two", "Hello you 2", "Three", "Hello you 4"]
    assert upstream.said[1:] == [("chat-1", "r1", "Two"), ("chat-1", "r1", "Two"), ("chat-1", "r2", "Three")]


async def test_at_most_so_many_messages_go_to_the_model_and_all_are_kept(tmp_path: Path) -> None:
    upstream = Upstream()
    async with kept(tmp_path, upstream, most=4) as proxy:
        system = Message("system", "Be brief")
        request = ChatRequest("qwen", (system, Message("user", "One")), conversation=ConversationRef())
        chat_id = (await proxy.talk(request)).started.conversation_id
        assert (await proxy.ask("Two", chat_id)).started.rebuilt == ""
        assert (await proxy.ask("Three", chat_id)).started.rebuilt == "shortened"
        assert len(proxy.chat(chat_id).entries) == 7
    told = upstream.said[2][2]
    assert all(text in told for text in ("Be brief", "Two", "Hello you 2", "Three"))
    assert "One" not in told


# ---- what goes wrong ----


async def test_what_was_cut_short_is_kept_with_why_and_a_retry_doubles_nothing(tmp_path: Path) -> None:
    upstream = Upstream(None, late(Severed("cut")))
    async with kept(tmp_path, upstream) as proxy:
        chat_id = (await proxy.ask("One")).started.conversation_id
        with pytest.raises(Severed) as caught:
            await proxy.ask("Two", chat_id)
        assert caught.value.conversation_id == chat_id
        last = proxy.chat(chat_id).branch()[-1]
        assert (last.text, last.partial, last.upstream_response) == ("Hello ", "upstream_error", "")
        retried = (await proxy.ask("Two", chat_id)).started
        assert retried.rebuilt == ""
        assert proxy.texts(chat_id) == ["One", "Hello you 1", "Two", "Hello you 3"]
        goes_on = (await proxy.ask("Three", chat_id, last.id)).started
        assert goes_on.rebuilt == "partial"
    assert upstream.said[2] == ("chat-1", "r1", "Two")
    assert all(text in upstream.said[3][2] for text in ("One", "Two", "Hello ", "Three"))


async def test_a_question_without_an_answer_says_why_and_gives_its_place(tmp_path: Path) -> None:
    limits = [LimitReached("day", wait_s=60)] * 2
    upstream = Upstream(None, *limits)
    async with kept(tmp_path, upstream, accounts=2) as proxy:
        chat_id = (await proxy.ask("One")).started.conversation_id
        with pytest.raises(QwenProxyError) as caught:
            await proxy.ask("Two", chat_id)
        assert caught.value.conversation_id == chat_id
        assert proxy.chat(chat_id).branch()[-1].unanswered == "all_accounts_waiting"
        for account in ("a0", "a1"):
            proxy.change_account(account, resetAt=None, signedInAt="2026-11-21T00:00:00Z")
        await proxy.ask("Three", chat_id)
        assert proxy.texts(chat_id) == ["One", "Hello you 1", "Three", "Hello you 2"]


async def test_a_client_that_leaves_finds_what_it_saw(tmp_path: Path) -> None:
    upstream = Upstream()
    async with kept(tmp_path, upstream) as proxy:
        chat_id = (await proxy.ask("One")).started.conversation_id
        request = ChatRequest("qwen", (Message("user", "Two"),), conversation=ConversationRef(chat_id))
        stream = proxy.conversations.stream(request, ANYBODY)
        while not isinstance(await anext(stream), Text):
            pass
        await stream.aclose()
        last = proxy.chat(chat_id).branch()[-1]
        assert (last.text, last.partial) == ("Hello ", "interrupted")
        upstream.waits = anyio.Event()
        with anyio.move_on_after(0.2):
            await proxy.ask("Three", chat_id)
        assert proxy.chat(chat_id).branch()[-1].partial == "interrupted"
    assert upstream.open == 0


async def test_a_new_chat_that_cannot_begin_is_none_unless_it_may_be_tried_again(tmp_path: Path) -> None:
    upstream = Upstream(ContentBlocked("no"), *[LimitReached("day", wait_s=60)] * 3)
    async with kept(tmp_path, upstream) as proxy:
        for request in (
            ChatRequest("nothing-like-it", (Message("user", "x"),), conversation=ConversationRef()),
            ChatRequest("qwen", (Message("user", "x"),), conversation=ConversationRef()),
        ):
            with pytest.raises((UnknownModel, ContentBlocked)) as caught:
                await proxy.talk(request)
            assert caught.value.conversation_id == ""
        assert proxy.history.rows(ANYBODY) == ()
        with pytest.raises(QwenProxyError) as limited:
            await proxy.ask("x")
        assert proxy.texts(limited.value.conversation_id) == ["x"]


async def test_a_chat_that_is_deleted_under_its_answer_stays_deleted(tmp_path: Path) -> None:
    upstream = Upstream()
    async with kept(tmp_path, upstream) as proxy:
        chat_id = (await proxy.ask("One")).started.conversation_id
        upstream.waits = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(proxy.ask, "Two", chat_id)
            while upstream.answers < 2:
                await anyio.sleep(0.005)
            proxy.history.remove(chat_id, ANYBODY)
            upstream.waits.set()
        with pytest.raises(UnknownChat):
            proxy.chat(chat_id)
    assert upstream.deleted == ["chat-1"]


async def test_two_at_once_never_mix_and_who_waits_too_long_is_told(tmp_path: Path) -> None:
    upstream = Upstream()
    async with kept(tmp_path, upstream) as proxy:
        chat_id = (await proxy.ask("One")).started.conversation_id
        async with anyio.create_task_group() as tasks:
            for number in range(5):
                tasks.start_soon(_ask_alone, proxy, f"Q{number}", chat_id)
        texts = proxy.texts(chat_id)
        assert texts[2::2] == [f"Q{number}" for number in range(5)]
        assert texts[1::2] == [f"Hello you {number}" for number in range(1, 7)]
        upstream.waits = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_ask_alone, proxy, "slow", chat_id)
            await anyio.sleep(0.05)
            with pytest.raises(ChatBusy):
                await proxy.ask("waits", chat_id)
            upstream.waits.set()
    assert all(parent == f"r{number}" for number, (_, parent, _) in enumerate(upstream.said[1:7], 1))


async def _ask_alone(proxy: Kept, text: str, chat_id: str) -> None:
    request = ChatRequest("qwen", (Message("user", text),), conversation=ConversationRef(chat_id))
    async with aclosing(proxy.conversations.stream(request, ANYBODY)) as deltas:
        async for _ in deltas:
            pass


async def test_an_answer_that_cannot_be_kept_does_not_end_as_if_it_were(tmp_path: Path) -> None:
    upstream = Upstream()
    async with kept(tmp_path, upstream) as proxy:
        chat_id = (await proxy.ask("One")).started.conversation_id
        upstream.waits = anyio.Event()

        async def spoil() -> None:
            while upstream.answers < 2:
                await anyio.sleep(0.005)
            path = tmp_path / "history" / f"{chat_id}.json"
            path.unlink()
            path.mkdir()
            upstream.waits.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(spoil)
            with pytest.raises(QwenProxyError) as caught:
                await proxy.ask("Two", chat_id)
        assert not isinstance(caught.value, StoreError | UnknownChat) or caught.value.status >= 409
        assert not any(isinstance(delta, Finished) for delta in proxy.seen)


async def test_unknown_and_foreign_chats_do_not_exist(tmp_path: Path) -> None:
    upstream = Upstream()
    async with kept(tmp_path, upstream) as proxy:
        chat_id = (await proxy.ask("One")).started.conversation_id
        for name, caller in (("nowhere", ANYBODY), ("../tokens", ANYBODY), (chat_id, OTHER)):
            with pytest.raises(UnknownChat):
                await proxy.ask("Two", name, caller=caller)
            with pytest.raises(UnknownChat):
                await proxy.complete("Two", after=name, caller=caller)
        with pytest.raises(BadRequest):
            await proxy.talk(ChatRequest("qwen", (), conversation=ConversationRef(chat_id)))
    assert len(upstream.calls) == 1


# ---- answers continued by their id ----


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
