"""The live view as a picture: values in, at most `height` lines out. `live.py` keeps it on the screen.

What there is no room for is counted or left out, the last errors first, then requests, then accounts; the
address, what a person must do and the keys stay as long as anything does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, TypeVar

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from qwenproxy.account_table import WIDE, Form, Glyphs, Row, accounts_table, cares, coarse, notes, span
from qwenproxy.activity import Failure

FIRST_WORD: Final = "waits for the first word"
HELP: Final = (
    ("a", "add", "add an account: a browser window opens, somebody signs in there"),
    ("r", "sign in again", "renew an account's sign-in, in a window too"),
    ("h", "human check", "open the window of an account from which the site wants a human check"),
    ("c", "clear wait", "let an account answer again before its wait is over"),
    ("p", "pause", "keep an account out of turn, or let it back"),
    ("q", "quit", "answers that run are finished first; q again ends them at once"),
    ("?", "help", "this page"),
)
LEAVE: Final = "Esc leaves"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Line:
    """A request in flight."""

    number: int
    model: str
    account: str
    age_s: float
    per_s: float | None = None
    """None before its first piece."""
    place: int = 0
    """In the queue; 0 when it is not there."""
    step: str = ""
    """What is done with its files just now."""


@dataclass(frozen=True, slots=True)
class Moment:
    """All that is shown at once."""

    base_url: str
    now: datetime
    up_s: float
    rows: tuple[Row, ...] = ()
    queue: int = 0
    requests: tuple[Line, ...] = ()
    failures: tuple[Failure, ...] = ()
    needs: tuple[str, ...] = ()
    """What a person must do now."""
    said: str = ""
    """The outcome of an action, or what it asks."""
    choosing: bool = False
    giving_up: bool = False
    """A window is open, which Esc gives up."""
    helping: bool = False


def draw(moment: Moment, glyphs: Glyphs, *, width: int, height: int) -> RenderableType:
    """At most `height` lines, as long as `width` is at all usable."""
    inner = max(1, width - 2)
    bottom = [_said(moment, glyphs), _keys(moment, glyphs, inner)]
    top: list[RenderableType] = [_head(moment, glyphs, inner)]
    if height >= 12:
        top += [_hint(moment, inner), Text()]
    room = max(0, height - len(top) - len(bottom))
    body = _help(room) if moment.helping else _body(moment, glyphs, inner, room)
    lines = sum(count for count, _ in body)
    blank = [Text()] * (room - lines)
    return Padding(Group(*top, *(part for _, part in body), *blank, *bottom), (0, 1))


def needs(rows: Sequence[Row], now: datetime) -> tuple[str, ...]:
    """What a person must do, the most urgent first, in terms of the view's keys."""
    accounts = [row.account for row in rows]
    if not accounts:
        return ("There is no account: press a to add one",)
    checked = [account.name for account in accounts if account.why == "human" and not account.invalid]
    gone = [account.name for account in accounts if account.invalid]
    usable = [account for account in accounts if account.usable]
    told = []
    if checked:
        told.append(f"Needs you: press h and pass the site's check for {', '.join(checked)}")
    if gone:
        told.append(f"Sign in again: press r for {', '.join(gone)}")
    if not usable and not gone:
        told.append("Every account is paused: press p to resume one")
    elif usable and all(account.state(now) == "WAIT" for account in usable):
        ends = [each.wait_until for each in usable if each.wait_until is not None and each.why != "human"]
        if ends:
            told.append(f"Every account waits; the first is free in {span(min(ends) - now)}")
    return tuple(told)


def _head(moment: Moment, glyphs: Glyphs, width: int) -> RenderableType:
    served = sum(row.served for row in moment.rows)
    answering = sum(1 for request in moment.requests if not request.place)
    address = Text("qwenproxy  ", "bold").append(f"{moment.base_url}/v1", "bold cyan")
    told = [f"{answering} answering", f"{moment.queue} queued", f"{served} today"]
    told.append(f"up {coarse(timedelta(seconds=moment.up_s))}")
    while told and cell_len(address.plain) + 2 + cell_len(glyphs.dot.join(told)) > width:
        told.pop()
    grid = Table.grid(expand=True)
    grid.add_column(no_wrap=True, ratio=1, overflow=glyphs.overflow)
    grid.add_column(no_wrap=True, justify="right")
    grid.add_row(address, Text(glyphs.dot.join(told)))
    return grid


def _hint(moment: Moment, width: int) -> Text:
    curl = f"curl {moment.base_url}/v1/models"
    full = f"Give any OpenAI client this address and any key. Try:  {curl}"
    return _one_line(full if cell_len(full) <= width else curl, "dim")


def _body(moment: Moment, glyphs: Glyphs, width: int, room: int) -> list[tuple[int, RenderableType]]:
    accounts = [row.account for row in moment.rows]
    noted = [*notes(accounts, moment.now, glyphs), *cares(moment.rows, moment.now, glyphs)]
    sections = (
        _Section(1, len(moment.needs), 1, 3, lambda count: _needs(moment.needs[:count], glyphs)),
        _Section(1, len(moment.rows), 2, 8, lambda count: _accounts(moment, count, glyphs, width)),
        _Section(
            0, len(noted), 1, 2, lambda count: Group(*(_one_line(note, "yellow") for note in noted[:count]))
        ),
        _Section(2, max(1, len(moment.requests)), 1, 4, lambda count: _requests(moment, count, glyphs)),
        _Section(2, len(moment.failures), 1, 2, lambda count: _failures(moment, count, glyphs)),
    )
    return [
        (section.overhead + count, section.part(count))
        for section, count in zip(sections, _share(room, sections), strict=True)
        if count
    ]


@dataclass(frozen=True, slots=True)
class _Section:
    overhead: int
    """Lines beside its rows: a heading, a blank line."""
    rows: int
    least: int
    enough: int
    """So many of its rows go before the least, or the rest, of the other sections."""
    part: Callable[[int], RenderableType]
    """That many rows of it and the overhead."""


def _share(room: int, sections: Sequence[_Section]) -> list[int]:
    """Rows for each, in their order: the least of all, then enough, then what is left."""
    given = [0] * len(sections)
    leasts = [section.least for section in sections]
    enoughs = [section.enough for section in sections]
    alls = [section.rows for section in sections]
    for wanted in (leasts, enoughs, alls):
        for index, section in enumerate(sections):
            while given[index] < min(wanted[index], section.rows):
                price = 1 if given[index] else 1 + section.overhead
                if price > room:
                    break
                given[index] += 1
                room -= price
    return given


def _needs(told: Sequence[str], glyphs: Glyphs) -> RenderableType:
    return Group(*(_one_line(glyphs.clean(f"! {need}"), "bold yellow") for need in told), Text())


def _accounts(moment: Moment, count: int, glyphs: Glyphs, width: int) -> RenderableType:
    shown, left = _cut(moment.rows, count)
    form: Form = "wide" if width >= WIDE else "short"
    table = accounts_table(shown, moment.now, glyphs, width=width, form=form)
    return Group(table, *left)


def _requests(moment: Moment, count: int, glyphs: Glyphs) -> RenderableType:
    shown, left = _cut(moment.requests, count)
    table = Table.grid(padding=(0, 2, 0, 0), expand=True)
    table.add_column(justify="right", style="dim", min_width=2)
    table.add_column(ratio=1)
    table.add_column(ratio=1)
    table.add_column(justify="right")
    table.add_column(min_width=len(FIRST_WORD))
    for column in table.columns:
        column.no_wrap, column.overflow = True, glyphs.overflow
    for request in shown:
        account = Text(glyphs.clean(request.account) or glyphs.none)
        age = span(timedelta(seconds=int(request.age_s)))
        model = Text(glyphs.clean(request.model))
        table.add_row(str(request.number), model, account, age, _progress(request))
    none = [] if moment.requests else [Text("None now", "dim")]
    return Group(*_title("Requests"), *([table] if shown else []), *none, *left)


def _progress(request: Line) -> Text:
    if request.place:
        return Text(f"queued, place {request.place}", "yellow")
    if request.per_s is None:
        return Text(request.step or FIRST_WORD, "dim")
    return Text(f"{request.per_s:.0f} pieces/s", "green")


def _failures(moment: Moment, count: int, glyphs: Glyphs) -> RenderableType:
    names = {row.account.id: row.account.name for row in moment.rows}
    table = Table.grid(padding=(0, 2, 0, 0), expand=True)
    table.add_column(no_wrap=True, style="dim")
    table.add_column(no_wrap=True, style="red", overflow=glyphs.overflow)
    table.add_column(no_wrap=True, ratio=1, overflow=glyphs.overflow)
    for failure in moment.failures[:count]:
        who = names.get(failure.account_id, failure.account_id)
        told = f"{who}: {failure.message}" if who else failure.message
        table.add_row(f"{failure.at.astimezone():%H:%M:%S}", failure.code, Text(glyphs.clean(told)))
    return Group(*_title("Last errors"), table)


def _help(room: int) -> list[tuple[int, RenderableType]]:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold cyan")
    table.add_column(no_wrap=True)
    for key, _, told in HELP[:room]:
        table.add_row(key, Text(told))
    return [(min(room, len(HELP)), table)]


def _said(moment: Moment, glyphs: Glyphs) -> Text:
    return _one_line(glyphs.clean(moment.said), "bold")


def _keys(moment: Moment, glyphs: Glyphs, width: int) -> Text:
    if moment.choosing:
        return _one_line(LEAVE, "dim")
    first = (("Esc", "give up", ""),) if moment.giving_up else ()
    for keys, gap in (((*first, *HELP), 3), ((*first, *HELP), 2), ((*first, *HELP[-2:]), 2)):
        line = Text(no_wrap=True, overflow="crop")
        for key, name, _ in keys:
            line.append(key, "bold cyan").append(f" {name}" + " " * gap)
        line.rstrip()
        if line.cell_len <= width:
            break
    return line


def _title(name: str) -> tuple[RenderableType, ...]:
    return Text(), Rule(Text(name, "dim"), align="left", style="dim")


def _cut(items: Sequence[T], count: int) -> tuple[Sequence[T], list[Text]]:
    """What fits into `count` lines, and the line that counts the rest."""
    if len(items) <= count:
        return items, []
    return items[: count - 1], [Text(f"and {len(items) - count + 1} more", "dim")]


def _one_line(text: str, style: str) -> Text:
    return Text(text, style, no_wrap=True, overflow="crop")
