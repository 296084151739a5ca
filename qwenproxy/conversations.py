"""Conversations that go on: kept chats, and answers that are continued by their id.

The chat's file is the truth (`transcript.py`), the upstream chat only its mirror. While the mirror holds what
the file says, the new message alone goes there; otherwise the whole conversation, `MAX_HISTORY` messages at
most, is told to a fresh chat, and the answer says why:

| why | |
|---|---|
| `account_waiting`, `account_invalid`, `account_paused`, `account_deleted` | of the account with the mirror |
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
import sqlite3
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
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
    Media,
    Message,
    Source,
    Started,
    Text,
    Thinking,
    UpstreamChat,
    written,
)
from qwenproxy.clock import Clock
from qwenproxy.errors import BadRequest, CallerError, QwenProxyError, StoreError, UnknownChat
from qwenproxy.exchanges import Exchange, Exchanges
from qwenproxy.history import History
from qwenproxy.transcript import UNNAMED, Content, Entry, Transcript, window
from qwenproxy.turn_order import TurnOrder

log = logging.getLogger(__name__)

ANSWER_PREFIX = "chatcmpl-"
"""What completions put before the service's id of an answer."""
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

    def done(self, chat: UpstreamChat) -> None: ...

    def discard(self, chat: UpstreamChat) -> None: ...

    def held(self) -> tuple[UpstreamChat, ...]: ...


class Conversations:
    def __init__(
        self,
        gateway: Gateway,
        history: History,
        exchanges: Exchanges,
        twins: Twins,
        turns: TurnOrder,
        clock: Clock,
        *,
        most: int,
        keeps_chats: bool,
    ) -> None:
        """`most` messages of a chat go to the model; `keeps_chats`: those of completions stay upstream."""
        self._gateway = gateway
        self._history = history
        self._exchanges = exchanges
        self._twins = twins
        self._turns = turns
        self._clock = clock
        self._most = most
        self._keeps_chats = keeps_chats

    async def stream(
        self, request: ChatRequest, caller: Caller, *, only: frozenset[str] | None = None
    ) -> AsyncGenerator[Delta]:
        """The deltas that answer `request`, in the conversation that it names.

        Raises:
            UnknownChat: there is no such conversation, or it is another key's.
            ChatBusy: an earlier request on it goes on for too long.
            …: whatever the gateway raises.
        """
        ref = request.conversation
        if ref is None:
            answer = self._alone(request, caller, only)
        else:
            found = await self._found(ref, caller)
            if isinstance(found, Exchange):
                answer = self._continued(found, request, caller, only)
            else:
                answer = self._in_chat(replace(request, conversation=found), found, caller, only)
        async with aclosing(answer) as deltas:
            async for delta in deltas:
                yield delta

    async def forget_unwanted(self) -> None:
        """Discards, once at a start, the upstream chats whose conversations are no more."""
        held = self._twins.held()  # before looking: what is held from now on is wanted
        try:
            wanted = await run_sync(self._history.twins) | await run_sync(self._exchanges.twins)
        except Exception:  # tidying up must not end what is served
            log.exception("which chats of the web accounts are still wanted cannot be told")
            return
        for chat in held:
            if chat not in wanted:
                self._twins.discard(chat)

    # ---- completions ----

    async def _alone(
        self, request: ChatRequest, caller: Caller, only: frozenset[str] | None
    ) -> AsyncGenerator[Delta]:
        """A conversation that the request holds whole; its chat goes, unless chats are kept."""
        said = _Said()
        async with aclosing(self._gateway.stream(request, only=only)) as deltas:
            async for delta in deltas:
                said.take(delta)
                if isinstance(delta, Finished) and request.remember:
                    home = said.home if self._keeps_chats and not delta.cut else Home()
                    await self._remember(said, (*request.messages, said.message), home, caller)
                yield delta

    async def _continued(
        self, before: Exchange, request: ChatRequest, caller: Caller, only: frozenset[str] | None
    ) -> AsyncGenerator[Delta]:
        """After an earlier answer; of the request's messages the last question counts."""
        _refuse_choices(request)
        twin = UpstreamChat(before.home.chat_id, before.home.account_id)
        messages = (*before.messages, _last_question(request))
        lives = twin.id and self._twins.holds(twin) and len(messages) <= self._most
        home = before.home if lives else Home(before.home.account_id)
        asked = replace(request, messages=window(messages, self._most), home=home)
        said = _Said()
        kept = False
        # A chat upstream takes one question at a time, also from two branches of one conversation.
        async with self._turns.alone(f"upstream {twin.id or before.id}"):
            try:
                async with aclosing(self._gateway.stream(asked, only=only)) as deltas:
                    async for delta in deltas:
                        said.take(delta)
                        if isinstance(delta, Finished):
                            kept = request.remember and not delta.cut
                            if kept:
                                self._twins.hold(said.upstream)
                            if request.remember:
                                after = said.home if kept else Home()
                                await self._remember(said, (*messages, said.message), after, caller)
                        yield delta
            finally:
                if said.started is not None and not kept and said.upstream != twin:
                    self._twins.done(said.upstream)

    async def _remember(self, said: _Said, messages: tuple[Message, ...], home: Home, caller: Caller) -> None:
        await self._note(Exchange(said.response_id, messages, home), caller)

    async def _note(self, exchange: Exchange, caller: Caller) -> None:
        """Best effort: an answer is not worth less because it cannot be continued by its id."""
        try:
            forgotten = await run_sync(self._exchanges.add, exchange, caller)
        except sqlite3.Error as exc:
            log.warning("an answer cannot be remembered: %s", exc)
            return
        for chat in forgotten:
            self._twins.done(chat)

    async def _found(self, ref: ConversationRef, caller: Caller) -> Exchange | ConversationRef:
        """The conversation that a client means."""
        if ref.is_chat:
            return ref
        try:
            exchange = await run_sync(self._exchanges.get, ref.id.removeprefix(ANSWER_PREFIX), caller)
        except sqlite3.Error as exc:
            raise StoreError("what was answered before cannot be read") from exc
        if exchange is None:
            return await self._chat_named(ref, caller)
        if exchange.kept_chat:
            return ConversationRef(exchange.kept_chat, ref.parent_id or exchange.kept_message)
        return exchange

    async def _chat_named(self, ref: ConversationRef, caller: Caller) -> ConversationRef:
        try:
            await run_sync(self._history.read, ref.id, caller)
        except UnknownChat:
            raise UnknownChat(
                "there is no such conversation: it names no chat and no answer of the last day",
                param="conversation_id",
            ) from None
        return replace(ref, is_chat=True)

    # ---- kept chats ----

    async def _in_chat(
        self, request: ChatRequest, ref: ConversationRef, caller: Caller, only: frozenset[str] | None
    ) -> AsyncGenerator[Delta]:
        _refuse_choices(request)
        chat_id = ref.id or str(uuid4())
        async with self._turns.alone(chat_id):
            chat, question = await run_sync(self._ask, chat_id, request, caller)
            turn = _Turn(chat, question, str(uuid4()), caller, begins=not ref.id)
            try:
                async with aclosing(self._gateway.stream(self._told(turn, request), only=only)) as deltas:
                    async for delta in deltas:
                        yield await self._take(turn, delta)
            except QwenProxyError as exc:
                await self._keep_failed(turn, exc)
                raise
            finally:
                if not turn.over:
                    await self._keep_broken(turn, INTERRUPTED)

    def _ask(self, chat_id: str, request: ChatRequest, caller: Caller) -> tuple[Transcript, Entry]:
        """The chat with the question, which is on disk. Blocks."""
        ref = request.conversation or ConversationRef()
        now_s = self._clock.now().timestamp()
        if ref.regenerate:
            return self._history.read(chat_id, caller).asked_again(ref.parent_id)
        content = _content_of(_last_question(request))

        def ask(chat: Transcript) -> tuple[Transcript, Entry]:
            return chat.asked(content, parent_id=ref.parent_id, new_id=str(uuid4()), timestamp=int(now_s))

        if not ref.id:
            chat = Transcript(chat_id, _name_of(content), int(now_s * 1000), owner=caller.mark)
            for message in request.messages[:-1]:
                chat = chat.preceded(Entry(str(uuid4()), "", "system", message.text, int(now_s)))
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

    def _told(self, turn: _Turn, request: ChatRequest) -> ChatRequest:
        """What goes to the gateway: the conversation, and where it lives."""
        path = turn.chat.branch(turn.question.id)
        home, turn.why = self._home(turn, path)
        model = request.model or turn.chat.model_of(turn.question.id) or ANY_MODEL
        messages = tuple(entry.message for entry in window(path, self._most))
        return replace(request, model=model, messages=messages, home=home)

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
            self._twins.discard(twin)
        else:
            turn.over = True
            self._settle(turn, gone=finished.cut)
            await self._note(
                Exchange(said.response_id, kept_chat=turn.chat.id, kept_message=entry.id), turn.caller
            )
        turn.over = True

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
            sources=tuple({"number": s.number, "url": s.url, "title": s.title} for s in said.sources),
            info=told,
            rebuilt=started.rebuilt if started else "",
            upstream_chat=said.upstream.id if whole else "",
            upstream_response=said.response_id if whole else "",
        )


@dataclass(slots=True)
class _Said:
    """What came of an answer so far."""

    started: Started | None = None
    text: list[str] = field(default_factory=list)
    thinking: list[str] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    media: list[Media] = field(default_factory=list)

    def take(self, delta: Delta) -> None:
        match delta:
            case Started():
                self.started = delta
            case Text():
                self.text.append(delta.text)
            case Thinking():
                self.thinking.append(delta.text)
            case Source():
                self.sources.append(delta)
            case Media():
                self.media.append(delta)
            case Finished():
                pass

    @property
    def content(self) -> str:
        return written("".join(self.text), self.media)

    @property
    def message(self) -> Message:
        return Message("assistant", self.content)

    @property
    def response_id(self) -> str:
        return self.started.response_id if self.started is not None else ""

    @property
    def upstream(self) -> UpstreamChat:
        """The chat that answered; without a name before it began."""
        if self.started is None:
            return UpstreamChat("", "")
        return UpstreamChat(self.started.chat_id, self.started.account_id)

    @property
    def home(self) -> Home:
        return Home(self.upstream.account_id, self.upstream.id, self.response_id)


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
    said: _Said = field(default_factory=_Said)
    over: bool = False
    """What came of it is on disk."""


def _last_question(request: ChatRequest) -> Message:
    """Raises: BadRequest."""
    for message in reversed(request.messages):
        if message.role == "user":
            return message
    raise BadRequest("messages hold no message of a user", param="messages")


def _refuse_choices(request: ChatRequest) -> None:
    if request.choices > 1:
        raise BadRequest("n must be 1 in a conversation that goes on", param="n")


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
