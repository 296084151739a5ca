"""What the stand-in enforces, and how its answers end: finished, stopped, left, broken off."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest

from tests.serve import Standin, until
from tests.standin.visitor import Visitor, new_body, parsed, question, text_of


def counted(standin: Standin) -> dict[str, int]:
    state = standin.state()
    return {name: state[name] for name in ("open", "opened", "finished", "aborted", "stopped", "failed")}


def refusal(answer: httpx.Response) -> tuple[str, Any, str]:
    """Code, details and actual status of an answer whose wire says 200."""
    assert answer.status_code == 200
    told = answer.json()
    assert told["success"] is False
    assert told["request_id"] == answer.request.headers["x-request-id"]
    return told["data"]["code"], told["data"]["details"], answer.headers["x-actual-status-code"]


def test_a_plain_answer_has_the_frames_of_the_reference(standin: Standin) -> None:
    with Visitor(standin) as visitor:
        answer = visitor.ask('{{standin: say text="Grüße, Welt"}} ignored')
    text, frames = answer.text, parsed(answer.text)
    assert text.startswith('data: {"response.created": {"chat_id": "')
    assert text.splitlines()[0].endswith("}} ")
    assert frames[0]["response.created"]["response_index"] == "0"
    assert text_of(frames) == "Grüße, Welt"
    assert "Grüße" in text
    assert [frame["choices"][0]["delta"]["content"] for frame in frames[-3:]] == ["", "", ""]
    assert [("usage" in frame, "timestamp" in frame) for frame in frames[-3:]] == [(True, True)] * 2 + [
        (False, False)
    ]
    assert frames[-1]["choices"][0]["delta"]["status"] == "finished"
    assert frames[-2]["usage"]["output_tokens"] == len(frames) - 4
    assert "[DONE]" not in text
    assert counted(standin) == {
        "open": 0,
        "opened": 1,
        "finished": 1,
        "aborted": 0,
        "stopped": 0,
        "failed": 0,
    }


def test_without_a_mark_the_answer_is_about_the_prompt(standin: Standin) -> None:
    standin.options(pieces_per_s=2000)
    with Visitor(standin) as visitor:
        assert '"Where does the road go?"' in text_of(visitor.frames("Where does the road go?"))


@pytest.mark.parametrize(
    ("missing", "code"),
    [("Version", "Bad_Request"), ("Content_Type", "RequestValidationError")],
)
def test_a_missing_header_is_a_refusal(standin: Standin, missing: str, code: str) -> None:
    with Visitor(standin) as visitor:
        answer = visitor.call("POST", "/api/v2/chats/new", new_body(), **{missing: None})
    assert refusal(answer)[0] == code


def test_without_a_source_the_risk_control_answers(standin: Standin) -> None:
    with Visitor(standin) as visitor:
        answer = visitor.call("POST", "/api/v2/chats/new", new_body(), source=None)
    assert answer.json()["ret"][0].startswith("FAIL_SYS_USER_VALIDATE")
    assert "x-actual-status-code" not in answer.headers


def test_without_a_request_id_the_firewall_answers(standin: Standin) -> None:
    with Visitor(standin) as visitor:
        answer = visitor.call("POST", "/api/v2/chats/new", new_body(), X_Request_Id=None)
    assert answer.headers["content-type"].startswith("text/html")
    assert "aliyun_waf" in answer.text


def test_a_cold_page_is_challenged_until_its_boot_is_over(standin: Standin) -> None:
    with Visitor(standin, booted=False) as visitor:
        assert "ret" in visitor.call("POST", "/api/v2/chats/new", new_body()).json()
        visitor.call("GET", "/api/v2/chats/?page=1&exclude_project=true")
        assert visitor.new_chat()


def test_a_bearer_without_its_cookie_makes_chats_but_is_challenged_when_it_asks(standin: Standin) -> None:
    with Visitor(standin) as visitor:
        visitor.http.cookies.clear()
        chat = visitor.new_chat()
        assert "ret" in visitor.ask("Hello", chat).json()


@pytest.mark.parametrize("standin", ["B"], indirect=True)
def test_the_cookie_alone_is_enough_in_era_b(standin: Standin) -> None:
    with Visitor(standin) as visitor:
        answer = visitor.call("POST", "/api/v2/chats/new", new_body(), Authorization=None)
    assert answer.json()["success"] is True


def test_the_body_must_name_an_existing_chat_of_the_account(standin: Standin) -> None:
    with Visitor(standin) as visitor, Visitor(standin, "two@example.com") as other:
        url = "/api/v2/chat/completions?chat_id=x"
        nameless = {**question("", "Hello"), "chatId": "x", "chat_id": None}
        code, details, actual = refusal(visitor.call("POST", url, nameless))
        assert (code, actual) == ("RequestValidationError", "400")
        assert details == "Field 'chat_id': Field required"
        assert refusal(visitor.ask("Hello", "no-such-chat"))[0] == "CHAT_NOT_FOUND"
        assert refusal(visitor.ask("Hello", other.new_chat()))[0] == "CHAT_NOT_FOUND"


@pytest.mark.parametrize("standin", ["B"], indirect=True)
def test_era_b_says_missing_things_in_words(standin: Standin) -> None:
    with Visitor(standin) as visitor:
        code, details, _ = refusal(visitor.ask("Hello", "no-such-chat"))
        assert (code, details) == ("Bad_Request", "Invalid input the chat no-such-chat is not exist.")
        code, details, _ = refusal(visitor.ask("Hello", parent="no-such-parent"))
        assert code == "Bad_Request"
        assert details.startswith("Invalid input chat parent_id")


def test_one_message_a_known_model_and_a_short_prompt(standin: Standin) -> None:
    standin.options(max_body_bytes=1_000_000)
    with Visitor(standin) as visitor:
        chat = visitor.new_chat()
        body = question(chat, "Hello")
        url = f"/api/v2/chat/completions?chat_id={chat}"
        two = {**body, "messages": body["messages"] * 2}
        assert refusal(visitor.call("POST", url, two))[1] == "Invalid input too many messages"
        assert refusal(visitor.call("POST", url, {**body, "model": "gpt-9"}))[:2] == (
            "Not_Found",
            "Model not found",
        )
        long = visitor.ask("x" * 131_073, chat)
        assert refusal(long)[1] == "Prompt cannot exceed 131072 characters."


def test_a_body_above_the_firewalls_limit_is_challenged(standin: Standin) -> None:
    standin.options(max_body_bytes=5_000)
    with Visitor(standin) as visitor:
        chat = visitor.new_chat()
        assert "punish" in visitor.ask("x" * 6_000, chat).json()["data"]["url"]


def test_the_next_turn_names_its_parent(standin: Standin) -> None:
    with Visitor(standin) as visitor:
        chat = visitor.new_chat()
        first = visitor.frames("{{standin: say text=one}}", chat)[0]["response.created"]
        assert refusal(visitor.ask("Hello", chat, parent="nobody"))[0] == "PARENT_NOT_FOUND"
        second = visitor.ask("{{standin: say text=two}}", chat, parent=first["response_id"])
        assert text_of(parsed(second.text)) == "two"


def test_a_chat_is_busy_until_it_has_settled(standin: Standin) -> None:
    standin.options(settle_s=0.3)
    with Visitor(standin) as visitor:
        chat = visitor.new_chat()
        visitor.frames("{{standin: say text=one}}", chat)
        ended_s = time.monotonic()
        assert refusal(visitor.ask("Hello", chat))[:2] == ("Bad_Request", "The chat is in progress!")
        until(lambda: "json" not in visitor.ask("{{standin: say text=two}}", chat).headers["content-type"])
        assert time.monotonic() - ended_s >= 0.25


@pytest.mark.parametrize("model", ["qwen3.8-max-preview", "qwen3.6-max-preview"])
def test_a_model_that_must_think_refuses_fast_in_the_stream(standin: Standin, model: str) -> None:
    with Visitor(standin) as visitor:
        (frame,) = visitor.frames("{{standin: say text=one}}", model=model)
        assert frame["error"]["code"] == "invalid_input"
        assert (
            text_of(visitor.frames("{{standin: say text=one}}", model=model, thinking_enabled=True)) == "one"
        )


def test_a_client_that_leaves_is_counted_at_once_and_frees_the_chat(standin: Standin) -> None:
    with Visitor(standin) as visitor:
        chat = visitor.new_chat()
        with visitor.asking("{{standin: long n=1000}}", chat) as answer:
            pieces = answer.iter_raw()
            next(pieces)
            assert standin.state()["open"] == 1
        left_s = time.monotonic()
        until(lambda: standin.state()["open"] == 0)
        assert time.monotonic() - left_s < 5
        assert counted(standin)["aborted"] == 1
        assert text_of(visitor.frames("{{standin: say text=again}}", chat)) == "again"


@pytest.mark.parametrize("name", ["hang_before_head", "hang_after_head"])
def test_a_client_that_leaves_before_the_first_frame_is_counted_too(standin: Standin, name: str) -> None:
    with Visitor(standin) as visitor:
        chat = visitor.new_chat()
        visitor.http.timeout = httpx.Timeout(0.3)
        with pytest.raises(httpx.ReadTimeout):
            visitor.ask(f"{{{{standin: {name}}}}}", chat)
    until(lambda: standin.state()["open"] == 0)
    assert counted(standin)["aborted"] == 1


def test_the_stop_call_ends_the_stream_with_its_own_frame(standin: Standin) -> None:
    with Visitor(standin) as visitor:
        chat = visitor.new_chat()
        with visitor.asking("{{standin: long n=1000}}", chat) as answer:
            pieces = answer.iter_text()
            created = parsed(next(pieces))[0]["response.created"]
            body = {"chat_id": chat, "response_id": created["response_id"]}
            stop = visitor.call("POST", f"/api/v2/chat/completions/stop?chat_id={chat}", body)
            last = "".join(pieces).splitlines()[-2]
    assert stop.json()["success"] is True
    assert parsed(last) == [{"response.stopped": body}]
    assert counted(standin)["stopped"] == 1
    assert standin.state()["stop_calls"] == 1


def test_the_stop_call_can_skip_the_thinking_only(standin: Standin) -> None:
    with Visitor(standin) as visitor:
        chat = visitor.new_chat()
        with visitor.asking("{{standin: think think_s=0.5 text=Done}}", chat) as answer:
            pieces = answer.iter_text()
            created = parsed(next(pieces))[0]["response.created"]
            body = {"chat_id": chat, "response_id": created["response_id"], "phase": "think"}
            visitor.call("POST", f"/api/v2/chat/completions/stop?chat_id={chat}", body)
            frames = parsed("".join(pieces))
    infos = [frame["response.info"]["action"] for frame in frames if "response.info" in frame]
    assert infos == ["skip_think"]
    assert text_of(frames) == "Done"


def test_a_broken_answer_can_be_resumed_and_a_finished_one_not(standin: Standin) -> None:
    with Visitor(standin) as visitor:
        chat = visitor.new_chat()
        prompt = '{{standin: say text="one two three"}}{{standin: severed after=1 times=1}}'
        with visitor.asking(prompt, chat) as answer, pytest.raises(httpx.RemoteProtocolError):
            answer.read()
        detail = visitor.call("GET", f"/api/v2/chats/{chat}").json()["data"]
        url = f"/api/v2/chat/completions?chat_id={chat}&response_id={detail['currentId']}"
        assert text_of(parsed(visitor.call("GET", url).text)) == "one two three"
        whole = visitor.frames("{{standin: say text=four}}", chat)[0]["response.created"]["response_id"]
        over = visitor.call("GET", f"/api/v2/chat/completions?chat_id={chat}&response_id={whole}")
        assert parsed(over.text)[0]["error"]["details"] == "The request is finished!"


def test_a_lone_system_message_is_answered_by_nothing(standin: Standin) -> None:
    with Visitor(standin) as visitor:
        chat = visitor.new_chat()
        body = question(chat, "Be kind")
        body["messages"][0]["role"] = "system"
        answer = visitor.call("POST", f"/api/v2/chat/completions?chat_id={chat}", body)
    (created,) = parsed(answer.text)
    assert "response.created" in created


def test_pieces_come_one_by_one_on_their_schedule(standin: Standin) -> None:
    with Visitor(standin) as visitor:
        chat = visitor.new_chat()
        began_s = time.monotonic()
        with visitor.asking("{{standin: count n=20 rate=100}}", chat) as answer:
            text, first_s = "", 0.0
            for piece in answer.iter_text():
                text += piece
                first_s = first_s or time.monotonic() - began_s
    assert first_s < time.monotonic() - began_s
    said = text_of(parsed(text)).split()
    assert [int(word.partition(":")[0]) for word in said] == list(range(20))
    stamps = [int(word.partition(":")[2]) for word in said]
    assert stamps == sorted(stamps)
    assert 0.15 < (stamps[-1] - stamps[0]) / 1e9 < 2
