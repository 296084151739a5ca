"""Accounts that change under a running proxy: by the service's word, another program, their owner."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from qwenproxy.accounts.account import SignIn
from qwenproxy.accounts.registry import Registry
from qwenproxy.clock import SystemClock
from tests.serve import (
    Proxy,
    Standin,
    clean_environment,
    proxy_variables,
    running_proxy,
    running_proxy_of,
    until,
    write_session,
)

pytestmark = [pytest.mark.browser, pytest.mark.timeout(90)]

ONE, TWO = "one@example.com", "two@example.com"


def ask(proxy: Proxy, text: str = "Hello", **more: Any) -> httpx.Response:
    body = {"model": "qwen", "messages": [{"role": "user", "content": text}]}
    return httpx.post(f"{proxy.base}/v1/chat/completions", json=body, timeout=60, trust_env=False, **more)


def status(proxy: Proxy, method: str = "GET") -> dict[str, Any]:
    told = httpx.request(method, f"{proxy.base}/api/status", timeout=60, trust_env=False)
    assert told.status_code == 200, told.text
    return {row["id"]: row for row in told.json()["accounts"]}


def registry_of(folder: Path) -> Registry:
    return Registry(folder / "session", SystemClock())


def sign_in(standin: Standin, account: str) -> SignIn:
    state = standin.storage_state(account)
    return SignIn(state["origins"][0]["localStorage"][0]["value"], state, account, account)


def test_the_status_follows_the_service_and_costs_no_message(tmp_path: Path, standin: Standin) -> None:
    with running_proxy(tmp_path, standin, (ONE, TWO)) as proxy:
        standin.fault("rate_limited", num=3, account=ONE)
        assert [ask(proxy).status_code for _ in range(3)] == [200] * 3
        rows = status(proxy)
        assert [row["status"] for row in rows.values()] == ["WAIT", "OK"]
        reset = datetime.fromisoformat(rows["acc_1"]["resetAt"])
        assert abs(reset - datetime.now(UTC) - timedelta(hours=3)) < timedelta(minutes=2)
        until(lambda: sum(row["servedToday"] for row in status(proxy).values()) == 3)
        standin.revoke(TWO)
        before = standin.state()["opened"]
        assert status(proxy, "POST")["acc_2"]["check"] == "signed out"
        assert standin.state()["opened"] == before
        until(lambda: status(proxy)["acc_2"]["status"] == "INVALID")
        refused = ask(proxy)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "all_accounts_waiting")
        assert 10_000 < int(refused.headers["retry-after"]) <= 10_800
        assert standin.state()["opened"] == before


def test_another_programs_changes_are_taken_up(tmp_path: Path, standin: Standin) -> None:
    registry = registry_of(tmp_path)
    with running_proxy(tmp_path, standin, (ONE,)) as proxy:
        registry.update("acc_1", lambda account: replace(account, paused=True))
        until(lambda: status(proxy)["acc_1"]["paused"])
        assert ask(proxy).status_code == 503
        added, known = registry.add(sign_in(standin, TWO))
        assert not known
        until(lambda: added.id in status(proxy))
        assert ask(proxy).status_code == 200
        registry.update("acc_1", lambda account: replace(account, paused=False))
        registry.remove(added.id)
        until(lambda: list(status(proxy)) == ["acc_1"])
        assert ask(proxy).status_code == 200


def test_signing_in_again_brings_an_account_back_and_drops_no_stream(
    tmp_path: Path, standin: Standin
) -> None:
    registry = registry_of(tmp_path)
    with running_proxy(tmp_path, standin, (ONE,)) as proxy:
        body = {"model": "qwen", "stream": True}
        body |= {"messages": [{"role": "user", "content": "{{standin: long n=15}}"}]}
        url = f"{proxy.base}/v1/chat/completions"
        with httpx.stream("POST", url, json=body, timeout=60, trust_env=False) as answer:
            lines = answer.iter_lines()
            next(lines)
            registry.sign_in_again("acc_1", sign_in(standin, ONE))
            assert ask(proxy).status_code == 200
            rest = list(lines)
        assert "data: [DONE]" in rest
        assert not [line for line in rest if '"error"' in line]


def test_a_deleted_account_ends_its_streams_and_leaves_nothing(tmp_path: Path, standin: Standin) -> None:
    registry = registry_of(tmp_path)
    with running_proxy(tmp_path, standin, (ONE, TWO)) as proxy:
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
    assert not (tmp_path / "session" / "accounts" / busy).exists()
    assert busy not in (tmp_path / "session" / "tokens.json").read_text()


def test_when_every_sign_in_is_gone_the_proxy_ends_with_code_3(tmp_path: Path, standin: Standin) -> None:
    with running_proxy(tmp_path, standin, (ONE,)) as proxy:
        standin.revoke()
        assert ask(proxy).status_code == 503
        assert proxy.process.wait(30) == 3
    assert registry_of(tmp_path).accounts()[0].invalid


def test_staying_up_it_answers_503_until_somebody_signs_in_again(tmp_path: Path, standin: Standin) -> None:
    with running_proxy(tmp_path, standin, (ONE,), stay_up=1) as proxy:
        standin.revoke()
        assert [ask(proxy).status_code for _ in range(2)] == [503, 503]
        time.sleep(1)
        assert ask(proxy).status_code == 503
        registry_of(tmp_path).sign_in_again("acc_1", sign_in(standin, ONE))
        until(lambda: status(proxy)["acc_1"]["status"] == "OK")
        assert ask(proxy).status_code == 200


@pytest.mark.parametrize("standin", ["B"], indirect=True)
def test_requests_may_bring_their_own_tokens(tmp_path: Path, standin: Standin) -> None:
    own, _ = standin.sign_in(ONE)
    other, _ = standin.sign_in(TWO)
    dead, _ = standin.sign_in("three@example.com")
    standin.revoke("three@example.com")
    with running_proxy_of(tmp_path, standin, passthrough_tokens=1) as proxy:
        headers = {"Authorization": f"Bearer {own},{other}"}
        assert [ask(proxy, headers=headers).status_code for _ in range(4)] == [200] * 4
        counted = standin.state()["accounts"]
        assert [counted[account]["finished"] for account in (ONE, TWO)] == [2, 2]
        assert ask(proxy).status_code == 503
        url = f"{proxy.base}/token/check"
        for token, live in ((own, True), (dead, False)):
            checked = httpx.post(url, json={"token": token}, timeout=60, trust_env=False)
            assert checked.json() == {"live": live}
        assert status(proxy) == {}
    kept = "".join(p.read_text(errors="replace") for p in (tmp_path / "session").rglob("*") if p.is_file())
    for token in (own, other, dead):
        assert token not in kept


def test_the_second_proxy_on_a_folder_says_who_holds_it(tmp_path: Path, standin: Standin) -> None:
    with running_proxy(tmp_path, standin, (ONE,)) as proxy:
        env = clean_environment(proxy_variables(tmp_path, standin, port=0))
        command = [sys.executable, "-m", "qwenproxy", "serve"]
        second = subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=30, check=False
        )
        assert second.returncode == 2
        assert str(proxy.pid) in second.stderr
        assert proxy.base in second.stderr
        assert ask(proxy).status_code == 200


def test_a_damaged_registry_is_healed_while_serving_and_an_end_is_announced(
    tmp_path: Path, standin: Standin
) -> None:
    session = tmp_path / "session"
    write_session(session, standin, (ONE,))
    tokens = session / "tokens.json"
    soon = (datetime.now(UTC) + timedelta(days=2)).isoformat()
    tokens.write_text(json.dumps([row | {"holdsUntil": soon} for row in json.loads(tokens.read_text())]))
    with running_proxy_of(tmp_path, standin) as proxy:
        log = session / "logs" / "proxy.log"
        until(lambda: "acc_1: its sign-in ends on" in log.read_text())
        tokens.write_text("torn by som")
        until(lambda: list(session.glob("tokens.json.corrupt-*")))
        until(lambda: registry_of(tmp_path).accounts()[0].id == "acc_1")
        assert ask(proxy).status_code == 200
        assert list(status(proxy)) == ["acc_1"]
        assert "serving goes on with the accounts known" in log.read_text()
