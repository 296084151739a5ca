"""`accounts …`: what the menu does, as commands for scripts; they work while a proxy serves the same folder.

What was asked for goes to stdout, everything said meanwhile and why something could not be done to stderr.
Exit codes: 0 done; 1 could not be done, of `check` also: an account is not live; 2 the command line.
"""

from __future__ import annotations

import argparse
import asyncio
import getpass
import json
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, TypeAlias
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

from rich.console import Console

from qwenproxy import questions
from qwenproxy.account_table import WIDE, Form, Row, accounts_table, glyphs_of, notes
from qwenproxy.accounts.account import Account
from qwenproxy.accounts.registry import Registry
from qwenproxy.browser.login import screen_problem
from qwenproxy.clock import Clock, SystemClock
from qwenproxy.enrolment import Enrolment
from qwenproxy.errors import AccountGone, NoAccount, QwenProxyError, SignInFailed
from qwenproxy.instance import Holder, holder
from qwenproxy.logs import redact
from qwenproxy.settings import Settings, load

DONE, FAILED, MISUSED = 0, 1, 2
CHECK_S = 40.0
"""Longest wait for the check of one account by a serving proxy."""
TOKEN_CHARACTERS = 4096
"""The service's tokens are some 200 characters (protocol §1.2)."""
LABEL_CHARACTERS = 60
NAMED = "its id, its number in the list, its label or its e-mail"
FIELDS = (
    "Fields of --json, times in UTC: number, id, status (OK, WAIT, INVALID), resetAt (when the wait ends), "
    "invalid, paused, waitsFor (limit, human or empty), modelResetAt (limits of single models), label, "
    "signedInAt, holdsUntil, email, userId, servedToday; with check also live (true, false, or null when it "
    "could not be asked) and check (in words). Tokens are never shown."
)
EXPIRES_SOON = "a token that dies within a day is stored only with --yes"

Json: TypeAlias = dict[str, Any]


class Misused(Exception):
    """The command line is at fault; one line says how."""


@dataclass(frozen=True, slots=True)
class Desk:
    """What every command works with."""

    settings: Settings
    registry: Registry
    clock: Clock
    options: Mapping[str, Any]

    @property
    def yes(self) -> bool:
        return bool(self.options.get("yes"))

    def chosen(self) -> Account:
        """Raises: Misused, NoAccount."""
        return choose(self.registry.accounts(), self.options["account"])

    def enrolment(self) -> Enrolment:
        return Enrolment(self.settings, self.registry, self.clock, say=tell)


def add_parser(commands: Any) -> None:
    """`accounts` and its actions, among the program's commands."""
    text = "list, sign in and manage accounts; also while a proxy serves them"
    parser = commands.add_parser("accounts", allow_abbrev=False, help=text, description=text)
    actions = parser.add_subparsers(dest="action", metavar="action", required=True)

    def action(name: str, text: str, *, account: bool = True, **more: Any) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = actions.add_parser(
            name, allow_abbrev=False, help=text, description=text[0].upper() + text[1:] + ".", **more
        )
        if account:
            made.add_argument("account", help=NAMED)
        return made

    listed = action("list", "show the accounts and their states", account=False, epilog=FIELDS)
    add = action("add", "sign an account in, in a browser window, or by a token", account=False)
    again = action("relogin", "sign an account in again, in a browser window")
    check = action(
        "check", "ask the service, free of charge, whether sign-ins hold", account=False, epilog=FIELDS
    )
    check.add_argument("accounts", nargs="*", metavar="account", help=f"{NAMED}; all of them without one")
    action("rename", "give an account a label").add_argument("label", help="the label; '' for none")
    remove = action("remove", "delete an account; chats on this computer stay")
    action("clear-wait", "take an account back into turn though it waits for a limit or for you")
    action("pause", "keep an account out of turn")
    action("resume", "take a paused account back into turn")
    human = action("pass-check", "open an account's window, to pass the human check the service asks for")
    for made in (listed, check):
        made.add_argument("--json", action="store_true", help="for programs")
    for made in (add, again, human):
        made.add_argument(
            "--browser", default="", metavar="NAME", help="chrome, msedge, chromium, or the path of one"
        )
    add.add_argument(
        "--token-stdin", action="store_true", help="read a token, copied from your browser, from stdin"
    )
    add.add_argument("--yes", action="store_true", help=f"also a token that soon dies: {EXPIRES_SOON}")
    again.add_argument("--yes", action="store_true", help="also when a different person signs in")
    remove.add_argument("--yes", action="store_true", help="without asking")


def run(options: Mapping[str, Any]) -> int:
    """The exit code.

    Raises:
        SettingsError: a setting cannot be used.
    """
    settings = load()
    clock = SystemClock()
    desk = Desk(settings, Registry(settings.session_dir, clock), clock, options)
    try:
        for line in desk.registry.open():
            tell(line)
        return ACTIONS[options["action"]](desk)
    except Misused as exc:
        return _refuse(exc, MISUSED)
    except QwenProxyError as exc:
        return _refuse(exc, FAILED)
    except BrokenPipeError:  # `| head` has read enough
        return DONE
    except OSError as exc:
        return _refuse(f"the session folder cannot be used: {exc.strerror}", FAILED)


def choose(accounts: Sequence[Account], name: str) -> Account:
    """The account that a person means by `name`.

    Raises:
        Misused: several could be meant.
        NoAccount: none is.
    """
    wanted = name.strip().casefold()
    for account in accounts:
        if account.id == name.strip():
            return account
    meant = [
        account
        for number, account in enumerate(accounts, 1)
        if wanted in {str(number), account.label.casefold(), account.email.casefold()} - {""}
    ]
    if len(meant) > 1:
        several = ", ".join(_candidate(account) for account in meant)
        raise Misused(f"{name} could be any of these: {several}; hint: name it by its id")
    if not meant:
        raise NoAccount(f"there is no account {name!r}; hint: accounts list shows them")
    return meant[0]


def _candidate(account: Account) -> str:
    return account.id if account.name == account.id else f"{account.id} ({account.name})"


# ---- what changes the registry alone ----


def _list(desk: Desk) -> int:
    accounts, served = desk.registry.accounts(), _served(desk)
    holds = holder(desk.settings.session_dir)
    if desk.options["json"]:
        proxy = None if holds is None else {"pid": holds.pid, "url": holds.url}
        rows = [_told(number, account, desk, served) for number, account in enumerate(accounts, 1)]
        _print_json({"accounts": rows, "proxy": proxy})
        return DONE
    if not accounts:
        tell("no account yet; hint: accounts add signs one in")
        return DONE
    _print_table(accounts, desk, served)
    return DONE


def _print_table(accounts: Sequence[Account], desk: Desk, served: Mapping[str, int]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    now, glyphs = desk.clock.now(), glyphs_of(console)
    rows = [Row(account, served.get(account.id, 0)) for account in accounts]
    # A pipe has no width: nothing is cut there.
    width = console.width if console.is_terminal else 200
    form: Form = "wide" if width >= WIDE else "stacked"
    console.print(accounts_table(rows, now, glyphs, width=width, form=form), width=width)
    for note in notes(accounts, now, glyphs):
        console.print(note, markup=False)


def _rename(desk: Desk) -> int:
    account = desk.chosen()
    label = " ".join("".join(c if c.isprintable() else " " for c in desk.options["label"]).split())
    if len(label) > LABEL_CHARACTERS:
        raise Misused(f"a label has {LABEL_CHARACTERS} characters at most")
    changed = _update(desk, account, label=label)
    _print(f"{changed.id} is called {changed.name} now")
    return DONE


def _remove(desk: Desk) -> int:
    account = desk.chosen()
    if not desk.yes:
        question = f"Delete {_candidate(account)} from this computer?"
        if not _terminal():
            raise Misused(f"{question} Nobody can be asked here; hint: --yes deletes it")
        if not asyncio.run(questions.yes(question, drawn=False)):
            raise SignInFailed("nothing was deleted")
    if not desk.registry.remove(account.id):
        raise AccountGone(f"{account.id} was deleted meanwhile")
    _print(f"{account.id} is deleted")
    return DONE


def _clear_wait(desk: Desk) -> int:
    account = desk.chosen()
    _update(desk, account, wait_until=None, why="", model_waits=())
    _print(f"{account.id} waits for nothing now")
    return DONE


def _pause(desk: Desk) -> int:
    account = desk.chosen()
    _update(desk, account, paused=True)
    _print(f"{account.id} is out of turn now; hint: accounts resume takes it back")
    return DONE


def _resume(desk: Desk) -> int:
    account = desk.chosen()
    _update(desk, account, paused=False)
    _print(f"{account.id} is in turn now")
    return DONE


def _update(desk: Desk, account: Account, **fields: Any) -> Account:
    """Raises: AccountGone."""
    changed = desk.registry.update(account.id, lambda known: replace(known, **fields))
    if changed is None:
        raise AccountGone(f"{account.id} was deleted meanwhile")
    return changed


# ---- what needs a browser ----


def _add(desk: Desk) -> int:
    if desk.options["token_stdin"]:
        token = _token()
        added = asyncio.run(desk.enrolment().add_token(token, yes=desk.yes))
    else:
        _require_screen()
        added = asyncio.run(desk.enrolment().add(browser=desk.options["browser"]))
    known = "was known and is signed in again" if added.known else "is signed in"
    _print(f"{_candidate(added.account)} {known}")
    return DONE


def _relogin(desk: Desk) -> int:
    account = desk.chosen()
    _require_screen()
    unasked = False

    async def confirm(question: str) -> bool:
        nonlocal unasked
        if desk.yes:
            return True
        unasked = not _terminal()
        return not unasked and await questions.yes(question, drawn=False)

    try:
        again = desk.enrolment().sign_in_again(account.id, confirm, browser=desk.options["browser"])
        changed = asyncio.run(_awaited(again))
    except SignInFailed as exc:
        if unasked:
            raise Misused(f"{exc}; nobody can be asked here, hint: --yes takes whoever signs in") from None
        raise
    _print(f"{_candidate(changed)} is signed in")
    return DONE


def _pass_check(desk: Desk) -> int:
    account = desk.chosen()
    _require_screen()
    changed = asyncio.run(_awaited(desk.enrolment().pass_check(account.id, browser=desk.options["browser"])))
    _print(f"{_candidate(changed)} is {changed.state(desk.clock.now())}")
    return DONE


async def _awaited(result: Awaitable[Account]) -> Account:
    return await result


def _require_screen() -> None:
    """Raises: SignInFailed."""
    problem = screen_problem()
    if problem:
        raise SignInFailed(problem)


def _token() -> str:
    """From stdin; what is typed in a terminal is not shown. Raises: Misused."""
    typed = sys.stdin.isatty()
    text = getpass.getpass("Token: ") if typed else sys.stdin.read(TOKEN_CHARACTERS + 1)
    token = text.strip().strip("\"'")
    if not token:
        raise Misused("no token came in on stdin")
    if len(token) > TOKEN_CHARACTERS or not token.isascii() or not token.isprintable() or " " in token:
        raise Misused("what came in on stdin is no token")
    return token


@dataclass(frozen=True, slots=True)
class Answer:
    live: bool | None
    note: str


def _check(desk: Desk) -> int:
    accounts = desk.registry.accounts()
    wanted = [choose(accounts, name) for name in desk.options["accounts"]] or list(accounts)
    if not wanted:
        raise NoAccount("there is no account to check; hint: accounts add signs one in")
    ids = tuple(dict.fromkeys(account.id for account in wanted))
    holds = holder(desk.settings.session_dir)
    if holds is not None:
        found = ask_proxy(holds, ids)
    else:
        checked = asyncio.run(desk.enrolment().check(ids))
        found = {each.account.id: Answer(each.live, each.note) for each in checked}
    _tell_answers(desk, ids, found)
    return DONE if all(found[each].live is True for each in ids) else FAILED


def _tell_answers(desk: Desk, ids: tuple[str, ...], found: Mapping[str, Answer]) -> None:
    """From the registry read again: the check may have changed it."""
    served = _served(desk)
    now = {account.id: (n, account) for n, account in enumerate(desk.registry.accounts(), 1)}
    if desk.options["json"]:
        told = [
            {**_told(*now[each], desk, served), "live": found[each].live, "check": found[each].note}
            for each in ids
            if each in now
        ]
        _print_json({"accounts": told})
        return
    for each in ids:
        word = {True: "live", False: "signed out", None: "not known"}[found[each].live]
        note = found[each].note
        name = _candidate(now[each][1]) if each in now else each
        _print(f"{name}: {word}" + ("" if note in {"", word} else f": {note}"))


def ask_proxy(holds: Holder, ids: Sequence[str]) -> dict[str, Answer]:
    """Asks the proxy that serves: a second browser with the same sign-ins would disturb its pages.

    Raises:
        NoAccount: it did not answer, or could not check.
    """
    if not holds.url:
        raise NoAccount(
            f"process {holds.pid} holds the session folder and does not serve yet; try again soon"
        )
    tell(f"the proxy at {holds.url} serves this session folder: it is asked to check")
    # No proxy server of the environment stands between two programs of this computer.
    opener = build_opener(ProxyHandler({}))
    headers = {"x-api-key": holds.key} if holds.key else {}
    request = Request(f"{holds.url}/api/status", method="POST", headers=headers)  # noqa: S310 - its address from our own file
    try:
        with opener.open(request, timeout=CHECK_S * max(len(ids), 1)) as answer:
            rows = json.load(answer)["accounts"]
    except HTTPError as exc:
        raise NoAccount(f"the proxy could not check: {_complaint(exc)}") from None
    except (OSError, ValueError, LookupError, TypeError):
        raise NoAccount(f"the proxy at {holds.url} did not answer") from None
    notes_ = {row["id"]: str(row.get("check", "")) for row in rows}
    return {each: _answer(notes_.get(each, "")) for each in ids}


def _answer(note: str) -> Answer:
    live = {"live": True, "signed out": False}.get(note)
    return Answer(live, note or "the proxy does not know this account yet")


def _complaint(answer: HTTPError) -> str:
    with answer:
        try:
            return str(json.load(answer)["error"]["message"])
        except (OSError, ValueError, LookupError, TypeError):
            return f"it answered with status {answer.code}"


# ---- what is shown ----


def _told(number: int, account: Account, desk: Desk, served: Mapping[str, int]) -> Json:
    """One account for a program; the names are those of `/api/status`."""
    own = {"email": account.email, "userId": account.user_id, "servedToday": served.get(account.id, 0)}
    return {"number": number, **account.told(desk.clock.now()), **own}


def _served(desk: Desk) -> Mapping[str, int]:
    return desk.registry.served(desk.clock.now().astimezone().date())


def _terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def _print(text: str) -> None:
    sys.stdout.write(redact(text) + "\n")
    sys.stdout.flush()


def _print_json(value: Json) -> None:
    sys.stdout.write(json.dumps(value, indent=1) + "\n")


def tell(text: str) -> None:
    """For the person who waits, beside what was asked for."""
    with suppress(OSError):  # nobody reads it any more
        sys.stderr.write(redact(text.rstrip("\n")) + "\n")
        sys.stderr.flush()


def _refuse(why: object, code: int) -> int:
    tell(f"qwenproxy: {why}")
    return code


ACTIONS: Mapping[str, Callable[[Desk], int]] = MappingProxyType(
    {
        "list": _list,
        "add": _add,
        "relogin": _relogin,
        "check": _check,
        "rename": _rename,
        "remove": _remove,
        "clear-wait": _clear_wait,
        "pause": _pause,
        "resume": _resume,
        "pass-check": _pass_check,
    }
)
