"""Videos on Qwen Chat: asking for one, and asking what has become of it (protocol §5.8, §10.2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Literal, Protocol
from urllib.parse import quote
from uuid import uuid4

from qwenproxy.chat import Attachment
from qwenproxy.clock import Clock
from qwenproxy.errors import ChatGone, LimitReached, NotFound, ParallelLimited, ProtocolChanged
from qwenproxy.qwen import payload
from qwenproxy.qwen.failures import DAILY_WAIT_S
from qwenproxy.qwen.files import HostedFile
from qwenproxy.qwen.models import Model
from qwenproxy.qwen.transport import Fetch

DEFAULT_SIZE: Final = "16:9"
"""The site always names one."""
STATUS_PATHS: Final = ("/api/v2/task/status/", "/api/v1/tasks/status/")
"""The newer site's, and the older one's, which does not know the other."""
LITTLE_S: Final = 60.0
"""After the change of the day, for clocks that differ."""


class Client(Protocol):
    async def call(self, account_id: str, call: Fetch) -> Any: ...

    async def post(self, account_id: str, path: str, body: dict[str, Any]) -> Any: ...


@dataclass(frozen=True, slots=True)
class VideoState:
    state: Literal["running", "done", "failed"]
    url: str = ""
    """Of the finished video; signed."""
    why: str = ""
    """Of a failure, in the service's words; "" where it says none."""


class VideoService:
    def __init__(self, client: Client, clock: Clock) -> None:
        self._client = client
        self._clock = clock
        self._status_path = ""
        """The one that was answered, once one was."""

    async def new_chat(self, account_id: str, model: Model) -> str:
        """The id of a fresh chat for one video."""
        stamp = int(self._clock.now().timestamp() * 1000)
        body = payload.new_chat(model.id, stamp, "t2v")
        return payload.chat_id_of(await self._client.post(account_id, "/api/v2/chats/new", body))

    async def submit(
        self,
        account_id: str,
        chat_id: str,
        model: Model,
        prompt: str,
        size: str,
        frames: Sequence[HostedFile | Attachment] = (),
    ) -> str:
        """The service's id of the task that makes the video; `frames` hold the first picture, or nothing.

        Raises:
            LimitReached: the account may make no more today; of videos alone (protocol §10.2).
            ProtocolChanged: no task came of it.
        """
        body = self._body(chat_id, model, prompt, size or DEFAULT_SIZE, frames)
        path = f"/api/v2/chat/completions?chat_id={quote(chat_id, safe='')}"
        with self._own_limits():
            return _task_id(await self._client.post(account_id, path, body))

    async def ask(self, account_id: str, task_id: str) -> VideoState:
        """What has become of it; a task that the service does not know has failed."""
        try:
            return _state(await self._status(account_id, quote(task_id, safe="")))
        except NotFound:
            return VideoState("failed", why="the service does not know this video any more")

    async def _status(self, account_id: str, task_id: str) -> Any:
        if self._status_path:
            return await self._client.call(account_id, Fetch("GET", self._status_path + task_id))
        newer, older = STATUS_PATHS
        try:
            said = await self._client.call(account_id, Fetch("GET", newer + task_id))
            self._status_path = newer
        except (ProtocolChanged, ChatGone):
            said = await self._client.call(account_id, Fetch("GET", older + task_id))
            self._status_path = older
        return said

    def _body(
        self,
        chat_id: str,
        model: Model,
        prompt: str,
        size: str,
        frames: Sequence[HostedFile | Attachment],
    ) -> payload.Json:
        body = payload.completion(
            chat_id,
            model.id,
            prompt,
            payload.feature_config(model, thinking=False),
            question_id=str(uuid4()),
            answer_id=str(uuid4()),
            timestamp_s=int(self._clock.now().timestamp()),
            attachments=frames,
            chat_type="i2v" if frames else "t2v",
            size=size,
        )
        return body | {"stream": False}

    @contextmanager
    def _own_limits(self) -> Iterator[None]:
        """Limits of videos are no limits of words; they end with the service's day, unless it says when."""
        try:
            yield
        except ParallelLimited:
            raise
        except LimitReached as exc:
            wait_s = self._until_tomorrow_s() if exc.wait_s == DAILY_WAIT_S else exc.wait_s
            message = "this account may make no more videos on Qwen Chat for now"
            raise LimitReached(message, wait_s=wait_s, model_only=True) from exc

    def _until_tomorrow_s(self) -> float:
        now = self._clock.now()
        tomorrow = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
        return (tomorrow - now).total_seconds() + LITTLE_S


def _task_id(data: object) -> str:
    row = data if isinstance(data, dict) else {}
    messages = row.get("messages")
    for message in messages if isinstance(messages, list) else []:
        extra = message.get("extra") if isinstance(message, dict) else None
        wanx = extra.get("wanx") if isinstance(extra, dict) else None
        task_id = wanx.get("task_id") if isinstance(wanx, dict) else None
        if isinstance(task_id, str) and task_id:
            return task_id
    raise ProtocolChanged("the service took a video without telling its task", seen=type(data).__name__)


def _state(data: object) -> VideoState:
    """Anything but running and success is a failure, as for the site's own page (protocol §10.2)."""
    row = data if isinstance(data, dict) else {}
    status, url, why = (row.get(name) for name in ("task_status", "content", "message"))
    if not isinstance(status, str) or not status:
        raise ProtocolChanged("the service says of a video what we do not know", seen=type(data).__name__)
    if status == "running":
        return VideoState("running")
    if status != "success":
        return VideoState("failed", why=why if isinstance(why, str) else "")
    if not isinstance(url, str) or not url.startswith(("https://", "http://")):
        raise ProtocolChanged("the service calls a video finished and names no address", seen=str(type(url)))
    return VideoState("done", url)
