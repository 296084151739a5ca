from __future__ import annotations

import io
import logging
import sys
import warnings
from collections.abc import Iterator

import pytest

from qwenproxy import logs

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJpZCI6IjEifQ.c2lnbmF0dXJl"


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root, hook, loud = logging.getLogger(), sys.excepthook, logging.raiseExceptions
    handlers, level = root.handlers[:], root.level
    out = io.StringIO()
    logs.set_up(out)
    yield out
    logging.captureWarnings(capture=False)
    root.handlers[:] = handlers
    root.setLevel(level)
    sys.excepthook, logging.raiseExceptions = hook, loud


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (f"token is {JWT}", JWT),
        (f"half a token {JWT[:40]}", JWT[12:40]),
        ("Authorization: Bearer abc123def", "abc123def"),
        ("authorization: basic dXNlcjpwYXNz", "dXNlcjpwYXNz"),
        ("GET /v1/models?token=abc123&x=1", "abc123"),
        ('{"access_token": "abc123", "id": 4}', "abc123"),
        ("{'token': 'abc123'}", "abc123"),
        (r'"{\"token\":\"abc123\"}"', "abc123"),
        ("Cookie: cna=abc123; token=zzz", "abc123"),
        ("'set-cookie': 'cna=abc123; Path=/'", "abc123"),
        ("password=hunter22", "hunter22"),
        ("key sk-abcdefghijkl here", "abcdefghijkl"),
        ("socks5://user:hunter22@127.0.0.1:1080", "hunter22"),
        ("http://127.0.0.1/auth/callback?code=abc123", "abc123"),
        ('{"security_token": "abc123", "access_key_secret": "q"}', "abc123"),
        ("ssxmod_itna=abc123", "abc123"),
    ],
)
def test_secrets_are_masked(text: str, secret: str) -> None:
    assert secret in text
    assert secret not in logs.redact(text)
    assert logs.MASK in logs.redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "account acc_1752745840684 gave 12 tokens in 3 s",
        "max_tokens=64 output_tokens: 12",
        "GET https://chat.qwen.ai/api/v2/chats/?page=1",
        "the token was renewed",
        "http://127.0.0.1:3264/v1 is taken",
        "status_code=401",
        "Download failure, code=ENOTFOUND",
    ],
)
def test_plain_words_stay(text: str) -> None:
    assert logs.redact(text) == text


def test_one_message_is_one_line_with_time_and_level(stream: io.StringIO) -> None:
    logging.getLogger("qwenproxy.gateway").info("chat %s\nforged line\x1b[31m", "abc")
    line = stream.getvalue()
    assert line.endswith(" info chat abc\\x0aforged line\\x1b[31m\n")
    assert line[:8].count(":") == 2


def test_arguments_and_tracebacks_are_masked(stream: io.StringIO) -> None:
    try:
        raise ValueError(f"bad token {JWT}")
    except ValueError:
        logging.getLogger("uvicorn.error").exception("failed with %s", JWT)
    assert "Traceback" in stream.getvalue()
    assert JWT not in stream.getvalue()


def test_the_servers_own_handlers_do_not_write_past_the_mask() -> None:
    own = logging.StreamHandler(io.StringIO())
    logger = logging.getLogger("uvicorn")
    logger.addHandler(own)
    out = io.StringIO()
    root = logging.getLogger()
    handlers, level, hook, loud = root.handlers[:], root.level, sys.excepthook, logging.raiseExceptions
    try:
        logs.set_up(out)
        logger.warning("started with %s", JWT)
        logger.info("Started server process")
    finally:
        logging.captureWarnings(capture=False)
        root.handlers[:], sys.excepthook, logging.raiseExceptions = handlers, hook, loud
        root.setLevel(level)
    assert own not in logger.handlers
    assert JWT not in out.getvalue()
    assert len(out.getvalue().splitlines()) == 1


def test_a_record_that_cannot_be_formatted_is_not_printed(
    stream: io.StringIO, capsys: pytest.CaptureFixture[str]
) -> None:
    logging.getLogger("qwenproxy").info("%d", JWT)
    assert JWT not in stream.getvalue() + capsys.readouterr().err


def test_warnings_and_uncaught_errors_are_logged_masked(stream: io.StringIO) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(f"odd {JWT}", stacklevel=1)
    error = RuntimeError(f"boom {JWT}")
    sys.excepthook(RuntimeError, error, None)
    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    text = stream.getvalue()
    assert "odd" in text
    assert "boom" in text
    assert text.count("critical") == 1
    assert JWT not in text
