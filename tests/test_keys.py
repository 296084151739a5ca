from __future__ import annotations

from collections.abc import Iterator

import anyio
import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from qwenproxy.keys import pressed
from tests.serve import until_async

pytestmark = pytest.mark.anyio


@pytest.fixture
def keyboard() -> Iterator[PipeInput]:
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        yield pipe


async def test_keys_are_heard_by_name_or_as_they_are(keyboard: PipeInput) -> None:
    heard: list[str] = []
    with pressed(heard.append):
        keyboard.send_text("a?7\r\x03\x7f")
        await until_async(lambda: len(heard) == 6)
    assert heard == ["a", "?", "7", "enter", "ctrl-c", "backspace"]


async def test_esc_alone_is_told_from_the_start_of_an_arrow(keyboard: PipeInput) -> None:
    heard: list[str] = []
    with pressed(heard.append):
        keyboard.send_text("\x1b[A\x1b[15~x")
        await until_async(lambda: heard)
        assert heard == ["x"], "arrows and function keys are not heard"
        keyboard.send_text("\x1b")
        await until_async(lambda: len(heard) == 2)
    assert heard == ["x", "esc"]


async def test_a_russian_layout_means_the_same_keys(keyboard: PipeInput) -> None:
    heard: list[str] = []
    with pressed(heard.append):
        keyboard.send_text("йфкрсзн")
        await until_async(lambda: len(heard) == 7)
    assert "".join(heard) == "qarhcpy"


async def test_nothing_is_heard_afterwards(keyboard: PipeInput) -> None:
    heard: list[str] = []
    with pressed(heard.append):
        keyboard.send_text("a\x1b")
        await until_async(lambda: heard)
    keyboard.send_text("b")
    await anyio.wait_all_tasks_blocked()
    assert heard == ["a"]
