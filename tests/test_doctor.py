"""What the doctor finds: its checks one by one, and all of them against the stand-in."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from qwenproxy.accounts.account import Account
from qwenproxy.accounts.registry import Registry
from qwenproxy.api_keys import KeyRing, key_files
from qwenproxy.browser.chromium import Chromium
from qwenproxy.clock import SystemClock
from qwenproxy.doctor import Doctor, Finding, api_keys, port, reachable, session_folder
from qwenproxy.instance import Holder
from qwenproxy.settings import Settings
from tests.serve import Standin, clean_environment, free_port, proxy_variables, running_proxy, write_session

ONE, TWO = "one@example.com", "two@example.com"
TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJpZCI6IjEifQ.c2lnbmF0dXJl"
needs_rights = pytest.mark.skipif(sys.platform == "win32", reason="Windows has other rights")


def test_a_finding_is_one_line_with_its_hint_and_no_secret() -> None:
    assert Finding("port", "fail", "taken", "another").line() == "FAIL port: taken; hint: another"
    assert Finding("live", "warn", f"seen {TOKEN}").line() == "warn live: seen eyJ…"


@needs_rights
def test_files_that_others_may_read_are_told(tmp_path: Path) -> None:
    folder = tmp_path / "session"
    assert session_folder(folder).result == "ok"
    account = folder / "accounts" / "acc_1"
    account.mkdir(parents=True)
    (account / "token.txt").write_text(TOKEN)
    for path in (folder, folder / "accounts", account):
        path.chmod(0o700)
    (account / "token.txt").chmod(0o640)
    found = session_folder(folder)
    assert (found.result, "1 of its files" in found.text) == ("warn", True)
    (account / "token.txt").chmod(0o600)
    assert session_folder(folder).text.endswith("yours alone")


def test_a_file_in_the_folders_place_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "session").write_text("")
    assert session_folder(tmp_path / "session").result == "fail"


@needs_rights
def test_keys_are_told_by_their_number_and_never_themselves(tmp_path: Path) -> None:
    ours, older = tmp_path / "session" / "Authorization.txt", tmp_path / "src" / "Authorization.txt"
    long = "sk-a-key-that-is-long-enough"

    def told() -> Finding:
        return api_keys(KeyRing(key_files(tmp_path / "session")))

    assert (told().result, "none is needed" in told().text) == ("ok", True)
    assert not ours.parent.exists(), "a doctor changes nothing"
    ours.parent.mkdir()
    ours.write_text(f"{long}\n{long}2\n")
    ours.chmod(0o600)
    assert told() == Finding("keys", "ok", "2 API keys")
    older.parent.mkdir()
    older.write_text(f"{long}3")
    older.chmod(0o644)
    assert told().result == "warn"
    assert "3 API keys, but others may read src/Authorization.txt" in told().text
    older.chmod(0o600)
    older.write_text("hunter22")
    assert (told().result, "can be guessed" in told().text) == ("warn", True)
    ours.write_text(f"{long}\n{long} hunter22")
    found = told()
    assert (found.result, "line 2" in found.text) == ("fail", True)
    assert not any(part in found.line() for part in ("hunter22", long, str(tmp_path)))


def test_a_port_is_free_taken_or_our_own() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        settings = Settings(port=listener.getsockname()[1])
        ours = Holder(77, f"http://127.0.0.1:{settings.port}")
        elsewhere = Holder(78, "http://127.0.0.1:1")
        assert [port(settings, held).result for held in (None, ours, elsewhere)] == ["fail", "ok", "fail"]
        assert "process 77" in port(settings, ours).text
    assert "is free" in port(Settings(port=free_port()), None).text
    assert "process 78" in port(Settings(port=free_port()), elsewhere).text
    assert port(Settings(host="0.0.0.0"), None).result == "fail"
    assert port(Settings(host="0.0.0.0", port=free_port()), None, keyed=True).result == "ok"


@pytest.mark.anyio
async def test_a_host_is_reached_or_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = listener.getsockname()[1]
        assert (await reachable("service", f"http://127.0.0.1:{number}", "")).result == "ok"
        through = await reachable(
            "service", "https://chat.invalid", f"socks5://me:hunter22@127.0.0.1:{number}"
        )
        assert through == Finding("service", "ok", f"the proxy server 127.0.0.1:{number} can be reached")
        assert (await reachable("service", "https://chat.invalid", f"127.0.0.1:{number}")).result == "ok"
    refused = await reachable("service", f"http://127.0.0.1:{number}", "")
    assert (refused.result, bool(refused.hint)) == ("fail", True)


NOW = datetime.now(UTC)
OLD = Account(
    "acc_1",
    email=ONE,
    signed_in_at=NOW - timedelta(days=2, hours=12),
    holds_until=NOW + timedelta(days=28, hours=12),
)


@pytest.mark.parametrize(
    ("account", "live", "result", "text", "hint"),
    [
        (OLD, True, "ok", "live, signed in 2 d ago, holds 28 d more", ""),
        (
            replace(OLD, invalid=True),
            False,
            "warn",
            "signed out, signed in 2 d ago",
            "accounts relogin acc_1",
        ),
        (Account("acc_1"), None, "warn", "no answer", ""),
        (Account("acc_1", paused=True), True, "ok", "live, paused", ""),
        (
            Account("acc_1", why="limit", wait_until=NOW + timedelta(hours=3, minutes=30)),
            True,
            "ok",
            "live, waits 3 h for the end of a limit",
            "",
        ),
        (Account("acc_1", why="human"), True, "warn", "live, needs you", "accounts pass-check acc_1"),
        (
            Account("acc_1", holds_until=NOW + timedelta(days=1, hours=12)),
            True,
            "warn",
            "live, holds 1 d more",
            "it ends soon; accounts relogin acc_1",
        ),
    ],
)
def test_an_account_is_told_with_age_and_rest(
    account: Account, live: bool | None, result: str, text: str, hint: str
) -> None:
    found = Doctor(Settings(), SystemClock(), print)._sign_in(account, live, "no answer")
    assert (found.result, found.text, found.hint) == (result, text, hint)
    assert ONE not in found.line()


# ---- the message, by one Chromium ----


async def message(folder: Path, standin: Standin, chromium: Chromium) -> list[Finding]:
    """What one real message finds."""
    write_session(folder / "session", standin, (ONE,))
    settings = Settings(
        upstream=standin.site, auth_upstream=standin.auth, session_dir=folder / "session", port=free_port()
    )
    found: list[Finding] = []
    accounts = Registry(settings.session_dir, SystemClock()).accounts()
    await Doctor(settings, SystemClock(), found.append)._live(list(accounts), chromium)
    return found


@pytest.mark.anyio
@pytest.mark.browser
@pytest.mark.timeout(90)
async def test_what_differs_from_the_protocol_reference_is_told(
    tmp_path: Path, standin: Standin, chromium: Chromium
) -> None:
    standin.fault("novelties")
    live, *drift = await message(tmp_path, standin, chromium)
    assert live.result == "ok"
    told = {row.text for row in drift}
    assert 'unknown phase "telepathy"' in told
    assert 'unknown field "response.weather" in a frame' in told
    assert all((row.check, row.result) == ("drift", "warn") and "issue" in row.hint for row in drift)


@pytest.mark.anyio
@pytest.mark.browser
@pytest.mark.timeout(90)
async def test_a_refusal_nobody_knows_fails_with_its_code(
    tmp_path: Path, standin: Standin, chromium: Chromium
) -> None:
    standin.fault("unknown_error_stream")
    live, *drift = await message(tmp_path, standin, chromium)
    assert (live.check, live.result) == ("live", "fail")
    assert [row.text for row in drift] == ['unknown code "something_new" of a refusal']
    assert standin.chats() == []


# ---- the whole, as a process ----


def doctor(env: dict[str, str], *arguments: str) -> tuple[int, dict[str, list[dict[str, str]]], str]:
    """Its exit code, what it found by check, and all it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "qwenproxy", "doctor", "--json", *arguments],
        env=clean_environment(env),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=80,
        check=False,
    )
    told: dict[str, Any] = json.loads(done.stdout)
    assert told["ok"] is (done.returncode == 0)
    found: dict[str, list[dict[str, str]]] = {}
    for row in told["checks"]:
        assert row.keys() == {"check", "result", "text", "hint"}
        found.setdefault(row.pop("check"), []).append(row)
    return done.returncode, found, done.stdout + done.stderr


def test_without_accounts_or_service_what_fails_is_told_in_lines(tmp_path: Path) -> None:
    gone = f"http://127.0.0.1:{free_port()}"
    env = {"UPSTREAM": gone, "AUTH_UPSTREAM": gone, "BROWSER": "/nowhere/chromium"}
    number = str(free_port())
    done = subprocess.run(
        [sys.executable, "-m", "qwenproxy", "doctor", "--live", "--port", number],
        env=clean_environment(
            {f"QWENPROXY_{name}": value for name, value in env.items()} | {"PYTHONIOENCODING": "cp866"}
        ),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "")
    lines = done.stdout.splitlines()
    assert all(line.startswith(("ok   ", "warn ", "FAIL ")) for line in lines)
    assert [line[5:].partition(":")[0] for line in lines if line.startswith("FAIL")] == [
        "service",
        "sign-in host",
        "chromium",
        "accounts",
        "live",
    ]
    assert "/nowhere/chromium" in done.stdout
    assert f"port: 127.0.0.1:{number} is free" in done.stdout
    assert done.stdout.isascii()


@pytest.mark.browser
@pytest.mark.timeout(90)
def test_accounts_are_checked_and_nothing_is_sent(tmp_path: Path, standin: Standin) -> None:
    write_session(tmp_path / "session", standin, (ONE, TWO))
    standin.revoke(TWO)
    code, found, printed = doctor(proxy_variables(tmp_path, standin, port=free_port()))
    assert code == 0
    assert found["account acc_1 (o…@example.com)"][0]["text"].startswith("live, ")
    assert found["account acc_2"][0]["result"] == "warn"
    assert "relogin acc_2" in found["account acc_2"][0]["hint"]
    assert "sandbox" in found["chromium"][0]["text"]
    assert "QWENPROXY_HEADLESS=0" in found["window"][0]["hint"]
    assert "live" not in found
    assert not standin.received("/api/v2/chats/new", "POST")
    assert ONE not in printed
    assert "eyJ" not in printed


@pytest.mark.browser
@pytest.mark.timeout(90)
def test_one_real_message_is_sent_and_leaves_nothing(tmp_path: Path, standin: Standin) -> None:
    write_session(tmp_path / "session", standin, (ONE,))
    code, found, _ = doctor(proxy_variables(tmp_path, standin, port=free_port()), "--live")
    assert code == 0, found
    assert found["live"][0]["result"] == "ok"
    assert "qwen3.7-plus answered" in found["live"][0]["text"]
    assert found["drift"] == [
        {"result": "ok", "text": "nothing differs from the protocol reference", "hint": ""}
    ]
    assert len(standin.received("/api/v2/chat/completions")) == 1
    assert standin.chats() == []


@pytest.mark.browser
@pytest.mark.timeout(90)
def test_a_proxy_that_serves_is_asked_and_not_disturbed(tmp_path: Path, standin: Standin) -> None:
    with running_proxy(tmp_path, standin, (ONE,)) as proxy:
        before = standin.state()["opened"]
        code, found, _ = doctor(proxy_variables(tmp_path, standin, port=proxy.port), "--live")
        assert code == 0
        assert f"process {proxy.pid}" in found["port"][0]["text"]
        assert found["account acc_1"][0]["text"].startswith("live")
        assert found["live"][0]["result"] == "warn"
        assert standin.state()["opened"] == before
        assert httpx.get(f"{proxy.base}/ready", trust_env=False).status_code == 200
