"""A Qwen Chat of our own on loopback, for the demo and the tests: same pages, same protocol, no model.

It follows the protocol reference and imports nothing of the proxy, so that agreeing with it means agreeing
with what is known of the service. Site and auth host are two origins, told apart by the port that was asked.
"""

from __future__ import annotations

import json
import re
import socket
import time
import uuid
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import uvicorn
from anyio import Event, create_task_group
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, Router
from starlette.types import Message, Receive, Scope, Send

from .catalogue import LISTED, entry
from .chats import Chats
from .control import Control
from .guards import NOTE, Guards, note
from .media import PREFIX as MADE
from .media import Media
from .memory import Options, Records, Session
from .objects import Objects
from .pages import Pages
from .replies import ACTUAL_STATUS, EDGE, enveloped, punished, refused
from .signins import Handler, SignIns
from .speech import Speech
from .storage import NOTED_QUERY, PREFIX, Storage
from .talks import Talks
from .uploads import Uploads
from .videos import Videos

GUEST_MODELS = 3
"""Models that `/api/v2/models/` shows without a sign-in (protocol §7)."""
LOOPBACK = "127.0.0.1"
CLOSING_S = 5
"""Seconds that open connections get when the stand-in stops."""
KEPT_HEADERS = (
    "version",
    "source",
    "x-request-id",
    "content-type",
    "accept",
    "accept-language",
    "timezone",
    "x-accel-buffering",
    "x-request-origin",
    "referer",
    "origin",
    "user-agent",
    "bx-v",
)
CHAT_IN_PATH = re.compile(r"/api/v2/chats/([0-9a-f-]{36})(/|$)")
SECRET_FIELDS = ("password", "token", "refresh_token", "access_token")


@dataclass(frozen=True, slots=True)
class Addresses:
    site: str
    auth: str


class Standin:
    """The ASGI application and all that it remembers."""

    def __init__(self, options: Options | None = None) -> None:
        self.records = Records(options or Options())
        self.addresses = Addresses("", "")
        self._numbers = count(1)
        self._sign_ins = SignIns(self.records)
        self._guards = Guards(self.records, self._sign_ins)
        self._chats = Chats(self.records)
        self._pages = Pages(self.records, self._sign_ins)
        self._objects = Objects()
        self._videos = Videos(self.records)
        self._talks = Talks(self.records, self._objects, self._videos)
        self._speech = Speech(self.records)
        self._media = Media(self.records, self._sign_ins)
        self._storage = Storage(self._objects, self._guards.queued)
        self._uploads = Uploads(self.records, self._objects)
        control = Control(self.records, self._sign_ins, self._objects, self._uploads).routes()
        site = [*control, *self._site_routes()]
        own = self._sign_ins.auth_routes(self._guards.faulted)
        auth = [*control, *own]
        self._site = Router([*site, *self._missing()])
        self._auth = Router([*auth, *self._missing()])
        self._both = Router([*own, *site, *self._missing()])

    @property
    def options(self) -> Options:
        return self.records.options

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            return
        await self._answer(scope, receive, send)

    @asynccontextmanager
    async def serve(
        self, port: int = 0, auth_port: int | None = 0, host: str = LOOPBACK
    ) -> AsyncGenerator[Addresses]:
        """Serves in this loop until left, on free ports; `auth_port=None` makes both one origin."""
        ports = [port] if auth_port is None else [port, auth_port]
        sockets = [listening_socket(host, each) for each in ports]
        self.place(*(f"http://{host}:{each.getsockname()[1]}" for each in sockets))
        servers = [_Server(self) for _ in sockets]
        failure: Exception | None = None
        async with create_task_group() as group:
            for server, listener in zip(servers, sockets, strict=True):
                group.start_soon(server.serve, [listener])
                await server.ready.wait()
            try:
                yield self.addresses
            except Exception as error:  # noqa: BLE001 - raised again outside the group, which would wrap it
                failure = error
            finally:
                self.close_streams()
                for server in servers:
                    server.should_exit = True
        self.close()
        if failure is not None:
            raise failure

    def place(self, site: str, auth: str | None = None) -> None:
        """Tells the stand-in at which addresses it is served."""
        self.addresses = Addresses(site, auth or site)
        self._pages.auth = self.addresses.auth
        self.records.site = site

    def close_streams(self) -> None:
        """Ends every open answer where it is, so that a server can stop."""
        self.records.closing = True
        for turn in self.records.streams.values():
            turn.interrupted.set()

    def close(self) -> None:
        """Removes what lies on disk."""
        self._objects.forget()

    def _router(self, scope: Scope) -> Router:
        if self.addresses.site == self.addresses.auth:
            return self._both
        _, port = scope.get("server") or ("", 0)
        at_auth = self.addresses.auth.endswith(f":{port}")
        return self._auth if at_auth else self._site

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        router = self._router(scope)
        shared = self._sharing(request) if router is self._auth else {}

        async def dressed(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._dress(scope, request, message, shared)
            await send(message)

        if shared and request.method == "OPTIONS":
            await Response(status_code=204)(scope, receive, dressed)
            return
        if not await self._noted(request):
            return
        try:
            await router(scope, _replayed(request, receive), dressed)
        except HTTPException as refusal:
            await JSONResponse({"detail": refusal.detail}, refusal.status_code)(scope, receive, dressed)

    def _dress(self, scope: Scope, request: Request, message: Message, shared: dict[str, str]) -> None:
        """The headers that every answer has, and the status that the wire says (protocol §0.2)."""
        headers: list[tuple[bytes, bytes]] = list(message.get("headers", []))
        names = {name.lower(): value for name, value in headers}
        more = {**shared, "cache-control": "no-cache", "x-frame-options": "SAMEORIGIN"}
        if not scope.get(EDGE):
            actual = names.get(ACTUAL_STATUS.encode(), str(message["status"]).encode()).decode()
            more |= {
                ACTUAL_STATUS: actual,
                "x-request-id": request.headers.get("x-request-id") or str(uuid.uuid4()),
                "ga-ap": "stand-in",
            }
            if self.options.real_statuses:
                message["status"] = int(actual)
        for name, value in more.items():
            if name.encode() not in names:
                headers.append((name.encode(), value.encode()))
        message["headers"] = headers

    def _sharing(self, request: Request) -> dict[str, str]:
        """CORS with credentials for the site's own origin, and for no other (protocol §1.3)."""
        origin = request.headers.get("origin", "")
        if origin != self.addresses.site:
            return {}
        headers = {
            "access-control-allow-origin": origin,
            "access-control-allow-credentials": "true",
            "vary": "Origin",
        }
        wanted = request.headers.get("access-control-request-headers")
        if request.method == "OPTIONS":
            headers |= {
                "access-control-allow-methods": "GET, POST, DELETE, OPTIONS",
                "access-control-allow-headers": wanted or "",
                "access-control-max-age": "600",
            }
        return headers

    async def _noted(self, request: Request) -> bool:
        """Keeps what came in; False when the client left before its body was whole."""
        path = request.url.path
        if not path.startswith(("/api/", PREFIX, MADE)):
            return True
        text, query = None, _harmless(request.url.query)
        if path.startswith("/api/"):
            try:
                text = _without_secrets(await request.body())
            except ClientDisconnect:
                return False
            query = request.url.query
        headers = {name: request.headers[name] for name in KEPT_HEADERS if name in request.headers}
        note = {
            "number": next(self._numbers),
            "method": request.method,
            "path": f"{path}?{query}" if query else path,
            **self._whose(request, text),
            "headers": headers,
            "bearer": bool(self._sign_ins.bearer(request)),
            "cookies": sorted(request.cookies),
            "body": text,
            "at": time.monotonic(),
            "struck": [],
        }
        request.scope[NOTE] = note
        self.records.received.append(note)
        return True

    def _whose(self, request: Request, body: Any) -> dict[str, Any]:
        """Whose the token, the cookie and the chat of a request are, each by itself."""
        known = self._sign_ins.known(request)
        by_cookie = self.records.sessions.get(request.cookies.get(self._sign_ins.cookie_name, ""))
        access = self.records.tokens.get(self._sign_ins.bearer(request))
        in_path = CHAT_IN_PATH.match(request.url.path)
        chat_id = in_path[1] if in_path else body.get("chat_id") if isinstance(body, dict) else None
        chat = self.records.chats.get(str(chat_id))
        return {
            "account": known.account if known else None,
            "bearer_of": access.session.account if access else None,
            "cookie_of": by_cookie.account if by_cookie else None,
            "one_sign_in": access is not None and access.session is by_cookie,
            "chat": chat_id,
            "chat_of": chat.account if chat else None,
        }

    def _site_routes(self) -> list[BaseRoute]:
        chats, talks, guard = self._chats, self._talks, self._guards.guarded
        return [
            *self._pages.routes(),
            *self._sign_ins.site_routes(self._guards.faulted),
            *self._boot_routes(),
            *self._storage.routes(),
            *self._file_routes(),
            *self._media.routes(),
            *self._made_routes(),
            Route("/api/models", self._open_models),
            Route("/api/v2/models/", self._guards.faulted("models", self._models)),
            Route("/api/v2/chats/new", guard("new", chats.new), methods=["POST"]),
            Route("/api/v2/chats/", guard("list", self._list), methods=["GET"]),
            Route("/api/v2/chats/", guard("delete", chats.delete_all), methods=["DELETE"]),
            Route("/api/v2/chats/pinned", guard("list", chats.pinned)),
            Route("/api/v2/chats/batch_delete", guard("delete", chats.batch_delete), methods=["POST"]),
            Route("/api/v2/chats/{chat_id}", guard("detail", chats.detail), methods=["GET"]),
            Route("/api/v2/chats/{chat_id}", guard("rename", chats.update), methods=["POST"]),
            Route("/api/v2/chats/{chat_id}", guard("delete", chats.delete), methods=["DELETE"]),
            Route("/api/v2/chats/{chat_id}/pin", guard("pin", chats.pin), methods=["POST"]),
            Route("/api/v2/chat/completions", self._completions, methods=["POST"]),
            Route(
                "/api/v2/chat/completions",
                guard("resume", lambda request, who: talks.resume(request, who.account)),
                methods=["GET"],
            ),
            Route(
                "/api/v2/chat/completions/stop",
                guard("stop", lambda request, who: talks.stop(request, who.account)),
                methods=["POST"],
            ),
        ]

    def _file_routes(self) -> list[BaseRoute]:
        """Protocol §9; a failed reading is a fault of `parse`."""
        uploads, guard = self._uploads, self._guards.guarded

        return [
            Route("/api/v2/files/getstsToken", guard("sts", uploads.ticket), methods=["POST"]),
            Route("/api/v2/files/parse", self._guards.struck("parse", uploads.parse), methods=["POST"]),
            Route("/api/v2/files/parse/status", guard("parse_status", uploads.parsed), methods=["POST"]),
            Route("/api/v2/files/getfilelink", guard("link", uploads.fresh), methods=["POST"]),
        ]

    def _made_routes(self) -> list[BaseRoute]:
        """Protocol §10.2–11."""
        videos, speech, guard = self._videos, self._speech, self._guards.guarded
        task = self._guards.struck("task", videos.status)
        return [
            Route("/api/v2/task/status/{task_id}", task, methods=["GET"]),
            Route("/api/v1/tasks/status/{task_id}", self._guards.struck("task", videos.bare_status)),
            Route("/api/v2/tts/completions", guard("tts", speech.completions), methods=["POST"]),
            Route("/api/v2/tts/config", self._guards.faulted("voices", speech.config)),
            Route("/api/v2/users/user/settings", self._settings),
            Route("/api/v2/users/user/settings/update", guard("settings", speech.update), methods=["POST"]),
        ]

    def _boot_routes(self) -> list[BaseRoute]:
        """What the app asks while it boots, beside models and chats (protocol §1.4)."""
        answers: dict[str, Any] = {
            "/api/v2/configs/": {"name": "Qwen (stand-in)"},
            "/api/v2/configs/setting-config": {},
            "/api/v2/users/status": True,
            "/api/v2/folders/": [],
            "/api/v2/projects/": [],
            "/api/v2/library/list": {"has_more": False, "items": [], "cursor": None},
            "/api/v2/notifications/latest": None,
            "/api/v2/users/user/entitlement_quota": {"user_tier": "free", "model": {}},
        }
        return [Route(path, _constant(data), methods=["GET", "POST"]) for path, data in answers.items()]

    def _missing(self) -> list[BaseRoute]:
        async def missing(request: Request) -> Response:
            if request.url.path.startswith("/api/v2/"):
                return refused(request, "Not_Found", "Not Found", 404)
            return JSONResponse({"detail": "Not Found"}, status_code=404)

        methods = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
        return [Route("/{rest:path}", missing, methods=methods)]

    async def _models(self, request: Request) -> Response:
        listed = LISTED if self._sign_ins.credential(request) else LISTED[:GUEST_MODELS]
        return enveloped(request, {"data": [entry(model) for model in listed]})

    async def _open_models(self, request: Request) -> Response:
        return JSONResponse({"data": [entry(model) for model in LISTED]})

    async def _settings(self, request: Request) -> Response:
        """The page asks for them before it is signed in, too."""
        session = self._sign_ins.credential(request)
        return await self._speech.settings(request, session.account if session else "")

    async def _list(self, request: Request, session: Session) -> Response:
        if "page" in request.query_params:
            session.booted = True
        return await self._chats.page(request, session)

    async def _completions(self, request: Request) -> Response:
        session = self._guards.session_or_refusal(request)
        if isinstance(session, Response):
            return session
        if self._sign_ins.session(request) is None:
            # The Bearer alone passes chats/new, but is challenged here (protocol §1.3).
            note(request, "bare")
            return punished(request)
        return await self._talks.complete(
            request, session, self._guards.queued(request, "completions", session.account)
        )


class _Server(uvicorn.Server):
    """uvicorn in somebody else's loop: it leaves the signals to whoever owns them."""

    def __init__(self, app: Standin) -> None:
        config = uvicorn.Config(
            app,
            lifespan="off",
            log_config=None,
            access_log=False,
            ws="none",
            timeout_graceful_shutdown=CLOSING_S,
            timeout_keep_alive=75,
            server_header=False,
        )
        super().__init__(config)
        self.ready = Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listening_socket(host: str, port: int) -> socket.socket:
    # Named, for asyncio sends small pieces at once only where it reads that this is TCP.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.setblocking(False)
    return listener


def _constant(data: Any) -> Handler:
    async def constant(request: Request) -> Response:
        return enveloped(request, data)

    return constant


def _replayed(request: Request, receive: Receive) -> Receive:
    """A `receive` that gives the body once more, then goes on as before."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given or not request.url.path.startswith("/api/"):
            return await receive()
        given = True
        return {"type": "http.request", "body": await request.body(), "more_body": False}

    return replay


def _harmless(query: str) -> str:
    """A query without what opens a door."""
    pairs = (pair for pair in query.split("&") if pair.partition("=")[0] in NOTED_QUERY)
    return "&".join(pairs)


def _without_secrets(body: bytes) -> Any:
    try:
        value = json.loads(body)
    except ValueError:
        return body.decode("utf-8", "replace")[:1000] or None
    if isinstance(value, dict):
        return {key: "…" if key in SECRET_FIELDS else item for key, item in value.items()}
    return value
