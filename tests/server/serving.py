"""The real server on a real socket, over a gateway that plays a script."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import anyio
from anyio.abc import SocketStream
from fastapi import FastAPI

from qwenproxy.accounts.pool import PoolView, SeatView
from qwenproxy.caller import Caller
from qwenproxy.chat import ChatRequest, Delta, Filming, Finished, Started, Text, Usage
from qwenproxy.clock import SystemClock
from qwenproxy.errors import BadRequest, QwenProxyError, UnknownFile, UnknownTask
from qwenproxy.file_store import FileStore, StoredFile
from qwenproxy.history import History
from qwenproxy.library import Library
from qwenproxy.qwen.files import HostedFile
from qwenproxy.qwen.models import Model, resolve
from qwenproxy.qwen.speech_service import Voice
from qwenproxy.response_store import ResponseStore
from qwenproxy.server.access import Gate
from qwenproxy.server.admission import Admission
from qwenproxy.server.app import bind, create_app, serve
from qwenproxy.server.relay import Bounds
from qwenproxy.settings import Settings
from qwenproxy.shelf import Opened
from qwenproxy.turn_order import TurnOrder
from qwenproxy.video_tasks import VideoTask
from tests.attaching import elsewhere

Step: TypeAlias = Delta | float | Exception | anyio.Event
"""What a scripted answer does next: gives a delta, waits so many seconds, fails, or waits for the event."""

START = Started("chat-1", "response-1", "qwen3.7-plus")
END = Finished("stop", Usage(3, 2))
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}]}
FOREVER = 3600.0


def hello(request: ChatRequest) -> Sequence[Step]:
    return [START, Text("Hello, "), Text("you!"), END]


@dataclass
class ScriptedGateway:
    """The gateway, and the engine around it."""

    script: Callable[[ChatRequest], Sequence[Step]] = hello
    cleanup_s: float = 0.0
    shields: bool = True
    """Whether the cleanup shields itself from cancellation."""
    not_ready: str | None = None
    listed: tuple[Model, ...] = (Model("qwen3.7-plus", "Qwen3.7 Plus", 1_000_000), Model("qwen3-max", "Max"))
    asked: list[ChatRequest] = field(default_factory=list)
    callers: list[Caller] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)
    given: int = 0
    opened: int = 0
    closed: int = 0
    """Whose cleanup, which awaits, has run to its end."""
    completed: int = 0
    """Which ran past their last step."""

    library: Library = field(default_factory=lambda: empty_library())
    checkup: ScriptedCheckup = field(default_factory=lambda: ScriptedCheckup())
    guests: ScriptedGuests = field(default_factory=lambda: ScriptedGuests())
    files: FileStore = field(
        default_factory=lambda: FileStore(Path("session"), SystemClock(), most_bytes=1_000_000)
    )
    hosting: ScriptedHosting = field(default_factory=lambda: ScriptedHosting())
    media: ScriptedMedia = field(default_factory=lambda: ScriptedMedia())
    videos: ScriptedVideos = field(default_factory=lambda: ScriptedVideos())
    speech: ScriptedSpeech = field(default_factory=lambda: ScriptedSpeech())
    responses: ResponseStore = field(
        default_factory=lambda: ResponseStore(Path("session"), SystemClock(), most=50)
    )
    hopeless: QwenProxyError | None = None

    @property
    def gateway(self) -> ScriptedGateway:
        return self

    @property
    def conversations(self) -> ScriptedGateway:
        return self

    def ended(self) -> QwenProxyError | None:
        return self.hopeless

    async def stream(
        self, request: ChatRequest, caller: Caller, *, only: frozenset[str] | None = None
    ) -> AsyncGenerator[Delta]:
        self.opened += 1
        self.asked.append(request)
        self.callers.append(caller)
        self.guests.answering.append(only)
        try:
            for step in self.script(request):
                if isinstance(step, Exception):
                    raise step
                if isinstance(step, anyio.Event):
                    await step.wait()
                elif isinstance(step, float):
                    await anyio.sleep(step)
                else:
                    self.given += 1
                    yield step
            self.completed += 1
        finally:
            with anyio.move_on_after(5, shield=self.shields):
                await anyio.sleep(self.cleanup_s)
                self.closed += 1

    async def forget(self, answer_id: str, caller: Caller) -> None:
        self.forgotten.append(answer_id)

    async def models(self) -> Sequence[Model]:
        return self.listed

    async def model(self, name: str) -> Model:
        return resolve(name, await self.models(), default="qwen3.7-plus", unknown="refuse")

    def readiness(self) -> str | None:
        return self.not_ready

    async def all_closed(self, count: int, within_s: float) -> None:
        with anyio.fail_after(within_s):
            while not (self.closed == self.opened == count):
                await anyio.sleep(0.005)


def empty_library(session_dir: Path = Path("session")) -> Library:
    clock = SystemClock()
    taking = elsewhere(session_dir).attachments()
    return Library(
        History(session_dir, clock), TurnOrder(5), lambda chat: None, lambda account: True, clock, taking
    )


@dataclass
class ScriptedCheckup:
    seats: tuple[SeatView, ...] = ()
    queue: int = 0
    served: dict[str, int] = field(default_factory=dict)
    found: dict[str, str] | QwenProxyError = field(default_factory=dict)
    runs: int = 0

    def view(self) -> PoolView:
        return PoolView(self.seats, self.queue)

    async def served_today(self) -> Mapping[str, int]:
        return self.served

    async def run(self) -> Mapping[str, str]:
        self.runs += 1
        if isinstance(self.found, QwenProxyError):
            raise self.found
        return self.found


@dataclass
class ScriptedHosting:
    placed: list[StoredFile] = field(default_factory=list)
    tickets: list[tuple[str, int, str]] = field(default_factory=list)
    failing: QwenProxyError | None = None
    takes_s: float = 0.0

    async def place(self, file: StoredFile) -> HostedFile:
        await anyio.sleep(self.takes_s)
        if self.failing is not None:
            raise self.failing
        self.placed.append(file)
        path = f"user-1/{file.id}_{file.name}"
        url = f"https://files.example/{path}?x-oss-signature=abc"
        return HostedFile(
            file.id, path, url, file.name, file.type, file.size, file.kind, "user-1", file.created * 1000
        )

    async def ticket(self, name: str, size: int, kind: str) -> dict[str, Any]:
        self.tickets.append((name, size, kind))
        return {"success": True, "data": {"access_key_id": "STS.example", "file_path": f"user-1/{name}"}}


@dataclass
class ScriptedMedia:
    """What the service made: pieces that come one after the other, the last perhaps an error."""

    made: dict[str, Opened] = field(default_factory=dict)
    parts: list[str] = field(default_factory=list)
    left: int = 0

    @asynccontextmanager
    async def open(self, media_id: str, part: str = "") -> AsyncGenerator[Opened]:
        self.parts.append(part)
        if media_id not in self.made:
            raise UnknownFile("there is no such picture or video here")
        try:
            yield self.made[media_id]
        finally:
            self.left += 1


@dataclass
class ScriptedVideos:
    """Videos that are done when they are waited for; the last asked for is `filmed`."""

    task: VideoTask = field(default_factory=lambda: VideoTask("video_1", "", 1_700_000_000))
    ends_as: VideoTask | None = None
    failing: QwenProxyError | None = None
    takes_s: float = 0.0
    filmed: list[Filming] = field(default_factory=list)
    callers: list[Caller] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)

    async def start(self, filming: Filming, caller: Caller) -> VideoTask:
        if self.failing is not None:
            raise self.failing
        self.filmed.append(filming)
        self.callers.append(caller)
        return self.task

    async def status(self, task_id: str, caller: Caller) -> VideoTask:
        if task_id != self.task.id:
            raise UnknownTask("there is no such video task", param="id")
        self.callers.append(caller)
        return self.task

    async def wait(self, task: VideoTask, longest_s: float) -> VideoTask:
        self.waits_s.append(longest_s)
        await anyio.sleep(self.takes_s)
        return self.ends_as or task


@dataclass
class ScriptedSpeech:
    """Plays its steps: sound, pauses in seconds, failures."""

    steps: list[bytes | float | Exception] = field(default_factory=lambda: [bytes(4800), bytes(4800)])
    read: list[tuple[str, str]] = field(default_factory=list)
    closed: int = 0

    async def voices(self) -> tuple[Voice, ...]:
        return (Voice("Cherry", "Cherry", "female", "Bright."),)

    async def voice(self, name: str) -> str:
        if name == "nobody":
            raise BadRequest("there is no such voice; the voices are Cherry", param="voice")
        return name

    async def sound(self, text: str, speaker: str) -> AsyncGenerator[bytes]:
        self.read.append((text, speaker))
        try:
            for step in self.steps:
                match step:
                    case bytes():
                        yield step
                    case Exception():
                        raise step
                    case _:
                        await anyio.sleep(step)
        finally:
            self.closed += 1


@dataclass
class ScriptedGuests:
    live: bool | QwenProxyError = True
    tokens: list[tuple[str, ...]] = field(default_factory=list)
    """What came with requests and checks."""
    answering: list[frozenset[str] | None] = field(default_factory=list)
    """Who was allowed to answer, by request."""

    @asynccontextmanager
    async def inside(self, tokens: Sequence[str]) -> AsyncGenerator[frozenset[str]]:
        self.tokens.append(tuple(tokens))
        yield frozenset(f"guest_{number}" for number, _ in enumerate(tokens))

    async def token_lives(self, token: str) -> bool:
        self.tokens.append((token,))
        if isinstance(self.live, QwenProxyError):
            raise self.live
        return self.live


@dataclass
class Running:
    port: int
    app: FastAPI
    host: str = "127.0.0.1"

    @property
    def url(self) -> str:
        name = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{name}:{self.port}"

    @property
    def admission(self) -> Admission:
        admission: Admission = self.app.state.admission
        return admission

    async def empty(self, within_s: float = 5) -> None:
        with anyio.fail_after(within_s):
            while self.admission.inside:
                await anyio.sleep(0.005)

    async def connect(self) -> SocketStream:
        return await anyio.connect_tcp(self.host, self.port)

    def post(self, body: Any, path: str = "/v1/chat/completions") -> bytes:
        """A raw request."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.head(
            "POST", path, f"Content-Type: application/json\r\nContent-Length: {len(content)}"
        ) + (content)

    def head(self, method: str, path: str, more: str = "") -> bytes:
        lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{self.port}", *([more] if more else [])]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    async def say(self, data: bytes) -> bytes:
        """All that the server answers to `data` on a connection of its own, until it is silent or closes."""
        async with await self.connect() as connection:
            await connection.send(data)
            return await heard(connection)


async def heard(connection: SocketStream, until: bytes = b"", within_s: float = 10) -> bytes:
    """What comes until `until` is in it, or one whole answer with a length, or the end of the connection."""
    data = b""
    with anyio.fail_after(within_s):
        while not (until and until in data) and not (not until and _is_whole(data)):
            try:
                data += await connection.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                break
    return data


def _is_whole(data: bytes) -> bool:
    head, blank, body = data.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return bool(blank and lengths) and len(body) >= int(lengths[0].partition(b":")[2])


def settings_for(**values: Any) -> Settings:
    return Settings(_env_file=None, **{"port": 0, **values})


@asynccontextmanager
async def running(
    gateway: ScriptedGateway, bounds: Bounds | None = None, gate: Gate | None = None, **values: Any
) -> AsyncGenerator[Running]:
    settings = settings_for(**values)

    @asynccontextmanager
    async def engine() -> AsyncGenerator[ScriptedGateway]:
        yield gateway

    listener = bind(settings, keyed=gate is not None and gate.on)
    app = create_app(settings, engine, bounds, gate)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve, app, settings, listener)
        host, port = listener.getsockname()[:2]
        yield Running(port, app, host)
        tasks.cancel_scope.cancel()
