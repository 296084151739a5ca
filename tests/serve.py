"""What the tests talk to, on real sockets: any app, the stand-in, the proxy. All of it on loopback."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import httpx
import trustme
import uvicorn
from starlette.types import ASGIApp

ROOT = Path(__file__).resolve().parent.parent
DEADLINE_S = 30.0
"""Seconds until something awaited counts as never coming; the machine may be loaded."""
LOOK_EVERY_S = 0.01
OURS = ("PORT", "HOST", "SKIP_ACCOUNT_MENU", "NON_INTERACTIVE", "DEFAULT_MODEL")
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


def leaking(name: str) -> bool:
    """Whether an environment variable of this shell would change what a test sees."""
    upper = name.upper()
    return upper.startswith("QWENPROXY_") or upper in OURS or upper in PROXIES


def clean_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """This shell's environment without what leaks, and with our package importable."""
    kept = {name: value for name, value in os.environ.items() if not leaking(name)}
    return {**kept, "PYTHONPATH": str(ROOT), **(more or {})}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _server(app: ASGIApp) -> uvicorn.Server:
    return uvicorn.Server(
        uvicorn.Config(
            app,
            host="127.0.0.1",
            port=0,
            log_config=None,
            access_log=False,
            ws="none",
            timeout_graceful_shutdown=2,
        )
    )


def _address(server: uvicorn.Server) -> str:
    return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"


@contextmanager
def running(app: ASGIApp) -> Iterator[str]:
    """The app on a free port, in a thread of its own; gives its base URL."""
    server = _server(app)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive())
        yield _address(server)
    finally:
        server.should_exit = True
        thread.join()


@asynccontextmanager
async def serving(app: ASGIApp) -> AsyncIterator[str]:
    """The app on a free port, in this loop; gives its base URL."""
    server = _server(app)
    async with anyio.create_task_group() as group:
        # Not `serve`, which would take the signals of the test run.
        group.start_soon(server._serve)
        await until_async(lambda: server.started)
        try:
            yield _address(server)
        finally:
            server.should_exit = True


def until(true: Callable[[], object], deadline_s: float = DEADLINE_S) -> None:
    end_s = time.monotonic() + deadline_s
    while not true():
        if time.monotonic() > end_s:
            raise TimeoutError("it did not come to pass")
        time.sleep(LOOK_EVERY_S)


async def until_async(true: Callable[[], object], deadline_s: float = DEADLINE_S) -> None:
    end_s = time.monotonic() + deadline_s
    while not true():
        if time.monotonic() > end_s:
            raise TimeoutError("it did not come to pass")
        await anyio.sleep(LOOK_EVERY_S)


@dataclass(frozen=True)
class Standin:
    """A running stand-in, and its control routes."""

    site: str
    auth: str
    era: str
    process: subprocess.Popen[str]

    def state(self) -> dict[str, Any]:
        """Counters in all and per account, chats per account, sign-ins, options."""
        found: dict[str, Any] = self._control("GET", "state")
        return found

    def received(self, path: str = "/api/", method: str | None = None) -> list[dict[str, Any]]:
        """The API requests so far whose path begins so, oldest first."""
        found: list[dict[str, Any]] = self._control("GET", "received")
        return [each for each in found if each["path"].startswith(path) and method in (None, each["method"])]

    def turns(self) -> list[dict[str, Any]]:
        """Every turn since the last reset, oldest first: what the model was told, and what it said."""
        found: list[dict[str, Any]] = self._control("GET", "turns")
        return found

    def objects(self) -> list[dict[str, Any]]:
        """What lies in the storage, oldest first: account, path, name, size, sha256, parsed, parts …"""
        found: list[dict[str, Any]] = self._control("GET", "objects")
        return found

    def chats(self) -> list[str]:
        return [chat for chats in self.state()["chats"].values() for chat in chats]

    def booted(self, *people: str) -> bool:
        """Whether each one's newest sign-in has a booted page: who asks before meets a human check."""
        newest = {session["account"]: session["booted"] for session in self.state()["sessions"]}
        return all(newest[person] for person in people)

    def fault(self, name: str, **params: Any) -> None:
        """The next matching call fails so; `times`, `on` and `account` narrow or widen it."""
        self._control("POST", "faults", {"name": name, **params})

    def options(self, **changes: Any) -> None:
        self._control("POST", "options", changes)

    def expire(self, account: str | None = None) -> None:
        self._control("POST", "expire", {"account": account})

    def revoke(self, account: str | None = None) -> None:
        self._control("POST", "revoke", {"account": account})

    def solve(self, account: str | None = None) -> None:
        self._control("POST", "solve", {"account": account})

    def challenge(self, account: str | None = None) -> None:
        self._control("POST", "challenge", {"account": account})

    def break_streams(self) -> None:
        self._control("POST", "break")

    def reset(self, *, sessions: bool = True) -> None:
        self._control("POST", "reset", {"sessions": sessions})

    def sign_in(self, account: str) -> tuple[str, dict[str, str]]:
        """A sign-in without the page: its token, and its cookie's name and value."""
        made = self._control("POST", "token", {"account": account})
        return made["token"], made["cookie"]

    def storage_state(self, account: str) -> dict[str, Any]:
        """A sign-in as Playwright keeps one: cookies and localStorage."""
        token, cookie = self.sign_in(account)
        host = httpx.URL(self.site).host
        return {
            "cookies": [
                {
                    **cookie,
                    "domain": host,
                    "path": "/",
                    "expires": time.time() + 2_592_000,
                    "httpOnly": self.era == "C",
                    "secure": self.site.startswith("https"),
                    "sameSite": "Lax",
                }
            ],
            "origins": [{"origin": self.site, "localStorage": [{"name": "token", "value": token}]}],
        }

    async def until(
        self, true: Callable[[dict[str, Any]], object], deadline_s: float = DEADLINE_S
    ) -> dict[str, Any]:
        """The first state for which it is true."""
        end_s = time.monotonic() + deadline_s
        while not true(state := await anyio.to_thread.run_sync(self.state)):
            if time.monotonic() > end_s:
                raise TimeoutError(f"the stand-in never came to this; last: {state}")
            await anyio.sleep(LOOK_EVERY_S)
        return state

    def _control(self, method: str, name: str, body: Mapping[str, Any] | None = None) -> Any:
        url = f"{self.site}/__standin__/{name}"
        answer = httpx.request(method, url, json=body or {}, verify=trusting_all(), timeout=DEADLINE_S)
        assert answer.status_code == 200, answer.text
        return answer.json()


def trusting_all() -> ssl.SSLContext:
    """Trusts every certificate: the stand-in's is made up for the run."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@contextmanager
def process(command: list[str], folder: Path, env: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A process of ours; it is asked to stop at the end, then made to."""
    started = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=folder, env=clean_environment(env)
    )
    try:
        yield started
    finally:
        started.send_signal(signal.SIGTERM)
        try:
            started.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()
        if started.stdout is not None:
            started.stdout.close()


@contextmanager
def running_standin(
    folder: Path,
    *,
    era: str = "C",
    http2: bool = False,
    settle_s: float = 0.0,
    arguments: list[str] | None = None,
    temporary: Path | None = None,
) -> Iterator[Standin]:
    """A stand-in in a process of its own; over HTTP/2 its certificate lies in the folder.

    `temporary` is where it keeps what is uploaded; None: where this computer keeps such things.
    """
    command = [sys.executable, "-m", "qwenproxy.standin", "--era", era, "--settle-s", str(settle_s)]
    if http2:
        command += ["--http2", *_certificate(folder)]
    env = {} if temporary is None else {"TMPDIR": str(temporary)}
    with process([*command, *(arguments or [])], folder, env) as started:
        assert started.stdout is not None
        line = started.stdout.readline()
        assert line, "the stand-in did not start"
        addresses = json.loads(line)
        yield Standin(addresses["site"], addresses["auth"], era, started)


def _certificate(folder: Path) -> list[str]:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    certificate.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    authority.cert_pem.write_to_path(folder / "authority.pem")
    return ["--tls-cert", str(folder / "cert.pem"), "--tls-key", str(folder / "key.pem")]


@dataclass(frozen=True)
class Proxy:
    """The running proxy."""

    port: int
    process: subprocess.Popen[str]

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def running_proxy(
    folder: Path, standin: Standin, accounts: tuple[str, ...] = ("one@example.com",), **settings: object
) -> Iterator[Proxy]:
    """`python -m qwenproxy serve` on a free port, signed in to the stand-in, its pages booted."""
    write_session(folder / "session", standin, accounts)
    with running_proxy_of(folder, standin, **settings) as proxy:
        until(lambda: standin.booted(*accounts), 60)
        yield proxy


@contextmanager
def running_proxy_of(folder: Path, standin: Standin, **settings: object) -> Iterator[Proxy]:
    """The same with the session folder that is already there."""
    port = free_port()
    env = proxy_variables(folder, standin, port=port, **settings)
    with process([sys.executable, "-m", "qwenproxy", "serve"], folder, env) as started:
        until(lambda: started.poll() is not None or _ready(port), 60)
        assert started.poll() is None, "the proxy did not start"
        yield Proxy(port, started)


def proxy_variables(folder: Path, standin: Standin, **settings: object) -> dict[str, str]:
    """The environment of a proxy on the folder's session that knows no service but the stand-in."""
    known = {
        "upstream": standin.site,
        "auth_upstream": standin.auth,
        "storage_endpoint": standin.site,
        "session_dir": folder / "session",
    }
    return {f"QWENPROXY_{name.upper()}": str(value) for name, value in {**known, **settings}.items()}


def write_session(session: Path, standin: Standin, accounts: tuple[str, ...]) -> None:
    """A session folder whose accounts are signed in to the stand-in (peers.md §2.1's layout)."""
    rows = []
    for number, account in enumerate(accounts, 1):
        state, name = standin.storage_state(account), f"acc_{number}"
        token = state["origins"][0]["localStorage"][0]["value"]
        own = session / "accounts" / name
        own.mkdir(parents=True)
        (own / "state.json").write_text(json.dumps(state))
        (own / "token.txt").write_text(token)
        rows.append({"id": name, "token": token, "resetAt": None, "invalid": False})
    (session / "tokens.json").write_text(json.dumps(rows))


def _ready(port: int) -> bool:
    try:
        # Without certificates, whose reading would take a core away from what is awaited.
        return httpx.get(f"http://127.0.0.1:{port}/ready", trust_env=False, verify=False).status_code == 200
    except httpx.TransportError:
        return False
