"""Files that must survive whatever happens to their writer."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from qwenproxy import store
from qwenproxy.errors import SessionDamaged, SessionLocked


def test_what_was_written_is_read_and_nobody_else_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "tokens.json"
    store.write(path, [{"id": "ä"}])
    assert store.read(path) == [{"id": "ä"}]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["tokens.json"]


def test_no_file_is_none(tmp_path: Path) -> None:
    assert store.read(tmp_path / "nothing.json") is None


@pytest.mark.parametrize("text", ["", "[", '[{"id": "a"}', "\x00\x00", "[" * 100_000])
def test_an_unreadable_file_is_an_error_and_stays(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tokens.json"
    path.write_text(text)
    with pytest.raises(SessionDamaged):
        store.read(path)
    assert path.read_text() == text


def test_a_byte_order_mark_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    path.write_bytes(b"\xef\xbb\xbf[]")
    assert store.read(path) == []


def test_a_value_that_is_no_json_leaves_the_file_and_no_rubbish(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    store.write(path, [1])
    with pytest.raises(TypeError):
        store.write(path, {1, 2})
    assert store.read(path) == [1]
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_lock_held_elsewhere_is_said_not_waited_out(tmp_path: Path) -> None:
    lock = tmp_path / "tokens.json.lock"
    with FileLock(lock), pytest.raises(SessionLocked), store.locked(lock, wait_s=0.1):
        pass


def test_a_killed_writer_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from qwenproxy import store\n"
        "n = 0\n"
        "while True: n += 1; store.write(Path(sys.argv[1]), ['x' * 5000, n])"
    )
    path = tmp_path / "torn.json"
    for round_ in range(4):
        writer = subprocess.Popen([sys.executable, "-c", code, str(path)])
        deadline = time.monotonic() + 10
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.02 * round_)
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait(10)
        assert len(json.loads(path.read_text())[0]) == 5000
