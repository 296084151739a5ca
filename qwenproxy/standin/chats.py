"""The account's chats: new, list, detail, rename, delete (protocol §3, §8)."""

from __future__ import annotations

import time
import uuid
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from .catalogue import find_model
from .memory import Chat, Records, Session, Turn
from .replies import busy, enveloped, refused
from .talks import read_object

PAGE_SIZE = 50
"""Chats on one page of the list; at least 26 were seen (protocol §8)."""
UNKNOWN_TYPES = ("image_gen",)
"""Chat types the service refuses (protocol §3)."""


class Chats:
    def __init__(self, records: Records) -> None:
        self._records = records

    async def new(self, request: Request, session: Session) -> Response:
        asked = await read_object(request)
        if asked is None:
            details = ["Field '': Input should be a valid dictionary"]
            return refused(request, "RequestValidationError", details)
        models = [str(model) for model in asked.get("models") or []]
        if not models or any(find_model(model) is None for model in models):
            return refused(request, "Not_Found", "Model not found", 404)
        chat_type = str(asked.get("chat_type", "t2t"))
        if chat_type in UNKNOWN_TYPES:
            return refused(request, "Bad_Request", "Internal error, please contact the service provider.")
        now = int(time.time())
        chat = Chat(str(uuid.uuid4()), session.account, chat_type, models, now, updated_at=now)
        chat.project_id = asked.get("project_id") or None
        self._records.chats[chat.id] = chat
        return enveloped(request, {"id": chat.id})

    async def page(self, request: Request, session: Session) -> Response:
        page = max(1, int(request.query_params.get("page", "1")))
        mine = self._mine(session)
        return enveloped(request, [_row(chat) for chat in mine[(page - 1) * PAGE_SIZE : page * PAGE_SIZE]])

    async def pinned(self, request: Request, session: Session) -> Response:
        return enveloped(request, [_row(chat) for chat in self._mine(session) if chat.pinned])

    async def detail(self, request: Request, session: Session) -> Response:
        chat = self._found(request, session)
        if chat is None:
            return refused(request, "Not_Found", "Chat not found", 404)
        return enveloped(request, self._whole(chat))

    async def update(self, request: Request, session: Session) -> Response:
        chat = self._found(request, session)
        if chat is None:
            return refused(request, "Not_Found", "Chat not found", 404)
        asked = await read_object(request) or {}
        chat.title = str(asked.get("title", chat.title))
        return enveloped(request, self._whole(chat))

    async def pin(self, request: Request, session: Session) -> Response:
        chat = self._found(request, session)
        if chat is None:
            return refused(request, "Not_Found", "Chat not found", 404)
        chat.pinned = not chat.pinned
        return enveloped(request, {"pinned": chat.pinned})

    async def delete(self, request: Request, session: Session) -> Response:
        chat = self._found(request, session)
        if chat is None:
            return refused(request, "Not_Found", "Chat not found", 404)
        if self._records.options.refuse_busy_delete and chat.busy():
            return busy(request)
        del self._records.chats[chat.id]
        return enveloped(request, {"status": True})

    async def batch_delete(self, request: Request, session: Session) -> Response:
        asked = await read_object(request) or {}
        mine = {chat.id for chat in self._mine(session)}
        for chat_id in mine.intersection(asked.get("ids") or []):
            del self._records.chats[chat_id]
        return enveloped(request, {"status": True})

    async def delete_all(self, request: Request, session: Session) -> Response:
        for chat in self._mine(session):
            del self._records.chats[chat.id]
        return enveloped(request, {"status": True})

    def _mine(self, session: Session) -> list[Chat]:
        """Newest first."""
        mine = [chat for chat in self._records.chats.values() if chat.account == session.account]
        mine.reverse()
        return sorted(mine, key=lambda chat: chat.updated_at, reverse=True)

    def _found(self, request: Request, session: Session) -> Chat | None:
        chat = self._records.chats.get(request.path_params["chat_id"])
        return chat if chat and chat.account == session.account else None

    def _whole(self, chat: Chat) -> dict[str, Any]:
        messages = _messages(chat)
        current = messages[-1]["id"] if messages else None
        by_id = {message["id"]: message for message in messages}
        inner: dict[str, Any] = {"models": chat.models, "chat_type": chat.chat_type, "currentId": current}
        in_map = self._records.options.history == "map"
        inner["history"] = {
            "currentId": current,
            "currentResponseIds": [current] if current else [],
            "messages": by_id if in_map else {},
        }
        if not in_map:
            inner["messages"] = messages
        return {
            "id": chat.id,
            "user_id": self._records.user_id(chat.account),
            "title": chat.title,
            "created_at": chat.created_at,
            "updated_at": chat.updated_at,
            "project_id": chat.project_id or "",
            "currentId": current,
            "permissions": {},
            "meta": {"branch_info": None},
            "chat": inner,
        }


def _row(chat: Chat) -> dict[str, Any]:
    return {
        "id": chat.id,
        "title": chat.title,
        "updated_at": chat.updated_at,
        "created_at": chat.created_at,
        "chat_type": chat.chat_type,
        "project_id": chat.project_id,
        "pinned": chat.pinned,
        "content": None,
        "highlight_indexes": None,
        "message_id": None,
    }


def _messages(chat: Chat) -> list[dict[str, Any]]:
    return [message for turn in chat.turns.values() for message in _pair(turn)]


def _pair(turn: Turn) -> list[dict[str, Any]]:
    answer = "".join(turn.said)
    parts: list[dict[str, Any]] = [{"phase": "answer", "status": "finished", "content": answer}]
    if turn.thoughts:
        parts.insert(0, {"phase": "thinking_summary", "status": "finished", "content": "", "extra": {}})
    question = {
        "id": turn.user_id,
        "fid": turn.message.get("fid"),
        "parentId": turn.body.get("parent_id"),
        "childrenIds": [turn.response_id],
        "role": "user",
        "content": turn.message.get("content"),
        "timestamp": turn.started_at,
        "chat_type": turn.kind,
        "sub_chat_type": turn.sub_kind,
        "feature_config": turn.feature,
        "files": turn.message.get("files") or [],
    }
    reply = {
        "id": turn.response_id,
        "parentId": turn.user_id,
        "childrenIds": [],
        "role": "assistant",
        "model": turn.model,
        "content": "",
        "done": turn.ending is not None,
        "content_list": parts,
        "error": {"code": "internal_error", "details": "broken off"} if turn.ending == "failed" else None,
        "timestamp": turn.started_at,
    }
    return [question, reply]
