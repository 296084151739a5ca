"""Completions: what the service checks, how a turn is streamed, resumed and stopped (protocol §4–5)."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import anyio
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from .answers import ANY_RATIO, DRAWING, Scene, talk_for
from .attachments import Attachments, pasted
from .catalogue import Model, find_model
from .faults import DIALOG, NAMES, REFUSALS, challenged, spoiled
from .frames import Done, Frames, Head, Hold, Pause, Step
from .marks import Switch, split_marks
from .media import PICTURE_SIZES
from .memory import Chat, Records, Session, Turn, content_of
from .objects import Objects
from .replies import ACTUAL_STATUS, busy, enveloped, refused, request_id
from .reports import TYPE as RESEARCHING
from .videos import Videos

SHORT_WAIT_S = 0.05
"""Up to this a wait is a bare sleep: cheaper than one that can be interrupted, and short enough."""
FILMING = "t2v"
"""The type of chats that are answered by a task."""
JSONObject = dict[str, Any]


class Talks:
    def __init__(self, records: Records, objects: Objects, videos: Videos) -> None:
        self._records = records
        self._attachments = Attachments(records, objects)
        self._videos = videos

    async def complete(self, request: Request, session: Session, queued: list[Switch]) -> Response:
        """`POST /api/v2/chat/completions`; `queued` are the faults waiting for this call."""
        asked = await read_object(request)
        if asked is None:
            details = ["Field '': Input should be a valid dictionary"]
            return refused(request, "RequestValidationError", details)
        found = self._question(request, session.account, asked)
        if isinstance(found, Response):
            return found
        turn, marks = found
        refusal = await self._brought(request, turn, marks)
        if refusal is not None:
            return refusal
        switches = [*(mark for mark in marks if self._strikes(mark)), *queued]
        for switch in switches:
            if switch.name == DIALOG:
                return challenged(request, session)
            if switch.name in REFUSALS:
                return REFUSALS[switch.name](request, switch)
        self._begin(turn)
        if turn.chat.chat_type == FILMING:
            return self._videos.submitted(request, turn, switches)
        return TurnStream(self._records, turn, self._steps(turn, marks, switches), request_id(request))

    async def resume(self, request: Request, account: str) -> Response:
        """`GET …/completions?chat_id&response_id`: plays the answer again from its beginning, while it runs.

        Whether the real replay restarts or continues is not known (protocol §4.6).
        """
        chat = self._chat(account, request.query_params.get("chat_id", ""))
        turn = chat.turns.get(request.query_params.get("response_id", "")) if chat else None
        if chat is None or turn is None:
            return self._chat_gone(request, request.query_params.get("chat_id", ""))
        frames = Frames(turn)
        if turn.ending in ("finished", "stopped"):
            over = frames.error("Bad_Request", "The request is finished!")
            return TurnStream(self._records, turn, iter([Head(), over]), request_id(request), replay=True)
        turn.said.clear()
        turn.thoughts.clear()
        marks = [*_marks_of_files(turn), *split_marks(content_of(turn.message))[1]]
        return TurnStream(self._records, turn, self._steps(turn, marks, []), request_id(request), replay=True)

    async def stop(self, request: Request, account: str) -> Response:
        """Ends a running answer with `response.stopped`; with `phase: think`, only its thinking."""
        asked = await read_object(request) or {}
        chat = self._chat(account, str(asked.get("chat_id") or request.query_params.get("chat_id", "")))
        if chat is None:
            return self._chat_gone(request, str(asked.get("chat_id")))
        turn = chat.turns.get(str(asked.get("response_id", "")))
        if asked.get("phase") == "think":
            if turn is not None:
                turn.skip_thinking = True
        else:
            self._records.counters(account).stop_calls += 1
            if turn is not None and turn.ending is None:
                turn.stopping = True
                turn.interrupted.set()
        return enveloped(request, {"status": True})

    def _question(
        self, request: Request, account: str, asked: JSONObject
    ) -> Response | tuple[Turn, list[Switch]]:
        """The turn that the body asks for, or what the service says against it (protocol §4.1, §6.2)."""
        chat_id = asked.get("chat_id")
        if not isinstance(chat_id, str) or not chat_id:
            return refused(request, "RequestValidationError", "Field 'chat_id': Field required")
        messages = asked.get("messages")
        if not isinstance(messages, list) or not messages or not isinstance(messages[0], dict):
            return refused(request, "RequestValidationError", "Field 'messages': Field required")
        if len(messages) != 1:
            return refused(request, "Bad_Request", "Invalid input too many messages")
        chat = self._chat(account, chat_id)
        if chat is None:
            return self._chat_gone(request, chat_id)
        model = find_model(str(asked.get("model")))
        if model is None:
            return refused(request, "Not_Found", "Model not found", 404)
        if not asked.get("stream") and chat.chat_type != FILMING:
            return refused(request, "internal_error", "Internal Error")
        return self._admitted(request, chat, model, asked, messages[0])

    def _admitted(
        self, request: Request, chat: Chat, model: Model, asked: JSONObject, message: JSONObject
    ) -> Response | tuple[Turn, list[Switch]]:
        if (message.get("chat_type") == RESEARCHING) != (chat.chat_type == RESEARCHING):
            # The mode is fixed for a chat's life (protocol §3).
            return refused(request, "Bad_Request", "Internal error, please contact the service provider.")
        parent = asked.get("parent_id")
        if parent and parent not in chat.turns:
            return self._parent_gone(request, str(parent))
        if chat.busy():
            return busy(request)
        content = content_of(message)
        limit = self._records.options.max_prompt_chars
        if len(content) > limit:
            code = self._records.options.too_long_code
            return refused(request, code, f"Prompt cannot exceed {limit} characters.")
        prompt, marks = split_marks(content)
        turn = Turn(chat, prompt, model.id, asked, message)
        if model.locked and turn.feature.get("thinking_enabled") is False:
            marks = [*marks, Switch("invalid_input", {})]
        if not model.can_think:
            turn.feature.pop("thinking_enabled", None)
        return turn, marks

    async def _brought(self, request: Request, turn: Turn, marks: list[Switch]) -> Response | None:
        """Puts the message's files into the turn and what they say into its marks; or why it is refused."""
        model = find_model(turn.model)
        sees = model is not None and model.vision
        examined = await self._attachments.examine(turn.message, turn.chat.account, sees=sees)
        if examined.missing:
            return refused(request, "Bad_Request", f"Invalid input the file {examined.missing} is not exist.")
        turn.files = examined.files
        told = pasted(turn.files)
        if told is not None:
            turn.prompt = split_marks(told)[0]
        marks[:] = [*_marks_of_files(turn), *marks, *examined.marks]
        if turn.chat.busy():
            return busy(request)
        if turn.chat.chat_type == FILMING:
            return self._videos.refusal(request, turn)
        if turn.chat.chat_type in DRAWING and turn.size not in (*ANY_RATIO, *PICTURE_SIZES):
            return refused(request, "internal_error", "Internal Error")
        return None

    def _begin(self, turn: Turn) -> None:
        turn.chat.live = turn
        turn.chat.turns[turn.response_id] = turn
        self._records.asked.append(turn)
        if turn.chat.title == "New chat":
            turn.chat.title = turn.prompt[:40] or "New chat"
        self._records.counters(turn.chat.account).opened += 1

    def _steps(self, turn: Turn, marks: list[Switch], switches: list[Switch]) -> Iterator[Step]:
        if turn.message.get("role") == "system":
            # Such a stream opens and ends without an answer (protocol §4.1).
            return iter([Head(), Frames(turn).created()])
        talk, switch = talk_for(turn, [*marks, *switches])
        scene = Scene(turn, self._records, switch)
        return spoiled(talk(scene), scene.frames, switches)

    def _strikes(self, mark: Switch) -> bool:
        """Whether the mark is a fault that still has to strike: `times=N` limits it, by its exact text."""
        if mark.name not in NAMES:
            return False
        met = self._records.marks_met.get(mark.text, 0)
        if mark.text:
            self._records.marks_met[mark.text] = met + 1
        return met < mark.whole("times", met + 1)

    def _chat(self, account: str, chat_id: str) -> Chat | None:
        chat = self._records.chats.get(chat_id)
        return chat if chat and chat.account == account else None

    def _chat_gone(self, request: Request, chat_id: str) -> Response:
        if self._records.options.era == "C":
            details = "This chat has been deleted. Please start a new chat to continue."
            return refused(request, "CHAT_NOT_FOUND", details, 404)
        return refused(request, "Bad_Request", f"Invalid input the chat {chat_id} is not exist.")

    def _parent_gone(self, request: Request, parent: str) -> Response:
        if self._records.options.era == "C":
            return refused(request, "PARENT_NOT_FOUND", "Parent message not found", 404)
        return refused(request, "Bad_Request", f"Invalid input chat parent_id {parent} is not exist.")


def _marks_of_files(turn: Turn) -> list[Switch]:
    """What stands in a document counts as if it stood in the prompt."""
    return [mark for file in turn.files for mark in split_marks(file.text)[1]]


async def read_object(request: Request) -> JSONObject | None:
    """The body as a JSON object; None when it is anything else."""
    try:
        value = json.loads(await request.body())
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


class TurnStream(Response):
    """Plays a turn's steps. It ends when they do, when it is stopped, or when the client leaves."""

    def __init__(
        self, records: Records, turn: Turn, steps: Iterator[Step], request_id: str, *, replay: bool = False
    ) -> None:
        super().__init__()
        self._records = records
        self._turn = turn
        self._steps = steps
        self._request_id = request_id
        self._replay = replay
        """A resumed answer: the counters have counted it already."""
        self._started = False
        self._due = time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        counters = self._records.counters(self._turn.chat.account)
        counters.open += 1
        self._records.streams[id(self)] = self._turn
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._watch, receive, group.cancel_scope)
                await self._play(send)
                group.cancel_scope.cancel()
        finally:
            counters.open -= 1
            del self._records.streams[id(self)]
            # What was neither told complete nor left by the client was broken by us.
            self._end("failed")

    async def _watch(self, receive: Receive, scope: anyio.CancelScope) -> None:
        message: Message = await receive()
        while message["type"] != "http.disconnect":
            message = await receive()
        self._end("aborted")
        scope.cancel()

    async def _play(self, send: Send) -> None:
        for step in self._steps:
            if isinstance(step, bytes):
                await self._head(send)
                await send({"type": "http.response.body", "body": step, "more_body": True})
            elif isinstance(step, Pause):
                await self._rest(step.seconds)
            elif isinstance(step, Head):
                await self._head(send)
            elif isinstance(step, Done):
                self._end("finished")
            elif isinstance(step, Hold):
                await self._turn.interrupted.wait()
            else:
                return
            if self._turn.interrupted.is_set():
                break
        await self._close(send)

    async def _close(self, send: Send) -> None:
        interrupted = self._turn.interrupted.is_set()
        if interrupted and not (self._turn.stopping or self._records.closing):
            return
        await self._head(send)
        if self._turn.stopping and self._turn.ending is None:
            self._end("stopped")
            last = Frames(self._turn).stopped()
            await send({"type": "http.response.body", "body": last, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _head(self, send: Send) -> None:
        if self._started:
            return
        self._started = True
        headers = {
            "content-type": "text/event-stream; charset=utf-8",
            ACTUAL_STATUS: "200",
            "x-request-id": self._request_id,
        }
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": raw})

    async def _rest(self, seconds: float) -> None:
        """Sleeps until the next step is due, which a late step does not move."""
        self._due += seconds
        wait = self._due - time.monotonic()
        if wait < SHORT_WAIT_S:
            await asyncio.sleep(max(wait, 0.0))
            return
        with anyio.move_on_after(wait):
            await self._turn.interrupted.wait()

    def _end(self, ending: Any) -> None:
        if self._replay and ending != "finished":
            return
        self._records.end(self._turn, ending)
