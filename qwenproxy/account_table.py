"""How accounts look in front of their owner: the table, the words for a state, and what is worth a note.

The words OK, WAIT, INVALID and PAUSED always stand there; emoji and colour only add to them. Text that
others wrote (labels, e-mails, model names, messages) passes through `Glyphs.clean`: a terminal obeys control
characters.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import ceil
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from qwenproxy.accounts.account import Account

Form = Literal["wide", "stacked", "short"]
"""One line with everything; two lines; one line with what fits."""
WIDE = 104
"""Columns that the wide form needs."""
ID_FITS, HOLDS_FITS, BUSY_FITS, TODAY_FITS = 76, 70, 56, 46
"""Columns from which the short form has room for the id, how long a sign-in holds, the slots, the count."""

MINUTE, HOUR, DAY = 60, 3600, 86_400
EMOJI = {"OK": "✅ ", "WAIT": "⏳ ", "INVALID": "❌ ", "PAUSED": "⏸  "}
STYLES = {"OK": "green", "WAIT": "yellow", "INVALID": "bold red", "PAUSED": "cyan"}


@dataclass(frozen=True, slots=True)
class Glyphs:
    """What the terminal can show beside plain letters."""

    encoding: str = "utf-8"
    emoji: bool = True

    @property
    def unicode(self) -> bool:
        return self.encoding.lower().startswith("utf")

    @property
    def none(self) -> str:
        return "–" if self.unicode else "-"

    @property
    def dot(self) -> str:
        return " · " if self.unicode else " - "

    @property
    def overflow(self) -> Literal["ellipsis", "crop"]:
        return "ellipsis" if self.unicode else "crop"

    def clean(self, text: str) -> str:
        """One line without control characters, and without what the encoding lacks."""
        shown = "".join(letter if letter.isprintable() else " " for letter in text)
        return shown.encode(self.encoding, "replace").decode(self.encoding)


@dataclass(frozen=True, slots=True)
class Row:
    account: Account
    served: int = 0
    """Requests answered today."""
    busy: int = 0
    """Answers that run."""
    slots: int = 0
    """How many may run at once; 0 where no proxy runs."""
    careful_until: datetime | None = None
    """Until when it answers one at a time."""


def glyphs_of(console: Console) -> Glyphs:
    utf = console.encoding.startswith("utf")
    return Glyphs(console.encoding, emoji=utf and not (console.is_dumb_terminal or console.legacy_windows))


def accounts_table(rows: Sequence[Row], now: datetime, glyphs: Glyphs, *, width: int, form: Form) -> Table:
    """The accounts in their order, numbered from 1."""
    serving = any(row.slots for row in rows)
    with_busy = serving and width >= BUSY_FITS
    with_count = width >= TODAY_FITS
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim", width=width)
    table.add_column("#", justify="right", min_width=2)
    table.add_column("Account", ratio=1, min_width=8)
    with_id = form == "wide" or (form == "short" and width >= ID_FITS and not serving)
    if with_id:
        table.add_column("ID", style="dim")
    table.add_column("State")
    if with_busy:
        table.add_column("Busy", justify="right")
    for header in _sign_in_headers(form, width):
        table.add_column(header)
    if with_count:
        table.add_column("Today", justify="right")
    for column in table.columns:
        column.no_wrap, column.overflow = True, glyphs.overflow
    for number, row in enumerate(rows, 1):
        table.add_row(
            Text(str(number), "bold"),
            _who(row.account, glyphs, form, bare=with_id),
            *([Text(row.account.id)] if with_id else []),
            state_text(row.account, now, glyphs, stacked=form == "stacked"),
            *([Text(f"{row.busy}/{row.slots}")] if with_busy else []),
            *_sign_in(row.account, now, glyphs, form)[: len(_sign_in_headers(form, width))],
            *([Text(str(row.served), "" if row.served else "dim")] if with_count else []),
        )
    return table


def _who(account: Account, glyphs: Glyphs, form: Form, *, bare: bool) -> Text:
    """`bare` where the id stands elsewhere, or below."""
    name = account.label or account.email
    text = Text(glyphs.clean(name or (glyphs.none if bare or form == "stacked" else account.id)))
    if account.label and account.email and form == "wide":
        text.append("  " + glyphs.clean(account.email), "dim")
    return text.append("\n" + account.id, "dim") if form == "stacked" else text


def state_text(account: Account, now: datetime, glyphs: Glyphs, *, stacked: bool = False) -> Text:
    """`WAIT 2 h 59 min limit`; `stacked` puts what follows the word on a line of its own."""
    word = "PAUSED" if account.paused and not account.invalid else account.state(now)
    text = Text((EMOJI[word] if glyphs.emoji else "") + word, STYLES[word])
    if why := reason(account, now):
        text.append(("\n" if stacked else " ") + why, "not bold")
    return text


def reason(account: Account, now: datetime) -> str:
    """What a state asks for, or how long it lasts."""
    if account.invalid:
        return "sign in again"
    if account.paused or account.state(now) == "OK":
        return ""
    if account.why == "human":
        return "needs you"
    left = span(account.wait_until - now) if account.wait_until else ""
    return f"{left} limit" if account.why == "limit" else left


def _sign_in_headers(form: Form, width: int) -> tuple[str, ...]:
    if form == "wide":
        return ("Signed in", "Holds")
    if form == "stacked":
        return ("Sign-in",)
    return ("Holds",) if width >= HOLDS_FITS else ()


def _sign_in(account: Account, now: datetime, glyphs: Glyphs, form: Form) -> tuple[Text, ...]:
    since = account.signed_in_at
    age = Text(f"{coarse(now - since)} ago" if since else glyphs.none, "" if since else "dim")
    holds = _holds(account, now, glyphs, " left" if form == "stacked" else "")
    if form == "stacked":
        return (age.append("\n").append_text(holds),)
    return (age, holds) if form == "wide" else (holds,)


def _holds(account: Account, now: datetime, glyphs: Glyphs, suffix: str) -> Text:
    if account.invalid or account.holds_until is None:
        return Text(glyphs.none, "dim")
    # The mark stands there for those who see no colour.
    soon = account.ends_soon(now)
    text = coarse(account.holds_until - now) + suffix + ("!" if soon else "")
    return Text(text, "bold yellow" if soon else "")


def notes(accounts: Iterable[Account], now: datetime, glyphs: Glyphs) -> Iterator[str]:
    """What the table has no room for: limits of single models, and sign-ins near their end."""
    for account in accounts:
        name = glyphs.clean(account.name)
        limits = [(model, until) for model, until in account.model_waits if until > now]
        for model, until in limits:
            yield f"{name}: {glyphs.clean(model)} is limited for {span(until - now)}"
        if account.ends_soon(now) and account.holds_until is not None:
            ends = (
                f"ends in {coarse(account.holds_until - now)}" if account.holds_until > now else "has run out"
            )
            yield f"{name}: the sign-in {ends}; sign in again before it stops working"


def cares(rows: Iterable[Row], now: datetime, glyphs: Glyphs) -> Iterator[str]:
    """Which accounts answer one at a time for a while, as the service has warned."""
    for row in rows:
        if row.careful_until is not None and row.careful_until > now:
            left, name = span(row.careful_until - now), glyphs.clean(row.account.name)
            yield f"{name}: one answer at a time for {left}, as the service has warned"


def span(length: timedelta) -> str:
    """For a countdown: `2 d 4 h`, `2 h 59 min`, `45 min`, `9 min 5 s`, `42 s`."""
    seconds = max(0, ceil(length.total_seconds()))
    if seconds >= DAY:
        return _two(seconds, DAY, "d", HOUR, "h")
    if seconds >= HOUR:
        return _two(seconds, HOUR, "h", MINUTE, "min")
    if seconds >= 10 * MINUTE:
        return f"{seconds // MINUTE} min"
    return _two(seconds, MINUTE, "min", 1, "s") if seconds >= MINUTE else f"{seconds} s"


def _two(seconds: int, unit: int, name: str, smaller: int, smaller_name: str) -> str:
    rest = seconds % unit // smaller
    return f"{seconds // unit} {name}" + (f" {rest} {smaller_name}" if rest else "")


def coarse(length: timedelta) -> str:
    """For an age: its largest unit alone."""
    seconds = max(0, int(length.total_seconds()))
    for unit, name in ((DAY, "d"), (HOUR, "h"), (MINUTE, "min")):
        if seconds >= unit:
            return f"{seconds // unit} {name}"
    return f"{seconds} s"
