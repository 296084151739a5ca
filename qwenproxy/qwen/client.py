"""What can be said to Qwen Chat's web service: one method a call, over any `Transport`.

A call that is refused as signed out is repeated once after the site's page has renewed its token (protocol
§1.3); a second refusal, or a page that renews nothing, means that the account's sign-in is gone.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import anyio

from qwenproxy.chat import Attachment, Delta, Started, Text
from qwenproxy.clock import Clock
from qwenproxy.errors import (
    ChatGone,
    EmptyAnswer,
    ProtocolChanged,
    QwenProxyError,
    TokenRejected,
    Unreachable,
    UpstreamError,
    UpstreamTimeout,
)
from qwenproxy.qwen import failures, payload
from qwenproxy.qwen.files import HostedFile
from qwenproxy.qwen.models import Model, read_list
from qwenproxy.qwen.phases import PhaseDecoder
from qwenproxy.qwen.sse import SseDecoder
from qwenproxy.qwen.transport import Fetch, Fetched, Transport
from qwenproxy.settings import THINKING_PATIENCE, Settings

CALL_S = 30.0
"""Longest wait for any call that is not an answer."""

STOP_S = 5.0
"""How long leaving an answer may take to tell the service to stop."""

SETTLE_S = 15.0
"""Silence after an intermediate end that makes it the end; tools were silent 10 s at most (protocol §5.7)."""

FILES_S = 60.0
"""The same after a research's report, while its files are made."""

RESEARCH_PATIENCE = 10
"""First-byte and idle limits are this many times longer during a research, which takes 7 to 11 minutes and is
given 25 by others (protocol §10.5, §13). `total_timeout_s` holds all the same."""

WHOLE_BYTES = 8 * 1024 * 1024
"""Largest answer that is not a stream; a model list is some 20 kB."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One user message, ready to be said in whatever chat it will be said in."""

    model: Model
    prompt: str
    thinking: bool | None = None
    thinking_budget: int | None = None
    parent_id: str | None = None
    attachments: tuple[HostedFile | Attachment, ...] = ()
    """What the account has, and what is said to be hosted already."""
    chat_type: str = "t2t"
    sub_chat_type: str = ""
    """Which of the two messages of a research this is (protocol §10.5); "": no such."""
    size: str = ""
    generator: str = ""
    """Of a drawing (protocol §10.1)."""

    @property
    def draws(self) -> bool:
        return self.chat_type in payload.DRAWINGS

    @property
    def reports(self) -> bool:
        """Whether the answer is a research's report."""
        return self.sub_chat_type == payload.RESEARCH

    def body(self, chat_id: str, clock: Clock) -> dict[str, Any]:
        return payload.completion(
            chat_id,
            self.model.id,
            self.prompt,
            self._features(),
            question_id=str(uuid4()),
            answer_id=str(uuid4()),
            timestamp_s=int(clock.now().timestamp()),
            parent_id=self.parent_id,
            attachments=self.attachments,
            chat_type=self.chat_type,
            sub_chat_type=self.sub_chat_type,
            size=self.size,
            generator=self.generator,
        )

    def _features(self) -> dict[str, Any]:
        """A research has no switch for thinking (protocol §4.2): who wants it gets the deeper research."""
        if self.chat_type == payload.RESEARCH:
            deeper = self.thinking is True
            return payload.feature_config(self.model, search=True, deeper=deeper)
        search = self.chat_type == payload.SEARCH
        return payload.feature_config(self.model, self.thinking, self.thinking_budget, search=search)


@dataclass(slots=True)
class _Refused:
    """The credential of the last call, for the renewal that may follow."""

    credential: str = ""


class QwenClient:
    def __init__(self, transport: Transport, settings: Settings, clock: Clock) -> None:
        self._transport = transport
        self._settings = settings
        self._clock = clock

    async def who(self, account_id: str) -> dict[str, Any]:
        """The signed-in user; costs no message (protocol §1.3, both eras).

        Raises:
            TokenRejected: nobody is signed in.
        """
        try:
            user = await self.call(account_id, Fetch("GET", "/api/v2/auths/", host="auth"))
        except (ChatGone, Unreachable, ProtocolChanged):  # an older site has no such host
            user = await self.call(account_id, Fetch("GET", "/api/v1/auths/"))
        if not isinstance(user, dict) or "id" not in user:
            raise ProtocolChanged(
                "the service's who-am-I answer has a shape we do not know", seen=str(type(user))
            )
        return user

    async def models(self, account_id: str) -> tuple[Model, ...]:
        """The models this account may use, in the service's order (protocol §7)."""
        return read_list(await self.call(account_id, Fetch("GET", "/api/v2/models/")))

    async def new_chat(self, account_id: str, model: Model, chat_type: str = "t2t") -> str:
        """The id of a fresh chat (protocol §3)."""
        stamp = int(self._clock.now().timestamp() * 1000)
        body = payload.new_chat(model.id, stamp, chat_type)
        data = await self.post(account_id, "/api/v2/chats/new", body)
        return payload.chat_id_of(data)

    async def rename(self, account_id: str, chat_id: str, title: str) -> None:
        await self.post(account_id, f"/api/v2/chats/{quote(chat_id, safe='')}", payload.rename(title))

    async def delete(self, account_id: str, chat_id: str) -> None:
        """An empty answer means deleted too (protocol §8). Raises: ChatGone, ChatBusy."""
        try:
            await self.call(account_id, Fetch("DELETE", f"/api/v2/chats/{quote(chat_id, safe='')}"))
        except EmptyAnswer:
            return

    async def stop(self, account_id: str, chat_id: str, response_id: str) -> None:
        """Ends a running answer on the service (protocol §4.6)."""
        path = f"/api/v2/chat/completions/stop?chat_id={quote(chat_id, safe='')}"
        await self.post(account_id, path, payload.stop(chat_id, response_id))

    def fits(self, turn: Turn) -> bool:
        """Whether the service takes it as one message. Large bodies are challenged on any account, far
        below the site's own limit in characters (protocol §13)."""
        if len(turn.prompt) > payload.MOST_CHARACTERS:
            return False
        body = _text(turn.body(chat_id="0" * 36, clock=self._clock))
        return len(body.encode()) <= self._settings.max_prompt_bytes

    async def stream(self, account_id: str, chat_id: str, turn: Turn) -> AsyncGenerator[Delta]:
        """The deltas of one answer. `Started` is held back until there is something to show.

        Closing it early aborts the call in the page and then tells the service to stop.
        """
        refused = _Refused()
        renewed = False
        while True:
            begun = False
            try:
                async with aclosing(self._answer(account_id, chat_id, turn, refused)) as deltas:
                    async for delta in deltas:
                        begun = True
                        yield delta
                return
            except TokenRejected:
                if begun or renewed or not await self._transport.renew(account_id, refused.credential):
                    raise
                renewed = True

    async def _answer(
        self, account_id: str, chat_id: str, turn: Turn, refused: _Refused
    ) -> AsyncGenerator[Delta]:
        phases = PhaseDecoder(chat_id, turn.model.id, researches=turn.reports)
        try:
            async with aclosing(self._deltas(account_id, chat_id, turn, phases, refused)) as deltas:
                held: Started | None = None
                async for delta in deltas:
                    # A research that has begun is not repeated elsewhere, and may long have nothing to show.
                    if isinstance(delta, Started) and not turn.reports:
                        held = delta
                        continue
                    if held is not None:
                        yield held
                        held = None
                    yield delta
        except (GeneratorExit, asyncio.CancelledError, UpstreamTimeout):
            if phases.response_id and not phases.ended:
                await self._stop_quietly(account_id, chat_id, phases.response_id)
            raise

    async def _deltas(
        self, account_id: str, chat_id: str, turn: Turn, phases: PhaseDecoder, refused: _Refused
    ) -> AsyncGenerator[Delta]:
        body = turn.body(chat_id, self._clock)
        path = f"/api/v2/chat/completions?chat_id={quote(chat_id, safe='')}"
        waits = _Patience(self._settings, self._clock, turn)
        events = SseDecoder()
        async with AsyncExitStack() as stack:
            async with waits.for_next():
                fetched = await stack.enter_async_context(
                    self._transport.fetch(account_id, Fetch("POST", path, _text(body), stream=True))
                )
            refused.credential = fetched.credential
            if not failures.expects_stream(fetched.headers):
                raise await self._not_a_stream(fetched)
            pieces = await stack.enter_async_context(aclosing(fetched.pieces()))
            while not phases.ended:
                piece = await self._next(pieces, phases, waits)
                if not piece:
                    for delta in phases.settle() if piece is None else _rest(events, phases):
                        yield delta
                    return
                for event in events.push(piece):
                    for delta in phases.push(event):
                        waits.answering = waits.answering or isinstance(delta, Text)
                        yield delta

    async def _next(
        self, pieces: AsyncGenerator[bytes], phases: PhaseDecoder, waits: _Patience
    ) -> bytes | None:
        """The next piece; empty at the body's end; None when silence has made the last frame the end."""
        if phases.settling:
            try:
                async with asyncio.timeout(FILES_S if waits.reports else SETTLE_S):
                    return await anext(pieces, b"")
            except TimeoutError:
                return None
        async with waits.for_next():
            piece = await anext(pieces, b"")
        waits.begun = True
        return piece

    async def _not_a_stream(self, fetched: Fetched) -> QwenProxyError:
        text = await _whole(fetched)
        error = failures.judge(fetched.status, fetched.headers, text, self._clock.now())
        return error or ProtocolChanged("the service answered a question without a stream", seen=text)

    async def _stop_quietly(self, account_id: str, chat_id: str, response_id: str) -> None:
        """Best effort: who leaves an answer cannot be told that stopping it failed."""
        with anyio.move_on_after(STOP_S, shield=True):
            try:
                await self.stop(account_id, chat_id, response_id)
            except QwenProxyError:
                return

    async def post(self, account_id: str, path: str, body: dict[str, Any]) -> Any:
        """As `call`."""
        return await self.call(account_id, Fetch("POST", path, _text(body)))

    async def call(self, account_id: str, call: Fetch) -> Any:
        """The answer's data, out of its envelope. Raises: whatever `failures.judge` finds in it."""
        refused = _Refused()
        try:
            return await self._once(account_id, call, refused)
        except TokenRejected:
            if not await self._transport.renew(account_id, refused.credential):
                raise
            return await self._once(account_id, call, refused)

    async def _once(self, account_id: str, call: Fetch, refused: _Refused) -> Any:
        try:
            async with asyncio.timeout(CALL_S), self._transport.fetch(account_id, call) as fetched:
                refused.credential = fetched.credential
                text = await _whole(fetched)
        except TimeoutError:
            raise UpstreamTimeout("the service did not answer in time") from None
        error = failures.judge(fetched.status, fetched.headers, text, self._clock.now())
        if error is not None:
            raise error
        return failures.unwrap(text)


class _Patience:
    """How long an answer may still be silent."""

    def __init__(self, settings: Settings, clock: Clock, turn: Turn) -> None:
        self._settings = settings
        self._clock = clock
        self._thinking = payload.thinks(turn.model, turn.thinking)
        self.reports = turn.reports
        self._end_s = clock.monotonic_s() + settings.total_timeout_s
        self.begun = False
        self.answering = False

    def for_next(self) -> _Wait:
        limit_s = self._settings.idle_timeout_s if self.begun else self._settings.first_byte_timeout_s
        if self.reports:
            limit_s *= RESEARCH_PATIENCE
        elif self._thinking and not self.answering:
            limit_s *= THINKING_PATIENCE
        return _Wait(min(limit_s, self._end_s - self._clock.monotonic_s()))


class _Wait:
    """`asyncio.timeout` whose end is our own error."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._timeout = asyncio.timeout(limit_s)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, *exc: Any) -> None:
        try:
            await self._timeout.__aexit__(*exc)
        except TimeoutError:
            raise UpstreamTimeout(f"the service sent nothing for {max(self._limit_s, 0):.0f} s") from None


def _rest(events: SseDecoder, phases: PhaseDecoder) -> Iterator[Delta]:
    """What the body's end brings. An intermediate end is none: what should have followed was cut off."""
    for event in events.flush():
        yield from phases.push(event)
    yield from phases.finish()


async def _whole(fetched: Fetched) -> str:
    body = bytearray()
    async with aclosing(fetched.pieces()) as pieces:
        async for piece in pieces:
            body += piece
            if len(body) > WHOLE_BYTES:
                raise UpstreamError("the service's answer is too large")
    return body.decode("utf-8", "replace")


def _text(body: dict[str, Any]) -> str:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"))
