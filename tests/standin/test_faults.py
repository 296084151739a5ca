"""Every fault of the bank, seen from outside."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest

from qwenproxy.standin.faults import FILES, NAMES, REFUSALS, SPOILERS, VIDEOS
from tests.serve import Standin, until
from tests.standin.visitor import Visitor, deltas, new_body, parsed, text_of

SAY = '{{standin: say text="one two three four five six seven eight nine ten"}}'
WORDS = "one two three four five six seven eight nine ten"

CODES: dict[str, tuple[str, str]] = {
    "rate_limited": ("RateLimited", "429"),
    "parallel_limited": ("ParallelLimited", "429"),
    "quota_limited": ("quotaLimited", "429"),
    "too_many_requests": ("Too_Many_Requests", "429"),
    "unauthorized": ("Unauthorized", "401"),
    "token_expired": ("unauthorized", "401"),
    "invalid_token": ("Invalid token", "401"),
    "busy": ("Bad_Request", "400"),
    "chat_gone": ("CHAT_NOT_FOUND", "404"),
    "chat_gone_text": ("Bad_Request", "400"),
    "parent_gone": ("PARENT_NOT_FOUND", "404"),
    "parent_gone_text": ("Bad_Request", "400"),
    "model_gone": ("Not_Found", "404"),
    "file_gone": ("Bad_Request", "400"),
    "bad_request": ("Bad_Request", "400"),
    "validation": ("RequestValidationError", "400"),
    "validation_list": ("RequestValidationError", "400"),
    "invalid_header": ("Invalid request header", "400"),
    "invalid_input_json": ("invalid_input", "400"),
    "too_many_messages": ("Bad_Request", "400"),
    "context_too_long": ("context_length_exceeded", "400"),
    "internal_error_json": ("internal_error", "400"),
    "account_pending": ("ACCOUNT_PENDING", "403"),
    "no_permission": ("Forbidden", "403"),
    "inspected": ("data_inspection_failed", "400"),
    "unknown_code": ("Something_New", "400"),
}
WIRE: dict[str, tuple[int, str, str]] = {
    "rate_limited_legacy": (200, "application/json", '"num":7'),
    "unauthorized_401": (401, "application/json", "Unauthorized"),
    "detail_401": (401, "application/json", '"detail"'),
    "busy_code": (200, "application/json", '"code":"CHAT_IN_PROGRESS"'),
    "access_prohibited": (403, "application/json", "access_prohibited"),
    "punish": (200, "application/json;charset=utf-8", "/_____tmd_____/punish?"),
    "punish_busy": (200, "application/json;charset=utf-8", '"data":{}'),
    "waf": (200, "text/html; charset=utf-8", "Access Verification"),
    "http_429": (429, "application/json", "Too Many Requests"),
    "gateway": (503, "text/html; charset=utf-8", "nginx"),
    "login_redirect": (302, "", ""),
    "html": (200, "text/html; charset=utf-8", "unexpected page"),
    "not_json": (200, "application/json", '{"success": tru'),
    "raw_json": (200, "application/json", "{}"),
}
ERRORS: dict[str, str] = {
    "rate_limited_stream": "RateLimited",
    "parallel_limited_stream": "ParallelLimited",
    "quota_limited_stream": "quotaLimited",
    "quota_limit": "quota_limit",
    "too_many_requests_stream": "Too_Many_Requests",
    "internal_error": "internal_error",
    "allocated_quota": "internal_error",
    "rate_increased": "internal_error",
    "inspected_input": "data_inspection_failed",
    "inspected_output": "data_inspection_failed",
    "inspected_image": "data_inspection_failed",
    "invalid_input": "invalid_input",
    "token_expired_stream": "unauthorized",
    "unauthorized_stream": "Unauthorized",
    "unknown_error_stream": "something_new",
}
WHOLE = (
    "keep_alive",
    "second_response",
    "two_created",
    "odd_cuts",
    "line_ends",
    "intermediate",
    "done_marker",
    "done_text",
    "no_terminal",
)
"""Spoilers that leave the text whole."""


@pytest.fixture
def visitor(standin: Standin) -> Any:
    standin.options(pieces_per_s=2000)
    with Visitor(standin) as found:
        yield found


def marked(name: str, parameters: str = "") -> str:
    return f"{SAY}{{{{standin: {name} {parameters}}}}}"


@pytest.mark.parametrize("name", sorted(CODES))
def test_a_refusal_is_told_by_its_code(visitor: Visitor, name: str) -> None:
    answer = visitor.ask(marked(name))
    assert answer.status_code == 200
    assert (answer.json()["data"]["code"], answer.headers["x-actual-status-code"]) == CODES[name]
    assert answer.json()["success"] is False


@pytest.mark.parametrize("name", sorted(WIRE))
def test_a_refusal_on_the_wire(visitor: Visitor, name: str) -> None:
    status, media, text = WIRE[name]
    answer = visitor.ask(marked(name))
    assert answer.status_code == status
    assert answer.headers.get("content-type", "") == media
    assert text in answer.text


@pytest.mark.parametrize("name", sorted(ERRORS))
@pytest.mark.parametrize("after", [-1, 0, 2])
def test_an_error_in_the_stream_comes_after_as_many_frames_as_asked(
    visitor: Visitor, name: str, after: int
) -> None:
    frames = visitor.frames(marked(name, f"after={after}"))
    assert frames[-1]["error"]["code"] == ERRORS[name]
    assert len(frames) == after + 2


def test_the_waiting_time_of_a_limit_is_told(visitor: Visitor) -> None:
    assert visitor.ask(marked("rate_limited", "num=7")).json()["data"]["num"] == 7
    assert "num" not in visitor.ask(marked("rate_limited", "num=0")).json()["data"]
    assert visitor.ask(marked("http_429", "retry_after=12")).headers["retry-after"] == "12"


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("rate_limited_line", {"code": "RateLimited", "num": 7}),
        ("rate_limited_text", {"error": "RateLimited: Guest limit exceeded"}),
        ("error_text", {"error": "Internal error!"}),
    ],
)
def test_errors_of_other_shapes(visitor: Visitor, name: str, last: dict[str, Any]) -> None:
    assert visitor.frames(marked(name))[-1].items() >= last.items()


def test_an_error_can_be_a_status(visitor: Visitor) -> None:
    last = list(deltas(visitor.frames(marked("error_status"))))[-1]
    assert last["status"] == "error"
    assert last["extra"]["error"]


@pytest.mark.parametrize(("name", "frames"), [("empty", 0), ("only_created", 1), ("eof", 4)])
def test_an_answer_that_just_ends(visitor: Visitor, name: str, frames: int) -> None:
    assert len(visitor.frames(marked(name))) == frames


def test_a_severed_answer_breaks_the_connection(visitor: Visitor) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        visitor.ask(marked("severed", "after=2"))
    assert visitor.standin.state()["failed"] == 1


@pytest.mark.parametrize("name", WHOLE)
def test_a_spoiler_that_leaves_the_text_whole(visitor: Visitor, name: str) -> None:
    answer = visitor.ask(marked(name, "silence_s=0.01"))
    assert text_of([f for f in parsed(answer.text) if f.get("response_id", "")[:8] != "f" * 8]) == WORDS


@pytest.mark.parametrize("form", ["info", "phase", "comment"])
def test_keep_alives_come_before_the_text(visitor: Visitor, form: str) -> None:
    text = visitor.ask(marked("keep_alive", f"form={form} n=3 silence_s=0.01")).text
    sign = {"info": '"keep_alive"', "phase": '"KeepAlive"', "comment": ": keep-alive"}[form]
    assert text.count(sign) == 3
    assert text.rindex(sign) < text.index('"content": "one"')


def test_a_second_response_is_told_by_its_ids(visitor: Visitor) -> None:
    frames = visitor.frames(marked("second_response"))
    created = [frame["response.created"] for frame in frames if "response.created" in frame]
    assert [each["response_index"] for each in created] == ["0", "1"]
    own = [frame for frame in frames if frame.get("response_id") == created[0]["response_id"]]
    other = [frame for frame in frames if frame.get("response_id") == created[1]["response_id"]]
    assert text_of(own) == WORDS
    assert set(text_of(other).split()) == {"OTHER"}
    assert frames.index(other[-1]) < frames.index(own[-1])


def test_cumulative_pieces_carry_the_text_so_far(visitor: Visitor) -> None:
    pieces = [delta["content"] for delta in deltas(visitor.frames(marked("cumulative")))]
    assert pieces[:3] == ["one", "one two", "one two three"]


def test_novelties_leave_the_answer_whole(visitor: Visitor) -> None:
    answer = visitor.ask(marked("novelties"))
    assert text_of(parsed(answer.text)) == WORDS
    for news in ("telepathy", "selected_model_id", "event: note", ": a comment"):
        assert news in answer.text


def test_a_broken_frame_is_no_json(visitor: Visitor) -> None:
    text = visitor.ask(marked("broken_frame")).text
    assert '"role": "assist\n' in text
    assert text.rstrip().endswith("}")
    assert visitor.ask(marked("broken_frame", "go_on=0")).text.endswith('"assist\n\n')


def test_a_giant_line_is_that_long(visitor: Visitor) -> None:
    text = visitor.ask(marked("giant_line", "bytes=200000")).text
    assert max(map(len, text.splitlines())) > 200_000


def test_odd_cuts_split_letters(visitor: Visitor) -> None:
    chat = visitor.new_chat()
    with visitor.asking("{{standin: say text=ääääää}}{{standin: odd_cuts size=1}}", chat) as answer:
        pieces = list(answer.iter_raw())
    assert "ääääää" in b"".join(pieces).decode()
    assert any(piece[-1:] == "ä".encode()[:1] for piece in pieces)


@pytest.mark.parametrize(("form", "end"), [("crlf", "\r\n\r\n"), ("cr", "\r\r"), ("single", "}\ndata: ")])
def test_lines_may_end_otherwise(visitor: Visitor, form: str, end: str) -> None:
    assert end in visitor.ask(marked("line_ends", f"form={form}")).text


def test_an_intermediate_end_has_a_timestamp(visitor: Visitor) -> None:
    frames = visitor.frames(marked("intermediate", "silence_s=0.01"))
    ends = [frame for frame in frames if (list(deltas([frame])) or [{}])[0].get("status") == "finished"]
    assert ["timestamp" in frame for frame in ends] == [True, False]


@pytest.mark.parametrize(("name", "marker"), [("done_marker", '{"done": true}'), ("done_text", "[DONE]")])
def test_other_markers_of_the_end(visitor: Visitor, name: str, marker: str) -> None:
    chat = visitor.new_chat()
    answer = visitor.ask(marked(name), chat)
    assert answer.text.endswith(f"data: {marker}\n\n")
    assert '"status": "finished"' not in answer.text
    assert visitor.standin.state()["finished"] == 1


def test_a_socket_kept_open_after_the_end_counts_as_finished(visitor: Visitor) -> None:
    chat = visitor.new_chat()
    with visitor.asking(marked("keep_open"), chat) as answer:
        pieces = answer.iter_text()
        while '"status": "finished"' not in next(pieces):
            pass
        assert visitor.standin.state()["open"] == 1
    until(lambda: visitor.standin.state()["open"] == 0)
    state = visitor.standin.state()
    assert (state["finished"], state["aborted"]) == (1, 0)


@pytest.mark.parametrize("name", ["hang_before_head", "hang_after_head", "hang_mid_stream"])
def test_an_answer_that_only_pauses_is_whole(visitor: Visitor, name: str) -> None:
    assert text_of(visitor.frames(marked(name, "s=0.2"))) == WORDS


def test_a_mark_may_strike_a_few_times_only(visitor: Visitor) -> None:
    prompt = marked("chat_gone", "times=2 id=7")
    found = [visitor.ask(prompt).headers["content-type"] for _ in range(3)]
    assert found == ["application/json"] * 2 + ["text/event-stream; charset=utf-8"]


@pytest.mark.parametrize(
    ("kind", "method", "path"),
    [
        ("new", "POST", "/api/v2/chats/new"),
        ("models", "GET", "/api/v2/models/"),
        ("delete", "DELETE", "/api/v2/chats/x"),
        ("any", "GET", "/api/v2/chats/?page=1"),
    ],
)
def test_a_queued_fault_strikes_the_next_matching_call(
    visitor: Visitor, kind: str, method: str, path: str
) -> None:
    visitor.standin.fault("gateway", on=kind, status=502)
    body = new_body() if method == "POST" else None
    found = [visitor.call(method, path, body).status_code for _ in range(2)]
    assert found[0] == 502
    assert found[1] != 502


@pytest.mark.parametrize("kind", ["auths", "refresh", "signin"])
def test_sign_ins_fail_too(visitor: Visitor, kind: str) -> None:
    visitor.standin.fault("gateway", on=kind, status=504)
    path = {"auths": "", "refresh": "refresh", "signin": "signin"}[kind]
    url = f"{visitor.standin.auth}/api/v2/auths/{path}"
    method = "POST" if kind == "signin" else "GET"
    assert [httpx.request(method, url).status_code for _ in range(2)] == [504, 200]


def test_any_call_can_stall(visitor: Visitor) -> None:
    visitor.standin.fault("hang_before_head", on="new", s=0.2)
    began_s = time.monotonic()
    assert visitor.new_chat()
    assert time.monotonic() - began_s >= 0.2
    visitor.standin.fault("hang_before_head", on="models")
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(f"{visitor.standin.site}/api/v2/models/", timeout=0.3)


def test_a_queued_fault_waits_for_its_account(visitor: Visitor) -> None:
    visitor.standin.fault("rate_limited", account="two@example.com", num=3)
    assert text_of(visitor.frames(SAY)) == WORDS
    with Visitor(visitor.standin, "two@example.com") as other:
        assert other.ask(SAY).json()["data"]["num"] == 3


def test_a_dialog_challenges_every_write_until_it_is_solved(visitor: Visitor) -> None:
    visitor.standin.fault("dialog")
    assert visitor.ask(SAY).headers["bxpunish"] == "1"
    assert "bxpunish" in visitor.call("POST", "/api/v2/chats/new", new_body()).headers
    visitor.standin.solve("one@example.com")
    assert text_of(visitor.frames(SAY)) == WORDS


def test_an_unknown_fault_is_refused(standin: Standin) -> None:
    with pytest.raises(AssertionError, match="unknown fault"):
        standin.fault("no_such_fault")


def test_every_fault_is_tried_here() -> None:
    others = {"dialog", "severed", "empty", "only_created", "eof", "error_status", "cumulative", "novelties"}
    others |= {
        "broken_frame",
        "giant_line",
        "keep_open",
        "rate_limited_line",
        "rate_limited_text",
        "error_text",
    }
    others |= {"hang_before_head", "hang_after_head", "hang_mid_stream"}
    elsewhere = {"sts_refused", "credits_exhausted", "tts_limited", "tts_language", *FILES, *VIDEOS}
    assert {*CODES, *WIRE, *ERRORS, *WHOLE, *others, *elsewhere} == NAMES
    assert not set(REFUSALS) & set(SPOILERS)
