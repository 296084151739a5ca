"""Which upstream chats are ours."""

from __future__ import annotations

from pathlib import Path

from qwenproxy.chat import UpstreamChat
from qwenproxy.ledger import Ledger

ONE, TWO, THREE = (UpstreamChat(f"chat-{n}", "a") for n in range(3))


def test_what_is_not_gone_is_known_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    ledger = Ledger(path)
    for chat in (ONE, TWO, THREE):
        ledger.record(chat, "made")
    ledger.record(ONE, "gone")
    ledger.record(TWO, "kept")
    again = Ledger(path)
    assert again.left_over() == (THREE,)
    assert path.read_text().count("\n") == 2


def test_a_torn_line_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    Ledger(path).record(ONE, "made")
    with path.open("ab") as file:
        file.write(b'{"chat": "\xff')
    assert Ledger(path).left_over() == (ONE,)


def test_lines_of_another_kind_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text('[]\n{"chat": "x"}\n{"chat": "x", "account": "a", "event": "sold"}\n')
    assert Ledger(path).left_over() == ()
