"""`doctor`: what works here and what does not, one line a check, with a hint where something is wrong.

It changes nothing but what a free check always learns of an account. Nothing secret is printed, e-mails are
masked: what it says may be posted as it is.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import stat
import sys
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeAlias
from urllib.parse import urlsplit

import anyio
import psutil
from anyio.to_thread import run_sync

from qwenproxy import logs
from qwenproxy.account_commands import ask_proxy
from qwenproxy.account_table import coarse
from qwenproxy.accounts.account import Account
from qwenproxy.accounts.registry import Registry
from qwenproxy.api_keys import KeyRing, counted, key_files
from qwenproxy.browser.chromium import Chromium, Running
from qwenproxy.browser.contexts import BrowserTransport
from qwenproxy.browser.install import HINT, Places, present
from qwenproxy.browser.login import screen_problem
from qwenproxy.browser.site_page import StorageState, state_from_token
from qwenproxy.chat import Delta, Message, Text
from qwenproxy.clock import Clock, SystemClock
from qwenproxy.enrolment import Enrolment
from qwenproxy.errors import BrowserError, BrowserMissing, ProtocolChanged, QwenProxyError
from qwenproxy.instance import Holder, hold, holder
from qwenproxy.janitor import Janitor
from qwenproxy.ledger import Ledger
from qwenproxy.qwen import failures
from qwenproxy.qwen.client import QwenClient, Turn
from qwenproxy.qwen.drift import Drift
from qwenproxy.qwen.models import resolve
from qwenproxy.qwen.payload import fold
from qwenproxy.qwen.sse import SseDecoder
from qwenproxy.qwen.transport import Fetch, Fetched, Transport
from qwenproxy.server.app import PortTaken, bind
from qwenproxy.settings import Settings, SettingsError, load

FINE, BROKEN = 0, 1
CONNECT_S = 10.0
LOOK_FOR_OWN_S = 30.0
QUESTION = "Reply with the single word: pong"
HEARD_BYTES = 4 * 1024 * 1024
"""Of one answer, as much as is compared with the protocol reference."""
PORTS = MappingProxyType({"https": 443, "http": 80, "socks5": 1080, "socks4": 1080})
GOOD_KEY = "openssl rand -hex 32 makes a good one"
PLACE = "Install location:"
"""How Playwright begins the line that says where it keeps its Chromium."""
ID = re.compile(r"[0-9a-fA-F-]{36}")
OTHERS = 0o077
"""The rights that nobody but the owner should have."""
REPORT = "please report this line as an issue, with the date; qwenproxy goes on as far as it can"
VISIBLE = (
    "the service asks a visible window less often for human checks: QWENPROXY_HEADLESS=0, on a server with a "
    "virtual screen: xvfb-run"
)

Result = Literal["ok", "warn", "fail"]
WORDS: Mapping[Result, str] = MappingProxyType({"ok": "ok  ", "warn": "warn", "fail": "FAIL"})


@dataclass(frozen=True, slots=True)
class Finding:
    check: str
    result: Result
    text: str
    hint: str = ""

    def line(self) -> str:
        hint = f"; hint: {self.hint}" if self.hint else ""
        return logs.redact(f"{WORDS[self.result]} {self.check}: {self.text}{hint}")


Tell: TypeAlias = Callable[[Finding], None]


def add_parser(commands: Any, address: argparse.ArgumentParser) -> None:
    """`doctor`, among the program's commands; `address` has the options of `serve` that it knows too."""
    text = "say what works here and what does not, one line each, with a hint"
    parser = commands.add_parser(
        "doctor",
        parents=[address],
        allow_abbrev=False,
        help=text,
        description="Says what works here and what does not, one line each, with a hint. Exit code 1 when "
        "something fails. What it prints holds no secret and may be posted.",
    )
    parser.add_argument(
        "--live",
        action="store_true",
        help="also send one short real message, and tell what differs from the protocol known",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help='for programs: {"ok", "checks": [{"check", "result", "text", "hint"}]}',
    )


def run(options: Mapping[str, Any]) -> int:
    """The exit code.

    Raises:
        SettingsError: a setting cannot be used.
    """
    settings = load({name: options[name] for name in ("host", "port") if name in options})
    found: list[Finding] = []

    def tell(finding: Finding) -> None:
        found.append(finding)
        if not options["json"]:
            sys.stdout.write(finding.line() + "\n")
            sys.stdout.flush()

    with logs.console(on=False):
        asyncio.run(Doctor(settings, SystemClock(), tell).examine(live=options["live"]))
    fine = all(finding.result != "fail" for finding in found)
    if options["json"]:
        rows = [
            {"check": f.check, "result": f.result, "text": logs.redact(f.text), "hint": f.hint} for f in found
        ]
        sys.stdout.write(json.dumps({"ok": fine, "checks": rows}, indent=1) + "\n")
    return FINE if fine else BROKEN


class Doctor:
    def __init__(self, settings: Settings, clock: Clock, tell: Tell) -> None:
        self._settings = settings
        self._clock = clock
        self._tell = tell
        self._registry = Registry(settings.session_dir, clock)
        self._holder: Holder | None = None

    async def examine(self, *, live: bool) -> None:
        self._tell(Finding("python", "ok", f"{platform.python_version()} on {platform.system()}"))
        self._holder = await run_sync(holder, self._settings.session_dir)
        self._tell(await run_sync(partial(session_folder, self._settings.session_dir)))
        ring = KeyRing(key_files(self._settings.session_dir))
        self._tell(await run_sync(partial(api_keys, ring)))
        self._tell(await run_sync(partial(port, self._settings, self._holder, keyed=ring.on)))
        for name, origin in (
            ("service", self._settings.upstream),
            ("sign-in host", self._settings.auth_upstream),
        ):
            self._tell(await reachable(name, origin, self._settings.proxy))
        async with AsyncExitStack() as stack:
            chromium = await self._chromium(stack)
            accounts = await self._accounts()
            usable = await self._sign_ins(accounts, chromium) if accounts else []
            self._tell(self._window(accounts))
            if live:
                await self._live(usable, chromium)

    # ---- the browser ----

    async def _chromium(self, stack: AsyncExitStack) -> Chromium | None:
        """A Chromium that runs, unless there is none."""
        try:
            if not await _is_there(self._settings):
                text = "none found on this computer"
                self._tell(Finding("chromium", "warn", text, f"the first start downloads one; or {HINT}"))
                return None
            chromium = await stack.enter_async_context(Chromium(self._settings, say=_nowhere))
            running = await chromium.first()
        except BrowserError as exc:
            self._tell(Finding("chromium", "fail", str(exc), "" if isinstance(exc, BrowserMissing) else HINT))
            return None
        self._tell(await run_sync(browser, running))
        return chromium

    def _window(self, accounts: tuple[Account, ...]) -> Finding:
        asked = any(account.why == "human" for account in accounts)
        if self._settings.headless:
            return Finding("window", "warn" if asked else "ok", "none, Chromium runs headless", VISIBLE)
        problem = screen_problem()
        if problem:
            return Finding("window", "fail", f"QWENPROXY_HEADLESS=0, but {problem}")
        return Finding("window", "ok", "visible")

    # ---- the accounts ----

    async def _accounts(self) -> tuple[Account, ...]:
        try:
            accounts = await run_sync(self._registry.accounts)
        except QwenProxyError as exc:
            self._tell(Finding("accounts", "fail", str(exc), "a start repairs what can be repaired"))
            return ()
        if not accounts:
            self._tell(Finding("accounts", "fail", "none is signed in", "accounts add, or 1 in the menu"))
        return accounts

    async def _sign_ins(self, accounts: tuple[Account, ...], chromium: Chromium | None) -> list[Account]:
        """The accounts that can answer a message."""
        try:
            found = await self._asked(accounts, chromium)
        except QwenProxyError as exc:
            found = {}
            self._tell(Finding("accounts", "warn", f"not checked: {exc}"))
        fresh = {account.id: account for account in await run_sync(self._registry.accounts)}
        usable = []
        for account in (fresh.get(known.id, known) for known in accounts):
            live, note = found.get(account.id, (None, "not checked"))
            self._tell(self._sign_in(account, live, note))
            if live and account.ready(self._clock.now()):
                usable.append(account)
        if not any(account.usable for account in fresh.values()):
            text = "none is usable: signed out or paused"
            self._tell(Finding("accounts", "fail", text, "accounts relogin, or accounts resume"))
        return usable

    async def _asked(
        self, accounts: tuple[Account, ...], chromium: Chromium | None
    ) -> Mapping[str, tuple[bool | None, str]]:
        """Raises: QwenProxyError."""
        ids = tuple(account.id for account in accounts)
        if self._holder is not None:
            answers = await run_sync(ask_proxy, self._holder, ids)
            return {each: (answer.live, answer.note) for each, answer in answers.items()}
        if chromium is None:
            raise BrowserMissing("there is no Chromium to ask with")
        enrolment = Enrolment(self._settings, self._registry, self._clock, say=_nowhere, chromium=chromium)
        return {each.account.id: (each.live, each.note) for each in await enrolment.check(ids)}

    def _sign_in(self, account: Account, live: bool | None, note: str) -> Finding:
        now = self._clock.now()
        name = f"account {account.id}" + (f" ({account.masked_email})" if account.masked_email else "")
        parts = [{True: "live", False: "signed out", None: note}[live]]
        if account.paused:
            parts.append("paused")
        if account.state(now) == "WAIT" and account.wait_until is not None:
            parts.append(f"waits {coarse(account.wait_until - now)} for the end of a limit")
        if account.signed_in_at is not None:
            parts.append(f"signed in {coarse(now - account.signed_in_at)} ago")
        if account.holds_until is not None and live is not False:
            parts.append(f"holds {coarse(account.holds_until - now)} more")
        text = ", ".join(parts)
        if live is False:
            return Finding(name, "warn", text, f"accounts relogin {account.id}")
        if account.why == "human":
            return Finding(name, "warn", f"{text}, needs you", f"accounts pass-check {account.id}")
        if account.ends_soon(now):
            return Finding(name, "warn", text, f"it ends soon; accounts relogin {account.id}")
        return Finding(name, "ok" if live else "warn", text)

    # ---- a real message ----

    async def _live(self, usable: list[Account], chromium: Chromium | None) -> None:
        if self._holder is not None:
            text = "not sent: a proxy serves this folder, and its pages are not to be disturbed"
            self._tell(Finding("live", "warn", text, f"stop {self._holder} first"))
            return
        if not usable or chromium is None:
            self._tell(Finding("live", "fail", "not sent: no account can answer now"))
            return
        drift = Drift()
        try:
            self._tell(await self._message(usable[0].id, chromium, drift))
        except (QwenProxyError, OSError) as exc:
            self._tell(Finding("live", "fail", f"{exc}{_seen(exc)}"))
        for finding in drift.report():
            self._tell(Finding("drift", "warn", finding, REPORT))
        if not drift.report():
            self._tell(Finding("drift", "ok", "nothing differs from the protocol reference"))

    async def _message(self, account_id: str, chromium: Chromium, drift: Drift) -> Finding:
        settings, begun_s = self._settings, self._clock.monotonic_s()

        def state_of(account_id: str) -> StorageState:
            saved = self._registry.browser_state(account_id)
            return saved or state_from_token(self._registry.token(account_id), settings.upstream)

        with hold(settings.session_dir):
            road = BrowserTransport(settings, state_of, self._registry.keep_state, chromium=chromium)
            client = QwenClient(_Listening(road, drift), settings, self._clock)
            ledger = await run_sync(Ledger, settings.session_dir / "chats.jsonl")
            janitor = Janitor(ledger, client, keep=False)
            async with road, janitor.at_work():
                # Kept until both are left: out of a task group it would come as a group.
                try:
                    outcome: str | QwenProxyError = await self._talk(account_id, client, janitor)
                except QwenProxyError as exc:
                    outcome = exc
        if isinstance(outcome, QwenProxyError):
            raise outcome
        return Finding("live", "ok", f"{outcome} in {self._clock.monotonic_s() - begun_s:.1f} s")

    async def _talk(self, account_id: str, client: QwenClient, janitor: Janitor) -> str:
        await client.who(account_id)
        models = await client.models(account_id)
        if not models:
            raise ProtocolChanged("the service's model list is empty")
        model = resolve(self._settings.default_model, models, default=models[0].id, unknown="default")
        turn = Turn(model, fold((Message("user", QUESTION),), "doctor"))
        chat = await janitor.fresh(account_id, partial(client.new_chat, account_id, model))
        try:
            said = await _said(client.stream(account_id, chat.id, turn))
        finally:
            janitor.done(chat)
        return f"{model.id} answered {len(said)} characters to account {account_id}"


async def _said(deltas: AsyncGenerator[Delta]) -> str:
    async with aclosing(deltas):
        return "".join([delta.text async for delta in deltas if isinstance(delta, Text)])


def _seen(error: Exception) -> str:
    return f" (it began with {error.seen!r})" if isinstance(error, ProtocolChanged) and error.seen else ""


def _nowhere(text: str) -> None:
    """Doctor says what it found itself."""


# ---- the checks that need no account ----


def session_folder(folder: Path) -> Finding:
    """Whether the accounts are kept, and from others."""
    if not os.path.lexists(folder):
        return Finding("session", "ok", f"{folder} is not there yet; the first sign-in makes it")
    if not folder.is_dir():
        return Finding("session", "fail", f"{folder} is no folder", "QWENPROXY_SESSION_DIR names another")
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        return Finding(
            "session", "fail", f"{folder} cannot be written", "make it your own, for instance by chown"
        )
    opened = sum(_open_to_others(path) for path in _kept_in(folder))
    if opened:
        text = f"{folder} is writable, but {opened} of its files and folders are open to others"
        return Finding("session", "warn", text, "a start of the proxy closes them; or chmod -R go-rwx")
    return Finding(
        "session", "ok", f"{folder} is writable" + ("" if os.name == "nt" else ", and yours alone")
    )


def _kept_in(folder: Path) -> Iterator[Path]:
    """What may hold a secret."""
    yield folder
    yield from folder.glob("*.json*")
    yield from (folder / "accounts").rglob("*")
    yield from (folder / "logs").glob("*")


def _open_to_others(path: Path) -> bool:
    """Windows has other rights: the user's own folder is the user's alone."""
    try:
        return os.name != "nt" and bool(stat.S_IMODE(path.lstat().st_mode) & OTHERS) and not path.is_symlink()
    except OSError:
        return False


def api_keys(ring: KeyRing) -> Finding:
    """Whether callers need keys, and whether those are kept from others."""
    try:
        ring.read()
    except SettingsError as exc:
        return Finding("keys", "fail", str(exc), "mend or delete it; until then nothing is served")
    if not ring.on:
        return Finding("keys", "ok", "none is needed: every program of this computer may call")
    text = counted(len(ring.keys))
    opened = list(ring.open_to_others())
    if opened:
        return Finding("keys", "warn", f"{text}, but others may read {' and '.join(opened)}", "chmod 600 it")
    short = sum(key.short for key in ring.keys)
    if short:
        return Finding("keys", "warn", f"{text}, {short} of them so short that it can be guessed", GOOD_KEY)
    return Finding("keys", "ok", text)


def port(settings: Settings, held: Holder | None, *, keyed: bool = False) -> Finding:
    """Whether the port may be listened on, or is by ourselves."""
    where = f"{settings.host}:{settings.port}"
    try:
        bind(settings, keyed=keyed).close()
    except PortTaken as exc:
        if held is not None and held.url.endswith(f":{settings.port}"):
            return Finding("port", "ok", f"our own proxy listens on {where}: {held}")
        return Finding("port", "fail", str(exc))
    except SettingsError as exc:
        return Finding("port", "fail", str(exc))
    elsewhere = f"; {held} serves this folder" if held is not None else ""
    return Finding("port", "ok", f"{where} is free{elsewhere}")


async def reachable(name: str, origin: str, proxy: str) -> Finding:
    """Whether a connection can be made; with a proxy server set, to that one."""
    url = urlsplit(proxy if "://" in proxy or not proxy else f"http://{proxy}")
    url = url if proxy else urlsplit(origin)
    host = url.hostname or ""
    number = url.port or PORTS.get(url.scheme, 443)
    what = f"the proxy server {host}:{number}" if proxy else f"{host}:{number}"
    try:
        with anyio.fail_after(CONNECT_S):
            stream = await anyio.connect_tcp(host, number)
            await stream.aclose()
    except (OSError, TimeoutError):
        hint = "look at QWENPROXY_PROXY" if proxy else "look at the network, a firewall, or QWENPROXY_PROXY"
        return Finding(name, "fail", f"{what} cannot be reached", hint)
    return Finding(name, "ok", f"{what} can be reached")


def browser(running: Running) -> Finding:
    """Which Chromium it is, and whether its sandbox is on."""
    process = psutil.Process(running.browser_pid)
    try:
        program, switches = process.exe(), process.cmdline()
    except psutil.Error:
        return Finding(
            "chromium", "warn", f"{running.browser.version} runs, its sandbox could not be looked at"
        )
    text = f"{running.browser.version}, {program}"
    if "--no-sandbox" in switches:
        why = "off, for it runs as root" if hasattr(os, "geteuid") and os.geteuid() == 0 else "off"
        return Finding("chromium", "warn", f"{text}, sandbox {why}", "start the proxy as an ordinary user")
    return Finding("chromium", "ok", f"{text}, sandbox on")


async def _is_there(settings: Settings) -> bool:
    """Whether a Chromium can be started without getting one first. Raises: BrowserMissing."""
    if await run_sync(present, settings.browser, Path(), Places.of_this_computer()) is not None:
        return True
    command = [sys.executable, "-m", "playwright", "install", "--dry-run", "chromium"]
    try:
        with anyio.fail_after(LOOK_FOR_OWN_S):
            told = await anyio.run_process(command, check=False)
    except (OSError, TimeoutError):
        return False
    lines = [line.strip() for line in told.stdout.decode("utf-8", "replace").splitlines()]
    places = [line.removeprefix(PLACE).strip() for line in lines if line.startswith(PLACE)]
    return await run_sync(lambda: any(Path(place).is_dir() for place in places if "chromium-" in place))


# ---- what the service said, put beside the protocol reference ----


class _Listening:
    """A road whose answers are compared as they pass."""

    def __init__(self, road: Transport, drift: Drift) -> None:
        self._road = road
        self._drift = drift

    @asynccontextmanager
    async def fetch(self, account_id: str, call: Fetch) -> AsyncGenerator[Fetched]:
        async with self._road.fetch(account_id, call) as fetched:
            kind = fetched.headers.get("content-type", "")
            # Of another host's answer a page may read few headers, and a firewall's page is no answer.
            if call.host == "site" and kind.startswith(("application/json", "text/event-stream")):
                self._drift.head(
                    f"{call.method} {ID.sub('{id}', call.path.partition('?')[0])}", fetched.headers
                )
            yield _Heard(fetched, call, self._drift)

    async def renew(self, account_id: str, rejected: str) -> bool:
        return await self._road.renew(account_id, rejected)


class _Heard:
    def __init__(self, fetched: Fetched, call: Fetch, drift: Drift) -> None:
        self._fetched = fetched
        self._call = call
        self._drift = drift

    @property
    def status(self) -> int:
        return self._fetched.status

    @property
    def headers(self) -> Mapping[str, str]:
        return self._fetched.headers

    @property
    def credential(self) -> str:
        return self._fetched.credential

    async def pieces(self) -> AsyncGenerator[bytes]:
        heard = bytearray()
        try:
            async with aclosing(self._fetched.pieces()) as pieces:
                async for piece in pieces:
                    heard += piece[: HEARD_BYTES - len(heard)]
                    yield piece
        finally:
            self._compare(bytes(heard))

    def _compare(self, body: bytes) -> None:
        if failures.expects_stream(self.headers):
            self._compare_stream(body)
            return
        try:
            answer = json.loads(body)
        except ValueError:
            return  # whoever asked says so
        self._drift.refusal(answer)
        data = answer.get("data", answer) if isinstance(answer, dict) else answer
        if isinstance(answer, dict) and answer.get("success") is False:
            return
        if self._call.path.endswith("/models/"):
            self._drift.models(data)
        elif self._call.path.endswith("/auths/"):
            self._drift.user(data)

    def _compare_stream(self, body: bytes) -> None:
        events = SseDecoder()
        with suppress(ProtocolChanged):  # whoever asked says so
            for event in (*events.push(body), *events.flush()):
                self._drift.event(event)
        self._drift.end()
