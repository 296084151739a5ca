"""Logging to stderr, one line a message, with every secret masked before it leaves the process.

The masking sits in the formatter, behind everything: message, arguments, tracebacks and other libraries'
records all pass through it, so no caller has to remember.
"""

from __future__ import annotations

import logging
import re
import sys
from types import TracebackType
from typing import TextIO

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

QUIET = ("uvicorn", "uvicorn.error", "uvicorn.access", "asyncio", "playwright")
"""Loggers of others that say nothing below a warning; uvicorn's own handlers are taken away."""


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


def set_up(stream: TextIO | None = None, *, level: int = logging.INFO) -> None:
    """Sends every logger's records, and what no one caught, to `stream` (stderr) with secrets masked."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # A record that cannot be formatted is dropped: the standard library would print it unmasked.
    logging.raiseExceptions = False
    logging.captureWarnings(capture=True)
    for name in QUIET:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.WARNING)
    sys.excepthook = _log_uncaught


def _log_uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    logging.getLogger(__name__).critical(
        "stopped by an error nobody expected", exc_info=(kind, error, traceback)
    )
