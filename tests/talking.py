"""Conversations over a real gateway and real files, an upstream that plays a script, and a client."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio

from qwenproxy.accounts.registry import Registry
from qwenproxy.caller import ANYBODY, Caller
from qwenproxy.chat import (
    ChatRequest,
    ConversationRef,
    Delta,
    Finished,
    Message,
    Reply,
    Started,
    Text,
    fold,
)
from qwenproxy.clock import SystemClock
from qwenproxy.conversations import Conversations
from qwenproxy.exchanges import Exchanges
from qwenproxy.gateway import Gateway
from qwenproxy.history import History
from qwenproxy.janitor import Janitor
from qwenproxy.qwen.client import Turn
from qwenproxy.transcript import Transcript
from qwenproxy.turn_order import TurnOrder
from tests.attaching import Elsewhere
from tests.test_gateway import ScriptedUpstream, gateway

OTHER = Caller("key_other", "other", frozenset({"chat"}))


class Upstream(ScriptedUpstream):
    """Numbers its answers, so that each can be told from the others."""

    def __init__(self, *ends: Any) -> None:
        super().__init__(*ends)
        self.answers = 0
        self.more: list[Delta] = []
        self.waits = anyio.Event()
        self.waits.set()

    async def stream(self, account_id: str, chat_id: str, turn: Turn) -> AsyncGenerator[Delta]:
        async with aclosing(super().stream(account_id, chat_id, turn)) as deltas:
            async for delta in deltas:
                if isinstance(delta, Started):
                    self.answers += 1
                    yield replace(delta, response_id=f"r{self.answers}")
                    for more in self.more:
                        yield more
                elif isinstance(delta, Finished):
                    yield Text(f" {self.answers}")
                    yield delta
                else:
                    yield delta
                    await self.waits.wait()

    @property
    def said(self) -> list[tuple[str, str | None, str]]:
        """By call: the chat, the parent, and the prompt."""
        return [(chat, turn.parent_id, turn.prompt) for _, chat, turn in self.calls]


@dataclass
class Kept:
    """All of it, and what a client does with it."""

    folder: Path
    gateway: Gateway
    conversations: Conversations
    history: History
    janitor: Janitor
    elsewhere: Elsewhere
    seen: list[Delta] = field(default_factory=list)

    async def talk(self, request: ChatRequest, caller: Caller = ANYBODY) -> Reply:
        self.seen.clear()
        async with aclosing(self.conversations.stream(request, caller)) as deltas:
            async for delta in deltas:
                self.seen.append(delta)
        return fold(self.seen)

    async def ask(self, text: str, chat_id: str = "", parent_id: str = "", **more: Any) -> Reply:
        return await self.talk(
            ChatRequest("qwen", (Message("user", text),), conversation=ConversationRef(chat_id, parent_id)),
            **more,
        )

    async def again(self, chat_id: str, message_id: str = "") -> Reply:
        ref = ConversationRef(chat_id, message_id, regenerate=True)
        return await self.talk(ChatRequest("", (), conversation=ref))

    async def complete(self, *texts: str, after: str = "", caller: Caller = ANYBODY, **more: Any) -> Reply:
        roles = ["user", "assistant"] * len(texts)
        messages = tuple(Message(role, text) for role, text in zip(roles, texts, strict=False))  # type: ignore[arg-type]
        ref = ConversationRef(after, is_chat=False) if after else None
        return await self.talk(ChatRequest("qwen", messages, conversation=ref, **more), caller)

    def chat(self, chat_id: str) -> Transcript:
        return self.history.read(chat_id, ANYBODY)

    def texts(self, chat_id: str) -> list[str]:
        return [entry.text for entry in self.chat(chat_id).branch()]

    def change_account(self, account_id: str, **change: Any) -> None:
        path = self.folder / "tokens.json"
        rows = json.loads(path.read_text())
        path.write_text(json.dumps([{**row, **(change if row["id"] == account_id else {})} for row in rows]))
        self.gateway.pool.take_up(Registry(self.folder, SystemClock()).accounts())


@asynccontextmanager
async def kept(
    folder: Path, upstream: ScriptedUpstream, *, most: int = 100, **more: Any
) -> AsyncIterator[Kept]:
    clock = SystemClock()
    async with gateway(folder, upstream, **more) as gate:
        with (
            closing(History(folder, clock)) as history,
            closing(Exchanges(folder, clock, most=5)) as exchanges,
        ):
            turns = TurnOrder(0.5)
            janitor = gate._janitor
            hosting: Any = gate._hosting
            other = Elsewhere(hosting._store)
            talks = Conversations(
                gate,
                history,
                exchanges,
                janitor,
                turns,
                clock,
                other.attachments(),
                most=most,
                keeps_chats=False,
            )
            yield Kept(folder, gate, talks, history, janitor, other)
