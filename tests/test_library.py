"""Over real files and their real index."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

import anyio
import pytest

from qwenproxy.caller import ANYBODY, Caller
from qwenproxy.chat import UpstreamChat
from qwenproxy.clock import SystemClock
from qwenproxy.errors import BadRequest, ChatBusy, ChatDamaged, UnknownChat
from qwenproxy.exports import json_of
from qwenproxy.history import ChatRow, History
from qwenproxy.library import Criteria, Library
from qwenproxy.transcript import Entry, Transcript
from qwenproxy.turn_order import TurnOrder
from tests.attaching import Elsewhere, elsewhere

pytestmark = pytest.mark.anyio

ANN = Caller("key_a", "ann", frozenset({"chat"}))
BEN = Caller("key_b", "ben", frozenset({"chat"}))
DAY_MS = 86_400_000


@dataclass
class StandingClock:
    """Wall time that a test sets; real time for what waits."""

    ms: int = 1_795_262_400_000

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.ms / 1000, UTC)

    def monotonic_s(self) -> float:
        return SystemClock().monotonic_s()


@dataclass
class Shelf:
    history: History
    elsewhere: Elsewhere
    turns: TurnOrder = field(default_factory=lambda: TurnOrder(0.05))
    discarded: list[UpstreamChat] = field(default_factory=list)
    clock: StandingClock = field(default_factory=StandingClock)

    def __post_init__(self) -> None:
        self.library = Library(
            self.history,
            self.turns,
            self.discarded.append,
            {"acc_1", "acc_2"}.__contains__,
            self.clock,
            self.elsewhere.attachments(),
        )

    def keep(self, chat_id: str, *texts: str, owner: str = "key_a", created: int = 0) -> Transcript:
        """A chat with those messages, by turns of the user and the assistant, answered in a twin."""
        entries: dict[str, Entry] = {}
        before = ""
        for number, text in enumerate(texts):
            role = ("user", "assistant")[number % 2]
            upstream = ("up-" + chat_id, f"r{number}") if role == "assistant" else ("", "")
            entries[f"m{number}"] = Entry(
                f"m{number}",
                before,
                role,
                text,
                self.clock.ms // 1000,
                upstream_chat=upstream[0],
                upstream_response=upstream[1],
            )
            before = f"m{number}"
        chat = Transcript(
            chat_id, "Chat " + chat_id, created or self.clock.ms, MappingProxyType(entries), before, owner
        )
        if texts:
            chat = replace(chat, twin=UpstreamChat("up-" + chat_id, "acc_1"))
        self.history.add(chat)
        return chat

    async def ids(self, caller: Caller = ANN) -> list[str]:
        return [row.id for row in await self.library.rows(caller)]


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    shelf = Shelf(History(tmp_path, SystemClock()), elsewhere(tmp_path))
    yield shelf
    shelf.history.close()


async def test_made_listed_renamed_and_read(shelf: Shelf) -> None:
    first = await shelf.library.create(ANN)
    shelf.clock.ms += 1
    second = await shelf.library.create(ANN, "  Мой\nчат\x00 👨‍👩‍👧 ")
    assert await shelf.library.rows(ANN) == (
        ChatRow(second, "Мой чат 👨‍👩‍👧", shelf.clock.ms, shelf.clock.ms, 0, 0),
        ChatRow(first, "New chat", shelf.clock.ms - 1, shelf.clock.ms - 1, 0, 0),
    )
    assert await shelf.library.rename(ANN, first, " Other ") == "Other"
    assert (await shelf.library.read(ANN, first)).name == "Other"
    for name in ("", " \n", "x" * 201):
        with pytest.raises(BadRequest) as caught:
            await shelf.library.rename(ANN, first, name)
        assert caught.value.param == "name"


async def test_what_another_key_made_does_not_exist(shelf: Shelf) -> None:
    shelf.keep("c1", "Hello", "Hi")
    library = shelf.library
    for work in (
        lambda: library.read(BEN, "c1"),
        lambda: library.rename(BEN, "c1", "x"),
        lambda: library.delete(BEN, "c1"),
        lambda: library.fork(BEN, "c1", "m0"),
        lambda: library.edit(BEN, "c1", "m0", "x"),
        lambda: library.move(BEN, "c1", "acc_2"),
        lambda: library.move(BEN, "c1", "acc_9"),
    ):
        with pytest.raises(UnknownChat):
            await work()
    assert await library.cleanup(BEN, Criteria(max_chats=1), dry_run=False) == ()
    assert await library.search(BEN, "Hello", limit=5) == ()
    assert await shelf.ids(BEN) == []
    assert await shelf.ids() == ["c1"]
    assert shelf.discarded == []


async def test_a_deleted_chat_takes_its_twin_with_it(shelf: Shelf) -> None:
    shelf.keep("c1", "Hello", "Hi")
    shelf.keep("c2")
    async with shelf.turns.alone("c1"):  # under a running answer, too
        await shelf.library.delete(ANN, "c1")
    await shelf.library.delete(ANN, "c2")
    assert await shelf.ids() == []
    assert shelf.discarded == [UpstreamChat("up-c1", "acc_1")]
    with pytest.raises(UnknownChat):
        await shelf.library.delete(ANN, "c1")


@pytest.mark.parametrize(
    ("criteria", "gone"),
    [
        (Criteria(older_than_ms=5 * DAY_MS), ["d6", "d8"]),
        (Criteria(older_than_ms=5 * DAY_MS, message_count_less_than=3), ["d6"]),
        (Criteria(user_message_count_less_than=1), ["d0"]),
        (Criteria(user_message_count_less_than=0), []),
        (Criteria(max_chats=3), ["d6", "d8"]),
        (Criteria(max_chats=9), []),
        (Criteria(message_count_less_than=1, max_chats=3), ["d0", "d8"]),
        (Criteria(message_count_less_than=1, older_than_ms=DAY_MS, max_chats=4), ["d8"]),
        (Criteria(), []),
    ],
)
async def test_a_cleanup_deletes_what_meets_all_limits_and_then_the_surplus(
    shelf: Shelf, criteria: Criteria, gone: list[str]
) -> None:
    for days, texts in ((0, ()), (2, ("a", "b")), (4, ("a", "b")), (6, ("a", "b")), (8, tuple("abcd"))):
        shelf.keep(f"d{days}", *texts, created=shelf.clock.ms - days * DAY_MS)
    shelf.keep("foreign", owner="key_b", created=1)
    every = await shelf.ids()
    assert sorted(await shelf.library.cleanup(ANN, criteria, dry_run=True)) == gone
    assert await shelf.ids() == every == ["d0", "d2", "d4", "d6", "d8"]
    assert shelf.discarded == []
    assert sorted(await shelf.library.cleanup(ANN, criteria, dry_run=False)) == gone
    assert await shelf.ids() == [chat_id for chat_id in every if chat_id not in gone]
    assert {chat.id for chat in shelf.discarded} == {"up-" + chat_id for chat_id in gone} - {"up-d0"}
    assert await shelf.ids(BEN) == ["foreign"]


async def test_a_fork_is_a_chat_of_its_own(shelf: Shelf) -> None:
    shelf.keep("c1", "Hello", "Hi", "How?", "So")
    forked = await shelf.library.read(ANN, await shelf.library.fork(ANN, "c1", "m1"))
    assert [entry.text for entry in forked.branch()] == ["Hello", "Hi"]
    assert (forked.owner, forked.twin, forked.untwinned) == ("key_a", None, "forked")
    await shelf.library.edit(ANN, forked.id, "m0", "Bye")
    await shelf.library.delete(ANN, forked.id)
    assert (await shelf.library.read(ANN, "c1")).entry("m0").text == "Hello"
    assert shelf.discarded == []
    with pytest.raises(UnknownChat):
        await shelf.library.fork(ANN, "c1", "m9")


async def test_who_forks_a_chat_from_before_keys_owns_the_fork(shelf: Shelf) -> None:
    shelf.keep("c1", "Hello", owner="")
    owner = Caller("key_o", "owner")
    assert (await shelf.library.read(owner, await shelf.library.fork(owner, "c1", "m0"))).owner == "key_o"


async def test_an_edit_waits_for_the_answer_under_way(shelf: Shelf) -> None:
    shelf.keep("c1", "Hello", "Hi")
    async with shelf.turns.alone("c1"):
        with pytest.raises(ChatBusy):
            await shelf.library.edit(ANN, "c1", "m1", "Ho")
        with pytest.raises(ChatBusy):
            await shelf.library.move(ANN, "c1", "acc_2")
    await shelf.library.edit(ANN, "c1", "m1", [{"type": "text", "text": "Ho"}])
    chat = await shelf.library.read(ANN, "c1")
    assert [entry.text for entry in chat.branch()] == ["Hello", "Ho"]
    assert chat.entry("m1").upstream_response == ""
    with pytest.raises(UnknownChat):
        await shelf.library.edit(ANN, "c1", "m9", "x")


async def test_a_moved_chat_leaves_its_twin(shelf: Shelf) -> None:
    shelf.keep("c1", "Hello", "Hi")
    await shelf.library.move(ANN, "c1", "acc_1")
    assert shelf.discarded == []
    with pytest.raises(BadRequest) as caught:
        await shelf.library.move(ANN, "c1", "acc_9")
    assert caught.value.param == "account"
    for _ in range(2):
        await shelf.library.move(ANN, "c1", "acc_2")
    chat = await shelf.library.read(ANN, "c1")
    assert (chat.account, chat.twin, chat.untwinned) == ("acc_2", None, "moved")
    assert shelf.discarded == [UpstreamChat("up-c1", "acc_1")]


async def test_what_is_imported_is_the_importers(shelf: Shelf) -> None:
    kept = shelf.keep("c1", "Hello", "Hi", owner="key_b")
    chat = await shelf.library.read(ANN, await shelf.library.add_imported(ANN, kept.to_json()))
    assert (chat.owner, chat.twin, chat.name) == ("key_a", None, "Chat c1")
    assert json_of(chat) == {**json_of(kept), "id": chat.id}
    bare = await shelf.library.add_imported(ANYBODY, {"messages": [{"role": "user", "content": "findable"}]})
    (found,) = await shelf.library.search(ANYBODY, "findable", limit=5)
    assert (found.chat_id, found.name) == (bare, "Imported chat")


async def test_one_damaged_chat_leaves_the_others_alone(shelf: Shelf, tmp_path: Path) -> None:
    shelf.keep("c1", "Hello")
    shelf.keep("c2", "Hello")
    path = tmp_path / "history" / "c2.json"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ChatDamaged):
        await shelf.library.delete(ANYBODY, "c2")
    assert await shelf.library.cleanup(ANYBODY, Criteria(older_than_ms=-1), dry_run=False) == ("c1",)
    assert path.stat().st_size == 40


async def test_two_that_clean_up_at_once_delete_each_chat_once(shelf: Shelf) -> None:
    for number in range(12):
        shelf.keep(f"c{number}", "a", "b")
    results: list[tuple[str, ...]] = []

    async def clean_up() -> None:
        results.append(await shelf.library.cleanup(ANN, Criteria(max_chats=2), dry_run=False))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(clean_up)
        tasks.start_soon(clean_up)
    deleted = [chat_id for result in results for chat_id in result]
    assert len(deleted) == len(set(deleted)) == len(shelf.discarded) == 10
