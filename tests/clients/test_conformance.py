"""How the conformance suite's results are judged."""

from __future__ import annotations

from typing import Any

import pytest

from tests.clients.conformance import KNOWN, MODELS, judge, known


def result(name: str, status: str) -> dict[str, Any]:
    return {"id": name, "status": status, "errors": ["HTTP 500"] if status == "failed" else []}


FOUND = {"openai-chat": [result("one", "passed"), result("two", "failed"), result("three", "skipped")]}


def test_a_known_failure_is_told_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    judge(FOUND, known("# why\n\nopenai-chat: two: it is so\n"))
    told = capsys.readouterr().out
    assert "known: it is so" in told
    assert "HTTP 500" in told


def test_what_is_not_known_to_fail_is_an_error() -> None:
    with pytest.raises(SystemExit, match="openai-chat: two fails"):
        judge(FOUND, {})


def test_what_is_known_to_fail_and_does_not_is_an_error() -> None:
    expected = known("openai-chat: two: it is so\nopenai-chat: one: it is so\nanthropic: two: gone\n")
    with pytest.raises(SystemExit) as caught:
        judge(FOUND, expected)
    assert str(caught.value) == (
        "openai-chat: one does not fail any more\nanthropic: two does not fail any more"
    )


def test_the_list_has_a_reason_for_every_failure() -> None:
    listed = known(KNOWN.read_text("utf-8"))
    assert {api for api, _ in listed} <= set(MODELS)
    assert all(len(why) > 10 for why in listed.values())
