"""Talking in chats whose files are the truth."""

from __future__ import annotations

import json
from base64 import b64encode
from contextlib import aclosing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from qwenproxy import gateway as gateway_module
from qwenproxy.addresses import file_address
from qwenproxy.caller import ANYBODY
from qwenproxy.chat import (
    Attachment,
    ChatRequest,
    ConversationRef,
    Finished,
    Message,
    Source,
    Text,
    Thinking,
    UpstreamChat,
)
from qwenproxy.clock import SystemClock
from qwenproxy.errors import (
    BadRequest,
    ChatBusy,
    ChatDamaged,
    ChatGone,
    ContentBlocked,
    LimitReached,
    NotFetched,
    QwenProxyError,
    Severed,
    UnknownChat,
    UnknownFile,
    UnknownModel,
)
from qwenproxy.ledger import Ledger
from qwenproxy.library import Library
from qwenproxy.turn_order import TurnOrder
from tests.attaching import PNG, stored
from tests.talking import OTHER, Kept, Upstream, kept
from tests.test_gateway import late

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_module, "RETRY_PAUSES_S", (0.0, 0.0, 0.0))


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
        proxy.elsewhere.web["https://x/a.png"] = PNG
        picture = Message("user", "What?", (Attachment("image", "https://x/a.png"),))
        system = Message("system", "Be brief")
        reply = await proxy.talk(ChatRequest("qwen-max", (system, picture), conversation=ConversationRef()))
        first, question, answer = proxy.chat(reply.started.conversation_id).branch()
        (file,) = proxy.elsewhere.store.rows(ANYBODY)
    assert (first.role, first.text) == ("system", "Be brief")
    assert question.content == [
        {"type": "text", "text": "What?"},
        {"type": "image", "image": file_address(file.id)},
    ]
    assert (answer.reasoning, answer.sources) == ("Hm", ({"number": 1, "url": "https://x", "title": "X"},))
    assert (answer.account, answer.model, answer.upstream_chat) == ("a0", "qwen3.8-max", "chat-1")
    assert answer.info
    (_, _, turn) = upstream.calls[0]
    assert "Be brief" in turn.prompt
    assert [(each.name, each.kind) for each in turn.attachments] == [("a.png", "image")]


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
            with pytest.raises(ChatDamaged):
                await proxy.ask("Two", chat_id)
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


# ---- pictures and documents of earlier messages ----

DATA = f"data:image/png;base64,{b64encode(PNG + b'inside').decode()}"
WEB = "https://x/a.png"
GONE = "[A picture that stood here is no longer to be had.]"


def _put_into(folder: Path, chat_id: str, number: int, *addresses: str, upstream: bool = True) -> None:
    """As somebody might who edits the file by hand."""
    path = folder / "history" / f"{chat_id}.json"
    chat = json.loads(path.read_text())
    parts: list[dict[str, str]] = [{"type": "image", "image": url} for url in addresses]
    for message in () if upstream else chat["messages"]:
        message.pop("upstream", None)
    chat["messages"][number]["content"] = [{"type": "text", "text": "Look"}, *parts]
    path.write_text(json.dumps(chat))


async def test_what_is_carried_is_kept_as_a_file_of_ours_and_asked_the_same_again(tmp_path: Path) -> None:
    upstream = Upstream()
    async with kept(tmp_path, upstream) as proxy:
        question = Message("user", "What?", (Attachment("image", DATA),))
        system = Message("system", "Like this", (Attachment("image", DATA),))
        request = ChatRequest("qwen", (system, question), conversation=ConversationRef())
        chat_id = (await proxy.talk(request)).started.conversation_id
        (file,) = proxy.elsewhere.store.rows(ANYBODY)
        assert proxy.chat(chat_id).branch()[0].content[1] == {"type": "image", "image": file_address(file.id)}
        upstream.ends.append(ContentBlocked("no"))
        for _ in range(2):
            with suppress(QwenProxyError):
                await proxy.talk(replace(request, conversation=ConversationRef(chat_id)))
        assert len(proxy.texts(chat_id)) == 5
    assert "base64" not in (tmp_path / "history" / f"{chat_id}.json").read_text()


async def test_a_chat_whose_pictures_are_elsewhere_is_told_with_them_and_has_them_then(
    tmp_path: Path,
) -> None:
    upstream = Upstream()
    async with kept(tmp_path, upstream) as proxy:
        chat_id = (await proxy.ask("One")).started.conversation_id
        await proxy.ask("Two", chat_id)
        _put_into(tmp_path, chat_id, 0, WEB, DATA, "https://x/gone.png")
        proxy.elsewhere.web[WEB] = PNG
        # In its mirror nothing is told again, so that nobody waits for the web.
        await proxy.ask("Three", chat_id)
        assert proxy.elsewhere.fetched == []
        _put_into(tmp_path, chat_id, 2, WEB, upstream=False)
        assert (await proxy.ask("Four", chat_id)).started.rebuilt == "edited"
        assert sorted(proxy.elsewhere.fetched) == [WEB, "https://x/gone.png"]
        first, _, second, *_ = proxy.chat(chat_id).branch()
        ours = {file.name: file_address(file.id) for file in proxy.elsewhere.store.rows(ANYBODY)}
        await proxy.ask("Five", chat_id)
        assert len(proxy.elsewhere.fetched) == 2
    kept_at = [part["image"] for part in (*first.content[1:], *second.content[1:])]
    assert kept_at == [ours["a.png"], ours["image.png"], "https://x/gone.png", ours["a.png"]]
    told = upstream.calls[-2][2]
    assert [each.name for each in told.attachments] == ["a.png", "image.png"]
    assert [told.prompt.count(f"attached: {each}") for each in ("a.png, image.png", "a.png]")] == [1, 1]
    assert f"Look\n{GONE}" in told.prompt


async def test_a_file_that_is_gone_ends_no_conversation(tmp_path: Path) -> None:
    upstream = Upstream()
    async with kept(tmp_path, upstream) as proxy:
        file = stored(proxy.elsewhere.store, PNG, "a.png")
        look = Message("user", "Look", (Attachment("image", file_address(file.id)),))
        reply = await proxy.talk(ChatRequest("qwen", (look,), conversation=ConversationRef()))
        answer = await proxy.talk(ChatRequest("qwen", (look,)))
        proxy.elsewhere.store.remove(file.id, ANYBODY)
        proxy.change_account("a0", paused=True)
        await proxy.ask("Two", reply.started.conversation_id)
        assert f"Look\n{GONE}" in upstream.said[-1][2]
        await proxy.complete("Three", after=f"chatcmpl-{answer.started.response_id}")
        assert f"Look\n{GONE}" in upstream.said[-1][2]
        with pytest.raises(UnknownFile) as caught:
            await proxy.talk(ChatRequest("qwen", (look,)))
        assert caught.value.status == 404


async def test_of_a_conversation_that_goes_on_only_the_new_files_are_taken(tmp_path: Path) -> None:
    upstream = Upstream()
    async with kept(tmp_path, upstream) as proxy:
        proxy.elsewhere.web[WEB] = PNG
        first = (await proxy.ask("One")).started
        old = Message("user", "Old", (Attachment("image", "https://x/old.png"),))
        new = Message("user", "New", (Attachment("image", WEB),))
        for after in (first.conversation_id, first.response_id):
            ref = ConversationRef(after, is_chat=False)
            await proxy.talk(ChatRequest("qwen", (old, new), conversation=ref))
        alone = (await proxy.complete("One")).started.response_id
        await proxy.talk(ChatRequest("qwen", (old, new), conversation=ConversationRef(alone, is_chat=False)))
        assert set(proxy.elsewhere.fetched) == {WEB}
        assert [each.name for each in upstream.calls[-1][2].attachments] == ["a.png"]
        with pytest.raises(NotFetched):
            await proxy.talk(ChatRequest("qwen", (old, new)))


async def test_messages_that_hold_files_themselves_are_edited_into_files(tmp_path: Path) -> None:
    async with kept(tmp_path, Upstream()) as proxy:
        library = Library(
            proxy.history,
            TurnOrder(5),
            proxy.janitor.discard,
            bool,
            SystemClock(),
            proxy.elsewhere.attachments(),
        )
        content: list[dict[str, Any]] = [{"type": "image", "image": DATA}, {"type": "image", "image": WEB}]
        chat_id = await library.add_imported(ANYBODY, {"messages": [{"role": "user", "content": content}]})
        (entry,) = proxy.chat(chat_id).branch()
        (file,) = proxy.elsewhere.store.rows(ANYBODY)
        ours = [{"type": "image", "image": file_address(file.id)}, {"type": "image", "image": WEB}]
        assert entry.content == ours
        await library.edit(ANYBODY, chat_id, entry.id, [{"type": "text", "text": "x"}, *content])
        assert proxy.chat(chat_id).branch()[0].content[1:] == ours
        assert proxy.elsewhere.fetched == []
