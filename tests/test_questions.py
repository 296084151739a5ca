from __future__ import annotations

from collections.abc import Iterator

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from qwenproxy.questions import Option, line, pick, yes
from tests.terminal import CTRL_C, CTRL_D, DOWN, ENTER, ESC, UP

pytestmark = pytest.mark.anyio

OPTIONS = [Option("1", "One", "one"), Option("2", "Two", "two"), Option("q", "Quit", "quit")]


@pytest.fixture
def keyboard() -> Iterator[PipeInput]:
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        yield pipe


@pytest.mark.parametrize(
    ("keys", "chosen"),
    [
        (ENTER, "two"),
        ("1" + ENTER, "one"),
        ("q" + ENTER, "quit"),
        (DOWN + ENTER, "quit"),
        (UP + ENTER, "one"),
        ("x5" + ENTER, "two"),
        (ESC, None),
        (CTRL_C, None),
        (CTRL_D, None),
    ],
)
async def test_digits_letters_and_arrows_choose_and_esc_leaves(
    keyboard: PipeInput, keys: str, chosen: str | None
) -> None:
    keyboard.send_text(keys)
    assert await pick("What?", OPTIONS, "two") == chosen


@pytest.mark.parametrize(
    ("keys", "chosen"),
    [(ENTER, "two"), (f"9{ENTER}1{ENTER}", "one"), (f"Q{ENTER}", "quit"), (CTRL_C, None), (CTRL_D, None)],
)
async def test_a_terminal_that_cannot_be_drawn_on_is_asked_by_a_line(
    keyboard: PipeInput, keys: str, chosen: str | None
) -> None:
    keyboard.send_text(keys)
    assert await pick("What?", OPTIONS, "two", drawn=False) == chosen


@pytest.mark.parametrize("count", [30, 60])
async def test_options_without_a_key_are_reached_by_arrows(keyboard: PipeInput, count: int) -> None:
    options = [Option("", f"title {number}", f"v{number}") for number in range(count)]
    keyboard.send_text("1" + DOWN + DOWN + ENTER)
    assert await pick("Which?", options) == "v2"


@pytest.mark.parametrize("drawn", [True, False])
@pytest.mark.parametrize(
    ("keys", "agreed"), [("y" + ENTER, True), ("n" + ENTER, False), (ENTER, False), (CTRL_C, False)]
)
async def test_only_y_is_yes(keyboard: PipeInput, keys: str, agreed: bool, drawn: bool) -> None:
    keyboard.send_text(keys)
    assert await yes("Delete?", drawn=drawn) is agreed


async def test_the_enter_after_a_y_answers_nothing_else(keyboard: PipeInput) -> None:
    keyboard.send_text("y" + ENTER + "1" + ENTER)
    assert await yes("Delete?")
    assert await pick("What?", OPTIONS, "two") == "one"


async def test_a_line_can_be_changed_and_left(keyboard: PipeInput) -> None:
    keyboard.send_text("s" + ENTER)
    assert await line("Name?", "work") == "works"
    keyboard.send_text(ESC)
    assert await line("Name?", "work") is None


async def test_a_terminal_that_is_gone_answers_nothing(keyboard: PipeInput) -> None:
    keyboard.close()
    assert await pick("What?", OPTIONS) is None
