"""The command line. A start that cannot be ends in one line that says why, and a hint where one is known.

Exit codes: 0 stopped on request, or done; 1 nothing to serve with, or it could not be done; 2 a setting, the
port, the command line, or a folder that is served already; 3 no usable account, at the start or at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from types import FrameType, MappingProxyType
from typing import Any

from rich.console import Console

from qwenproxy import __version__, account_commands, doctor, logs, proxy
from qwenproxy.demo import demo
from qwenproxy.errors import NoAccount, QwenProxyError, SessionLocked
from qwenproxy.menu import menu
from qwenproxy.settings import Settings, SettingsError, load

PRIVATE = 0o077
"""The umask: what this process writes is for its user alone."""
NOTHING_TO_SERVE = 1
AT_FAULT = 2
NO_ACCOUNT = 3
SCRIPT = "start.bat" if sys.platform == "win32" else "./start.sh"
HINT = f"hint: {SCRIPT} opens the menu; {SCRIPT} demo shows everything at work without one"
SERVING = ("menu", "serve", "demo")
"""Commands whose end by Ctrl-C is the end they are meant to have."""

Options = Mapping[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    os.umask(PRIVATE)
    _write_anywhere()
    try:
        return _run(arguments)
    finally:
        _let_go()


def _run(arguments: Sequence[str] | None) -> int:
    options = vars(parser().parse_args(arguments))
    command = options.pop("command") or "menu"
    logs.set_up()
    _stop_on("SIGTERM")
    _stop_on("SIGHUP")
    try:
        return COMMANDS[command](options)
    except (SettingsError, SessionLocked) as exc:
        return _refuse(exc, AT_FAULT)
    except NoAccount as exc:
        return _refuse(f"{exc}; {HINT}", NO_ACCOUNT)
    except QwenProxyError as exc:
        return _refuse(exc, NOTHING_TO_SERVE)
    except KeyboardInterrupt:
        return 0 if command in SERVING else _refuse("stopped", NOTHING_TO_SERVE)


def parser() -> argparse.ArgumentParser:
    """What may be said on the command line."""
    shared = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    shared.add_argument("--host", help="address to listen on (default: 127.0.0.1); others need an API key")
    shared.add_argument("--port", help="port to listen on (default: 3264)")
    plain = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    plain.add_argument("--plain", action="store_true", help="a plain log instead of the live view")
    whole = argparse.ArgumentParser(
        prog="qwenproxy",
        parents=[shared, plain],
        allow_abbrev=False,
        description="Your own signed-in Qwen Chat accounts as an OpenAI-compatible API on this computer. "
        "Without a command: the menu of accounts in a terminal, elsewhere the same as serve.",
        epilog="Every other setting is an environment variable or a line of .env; README.md lists them.",
    )
    whole.add_argument("--version", action="version", version=__version__)
    commands = whole.add_subparsers(dest="command", metavar="command")
    for name, parents, text in (
        ("serve", [shared, plain], "serve with the accounts of the session folder; asks nothing"),
        ("demo", [shared], "show everything at work without an account, on a stand-in of Qwen Chat"),
    ):
        commands.add_parser(name, parents=parents, allow_abbrev=False, help=text, description=text)
    account_commands.add_parser(commands)
    doctor.add_parser(commands, shared)
    return whole


def _menu(options: Options) -> int:
    settings = load(_overrides(options))
    if settings.skip_account_menu or settings.non_interactive or not _terminal():
        return _serve(options)
    start = partial(proxy.run, settings, say, view=_view(settings, options))
    with logs.kept(settings.session_dir / "logs"), logs.console(on=False):
        return asyncio.run(menu(settings, start))


def _serve(options: Options) -> int:
    settings = load(_overrides(options))
    asyncio.run(proxy.run(settings, say, view=_view(settings, options)))
    return 0


def _demo(options: Options) -> int:
    asyncio.run(demo(_overrides(options), say))
    return 0


COMMANDS: Mapping[str, Callable[[Options], int]] = MappingProxyType(
    {
        "menu": _menu,
        "serve": _serve,
        "demo": _demo,
        "accounts": account_commands.run,
        "doctor": doctor.run,
    }
)


def _overrides(options: Options) -> Options:
    """What wins over the environment."""
    return {name: options[name] for name in ("host", "port") if name in options}


def _view(settings: Settings, options: Options) -> bool:
    """Whether the console becomes the live view."""
    wanted = not settings.non_interactive and "plain" not in options
    return wanted and _terminal() and not Console().is_dumb_terminal


def _terminal() -> bool:
    """Whether a person sits there."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stdout is not None and sys.stdout.isatty()


def say(text: str) -> None:
    with suppress(OSError):  # a reader that has gone does not end what is served
        sys.stdout.write(text)
        # At once, also into a file or a pipe: a person or a script waits for it.
        sys.stdout.flush()


def _write_anywhere() -> None:
    """What a stream's encoding lacks becomes a question mark: an old code page must not end the program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _let_go() -> None:
    """What a reader that has gone did not take is dropped: the interpreter's end would complain of it."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _refuse(error: object, code: int) -> int:
    sys.stderr.write(logs.redact(f"qwenproxy: {error}") + "\n")
    return code


def _stop_on(name: str) -> None:
    """Makes a signal mean what Ctrl-C means, unless it is ignored, as `nohup` asks."""
    number = getattr(signal, name, None)
    if number is not None and signal.getsignal(number) == signal.SIG_DFL:
        signal.signal(number, _interrupt)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    signal.raise_signal(signal.SIGINT)
