"""The kept chats over HTTP, in the seed's shapes (README 004, §4.7; peers.md §2.1) and past them.

Talking in them is `dialects/native.py`'s. Errors have its shape too.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Final, TypeAlias

from anyio.to_thread import run_sync
from starlette.requests import Request
from starlette.responses import Response

from qwenproxy.caller import Caller
from qwenproxy.dialects.base import Json, json_text
from qwenproxy.dialects.native import content_of, error_body
from qwenproxy.errors import BadRequest, QwenProxyError
from qwenproxy.exports import json_of, markdown, openai, told
from qwenproxy.history import ChatRow, Found
from qwenproxy.library import Criteria, Library
from qwenproxy.server.access import KeyRoute, caller_of
from qwenproxy.server.admission import INTERNAL, Admission
from qwenproxy.server.body import ClientGone, read_json
from qwenproxy.server.relay import Bounds, read_within
from qwenproxy.server.responses import error_response, json_response
from qwenproxy.transcript import Transcript

log = logging.getLogger(__name__)

HITS: Final = 20
MOST_HITS: Final = 100
QUERY_CHARACTERS: Final = 1000
EXPORTS: Final[Mapping[str, tuple[str, str, Callable[[Transcript], str]]]] = MappingProxyType(
    {
        "markdown": ("md", "text/markdown; charset=utf-8", markdown),
        "json": ("json", "application/json", lambda chat: json_text(json_of(chat))),
        "openai": ("json", "application/json", lambda chat: json_text(openai(chat))),
    }
)
"""By format: a file name's end, a media type, and how."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request."""

    library: Library
    caller: Caller
    params: Mapping[str, str]
    query: Mapping[str, str]
    body: Json

    @property
    def chat_id(self) -> str:
        return self.params["chat_id"]


Work: TypeAlias = Callable[[Ask], Awaitable[Json | Response]]


class ChatRoutes:
    def __init__(self, admission: Admission, bounds: Bounds) -> None:
        self._admission = admission
        self._bounds = bounds

    def routes(self, prefix: str) -> list[KeyRoute]:
        """Those with a fixed name stand before the ones that take any id."""
        return [
            KeyRoute(prefix + path, partial(self._answer, work), methods=[method], needs="chat")
            for method, path, work in (
                ("POST", "/chats", _create),
                ("GET", "/chats", _list),
                ("POST", "/chats/cleanup", _clean_up),
                ("POST", "/chats/import", _import),
                ("GET", "/chats/search", _search),
                ("GET", "/chats/{chat_id}", _read),
                ("DELETE", "/chats/{chat_id}", _delete),
                ("PUT", "/chats/{chat_id}/rename", _rename),
                ("POST", "/chats/{chat_id}/fork", _fork),
                ("POST", "/chats/{chat_id}/move", _move),
                ("GET", "/chats/{chat_id}/export", _export),
                ("PUT", "/chats/{chat_id}/messages/{message_id}", _edit),
            )
        ]

    async def _answer(self, work: Work, request: Request) -> Response:
        try:
            with self._admission.enter():
                ask = Ask(
                    request.app.state.library,
                    caller_of(request.scope),
                    request.path_params,
                    request.query_params,
                    await self._body(request),
                )
                said = await work(ask)
                return said if isinstance(said, Response) else await run_sync(json_response, said)
        except ClientGone:
            return Response()
        except QwenProxyError as exc:
            return error_response(exc, error_body(exc))
        except Exception:
            log.exception("a request about chats broke")
            error = QwenProxyError(INTERNAL)
            return error_response(error, error_body(error))

    async def _body(self, request: Request) -> Json:
        """What came; nothing is an object with nothing in it."""
        if request.method == "GET":
            return {}
        body = await read_within(request.scope, request.receive, self._bounds)
        if request.url.path.endswith("/import") and body.lstrip().startswith(b"["):
            # The seed's older form and many of OpenAI's are bare lists.
            body = b'{"messages":' + body + b"}"
        return await read_json(body) if body else {}


async def _create(ask: Ask) -> Json:
    chat_id = await ask.library.create(ask.caller, _text(ask.body, "name"))
    return {"success": True, "chatId": chat_id}


async def _list(ask: Ask) -> Json:
    rows = await ask.library.rows(ask.caller)
    return await run_sync(lambda: {"chats": [_row(row) for row in rows]})


async def _read(ask: Ask) -> Json:
    chat = await ask.library.read(ask.caller, ask.chat_id)
    return {"chatId": chat.id, "history": await run_sync(told, chat)}


async def _delete(ask: Ask) -> Json:
    await ask.library.delete(ask.caller, ask.chat_id)
    return {"success": True}


async def _rename(ask: Ask) -> Json:
    name = await ask.library.rename(ask.caller, ask.chat_id, _needed(ask.body, "name"))
    return {"success": True, "chatId": ask.chat_id, "name": name}


async def _clean_up(ask: Ask) -> Json:
    criteria = Criteria(
        _span(ask.body, "olderThan"),
        _count(ask.body, "userMessageCountLessThan", 0),
        _count(ask.body, "messageCountLessThan", 0),
        _count(ask.body, "maxChats", 1),
    )
    if criteria == Criteria():
        raise BadRequest(
            "a cleanup needs at least one of olderThan, userMessageCountLessThan, messageCountLessThan "
            "and maxChats"
        )
    dry_run = ask.body.get("dryRun")
    if dry_run is not None and not isinstance(dry_run, bool):
        raise BadRequest("dryRun must be true or false", param="dryRun")
    deleted = await ask.library.cleanup(ask.caller, criteria, dry_run=bool(dry_run))
    said: Json = {"success": True, "deletedCount": len(deleted), "deletedChats": list(deleted)}
    return said | {"dryRun": True} if dry_run else said


async def _import(ask: Ask) -> Json:
    chat_id = await ask.library.add_imported(ask.caller, ask.body)
    return {"success": True, "chatId": chat_id}


async def _search(ask: Ask) -> Json:
    query = ask.query.get("q", "")
    if not query.strip() or len(query) > QUERY_CHARACTERS:
        raise BadRequest(f"q must be what to look for, at most {QUERY_CHARACTERS} characters", param="q")
    limit = _number(ask.query, "limit", HITS, 1, MOST_HITS)
    offset = _number(ask.query, "offset", 0, 0, 1_000_000)
    found = await ask.library.search(ask.caller, query, limit=limit, offset=offset)
    return {"results": [_hit(hit) for hit in found]}


async def _fork(ask: Ask) -> Json:
    chat_id = await ask.library.fork(ask.caller, ask.chat_id, _needed(ask.body, "messageId"))
    return {"success": True, "chatId": chat_id}


async def _edit(ask: Ask) -> Json:
    content = content_of(ask.body.get("content"), "content")
    if isinstance(content, str) and not content.strip():
        raise BadRequest("content is empty", param="content")
    message_id = ask.params["message_id"]
    await ask.library.edit(ask.caller, ask.chat_id, message_id, content)
    return {"success": True, "chatId": ask.chat_id, "messageId": message_id}


async def _move(ask: Ask) -> Json:
    account = _needed(ask.body, "account")
    await ask.library.move(ask.caller, ask.chat_id, account)
    return {"success": True, "chatId": ask.chat_id, "account": account}


async def _export(ask: Ask) -> Response:
    name = ask.query.get("format", "markdown")
    if name not in EXPORTS:
        raise BadRequest(f"format must be one of {', '.join(EXPORTS)}", param="format")
    ending, kind, write = EXPORTS[name]
    chat = await ask.library.read(ask.caller, ask.chat_id)
    content = await run_sync(lambda: write(chat).encode("utf-8", "replace"))
    # The id of a chat is made of characters that are safe in a header; its name is not.
    headers = {
        "Content-Disposition": f'attachment; filename="chat-{chat.id}.{ending}"',
        "X-Content-Type-Options": "nosniff",
    }
    return Response(content, headers=headers, media_type=kind)


def _row(row: ChatRow) -> Json:
    return {
        "id": row.id,
        "name": row.name,
        "created": row.created,
        "updated": row.updated,
        "messageCount": row.message_count,
        "userMessageCount": row.user_message_count,
    }


def _hit(hit: Found) -> Json:
    return {
        "chatId": hit.chat_id,
        "name": hit.name,
        "messageId": hit.message_id,
        "role": hit.role,
        "timestamp": hit.timestamp,
        "snippet": hit.snippet,
    }


def _text(body: Json, name: str) -> str:
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise BadRequest(f"{name} must be a string", param=name)
    return value or ""


def _needed(body: Json, name: str) -> str:
    value = _text(body, name)
    if not value.strip():
        raise BadRequest(f"{name} is needed, as a string", param=name)
    return value


def _span(body: Json, name: str) -> float | None:
    """Milliseconds."""
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise BadRequest(f"{name} must be a number of milliseconds above 0", param=name)
    return value


def _count(body: Json, name: str, least: int) -> int | None:
    """A whole number, at least `least`."""
    value = body.get(name)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
        raise BadRequest(f"{name} must be a whole number, at least {least}", param=name)
    return value


def _number(query: Mapping[str, str], name: str, otherwise: int, least: int, most: int) -> int:
    value = query.get(name, "")
    if not value:
        return otherwise
    sound = value.isascii() and value.isdecimal() and len(value) <= len(str(most))
    if not sound or not least <= int(value) <= most:
        raise BadRequest(f"{name} must be a whole number from {least} to {most}", param=name)
    return int(value)
