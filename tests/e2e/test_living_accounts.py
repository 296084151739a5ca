"""Accounts that change under a running proxy: by the service's word, another program, their owner."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from qwenproxy.accounts.account import SignIn
from qwenproxy.accounts.registry import Registry
from qwenproxy.clock import SystemClock
from tests.serve import Proxy, Standin, running_proxy, running_proxy_of, until

pytestmark = [pytest.mark.browser, pytest.mark.timeout(90)]

ONE, TWO = "one@example.com", "two@example.com"


def call(proxy: Proxy, method: str, path: str, **more: Any) -> httpx.Response:
    """Without certificates, whose reading takes longer than the call."""
    url = f"{proxy.base}{path}"
    return httpx.request(method, url, timeout=60, trust_env=False, verify=False, **more)


def ask(proxy: Proxy, text: str = "Hello", **more: Any) -> httpx.Response:
    body = {"model": "qwen", "messages": [{"role": "user", "content": text}]}
    return call(proxy, "POST", "/v1/chat/completions", json=body, **more)


def status(proxy: Proxy, method: str = "GET") -> dict[str, Any]:
    told = call(proxy, method, "/api/status")
    assert told.status_code == 200, told.text
    return {row["id"]: row for row in told.json()["accounts"]}


def sign_in(standin: Standin, account: str, *, holds: timedelta = timedelta(days=30)) -> SignIn:
    state = standin.storage_state(account)
    state["cookies"][0]["expires"] = time.time() + holds.total_seconds()
    return SignIn(state["origins"][0]["localStorage"][0]["value"], state, account, account)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("living")


@pytest.fixture(scope="module")
def proxy(_standins: Callable[[str, bool], Standin], folder: Path) -> Iterator[Proxy]:
    """One proxy for all these tests, as a start takes seconds; it stays up whatever happens to accounts."""
    with running_proxy(folder, _standins("C", False), stay_up=1) as proxy:
        yield proxy


@pytest.fixture
def registry(proxy: Proxy, folder: Path) -> Registry:
    """The registry of the proxy, without the accounts of earlier tests."""
    registry = Registry(folder / "session", SystemClock())
    for account in registry.accounts():
        registry.remove(account.id)
    return registry


def added(proxy: Proxy, registry: Registry, *sign_ins: SignIn) -> list[str]:
    """The ids of these accounts, which are all that the proxy has."""
    ids = [registry.add(each)[0].id for each in sign_ins]
    until(lambda: list(status(proxy)) == ids)
    return ids


def test_the_status_follows_the_service_and_costs_no_message(
    proxy: Proxy, registry: Registry, standin: Standin
) -> None:
    one, two = added(proxy, registry, sign_in(standin, ONE), sign_in(standin, TWO))
    standin.fault("rate_limited", num=3, account=ONE)
    assert [ask(proxy).status_code for _ in range(3)] == [200] * 3
    rows = status(proxy)
    assert [row["status"] for row in rows.values()] == ["WAIT", "OK"]
    reset = datetime.fromisoformat(rows[one]["resetAt"])
    assert abs(reset - datetime.now(UTC) - timedelta(hours=3)) < timedelta(minutes=2)
    until(lambda: sum(row["servedToday"] for row in status(proxy).values()) == 3)
    standin.revoke(TWO)
    before = standin.state()["opened"]
    assert status(proxy, "POST")[two]["check"] == "signed out"
    assert standin.state()["opened"] == before
    until(lambda: status(proxy)[two]["status"] == "INVALID")
    refused = ask(proxy)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "all_accounts_waiting")
    assert 10_000 < int(refused.headers["retry-after"]) <= 10_800
    assert standin.state()["opened"] == before


def test_another_programs_changes_are_taken_up(proxy: Proxy, registry: Registry, standin: Standin) -> None:
    (one,) = added(proxy, registry, sign_in(standin, ONE))
    registry.update(one, lambda account: replace(account, paused=True))
    until(lambda: status(proxy)[one]["paused"])
    assert ask(proxy).status_code == 503
    two, known = registry.add(sign_in(standin, TWO))
    assert not known
    until(lambda: two.id in status(proxy))
    assert ask(proxy).status_code == 200
    registry.update(one, lambda account: replace(account, paused=False))
    registry.remove(two.id)
    until(lambda: list(status(proxy)) == [one])
    assert ask(proxy).status_code == 200


def test_signing_in_again_brings_an_account_back_and_drops_no_stream(
    proxy: Proxy, registry: Registry, standin: Standin
) -> None:
    (one,) = added(proxy, registry, sign_in(standin, ONE))
    body = {"model": "qwen", "stream": True}
    body |= {"messages": [{"role": "user", "content": "{{standin: long n=15}}"}]}
    url = f"{proxy.base}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, timeout=60, trust_env=False) as answer:
        lines = answer.iter_lines()
        next(lines)
        registry.sign_in_again(one, sign_in(standin, ONE))
        assert ask(proxy).status_code == 200
        rest = list(lines)
    assert "data: [DONE]" in rest
    assert not [line for line in rest if '"error"' in line]


def test_a_deleted_account_ends_its_streams_and_leaves_nothing(
    proxy: Proxy, registry: Registry, folder: Path, standin: Standin
) -> None:
    added(proxy, registry, sign_in(standin, ONE), sign_in(standin, TWO))
    body = {"model": "qwen", "stream": True}
    body |= {"messages": [{"role": "user", "content": "{{standin: long n=2000}}"}]}
    url = f"{proxy.base}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, timeout=60, trust_env=False) as answer:
        lines = answer.iter_lines()
        next(lines)
        busy = next(name for name, row in status(proxy).items() if row["inUse"])
        registry.remove(busy)
        rest = [line for line in lines if line.startswith("data: ")]
    assert "[DONE]" not in rest[-1]
    assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "no_account"
    assert ask(proxy).status_code == 200
    assert busy not in status(proxy)
    assert not (folder / "session" / "accounts" / busy).exists()
    assert busy not in (folder / "session" / "tokens.json").read_text()


def test_staying_up_it_answers_503_until_somebody_signs_in_again(
    proxy: Proxy, registry: Registry, standin: Standin
) -> None:
    (one,) = added(proxy, registry, sign_in(standin, ONE))
    standin.revoke()
    assert [ask(proxy).status_code for _ in range(2)] == [503, 503]
    time.sleep(1)
    assert ask(proxy).status_code == 503
    registry.sign_in_again(one, sign_in(standin, ONE))
    until(lambda: status(proxy)[one]["status"] == "OK")
    assert ask(proxy).status_code == 200


@pytest.mark.parametrize("standin", ["B"], indirect=True)
def test_requests_may_bring_their_own_tokens(tmp_path: Path, standin: Standin) -> None:
    own, _ = standin.sign_in(ONE)
    other, _ = standin.sign_in(TWO)
    dead, _ = standin.sign_in("three@example.com")
    standin.revoke("three@example.com")

    def lives(proxy: Proxy, token: str) -> object:
        return call(proxy, "POST", "/token/check", json={"token": token}).json()

    with running_proxy_of(tmp_path, standin, passthrough_tokens=1) as proxy, ThreadPoolExecutor(1) as pool:
        slow = pool.submit(lives, proxy, dead)  # its page is given time to sign in
        headers = {"Authorization": f"Bearer {own},{other}"}
        assert [ask(proxy, headers=headers).status_code for _ in range(4)] == [200] * 4
        counted = standin.state()["accounts"]
        assert [counted[account]["finished"] for account in (ONE, TWO)] == [2, 2]
        assert ask(proxy).status_code == 503
        assert lives(proxy, own) == {"live": True}
        assert slow.result() == {"live": False}
        assert status(proxy) == {}
    kept = "".join(p.read_text(errors="replace") for p in (tmp_path / "session").rglob("*") if p.is_file())
    for token in (own, other, dead):
        assert token not in kept


def test_a_damaged_registry_is_healed_while_serving_and_an_end_is_announced(
    proxy: Proxy, registry: Registry, folder: Path, standin: Standin
) -> None:
    session = folder / "session"
    tokens, log = session / "tokens.json", session / "logs" / "proxy.log"
    (one,) = added(proxy, registry, sign_in(standin, ONE, holds=timedelta(days=2)))
    until(lambda: f"{one}: its sign-in ends on" in log.read_text())
    tokens.write_text("torn by som")
    until(lambda: list(session.glob("tokens.json.corrupt-*")))
    until(lambda: one in tokens.read_text())
    assert registry.accounts()[0].id == one
    assert ask(proxy).status_code == 200
    assert list(status(proxy)) == [one]
    assert "serving goes on with the accounts known" in log.read_text()
