"""Talking in kept chats.

The chat's file is the truth (`transcript.py`), the upstream chat only its mirror. While the mirror holds what
the file says, the new message alone goes there; otherwise the whole conversation, `MAX_HISTORY` messages at
most, is told to a fresh chat, and the answer says why:

| why | |
|---|---|
| `account_waiting`, `account_invalid`, `account_paused`, `account_deleted` | of the account with the mirror |
| `account_busy` | it had no slot free for long, others had |
| `twin_gone` | the mirror was deleted in the web account |
| `retried` | the mirror failed for this message |
| `edited`, `partial`, `other_branch` | the file says something else than the mirror |
| `shortened` | the chat has more than `MAX_HISTORY` messages |
| `moved`, `forked`, `imported`, `no_twin` | there is no mirror yet |

A question is on disk before it is asked, an answer before its end is told. What is cut short is kept as far
as it came, with why; a question that got no answer at all says why, too.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import asdict, dataclass, field, replace
from typing import Protocol
from uuid import uuid4

import anyio
from anyio.to_thread import run_sync

from qwenproxy.caller import Caller
from qwenproxy.chat import (
    ChatRequest,
    ConversationRef,
    Delta,
    Finished,
    Home,
    Message,
    Started,
    UpstreamChat,
)
from qwenproxy.clock import Clock
from qwenproxy.errors import CallerError, QwenProxyError, UnknownChat
from qwenproxy.exchanges import Exchange
from qwenproxy.history import History
from qwenproxy.intake import Attachments
from qwenproxy.said import Said, last_question
from qwenproxy.transcript import UNNAMED, Content, Entry, Transcript, window
from qwenproxy.turn_order import TurnOrder

log = logging.getLogger(__name__)

ANY_MODEL = "qwen"
"""The name that means the default model."""
INTERRUPTED = "interrupted"
"""Why an answer is partial whose client left, or under which the proxy stopped."""
KEEP_S = 5.0
"""How long keeping what came may hold up the end of a request."""
NAME_LENGTH = 60


class Gateway(Protocol):
    def stream(
        self, request: ChatRequest, *, only: frozenset[str] | None = None
    ) -> AsyncGenerator[Delta]: ...


class Twins(Protocol):
    """Whoever looks after the upstream chats."""

    def hold(self, chat: UpstreamChat) -> None: ...

    def holds(self, chat: UpstreamChat) -> bool: ...

    def held(self) -> tuple[UpstreamChat, ...]: ...

    def done(self, chat: UpstreamChat) -> None: ...

    def discard(self, chat: UpstreamChat) -> None: ...


class KeptChats:
    def __init__(
        self,
        gateway: Gateway,
        history: History,
        twins: Twins,
        turns: TurnOrder,
        clock: Clock,
        attachments: Attachments,
        note: Callable[[Exchange, Caller], Awaitable[None]],
        *,
        most: int,
    ) -> None:
        """`most` messages of a chat go to the model; `note` remembers an answer by its id."""
        self._gateway = gateway
        self._history = history
        self._twins = twins
        self._turns = turns
        self._clock = clock
        self._attachments = attachments
        self._note = note
        self._most = most

    async def stream(
        self, request: ChatRequest, ref: ConversationRef, caller: Caller, only: frozenset[str] | None
    ) -> AsyncGenerator[Delta]:
        """The deltas that answer `request` in the chat that `ref` names, or in a new one.

        Raises:
            UnknownChat: there is no such chat, or it is another key's.
            ChatBusy: an earlier request on it goes on for too long.
            …: whatever the gateway raises.
        """
        chat_id = ref.id or str(uuid4())
        async with self._turns.alone(chat_id):
            chat, question = await run_sync(self._ask, chat_id, request, ref, caller)
            turn = _Turn(chat, question, str(uuid4()), caller, begins=not ref.id)
            try:
                told = await self._told(turn, request)
                async with aclosing(self._gateway.stream(told, only=only)) as deltas:
                    async for delta in deltas:
                        yield await self._take(turn, delta)
            except QwenProxyError as exc:
                await self._keep_failed(turn, exc)
                raise
            finally:
                if not turn.over:
                    await self._keep_broken(turn, INTERRUPTED)

    def _ask(
        self, chat_id: str, request: ChatRequest, ref: ConversationRef, caller: Caller
    ) -> tuple[Transcript, Entry]:
        """The chat with the question, which is on disk. Blocks."""
        now_s = self._clock.now().timestamp()
        if ref.regenerate:
            return self._history.read(chat_id, caller).asked_again(ref.parent_id)
        content = _content_of(last_question(request))

        def ask(chat: Transcript) -> tuple[Transcript, Entry]:
            return chat.asked(content, parent_id=ref.parent_id, new_id=str(uuid4()), timestamp=int(now_s))

        if not ref.id:
            chat = Transcript(chat_id, _name_of(content), int(now_s * 1000), owner=caller.mark)
            for message in request.messages[:-1]:
                chat = chat.preceded(Entry(str(uuid4()), "", "system", _content_of(message), int(now_s)))
            chat, question = ask(chat)
            self._history.add(chat)
            return chat, question
        found: list[Entry] = []

        def change(chat: Transcript) -> Transcript:
            asked, question = ask(chat)
            found[:] = [question]
            return asked if question.unanswered else chat

        chat = self._history.change(chat_id, caller, change)
        return chat, found[0]

    async def _told(self, turn: _Turn, request: ChatRequest) -> ChatRequest:
        """What goes to the gateway: the conversation, and where it lives."""
        path = turn.chat.branch(turn.question.id)
        home, turn.why = self._home(turn, path)
        model = request.model or turn.chat.model_of(turn.question.id) or ANY_MODEL
        messages = [entry.message for entry in window(path, self._most)]
        # What the mirror has is not told again, unless it fails; nobody waits for addresses because of that.
        recalled = await self._attachments.recalled(messages, turn.caller, fetch=not home.chat_id)
        if recalled.addresses:
            await self._keep_addresses(turn, recalled.addresses)
        return replace(request, model=model, messages=recalled.messages, home=home)

    async def _keep_addresses(self, turn: _Turn, addresses: Mapping[str, str]) -> None:
        """What was had from elsewhere is here from now on."""

        def keep(chat: Transcript) -> Transcript:
            return chat.readdressed(addresses)

        await _quietly(run_sync(self._history.change, turn.chat.id, turn.caller, keep))

    def _home(self, turn: _Turn, path: tuple[Entry, ...]) -> tuple[Home, str]:
        """Where the conversation goes on, and why it has to be told anew if it has."""
        chat, twin = turn.chat, turn.chat.twin
        parent = chat.entries.get(turn.question.parent_id)
        if all(entry.role in ("system", "developer") for entry in path[:-1]):
            return Home(chat.account or (twin.account_id if twin else "")), ""
        why = ""
        if len(path) > self._most:
            why = "shortened"
        elif twin is None:
            why = chat.untwinned or "no_twin"
        elif not self._twins.holds(twin):
            why = "twin_gone"
        elif parent is None or parent.upstream_chat != twin.id:
            why = "other_branch" if parent and parent.upstream_chat else "edited"
            why = "partial" if parent and parent.partial else why
        if twin is None or parent is None or why:
            return Home(chat.account or (twin.account_id if twin else "")), why
        return Home(twin.account_id, twin.id, parent.upstream_response), ""

    async def _take(self, turn: _Turn, delta: Delta) -> Delta:
        """The delta as the client gets it. An answer's end is told once the answer is kept."""
        if isinstance(delta, Started):
            delta = replace(
                delta,
                conversation_id=turn.chat.id,
                message_id=turn.answer_id,
                rebuilt=delta.rebuilt or turn.why,
            )
        turn.said.take(delta)
        if isinstance(delta, Finished):
            await self._keep_whole(turn, delta)
        return delta

    async def _keep_whole(self, turn: _Turn, finished: Finished) -> None:
        said = turn.said
        twin = said.upstream
        entry = self._entry(turn, "", finished)

        def keep(chat: Transcript) -> Transcript:
            if finished.cut:
                return chat.answered(entry)
            return replace(chat.answered(entry), twin=twin, account="", untwinned="")

        try:
            await run_sync(self._history.change, turn.chat.id, turn.caller, keep)
        except UnknownChat:  # somebody deleted it meanwhile
            turn.over = True
            self._twins.discard(twin)
            return
        turn.over = True
        self._settle(turn, gone=finished.cut)
        kept = Exchange(said.response_id, kept_chat=turn.chat.id, kept_message=entry.id)
        await self._note(kept, turn.caller)

    def _settle(self, turn: _Turn, *, gone: bool) -> None:
        """The chat that answered becomes the twin, or goes; the one before it goes."""
        before, now = turn.chat.twin, turn.said.upstream
        if now == before:
            return
        if gone:
            self._twins.discard(now)
            return
        self._twins.hold(now)
        if before is not None:
            self._twins.discard(before)

    async def _keep_failed(self, turn: _Turn, exc: QwenProxyError) -> None:
        """A new chat whose first request cannot be used is none."""
        if turn.begins and isinstance(exc, CallerError) and turn.said.started is None:
            turn.over = True
            await _quietly(run_sync(self._history.remove, turn.chat.id, turn.caller))
            return
        exc.conversation_id = turn.chat.id
        await self._keep_broken(turn, exc.code)

    async def _keep_broken(self, turn: _Turn, why: str) -> None:
        """What came of an answer that was cut short, or why there is none."""
        turn.over = True
        entry = self._entry(turn, why, None)
        question = turn.question.id

        def keep(chat: Transcript) -> Transcript:
            return chat.answered(entry) if turn.said.content else chat.failed(question, why)

        with anyio.move_on_after(KEEP_S, shield=True):
            await _quietly(run_sync(self._history.change, turn.chat.id, turn.caller, keep))
        if turn.said.started is not None:
            self._settle(turn, gone=True)

    def _entry(self, turn: _Turn, partial: str, finished: Finished | None) -> Entry:
        said, started = turn.said, turn.said.started
        usage = finished.usage if finished else None
        told = {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens} if usage else None
        whole = finished is not None and not finished.cut
        return Entry(
            turn.answer_id,
            turn.question.id,
            "assistant",
            said.content,
            int(self._clock.now().timestamp()),
            partial=partial,
            model=started.model if started else "",
            account=started.account_id if started else "",
            reasoning="".join(said.thinking),
            sources=tuple(asdict(source) for source in said.sources),
            info=told,
            rebuilt=started.rebuilt if started else "",
            upstream_chat=said.upstream.id if whole else "",
            upstream_response=said.response_id if whole else "",
        )


@dataclass(slots=True)
class _Turn:
    """One question to a kept chat, and what comes of it."""

    chat: Transcript
    """As it was when the question was asked, with it."""
    question: Entry
    answer_id: str
    caller: Caller
    begins: bool
    """The chat is new."""
    why: str = ""
    """Why its conversation has to be told anew."""
    said: Said = field(default_factory=Said)
    over: bool = False
    """What came of it is on disk."""


def _content_of(message: Message) -> Content:
    """As the seed kept it."""
    if not message.attachments:
        return message.text
    text = [{"type": "text", "text": message.text}] if message.text else []
    return [*text, *({"type": each.kind, each.kind: each.url} for each in message.attachments)]


def _name_of(content: Content) -> str:
    """What a new chat is called after its first question."""
    text = content if isinstance(content, str) else next((str(p["text"]) for p in content if "text" in p), "")
    line = " ".join(text.split())
    return (line if len(line) <= NAME_LENGTH else line[: NAME_LENGTH - 1].rstrip() + "…") or UNNAMED


async def _quietly(write: Awaitable[object]) -> None:
    """What cannot be kept of a failed turn must not hide why it failed."""
    try:
        await write
    except QwenProxyError as exc:
        log.warning("what came of a request could not be kept: %s", exc)
