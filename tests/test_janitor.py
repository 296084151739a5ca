"""Chats go again, however often the service says no."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from qwenproxy import janitor as janitor_module
from qwenproxy.chat import UpstreamChat
from qwenproxy.errors import AccountGone, ChatBusy, ChatGone, QwenProxyError, Unreachable
from qwenproxy.janitor import TITLE, Janitor
from qwenproxy.ledger import Ledger

pytestmark = pytest.mark.anyio


class ScriptedChats:
    def __init__(self, *ends: QwenProxyError) -> None:
        self.ends = list(ends)
        self.deleted: list[str] = []
        self.named: dict[str, str] = {}

    async def delete(self, account_id: str, chat_id: str) -> None:
        if self.ends:
            raise self.ends.pop(0)
        self.deleted.append(chat_id)

    async def rename(self, account_id: str, chat_id: str, title: str) -> None:
        self.named[chat_id] = title


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(janitor_module, "PAUSES_S", (0.0, 0.0, 0.0))
    monkeypatch.setattr(janitor_module, "LEFT_OVER_PACE_S", 0.0)


async def new() -> str:
    return "chat-1"


@pytest.mark.parametrize("ends", [[], [ChatBusy("busy")], [ChatBusy("busy"), Unreachable("net")]])
async def test_a_chat_is_deleted_as_soon_as_it_can_be(tmp_path: Path, ends: list[QwenProxyError]) -> None:
    chats, ledger = ScriptedChats(*ends), Ledger(tmp_path / "chats.jsonl")
    janitor = Janitor(ledger, chats, keep=False)
    async with janitor.at_work():
        janitor.done(await janitor.fresh("a", new))
    assert chats.deleted == ["chat-1"]
    assert ledger.left_over() == ()


@pytest.mark.parametrize("end", [ChatGone("gone"), AccountGone("deleted")])
async def test_a_chat_that_is_gone_already_is_forgotten(tmp_path: Path, end: QwenProxyError) -> None:
    chats, ledger = ScriptedChats(end), Ledger(tmp_path / "chats.jsonl")
    janitor = Janitor(ledger, chats, keep=False)
    async with janitor.at_work():
        janitor.done(await janitor.fresh("a", new))
    assert chats.deleted == []
    assert ledger.left_over() == ()


async def test_a_chat_that_could_not_go_is_left_for_the_next_start(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "chats.jsonl")
    janitor = Janitor(ledger, ScriptedChats(*[Unreachable("net")] * 3), keep=False)
    async with janitor.at_work():
        janitor.done(await janitor.fresh("a", new))
    assert ledger.left_over() == (UpstreamChat("chat-1", "a"),)
    chats = ScriptedChats()
    janitor = Janitor(Ledger(tmp_path / "chats.jsonl"), chats, keep=False)
    async with janitor.at_work():
        await janitor.clear_left_over("b")
        await janitor.clear_left_over("a")
    assert chats.deleted == ["chat-1"]
    assert Ledger(tmp_path / "chats.jsonl").left_over() == ()


async def test_a_chat_that_is_answered_in_is_not_left_over(tmp_path: Path) -> None:
    """An account's page may come up, and its chats be looked through, while others and it itself answer."""
    chats = ScriptedChats()
    janitor = Janitor(Ledger(tmp_path / "chats.jsonl"), chats, keep=False)
    async with janitor.at_work():
        chat = await janitor.fresh("a", new)
        await janitor.clear_left_over("a")
        janitor.hold(chat)
        await janitor.clear_left_over("a")
        assert janitor.holds(chat)
    assert chats.deleted == []


async def test_kept_chats_get_their_name_and_are_never_deleted(tmp_path: Path) -> None:
    chats = ScriptedChats()
    janitor = Janitor(Ledger(tmp_path / "chats.jsonl"), chats, keep=True)
    async with janitor.at_work():
        janitor.done(await janitor.fresh("a", new))
    assert chats.named == {"chat-1": TITLE}
    assert Ledger(tmp_path / "chats.jsonl").left_over() == ()


async def test_a_failure_to_make_a_chat_reaches_who_asked(tmp_path: Path) -> None:
    async def fail() -> str:
        raise Unreachable("net")

    async def stumble() -> str:
        raise KeyError("bug")

    janitor = Janitor(Ledger(tmp_path / "chats.jsonl"), ScriptedChats(), keep=False)
    async with janitor.at_work():
        with pytest.raises(Unreachable):
            await janitor.fresh("a", fail)
        with pytest.raises(QwenProxyError):
            await janitor.fresh("a", stumble)
        assert (await janitor.fresh("a", new)).id == "chat-1"


async def test_a_disk_that_fails_stops_no_answer(tmp_path: Path) -> None:
    chats = ScriptedChats()
    janitor = Janitor(Ledger(tmp_path / "sub" / "chats.jsonl"), chats, keep=False)
    (tmp_path / "sub" / "chats.jsonl").unlink()
    (tmp_path / "sub").rmdir()
    async with janitor.at_work():
        janitor.done(await janitor.fresh("a", new))
    assert chats.deleted == ["chat-1"]


async def test_leaving_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(janitor_module, "FAREWELL_S", 0.05)
    monkeypatch.setattr(janitor_module, "PAUSES_S", (60.0,))
    ledger = Ledger(tmp_path / "chats.jsonl")
    janitor = Janitor(ledger, ScriptedChats(), keep=False)
    with anyio.fail_after(5):
        async with janitor.at_work():
            janitor.done(await janitor.fresh("a", new))
    assert len(ledger.left_over()) == 1


async def test_a_chat_that_is_held_stays_until_it_is_discarded(tmp_path: Path) -> None:
    chats, ledger = ScriptedChats(), Ledger(tmp_path / "chats.jsonl")
    chat = UpstreamChat("chat-1", "a")
    janitor = Janitor(ledger, chats, keep=True)
    async with janitor.at_work():
        assert not janitor.holds(chat)
        janitor.hold(await janitor.fresh("a", new))
        assert janitor.holds(chat)
        assert Ledger(tmp_path / "chats.jsonl").held() == (chat,) == janitor.held()
        assert ledger.left_over() == ()
        janitor.discard(chat)
        assert not janitor.holds(chat)
        assert Ledger(tmp_path / "chats.jsonl").left_over() == (
            chat,
        )  # before it is done: a kill forgets nothing
    assert (chats.deleted, chats.named) == (["chat-1"], {})


async def test_a_chat_that_we_did_not_make_is_never_touched(tmp_path: Path) -> None:
    chats = ScriptedChats()
    janitor = Janitor(Ledger(tmp_path / "chats.jsonl"), chats, keep=False)
    async with janitor.at_work():
        theirs = UpstreamChat("theirs", "a")
        janitor.hold(theirs)
        assert not janitor.holds(theirs)
        janitor.discard(theirs)
        janitor.done(theirs)
    assert chats.deleted == []
