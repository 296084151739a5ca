"""The proof of `tests/proof/chat_kills.py`, small, and that its judge finds what is wrong."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tests.proof.chat_kills import Talk, Turn, prove, torn
from tests.serve import Standin


@pytest.mark.browser
@pytest.mark.timeout(240)
def test_what_was_answered_is_there_once_after_a_kill(tmp_path: Path, standin: Standin) -> None:
    proof = prove(tmp_path, standin, kills=3, seed=7)
    assert proof.wrong == []
    assert proof.kills == 3
    assert proof.counts["answered"] >= 3
    assert proof.counts["processes left behind"] == 0


def row(role: str, content: str, *, current: bool = True, partial: str = "") -> dict[str, Any]:
    return {"role": role, "content": content, "current": current, "partial": partial}


def verdict(*rows: dict[str, Any]) -> list[str]:
    return Talk(0, random.Random(), "chat", [Turn("1", "a", "x"), Turn("2")]).judged(rows)


def test_the_judge_takes_what_is_right_and_nothing_else(tmp_path: Path) -> None:
    done = (row("user", "1"), row("assistant", "a"))
    assert verdict(*done) == []
    assert verdict(*done, row("user", "2")) == []
    assert verdict(*done, row("user", "2"), row("assistant", "b", partial="interrupted")) == []
    assert verdict(row("user", "1")), "an answer is lost"
    assert verdict(*done, row("user", "2"), row("user", "2", current=False)), "asked twice"
    assert verdict(*done, row("assistant", "a", current=False)), "answered twice"
    assert verdict(*done, row("user", "3")), "nobody asked this"
    (tmp_path / "a.json").write_text('{"id": ')
    assert torn(tmp_path)
