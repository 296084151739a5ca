"""Videos over HTTP: asked for, and what has become of one (README 003, peers.md §2).

Errors have OpenAI's shape.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, Protocol

from starlette.requests import Request
from starlette.responses import Response

from qwenproxy.addresses import media_address
from qwenproxy.caller import Caller
from qwenproxy.chat import Filming
from qwenproxy.dialects.base import Json
from qwenproxy.dialects.openai_chat import envelope
from qwenproxy.dialects.openai_videos import parse, task_body, video_body, video_of
from qwenproxy.errors import BadRequest, GenerationFailed, QwenProxyError
from qwenproxy.server.access import KeyRoute, caller_of
from qwenproxy.server.admission import INTERNAL, Admission
from qwenproxy.server.body import ClientGone
from qwenproxy.server.patience import SILENCE_S, PatientAnswer
from qwenproxy.server.relay import Bounds, base_url, read_object
from qwenproxy.server.responses import error_response, json_response
from qwenproxy.video_tasks import VideoTask

log = logging.getLogger(__name__)

ACCEPTED: Final = 202
"""Of a video that is still being made."""
LONGEST_WAIT_S: Final = 3600


class Videos(Protocol):
    async def start(self, filming: Filming, caller: Caller) -> VideoTask: ...

    async def status(self, task_id: str, caller: Caller) -> VideoTask: ...

    async def wait(self, task: VideoTask, longest_s: float) -> VideoTask: ...


class VideoRoutes:
    def __init__(self, admission: Admission, bounds: Bounds, *, heartbeat_s: float, wait_s: float) -> None:
        """`wait_s`: how long a request waits for its video."""
        self._admission = admission
        self._bounds = bounds
        self._heartbeat_s = heartbeat_s
        self._wait_s = wait_s

    def routes(self, prefixes: Sequence[str]) -> list[KeyRoute]:
        return [
            KeyRoute(prefix + path, partial(self._answer, work), methods=[method], needs="chat")
            for prefix in prefixes
            for method, path, work in (
                ("POST", "/videos/generations", self._generate),
                ("GET", "/tasks/status/{task_id}", self._status),
            )
        ]

    async def _answer(
        self, work: Callable[[Request, Json], Awaitable[Response]], request: Request
    ) -> Response:
        """The body is read and judged at once; what follows may take as long as a video."""
        try:
            body: Json = {}
            if request.method == "POST":
                with self._admission.enter():
                    body = await read_object(request.scope, request.receive, self._bounds)
                parse(body)
        except ClientGone:
            return Response()
        except QwenProxyError as exc:
            return error_response(exc, envelope(exc))
        except Exception:
            log.exception("a request about videos broke")
            return _failed(QwenProxyError(INTERNAL))
        return PatientAnswer(
            partial(work, request, body),
            _failed,
            self._admission,
            heartbeat_s=self._heartbeat_s,
            silence_s=SILENCE_S,
        )

    async def _generate(self, request: Request, body: Json) -> Response:
        wanted = parse(body)
        videos = _videos(request)
        task = await videos.start(wanted.filming, caller_of(request.scope))
        if wanted.wait:
            task = await videos.wait(task, self._wait_s)
        if task.state == "failed":
            raise GenerationFailed(task.why)
        if task.state == "done":
            return json_response(video_body(task.created, _video(task, request), task.id))
        return json_response(_body(task, request), ACCEPTED)

    async def _status(self, request: Request, _: Json) -> Response:
        wait_s = _wait_s(request.query_params.get("wait", ""))
        videos = _videos(request)
        task = await videos.status(request.path_params["task_id"], caller_of(request.scope))
        if wait_s and not task.ended:
            task = await videos.wait(task, wait_s)
        return json_response(_body(task, request))


def _videos(request: Request) -> Videos:
    videos: Videos = request.app.state.videos
    return videos


def _failed(error: QwenProxyError) -> Response:
    return error_response(error, envelope(error))


def _body(task: VideoTask, request: Request) -> Json:
    video = _video(task, request) if task.state == "done" else None
    return task_body(task.id, task.state, task.created, video, task.why)


def _video(task: VideoTask, request: Request) -> Json:
    """Addresses of ours begin as the client reaches us."""
    base = base_url(request.scope)
    cover = base + task.cover if task.cover.startswith("/") else task.cover
    url = base + media_address(task.media_id)
    return video_of(task.id, url, cover, task.seconds, task.width, task.height)


def _wait_s(value: str) -> int:
    """Seconds. Raises: BadRequest."""
    if not value:
        return 0
    sound = value.isascii() and value.isdecimal() and len(value) <= len(str(LONGEST_WAIT_S))
    if not sound or int(value) > LONGEST_WAIT_S:
        raise BadRequest(f"wait must be a whole number of seconds up to {LONGEST_WAIT_S}", param="wait")
    return int(value)
