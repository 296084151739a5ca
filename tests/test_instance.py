"""One proxy per session folder."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from qwenproxy import instance
from qwenproxy.errors import SessionLocked, StoreError

HOLDING = """
import sys
from pathlib import Path
from qwenproxy import instance
with instance.hold(Path(sys.argv[1])) as held:
    held.tell("http://127.0.0.1:3264")
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_proxy_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "session"
    with instance.hold(folder) as held:
        held.tell("http://127.0.0.1:3264")
        expected = f"process {os.getpid()} at http://127.0.0.1:3264"
        with (
            pytest.raises(SessionLocked, match=f"^another proxy serves this session folder: {expected}$"),
            instance.hold(folder),
        ):
            pass
        assert instance.holder(folder) == instance.Holder(os.getpid(), "http://127.0.0.1:3264")
        assert stat.S_IMODE((folder / "proxy.json").stat().st_mode) == 0o600
    assert instance.holder(folder) is None
    assert not (folder / "proxy.json").exists()
    with instance.hold(folder):
        assert str(instance.holder(folder)) == f"process {os.getpid()}"


def test_the_key_of_the_run_is_for_who_may_read_the_folder(tmp_path: Path) -> None:
    with instance.hold(tmp_path) as held:
        held.tell("http://127.0.0.1:3264", "the-key-of-this-run")
        holder = instance.holder(tmp_path)
        assert holder is not None
        assert holder.key == "the-key-of-this-run"
        assert "the-key" not in f"{holder!r} {holder}"
    assert not list(tmp_path.glob("*.json"))


def test_nobody_holds_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert instance.holder(tmp_path / "session") is None
    assert not (tmp_path / "session").exists()


def test_a_killed_proxy_holds_nothing_whatever_its_note_says(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDING, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as proxy:
        assert proxy.stdout is not None
        assert proxy.stdout.readline() == b"held\n"
        assert instance.holder(tmp_path) == instance.Holder(proxy.pid, "http://127.0.0.1:3264")
        proxy.kill()
    assert json.loads((tmp_path / "proxy.json").read_text())["pid"] == proxy.pid
    assert instance.holder(tmp_path) is None
    with instance.hold(tmp_path):
        assert instance.holder(tmp_path) == instance.Holder(os.getpid(), "")


@pytest.mark.parametrize("note", ["", "[]", '{"pid": "1", "url": 5}', None])
def test_a_holder_with_an_unreadable_note_still_holds(tmp_path: Path, note: str | None) -> None:
    with instance.hold(tmp_path):
        (tmp_path / "proxy.json").unlink()
        if note is not None:
            (tmp_path / "proxy.json").write_text(note)
        assert instance.holder(tmp_path) == instance.Holder(0, "")
        with pytest.raises(SessionLocked, match="a process that just starts"), instance.hold(tmp_path):
            pass


def test_looking_keeps_nobody_from_starting(tmp_path: Path) -> None:
    looking = (
        "import sys, time; from pathlib import Path; from qwenproxy import instance\n"
        "print('looks', flush=True)\n"
        "while True: instance.holder(Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", looking, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as looker:
        try:
            assert looker.stdout is not None
            assert looker.stdout.readline() == b"looks\n"
            for _ in range(10):
                with instance.hold(tmp_path):
                    pass
        finally:
            looker.kill()


def test_a_folder_that_cannot_be_held_is_held_by_nobody(tmp_path: Path) -> None:
    (tmp_path / "proxy.lock").mkdir()
    assert instance.holder(tmp_path) is None
    expected = r"^proxy\.lock in the session folder cannot be locked: "
    with pytest.raises(StoreError, match=expected), instance.hold(tmp_path):
        pass
