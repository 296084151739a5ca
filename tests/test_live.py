"""The live view over a real registry, pool and activity, with real keys and a kept screen."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import anyio
import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput
from rich.console import Console

from qwenproxy import live as live_module
from qwenproxy.accounts.account import Account
from qwenproxy.accounts.pool import Pool
from qwenproxy.accounts.registry import Registry
from qwenproxy.activity import Activity, InFlight
from qwenproxy.clock import SystemClock
from qwenproxy.errors import SignInFailed, UpstreamTimeout
from qwenproxy.live import View, _Speeds
from tests.owner import Persons, Screen, kept_console, sign_in
from tests.serve import until_async
from tests.terminal import CTRL_C, ENTER, ESC

pytestmark = pytest.mark.anyio

CLOCK = SystemClock()
ANNA, BORIS, CLARA = "anna@example.com", "boris@example.com", "clara@example.com"


@dataclass
class Serving:
    """What a gateway is to the view; `take_up` is what the engine does when the registry changes."""

    registry: Registry
    pool: Pool
    activity: Activity
    persons: Persons
    quits: list[float] = field(default_factory=list)

    def take_up(self) -> None:
        self.pool.take_up(self.registry.accounts())

    def account(self, email: str) -> Account:
        return next(account for account in self.registry.accounts() if account.email == email)

    def change(self, email: str, **fields: object) -> None:
        self.registry.update(self.account(email).id, lambda known: replace(known, **fields))  # type: ignore[arg-type]
        self.take_up()


@pytest.fixture
def serving(tmp_path: Path) -> Serving:
    registry = Registry(tmp_path / "session", CLOCK)
    for email in (ANNA, BORIS, CLARA):
        registry.add(sign_in(email))
    pool = Pool(registry.accounts(), registry, CLOCK, slots=2, pace_s=0, queue_timeout_s=5)
    return Serving(registry, pool, Activity(CLOCK), Persons(registry))


@pytest.fixture
def keyboard() -> Iterator[PipeInput]:
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        yield pipe


@asynccontextmanager
async def shown(serving: Serving, width: int = 110, height: int = 30) -> AsyncIterator[Screen]:
    console, written = kept_console(width, height)
    view = View(
        serving,
        serving.registry,
        serving.persons.saying,
        "http://127.0.0.1:3264",
        CLOCK,
        lambda: serving.quits.append(time.monotonic()),
        console,
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(view.run)
        yield Screen(written, width, height)
        tasks.cancel_scope.cancel()


async def test_accounts_requests_queue_and_errors_stand_there(serving: Serving, keyboard: PipeInput) -> None:
    serving.change(BORIS, wait_until=CLOCK.now() + timedelta(hours=3), why="limit")
    serving.change(CLARA, invalid=True)
    serving.registry.add_served(CLOCK.now().astimezone().date(), {serving.account(ANNA).id: 7})
    with serving.activity.begin("qwen3.7-plus") as request:
        request.account_id, request.started_s, request.pieces = (
            serving.account(ANNA).id,
            CLOCK.monotonic_s(),
            40,
        )
        serving.activity.fail(UpstreamTimeout("the service was silent"), serving.account(BORIS).id)
        async with shown(serving) as screen, serving.pool.lease():
            await screen.until("http://127.0.0.1:3264/v1", "1 answering", "7 today", "WAIT 3 h limit")
            await screen.until("INVALID sign in again", "! Sign in again: press r for clara", "1/2")
            await screen.until("qwen3.7-plus", "pieces/s", "boris@example.com: the service was silent")
    assert "\x1b[?1049l" in screen.written[-40:]
    assert "\x1b[?25h" in screen.written[-40:], "the cursor is back"


async def test_the_view_follows_what_changes(serving: Serving, keyboard: PipeInput) -> None:
    async with shown(serving) as screen:
        await screen.until("anna@example.com", "None now")
        serving.registry.remove(serving.account(ANNA).id)
        serving.take_up()
        with serving.activity.begin("qwen3-max") as request:
            request.place = 2
            await screen.until("qwen3-max", "queued, place 2", without="anna@")


async def test_an_account_is_added_in_a_window_while_the_view_lives(
    serving: Serving, keyboard: PipeInput
) -> None:
    serving.persons.next = ["dora@example.com"]
    async with shown(serving) as screen:
        keyboard.send_text("a")
        await screen.until("dora@example.com is added")
        serving.take_up()
        await screen.until(" 4  dora@example.com")


async def test_an_open_window_is_given_up_with_esc_and_stands_alone(
    serving: Serving, keyboard: PipeInput
) -> None:
    serving.persons.next = [None]
    async with shown(serving) as screen:
        keyboard.send_text("a")
        await screen.until("somebody is at the window", "Esc give up")
        keyboard.send_text("a")
        await screen.until("A window is open already")
        keyboard.send_text(ESC)
        await screen.until("Given up; nothing has changed", without="Esc give up")


async def test_how_a_sign_in_failed_is_said(serving: Serving, keyboard: PipeInput) -> None:
    serving.persons.next = [SignInFailed("the window was closed before anybody had signed in")]
    async with shown(serving) as screen:
        keyboard.send_text("a")
        await screen.until("the window was closed before anybody had signed in")


@pytest.mark.parametrize(("key", "email"), [("y", "dora@example.com"), ("n", BORIS), (ESC, BORIS)])
async def test_another_person_at_sign_in_again_is_asked_about(
    serving: Serving, keyboard: PipeInput, key: str, email: str
) -> None:
    serving.persons.next = ["dora@example.com"]
    async with shown(serving) as screen:
        keyboard.send_text("r")
        await screen.until("Sign in again: which account? Press its number: 1, 2, 3", "Esc leaves")
        keyboard.send_text("2")
        await screen.until("dora@example.com is someone else; replace? (y/N)")
        keyboard.send_text(key)
        await screen.until("is signed in again" if key == "y" else "somebody else signed in")
    assert serving.registry.accounts()[1].email == email


async def test_pausing_asks_for_the_account_by_its_number(serving: Serving, keyboard: PipeInput) -> None:
    async with shown(serving) as screen:
        keyboard.send_text("p")
        await screen.until("which account?")
        keyboard.send_text("3")
        await screen.until("clara@example.com is paused")
        serving.take_up()
        await screen.until("PAUSED")
    assert serving.account(CLARA).paused


@pytest.mark.parametrize("keys", [ESC, "7"])
async def test_a_choice_can_be_left(serving: Serving, keyboard: PipeInput, keys: str) -> None:
    async with shown(serving) as screen:
        keyboard.send_text("p")
        await screen.until("which account?")
        keyboard.send_text(keys)
        await screen.until("q quit", without="which account?")
    assert not any(account.paused for account in serving.registry.accounts())


async def test_two_digits_choose_among_many(serving: Serving, keyboard: PipeInput) -> None:
    for number in range(4, 13):
        serving.registry.add(sign_in(f"n{number}@example.com"))
    serving.take_up()
    async with shown(serving) as screen:
        keyboard.send_text("p")
        await screen.until("which account?")
        keyboard.send_text("12")
        await screen.until("n12@example.com is paused")
        serving.take_up()
        keyboard.send_text("p1")
        await screen.until("11, 12 1")
        keyboard.send_text(ENTER)
        await screen.until("anna@example.com is paused")


async def test_the_only_account_that_fits_is_taken_at_once(serving: Serving, keyboard: PipeInput) -> None:
    async with shown(serving) as screen:
        keyboard.send_text("c")
        await screen.until("No account waits")
        serving.change(BORIS, wait_until=CLOCK.now() + timedelta(hours=3), why="limit")
        keyboard.send_text("c")
        await screen.until("boris@example.com no longer waits")
    assert serving.account(BORIS).wait_until is None


async def test_a_human_check_is_told_and_passed(serving: Serving, keyboard: PipeInput) -> None:
    async with shown(serving) as screen:
        keyboard.send_text("h")
        await screen.until("No account waits for a human check")
        serving.change(BORIS, why="human")
        await screen.until("! Needs you: press h and pass the site's check for boris@example.com")
        serving.persons.next = [BORIS]
        keyboard.send_text("h")
        await screen.until("boris@example.com has passed the check")
        serving.take_up()
        await screen.until("Requests", without="! Needs you")


async def test_q_drains_and_a_second_one_ends_at_once(serving: Serving, keyboard: PipeInput) -> None:
    async with shown(serving) as screen:
        keyboard.send_text("q")
        await screen.until("Stopping: answers that run are finished first")
        assert len(serving.quits) == 1
        keyboard.send_text("a")
        keyboard.send_text(CTRL_C)
        await screen.until("Stopping now")
    assert len(serving.quits) == 2
    assert not serving.persons.begun.is_set(), "nothing new begins while it stops"


async def test_ctrl_c_in_a_choice_stops(serving: Serving, keyboard: PipeInput) -> None:
    async with shown(serving) as screen:
        keyboard.send_text("p")
        await screen.until("which account?")
        keyboard.send_text(CTRL_C)
        await screen.until("Stopping", without="which account?")
    assert len(serving.quits) == 1


async def test_help_comes_and_goes(serving: Serving, keyboard: PipeInput) -> None:
    async with shown(serving) as screen:
        keyboard.send_text("?")
        await screen.until("keep an account out of turn")
        keyboard.send_text(ESC)
        await screen.until("anna@example.com", without="keep an account out of turn")


async def test_an_action_that_breaks_is_logged_and_the_view_goes_on(
    serving: Serving, keyboard: PipeInput, caplog: pytest.LogCaptureFixture
) -> None:
    serving.persons.next = []
    async with shown(serving) as screen:
        keyboard.send_text("a")
        await screen.until("That went wrong")
    assert "an action in the live view failed" in caplog.text


async def test_the_terminal_is_restored_when_the_view_breaks(serving: Serving, keyboard: PipeInput) -> None:
    async def break_it() -> None:
        async with shown(serving) as screen:
            seen.append(screen)
            await screen.until("None now")
            del serving.activity
            await anyio.sleep_forever()

    seen: list[Screen] = []
    with pytest.raises(ExceptionGroup):
        await break_it()
    assert "\x1b[?1049l" in seen[0].written[-40:]


class Stuck(io.StringIO):
    """A terminal that takes no more text for a while."""

    def __init__(self) -> None:
        super().__init__()
        self.stuck = False

    def write(self, text: str) -> int:
        while self.stuck:
            time.sleep(0.01)
        return super().write(text)


async def test_a_terminal_that_takes_nothing_stops_the_view_alone(
    serving: Serving, keyboard: PipeInput
) -> None:
    file = Stuck()
    console = Console(file=file, width=80, height=24, force_terminal=True, _environ={"TERM": "xterm"})
    view = View(serving, serving.registry, serving.persons.saying, "http://x", CLOCK, lambda: None, console)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(view.run)
        await until_async(lambda: "None now" in file.getvalue())
        file.stuck = True
        try:
            keyboard.send_text("p1")
            await until_async(lambda: serving.account(ANNA).paused)
            with anyio.fail_after(live_module.RESTORE_S + 3):
                tasks.cancel_scope.cancel()
        finally:
            file.stuck = False


class Closed(io.StringIO):
    closed_now = False

    def write(self, text: str) -> int:
        if self.closed_now:
            raise OSError(5, "Input/output error")
        return super().write(text)


async def test_a_terminal_that_is_gone_ends_nothing(serving: Serving, keyboard: PipeInput) -> None:
    file = Closed()
    console = Console(file=file, width=80, height=24, force_terminal=True, _environ={"TERM": "xterm"})
    view = View(serving, serving.registry, serving.persons.saying, "http://x", CLOCK, lambda: None, console)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(view.run)
        await until_async(lambda: "None now" in file.getvalue())
        file.closed_now = True
        await until_async(lambda: view._gone)
        keyboard.send_text("p1")
        await until_async(lambda: serving.account(ANNA).paused)
        tasks.cancel_scope.cancel()


async def test_drawing_a_full_screen_hardly_delays_the_loop(serving: Serving, keyboard: PipeInput) -> None:
    """Streams share the loop: 100 requests at 200 columns, drawn as fast as keys may ask for it."""
    worst = 0.0
    requests = [serving.activity.begin(f"qwen-{number}") for number in range(100)]
    for request in requests:
        request.__enter__().started_s = CLOCK.monotonic_s()
    async with shown(serving, 200, 60) as screen:
        await screen.until("qwen-30")
        end_s = time.monotonic() + 1
        late = []
        while time.monotonic() < end_s:
            keyboard.send_text("x")
            began_s = time.monotonic()
            await anyio.sleep(0.01)
            late.append(time.monotonic() - began_s - 0.01)
        worst = sorted(late)[int(len(late) * 0.9)]
    for request in requests:
        request.__exit__(None, None, None)
    assert worst < 0.1, f"a tenth of the loop's turns came more than {worst:.3f} s late"


def test_speed_is_that_of_the_last_seconds() -> None:
    speeds, request = _Speeds(), InFlight(1, "m", 0.0)
    assert speeds.of([request], 1.0) == {1: None}
    request.started_s, request.pieces = 2.0, 100
    assert speeds.of([request], 4.0) == {1: 50.0}
    request.pieces = 120
    assert speeds.of([request], 6.0) == {1: 10.0}
    assert speeds.of([request], 8.5)[1] == pytest.approx(0.0)
    assert speeds.of([], 9.0) == {}


def test_keys_act_in_a_plain_event_loop_too(serving: Serving, keyboard: PipeInput) -> None:
    """The program runs in `asyncio.run`, where a callback has no task and anyio knows no loop."""
    serving.persons.next = ["dora@example.com"]

    async def use() -> None:
        async with shown(serving) as screen:
            keyboard.send_text("p1")
            await screen.until("anna@example.com is paused")
            keyboard.send_text("a")
            await screen.until("dora@example.com is added")

    asyncio.run(use())
