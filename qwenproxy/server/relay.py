"""The one async loop between a dialect and whoever answers.

Who ends an answer:

| what happens | what the client sees | what the answer's generator sees |
|---|---|---|
| the last choice finishes | the dialect's normal end | runs to its own end, at most `WIND_DOWN_S` longer |
| an error before the first delta, in the first `decide_s` | the error's own status and body | is closed |
| an error later | 200, then the dialect's error event and no normal end | is closed |
| a bug (any other exception) | the same two, as `internal_error`; the traceback is logged | is closed |
| the client leaves, at any time, streamed or not | – | is closed at once |
| the client stops reading for `write_stall_s` | the connection is dropped | is closed at once |
| the server stops and `DRAIN_S` is over | `shutting_down`, as an error | is closed |

Comments keep a silent stream alive from `decide_s` on, every `HEARTBEAT_S`. They do not count as given: the
gateway may still change the account while only they were sent. An answer that is not streamed is the same
stream, folded; one that draws is kept alive too, from `silence_s` on (`patience.py`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Protocol, TypeAlias

import anyio
from anyio.to_thread import run_sync
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from qwenproxy.caller import Caller
from qwenproxy.chat import ChatRequest, Delta, Finished, fold
from qwenproxy.dialects.base import Dialect, Json
from qwenproxy.errors import QwenProxyError, ShuttingDown
from qwenproxy.guests import tokens_in
from qwenproxy.qwen.models import Model
from qwenproxy.server.access import caller_of
from qwenproxy.server.admission import INTERNAL, Admission
from qwenproxy.server.body import ClientGone, read_body, read_json
from qwenproxy.server.connection import EXTENSION
from qwenproxy.server.patience import SILENCE_S, PaddedJson
from qwenproxy.server.responses import error_response, json_response

log = logging.getLogger(__name__)

KEEP_ALIVE: Final = ": keep-alive\n\n"
DELTAS_AHEAD: Final = 256
"""How many deltas of an answer may wait for a client that reads slowly."""
CLOSE_S: Final = 5.0
"""How long the gateway's generator may take to clean up when it is closed."""
WIND_DOWN_S: Final = 30.0
"""How long it may go on after its last delta."""
SSE_HEADERS: Final = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)

STALL_LOOKS: Final = 12
"""How often, in the time a write may stand still, it is looked at."""

Item: TypeAlias = tuple[int, Delta] | QwenProxyError | None
"""A choice's delta, the end of all of them, or (none) the time for a comment."""
Stream: TypeAlias = Callable[[ChatRequest], AsyncGenerator[Delta]]


class Conversations(Protocol):
    def stream(
        self, request: ChatRequest, caller: Caller, *, only: frozenset[str] | None = None
    ) -> AsyncGenerator[Delta]:
        """The deltas that answer `request`, one choice of it. Raises our errors; cleans up when closed.

        `only` are the guests that may answer it.
        """

    async def forget(self, answer_id: str, caller: Caller) -> None:
        """An answer cannot be continued any more, and what led to it is gone. Raises: StoreError."""


class Gateway(Protocol):
    async def models(self) -> Sequence[Model]: ...

    async def model(self, name: str) -> Model:
        """The model that serves a client's name. Raises: UnknownModel."""

    def readiness(self) -> str | None:
        """None when a request can be answered now, else why not."""

    def ended(self) -> QwenProxyError | None:
        """Why no request will ever be answered again as things are; None while there is hope."""


class Guests(Protocol):
    def inside(self, tokens: Sequence[str]) -> AbstractAsyncContextManager[frozenset[str]]:
        """The ids that stand for a request's own tokens while it runs."""

    async def token_lives(self, token: str) -> bool: ...


@dataclass(frozen=True, slots=True)
class Bounds:
    """What no client may exceed; tests turn them (reliability.md, T16)."""

    decide_s: float = 15.0
    """How long the HTTP status may wait for the first delta."""
    write_stall_s: float = 60.0
    silence_s: float = SILENCE_S
    """How long a drawing that is not streamed may be silent."""
    body_bytes: int = 20_000_000
    body_idle_s: float = 20.0
    body_total_s: float = 120.0


async def read_within(scope: Scope, receive: Receive, bounds: Bounds) -> bytes:
    """The request's body. Raises as `read_body` does."""
    return await read_body(
        scope,
        receive,
        most_bytes=bounds.body_bytes,
        idle_s=bounds.body_idle_s,
        total_s=bounds.body_total_s,
    )


def base_url(scope: Scope) -> str:
    """How the client reaches us; the guard has looked at its `Host` header."""
    hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
    return f"{scope['scheme']}://{hosts[0]}" if hosts else ""


async def read_object(scope: Scope, receive: Receive, bounds: Bounds) -> Json:
    """The JSON object that a request carries; an empty one without a body.

    Raises as `read_body` and `read_json` do.
    """
    body = await read_within(scope, receive, bounds)
    return await read_json(body) if body else {}


Read: TypeAlias = Callable[[Scope, Receive, Bounds], Awaitable[Json]]
Begin: TypeAlias = Callable[[Scope, ChatRequest, Stream, bool], Awaitable[tuple[ChatRequest, Stream] | Json]]
"""Before a request is answered: the request and the stream to answer it with, or the whole answer at once.

The last argument says whether the stream needs sign-ins that are gone with the request.
"""


class Relay:
    """One dialect's endpoint: a plain ASGI application, so that nothing stands between it and the client."""

    def __init__(
        self,
        dialect: Dialect,
        admission: Admission,
        bounds: Bounds,
        heartbeat_s: float,
        *,
        takes_tokens: bool = False,
        read: Read = read_object,
        begin: Begin | None = None,
    ) -> None:
        """`takes_tokens`: a request may bring sign-ins of its own; `read` gives the object in its body."""
        self._dialect = dialect
        self._admission = admission
        self._bounds = bounds
        self._heartbeat_s = heartbeat_s
        self._takes_tokens = takes_tokens
        self._read = read
        self._begin = begin

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        wire = _Wire(scope, receive, send, self._bounds.write_stall_s)
        try:
            with self._admission.enter():
                body = await self._read(scope, receive, self._bounds)
                asked = self._dialect.parse(body, scope["path_params"])
                request = replace(asked, base_url=base_url(scope))
                conversations: Conversations = scope["app"].state.conversations
                async with self._guests(scope) as only:
                    stream: Stream = partial(conversations.stream, caller=caller_of(scope), only=only)
                    if self._begin is not None:
                        begun = await self._begin(scope, request, stream, only is not None)
                        if isinstance(begun, dict):
                            await wire.reply(json_response(begun))
                            return
                        request, stream = begun
                    answer = _Answer(self._dialect, request, wire, self._heartbeat_s, self._bounds)
                    await answer.run(stream, self._admission)
        except ClientGone:
            return
        except QwenProxyError as exc:
            await wire.refuse(exc, self._dialect.error(exc))
        except Exception:
            log.exception("a request could not be read")
            error = QwenProxyError(INTERNAL)
            await wire.refuse(error, self._dialect.error(error))

    def _guests(self, scope: Scope) -> AbstractAsyncContextManager[frozenset[str] | None]:
        """The request's own sign-ins, where the setting takes such and it brings any."""
        values = [value.decode("latin-1") for name, value in scope["headers"] if name == b"authorization"]
        tokens = tokens_in(values[0]) if self._takes_tokens and len(values) == 1 else ()
        guests: Guests = scope["app"].state.guests
        return guests.inside(tokens) if tokens else nullcontext()


class _Wire:
    """The client's end of one answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, stall_s: float) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._stall_s = stall_s
        self._whole = PaddedJson(scope, receive, send)
        self.started = False
        self.written_s = time.monotonic()
        """When the last write ended."""
        self._writing_since_s: float | None = None

    async def start_stream(self) -> None:
        self.started = True
        await self._send({"type": "http.response.start", "status": 200, "headers": list(SSE_HEADERS)})

    async def write(self, text: str, *, more: bool = True) -> None:
        self._writing_since_s = time.monotonic()
        await self._send({"type": "http.response.body", "body": text.encode(), "more_body": more})
        self._writing_since_s = None
        self.written_s = time.monotonic()

    async def pad(self) -> None:
        """Keeps the client of a whole answer waiting."""
        self.started = True
        await self._whole.pad()
        self.written_s = time.monotonic()

    async def reply(self, answer: Response) -> None:
        self.started = True
        await self._whole.end(answer)

    async def refuse(self, error: QwenProxyError, body: Json) -> None:
        self.started = True
        await self._whole.end(error_response(error, body))

    @property
    def padded(self) -> bool:
        """Whether a whole answer has begun, with nothing yet."""
        return self._whole.begun

    async def left(self) -> None:
        """Returns when the client has gone, or its answer is complete."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def stalled(self) -> None:
        """Returns when a write has stood still for too long: the client does not read."""
        while True:
            since_s = self._writing_since_s
            if since_s is not None and time.monotonic() - since_s > self._stall_s:
                return
            await anyio.sleep(self._stall_s / STALL_LOOKS)

    def drop(self) -> None:
        connection = self._scope.get("extensions", {}).get(EXTENSION)
        if connection is not None:
            connection["abort"]()


class _Feed:
    """Deltas of all choices on their way from the gateway to the client: what is there leaves together."""

    def __init__(self) -> None:
        self._items: deque[Item] = deque()
        self._some = asyncio.Event()
        self._room = asyncio.Event()

    async def put(self, item: Item) -> None:
        while len(self._items) >= DELTAS_AHEAD:
            self._room.clear()
            await self._room.wait()
        self._items.append(item)
        self._some.set()

    async def take(self) -> list[Item]:
        """All that is there, at least one."""
        await self._some.wait()
        self._some.clear()
        self._room.set()
        items = list(self._items)
        self._items.clear()
        return items


class _Answer:
    """One request under way."""

    def __init__(
        self, dialect: Dialect, request: ChatRequest, wire: _Wire, heartbeat_s: float, bounds: Bounds
    ) -> None:
        self._dialect = dialect
        self._request = request
        self._wire = wire
        self._heartbeat_s = heartbeat_s
        self._silence_s = bounds.decide_s if request.stream else bounds.silence_s
        self._encoder = dialect.encoder(request)
        self._unfinished = request.choices
        self._written = False
        self._feed = _Feed()

    async def run(self, stream: Stream, admission: Admission) -> None:
        async with anyio.create_task_group() as producers:
            for choice in range(self._request.choices):
                producers.start_soon(self._produce, stream, choice)
            async with anyio.create_task_group() as watchers:
                watchers.start_soon(self._leave_with_client, producers.cancel_scope)
                watchers.start_soon(self._stop_with_server, admission.stopped)
                if self._request.stream:
                    watchers.start_soon(self._drop_when_stalled, producers.cancel_scope)
                if self._request.stream or self._request.drawing is not None:
                    watchers.start_soon(self._keep_alive)
                await self._write()
                self._written = True
                watchers.cancel_scope.cancel()
            wind_down_s = 0 if self._unfinished else WIND_DOWN_S
            producers.cancel_scope.deadline = anyio.current_time() + wind_down_s

    async def _produce(self, stream: Stream, choice: int) -> None:
        delta: Delta | None = None
        try:
            async with _closed_in_the_end(stream(replace(self._request, choices=1))) as deltas:
                async for delta in deltas:
                    await self._feed.put((choice, delta))
            if not isinstance(delta, Finished):
                raise RuntimeError(f"the stream ended with {type(delta).__name__}")
        except QwenProxyError as exc:
            await self._feed.put(exc)
        except Exception:
            log.exception("an answer broke")
            await self._feed.put(QwenProxyError(INTERNAL))

    async def _leave_with_client(self, producers: anyio.CancelScope) -> None:
        await self._wire.left()
        # uvicorn calls an answer that is complete a disconnect too; then the producers end by themselves.
        if not self._written:
            producers.cancel()

    async def _drop_when_stalled(self, producers: anyio.CancelScope) -> None:
        await self._wire.stalled()
        self._wire.drop()
        producers.cancel()

    async def _keep_alive(self) -> None:
        first_s = time.monotonic() + self._silence_s
        while True:
            due_s = self._wire.written_s + self._heartbeat_s if self._wire.started else first_s
            wait_s = due_s - time.monotonic()
            if wait_s <= 0:
                await self._feed.put(None)
                wait_s = self._heartbeat_s
            await anyio.sleep(min(wait_s, self._heartbeat_s))

    async def _stop_with_server(self, stopped: anyio.Event) -> None:
        await stopped.wait()
        await self._feed.put(ShuttingDown("the proxy is stopping"))

    async def _write(self) -> None:
        try:
            await (self._write_stream() if self._request.stream else self._write_whole())
        except QwenProxyError as exc:
            await self._wire.refuse(exc, self._dialect.error(exc))
        except Exception:
            log.exception("an answer could not be written")
            self._unfinished = self._request.choices
            await self._fail(QwenProxyError(INTERNAL))

    async def _write_stream(self) -> None:
        items = await self._feed.take()
        if isinstance(items[0], QwenProxyError):
            raise items[0]
        await self._wire.start_stream()
        frames, more = self._encoded(items)
        await self._wire.write(frames, more=more)
        while more:
            frames, more = self._encoded(await self._feed.take())
            await self._wire.write(frames, more=more)

    def _encoded(self, items: Sequence[Item]) -> tuple[str, bool]:
        """What `items` are to the client, and whether more must follow."""
        frames: list[str] = []
        for item in items:
            if isinstance(item, tuple):
                choice, delta = item
                frames += self._encoder.encode(delta, choice)
                if self._finishes(delta):
                    return "".join(frames + self._encoder.end()), False
            elif item is not None:
                return "".join(frames + self._encoder.fail(item)), False
        return "".join(frames) or KEEP_ALIVE, True

    async def _write_whole(self) -> None:
        choices: list[list[Delta]] = [[] for _ in range(self._request.choices)]
        more = True
        while more:
            for item in await self._feed.take():
                if isinstance(item, QwenProxyError):
                    raise item
                if item is None:
                    await self._wire.pad()
                else:
                    choice, delta = item
                    choices[choice].append(delta)
                    more = not self._finishes(delta)
                if not more:
                    break
        body = self._dialect.reply(self._request, [fold(deltas) for deltas in choices])
        if self._request.drawing is not None:  # it may hold megabytes
            await self._wire.reply(await run_sync(json_response, body))
        else:
            await self._wire.reply(json_response(body))

    def _finishes(self, delta: Delta) -> bool:
        """Whether the answer is whole with `delta`; what follows it is no part of the answer."""
        self._unfinished -= isinstance(delta, Finished)
        return not self._unfinished

    async def _fail(self, error: QwenProxyError) -> None:
        if self._wire.started and not self._wire.padded:
            await self._wire.write("".join(self._encoder.fail(error)), more=False)
        else:
            await self._wire.refuse(error, self._dialect.error(error))


@asynccontextmanager
async def _closed_in_the_end(deltas: AsyncGenerator[Delta]) -> AsyncGenerator[AsyncGenerator[Delta]]:
    """`contextlib.aclosing` that also closes when the surrounding scope is cancelled (house.md §2)."""
    try:
        yield deltas
    finally:
        with anyio.move_on_after(CLOSE_S, shield=True):
            await deltas.aclose()
