"""The command line. A start that cannot be ends in one line that says why, and a hint where one is known.

Exit codes: 0 stopped on request; 1 nothing to serve with; 2 a setting, the port or the command line.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from types import FrameType, MappingProxyType
from typing import Any

from qwenproxy import __version__, logs
from qwenproxy.accounts.registry import Registry
from qwenproxy.clock import SystemClock
from qwenproxy.demo import base_url, demo
from qwenproxy.engine import engine
from qwenproxy.errors import NoAccount, QwenProxyError
from qwenproxy.server.app import bind, create_app, serve
from qwenproxy.settings import Settings, SettingsError, load

PRIVATE = 0o077
"""The umask: what this process writes is for its user alone."""
NOTHING_TO_SERVE = 1
AT_FAULT = 2
NO_ACCOUNT = "no account is signed in; hint: ./start.sh demo shows everything at work without one"

Overrides = Mapping[str, Any]
Command = Callable[[Overrides], Coroutine[Any, Any, None]]


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    os.umask(PRIVATE)
    options = vars(_parser().parse_args(arguments))
    command = COMMANDS[options.pop("command") or "serve"]
    logs.set_up()
    _stop_on("SIGTERM")
    _stop_on("SIGHUP")
    try:
        asyncio.run(command(options))
    except SettingsError as exc:
        return _refuse(exc, AT_FAULT)
    except QwenProxyError as exc:
        return _refuse(exc, NOTHING_TO_SERVE)
    except KeyboardInterrupt:
        return 0
    return 0


def _parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    shared.add_argument("--host", help="address to listen on; loopback only (default: 127.0.0.1)")
    shared.add_argument("--port", help="port to listen on (default: 3264)")
    parser = argparse.ArgumentParser(
        prog="qwenproxy",
        parents=[shared],
        allow_abbrev=False,
        description="Your own signed-in Qwen Chat accounts as an OpenAI-compatible API on this computer.",
        epilog="Every other setting is an environment variable or a line of .env; README.md lists them.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="command")
    for name, text in (
        ("serve", "serve with the accounts of the session folder; asks nothing (also without a command)"),
        ("demo", "show everything at work without an account, on a stand-in of Qwen Chat"),
    ):
        commands.add_parser(name, parents=[shared], allow_abbrev=False, help=text, description=text)
    return parser


async def _serve(overrides: Overrides) -> None:
    """Raises: SettingsError, NoAccount, SessionDamaged."""
    settings = load(overrides)
    with bind(settings) as listener:
        if not settings.stay_up and not _has_account(settings):
            raise NoAccount(NO_ACCOUNT)
        _say(f"Serving {base_url(listener)}/v1; Ctrl-C ends it\n")
        await serve(create_app(settings, partial(engine, settings)), settings, listener)


def _has_account(settings: Settings) -> bool:
    clock = SystemClock()
    accounts = Registry(settings.session_dir, clock).accounts()
    return any(account.state(clock.now()) != "INVALID" for account in accounts)


async def _demo(overrides: Overrides) -> None:
    await demo(overrides, _say)


COMMANDS: Mapping[str, Command] = MappingProxyType({"serve": _serve, "demo": _demo})


def _say(text: str) -> None:
    sys.stdout.write(text)
    # At once, also into a file or a pipe: a person or a script waits for it.
    sys.stdout.flush()


def _refuse(error: Exception, code: int) -> int:
    sys.stderr.write(logs.redact(f"qwenproxy: {error}") + "\n")
    return code


def _stop_on(name: str) -> None:
    """Makes a signal mean what Ctrl-C means, unless it is ignored, as `nohup` asks."""
    number = getattr(signal, name, None)
    if number is not None and signal.getsignal(number) == signal.SIG_DFL:
        signal.signal(number, _interrupt)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    signal.raise_signal(signal.SIGINT)
