from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenproxy.qwen.drift import MOST, Drift

SEEN = sorted((Path(__file__).parent.parent / "wire" / "qwen").glob("*.sse"))
WHOLE = {"response.created": {"chat_id": "c", "parent_id": "p", "response_id": "r", "response_index": "0"}}
USAGE = {"input_tokens": 5, "output_tokens": 1, "total_tokens": 6}


def content(*, timestamp: int | None = 1, **changes: Any) -> dict[str, Any]:
    delta = {"role": "assistant", "content": "Hello", "phase": "answer", "status": "typing", **changes}
    delta = {name: value for name, value in delta.items() if value is not None}
    frame = {"choices": [{"delta": delta}], "response_id": "r", "usage": USAGE}
    return frame if timestamp is None else {**frame, "timestamp": timestamp}


END = content(status="finished", content="", timestamp=None)


def report_of(*frames: Any) -> tuple[str, ...]:
    drift = Drift()
    for frame in frames:
        drift.event(frame if isinstance(frame, str) else json.dumps(frame))
    drift.end()
    return drift.report()


@pytest.mark.parametrize("path", SEEN, ids=lambda path: path.stem)
def test_what_was_recorded_is_no_drift(path: Path) -> None:
    lines = [line.removeprefix("data:") for line in path.read_text("utf-8").splitlines()]
    cut_off = {"severed_stream": ("the stream had no last frame: status finished without timestamp",)}
    assert report_of(*filter(None, map(str.strip, lines))) == cut_off.get(path.stem, ())


@pytest.mark.parametrize(
    ("frames", "finding"),
    [
        ([WHOLE, content(phase="telepathy"), END], 'unknown phase "telepathy"'),
        ([WHOLE, content(status="musing"), END], 'unknown status "musing"'),
        ([WHOLE, content(role="oracle"), END], 'unknown role "oracle"'),
        ([WHOLE, content(phase=["answer"]), END], 'unknown phase "list"'),
        ([WHOLE, content(mood="good"), END], 'unknown field "mood" in delta'),
        ([WHOLE, content(extra={"smell": 1}), END], 'unknown field "smell" in extra'),
        ([WHOLE, content(phase=None), END], "delta has no phase"),
        ([WHOLE, {**content(), "price": 3}, END], 'unknown field "price" in a frame'),
        ([WHOLE, {**content(), "usage": {"joules": 3}}, END], 'unknown field "joules" in usage'),
        ([WHOLE, {**content(), "response_id": ""}, END], "a content frame has no response_id"),
        ([WHOLE, {"response.info": {"action": "dance"}}, content(), END], 'unknown action "dance"'),
        ([WHOLE, {"choices": []}, content(), END], "a frame has choices without a choice"),
        (
            [{"response.created": {"chat_id": "c", "parent_id": "p"}}, END],
            "response.created has no response_id",
        ),
        ([content(), END], "the stream did not begin with response.created"),
        ([WHOLE, content()], "the stream had no last frame: status finished without timestamp"),
        ([WHOLE, "{broken", content(), END], "an event of the stream is no JSON object"),
        ([WHOLE, {"error": {"code": "brand_new", "details": "x"}}], 'unknown code "brand_new" of a refusal'),
    ],
)
def test_each_difference_is_named(frames: list[Any], finding: str) -> None:
    assert report_of(*frames, *frames[1:]) == (finding,), "once, however often it comes"


def test_usage_that_never_comes_is_told() -> None:
    frames = [{**frame, "usage": {}} for frame in (content(), END)]
    assert report_of(WHOLE, *frames) == ("no frame of the stream had usage",)


@pytest.mark.parametrize("frame", ["[DONE]", {"done": True}, {"response.stopped": {"response_id": "r"}}])
def test_every_known_end_counts(frame: object) -> None:
    assert report_of(WHOLE, content(), frame) == ()


def test_heartbeats_and_empty_events_say_nothing() -> None:
    beats = [{"choices": [{"delta": {"phase": "KeepAlive"}}]}, {"response.info": {"action": "keep_alive"}}]
    assert report_of(WHOLE, *beats, " ", content(), END) == ()
    drift = Drift()
    drift.head("GET /", {"x-actual-status-code": "200"})
    assert drift.report() == ()


@pytest.mark.parametrize(
    "code", ["RateLimited", "Unauthorized", "Bad_Request", "CHAT_NOT_FOUND", "invalid_input"]
)
def test_known_codes_are_no_drift(code: str) -> None:
    drift = Drift()
    drift.refusal({"success": False, "data": {"code": code, "details": "eyJhbGciOi secret words"}})
    assert drift.report() == ()


def test_heads_users_and_models_are_compared_too() -> None:
    drift = Drift()
    drift.head("GET /api/v2/models/", {"content-type": "application/json"})
    drift.user({"id": "1", "email": "a@example.com"})
    meta = {"capabilities": {}, "max_context_length": 1}
    drift.models({"data": [{"id": "m", "name": "M", "info": {"meta": meta, "is_active": True}}]})
    drift.refusal({"code": "brand_new"})
    assert drift.report() == (
        "the answer to GET /api/v2/models/ has no header x-actual-status-code",
        "the user has no role",
        "a model's meta has no chat_type",
        'unknown code "brand_new" of a refusal',
    )


def test_no_text_of_an_answer_is_told_and_the_report_is_bounded() -> None:
    names = {f"{number}-{'x' * 100}": "a secret" for number in range(200)}
    told = report_of(WHOLE, {**content(), **names}, END)
    assert len(told) == MOST
    assert all(len(line) < 80 and "secret" not in line for line in told)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda c: (
            st.lists(c)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "choices",
                        "delta",
                        "phase",
                        "response.created",
                        "response.info",
                        "error",
                        "code",
                        "usage",
                        "extra",
                        "data",
                        "info",
                        "meta",
                    ]
                ),
                c,
            )
        ),
    )
)
def test_nothing_that_may_come_breaks_it(value: Any) -> None:
    drift = Drift()
    for frame in (value, {"choices": [{"delta": value}]}, {"choices": value}, {"error": value}):
        drift.event(json.dumps(frame))
    drift.refusal(value)
    drift.user(value)
    drift.models(value)
    drift.models({"data": value})
    assert len(drift.report()) <= MOST
