"""Files that must survive whatever happens to their writer."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from filelock import FileLock

from qwenproxy import store
from qwenproxy.errors import SessionDamaged, SessionLocked, StoreError

if os.name != "nt":
    import resource

NOW = datetime(2026, 11, 21, 9, 0, 1, tzinfo=UTC)
posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no such files and modes")


def test_what_was_written_is_read_and_nobody_else_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "deeper" / "tokens.json"
    store.write(path, [{"id": "ä"}])
    assert store.read(path) == [{"id": "ä"}]
    assert "ä" in path.read_text("utf-8")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in (path.parent, path.parent.parent)} == {0o700}
    assert [p.name for p in path.parent.iterdir()] == ["tokens.json"]


def test_no_file_is_none(tmp_path: Path) -> None:
    assert store.read(tmp_path / "nothing.json") is None
    assert store.read_bytes(tmp_path / "no folder" / "nothing.json") is None


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "it is not JSON"),
        (b"[", "it is not JSON"),
        (b'[{"id": "a"}', "it is not JSON"),
        (b"\0\0", "it is not JSON"),
        (b'["\xe9"]', "it is not UTF-8 text"),
        (b"[" * 100_000, "it is nested too deep"),
        (b"[1" + b"0" * 5000 + b"]", ""),
    ],
)
def test_an_unreadable_file_is_an_error_and_stays(tmp_path: Path, raw: bytes, reason: str) -> None:
    path = tmp_path / "tokens.json"
    path.write_bytes(raw)
    with pytest.raises(SessionDamaged, match=r"^tokens\.json in the session folder is damaged \(") as caught:
        store.read(path)
    assert reason in str(caught.value)
    assert path.read_bytes() == raw


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_is_no_damage(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "tokens.json"
    path.write_text('["ä"]', encoding)
    assert store.read(path) == ["ä"]


def test_what_json_cannot_say_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    path.write_text('[NaN, -Infinity, "\\ud83d"]')
    found = store.read(path)
    assert found == [None, None, "\ud83d"]
    store.write(path, found)
    assert store.read(path) == found


def test_a_value_that_is_no_json_leaves_the_file_and_no_rubbish(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    store.write(path, [1])
    with pytest.raises(TypeError):
        store.write(path, {1, 2})
    assert store.read(path) == [1]
    assert [p.name for p in tmp_path.iterdir()] == ["tokens.json"]


def test_a_huge_file_is_neither_read_nor_made(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    with path.open("wb") as file:
        file.truncate(store.LARGEST_BYTES + 1)
    with pytest.raises(SessionDamaged, match="larger than 64 MiB"):
        store.read(path)
    assert len(store.read_bytes(path, whole=False) or b"") == store.LARGEST_BYTES
    with pytest.raises(StoreError, match="too large"):
        store.write_text(tmp_path / "new.json", "x" * (store.LARGEST_BYTES // 4 + 1))
    assert not (tmp_path / "new.json").exists()


PLANTED: dict[str, Callable[[Path], object]] = {
    "a link": lambda path: path.symlink_to("elsewhere"),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a folder": Path.mkdir,
    "a pipe": lambda path: os.mkfifo(path),
}


@posix
@pytest.mark.parametrize("planted", PLANTED)
def test_what_is_no_plain_file_is_neither_followed_nor_replaced(tmp_path: Path, planted: str) -> None:
    (tmp_path / "elsewhere").write_text("[1]")
    path = tmp_path / "tokens.json"
    PLANTED[planted](path)
    before = path.lstat()
    for refused in (lambda: store.read(path), lambda: store.write(path, [2])):
        with pytest.raises(SessionDamaged, match="is not a plain file; move it away"):
            refused()
    assert path.lstat() == before
    assert (tmp_path / "elsewhere").read_text() == "[1]"
    assert {p.name for p in tmp_path.iterdir()} == {"elsewhere", "tokens.json"}


@posix
@pytest.mark.parametrize("planted", ["a link", "a folder"])
def test_a_lock_leads_nowhere_else(tmp_path: Path, planted: str) -> None:
    (tmp_path / "elsewhere").write_text("mine")
    lock = tmp_path / "tokens.json.lock"
    PLANTED[planted](lock)
    expected = r"^tokens\.json\.lock in the session folder cannot be locked: "
    with pytest.raises(StoreError, match=expected), store.locked(lock, wait_s=0.1):
        pass
    assert (tmp_path / "elsewhere").read_text() == "mine"


def test_an_error_names_no_path_of_this_computer(tmp_path: Path) -> None:
    (tmp_path / "session").write_text("")
    for refused in (
        lambda: store.write(tmp_path / "session" / "tokens.json", []),
        lambda: store.remove(tmp_path / "session" / "tokens.json"),
        lambda: store.put_aside(tmp_path / "tokens.json", NOW),
    ):
        with pytest.raises(StoreError) as caught:
            refused()
        assert str(tmp_path) not in str(caught.value)
        assert caught.value.args[0].startswith("tokens.json ")


def test_a_lock_held_elsewhere_is_said_not_waited_out(tmp_path: Path) -> None:
    lock = tmp_path / "tokens.json.lock"
    expected = r"^tokens\.json in the session folder is locked by another program$"
    with FileLock(lock), pytest.raises(SessionLocked, match=expected), store.locked(lock, wait_s=0.1):
        pass


LOCKING = """
import sys
from pathlib import Path
from qwenproxy import store
with store.locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@posix
def test_the_lock_of_a_stopped_process_is_an_error_and_of_a_killed_one_free(tmp_path: Path) -> None:
    lock = tmp_path / "tokens.json.lock"
    command = [sys.executable, "-c", LOCKING, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        holder.send_signal(signal.SIGSTOP)
        began_s = time.monotonic()
        with pytest.raises(SessionLocked), store.locked(lock, wait_s=0.2):
            pass
        assert time.monotonic() - began_s < 5
        holder.kill()
        holder.wait(10)
        with store.locked(lock, wait_s=0.2):
            pass


def test_a_lock_taken_in_one_thread_may_be_given_back_in_another(tmp_path: Path) -> None:
    held = store.locked(tmp_path / "lock", wait_s=0.1)
    with ThreadPoolExecutor(1) as other:
        other.submit(held.__enter__).result()
    held.__exit__(None, None, None)
    with store.locked(tmp_path / "lock", wait_s=0.1):
        pass


def test_removing_what_is_not_there_is_no_error(tmp_path: Path) -> None:
    store.write(tmp_path / "a", 1)
    for _ in range(2):
        store.remove(tmp_path / "a")
        store.remove_folder(tmp_path / "b")
    assert not list(tmp_path.iterdir())


@posix
def test_a_removed_link_leaves_what_it_leads_to(tmp_path: Path) -> None:
    store.write(tmp_path / "real" / "inside", 1)
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real" / "out").symlink_to(tmp_path / "file")
    (tmp_path / "file").write_text("stays")
    store.remove_folder(tmp_path / "link")
    assert (tmp_path / "real" / "inside").exists()
    store.remove_folder(tmp_path / "real")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_the_rubbish_of_dead_writers_goes_and_nothing_else(tmp_path: Path) -> None:
    ours, anothers, old = (f".{name}.a1b2c3_8.tmp" for name in ("tokens.json", "proxy.json", "chats.jsonl"))
    stays = {"tokens.json", ".tokens.json.tmp", ".tokens.json.ABCDEFGH.tmp", "notes.tmp", anothers}
    for name in {*stays, ours, old}:
        (tmp_path / name).write_text("secret")
    (tmp_path / ".tokens.json.folder_8.tmp").mkdir()
    hours_ago = time.time() - store.ABANDONED_S - 1
    os.utime(tmp_path / old, (hours_ago, hours_ago))
    store.sweep(tmp_path, ["tokens.json"])
    assert {p.name for p in tmp_path.iterdir()} == {*stays, ".tokens.json.folder_8.tmp"}
    store.sweep(tmp_path / "nowhere", ["tokens.json"])


def test_what_is_put_aside_is_private_and_kept_once(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    path.write_text("damaged")
    path.chmod(0o644)
    first = store.put_aside(path, NOW)
    assert first == "tokens.json.corrupt-20261121T090001Z"
    assert store.put_aside(path, NOW) == first
    store.write(path, [1])
    assert store.put_aside(path, NOW) == f"{first}-2"
    assert (tmp_path / first).read_text() == "damaged"
    assert stat.S_IMODE((tmp_path / first).stat().st_mode) == 0o600
    assert store.read(path) == store.read(tmp_path / f"{first}-2") == [1]


def test_where_no_file_has_two_names_it_is_moved_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refused)
    path = tmp_path / "tokens.json"
    path.write_text("damaged")
    assert (tmp_path / store.put_aside(path, NOW)).read_text() == "damaged"
    assert not path.exists()


@posix
@pytest.mark.parametrize(("mode", "opened"), [(0o644, True), (0o640, True), (0o600, False), (0o400, False)])
def test_a_file_is_made_private_when_it_is_not(tmp_path: Path, mode: int, opened: bool) -> None:
    path = tmp_path / "tokens.json"
    path.write_text("")
    path.chmod(mode)
    assert store.make_private(path) is opened
    assert stat.S_IMODE(path.stat().st_mode) == (0o600 if opened else mode)


@posix
def test_folders_of_everybody_and_links_are_left_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    (tmp_path / "link").symlink_to("elsewhere")
    (tmp_path / "elsewhere").write_text("")
    (tmp_path / "elsewhere").chmod(0o644)
    assert not store.make_private(tmp_path)
    assert not store.make_private(tmp_path / "link")
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o1777
    assert stat.S_IMODE((tmp_path / "elsewhere").stat().st_mode) == 0o644


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """Files may not grow beyond `size` bytes, as if the disk were full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@posix
def test_a_disk_that_fails_is_told_and_the_old_file_stays_whole(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    store.write(path, ["old"])
    with disk_of(100), pytest.raises(StoreError, match=r"^tokens\.json cannot be written: File too large$"):
        store.write(path, ["x" * 1000])
    assert store.read(path) == ["old"]
    assert [p.name for p in tmp_path.iterdir()] == ["tokens.json"]
    store.write(path, ["new"])
    assert store.read(path) == ["new"]


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
