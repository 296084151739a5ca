"""The console while the proxy serves: a view that is redrawn, and keys that act on accounts meanwhile.

Nothing here may slow what is served: drawing happens in a thread of its own, one picture at a time, so a
terminal that takes no more text (a marked window on Windows, a stopped remote line) stops only the view. What
an action says, asks and ends in stands on one line; its window waits as long as it must.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncIterable, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Final, Protocol

import anyio
from anyio.abc import TaskGroup
from anyio.to_thread import run_sync
from rich.console import Console
from rich.live import Live

from qwenproxy import logs
from qwenproxy.account_actions import Actions, Enrolling, Say, needs_person, waiting
from qwenproxy.account_table import Row, glyphs_of
from qwenproxy.accounts.account import Account
from qwenproxy.accounts.pool import Pool
from qwenproxy.accounts.registry import Registry
from qwenproxy.activity import Activity, InFlight
from qwenproxy.clock import Clock
from qwenproxy.dashboard import Line, Moment, draw, needs
from qwenproxy.errors import QwenProxyError
from qwenproxy.keys import pressed

log = logging.getLogger(__name__)

REFRESH_S: Final = 0.25
LEAST_GAP_S: Final = 0.04
"""Between two pictures, however fast keys come."""
COUNTS_S: Final = 1.0
"""Between two looks at what was answered today."""
SPEED_OVER_S: Final = 2.0
"""The time over which pieces per second are counted."""
SAID_S: Final = 60.0
"""How long the outcome of an action stands there."""
RESTORE_S: Final = 2.0
"""For a terminal to take what restores it."""
WINDOW: Final = "A browser window opens: sign in there. Esc gives up."
CHECK_WINDOW: Final = "A browser window opens: do there what the site asks. Esc gives up."
BUSY: Final = "A window is open already: finish there first, or press Esc to give it up"
GIVEN_UP: Final = "Given up; nothing has changed"
STOPPING: Final = "Stopping: answers that run are finished first; q again ends them now"
AT_ONCE: Final = "Stopping now"
YES: Final = frozenset("yY")
NO: Final = frozenset({"n", "N", "esc", "enter"})


class Served(Protocol):
    """What is looked at."""

    @property
    def pool(self) -> Pool: ...

    @property
    def activity(self) -> Activity: ...


async def live(
    gateway: Served,
    registry: Registry,
    enrolment: Callable[[Say], Enrolling],
    base_url: str,
    clock: Clock,
    *,
    quit: Callable[[], None],  # noqa: A002 - what its key is called
) -> None:
    """Until it is cancelled. `quit` is called for each press of q or Ctrl-C.

    `enrolment` gives one that says what a person should read to the view.
    """
    console = Console(highlight=False, emoji=False, markup=False)
    view = View(gateway, registry, enrolment, base_url, clock, quit, console)
    await view.run()


@dataclass(slots=True)
class _Choice:
    """An account is being chosen, by its number in the view."""

    question: str
    numbers: tuple[int, ...]
    act: Callable[[Account], None]
    typed: str = ""


@dataclass(slots=True)
class _Question:
    answered: anyio.Event
    yes: bool = False


class View:
    def __init__(
        self,
        gateway: Served,
        registry: Registry,
        enrolment: Callable[[Say], Enrolling],
        base_url: str,
        clock: Clock,
        quit_: Callable[[], None],
        console: Console,
    ) -> None:
        self._gateway = gateway
        self._registry = registry
        self._actions = Actions(registry, enrolment(self._say))
        self._base_url = base_url
        self._clock = clock
        self._quit = quit_
        self._console = console
        self._glyphs = glyphs_of(console)
        self._began_s = clock.monotonic_s()
        self._drawing = anyio.CapacityLimiter(1)
        self._gone = False
        """The terminal takes nothing any more."""
        self._tasks: TaskGroup | None = None
        self._raw_again: Callable[[], None] = _nothing
        self._changed = anyio.Event()
        self._speeds = _Speeds()
        self._counts: Mapping[str, int] = {}
        self._counts_until_s = self._began_s
        self._said = ""
        self._said_until_s = 0.0
        self._quits = 0
        self._helping = False
        self._choice: _Choice | None = None
        self._question: _Question | None = None
        self._window: anyio.CancelScope | None = None
        """Of the one action that needs a person; leaving it gives the action up."""

    async def run(self) -> None:
        # Keys are acted on in a task: in the callback that brings them, anyio knows no event loop.
        pressing, coming = anyio.create_memory_object_stream[str](inf)
        async with pressing, coming, anyio.create_task_group() as tasks:
            self._tasks = tasks
            tasks.start_soon(self._listen, coming)
            with pressed(pressing.send_nowait) as self._raw_again:
                await self._show()

    async def _listen(self, coming: AsyncIterable[str]) -> None:
        async for key in coming:
            self._hear(key)

    async def _show(self) -> None:
        screen = Live(
            console=self._console,
            screen=True,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        try:
            await self._in_thread(screen.start)
            while True:
                picture = await self._moment()
                await self._in_thread(partial(self._draw, screen, picture))
                await anyio.sleep(LEAST_GAP_S)
                with anyio.move_on_after(REFRESH_S):
                    await self._changed.wait()
                self._changed = anyio.Event()
        finally:
            with anyio.move_on_after(RESTORE_S, shield=True):
                await self._in_thread(screen.stop)

    async def _in_thread(self, write: Callable[[], None]) -> None:
        """Writes to the terminal, one after another, and waits no longer than it may when it is cancelled."""
        try:
            await run_sync(write, abandon_on_cancel=True, limiter=self._drawing)
        except OSError:
            self._gone = True

    def _draw(self, screen: Live, moment: Moment) -> None:
        if not self._gone:
            width, height = self._console.size
            screen.update(draw(moment, self._glyphs, width=width, height=height), refresh=True)

    async def _moment(self) -> Moment:
        now, now_s = self._clock.now(), self._clock.monotonic_s()
        if now_s >= self._counts_until_s:
            self._counts_until_s = now_s + COUNTS_S
            self._counts = await self._count() or self._counts
            self._raw_again()
        pool = self._gateway.pool.view()
        rows = tuple(
            Row(
                seat.account,
                self._counts.get(seat.account.id, 0),
                seat.busy,
                seat.slots,
                seat.careful_until,
            )
            for seat in pool.seats
        )
        choice = self._choice
        return Moment(
            base_url=self._base_url,
            now=now,
            up_s=now_s - self._began_s,
            rows=rows,
            queue=pool.queue,
            requests=self._lines(now_s),
            failures=self._gateway.activity.failures(),
            needs=needs(rows, now),
            said=_asked(choice) if choice else self._said if now_s < self._said_until_s else "",
            choosing=choice is not None or self._question is not None,
            giving_up=self._window is not None,
            helping=self._helping,
        )

    async def _count(self) -> Mapping[str, int] | None:
        try:
            return await run_sync(self._registry.served, self._clock.now().astimezone().date())
        except (QwenProxyError, OSError):
            return None

    def _lines(self, now_s: float) -> tuple[Line, ...]:
        names = {account.id: account.name for account in self._accounts()}
        requests = self._gateway.activity.in_flight()
        speeds = self._speeds.of(requests, now_s)
        return tuple(
            Line(
                number=request.number,
                model=request.model,
                account=names.get(request.account_id, request.account_id),
                age_s=now_s - request.began_s,
                per_s=speeds[request.number],
                place=request.place,
                step=request.step,
            )
            for request in requests
        )

    def _accounts(self) -> tuple[Account, ...]:
        return tuple(seat.account for seat in self._gateway.pool.view().seats)

    def _say(self, text: str, lasts_s: float = SAID_S) -> None:
        self._said = logs.redact(text)
        self._said_until_s = self._clock.monotonic_s() + lasts_s
        self._changed.set()

    def _hear(self, key: str) -> None:
        self._changed.set()
        if key == "ctrl-c":
            self._stop()
        elif self._question is not None:
            self._answer(self._question, key)
        elif self._choice is not None:
            self._choose(self._choice, key)
        elif self._helping:
            self._helping = False
        else:
            self._command(key.lower())

    def _command(self, key: str) -> None:
        match key:
            case "q":
                self._stop()
            case "?":
                self._helping = True
            case "esc" if self._window is not None:
                self._window.cancel()
            case _ if self._quits:
                return
            case "a":
                self._in_window(WINDOW, self._actions.add)
            case "r":
                self._ask(
                    "Sign in again", self._accounts(), self._sign_in_again, "There is no account: press a"
                )
            case "h":
                found = [account for account in self._accounts() if needs_person(account)]
                self._ask("Pass a check", found, self._pass_check, "No account waits for a human check")
            case "c":
                found = [each for each in self._accounts() if waiting(each, self._clock.now())]
                self._ask("Clear a wait", found, self._clear_wait, "No account waits")
            case "p":
                self._ask("Pause or resume", self._accounts(), self._pause, "There is no account: press a")

    def _stop(self) -> None:
        self._choice = None
        self._quits += 1
        self._say(STOPPING if self._quits == 1 else AT_ONCE)
        self._quit()

    def _sign_in_again(self, account: Account) -> None:
        self._in_window(WINDOW, lambda: self._actions.sign_in_again(account.id, self._confirm))

    def _pass_check(self, account: Account) -> None:
        self._in_window(CHECK_WINDOW, lambda: self._actions.pass_check(account.id))

    def _clear_wait(self, account: Account) -> None:
        self._start(lambda: self._actions.clear_wait(account.id))

    def _pause(self, account: Account) -> None:
        self._start(lambda: self._actions.pause_or_resume(account))

    def _in_window(self, said: str, deed: Callable[[], Awaitable[str]]) -> None:
        """One at a time: a person has one pair of eyes."""
        if self._window is not None:
            self._say(BUSY)
            return
        self._say(said)
        self._window = anyio.CancelScope()
        self._start(deed, self._window)

    def _start(self, deed: Callable[[], Awaitable[str]], scope: anyio.CancelScope | None = None) -> None:
        if self._tasks is not None:
            self._tasks.start_soon(self._do, deed, scope or anyio.CancelScope())

    async def _do(self, deed: Callable[[], Awaitable[str]], scope: anyio.CancelScope) -> None:
        try:
            with scope:
                self._say(await deed())
            if scope.cancelled_caught:
                self._say(GIVEN_UP)
        except (QwenProxyError, OSError) as exc:
            self._say(str(exc))
        except Exception:
            log.exception("an action in the live view failed")
            self._say("That went wrong; the log in session/logs tells how")
        finally:
            if scope is self._window:
                self._window = None

    async def _confirm(self, question: str) -> bool:
        self._question = asked = _Question(anyio.Event())
        self._say(f"{question} (y/N)", lasts_s=inf)
        try:
            await asked.answered.wait()
        finally:
            self._question = None
            self._say(WINDOW)
        return asked.yes

    def _answer(self, question: _Question, key: str) -> None:
        if key in YES or key in NO:
            question.yes = key in YES
            question.answered.set()

    def _ask(
        self, question: str, accounts: Sequence[Account], act: Callable[[Account], None], none: str
    ) -> None:
        """Acts on the account that is chosen, at once where there is but one."""
        if not accounts:
            self._say(none)
        elif len(accounts) == 1:
            act(accounts[0])
        else:
            ids = {account.id for account in accounts}
            numbers = [number for number, each in enumerate(self._accounts(), 1) if each.id in ids]
            self._choice = _Choice(question, tuple(numbers), act)

    def _choose(self, choice: _Choice, key: str) -> None:
        if key.isdecimal() and key.isascii():
            choice.typed += key
        elif key == "backspace":
            choice.typed = choice.typed[:-1]
        longer = [each for each in map(str, choice.numbers) if each.startswith(choice.typed) and choice.typed]
        if key == "esc" or (choice.typed and not longer):
            self._choice = None
        elif longer == [choice.typed] or (key == "enter" and choice.typed in longer):
            self._choice = None
            accounts = self._accounts()
            if int(choice.typed) <= len(accounts):
                choice.act(accounts[int(choice.typed) - 1])


def _nothing() -> None:
    pass


def _asked(choice: _Choice) -> str:
    numbers = ", ".join(map(str, choice.numbers))
    return f"{choice.question}: which account? Press its number: {numbers} {choice.typed}".rstrip()


class _Speeds:
    """Pieces per second of each request, over its last two seconds."""

    def __init__(self) -> None:
        self._seen: dict[int, deque[tuple[float, int]]] = {}

    def of(self, requests: Sequence[InFlight], now_s: float) -> dict[int, float | None]:
        kept = {request.number: self._seen.get(request.number, deque()) for request in requests}
        self._seen = kept
        return {request.number: self._speed(kept[request.number], request, now_s) for request in requests}

    def _speed(self, seen: deque[tuple[float, int]], request: InFlight, now_s: float) -> float | None:
        if request.started_s is None:
            return None
        if not seen:
            seen.append((request.started_s, 0))
        seen.append((now_s, request.pieces))
        while len(seen) > 2 and seen[1][0] <= now_s - SPEED_OVER_S:
            seen.popleft()
        since_s, pieces = seen[0]
        # Over half a second at least: a first burst is no speed.
        return (request.pieces - pieces) / max(now_s - since_s, 0.5)
