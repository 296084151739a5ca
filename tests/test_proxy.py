"""One proxy from its start to its end, as a process: in a pipe, and in a terminal."""

from __future__ import annotations

import functools
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import anyio
import httpx
import pexpect
import pytest

from qwenproxy import proxy
from qwenproxy.engine import Engine
from qwenproxy.errors import NoAccount
from qwenproxy.instance import holder
from qwenproxy.settings import Settings, SettingsError
from tests.serve import Standin, clean_environment, free_port, proxy_variables, until, write_session

GONE: dict[str, object] = {"id": "acc_2", "token": "t", "resetAt": None, "invalid": True}
PAUSED: dict[str, object] = {"id": "acc_3", "token": "t", "resetAt": None, "paused": True}
WAITING: dict[str, object] = {"id": "acc_4", "token": "t", "resetAt": None, "waitsFor": "human"}


def settings_of(folder: Path, *rows: dict[str, object]) -> Settings:
    (folder / "tokens.json").write_text(json.dumps(rows))
    return Settings(_env_file=None, session_dir=folder, port=0, browser=str(folder / "none"))


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ((), "no account is signed in"),
        ((GONE,), "every account's sign-in is gone"),
        ((PAUSED,), "every account is paused"),
        ((GONE, PAUSED), "every account is paused or its sign-in is gone"),
    ],
)
async def test_a_start_without_a_usable_account_says_why(
    rows: tuple[dict[str, object], ...], said: str, tmp_path: Path
) -> None:
    with pytest.raises(NoAccount, match=said):
        await proxy.run(settings_of(tmp_path, *rows), str, view=False)


@pytest.mark.anyio
async def test_one_usable_account_is_enough_also_while_it_waits(tmp_path: Path) -> None:
    said: list[str] = []
    settings = settings_of(tmp_path, GONE, WAITING)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(functools.partial(proxy.run, settings, said.append, view=False))
        with anyio.fail_after(10):
            while not said:
                await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()
    assert "Serving http://" in said[0]


KEY = "a-key-for-the-test"


def write_keys(folder: Path, text: str) -> None:
    (folder / "Authorization.txt").write_text(text)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("host", "keys", "said"),
    [
        ("0.0.0.0", None, "^QWENPROXY_HOST='0.0.0.0' cannot be used without an API key.*Authorization.txt"),
        ("0.0.0.0", "# none\n", "cannot be used without an API key"),
        ("192.168.1.5", "", "cannot be used without an API key"),
        ("0.0.0.0", f"{KEY} oops", "line 1: after the key there may only be name=, scopes=, rpm="),
        ("127.0.0.1", f"{KEY} oops", "line 1: after the key there may only be name=, scopes=, rpm="),
    ],
)
async def test_a_start_that_would_be_open_to_others_is_refused(
    host: str, keys: str | None, said: str, tmp_path: Path
) -> None:
    if keys is not None:
        write_keys(tmp_path, keys)
    settings = settings_of(tmp_path, WAITING).model_copy(update={"host": host})
    with pytest.raises(SettingsError, match=said) as caught:
        await proxy.run(settings, str, view=False)
    assert not any(part in str(caught.value) for part in ("\n", KEY, "oops", str(tmp_path)))
    assert (tmp_path / "Authorization.txt").exists(), "where to put a key is there to be read"
    assert holder(tmp_path) is None


@pytest.mark.anyio
async def test_with_keys_other_addresses_are_served_and_our_own_commands_come_in(tmp_path: Path) -> None:
    write_keys(tmp_path, f"{KEY} scopes=chat\n")
    said: list[str] = []
    settings = settings_of(tmp_path, WAITING).model_copy(update={"host": "0.0.0.0"})
    async with anyio.create_task_group() as tasks, httpx.AsyncClient(trust_env=False) as client:
        tasks.start_soon(functools.partial(proxy.run, settings, said.append, view=False))
        held = None
        with anyio.fail_after(15):
            while held is None or not held.url or not said:
                await anyio.sleep(0.02)
                held = holder(tmp_path)
        assert held.url.startswith("http://127.0.0.1:"), "what is called is no address to listen on"
        assert f"{held.url}/v1" in said[0]
        url = f"{held.url}/api/status"
        keys: list[dict[str, str]] = [{}, {"x-api-key": KEY}, {"x-api-key": held.key}]
        assert [(await client.get(url, headers=key)).status_code for key in keys] == [401, 403, 200]
        tasks.cancel_scope.cancel()
    assert not (tmp_path / "proxy.json").exists()


@pytest.mark.anyio
async def test_a_view_that_fails_gives_way_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with anyio.move_on_after(0.2) as serving:
        await proxy._Seen(Settings(), "http://127.0.0.1:9").watch(cast(Engine, None))
    assert serving.cancelled_caught, "it must not end what is served"
    assert "the live view failed" in caplog.text


# ---- served for real ----

needs_terminal = pytest.mark.skipif(sys.platform == "win32", reason="pexpect needs a pseudo-terminal")
COMMAND = (sys.executable, "-m", "qwenproxy")


def environment(folder: Path, standin: Standin, **settings: object) -> dict[str, str]:
    return clean_environment(
        {**proxy_variables(folder, standin, port=free_port(), **settings), "TERM": "xterm"}
    )


def ask(base: str) -> httpx.Response:
    body = {"model": "qwen", "messages": [{"role": "user", "content": "Hello"}]}
    return httpx.post(f"{base}/v1/chat/completions", json=body, timeout=60, trust_env=False)


def log_of(folder: Path) -> str:
    return (folder / "session" / "logs" / "proxy.log").read_text("utf-8")


@contextmanager
def terminal(env: dict[str, str], *arguments: str) -> Iterator[pexpect.spawn[str]]:
    child = pexpect.spawn(
        COMMAND[0], [*COMMAND[1:], *arguments], env=env, encoding="utf-8", dimensions=(40, 120), timeout=30
    )
    try:
        yield child
    finally:
        child.kill(signal.SIGTERM)
        child.close(force=True)


def code_of(child: pexpect.spawn[str]) -> int:
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus is not None, f"ended by signal {child.signalstatus}"
    return child.exitstatus


@pytest.mark.browser
@pytest.mark.timeout(90)
def test_in_a_pipe_the_log_is_plain_and_kept(tmp_path: Path, standin: Standin) -> None:
    write_session(tmp_path / "session", standin, ("one@example.com",))
    env = environment(tmp_path, standin)
    with subprocess.Popen(
        [*COMMAND, "serve"], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        base = f"http://127.0.0.1:{env['QWENPROXY_PORT']}"
        assert child.stdout.readline() == f"Serving {base}/v1; Ctrl-C ends it\n"
        until(lambda: (held := holder(tmp_path / "session")) is not None and held.url == base)
        second = subprocess.run(
            [*COMMAND, "serve"], env=env, capture_output=True, text=True, timeout=30, check=False
        )
        assert (second.returncode, second.stdout) == (2, "")
        assert f"process {child.pid} at {base}" in second.stderr
        assert ask(base).status_code == 200
        child.send_signal(signal.SIGINT)
        _, logged = child.communicate(timeout=30)
    assert child.returncode == 0
    assert holder(tmp_path / "session") is None
    assert f"info serving {base}/v1" in logged
    assert re.search(rf"^\d{{4}}-\d\d-\d\d .* info serving {base}/v1$", log_of(tmp_path), re.MULTILINE)


@pytest.mark.browser
@pytest.mark.timeout(90)
def test_when_every_sign_in_goes_it_ends_with_code_3(tmp_path: Path, standin: Standin) -> None:
    write_session(tmp_path / "session", standin, ("one@example.com",))
    env = environment(tmp_path, standin)
    with subprocess.Popen(
        [*COMMAND, "serve"], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        base = f"http://127.0.0.1:{env['QWENPROXY_PORT']}"
        until(lambda: _ready(base))
        standin.revoke()
        assert ask(base).status_code == 503
        _, logged = child.communicate(timeout=30)
    assert child.returncode == 3
    assert json.loads((tmp_path / "session" / "tokens.json").read_text())[0]["invalid"]
    assert logged.splitlines()[-1].startswith("qwenproxy: ")
    assert "hint: ./start.sh" in logged.splitlines()[-1]


def _ready(base: str) -> bool:
    try:
        # Without certificates, whose reading would take a core from what is awaited.
        return httpx.get(f"{base}/ready", trust_env=False, verify=False).status_code == 200
    except httpx.TransportError:
        return False


@needs_terminal
@pytest.mark.browser
@pytest.mark.timeout(90)
def test_in_a_terminal_is_the_live_view_whose_q_waits_for_answers_and_q_again_does_not(
    tmp_path: Path, standin: Standin
) -> None:
    write_session(tmp_path / "session", standin, ("one@example.com",))
    env = environment(tmp_path, standin, drain_s=600)
    base = f"http://127.0.0.1:{env['QWENPROXY_PORT']}"
    body = {"messages": [{"role": "user", "content": "{{standin: long n=5000}}"}], "stream": True}
    with terminal(env, "serve") as child:
        child.expect_exact(base)
        until(lambda: _ready(base))
        assert ask(base).status_code == 200
        with httpx.stream("POST", f"{base}/v1/chat/completions", json=body, timeout=60) as answer:
            pieces = answer.iter_lines()
            assert next(pieces).startswith("data:")
            child.send("q")
            child.expect("Stopping")
            shown = str(child.before)
            for _ in range(40):
                next(pieces)
            assert child.isalive()
            child.send("q")
            rest = "".join(pieces)
        assert "shutting_down" in rest
        assert code_of(child) == 0
        assert " info " not in shown + str(child.before)
    assert f"info serving {base}/v1" in log_of(tmp_path)


@needs_terminal
@pytest.mark.browser
@pytest.mark.timeout(90)
@pytest.mark.parametrize(("arguments", "settings"), [(("--plain",), {}), ((), {"non_interactive": 1})])
def test_the_log_is_plain_in_a_terminal_when_it_should_be(
    arguments: tuple[str, ...], settings: dict[str, object], tmp_path: Path, standin: Standin
) -> None:
    write_session(tmp_path / "session", standin, ("one@example.com",))
    env = environment(tmp_path, standin, **settings)
    with terminal(env, "serve", *arguments) as child:
        child.expect_exact(f"Serving http://127.0.0.1:{env['QWENPROXY_PORT']}/v1; Ctrl-C ends it")
        child.sendintr()
        assert code_of(child) == 0
