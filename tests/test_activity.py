"""What the live view is told."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime

from qwenproxy.activity import FAILURES_KEPT, Activity
from qwenproxy.errors import AllWaiting, BadRequest, Severed


class StillClock:
    def __init__(self) -> None:
        self.s = 100.0

    def now(self) -> datetime:
        return datetime(2026, 10, 2, 12, tzinfo=UTC)

    def monotonic_s(self) -> float:
        return self.s


def test_requests_are_inside_until_they_are_left() -> None:
    clock = StillClock()
    activity = Activity(clock)
    with activity.begin("qwen") as first:
        clock.s = 101.5
        with suppress(ValueError), activity.begin("qwen3.7-max") as second:
            assert activity.in_flight() == (first, second)
            assert (second.number, second.model, second.began_s) == (first.number + 1, "qwen3.7-max", 101.5)
            assert (second.account_id, second.started_s, second.pieces, second.place) == ("", None, 0, 0)
            raise ValueError("a bug")
        assert activity.in_flight() == (first,)
    assert activity.in_flight() == ()


def test_the_last_failures_are_kept_newest_first() -> None:
    clock = StillClock()
    activity = Activity(clock)
    activity.fail(AllWaiting("all wait", retry_after_s=9))
    for number in range(FAILURES_KEPT - 1):
        activity.fail(Severed(f"broke off {number}"), "a")
    newest, *_, oldest = activity.failures()
    assert (newest.at, newest.code, newest.message, newest.account_id) == (
        clock.now(),
        "upstream_error",
        f"broke off {FAILURES_KEPT - 2}",
        "a",
    )
    assert (oldest.code, oldest.message, oldest.account_id) == ("all_accounts_waiting", "all wait", "")
    activity.fail(Severed("one more"), "a")
    assert len(activity.failures()) == FAILURES_KEPT
    assert oldest not in activity.failures()


def test_what_the_caller_did_is_not_the_owners_affair() -> None:
    activity = Activity(StillClock())
    activity.fail(BadRequest("messages: is empty"), "a")
    assert activity.failures() == ()


def test_answers_are_counted_until_they_are_taken() -> None:
    activity = Activity(StillClock())
    for account_id in ("a", "b", "a"):
        activity.serve(account_id)
    assert activity.take_served() == {"a": 2, "b": 1}
    activity.serve("b")
    assert activity.take_served() == {"b": 1}
    assert activity.take_served() == {}
