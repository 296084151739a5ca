"""What videos and speech are made with: a real pool, ledger and janitor, over chats that only are counted."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from qwenproxy.accounts.pool import Pool
from qwenproxy.accounts.registry import Registry
from qwenproxy.activity import Activity
from qwenproxy.clock import SystemClock
from qwenproxy.errands import Errands
from qwenproxy.janitor import Janitor
from qwenproxy.ledger import Ledger
from qwenproxy.qwen.models import BUILT_IN, Model


@dataclass
class CountedChats:
    made: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)

    def new(self, account_id: str) -> str:
        self.made.append(f"{account_id}-chat-{len(self.made)}")
        return self.made[-1]

    async def delete(self, account_id: str, chat_id: str) -> None:
        self.deleted.append(chat_id)

    async def rename(self, account_id: str, chat_id: str, title: str) -> None:
        raise AssertionError("chats are not kept here")


@dataclass
class Making:
    registry: Registry
    pool: Pool
    activity: Activity
    errands: Errands
    ledger: Ledger
    janitor: Janitor


async def built_in() -> tuple[Model, ...]:
    return BUILT_IN


@asynccontextmanager
async def making(folder: Path, chats: CountedChats, *, accounts: int = 3) -> AsyncIterator[Making]:
    """Accounts a0, a1 and so on, for the first time or again."""
    if not (folder / "tokens.json").exists():
        rows = [{"id": f"a{n}", "token": "t"} for n in range(accounts)]
        (folder / "tokens.json").write_text(json.dumps(rows))
    clock = SystemClock()
    registry = Registry(folder, clock)
    pool = Pool(registry.accounts(), registry, clock, slots=2, pace_s=0, queue_timeout_s=5)
    activity = Activity(clock)
    ledger = Ledger(folder / "chats.jsonl")
    janitor = Janitor(ledger, chats, keep=False)
    async with janitor.at_work():
        yield Making(registry, pool, activity, Errands(pool, activity), ledger, janitor)
