"""Videos: a task instead of a stream, and how far it is (protocol §5.8, §10.2)."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Iterable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .marks import Switch
from .media import VIDEO_SIZES, video
from .memory import Records, Session, Task, Turn
from .replies import enveloped, refused

KINDS = ("t2v", "i2v")
"""From words alone, or from a first frame too."""


class Videos:
    def __init__(self, records: Records) -> None:
        self._records = records

    def refusal(self, request: Request, turn: Turn) -> Response | None:
        """What the service says to a wish that it cannot make sense of."""
        message = turn.message
        kinds = {message.get("chat_type"), message.get("sub_chat_type"), turn.meta.get("subChatType")}
        first_frame = any(file.kind == "image" for file in turn.files)
        wanted = "i2v" if first_frame else "t2v"
        if turn.body.get("stream") or kinds != {wanted} or turn.size not in VIDEO_SIZES:
            return refused(request, "internal_error", "Internal Error")
        return None

    def submitted(self, request: Request, turn: Turn, switches: Iterable[Switch]) -> Response:
        """The task that makes the video; the question itself is answered at once."""
        done_at = time.monotonic() + self._records.options.video_s
        task = Task(str(uuid.uuid4()), turn, turn.size or "", done_at)
        self._records.tasks[task.id] = task
        for switch in switches:
            _strike(task, switch)
        self._records.end(turn, "finished")
        message = {
            "role": "assistant",
            "content": "",
            "chat_type": turn.message.get("chat_type"),
            "extra": {"wanx": {"task_id": task.id}},
            "done": False,
            "size": task.ratio,
        }
        data = {
            "parent_id": turn.user_id,
            "message_id": turn.response_id,
            "model": turn.model,
            "chat_id": turn.chat.id,
            "messages": [message],
        }
        return enveloped(request, data)

    async def status(self, request: Request, session: Session, struck: list[Switch]) -> Response:
        """`GET /api/v2/task/status/{task_id}`."""
        task = self._mine(request, session, "v2")
        if isinstance(task, str):
            return refused(request, "Not_Found", task, 404)
        for switch in struck:
            _strike(task, switch)
        return enveloped(request, self._told(task))

    async def bare_status(self, request: Request, session: Session, struck: list[Switch]) -> Response:
        """`GET /api/v1/tasks/status/{task_id}`: the same without an envelope."""
        task = self._mine(request, session, "v1")
        if isinstance(task, str):
            return JSONResponse({"detail": task}, status_code=404)
        for switch in struck:
            _strike(task, switch)
        return JSONResponse(self._told(task))

    def _mine(self, request: Request, session: Session, at: str) -> Task | str:
        """The task, or why there is none."""
        if self._records.options.tasks_at not in (at, "both"):
            return "Not Found"
        task = self._records.tasks.get(request.path_params["task_id"])
        return task if task and task.turn.chat.account == session.account else "Task not found"

    def _told(self, task: Task) -> dict[str, Any]:
        status, content = "failed" if task.error else "running", ""
        if not task.error and time.monotonic() >= task.done_at:
            chat = task.turn.chat
            status = "success"
            content = video(self._records, chat.account, f"{chat.id}/{task.id}", task.ratio)
            task.turn.said[:] = [content]
        return {
            "chat_type": task.turn.message.get("chat_type"),
            "sub_chat_type": None,
            "task_status": status,
            "message": task.error,
            "remaining_time": "",
            "content": content,
            "duration": None,
        }


def _strike(task: Task, switch: Switch) -> None:
    if switch.name == "video_failed":
        task.error = switch.word("error", "The video could not be made.")
    if switch.name == "video_hangs":
        task.done_at = math.inf
