"""A piece of Alibaba's object storage under `/{bucket}/{key}`: what an upload needs (protocol §9.2).

Bodies go to disk piece by piece and are never whole in memory: fifty large uploads may run at once.
"""

from __future__ import annotations

import base64
import calendar
import hmac
import secrets
import time
import uuid
from collections.abc import Callable
from urllib.parse import unquote
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import anyio
from anyio.to_thread import run_sync
from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from .marks import Switch
from .objects import BUCKET, COPY_BYTES, REGION, Draft, Objects, Ticket, Upload, joined
from .replies import EDGE
from .signatures import STAMP, Signed, authorization, refused_query, v4_signature

PREFIX = f"/{BUCKET}/"
NOTED_QUERY = ("uploads", "partNumber", "uploadId")
"""What the records keep of a query: nothing that opens a door."""
SKEW_S = 900
"""Seconds that the clocks may differ."""
MAX_LIST_BYTES = 1_000_000
METHODS = ["GET", "HEAD", "PUT", "POST", "DELETE"]
Queued = Callable[[Request, str, str], list[Switch]]
"""The faults whose turn has come for a call of that kind by that account."""


class Storage:
    def __init__(self, objects: Objects, queued: Queued) -> None:
        self._objects = objects
        self._queued = queued

    def routes(self) -> list[BaseRoute]:
        return [Route(PREFIX + "{key:path}", self.answer, methods=METHODS)]

    async def answer(self, request: Request) -> Response:
        request.scope[EDGE] = True
        key = request.path_params["key"]
        if request.method in ("GET", "HEAD") and "authorization" not in request.headers:
            return self._read(request, key)
        found = self._ticket(request, key)
        if isinstance(found, Response):
            await _drained(request)
            return found
        faults = self._queued(request, "storage", found.account)
        for fault in faults:
            if fault.name == "oss_error":
                await _drained(request)
                return _error(fault.whole("status", 403), fault.word("code", "AccessDenied"))
            if fault.name == "oss_severed":
                return Severed()
        try:
            answer = await self._called(request, found)
        except ClientDisconnect:
            return Response(status_code=400)
        for fault in faults:
            answer = await _spoiled(request, answer, fault)
        return answer

    def _read(self, request: Request, key: str) -> Response:
        """By a signed address, for as long as it is good."""
        code = refused_query(PREFIX + key, request.url.query, self._objects.secret)
        if code:
            return _error(403, code)
        return self._content(key)

    def _content(self, key: str) -> Response:
        stored = self._objects.of_key(key)
        if stored is None:
            return _error(404, "NoSuchKey")
        headers = {"etag": stored.etag, "x-oss-hash-crc64ecma": str(stored.crc64)}
        return FileResponse(stored.place, media_type=stored.content_type, headers=headers)

    def _ticket(self, request: Request, key: str) -> Ticket | Response:
        """Whose call this is, or why it is refused."""
        asked = authorization(request.headers.get("authorization", ""))
        if asked is None:
            return _error(403, "AccessDenied")
        ticket = self._objects.tickets.get(asked.access_key_id)
        if ticket is None:
            return _error(403, "InvalidAccessKeyId")
        if not hmac.compare_digest(request.headers.get("x-oss-security-token", ""), ticket.security_token):
            return _error(403, "InvalidSecurityToken")
        if time.time() > ticket.expires_at:
            return _error(403, "SecurityTokenExpired")
        query = request.scope["query_string"].decode("latin-1")
        signed = Signed(request.method, request.scope["path"], query, dict(request.headers))
        right = v4_signature(signed, ticket.access_key_secret, asked)
        if asked.region != REGION or not hmac.compare_digest(asked.signature, right):
            return _error(403, "SignatureDoesNotMatch")
        if not _timely(request.headers.get("x-oss-date", "")):
            return _error(403, "RequestTimeTooSkewed")
        return ticket if ticket.key == key else _error(403, "AccessDenied")

    async def _called(self, request: Request, ticket: Ticket) -> Response:
        query = request.query_params
        if request.method in ("GET", "HEAD"):
            return self._content(ticket.key)
        if request.method == "POST" and "uploads" in query:
            return await self._begin(request, ticket)
        if "uploadId" not in query:
            return (
                await self._put(request, ticket)
                if request.method == "PUT"
                else _error(405, "MethodNotAllowed")
            )
        upload = self._objects.uploads.get(query["uploadId"])
        if upload is None or upload.ticket is not ticket:
            await _drained(request)
            return _error(404, "NoSuchUpload")
        if request.method == "PUT":
            return await self._part(request, upload)
        if request.method == "POST":
            return await self._complete(request, upload, query["uploadId"])
        for draft in self._objects.uploads.pop(query["uploadId"]).parts.values():
            draft.drop()
        return Response(status_code=204)

    async def _put(self, request: Request, ticket: Ticket) -> Response:
        draft = await self._received(request)
        if isinstance(draft, Response):
            return draft
        stored = self._objects.keep(ticket, draft, _content_type(request))
        answer = _taken(draft)
        answer.background = BackgroundTask(run_sync, stored.sha256)
        return answer

    async def _begin(self, request: Request, ticket: Ticket) -> Response:
        await _drained(request)
        upload_id = secrets.token_hex(16).upper()
        self._objects.uploads[upload_id] = Upload(ticket, _content_type(request))
        return _xml(
            f"<InitiateMultipartUploadResult><Bucket>{BUCKET}</Bucket><Key>{escape(ticket.key)}</Key>"
            f"<UploadId>{upload_id}</UploadId></InitiateMultipartUploadResult>"
        )

    async def _part(self, request: Request, upload: Upload) -> Response:
        number = request.query_params.get("partNumber", "")
        draft = await self._received(request)
        if isinstance(draft, Response):
            return draft
        if not number.isdecimal() or not 1 <= int(number) <= 10_000:
            draft.drop()
            return _error(400, "InvalidArgument")
        before = upload.parts.get(int(number))
        if before is not None:
            before.drop()
        upload.parts[int(number)] = draft
        return _taken(draft)

    async def _complete(self, request: Request, upload: Upload, upload_id: str) -> Response:
        listed = _listed(await _drained(request))
        parts = [upload.parts.get(number) for number, _ in listed]
        found = [part for part in parts if part is not None]
        tags = [part.etag for part in found]
        if not listed or len(found) != len(listed) or tags != [tag for _, tag in listed]:
            return _error(400, "InvalidPart")
        del self._objects.uploads[upload_id]
        whole = await run_sync(joined, found)
        stored = self._objects.keep(upload.ticket, whole, upload.content_type, len(found))
        answer = _xml(
            f"<CompleteMultipartUploadResult><Bucket>{BUCKET}</Bucket><Key>{escape(upload.ticket.key)}</Key>"
            f"<ETag>{escape(stored.etag)}</ETag></CompleteMultipartUploadResult>"
        )
        answer.headers["x-oss-hash-crc64ecma"] = str(whole.crc64)
        answer.background = BackgroundTask(run_sync, stored.sha256)
        return answer

    async def _received(self, request: Request) -> Draft | Response:
        """The body on disk, or why it is refused; nothing stays of one that is not whole."""
        told = request.headers.get("content-md5")
        draft = self._objects.draft(with_md5=bool(told))
        try:
            await _written(request, draft)
        except (ClientDisconnect, anyio.get_cancelled_exc_class()):
            draft.drop()
            raise
        if told and told != base64.b64encode(draft.md5).decode():
            draft.drop()
            return _error(400, "InvalidDigest")
        return draft


class Severed(Response):
    """An answer whose connection ends before its body."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-length", b"1000"), (b"content-type", b"application/xml")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})


async def _written(request: Request, draft: Draft) -> None:
    waiting = bytearray()
    async for piece in request.stream():
        waiting += piece
        if len(waiting) >= COPY_BYTES:
            await run_sync(draft.write, bytes(waiting))
            waiting.clear()
    await run_sync(draft.write, bytes(waiting))


async def _drained(request: Request) -> bytes:
    """The beginning of the body; all of it is read, so that the client hears the answer."""
    kept = bytearray()
    async for piece in request.stream():
        if len(kept) < MAX_LIST_BYTES:
            kept += piece
    return bytes(kept)


async def _spoiled(request: Request, answer: Response, fault: Switch) -> Response:
    """The answer to what was taken in all the same."""
    if fault.name == "oss_wrong_crc":
        answer.headers["x-oss-hash-crc64ecma"] = "1"
    if fault.name == "oss_slow":
        with anyio.move_on_after(fault.number("s", 0.0) or float("inf")):
            while (await request.receive())["type"] != "http.disconnect":
                pass
    return answer


def _timely(stamp: str) -> bool:
    try:
        told = calendar.timegm(time.strptime(stamp, STAMP))
    except ValueError:
        return False
    return abs(time.time() - told) <= SKEW_S


def _listed(body: bytes) -> list[tuple[int, str]]:
    """The parts that a completion names, in its order."""
    try:
        root = ElementTree.fromstring(body)  # noqa: S314 - the test's own client wrote it
        return [
            (int(part.findtext("PartNumber", "")), unquote(part.findtext("ETag", "")))
            for part in root.iter("Part")
        ]
    except (ElementTree.ParseError, ValueError):
        return []


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "application/octet-stream")


def _taken(draft: Draft) -> Response:
    return Response(headers={"etag": draft.etag, "x-oss-hash-crc64ecma": str(draft.crc64), **_own()})


def _xml(inner: str, status: int = 200) -> Response:
    text = f'<?xml version="1.0" encoding="UTF-8"?>\n{inner}'
    return Response(text, status, media_type="application/xml", headers=_own())


def _error(status: int, code: str) -> Response:
    return _xml(
        f"<Error><Code>{escape(code)}</Code><Message>The storage of the stand-in refuses this.</Message>"
        f"<RequestId>{uuid.uuid4().hex[:24].upper()}</RequestId><HostId>{BUCKET}</HostId></Error>",
        status,
    )


def _own() -> dict[str, str]:
    return {"x-oss-request-id": uuid.uuid4().hex[:24].upper(), "server": "AliyunOSS"}
