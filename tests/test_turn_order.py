from __future__ import annotations

import anyio
import pytest

from qwenproxy.errors import ChatBusy
from qwenproxy.turn_order import TurnOrder

pytestmark = pytest.mark.anyio


async def test_one_after_the_other_in_the_order_they_came_and_only_on_one_chat() -> None:
    turns = TurnOrder(5)
    seen: list[str] = []

    async def take(chat: str, name: str) -> None:
        async with turns.alone(chat):
            seen.append(f"{name} in")
            await anyio.sleep(0.01)
            seen.append(f"{name} out")

    async with anyio.create_task_group() as tasks:
        for name in ("a", "b", "c"):
            tasks.start_soon(take, "chat", name)
        tasks.start_soon(take, "other", "x")
    assert [line for line in seen if line[0] != "x"] == ["a in", "a out", "b in", "b out", "c in", "c out"]
    assert seen.index("x in") < seen.index("b in")
    assert not turns._lines


async def test_who_waits_too_long_is_told_and_who_leaves_holds_up_nobody() -> None:
    turns = TurnOrder(0.05)
    async with turns.alone("chat"):
        with pytest.raises(ChatBusy):
            async with turns.alone("chat"):
                raise AssertionError
        with anyio.move_on_after(0.01):
            async with turns.alone("chat"):
                raise AssertionError
    async with turns.alone("chat"):
        pass
    assert not turns._lines


async def test_an_error_inside_lets_the_next_one_in() -> None:
    turns = TurnOrder(1)
    with pytest.raises(ZeroDivisionError):
        async with turns.alone("chat"):
            raise ZeroDivisionError
    async with turns.alone("chat"):
        pass
