"""Logging to stderr and to a file, one line a message, with every secret masked before it leaves the process.

The masking sits in the formatter, behind everything: message, arguments, tracebacks and other libraries'
records all pass through it, so no caller has to remember.

The file is written by a thread of its own, so that a slow or full disk neither slows nor breaks a request
(reliability D16, D17); what it cannot take is dropped and counted.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, Full, Queue
from threading import Thread
from types import TracebackType
from typing import BinaryIO, TextIO

MASK = "…"
SECRETS = (
    (re.compile(r"eyJ[\w-]{4,}(?:\.[\w-]*){1,4}"), "eyJ" + MASK),
    (re.compile(r"(?i)\b((?:set-)?cookie[\"']?\s*:\s*).+"), r"\1" + MASK),
    (re.compile(r"(?i)\b(bearer|basic)\s+[^\s\"',]+"), r"\1 " + MASK),
    (re.compile(r"\bsk-[\w-]{8,}"), "sk-" + MASK),
    (re.compile(r"(?<=://)[^/\s@\"']+@"), MASK + "@"),
    (
        re.compile(
            r"(?i)\b((?:(?:access|refresh|security|id|auth)[_-]?)?token|password|passwd|secret|api[_-]?key"
            r"|access_key_(?:id|secret)|credential|ssxmod_itna2?|acw_tc|(?<=[?&])code)"
            r"(\\?[\"']?\s*=\s*\\?[\"']?|\\?[\"']\s*:\s*\\?[\"'])[^\s\"',;&\\)}]+"
        ),
        r"\1\2" + MASK,
    ),
)
"""What a secret looks like, and what stands there instead: JWTs, cookies, credentials of a header or a URL,
API keys, and fields whose name gives them away, as `name=value` or as JSON."""

CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code != ord("\t")}
"""Control characters, line ends among them, told as escapes: foreign text cannot forge a log line."""

LINE = "%(asctime)s %(levelname)s %(message)s"
FILE_BYTES = 5 * 1024 * 1024
FILES = 5
"""The newest is `proxy.log`, the oldest `proxy.log.4`."""
LINES_WAITING = 10_000
RETRY_EVERY_S = 30.0
"""Between two tries of a disk that failed."""
CLOSE_S = 2.0
"""Longest wait, when the program ends, for a disk that is slow."""

QUIET = ("uvicorn", "uvicorn.error", "uvicorn.access", "asyncio", "playwright", "httpx2", "httpcore2")
"""Loggers of others that say nothing below a warning: httpx2 would name every address with its signature.
uvicorn's own handlers are taken away."""
SILENT = ("python_multipart",)
"""Loggers of others that warn of what a client did wrong, which is for the client."""


def redact(text: str) -> str:
    """The same text with everything that looks like a secret masked."""
    for pattern, mask in SECRETS:
        text = pattern.sub(mask, text)
    return text


class RedactingFormatter(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the base class names it
        record.message = record.message.translate(CONTROL)
        record.levelname = record.levelname.lower()
        return super().formatMessage(record)

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


class _Console(logging.StreamHandler[TextIO]):
    """While `silent`, only what this module itself says of failures is kept, to be said afterwards."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self.silent = False
        self.held: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        if not self.silent:
            super().emit(record)
        elif record.name == __name__:
            self.held.append(record)


def set_up(stream: TextIO | None = None, *, level: int = logging.INFO) -> None:
    """Sends every logger's records, and what no one caught, to `stream` (stderr) with secrets masked."""
    handler = _Console(stream or sys.stderr)
    handler.setFormatter(RedactingFormatter(LINE, "%H:%M:%S"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # A record that cannot be formatted is dropped: the standard library would print it unmasked.
    logging.raiseExceptions = False
    logging.captureWarnings(capture=True)
    for name in QUIET:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.WARNING)
    for name in SILENT:
        logging.getLogger(name).setLevel(logging.ERROR)
    sys.excepthook = _log_uncaught


@contextmanager
def kept(folder: Path) -> Iterator[None]:
    """Inside, every line goes to `proxy.log` in `folder` too, with its date. May be nested."""
    root = logging.getLogger()
    path = folder / "proxy.log"
    if any(isinstance(handler, _FileLog) and handler.path == path for handler in root.handlers):
        yield
        return
    handler = _FileLog(path)
    handler.setFormatter(RedactingFormatter(LINE, "%Y-%m-%d %H:%M:%S"))
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()


@contextmanager
def console(*, on: bool) -> Iterator[None]:
    """Inside, the console gets the log, or a menu or a live view may be drawn there. May be nested."""
    consoles = [handler for handler in logging.getLogger().handlers if isinstance(handler, _Console)]
    before = [handler.silent for handler in consoles]
    _turn(consoles, [not on] * len(consoles))
    try:
        yield
    finally:
        _turn(consoles, before)


def _turn(consoles: list[_Console], silent: list[bool]) -> None:
    for handler, quiet in zip(consoles, silent, strict=True):
        handler.silent = quiet
        held, handler.held = handler.held, []
        for record in held:
            handler.handle(record)


class _FileLog(logging.Handler):
    """Hands its lines to a thread that writes them."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._lines: Queue[str | None] = Queue(LINES_WAITING)
        self._writer = _Writer(path, self._lines)
        self._writer.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.put_nowait(self.format(record))
        except Full:
            self._writer.lost += 1
        except Exception:  # noqa: BLE001 - a record that cannot be formatted is dropped, as on the console
            self.handleError(record)

    def close(self) -> None:
        """Waits until all is written, but not for a disk that hangs."""
        super().close()
        with suppress(Full):
            self._lines.put_nowait(None)
        self._writer.stopping = True
        self._writer.join(CLOSE_S)


class _Writer(Thread):
    def __init__(self, path: Path, lines: Queue[str | None]) -> None:
        super().__init__(name="log file", daemon=True)
        self.lost = 0
        """Lines that nobody will read."""
        self.stopping = False
        self._lines = lines
        self._file = _RotatedFile(path)
        self._told = False
        self._next_try_s = 0.0

    def run(self) -> None:
        while (line := self._next()) is not None:
            self._write(line)
        self._file.close()

    def _next(self) -> str | None:
        """None at the end. The mark of it does not fit into a full queue, so `stopping` counts too."""
        while True:
            try:
                return self._lines.get(timeout=1.0)
            except Empty:
                if self.stopping:
                    return None

    def _write(self, line: str) -> None:
        now_s = time.monotonic()
        if now_s < self._next_try_s:
            self.lost += 1
            return
        note = f"({self.lost} lines before this one could not be written)\n" if self.lost else ""
        try:
            self._file.write(f"{note}{line}\n".encode("utf-8", "backslashreplace"))
        except OSError as exc:
            self.lost += 1
            self._next_try_s = now_s + RETRY_EVERY_S
            self._tell(exc)
        else:
            self.lost = 0

    def _tell(self, error: OSError) -> None:
        """Once: a disk that comes and goes must not fill the console."""
        if not self._told:
            self._told = True
            logging.getLogger(__name__).warning(
                "the log file cannot be written: %s; lines are lost until it can", error.strerror or error
            )


class _RotatedFile:
    """A private file of a bounded size, and the ones before it.

    Another process may write to the same file and rotate it: it is looked up again for every line.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stream: BinaryIO | None = None

    def write(self, line: bytes) -> None:
        """Raises: OSError."""
        try:
            stream = self._current()
            if stream.tell() and stream.tell() + len(line) > FILE_BYTES:
                stream = self._fresh(stream)
            if stream.write(line) != len(line):  # the disk was filled by a part of it
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        if self._stream is not None:
            with suppress(OSError):
                self._stream.close()
            self._stream = None

    def _current(self) -> BinaryIO:
        if self._stream is not None and not self._is_still(self._stream):
            self.close()
        if self._stream is None:
            self._stream = self._open()
        self._stream.seek(0, os.SEEK_END)
        return self._stream

    def _is_still(self, stream: BinaryIO) -> bool:
        try:
            return os.path.samestat(os.fstat(stream.fileno()), self._path.lstat())
        except OSError:
            return False

    def _open(self) -> BinaryIO:
        folder = self._path.parent
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # No link is followed, and no pipe waited for: the folder may come from elsewhere.
        odd = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | odd, 0o600)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise OSError(errno.EINVAL, "it is no plain file")
            with suppress(OSError):  # somebody else's folder: what we may not mend stays
                folder.chmod(0o700)
                self._path.chmod(0o600)
        except OSError:
            os.close(handle)
            raise
        return os.fdopen(handle, "ab", buffering=0)

    def _fresh(self, stream: BinaryIO) -> BinaryIO:
        """A new file, after this one and the older ones moved on by one place."""
        size = stream.tell()
        self.close()
        try:
            for number in range(FILES - 1, 0, -1):
                older = self._path if number == 1 else self._numbered(number - 1)
                with suppress(FileNotFoundError):
                    older.replace(self._numbered(number))
        except OSError:
            # On Windows a file that another process holds open cannot be moved: go on in it, for a while.
            if size > 2 * FILE_BYTES:
                raise
        return self._current()

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")


def _log_uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    logging.getLogger(__name__).critical(
        "stopped by an error nobody expected", exc_info=(kind, error, traceback)
    )
