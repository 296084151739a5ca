"""Bytes to events, as the WHATWG event-stream standard has it, with two tolerances.

Lines end with LF, CR or CRLF and with nothing else, however the bytes are cut; bytes that are no UTF-8 become
U+FFFD. `event:`, `id:`, `retry:`, comments and unknown fields say nothing here. What differs on purpose:

1. The service is reported to leave out blank lines (protocol §5.1). So the first `data:` line of an event
   that is a whole JSON object by itself, or `[DONE]`, is the whole event. For an event of one line, which
   all of the service's are, this changes nothing but that it need not wait for its blank line.
2. The standard drops an event that the end of the stream cuts off. `flush` gives it out when rule 1 makes it
   whole, so that a last frame without its blank line is not lost, and drops it otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from qwenproxy.errors import ProtocolChanged

MAX_EVENT_BYTES = 1024 * 1024
"""Longest line, and longest event; the largest one seen is some 20 kB (protocol §5.5)."""

MAX_REPLY_BYTES = 64 * 1024 * 1024
"""Longest answer; reliability U8."""

_BOM = b"\xef\xbb\xbf"


class SseDecoder:
    """`push` bytes as they come, then `flush`. Both are generators: nothing happens until they are consumed.

    Raises:
        ProtocolChanged: a line, an event or the reply is too long. What came before it has been given out.
    """

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        """The unfinished last line."""
        self._pieces_bytes = 0
        self._data: list[bytes] = []
        """The values of the `data:` lines of the unfinished event."""
        self._data_bytes = 0
        self._goes_on = False
        """The first of them is known to be no whole event."""
        self._read_bytes = 0
        self._at_start = True
        self._after_cr = False

    def push(self, data: bytes) -> Iterator[str]:
        allowed = MAX_REPLY_BYTES - self._read_bytes
        self._read_bytes += len(data)
        try:
            yield from self._lines(_plain(data[:allowed], after_cr=self._after_cr))
            if len(data) > allowed:
                raise ProtocolChanged(f"the service's answer is longer than {MAX_REPLY_BYTES} bytes")
        except ProtocolChanged:
            yield from self._ready()
            raise
        yield from self._ready()
        if data:
            self._after_cr = data.endswith(b"\r")

    def flush(self) -> Iterator[str]:
        """The last event, if the stream ended without its blank line."""
        if self._pieces_bytes:
            yield from self._lines(b"\n")
        yield from self._ready()
        self._data.clear()

    def _lines(self, data: bytes) -> Iterator[str]:
        first, *rest = data.split(b"\n")
        self._grow(first)
        for piece in rest:
            line = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
            self._pieces.clear()
            self._pieces_bytes = 0
            if (event := self._line(line)) is not None:
                yield event
            self._grow(piece)

    def _grow(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._pieces_bytes += len(piece)
        if self._pieces_bytes > MAX_EVENT_BYTES:
            raise ProtocolChanged(f"the service sent a line longer than {MAX_EVENT_BYTES} bytes")

    def _line(self, line: bytes) -> str | None:
        """The event that this line ends."""
        if self._at_start:
            line = line.removeprefix(_BOM)
            self._at_start = False
        if not line:
            return self._take() if self._data else None
        name, _, value = line.partition(b":")
        if name != b"data":
            return None
        ended = self._take() if self._is_ready() else None
        self._data.append(value.removeprefix(b" "))
        self._data_bytes += len(value) + 1
        if self._data_bytes > MAX_EVENT_BYTES:
            raise ProtocolChanged(f"the service sent an event longer than {MAX_EVENT_BYTES} bytes")
        return ended

    def _is_ready(self) -> bool:
        if len(self._data) != 1 or self._goes_on:
            return False
        self._goes_on = not _is_whole(self._data[0].decode("utf-8", "replace").strip())
        return not self._goes_on

    def _ready(self) -> Iterator[str]:
        if self._is_ready():
            yield self._take()

    def _take(self) -> str:
        event = b"\n".join(self._data).decode("utf-8", "replace")
        self._data.clear()
        self._data_bytes = 0
        self._goes_on = False
        return event


def _plain(data: bytes, *, after_cr: bool) -> bytes:
    """With LF for every line end. A LF after a CR that ended the piece before belongs to that line end."""
    if after_cr:
        data = data.removeprefix(b"\n")
    return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in data else data


def _is_whole(line: str) -> bool:
    if line == "[DONE]":
        return True
    if not (line.startswith("{") and line.endswith("}")):
        return False
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True
