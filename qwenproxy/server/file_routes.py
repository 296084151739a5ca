"""Files over HTTP: OpenAI's Files API, and the seed's two routes (README 004, §4.6; peers.md §2.1).

Both keep in the same store; an id of one is good with the other, and inside messages. Errors have OpenAI's
shape on OpenAI's routes and the seed's on the seed's.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Final, Protocol, TypeAlias

import anyio
from anyio.to_thread import run_sync
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.types import Receive, Scope

from qwenproxy.caller import Caller
from qwenproxy.dialects.base import Json
from qwenproxy.dialects.native import error_body
from qwenproxy.dialects.openai_chat import envelope
from qwenproxy.errors import BadRequest, QwenProxyError, UnsupportedParameter
from qwenproxy.file_store import MESSAGE, FileStore, StoredFile
from qwenproxy.qwen.files import HostedFile
from qwenproxy.server.access import KeyRoute, caller_of
from qwenproxy.server.admission import INTERNAL, Admission
from qwenproxy.server.body import ClientGone
from qwenproxy.server.forms import Form, FormBounds, read_form
from qwenproxy.server.patience import PatientAnswer
from qwenproxy.server.relay import Bounds, read_object
from qwenproxy.server.responses import error_response, json_response

log = logging.getLogger(__name__)

PURPOSES: Final = ("assistants", "batch", "evals", "fine-tune", "user_data", "vision")
"""OpenAI's. What came inside messages is listed under a further one, which nobody can give."""
UPLOADED: Final = "user_data"
"""The purpose of what comes by the seed's route."""
MOST_ROWS: Final = 10_000
NAME_CHARACTERS: Final = 255
CONTENT_HEADERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "sandbox; default-src 'none'",
        "Cache-Control": "private, no-cache",
        # Most files are compressed already, and a part of one could not be.
        "Content-Encoding": "identity",
    }
)


class Hosting(Protocol):
    async def place(self, file: StoredFile) -> HostedFile:
        """The file as the service has it, uploaded to an account whose turn it is."""

    async def ticket(self, name: str, size: int, kind: str) -> Json:
        """What the service says to who wants to upload to it, credentials and all."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request."""

    store: FileStore
    hosting: Hosting
    caller: Caller
    scope: Scope
    receive: Receive
    params: Mapping[str, str]
    query: Mapping[str, str]

    async def stored(self) -> StoredFile:
        """The file that the path names. Raises: UnknownFile."""
        return await run_sync(self.store.get, self.params["file_id"], self.caller)


Work: TypeAlias = Callable[[Ask], Awaitable[Response]]
Told: TypeAlias = Callable[[QwenProxyError], Json]


class FileRoutes:
    def __init__(
        self, admission: Admission, bounds: Bounds, heartbeat_s: float, *, forms: FormBounds
    ) -> None:
        self._admission = admission
        self._bounds = bounds
        self._heartbeat_s = heartbeat_s
        self._forms = forms

    def routes(self, seed_prefix: str, openai_prefixes: tuple[str, ...]) -> list[KeyRoute]:
        """The seed's stand before OpenAI's, which take any id."""
        seeds = (
            ("POST", "/files/upload", self._upload),
            ("POST", "/files/getstsToken", self._ticket),
        )
        openais: tuple[tuple[str, str, Work], ...] = (
            ("POST", "/files", self._create),
            ("GET", "/files", _list),
            ("GET", "/files/{file_id}", _tell),
            ("GET", "/files/{file_id}/content", _content),
            ("DELETE", "/files/{file_id}", _delete),
        )
        return [
            *(self._route(seed_prefix + path, method, work, error_body) for method, path, work in seeds),
            *(
                self._route(prefix + path, method, work, envelope)
                for prefix in openai_prefixes
                for method, path, work in openais
            ),
        ]

    def _route(self, path: str, method: str, work: Work, told: Told) -> KeyRoute:
        return KeyRoute(path, partial(self._answer, work, told), methods=[method], needs="files")

    async def _answer(self, work: Work, told: Told, request: Request) -> Response:
        state = request.app.state
        try:
            with self._admission.enter():
                ask = Ask(
                    state.files,
                    state.hosting,
                    caller_of(request.scope),
                    request.scope,
                    request.receive,
                    request.path_params,
                    request.query_params,
                )
                return await work(ask)
        except ClientGone:
            return Response()
        except QwenProxyError as exc:
            return error_response(exc, told(exc))
        except Exception:
            log.exception("a request about files broke")
            error = QwenProxyError(INTERNAL)
            return error_response(error, told(error))

    async def _create(self, ask: Ask) -> Response:
        async with read_form(ask.scope, ask.receive, self._forms, ask.store) as form:
            return json_response(_object(await _kept(ask, form, _purpose(form))))

    async def _upload(self, ask: Ask) -> Response:
        async with read_form(ask.scope, ask.receive, self._forms, ask.store) as form:
            file = await _kept(ask, form, UPLOADED)
        # The service may take minutes to read a document.
        return PatientAnswer(
            partial(_placed, ask, file),
            lambda error: error_response(error, error_body(error)),
            self._admission,
            heartbeat_s=self._heartbeat_s,
        )

    async def _ticket(self, ask: Ask) -> Response:
        body = await read_object(ask.scope, ask.receive, self._bounds)
        name, kind = _word(body, "filename"), _word(body, "filetype")
        said = await ask.hosting.ticket(name, _size(body), kind)
        log.info("credentials for an upload to the service were handed out")
        return json_response(said, headers={"Cache-Control": "no-store"})


async def _list(ask: Ask) -> Response:
    rows = list(await run_sync(ask.store.rows, ask.caller))
    purpose = ask.query.get("purpose", "")
    rows = [row for row in rows if (row.purpose == purpose if purpose else row.purpose != MESSAGE)]
    order = ask.query.get("order", "desc")
    if order not in {"asc", "desc"}:
        raise BadRequest("order must be asc or desc", param="order")
    if order == "asc":
        rows.reverse()
    rows = _after(rows, ask.query.get("after", ""))
    page = rows[: _limit(ask.query.get("limit", ""))]
    return await run_sync(json_response, _page(page, more=len(page) < len(rows)))


async def _tell(ask: Ask) -> Response:
    return json_response(_object(await ask.stored()))


async def _content(ask: Ask) -> Response:
    file = await ask.stored()
    path = await run_sync(ask.store.path, file)
    await run_sync(ask.store.touch, file)
    # The type stands among the headers, for otherwise text would be said to be UTF-8.
    headers = {**CONTENT_HEADERS, "Content-Type": file.type}
    return FileResponse(path, headers=headers, filename=file.name, content_disposition_type="attachment")


async def _delete(ask: Ask) -> Response:
    file = await run_sync(ask.store.remove, ask.params["file_id"], ask.caller)
    return json_response({"id": file.id, "object": "file", "deleted": True})


async def _kept(ask: Ask, form: Form, purpose: str) -> StoredFile:
    """The form's file, stored."""
    part = form.file("file")
    return await run_sync(
        partial(ask.store.keep, part.incoming, name=part.name, purpose=purpose, caller=ask.caller)
    )


async def _placed(ask: Ask, file: StoredFile) -> Response:
    """Uploads it. What the service does not take is not kept either: the caller never learns its id."""
    try:
        hosted = await ask.hosting.place(file)
    except BaseException:
        # It may be deleted already; and a disk that fails must not stand in for what went wrong.
        with anyio.CancelScope(shield=True), suppress(QwenProxyError):
            await run_sync(ask.store.remove, file.id, ask.caller)
        raise
    # Recipes of the README look for `"file":{"url":"` in the text (seed 004).
    told = {"url": hosted.url, "id": file.id, "name": file.name, "size": file.size, "type": file.type}
    return json_response({"success": True, "file": told, "imageUrl": hosted.url, **told})


def _purpose(form: Form) -> str:
    """Raises: BadRequest, UnsupportedParameter."""
    for name in form.fields:
        if name != "purpose":
            raise UnsupportedParameter(
                f"{name} is not supported: a file stays until it is deleted", param=name
            )
    purpose = form.text("purpose")
    if purpose not in PURPOSES:
        raise BadRequest(f"purpose must be one of {', '.join(PURPOSES)}", param="purpose")
    return purpose


def _object(file: StoredFile) -> Json:
    """OpenAI's file object."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.size,
        "created_at": file.created,
        "expires_at": None,
        "filename": file.name,
        "purpose": file.purpose,
        "status": "processed",
    }


def _page(rows: list[StoredFile], *, more: bool) -> Json:
    return {
        "object": "list",
        "data": [_object(row) for row in rows],
        "first_id": rows[0].id if rows else None,
        "last_id": rows[-1].id if rows else None,
        "has_more": more,
    }


def _after(rows: list[StoredFile], file_id: str) -> list[StoredFile]:
    if not file_id:
        return rows
    places = [place for place, row in enumerate(rows) if row.id == file_id]
    if not places:
        raise BadRequest("after is no file of this list", param="after")
    return rows[places[0] + 1 :]


def _limit(value: str) -> int:
    if not value:
        return MOST_ROWS
    if not (value.isascii() and value.isdecimal() and len(value) < 6 and 1 <= int(value) <= MOST_ROWS):
        raise BadRequest(f"limit must be a whole number from 1 to {MOST_ROWS}", param="limit")
    return int(value)


def _word(body: Json, name: str) -> str:
    value: Any = body.get(name)
    if not isinstance(value, str) or not value.strip() or len(value) > NAME_CHARACTERS:
        raise BadRequest(f"{name} is needed, as a string of at most {NAME_CHARACTERS} characters", param=name)
    return value


def _size(body: Json) -> int:
    """Bytes; the site's own page sends them as a string (protocol §9.1)."""
    value: Any = body.get("filesize")
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 16:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 10**15:
        raise BadRequest("filesize is needed, as a whole number of bytes above 0", param="filesize")
    return value
