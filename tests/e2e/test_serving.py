"""`serve` as a whole: accounts in turn, renewal under running streams, limits, chats that go again."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from qwenproxy.accounts.account import SignIn
from qwenproxy.accounts.registry import Registry
from qwenproxy.clock import SystemClock
from tests.serve import DEADLINE_S, Proxy, Standin, running_proxy, running_proxy_of, running_standin

pytestmark = [pytest.mark.anyio, pytest.mark.browser, pytest.mark.timeout(120)]

ONE, TWO = "one@example.com", "two@example.com"
BOTH = (ONE, TWO)


def body(prompt: str, **more: object) -> dict[str, object]:
    return {"model": "qwen", "messages": [{"role": "user", "content": prompt}], **more}


def say(text: str, *marks: str) -> str:
    return "".join(f"{{{{standin: {mark}}}}} " for mark in (f'say text="{text}"', *marks))


@asynccontextmanager
async def client(proxy: Proxy) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=f"{proxy.base}/v1", timeout=60) as http:
        yield http


@dataclass(frozen=True)
class Serving:
    """One proxy of two people for many tests, as a start takes seconds."""

    proxy: Proxy
    standin: Standin
    session: Path
    ids: dict[str, str]

    @asynccontextmanager
    async def __call__(self, *people: str) -> AsyncIterator[httpx.AsyncClient]:
        """A client of the proxy, which has these people's accounts in turn, and nothing is known of them.

        Their pages have booted: on a loaded computer the proxy may not wait for one to its end.
        """
        self.standin.reset(sessions=False)
        registry = Registry(self.session, SystemClock())
        for person in BOTH:
            self._put_in_order(registry, person)
            registry.update(self.ids[person], partial(replace, paused=person not in people))
        async with client(self.proxy) as http:
            with anyio.fail_after(DEADLINE_S):
                ids = {self.ids[person] for person in people}
                while await self._in_turn(http) != ids or not self.standin.booted(*people):
                    await anyio.sleep(0.05)
            yield http

    def _put_in_order(self, registry: Registry, person: str) -> None:
        """What an earlier test has left waiting, or without its sign-in, makes way for a new account."""
        known = {account.id: account for account in registry.accounts()}[self.ids[person]]
        if known.invalid or known.why or known.wait_until:
            registry.remove(known.id)
            state = self.standin.storage_state(person)
            token = state["origins"][0]["localStorage"][0]["value"]
            self.ids[person] = registry.add(SignIn(token, state, person, person))[0].id

    async def _in_turn(self, http: httpx.AsyncClient) -> set[str]:
        told = (await http.get(f"{self.proxy.base}/api/status")).json()["accounts"]
        return {row["id"] for row in told if not row["paused"]}


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("serving")
    with (
        running_standin(folder) as standin,
        running_proxy(
            folder,
            standin,
            BOTH,
            stay_up=1,
            slots_per_account=4,
            max_in_flight=12,
            heartbeat_s=0.5,
            first_byte_timeout_s=17,
        ) as proxy,
    ):
        yield Serving(proxy, standin, folder / "session", {ONE: "acc_1", TWO: "acc_2"})


async def ask(http: httpx.AsyncClient, prompt: str, **more: object) -> httpx.Response:
    return await http.post("/chat/completions", json=body(prompt, **more))


async def heard(http: httpx.AsyncClient, prompt: str) -> str:
    answer = await ask(http, prompt)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def stored(session: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((session / "tokens.json").read_text())
    return rows


def made(session: Path) -> set[str]:
    """The chats that the proxy made."""
    ledger = [json.loads(line) for line in (session / "chats.jsonl").read_text().splitlines()]
    return {row["chat"] for row in ledger if row["event"] == "made"}


def asked(standin: Standin) -> list[str]:
    return [call["account"] for call in standin.received("/api/v2/chat/completions", "POST")]


async def test_accounts_answer_in_turn_each_with_its_own_sign_in(serving: Serving) -> None:
    async with serving(*BOTH) as http:
        for number in range(4):
            assert await heard(http, say(f"answer {number}")) == f"answer {number}"
    assert asked(serving.standin) in ([ONE, TWO] * 2, [TWO, ONE] * 2)


async def test_calls_are_the_pages_own(serving: Serving) -> None:
    async with serving(ONE) as http:
        await heard(http, say("hi"))
    headers = serving.standin.received("/api/v2/chat/completions", "POST")[0]["headers"]
    assert headers["bx-v"] == "stand-in", "the site's own script did not see the call"
    assert headers["version"] == "0.3.12"
    assert headers["source"] == "web"
    assert headers["accept"] == "application/json"
    assert len(headers["x-request-id"]) == 36
    assert "(" not in headers["timezone"]


async def test_chats_are_gone_within_two_seconds(serving: Serving) -> None:
    async with serving(ONE) as http:
        serving.standin.options(settle_s=0.5, refuse_busy_delete=True)
        await heard(http, say("hi"))
        await serving.standin.until(lambda state: not any(state["chats"].values()), 2 + 1)
        answer = await ask(http, say("hi", "inspected_input"))
        assert answer.status_code == 400
        await serving.standin.until(lambda state: not any(state["chats"].values()), 2 + 1)


async def test_chats_are_kept_and_named_when_asked(tmp_path: Path, standin: Standin) -> None:
    with running_proxy(tmp_path, standin, keep_chats=1) as proxy:
        async with client(proxy) as http:
            await heard(http, say("hi"))
        with anyio.fail_after(10):
            while not (renamed := standin.received("/api/v2/chats/", "POST")[1:]):
                await anyio.sleep(0.05)
    assert renamed[0]["body"] == {"title": "OpenAI API Chat"}
    assert len(standin.chats()) == 1


async def test_only_chats_that_the_proxy_made_are_touched(serving: Serving) -> None:
    async with serving(ONE) as http:
        before = made(serving.session)
        await heard(http, say("hi"))
        await serving.standin.until(lambda state: not any(state["chats"].values()))
    touched = {
        call["path"].rsplit("/", 1)[1] for call in serving.standin.received("/api/v2/chats/", "DELETE")
    }
    assert touched - before == made(serving.session) - before != set()


async def test_a_token_is_renewed_while_streams_run(serving: Serving) -> None:
    async with serving(ONE) as http, anyio.create_task_group() as tasks:
        ended: list[str] = []

        async def read() -> None:
            prompt = "{{standin: count n=150 rate=30}}"
            async with http.stream("POST", "/chat/completions", json=body(prompt, stream=True)) as answer:
                ended.extend([line async for line in answer.aiter_lines() if line][-1:])

        tasks.start_soon(read)
        tasks.start_soon(read)
        await serving.standin.until(lambda state: state["open"] == 2)
        serving.standin.expire()
        assert await heard(http, say("renewed")) == "renewed"
        assert ended == []
    assert ended == ["data: [DONE]"] * 2
    assert len(serving.standin.received("/api/v2/auths/refresh")) == 1


async def test_a_limit_moves_the_request_and_is_kept(serving: Serving) -> None:
    async with serving(*BOTH) as http:
        assert await heard(http, say("moved", "rate_limited num=3 times=1")) == "moved"
        assert [await heard(http, say("two")) for _ in range(2)] == ["two"] * 2
        limited, *others = asked(serving.standin)
        assert others == [TWO if limited == ONE else ONE] * 3
        answer = await ask(http, say("x", "rate_limited num=2"))
        assert answer.status_code == 429
        assert answer.json()["error"]["code"] == "all_accounts_waiting"
        assert 7000 < int(answer.headers["retry-after"]) <= 7200
        calls = len(serving.standin.received())
        assert (await ask(http, say("x"))).status_code == 429
        assert len(serving.standin.received()) == calls
    assert all(row["resetAt"] for row in stored(serving.session))


async def test_a_sign_in_that_is_gone_moves_the_request_and_is_kept(serving: Serving) -> None:
    async with serving(*BOTH) as http:
        serving.standin.revoke(ONE)
        assert [await heard(http, say("moved")) for _ in range(2)] == ["moved"] * 2
    invalid = {row["id"]: row["invalid"] for row in stored(serving.session)}
    assert invalid == {serving.ids[ONE]: True, serving.ids[TWO]: False}


async def test_a_human_check_is_told_and_rests_the_account(serving: Serving) -> None:
    async with serving(ONE) as http:
        for _ in range(2):
            answer = await ask(http, say("x", "punish"))
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "human_check_required"
    assert len(asked(serving.standin)) == 1


async def test_what_is_too_long_is_refused_before_any_call(serving: Serving) -> None:
    async with serving(ONE) as http:
        # What is no drawing goes as a document: `test_files_move.py`.
        answer = await http.post("/images/generations", json={"prompt": "ж" * 50_000})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert serving.standin.received("/api/v2/chats/new") == []


async def test_a_silent_answer_becomes_a_stream_of_comments(serving: Serving) -> None:
    async with serving(ONE) as http:
        began_s = time.monotonic()
        prompt = say("x", "hang_after_head")
        async with http.stream("POST", "/chat/completions", json=body(prompt, stream=True)) as answer:
            waited_s = time.monotonic() - began_s
            lines = [line async for line in answer.aiter_lines() if line]
    assert answer.status_code == 200
    assert 14 < waited_s < 25
    assert lines[0] == ": keep-alive"
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "upstream_timeout"
    assert not any('"role"' in line for line in lines)


async def test_more_than_the_page_can_hold_at_once_waits_its_turn(serving: Serving) -> None:
    async with serving(*BOTH) as http:
        answers: list[int] = []

        async def one() -> None:
            answers.append((await ask(http, say("hello there"))).status_code)

        async with anyio.create_task_group() as tasks:
            for _ in range(12):
                tasks.start_soon(one)
    assert answers == [200] * 12


@pytest.mark.parametrize("standin", ["B"], indirect=True)
async def test_a_bare_token_is_enough_where_the_service_takes_it(
    tmp_path: Path, standin: Standin, capfd: pytest.CaptureFixture[str]
) -> None:
    token, _ = standin.sign_in(ONE)
    session = tmp_path / "session"
    session.mkdir()
    (session / "tokens.json").write_text(json.dumps([{"id": "acc_1", "token": token, "resetAt": None}]))
    with running_proxy_of(tmp_path, standin) as proxy:
        async with client(proxy) as http:
            assert await heard(http, say("by token")) == "by token"
    assert token not in "".join(capfd.readouterr())
