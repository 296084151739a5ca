"""Forms with files (`multipart/form-data`, RFC 7578): the files go to disk as they come, within bounds.

Whatever happens to the request, a file that nobody kept is gone when the form is left (reliability.md, T16).
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import ExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote

import anyio
from anyio.to_thread import run_sync
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.types import Receive, Scope

from qwenproxy.errors import BadRequest, ShuttingDown, TooLarge, WrongMediaType
from qwenproxy.file_store import FileStore, Incoming
from qwenproxy.server.body import pieces
from qwenproxy.server.guard import FORM_TYPE

BATCH_BYTES: Final = 131_072
"""What goes to a thread at once."""
FRAME_BYTES: Final = 131_072
"""What a form may be beyond its files and fields: boundaries, the parts' headers."""
_EXTENDED_NAME: Final = re.compile(r";\s*filename\*\s*=\s*\"?utf-8'[^']*'([^;\"]*)", re.IGNORECASE)
_PLAIN_ENCODINGS: Final = frozenset({"", "7bit", "8bit", "binary"})


@dataclass(frozen=True, slots=True)
class FormBounds:
    """What no form may exceed; tests turn them."""

    file_bytes: int
    """All its files together."""
    fields_bytes: int = 1_000_000
    """All its other values together."""
    parts: int = 20
    idle_s: float = 20.0
    total_s: float = 3600.0
    """100 MB on a slow line take that long."""
    stopped: anyio.Event | None = None
    """Set: the server ends, and a form that still comes is refused."""


@dataclass(frozen=True, slots=True)
class Part:
    """A file of a form."""

    field: str
    name: str
    """As the client calls the file."""
    incoming: Incoming


@dataclass(slots=True)
class Form:
    fields: Mapping[str, Sequence[str]] = field(default_factory=dict)
    files: Sequence[Part] = ()

    def text(self, name: str) -> str:
        """The one value of that field; "" where there is none. Raises: BadRequest, where there are more."""
        values = self.fields.get(name, ())
        if len(values) > 1:
            raise BadRequest(f"{name} must be given once", param=name)
        return values[0] if values else ""

    def file(self, name: str) -> Part:
        """The one file of that field. Raises: BadRequest, where there is none or there are more."""
        found = [part for part in self.files if part.field == name]
        if len(found) != 1:
            wrong = "only one is taken at a time" if found else "there is none"
            raise BadRequest(
                f"a file is needed, as a form's part {name} with a file name: {wrong}", param=name
            )
        return found[0]


@asynccontextmanager
async def read_form(
    scope: Scope, receive: Receive, bounds: FormBounds, store: FileStore
) -> AsyncGenerator[Form]:
    """The form that a request carries. Its files are there as long as it is not left.

    Raises:
        WrongMediaType: it is no form.
        BadRequest: it is a broken one.
        TooLarge: it is larger than `bounds` allow, or says so.
        BodyTooSlow, ClientGone: as `read_body`.
        ShuttingDown: the server ends before it is whole.
        StoreError: a file cannot be stored.
    """
    boundary = _boundary(scope)
    most_bytes = bounds.file_bytes + bounds.fields_bytes + FRAME_BYTES
    for name, value in scope["headers"]:
        if name == b"content-length" and int(value) > most_bytes:
            raise TooLarge(f"files of more than {bounds.file_bytes} bytes are not taken")
    files = ExitStack()
    reader = _Reader(boundary, bounds, store, files)
    try:
        await _fill(reader, receive, bounds, most_bytes)
        yield reader.form()
    finally:
        with anyio.CancelScope(shield=True):
            await run_sync(files.close)


def _boundary(scope: Scope) -> bytes:
    """Raises: WrongMediaType; BadRequest, also where nothing is said to have been sent."""
    values = [value for name, value in scope["headers"] if name == b"content-type"]
    if not values:
        raise BadRequest(f"a file is needed, in a form sent as {FORM_TYPE}", param="file")
    kind, options = parse_options_header(values[0].decode("latin-1") if len(values) == 1 else "")
    if kind.strip() != FORM_TYPE.encode():
        raise WrongMediaType(f"the body must be a form with a file, sent as {FORM_TYPE}")
    boundary = options.get(b"boundary", b"")
    if not boundary or len(boundary) > 70:  # RFC 2046, 5.1.1
        raise BadRequest("the form's Content-Type header names no boundary that can be used")
    return boundary


async def _fill(reader: _Reader, receive: Receive, bounds: FormBounds, most_bytes: int) -> None:
    """Gives the reader all that comes, unless the server ends before."""
    error: Exception | None = None
    whole = False
    async with anyio.create_task_group() as tasks:
        if bounds.stopped is not None:
            tasks.start_soon(_end, bounds.stopped, tasks.cancel_scope)
        try:
            async with aclosing(_batches(receive, bounds, most_bytes)) as batches:
                async for batch in batches:
                    await run_sync(reader.feed, batch)
            whole = True
        except Exception as exc:  # noqa: BLE001 - raised below, outside the group, which would wrap it
            error = exc
        tasks.cancel_scope.cancel()
    if error is not None:
        raise error
    if not whole:
        raise ShuttingDown("the proxy is stopping")


async def _end(stopped: anyio.Event, scope: anyio.CancelScope) -> None:
    await stopped.wait()
    scope.cancel()


async def _batches(receive: Receive, bounds: FormBounds, most_bytes: int) -> AsyncGenerator[bytes]:
    """The body, in pieces that are worth a thread."""
    batch = bytearray()
    total = 0
    async with aclosing(pieces(receive, idle_s=bounds.idle_s, total_s=bounds.total_s)) as coming:
        async for piece in coming:
            batch += piece
            total += len(piece)
            if total > most_bytes:
                raise TooLarge(f"files of more than {bounds.file_bytes} bytes are not taken")
            if len(batch) >= BATCH_BYTES:
                yield bytes(batch)
                batch.clear()
    yield bytes(batch)


class _Reader:
    """What has come of a form. Blocks: it writes the files."""

    def __init__(self, boundary: bytes, bounds: FormBounds, store: FileStore, files: ExitStack) -> None:
        self._bounds = bounds
        self._store = store
        self._stack = files
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._part_begins,
                "on_header_field": self._header_name,
                "on_header_value": self._header_value,
                "on_header_end": self._header_ends,
                "on_headers_finished": self._headers_end,
                "on_part_data": self._data,
                "on_part_end": self._part_ends,
                "on_end": self._form_ends,
            },
        )
        self._fields: dict[str, list[str]] = {}
        self._files: list[Part] = []
        self._parts = 0
        self._fields_bytes = 0
        self._files_bytes = 0
        self._whole = False
        self._name, self._value = b"", b""
        self._headers: dict[str, bytes] = {}
        self._field = ""
        self._text: bytearray | None = None

    def feed(self, data: bytes) -> None:
        """Raises: BadRequest, TooLarge, StoreError."""
        try:
            self._parser.write(data)
        except FormParserError:
            raise BadRequest("the form is broken: it is not multipart/form-data") from None

    def form(self) -> Form:
        """Raises: BadRequest."""
        if not self._whole:
            raise BadRequest("the form is broken: it has no end")
        return Form(self._fields, self._files)

    def _part_begins(self) -> None:
        self._parts += 1
        if self._parts > self._bounds.parts:
            raise BadRequest(f"the form has more than {self._bounds.parts} parts")
        self._headers = {}

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_ends(self) -> None:
        self._headers[self._name.decode("latin-1").lower()] = self._value
        self._name, self._value = b"", b""

    def _headers_end(self) -> None:
        told = self._headers.get("content-disposition", b"").decode("latin-1")
        kind, options = parse_options_header(told)
        if kind.strip() != b"form-data" or not options.get(b"name"):
            raise BadRequest("the form is broken: a part has no name")
        if _text(self._headers.get("content-transfer-encoding", b"")).lower() not in _PLAIN_ENCODINGS:
            raise BadRequest("the form's parts must be sent as they are, in no transfer encoding")
        self._field = _text(options[b"name"])
        extended = _EXTENDED_NAME.search(told)
        if extended is None and b"filename" not in options:
            self._text = bytearray()
            return
        name = unquote(extended[1]) if extended else _text(options[b"filename"])
        self._files.append(Part(self._field, name, self._stack.enter_context(self._store.incoming())))

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._text is None:
            self._files_bytes += end - start
            if self._files_bytes > self._bounds.file_bytes:
                raise TooLarge(f"files of more than {self._bounds.file_bytes} bytes are not taken")
            self._files[-1].incoming.write(memoryview(data)[start:end])
            return
        self._fields_bytes += end - start
        if self._fields_bytes > self._bounds.fields_bytes:
            raise TooLarge(f"a form's values may have {self._bounds.fields_bytes} bytes in all")
        self._text += data[start:end]

    def _part_ends(self) -> None:
        if self._text is not None:
            try:
                self._fields.setdefault(self._field, []).append(self._text.decode())
            except UnicodeDecodeError:
                raise BadRequest("a value of the form is not UTF-8 text", param=self._field) from None
        self._text = None

    def _form_ends(self) -> None:
        self._whole = True


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace").strip()
