"""The weak spots of FreeQwenApi (peers.md §5), each as a test that it would fail, against one running proxy.

| Spot | What was wrong there | Shown by |
|---|---|---|
| 1, 16 | only parts of `messages[]` arrived; the chats' routes were documented and gone | `test_examples` |
| 2, 3 | errors as an answer's text, as 200, or always as 500 | here; `test_sdks`, `test_relay` |
| 4, 13 | chat and message on two accounts; one token for all | `test_rotation` |
| 5, 31 | a retry lost the system prompt, kept the chat's id, or asked twice | here |
| 6, 33 | tools went to a service that ignores them, or nowhere | `test_openai_chat`: refused |
| 7 | streams were made of the finished answer | here |
| 8 | streams went past the browser; a firewall's page was an answer | `test_serving`, `test_every_failure` |
| 9 | a client that leaves was not noticed; nothing had a time limit | here; `test_leaving`, `test_client` |
| 10 | a verification waited for Enter | `test_serving` |
| 11 | the status sent a real message for each account | `test_living_accounts` |
| 12, 26 | accounts lost by a damaged or half-written file; deleting left files | `test_registry` |
| 14 | a chat's id was a path | here |
| 15 | the history was overwritten; streams stored nothing | here |
| 18 | an unknown model was silently another one | here; `test_models` |
| 20 | no role, changing ids, no reasoning in streams | here; `test_sdks` |
| 21, 22 | certificate checks off; a sign-in was what Enter confirmed | `test_house`, `test_login` |
| 23 | open to all, keys compared plainly, prompts in the log | `test_access`, `test_guard`; here |
| 24 | a busy port was a crash | `test_cli` |
| 25 | chats were known in memory only, without end | `test_chat_kills`, `test_exchanges` |
| 27, 40 | no health route; no list of what is honoured | `test_status_routes`, `test_house` |
| 28 | a cleanup without filters, or with `maxChats` alone, deleted every chat | here |
| 29 | a start wrote over the sign-in | `test_registry`, `test_console` |
| 30 | a limit that was no JSON was asked again without end | here |
| 32 | every request demanded JSON | here |
| 34 | each completion left a chat's file | here |
| 35 | the cap kept a first message that was none of the system, and parted pairs | here |
| 36 | the process ended when all sign-ins were gone, in the middle of answers | `test_proxy` |

17 is no behaviour; 19 and 37 to 39 are about files and containers, which are not there yet. Beside these
stands what a kept history owes: no chats but ours are touched, and clients at once do not interleave.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from qwenproxy.accounts.registry import Registry
from qwenproxy.clock import SystemClock
from tests.proof.conversation import Answer, asked
from tests.seen import Turn, answering, path, seen
from tests.serve import Proxy, Standin, running_proxy, running_standin, until
from tests.standin.visitor import Visitor

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]

ONE, TWO = "one@example.com", "two@example.com"


def say(text: str, *marks: str) -> str:
    return " ".join(f"{{{{standin: {mark}}}}}" for mark in (f'say text="{text}"', *marks))


@dataclass(frozen=True)
class Serving:
    proxy: Proxy
    standin: Standin
    session: Path
    http: httpx.Client

    def ask(self, message: str, chat_id: str = "", **more: Any) -> Answer:
        chat = {"chatId": chat_id} if chat_id else {}
        return asked(self.http, "/api/chat", {"message": message, **chat, **more})

    def chat(self, chat_id: str) -> dict[str, Any]:
        history: dict[str, Any] = self.http.get(f"/api/chats/{chat_id}").json()["history"]
        return history

    def said(self, chat_id: str) -> list[tuple[str, str]]:
        return [(message["role"], message["content"]) for message in self.chat(chat_id)["messages"]]

    def turn(self, text: str) -> Turn:
        return answering(self.standin.turns(), text)

    def seen(self, text: str) -> list[tuple[str, str]]:
        """What the model had seen when it said this."""
        turns = self.standin.turns()
        return list(seen(turns, answering(turns, text)))

    def in_order(self) -> None:
        """No fault is left, and no account waits."""
        self.standin.reset(sessions=False)
        self.standin.options(pieces_per_s=2000)
        registry = Registry(self.session, SystemClock())
        for account in registry.accounts():
            registry.update(account.id, partial(replace, wait_until=None, why="", model_waits=()))
        until(lambda: {row["status"] for row in self.http.get("/api/status").json()["accounts"]} == {"OK"})


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("weak_spots")
    with (
        running_standin(folder) as standin,
        running_proxy(folder, standin, (ONE, TWO), stay_up=1) as proxy,
        httpx.Client(base_url=proxy.base, timeout=60) as http,
    ):
        # What is kept of the sign-ins once their pages have booted is not what a test has changed.
        until(lambda: all("holdsUntil" in row for row in stored(folder / "session")))
        yield Serving(proxy, standin, folder / "session", http)


def stored(session: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((session / "tokens.json").read_text())
    return rows


@pytest.fixture
def serving(started: Serving) -> Serving:
    started.in_order()
    return started


@pytest.mark.parametrize("stream", [False, True])
def test_2_3_an_error_has_its_status_and_is_no_answer(serving: Serving, stream: bool) -> None:
    chat_id = serving.ask(say("fine")).told["chatId"]
    refused = serving.ask(say("never", "inspected"), chat_id, stream=stream)
    assert (refused.status, refused.code, refused.text) == (400, "content_blocked", "")
    assert isinstance(refused.told["error"], str)
    assert refused.told["chatId"] == chat_id
    assert "Error" not in json.dumps(serving.said(chat_id))


def test_2_an_answer_that_breaks_off_never_ends_like_a_whole_one(serving: Serving) -> None:
    body = {"message": say("one two three four five six", "severed after=3 wait_s=0.5"), "stream": True}
    with serving.http.stream("POST", "/api/chat", json=body) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    assert "[DONE]" not in lines
    *chunks, last = map(json.loads, lines)
    assert (last["code"], type(last["error"])) == ("upstream_error", str)
    assert {choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]} == {None}
    chat = serving.chat(chunks[0]["chatId"])["messages"]
    assert chat[-1]["partial"] == "upstream_error"
    assert chat[-1]["content"] == "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks)


def test_3_when_all_accounts_are_limited_it_is_429_with_the_time(serving: Serving) -> None:
    answer = serving.http.post("/api/chat", json={"message": say("x", "rate_limited num=2")})
    assert answer.status_code == 429
    assert answer.json()["code"] == "all_accounts_waiting"
    assert 7000 < int(answer.headers["retry-after"]) <= 7200


def test_5_31_a_retry_elsewhere_says_the_same_in_a_chat_of_its_own_and_asks_once(serving: Serving) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": say("first")}]
    first = asked(serving.http, "/api/chat", {"messages": messages})
    serving.standin.fault("rate_limited", num=1)
    second = serving.ask(say("second"), first.told["chatId"], stream=True)
    assert second.whole
    assert second.told["account"] != first.told["account"]
    assert second.told["rebuilt"] == "account_waiting"
    known = [("system", "Be brief."), ("user", say("first")), ("assistant", "first"), ("user", say("second"))]
    assert serving.seen("second") == known
    assert serving.turn("second")["chat"] != serving.turn("first")["chat"]
    assert serving.said(first.told["chatId"]) == [*known, ("assistant", "second")]


def test_31_asking_again_after_a_failure_doubles_nothing(serving: Serving) -> None:
    chat_id = serving.http.post("/api/chats", json={}).json()["chatId"]
    question = say("at last", "inspected times=2")
    for _ in range(2):
        assert serving.ask(question, chat_id).code == "content_blocked"
        assert [m["unanswered"] for m in serving.chat(chat_id)["messages"]] == ["content_blocked"]
    assert serving.ask(question, chat_id).whole
    assert serving.said(chat_id) == [("user", question), ("assistant", "at last")]
    assert serving.seen("at last") == [("user", question)]
    assert serving.chat(chat_id).get("branches", []) == []


def test_7_9_pieces_come_as_they_are_said_and_leaving_ends_and_keeps_the_answer(serving: Serving) -> None:
    body = {"message": "{{standin: long n=200 rate=60}}", "stream": True}
    came = ""
    with serving.http.stream("POST", "/api/chat", json=body) as response:
        lines = response.iter_lines()
        for line in lines:
            if line.startswith("data: "):
                chunk = json.loads(line.removeprefix("data: "))
                came += chunk["choices"][0]["delta"].get("content") or ""
            if len(came) > 20:
                break
        assert serving.standin.state()["open"] == 1, "the answer was over before its first piece"
    until(lambda: serving.standin.state()["open"] == 0, 2)
    until(lambda: len(serving.chat(chunk["chatId"])["messages"]) == 2)
    answer = serving.chat(chunk["chatId"])["messages"][1]
    assert answer["partial"] == "interrupted"
    assert answer["content"].startswith(came)


PATHS = ("..%2ftokens", "%2e%2e%2ftokens", "..%5ctokens", "....//tokens", "tokens%00", "..", "con", "a" * 300)


@pytest.mark.parametrize("name", PATHS)
def test_14_a_chats_id_is_no_path(serving: Serving, name: str) -> None:
    before = files(serving.session)
    url = httpx.URL(serving.proxy.base).copy_with(raw_path=f"/api/chats/{name}".encode())
    for method in ("GET", "DELETE"):
        assert serving.http.request(method, url).status_code in (400, 404, 405)
    plain = name.replace("%2f", "/").replace("%2e", ".").replace("%5c", "\\").replace("%00", "\0")
    for chat_id in (plain, f"../{plain}"):
        answer = serving.ask(say("never"), chat_id)
        assert (answer.status, answer.code) in ((404, "chat_not_found"), (400, "invalid_request"))
    assert files(serving.session) == before
    assert serving.standin.turns() == []


def files(session: Path) -> dict[str, bytes]:
    """What nobody but the proxy itself may change."""
    kept = [session / "tokens.json", *session.glob("history/*.json")]
    return {str(file): file.read_bytes() for file in kept}


@pytest.mark.parametrize("stream", [False, True])
def test_15_every_turn_is_kept_streamed_or_not(serving: Serving, stream: bool) -> None:
    chat_id = serving.ask(say("1"), stream=stream).told["chatId"]
    for number in "23":
        foreign = [{"role": "assistant", "content": "never said"}, {"role": "user", "content": say(number)}]
        body = {"messages": foreign, "chatId": chat_id, "stream": stream}
        assert asked(serving.http, "/api/chat", body).told["parentId"]
    expected = [said for n in "123" for said in (("user", say(n)), ("assistant", n))]
    assert serving.said(chat_id) == expected
    assert serving.seen("3") == expected[:-1]
    turns = serving.standin.turns()
    assert len(path(turns, answering(turns, "3"))) == 3, "only the new message is sent while the chat lives"


def test_18_an_unknown_model_is_told_and_case_does_not_matter(serving: Serving) -> None:
    refused = serving.ask(say("x"), model="qwen-maxx")
    assert (refused.status, refused.code) == (404, "model_not_found")
    assert "max" in serving.ask(say("x"), model="QWEN-MAX").told["model"]


def test_20_a_stream_has_a_role_one_id_and_the_reasoning(serving: Serving) -> None:
    body = {"message": say("done"), "stream": True, "enable_thinking": True}
    with serving.http.stream("POST", "/api/chat", json=body) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: {")]
    chunks = [json.loads(line) for line in lines]
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    names = ("id", "chatId", "parentId", "account")
    assert len({tuple(chunk[name] for name in names) for chunk in chunks}) == 1
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    thought = "".join(delta.get("reasoning_content") or "" for delta in deltas)
    assert "I count the words" in thought
    assert "".join(delta.get("content") or "" for delta in deltas) == "done"
    assert serving.chat(chunks[0]["chatId"])["messages"][-1]["reasoning"] == thought


def test_23_neither_prompts_nor_answers_are_in_the_log(serving: Serving) -> None:
    serving.ask(say("the answer nobody logs"))
    serving.ask(say("the question nobody logs", "rate_limited times=1"))
    log = (serving.session / "logs" / "proxy.log").read_text("utf-8")
    assert "usage limit" in log
    assert "nobody logs" not in log


def test_28_a_cleanup_deletes_what_it_is_told_to_and_no_more(serving: Serving) -> None:
    cleanup = partial(serving.http.post, "/api/chats/cleanup")
    made = [serving.http.post("/api/chats", json={"name": str(n)}).json()["chatId"] for n in range(4)]
    listed = ids(serving)
    for body in ({}, {"maxChats": 0}, {"olderThan": "1"}, {"userMessageCountLessThan": -1}, {"dryRun": True}):
        refused = cleanup(json=body)
        assert (refused.status_code, refused.json()["code"]) == (400, "invalid_request"), body
    assert cleanup(content=b"", headers={"Content-Type": "application/json"}).status_code == 400
    assert ids(serving) == listed
    surplus = {"maxChats": len(listed) - 1}
    would = cleanup(json={**surplus, "dryRun": True}).json()
    assert ids(serving) == listed
    done = cleanup(json=surplus).json()
    assert done["deletedChats"] == would["deletedChats"] == listed[-1:]
    assert done["deletedCount"] == 1
    assert ids(serving) == listed[:-1]
    assert made[-1] in listed[:-1]


def ids(serving: Serving) -> list[str]:
    return [chat["id"] for chat in serving.http.get("/api/chats").json()["chats"]]


def test_30_a_limit_in_words_is_not_asked_again_without_end(serving: Serving) -> None:
    serving.standin.fault("raw_json", body="RateLimited", times=50)
    answer = serving.ask(say("x"))
    assert answer.status in (429, 502)
    assert 1 <= len(serving.standin.received("/api/v2/chat/completions", "POST")) <= 4


def test_32_nothing_is_demanded_that_nobody_asked_for(serving: Serving) -> None:
    serving.ask(say("x"))
    (call,) = serving.standin.received("/api/v2/chat/completions", "POST")
    assert not {"response_format", "tools", "tool_choice"} & set(call["body"])


def test_34_completions_leave_no_chats_behind(serving: Serving) -> None:
    before = files(serving.session)
    messages = [{"role": "user", "content": say("x")}]
    for _ in range(3):
        answer = serving.http.post("/v1/chat/completions", json={"model": "qwen", "messages": messages})
        assert answer.status_code == 200
    assert files(serving.session) == before
    until(lambda: serving.standin.chats() == [])


def test_35_the_cap_keeps_system_messages_and_pairs_and_the_file_keeps_all(serving: Serving) -> None:
    talk = [{"role": r, "content": f"{r} {n}"} for n in range(75) for r in ("user", "assistant")]
    system = {"role": "system", "content": "Be brief."}
    made = serving.http.post("/api/chats/import", json={"messages": [system, *talk]})
    assert made.status_code == 200, made.text
    chat_id = made.json()["chatId"]
    answer = serving.ask(say("capped"), chat_id)
    assert answer.told["rebuilt"]
    saw = serving.seen("capped")
    assert saw[0] == ("system", "Be brief.")
    assert saw[1][0] == "user"
    assert 99 <= len(saw) <= 100
    every = [(m["role"], m["content"]) for m in (system, *talk)] + [("user", say("capped"))]
    assert saw[1:] == every[-len(saw) + 1 :]
    assert serving.said(chat_id) == [*every, ("assistant", "capped")]


def test_deleting_a_chat_deletes_its_twin_in_the_end_and_no_other_chat(serving: Serving) -> None:
    with Visitor(serving.standin, ONE) as visitor:
        foreign = visitor.new_chat()
    first, second = (serving.ask(say(text)).told["chatId"] for text in ("one", "two"))
    twins = [serving.turn(text)["chat"] for text in ("one", "two")]
    serving.standin.fault("gateway", on="delete", status=503)
    assert serving.http.delete(f"/api/chats/{first}").json()["success"] is True
    assert serving.http.delete(f"/api/chats/{first}").status_code == 404
    until(lambda: set(serving.standin.chats()) == {foreign, twins[1]})
    assert serving.ask(say("three"), second).told.get("rebuilt") is None


def test_two_clients_at_once_never_interleave_a_history(serving: Serving) -> None:
    chat_id = serving.http.post("/api/chats", json={}).json()["chatId"]
    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(serving.ask, say(f"reply {n}"), chat_id, stream=n % 2 == 0) for n in range(4)]
        assert all(each.result().whole for each in asking)
    said = serving.said(chat_id)
    assert len(said) == 8
    for question, reply in zip(said[::2], said[1::2], strict=True):
        assert question == ("user", say(reply[1]))
    assert serving.seen(said[-1][1]) == said[:-1]
