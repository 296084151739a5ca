from __future__ import annotations

import pytest

from qwenproxy.caller import ANYBODY, Caller

MANAGER = Caller("key_1", "mine")
GUEST = Caller("key_2", "theirs", frozenset({"chat"}))


@pytest.mark.parametrize(
    ("caller", "seen"),
    [(ANYBODY, ["", "key_1", "key_2"]), (MANAGER, ["", "key_1"]), (GUEST, ["key_2"])],
)
def test_what_exists_for_whom(caller: Caller, seen: list[str]) -> None:
    assert [mark for mark in ("", "key_1", "key_2") if caller.sees(mark)] == seen
