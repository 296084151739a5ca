"""Which conversation a request belongs to: none, an earlier answer's, or a kept chat's (`kept_chats.py`).

An answer of the last day is continued by its id (`exchanges.py`): in the upstream chat it was given in, where
that was kept for it, else the conversation is told anew to a fresh one, which is kept from then on.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace

from anyio.to_thread import run_sync

from qwenproxy.caller import Caller
from qwenproxy.chat import ChatRequest, ConversationRef, Delta, Finished, Home, Message, UpstreamChat
from qwenproxy.clock import Clock
from qwenproxy.errors import StoreError, UnknownChat, UnknownPrevious, UnsupportedParameter
from qwenproxy.exchanges import Exchange, Exchanges
from qwenproxy.history import History
from qwenproxy.intake import Attachments
from qwenproxy.kept_chats import Gateway, KeptChats, Twins
from qwenproxy.said import Said, last_question, new_messages
from qwenproxy.transcript import window
from qwenproxy.turn_order import TurnOrder

log = logging.getLogger(__name__)

ANSWER_PREFIXES = ("chatcmpl-", "resp_", "msg_")
"""What the dialects put before the id of an answer."""


class Conversations:
    def __init__(
        self,
        gateway: Gateway,
        history: History,
        exchanges: Exchanges,
        twins: Twins,
        turns: TurnOrder,
        clock: Clock,
        attachments: Attachments,
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
        self._attachments = attachments
        self._most = most
        self._keeps_chats = keeps_chats
        self._chats = KeptChats(gateway, history, twins, turns, clock, attachments, self._note, most=most)

    async def stream(
        self, request: ChatRequest, caller: Caller, *, only: frozenset[str] | None = None
    ) -> AsyncGenerator[Delta]:
        """The deltas that answer `request`, in the conversation that it names.

        Raises:
            UnknownChat: there is no such conversation, or it is another key's.
            ChatBusy: an earlier request on it goes on for too long.
            …: whatever the gateway raises, and what taking in attachments does.
        """
        ref = request.conversation
        found = None if ref is None else await self._found(ref, caller)
        if isinstance(found, Exchange):
            if ref is None or not ref.appends:
                request = replace(request, messages=new_messages(request))
        elif found is not None:
            _check_kept(request)
            if found.id and not found.regenerate:
                request = replace(request, messages=(last_question(request),))
        request = await self._attachments.taken(request, caller)
        if found is None:
            answer = self._alone(request, caller, only)
        elif isinstance(found, Exchange):
            answer = self._continued(found, request, caller, only)
        else:
            answer = self._chats.stream(request, found, caller, only)
        async with aclosing(answer) as deltas:
            async for delta in deltas:
                yield delta

    async def forget(self, answer_id: str, caller: Caller) -> None:
        """What was said up to that answer is remembered no longer under its id. Raises: StoreError."""
        try:
            forgotten = await run_sync(self._exchanges.delete, answer_id, caller)
        except sqlite3.Error as exc:
            raise StoreError("what was answered before cannot be forgotten") from exc
        for chat in forgotten:
            self._twins.done(chat)

    async def forget_unwanted(self, others: Callable[[], frozenset[UpstreamChat]] = frozenset) -> None:
        """Discards, once at a start, the upstream chats whose conversations are no more.

        `others` tells, blocking, of those that are wanted for something else.
        """
        held = self._twins.held()  # before looking: what is held from now on is wanted
        try:
            wanted = await run_sync(self._history.twins) | await run_sync(self._exchanges.twins)
            wanted |= await run_sync(others)
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
        said = Said()
        async with aclosing(self._gateway.stream(request, only=only)) as deltas:
            async for delta in deltas:
                said.take(delta)
                if isinstance(delta, Finished) and request.remember:
                    home = said.home if self._keeps_chats and not delta.cut else Home()
                    messages = (*request.messages, said.message)
                    await self._remember(said, request.answer_id, messages, home, caller)
                yield delta

    async def _continued(
        self, before: Exchange, request: ChatRequest, caller: Caller, only: frozenset[str] | None
    ) -> AsyncGenerator[Delta]:
        """After an earlier answer, which the request's messages follow."""
        twin = UpstreamChat(before.home.chat_id, before.home.account_id)
        messages = _continuing(before.messages, request)
        lives = twin.id and self._twins.holds(twin) and len(messages) <= self._most
        lives = lives and _is_one_question(before.messages, messages, request)
        home = before.home if lives else Home(before.home.account_id)
        told = await self._attachments.recalled(window(messages, self._most), caller, fetch=False)
        asked = replace(request, messages=told.messages, home=home)
        said = Said()
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
                                whole = (*messages, said.message)
                                await self._remember(said, request.answer_id, whole, after, caller)
                        yield delta
            finally:
                if said.started is not None and not kept and said.upstream != twin:
                    self._twins.done(said.upstream)

    async def _remember(
        self, said: Said, answer_id: str, messages: tuple[Message, ...], home: Home, caller: Caller
    ) -> None:
        await self._note(Exchange(answer_id or said.response_id, messages, home), caller)

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
            exchange = await run_sync(self._exchanges.get, _answer_id(ref.id), caller)
        except sqlite3.Error as exc:
            raise StoreError("what was answered before cannot be read") from exc
        if ref.appends and (exchange is None or exchange.kept_chat):
            raise UnknownPrevious(
                "there is no such answer of the last day to go on from", param="previous_response_id"
            )
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


def _answer_id(name: str) -> str:
    prefix = next((prefix for prefix in ANSWER_PREFIXES if name.startswith(prefix)), "")
    return name.removeprefix(prefix)


def _check_kept(request: ChatRequest) -> None:
    """Raises: UnsupportedParameter: a kept chat has no place for calls and their results."""
    if request.tools:
        raise UnsupportedParameter("tools cannot be used in a chat that is kept here", param="tools")


def _continuing(before: tuple[Message, ...], request: ChatRequest) -> tuple[Message, ...]:
    """The conversation so far and the request's messages; of those that append, system messages come anew."""
    if request.conversation is None or not request.conversation.appends:
        return (*before, *request.messages)
    system = [message for message in request.messages if message.role == "system"]
    told = (message for message in (*before, *request.messages) if message.role != "system")
    return (*system, *told)


def _is_one_question(
    before: tuple[Message, ...], messages: tuple[Message, ...], request: ChatRequest
) -> bool:
    """Whether all that a chat which knows `before` lacks is the last message, as it is.

    Tools and formats are told at the beginning of a chat; they may have changed.
    """
    as_it_is = not request.tools and request.answer_format is None
    return as_it_is and messages[:-1] == before and messages[-1].role == "user"
