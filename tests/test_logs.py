from __future__ import annotations

import io
import logging
import os
import re
import shutil
import stat
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwenproxy import logs
from tests.serve import ROOT, until

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
        logging.getLogger("python_multipart.multipart").warning("a client's form is broken")
    finally:
        logging.captureWarnings(capture=False)
        root.handlers[:], sys.excepthook, logging.raiseExceptions = handlers, hook, loud
        root.setLevel(level)
    assert own not in logger.handlers
    assert JWT not in out.getvalue()
    assert len(out.getvalue().splitlines()) == 1


def test_fetched_addresses_which_carry_keys_are_not_written(stream: io.StringIO) -> None:
    logging.getLogger("httpx2").info("HTTP Request: GET https://cdn.qwenlm.ai/a.png?key=abc")
    logging.getLogger("httpcore2.http11").debug("send_request_headers.started")
    assert stream.getvalue() == ""


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


def lines_of(folder: Path) -> list[str]:
    return (folder / "proxy.log").read_text("utf-8").splitlines()


def test_the_file_has_the_same_lines_with_dates_and_masks(stream: io.StringIO, tmp_path: Path) -> None:
    folder = tmp_path / "session" / "logs"
    with logs.kept(folder):
        logging.getLogger("qwenproxy").warning("token %s\nforged \ud800", JWT)
    (line,) = lines_of(folder)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d warning token eyJ…\\x0aforged \\ud800", line)
    assert "warning token eyJ…" in stream.getvalue()
    logging.getLogger("qwenproxy").warning("afterwards")
    assert len(lines_of(folder)) == 1


@pytest.mark.skipif(os.name == "nt", reason="Windows has other rights")
def test_file_and_folder_are_private_whatever_they_were(stream: io.StringIO, tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir(mode=0o755)
    (folder / "proxy.log").touch(mode=0o644)
    with logs.kept(folder):
        logging.getLogger("qwenproxy").info("one")
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder, folder / "proxy.log")] == [0o700, 0o600]


def test_five_files_of_a_bounded_size_are_kept(
    stream: io.StringIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "FILE_BYTES", 1000)
    with logs.kept(tmp_path):
        for number in range(200):
            logging.getLogger("qwenproxy").info("line %d %s", number, "." * 50)
    files = sorted(tmp_path.iterdir())
    assert [path.name for path in files] == ["proxy.log", *(f"proxy.log.{n}" for n in range(1, 5))]
    assert all(path.stat().st_size <= 1000 for path in files)
    newest_last = "".join(path.read_text() for path in reversed(files))
    numbers = [int(number) for number in re.findall(r"line (\d+)", newest_last)]
    assert numbers == list(range(numbers[0], 200))


def test_a_file_that_another_process_moves_away_is_begun_afresh(stream: io.StringIO, tmp_path: Path) -> None:
    path = tmp_path / "logs" / "proxy.log"
    logger = logging.getLogger("qwenproxy")
    with logs.kept(path.parent):
        logger.info("one")
        until(path.is_file)
        until(lambda: "one" in path.read_text())
        path.rename(path.with_name("proxy.log.1"))
        logger.info("two")
        until(path.is_file)
        until(lambda: "two" in path.read_text())
        shutil.rmtree(path.parent)
        logger.info("three")
    assert [line.split()[-1] for line in lines_of(path.parent)] == ["three"]


@pytest.mark.parametrize("odd", ["directory", "link", "pipe", "file above"])
def test_a_file_that_cannot_be_is_told_once_and_breaks_nothing(
    odd: str, stream: io.StringIO, tmp_path: Path
) -> None:
    folder, path = tmp_path / "logs", tmp_path / "logs" / "proxy.log"
    if odd == "file above":
        folder.write_text("")
    else:
        folder.mkdir()
    if odd == "directory":
        path.mkdir()
    elif odd == "link":
        path.symlink_to(tmp_path / "elsewhere")
    elif odd == "pipe":
        os.mkfifo(path)
    with logs.kept(folder):
        for number in range(3):
            logging.getLogger("qwenproxy").info("line %d", number)
    text = stream.getvalue()
    assert text.count("the log file cannot be written") == 1
    assert text.count(" info line ") == 3
    assert not (tmp_path / "elsewhere").exists()


FULL_DISK = """
import logging, resource, sys
from pathlib import Path
from qwenproxy import logs
resource.setrlimit(resource.RLIMIT_FSIZE, (400, 400))
logs.set_up()
with logs.kept(Path(sys.argv[1])):
    for number in range(50):
        logging.getLogger("qwenproxy").info("line %d", number)
print("went on")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limit of file sizes there")
def test_a_full_disk_is_told_once_and_what_fitted_stays(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=15,
        check=True,
    )
    assert done.stdout == "went on\n"
    assert done.stderr.count("the log file cannot be written") == 1
    assert lines_of(tmp_path)[0].endswith("info line 0")


def test_what_was_lost_is_told_in_the_file_when_the_disk_is_back(
    stream: io.StringIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "RETRY_EVERY_S", 0.0)
    folder = tmp_path / "logs"
    folder.write_text("in the way")
    logger = logging.getLogger("qwenproxy")
    with logs.kept(folder):
        logger.info("lost")
        until(lambda: "cannot be written" in stream.getvalue())
        folder.unlink()
        logger.info("kept")
        until(lambda: folder.is_dir() and "kept" in (folder / "proxy.log").read_text())
    assert re.match(r"\(\d lines before this one could not be written\)$", lines_of(folder)[0])


def test_off_the_console_only_the_file_is_written(stream: io.StringIO, tmp_path: Path) -> None:
    with logs.kept(tmp_path), logs.console(on=False):
        logging.getLogger("qwenproxy").warning("drawn over")
        sys.excepthook(RuntimeError, RuntimeError("boom"), None)
        assert stream.getvalue() == ""
    assert "drawn over" not in stream.getvalue()
    assert stream.getvalue().count("boom") == 1, "an error nobody expected is said afterwards"
    logging.getLogger("qwenproxy").warning("seen again")
    assert "seen again" in stream.getvalue()
    assert "drawn over" in lines_of(tmp_path)[0]


def test_a_plain_log_inside_a_menu_is_seen_and_kept_once(stream: io.StringIO, tmp_path: Path) -> None:
    with logs.kept(tmp_path), logs.console(on=False):
        with logs.kept(tmp_path), logs.console(on=True):
            logging.getLogger("qwenproxy").info("serving")
        logging.getLogger("qwenproxy").info("menu again")
    assert stream.getvalue().endswith("info serving\n")
    assert [line.split(" info ")[1] for line in lines_of(tmp_path)] == ["serving", "menu again"]


def test_off_the_console_without_a_file_nothing_is_printed(
    stream: io.StringIO, capsys: pytest.CaptureFixture[str]
) -> None:
    with logs.console(on=False):
        logging.getLogger("qwenproxy").error("nowhere %s", JWT)
    assert stream.getvalue() + capsys.readouterr().err == ""
