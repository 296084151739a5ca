"""What the stand-in remembers of each request: whose token, cookie and chat came, and what struck it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.serve import Standin
from tests.standin.visitor import Visitor, question


@pytest.fixture
def one(standin: Standin) -> Iterator[Visitor]:
    with Visitor(standin, "one@example.com") as visitor:
        yield visitor


@pytest.fixture
def two(standin: Standin) -> Iterator[Visitor]:
    with Visitor(standin, "two@example.com") as visitor:
        yield visitor


def whose(standin: Standin, path: str) -> list[tuple[object, ...]]:
    names = ("bearer_of", "cookie_of", "chat_of", "one_sign_in")
    return [tuple(each[name] for name in names) for each in standin.received(path)]


@pytest.mark.parametrize("standin", ["B", "C"], indirect=True)
def test_token_cookie_and_chat_are_told_apart(standin: Standin, one: Visitor, two: Visitor) -> None:
    chat, other = one.new_chat(), two.new_chat()
    one.ask("{{standin: say text=hi}}", chat)
    one.ask("{{standin: say text=hi}}", other)
    one.call("DELETE", f"/api/v2/chats/{chat}")
    one.call(
        "POST",
        f"/api/v2/chat/completions?chat_id={chat}",
        question(chat, "x"),
        Authorization=f"Bearer {two.token}",
    )
    mine, foreign, stolen = whose(standin, "/api/v2/chat/completions")
    assert mine == ("one@example.com", "one@example.com", "one@example.com", True)
    assert foreign == ("one@example.com", "one@example.com", "two@example.com", True)
    assert stolen == ("two@example.com", "one@example.com", None, False)
    (deleted,) = whose(standin, f"/api/v2/chats/{chat}")
    assert deleted == mine


def test_a_token_of_another_sign_in_of_the_same_account_is_seen(standin: Standin, one: Visitor) -> None:
    with Visitor(standin, "one@example.com") as again:
        one.token = again.token
        one.new_chat()
    assert whose(standin, "/api/v2/chats/new") == [("one@example.com", "one@example.com", None, False)]


def test_requests_are_numbered_and_tell_what_struck_them(
    standin: Standin, one: Visitor, two: Visitor
) -> None:
    chat = one.new_chat()
    standin.fault("rate_limited", account="one@example.com")
    standin.fault("busy", account="two@example.com", on="new")
    one.ask("hi", chat)
    two.call("POST", "/api/v2/chats/new", {})
    two.call("GET", "/api/v2/chats/?page=1")
    requests = standin.received()
    numbers = [each["number"] for each in requests]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    struck = {(each["bearer_of"], each["path"].partition("?")[0]): each["struck"] for each in requests}
    assert struck["one@example.com", "/api/v2/chat/completions"] == ["rate_limited"]
    assert struck["two@example.com", "/api/v2/chats/new"] == ["busy"]
    assert struck["two@example.com", "/api/v2/chats/"] == []


def test_a_rule_of_the_service_that_struck_is_told_too(standin: Standin, one: Visitor) -> None:
    with Visitor(standin, "cold@example.com", booted=False) as cold:
        cold.call("POST", "/api/v2/chats/new", {})
    chat = one.new_chat()
    one.http.cookies.clear()
    one.ask("hi", chat)
    met = {(each["account"], *each["struck"]) for each in standin.received("/api/v2/chat", "POST")}
    assert met == {("cold@example.com", "cold"), ("one@example.com",), ("one@example.com", "bare")}


def test_a_sign_in_that_is_gone_is_still_known(standin: Standin, one: Visitor) -> None:
    standin.revoke("one@example.com")
    one.call("POST", "/api/v2/chats/new", {})
    assert whose(standin, "/api/v2/chats/new") == [("one@example.com", "one@example.com", None, True)]


def test_the_records_hold_no_secret(standin: Standin, one: Visitor) -> None:
    one.ask("hi")
    told = str(standin.received())
    assert one.token not in told
    assert all(value not in told for value in one.http.cookies.values())
