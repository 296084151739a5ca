"""The proof of `tests/proof/conversation.py`, small, and that its judge finds what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.proof.conversation import PEOPLE, Message, judged, prove
from tests.serve import Standin, running_proxy

KNOWN = [Message("user", "1"), Message("assistant", "a"), Message("user", "2"), Message("assistant", "b")]
TOLD = {"account": "acc_1"}


@pytest.mark.browser
@pytest.mark.timeout(240)
def test_the_model_sees_what_the_client_knows_whatever_becomes_of_the_accounts(
    tmp_path: Path, standin: Standin
) -> None:
    with running_proxy(tmp_path, standin, PEOPLE, stay_up=1) as proxy:
        talk = prove(proxy, standin, tmp_path, turns=12, seed=5, by_command=False)
    assert talk.wrong == []
    assert talk.counts["told natively"] >= 2
    assert talk.counts["went on from a partial answer"] == 1
    assert {name for name in talk.counts if name.startswith("told anew")} >= {
        "told anew: account_waiting",
        "told anew: twin_gone",
    }


def turn(said: str, content: str, parent: str, chat: str = "c") -> dict[str, Any]:
    row = {"said": said, "content": content, "parent": parent, "chat": chat, "response": f"{chat}{said}"}
    return {**row, "account": "one@example.com", "ending": "finished"}


def verdict(turns: list[dict[str, Any]], **told: str) -> list[str]:
    return judged("it", turns, turns[-1], KNOWN, {**TOLD, **told}, {"acc_1": "one@example.com"})


def test_the_judge_takes_what_is_right_and_nothing_else() -> None:
    whole = [turn("a", "1", ""), turn("b", "2", "ca")]
    assert verdict(whole) == []
    assert verdict(whole, rebuilt="twin_gone"), "it was not told anew"
    assert verdict(whole, account="acc_2"), "somebody else answered"
    assert verdict([turn("a", "1", ""), turn("b", "2", "")], rebuilt="x"), "the beginning is missing"
    assert verdict([turn("a", "one", ""), turn("b", "2", "ca")]), "other words"
    doubled = [turn("a", "1", ""), turn("x", "2", "ca"), turn("b", "2", "cx")]
    assert verdict(doubled), "asked twice"
