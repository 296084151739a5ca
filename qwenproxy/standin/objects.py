"""What accounts have put into the stand-in's storage: tickets, and objects on disk, never in memory."""

from __future__ import annotations

import hashlib
import re
import secrets
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import crcmod

BUCKET = "qwen-webui-prod"
REGION = "ap-southeast-1"
NAME_CHARS = 200
COPY_BYTES = 1 << 20
Parsing = Literal["", "running", "success", "failed"]
_CRC64: Callable[[bytes, int], int] = crcmod.mkCrcFun(
    0x142F0E1EBA9EA3693, initCrc=0, rev=True, xorOut=0xFFFFFFFFFFFFFFFF
)
_POLYNOMIAL = 0xC96C5795D7870F42
"""The same, lowest power first and without its highest."""
_UNSEEN = re.compile(r"[\x00-\x1f\x7f/\\]")


@dataclass(frozen=True, slots=True)
class Ticket:
    """Leave to put one file, for as long as its credentials live (protocol §9.1)."""

    account: str
    user_id: str
    file_id: str
    name: str
    kind: str
    """The `filetype` that was asked for, unchecked."""
    access_key_id: str
    access_key_secret: str = field(repr=False)
    security_token: str = field(repr=False)
    expires_at: float
    """Wall seconds."""

    @property
    def key(self) -> str:
        return f"{self.user_id}/{self.file_id}_{self.name}"

    @property
    def path(self) -> str:
        return f"/{BUCKET}/{self.key}"


@dataclass(slots=True)
class Stored:
    """An object that is whole."""

    ticket: Ticket
    place: Path
    size: int
    etag: str
    crc64: int
    content_type: str
    parts: int
    """0: put at once."""
    parsing: Parsing = ""
    parsed_at: float = 0.0
    """When it is done, monotonic seconds."""
    error: str = ""
    _sha256: str = ""
    _hashing: threading.Lock = field(default_factory=threading.Lock)

    def parsed(self) -> Parsing:
        """How far its reading is by now."""
        if self.parsing == "running" and time.monotonic() >= self.parsed_at:
            self.parsing = "failed" if self.error else "success"
        return self.parsing

    def sha256(self) -> str:
        """Blocking, the first time; "" once it is gone."""
        with self._hashing:
            if not self._sha256:
                try:
                    with self.place.open("rb") as file:
                        self._sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                except FileNotFoundError:
                    return ""
            return self._sha256


@dataclass(slots=True)
class Draft:
    """Bytes on their way to disk; blocking. Their MD5 is made only where somebody tells one."""

    place: Path
    with_md5: bool = False
    size: int = 0
    crc64: int = 0
    _md5: hashlib._Hash = field(default_factory=lambda: hashlib.md5(usedforsecurity=False))

    @property
    def md5(self) -> bytes:
        return self._md5.digest()

    @property
    def etag(self) -> str:
        return f'"{self.crc64:016X}"'

    def write(self, piece: bytes) -> None:
        with self.place.open("ab") as file:
            file.write(piece)
        self.size += len(piece)
        self.crc64 = _CRC64(piece, self.crc64)
        if self.with_md5:
            self._md5.update(piece)

    def append(self, part: Draft) -> None:
        """Takes over what `part` holds."""
        with self.place.open("ab") as whole, part.place.open("rb") as file:
            shutil.copyfileobj(file, whole, COPY_BYTES)
        self.size += part.size
        self.crc64 = _times(self.crc64, _zeros(part.size)) ^ part.crc64
        part.drop()

    def drop(self) -> None:
        self.place.unlink(missing_ok=True)


@dataclass(slots=True)
class Upload:
    """An object that comes in parts."""

    ticket: Ticket
    content_type: str
    parts: dict[int, Draft] = field(default_factory=dict)


class Objects:
    """All tickets and objects; its folder is made when first needed and removed by `forget`."""

    def __init__(self) -> None:
        self.secret = secrets.token_hex(32)
        """Signs the addresses under which objects are read."""
        self.tickets: dict[str, Ticket] = {}
        """By access key id."""
        self.stored: dict[str, Stored] = {}
        """By file id, oldest first."""
        self.uploads: dict[str, Upload] = {}
        self._folder: Path | None = None

    def give(self, account: str, user_id: str, name: str, kind: str, life_s: float) -> Ticket:
        safe = _UNSEEN.sub("_", name)[-NAME_CHARS:]
        ticket = Ticket(
            account,
            user_id,
            str(uuid.uuid4()),
            safe,
            kind,
            f"STS.{secrets.token_urlsafe(18)}",
            secrets.token_urlsafe(32),
            secrets.token_urlsafe(96),
            time.time() + life_s,
        )
        self.tickets[ticket.access_key_id] = ticket
        return ticket

    def of_key(self, key: str) -> Stored | None:
        """The object under `<user id>/<file id>_<name>`."""
        file_id = key.partition("/")[2].partition("_")[0]
        found = self.stored.get(file_id)
        return found if found and found.ticket.key == key else None

    def draft(self, *, with_md5: bool = False) -> Draft:
        """A new, empty file."""
        if self._folder is None or not self._folder.is_dir():
            self._folder = Path(tempfile.mkdtemp(prefix="standin-storage-"))
        place = self._folder / secrets.token_hex(8)
        place.touch(mode=0o600)
        return Draft(place, with_md5)

    def keep(self, ticket: Ticket, draft: Draft, content_type: str, parts: int = 0) -> Stored:
        before = self.stored.pop(ticket.file_id, None)
        if before is not None:
            before.place.unlink(missing_ok=True)
        etag = draft.etag if not parts else f'{draft.etag[:-1]}-{parts}"'
        found = Stored(ticket, draft.place, draft.size, etag, draft.crc64, content_type, parts)
        self.stored[ticket.file_id] = found
        return found

    def forget(self) -> None:
        """Everything goes, also from disk."""
        for kept in (self.tickets, self.stored, self.uploads):
            kept.clear()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


def joined(parts: Sequence[Draft]) -> Draft:
    """All parts in the first one's file; blocking."""
    whole, *more = parts
    for part in more:
        whole.append(part)
    return whole


def _zeros(count: int) -> int:
    """What so many bytes of zero do to a checksum before them: x to the power 8 × `count`."""
    power, square = 1 << 63, 1 << 55
    while count:
        if count & 1:
            power = _times(power, square)
        square, count = _times(square, square), count >> 1
    return power


def _times(one: int, other: int) -> int:
    """The product modulo the polynomial; the highest bit is the lowest power."""
    product = 0
    for bit in range(63, -1, -1):
        if other >> bit & 1:
            product ^= one
        one = (one >> 1) ^ (_POLYNOMIAL if one & 1 else 0)
    return product
