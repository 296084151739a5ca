"""The server: what it serves (`DIALECTS`), on which address (`bind`), until when (`serve`).

A first SIGINT or SIGTERM: new requests get 503 `shutting_down`, running ones `DRAIN_S` seconds; then each
that still runs ends with that error in its own dialect, and the server ends. A second signal skips the wait.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import signal
import socket
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from types import FrameType
from typing import Final, Protocol

import anyio
import uvicorn
from anyio.to_thread import run_sync
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from uvicorn.server import HANDLED_SIGNALS

from qwenproxy.api_keys import KeyRing
from qwenproxy.dialects.anthropic_messages import AnthropicMessages
from qwenproxy.dialects.base import Dialect
from qwenproxy.dialects.native import NativeChat, NativeRegenerate
from qwenproxy.dialects.openai_chat import OpenAIChat
from qwenproxy.dialects.openai_images import OpenAIEdits, OpenAIImages
from qwenproxy.dialects.openai_responses import OpenAIResponses
from qwenproxy.errors import CallerError, MethodNotAllowed, NotFound, QwenProxyError
from qwenproxy.file_store import FileStore
from qwenproxy.library import Library
from qwenproxy.response_store import ResponseStore
from qwenproxy.server.access import Access, Gate, KeyRoute
from qwenproxy.server.account_routes import AccountRoutes, Checkup
from qwenproxy.server.admission import INTERNAL, Admission
from qwenproxy.server.background import Background
from qwenproxy.server.chat_routes import ChatRoutes
from qwenproxy.server.connection import Connection
from qwenproxy.server.error_shapes import refusal
from qwenproxy.server.file_routes import FileRoutes, Hosting
from qwenproxy.server.forms import FormBounds
from qwenproxy.server.guard import Guard, is_loopback
from qwenproxy.server.image_forms import ImageForm
from qwenproxy.server.media_routes import Media, MediaRoutes
from qwenproxy.server.relay import Bounds, Conversations, Gateway, Guests, Read, Relay, read_object
from qwenproxy.server.response_routes import ResponseRoutes
from qwenproxy.server.speech_routes import Speech, SpeechRoutes
from qwenproxy.server.status_routes import StatusRoutes
from qwenproxy.server.token_routes import TokenRoutes
from qwenproxy.server.video_routes import VideoRoutes, Videos
from qwenproxy.settings import Settings, SettingsError

log = logging.getLogger(__name__)

OPENAI_PREFIXES: Final = ("/v1", "/api")
"""Every route of OpenAI's lives under each; `guard.py` takes a version out of any path below `/api`."""
SEED_PREFIX: Final = "/api"
"""Of the seed's own routes."""
ANTHROPIC: Final = AnthropicMessages()
EDITS: Final = OpenAIEdits()
RESPONSES: Final = OpenAIResponses()
DIALECTS: Final[tuple[tuple[tuple[str, ...], Dialect], ...]] = (
    (OPENAI_PREFIXES, OpenAIChat(drawings=OpenAIImages())),
    (OPENAI_PREFIXES, RESPONSES),
    (OPENAI_PREFIXES, OpenAIImages()),
    (OPENAI_PREFIXES, EDITS),
    (OPENAI_PREFIXES, ANTHROPIC),
    ((SEED_PREFIX,), NativeChat()),
    ((SEED_PREFIX,), NativeRegenerate()),
)
"""The table of contents: what clients may speak, and under which prefixes."""
FORM_PATHS: Final = frozenset(
    [
        f"{SEED_PREFIX}/files/upload",
        *(prefix + path for prefix in OPENAI_PREFIXES for path in ("/files", "/images/edits")),
    ]
)
"""Where a form with files may come instead of JSON."""

GZIP_BYTES: Final = 1024
"""Smaller answers are sent as they are."""
GZIP_LEVEL: Final = 5
KEEP_ALIVE_S: Final = 75
"""For an idle connection: longer than common clients keep theirs, so that they, not we, close first."""
FAREWELL_S: Final = 2
"""For the last error events, and again for the last bytes, once the drain is over."""
CANCELLED_S: Final = 10
"""For the engine's own end when `serve` is cancelled."""
LOOK_S: Final = 0.05
LOOK_AT_KEYS_S: Final = 0.4
"""Between two looks at the key files: one `lstat` each. A change counts after two."""
BACKLOG: Final = 512


class PortTaken(SettingsError):
    pass


class Engine(Protocol):
    """What the server serves."""

    @property
    def gateway(self) -> Gateway: ...

    @property
    def conversations(self) -> Conversations: ...

    @property
    def library(self) -> Library: ...

    @property
    def checkup(self) -> Checkup: ...

    @property
    def guests(self) -> Guests: ...

    @property
    def files(self) -> FileStore: ...

    @property
    def hosting(self) -> Hosting: ...

    @property
    def media(self) -> Media: ...

    @property
    def videos(self) -> Videos: ...

    @property
    def speech(self) -> Speech: ...

    @property
    def responses(self) -> ResponseStore: ...


def create_app(
    settings: Settings,
    engine: Callable[[], AbstractAsyncContextManager[Engine]],
    bounds: Bounds | None = None,
    gate: Gate | None = None,
) -> FastAPI:
    """The application; its lifespan enters `engine` and serves what comes out.

    Without a gate there are no API keys.
    """
    gate = gate or Gate()
    admission = Admission(settings.max_in_flight)
    background = Background(admission)
    app = FastAPI(
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        lifespan=_lifespan(engine, gate.ring, background),
        routes=_routes(settings, admission, bounds or Bounds(), background),
        middleware=[
            Middleware(Guard, settings=settings, forms=FORM_PATHS),
            Middleware(Access, gate=gate, public=not is_loopback(settings.host)),
            Middleware(GZipMiddleware, minimum_size=GZIP_BYTES, compresslevel=GZIP_LEVEL),
        ],
        exception_handlers={HTTPException: _answer_http_error, Exception: _answer_bug},
    )
    app.state.admission = admission
    app.state.life = None
    app.state.gateway = None
    app.state.failure = None
    app.state.ended = None
    return app


def _routes(
    settings: Settings, admission: Admission, bounds: Bounds, background: Background
) -> list[BaseRoute]:
    status = StatusRoutes(admission)
    accounts = AccountRoutes(admission, bounds)
    chats = ChatRoutes(admission, bounds)
    forms = FormBounds(settings.max_file_bytes, idle_s=bounds.body_idle_s, stopped=admission.stopped)
    files = FileRoutes(admission, bounds, settings.heartbeat_s, forms=forms)
    videos = VideoRoutes(admission, bounds, heartbeat_s=settings.heartbeat_s, wait_s=settings.video_timeout_s)
    responses = ResponseRoutes(RESPONSES, admission, background)
    reads: dict[Dialect, Read] = {EDITS: ImageForm(forms), RESPONSES: responses.read}
    routes: list[BaseRoute] = [
        *status.routes(),
        *status.models_routes(OPENAI_PREFIXES),
        *accounts.routes(SEED_PREFIX),
        *chats.routes(SEED_PREFIX),
        *files.routes(SEED_PREFIX, OPENAI_PREFIXES),
        *MediaRoutes(admission, bounds).routes(SEED_PREFIX),
        *videos.routes(OPENAI_PREFIXES),
        *SpeechRoutes(admission, bounds).routes(OPENAI_PREFIXES),
        *responses.routes(OPENAI_PREFIXES),
        *TokenRoutes(ANTHROPIC, admission, bounds).routes(OPENAI_PREFIXES),
    ]
    for prefixes, dialect in DIALECTS:
        relay = Relay(
            dialect,
            admission,
            bounds,
            settings.heartbeat_s,
            takes_tokens=settings.passthrough_tokens,
            read=reads.get(dialect, read_object),
            begin=responses.begin if dialect is RESPONSES else None,
        )
        routes += [
            KeyRoute(prefix + path, relay, methods=["POST"], needs="chat")
            for prefix in prefixes
            for path in dialect.paths
        ]
    return routes


def _lifespan(
    engine: Callable[[], AbstractAsyncContextManager[Engine]], ring: KeyRing | None, background: Background
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        # Yielding inside a scope is sound only because the server enters and leaves this in one task.
        with anyio.CancelScope() as life:
            app.state.life = life
            try:
                async with engine() as running, background.at_work(), anyio.create_task_group() as tasks:
                    if ring is not None:
                        tasks.start_soon(_follow, ring)
                    app.state.checkup = running.checkup
                    app.state.guests = running.guests
                    app.state.conversations = running.conversations
                    app.state.library = running.library
                    app.state.files = running.files
                    app.state.hosting = running.hosting
                    app.state.media = running.media
                    app.state.videos = running.videos
                    app.state.speech = running.speech
                    app.state.responses = running.responses
                    app.state.gateway = running.gateway
                    yield
                    tasks.cancel_scope.cancel()
            except Exception as exc:  # noqa: BLE001 - `serve` raises it; uvicorn would only log it
                app.state.failure = exc
        if app.state.gateway is None:
            yield

    return lifespan


async def _follow(ring: KeyRing) -> None:
    """Takes up what changes in the key files, until cancelled."""
    while True:
        await anyio.sleep(LOOK_AT_KEYS_S)
        try:
            # A disk that hangs must not hold up the end.
            await run_sync(ring.look, abandon_on_cancel=True)
        except Exception:  # a bug here must not end the answers under way
            log.exception("looking at the API keys failed")


async def _answer_http_error(request: Request, exc: Exception) -> Response:
    """What the router refuses."""
    status = exc.status_code if isinstance(exc, HTTPException) else 500
    headers = exc.headers if isinstance(exc, HTTPException) else None
    error: QwenProxyError = CallerError("the request cannot be used")
    if status == 404:
        error = NotFound(f"there is no {request.method} {request.url.path} here")
    if status == 405:
        error = MethodNotAllowed(f"{request.method} is not possible on {request.url.path}")
    return refusal(request.scope, error, headers)


async def _answer_bug(request: Request, exc: Exception) -> Response:
    return refusal(request.scope, QwenProxyError(INTERNAL))


def bind(settings: Settings, *, keyed: bool = False) -> socket.socket:
    """A socket that listens, so that the port is ours from now on. Connections wait until `serve`.

    Raises:
        SettingsError: the address cannot be used; without API keys (`keyed`) only loopback addresses can.
        PortTaken: something else listens there.
    """
    host = "127.0.0.1" if settings.host.lower() == "localhost" else settings.host.strip("[]")
    if not _is_address(host):
        raise SettingsError(
            f"QWENPROXY_HOST={settings.host!r} cannot be used: an IP address is needed, for instance the "
            "loopback address 127.0.0.1"
        )
    if not keyed and not is_loopback(host):
        raise SettingsError(
            f"QWENPROXY_HOST={settings.host!r} cannot be used without an API key, for other computers could "
            "call: put a key into Authorization.txt in the session folder, which says how, or listen on a "
            "loopback address such as 127.0.0.1"
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named, for asyncio sends small pieces at once only where it reads that this is TCP.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        # On Windows SO_REUSEADDR would let two programs share the port.
        exclusive = getattr(socket, "SO_EXCLUSIVEADDRUSE", None)
        listener.setsockopt(socket.SOL_SOCKET, exclusive or socket.SO_REUSEADDR, 1)
        listener.bind((host, settings.port))
        listener.listen(BACKLOG)
    except OSError as exc:
        listener.close()
        raise _cannot_listen(settings, exc) from None
    listener.setblocking(False)
    return listener


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _cannot_listen(settings: Settings, exc: OSError) -> SettingsError:
    # Windows calls a port that another program holds for itself a lack of permission.
    if exc.errno == errno.EADDRINUSE or (sys.platform == "win32" and isinstance(exc, PermissionError)):
        return PortTaken(
            f"QWENPROXY_PORT={settings.port} cannot be used: another program listens there; "
            "stop it, or choose another port"
        )
    return SettingsError(
        f"QWENPROXY_HOST={settings.host} with QWENPROXY_PORT={settings.port} cannot be used: {exc.strerror}"
    )


async def serve(app: FastAPI, settings: Settings, listener: socket.socket) -> None:
    """Serves until a signal ends it, then drains. Closes `listener`.

    Raises:
        NoAccount: every sign-in is gone, so that it drained and ended by itself; not with `STAY_UP`, nor
            where requests may bring their own tokens.
        whatever the engine raised, when it could not start or broke.
    """
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        backlog=BACKLOG,
    )
    server = _Server(config, app, settings)
    try:
        await server.serve(sockets=[listener])
    except anyio.get_cancelled_exc_class():
        with anyio.move_on_after(CANCELLED_S, shield=True):
            await server.shutdown_at_once([listener])
        raise
    finally:
        listener.close()
    error = app.state.failure or app.state.ended
    if error is not None:
        raise error


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, app: FastAPI, settings: Settings) -> None:
        super().__init__(config)
        self._app = app
        self._admission: Admission = app.state.admission
        self._drain_s = settings.drain_s
        self._goes_on_alone = settings.stay_up or settings.passthrough_tokens
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self.should_exit = self.should_exit or self._app.state.failure is not None

    async def on_tick(self, counter: int) -> bool:
        gateway: Gateway | None = self._app.state.gateway
        if gateway is not None and not self._goes_on_alone and not self.should_exit:
            self._app.state.ended = gateway.ended()
        over = self._app.state.failure is not None or self._app.state.ended is not None
        return over or await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._drain()
        at_once = self.force_exit and self.server_state.tasks
        self.config.timeout_graceful_shutdown = 0 if at_once else FAREWELL_S
        await super().shutdown(sockets)
        if self.force_exit:
            with anyio.move_on_after(FAREWELL_S):
                await self.lifespan.shutdown()

    async def shutdown_at_once(self, sockets: list[socket.socket]) -> None:
        self.force_exit = True
        if self.started:
            await self.shutdown(sockets)
        elif hasattr(self, "lifespan"):
            self._end_engine()
            await self.lifespan.shutdown()

    def _end_engine(self) -> None:
        if self._app.state.life is not None:
            self._app.state.life.cancel()

    async def _drain(self) -> None:
        self._admission.draining = True
        await self._until_empty(self._drain_s)
        self._admission.stopped.set()
        await self._until_empty(FAREWELL_S)

    async def _until_empty(self, longest_s: float) -> None:
        with anyio.move_on_after(longest_s):
            # A signal handler sets `force_exit`: it cannot wake anything.
            while self._admission.inside and not self.force_exit:  # noqa: ASYNC110
                await anyio.sleep(LOOK_S)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Unlike uvicorn's own, does not raise the signals again: a stop on request is a clean exit."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in HANDLED_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.started and self._loop is not None:
            # Nothing to drain, and the engine's start may take long.
            self._loop.call_soon_threadsafe(self._end_engine)
        elif self.should_exit:
            self.force_exit = True
        self.should_exit = True
