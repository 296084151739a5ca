"""What a message brings beside its words: what the service takes, what the model reads (protocol §9.4)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import unquote, urlsplit

from anyio.to_thread import run_sync

from .marks import Switch
from .media import opened
from .memory import PASTED, Attached, Records
from .objects import BUCKET, Objects, Stored
from .signatures import refused_query

KINDS = {"vision": "image", "video": "video", "audio": "audio", "document": "document", "default": "document"}
"""By `file_class`."""
READ_BYTES = 8_000_000
"""Of a document: no model reads more."""


@dataclass(slots=True)
class Examined:
    """`missing` is the file that the service does not know; `marks` are errors in the stream."""

    files: list[Attached] = field(default_factory=list)
    marks: list[Switch] = field(default_factory=list)
    missing: str = ""


class Attachments:
    def __init__(self, records: Records, objects: Objects) -> None:
        self._records = records
        self._objects = objects

    async def examine(self, message: dict[str, Any], account: str, *, sees: bool) -> Examined:
        """`sees`: the model can look at pictures and videos."""
        found = Examined()
        listed = message.get("files")
        for each in listed if isinstance(listed, list) else []:
            await self._one(each if isinstance(each, dict) else {}, account, found, sees=sees)
        return found

    async def _one(self, file: dict[str, Any], account: str, found: Examined, *, sees: bool) -> None:
        kind = KINDS.get(str(file.get("file_class")), "")
        url, file_id = str(file.get("url") or ""), str(file.get("id") or "")
        if url and not url.startswith(f"{self._records.site}/"):
            foreign = "error_text" if kind == "document" else "invalid_input"
            found.marks.append(Switch(foreign, {}))
            return
        path = unquote(urlsplit(url).path)
        made = self._records.made.get(path)
        if sees and made is not None and made.account == account and opened(made, urlsplit(url).query):
            digest = hashlib.sha256(made.content()).hexdigest()
            found.files.append(Attached("image", path.rpartition("/")[2], digest, len(made.content())))
            return
        stored = self._objects.of_key(path.removeprefix(f"/{BUCKET}/")) if url else None
        stored = stored or (None if url else self._objects.stored.get(file_id))
        if stored is None or stored.ticket.account != account:
            found.missing = file_id or path
        elif (
            not kind or not (sees or kind == "document") or not self._good(stored, kind, urlsplit(url).query)
        ):
            found.marks.append(Switch("invalid_input", {}))
        else:
            name = str(file.get("name") or stored.ticket.name)
            found.files.append(await run_sync(_read, stored, kind, name))

    def _good(self, stored: Stored, kind: str, query: str) -> bool:
        """Whether the address is still good, and a document is read."""
        if query and refused_query(stored.ticket.path, query, self._objects.secret):
            return False
        return kind != "document" or stored.parsed() == "success"


def pasted(files: Iterable[Attached]) -> str | None:
    """The prompt that came as a document; None: it is where prompts are."""
    return next((file.text for file in files if file.name.startswith(PASTED)), None)


def _read(stored: Stored, kind: str, name: str) -> Attached:
    attached = Attached(kind, name, stored.sha256(), stored.size)
    if kind != "document" or stored.size > READ_BYTES:
        return attached
    try:
        return replace(attached, text=stored.place.read_bytes().decode("utf-8"))
    except UnicodeDecodeError:
        return attached
