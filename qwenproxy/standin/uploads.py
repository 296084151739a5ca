"""What the site says around an upload: ticket, reading of documents, fresh links (protocol §9)."""

from __future__ import annotations

import math
import time
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from starlette.requests import Request
from starlette.responses import Response

from .marks import Switch
from .memory import Records, Session
from .objects import BUCKET, REGION, Objects, Stored
from .replies import enveloped, refused
from .signatures import signed_query
from .talks import read_object


class Uploads:
    def __init__(self, records: Records, objects: Objects) -> None:
        self._records = records
        self._objects = objects

    async def ticket(self, request: Request, session: Session) -> Response:
        """`POST /api/v2/files/getstsToken`; `filetype` must be there and may be anything."""
        asked = await read_object(request) or {}
        name, size, kind = (asked.get(key) for key in ("filename", "filesize", "filetype"))
        if not isinstance(name, str) or not name.strip() or not kind or not str(size or "").isdecimal():
            return refused(request, "Bad_Request", "Invalid file information!")
        user_id = self._records.user_id(session.account)
        life_s = self._records.options.sts_s
        ticket = self._objects.give(session.account, user_id, name, str(kind), life_s)
        data = {
            "access_key_id": ticket.access_key_id,
            "access_key_secret": ticket.access_key_secret,
            "security_token": ticket.security_token,
            "file_url": self.link(ticket.path),
            "file_path": ticket.key,
            "file_id": ticket.file_id,
            "bucketname": BUCKET,
            "region": f"oss-{REGION}",
            "endpoint": self._records.options.storage_endpoint,
        }
        return enveloped(request, data)

    async def parse(self, request: Request, session: Session, faults: list[Switch]) -> Response:
        """`POST /api/v2/files/parse`: the reading begins, and is done after `parse_s`."""
        asked = await read_object(request) or {}
        stored = self._mine(str(asked.get("file_id")), session)
        if stored is None:
            return refused(
                request, "Bad_Request", f"Invalid input the file {asked.get('file_id')} is not exist."
            )
        stored.parsing, stored.error = "running", ""
        stored.parsed_at = time.monotonic() + self._records.options.parse_s
        for fault in faults:
            if fault.name == "parse_failed":
                stored.error = fault.word("error", "The document cannot be read.")
            if fault.name == "parse_hangs":
                stored.parsed_at = math.inf
        return enveloped(request, {"file_id": stored.ticket.file_id})

    async def parsed(self, request: Request, session: Session) -> Response:
        """`POST /api/v2/files/parse/status`: one row for each file that is known."""
        asked = await read_object(request) or {}
        listed = asked.get("file_id_list")
        if not isinstance(listed, list):
            return refused(request, "RequestValidationError", "Field 'file_id_list': Field required")
        found = [self._mine(str(file_id), session) for file_id in listed]
        return enveloped(request, [_row(stored) for stored in found if stored is not None and stored.parsing])

    async def fresh(self, request: Request, session: Session) -> Response:
        """`POST /api/v2/files/getfilelink`: a link that is good again."""
        asked = await read_object(request) or {}
        path = unquote(urlsplit(str(asked.get("fileUrl", ""))).path)
        stored = self._objects.of_key(path.removeprefix(f"/{BUCKET}/"))
        if stored is None or stored.ticket.account != session.account:
            return refused(request, "Not_Found", "File not found", 404)
        return enveloped(request, {"fileUrl": self.link(stored.ticket.path)})

    def link(self, path: str) -> str:
        """A signed address on the site itself, good for `link_s`."""
        query = signed_query(path, self._objects.secret, self._records.options.link_s)
        return f"{self._records.site}{quote(path)}?{query}"

    def objects(self) -> list[dict[str, Any]]:
        """Every object that is whole, oldest first, for `GET /__standin__/objects`; blocking."""
        return [
            {
                "account": stored.ticket.account,
                "path": stored.ticket.key,
                "file_id": stored.ticket.file_id,
                "name": stored.ticket.name,
                "filetype": stored.ticket.kind,
                "content_type": stored.content_type,
                "size": stored.size,
                "sha256": stored.sha256(),
                "parsed": stored.parsed(),
                "parts": stored.parts,
            }
            for stored in list(self._objects.stored.values())
        ]

    def _mine(self, file_id: str, session: Session) -> Stored | None:
        stored = self._objects.stored.get(file_id)
        return stored if stored and stored.ticket.account == session.account else None


def _row(stored: Stored) -> dict[str, Any]:
    status = stored.parsed()
    failed = status == "failed"
    return {
        "file_id": stored.ticket.file_id,
        "status": status,
        "error_msg": stored.error if failed else "",
        "error_code": "parse_failed" if failed else None,
        "retry": False,
    }
