"""What clients brought: kept once, found again, gone when it should be."""

from __future__ import annotations

import json
import re
import shutil
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from qwenproxy import store as disk
from qwenproxy.addresses import FILE_ID
from qwenproxy.caller import ANYBODY, Caller
from qwenproxy.errors import BadRequest, StoreError, TooLarge, UnknownFile
from qwenproxy.file_store import NAME_CHARACTERS, FileStore, StoredFile

ANN = Caller("ann", "Ann", frozenset({"files"}))
BOB = Caller("bob", "Bob", frozenset({"files"}))
PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)


class TurnedClock:
    def __init__(self) -> None:
        self.at = datetime(2026, 11, 21, 12, 0, 0, 123_456, tzinfo=UTC)

    def now(self) -> datetime:
        return self.at

    def monotonic_s(self) -> float:
        return self.at.timestamp()


@pytest.fixture
def clock() -> TurnedClock:
    return TurnedClock()


@pytest.fixture
def files(tmp_path: Path, clock: TurnedClock) -> FileStore:
    return FileStore(tmp_path, clock, most_bytes=1000)


def keep(
    files: FileStore,
    content: bytes,
    name: str = "a.txt",
    purpose: str = "user_data",
    caller: Caller = ANYBODY,
) -> StoredFile:
    with files.incoming() as incoming:
        incoming.write(content)
        return files.keep(incoming, name=name, purpose=purpose, caller=caller)


def left(tmp_path: Path, folder: str) -> list[str]:
    return sorted(path.name for path in (tmp_path / "files" / folder).glob("*"))


def reopened(tmp_path: Path, clock: TurnedClock) -> FileStore:
    return FileStore(tmp_path, clock, most_bytes=1000)


def test_what_is_kept_is_what_came(files: FileStore, clock: TurnedClock, tmp_path: Path) -> None:
    file = keep(files, PNG, "cat.txt", caller=ANN)
    assert (file.name, file.type, file.kind, file.size) == ("cat.txt", "image/png", "image", len(PNG))
    assert (file.purpose, file.owner, file.created) == ("user_data", "ann", int(clock.at.timestamp()))
    assert files.path(file).read_bytes() == PNG
    assert re.fullmatch(FILE_ID, file.id)
    assert files.get(file.id, ANN) == file == reopened(tmp_path, clock).get(file.id, ANN)


def test_nothing_is_touched_before_something_comes(files: FileStore, tmp_path: Path) -> None:
    assert files.rows(ANYBODY) == ()
    assert files.sweep(30) == 0
    assert not list(tmp_path.iterdir())


def test_what_is_not_kept_is_gone(files: FileStore, tmp_path: Path) -> None:
    def fail() -> None:
        with files.incoming() as incoming:
            incoming.write(b"words")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with files.incoming() as incoming:
        incoming.write(b"words")
        assert len(left(tmp_path, "incoming")) == 1
    assert not left(tmp_path, "incoming")
    assert not left(tmp_path, "content")


def test_an_empty_file_is_refused(files: FileStore) -> None:
    with pytest.raises(BadRequest, match="empty"):
        keep(files, b"")


def test_no_file_is_larger_than_the_largest(files: FileStore) -> None:
    keep(files, b"x" * 1000)
    with pytest.raises(TooLarge, match="1000 bytes"):
        keep(files, b"x" * 1001)
    with files.incoming(2000) as incoming, pytest.raises(TooLarge):
        incoming.write(b"x" * 1001)
    with files.incoming(10) as incoming, pytest.raises(TooLarge):
        incoming.write(b"x" * 11)


def test_the_same_content_is_there_once_under_each_of_its_names(files: FileStore, tmp_path: Path) -> None:
    first, second = keep(files, b"words", "a.txt"), keep(files, b"words", "b.txt")
    assert first.id != second.id
    assert left(tmp_path, "content") == [first.sha256]
    files.remove(first.id, ANYBODY)
    assert files.path(second).read_bytes() == b"words"
    files.remove(second.id, ANYBODY)
    assert not left(tmp_path, "content")
    with pytest.raises(UnknownFile):
        files.path(second)


def test_what_comes_in_messages_again_is_the_file_that_it_was(files: FileStore) -> None:
    first = keep(files, b"words", purpose="message", caller=ANN)
    assert keep(files, b"words", purpose="message", caller=ANN) == first
    assert keep(files, b"words", purpose="message", caller=BOB) != first
    assert keep(files, b"words", purpose="user_data", caller=ANN) != first


def test_another_keys_file_does_not_exist(files: FileStore) -> None:
    file = keep(files, b"words", caller=ANN)
    assert files.rows(BOB) == ()
    assert files.find(file.id) == file
    for attempt in (files.get, files.remove):
        with pytest.raises(UnknownFile) as refused:
            attempt(file.id, BOB)
        with pytest.raises(UnknownFile) as missing:
            attempt("file-" + "0" * 24, BOB)
        assert str(refused.value) == str(missing.value)
    assert files.get(file.id, ANN) == file


def test_the_newest_comes_first_also_within_a_moment(
    files: FileStore, clock: TurnedClock, tmp_path: Path
) -> None:
    made = [keep(files, b"%d" % number) for number in range(5)]
    clock.at += timedelta(seconds=5)
    made.append(keep(files, b"late"))
    assert list(files.rows(ANYBODY)) == made[::-1]
    assert reopened(tmp_path, clock).rows(ANYBODY) == files.rows(ANYBODY)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("cat.png", "cat.png"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\cat.png", "cat.png"),
        ("a\r\nb\0c.txt", "abc.txt"),
        ("\u202egnp.exe", "gnp.exe"),
        ("\ud800.txt", ".txt"),
        ("", "file.txt"),
        ("..", "file.txt"),
        ("folder/", "file.txt"),
        ("x" * 300 + ".docx", "x" * (NAME_CHARACTERS - 5) + ".docx"),
        ("x." + "y" * 300, "x." + "y" * (NAME_CHARACTERS - 2)),
        ("отчёт 1.txt", "отчёт 1.txt"),
    ],
)
def test_a_name_is_for_people_and_never_a_path(
    files: FileStore, tmp_path: Path, name: str, shown: str
) -> None:
    file = keep(files, b"words", name)
    assert file.name == shown
    assert len(file.name) <= NAME_CHARACTERS
    assert sorted(left(tmp_path, "")) == sorted([f"{file.id}.json", "content", "incoming"])


@pytest.mark.parametrize("record", ["", "{", "[]", "null", '{"id": "x"}', "wrong size", "other id"])
def test_a_damaged_record_stays_and_its_file_says_so(
    files: FileStore, clock: TurnedClock, tmp_path: Path, record: str, caplog: pytest.LogCaptureFixture
) -> None:
    file, whole = keep(files, b"words"), keep(files, b"others")
    path = tmp_path / "files" / f"{file.id}.json"
    value = json.loads(path.read_text())
    odd = {"wrong size": json.dumps(value | {"size": "5"}), "other id": json.dumps(value | {"id": whole.id})}
    path.write_text(odd.get(record, record))
    again = reopened(tmp_path, clock)
    assert again.rows(ANYBODY) == (whole,)
    for _ in range(2):
        with pytest.raises(UnknownFile, match="left as it is"):
            again.get(file.id, ANYBODY)
    assert len([line for line in caplog.messages if file.id in line]) == 1
    again.sweep(1)
    again.remove(whole.id, ANYBODY)
    assert path.read_text() == odd.get(record, record)
    assert file.sha256 in left(tmp_path, "content")


def test_content_that_is_gone_is_an_unknown_file(files: FileStore, tmp_path: Path) -> None:
    file = keep(files, b"words")
    (tmp_path / "files" / "content" / file.sha256).write_bytes(b"cut")
    with pytest.raises(UnknownFile, match="gone"):
        files.path(file)
    assert files.path(keep(files, b"words")).read_bytes() == b"words"
    shutil.rmtree(tmp_path / "files" / "content")
    with pytest.raises(UnknownFile, match="gone"):
        files.path(file)


def test_what_came_in_messages_goes_when_it_is_not_used(
    files: FileStore, clock: TurnedClock, tmp_path: Path
) -> None:
    old, used = keep(files, b"old", purpose="message"), keep(files, b"used", purpose="message")
    wanted = keep(files, b"wanted")
    clock.at += timedelta(days=20)
    files.touch(used)
    clock.at += timedelta(days=20)
    assert files.sweep(0) == 0
    files = reopened(tmp_path, clock)
    assert files.sweep(30) == 1
    assert {file.id for file in files.rows(ANYBODY)} == {used.id, wanted.id}
    assert left(tmp_path, "content") == sorted([used.sha256, wanted.sha256])
    assert old.sha256 not in left(tmp_path, "content")


def test_what_a_killed_proxy_left_is_swept_and_what_comes_now_is_not(
    files: FileStore, tmp_path: Path
) -> None:
    file = keep(files, b"words")
    (tmp_path / "files" / "incoming" / "dead").write_bytes(b"half")
    (tmp_path / "files" / "content" / ("0" * 64)).write_bytes(b"without a record")
    with files.incoming() as incoming:
        files.sweep(30)
        assert len(left(tmp_path, "incoming")) == 1
        incoming.write(b"words")
    assert not left(tmp_path, "incoming")
    assert left(tmp_path, "content") == [file.sha256]


def test_a_disk_that_fails_leaves_nothing_half(
    files: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, value: object) -> None:
        raise StoreError("no space")

    with monkeypatch.context() as patched:
        patched.setattr(disk, "write", full)
        with pytest.raises(StoreError, match="no space"):
            keep(files, b"words")
    assert files.rows(ANYBODY) == ()
    assert not left(tmp_path, "content")
    assert not left(tmp_path, "incoming")
    assert files.path(keep(files, b"words")).read_bytes() == b"words"


def test_a_folder_that_is_no_folder_is_said(files: FileStore, tmp_path: Path) -> None:
    (tmp_path / "files").write_text("in the way")
    with pytest.raises(StoreError, match="folder of the files"):
        keep(files, b"words")
    with pytest.raises(StoreError, match="folder of the files"):
        files.rows(ANYBODY)


def test_content_that_cannot_take_its_place_is_said(files: FileStore, tmp_path: Path) -> None:
    sha256 = keep(files, b"words").sha256
    content = tmp_path / "files" / "content" / sha256
    content.unlink()
    (content / "in the way").mkdir(parents=True)
    with pytest.raises(StoreError, match="cannot be stored"):
        keep(files, b"words")
    assert not left(tmp_path, "incoming")


def test_a_record_that_somebody_deleted_by_hand_is_nothing_to_sweep(
    files: FileStore, clock: TurnedClock, tmp_path: Path
) -> None:
    file = keep(files, b"words", purpose="message")
    (tmp_path / "files" / f"{file.id}.json").unlink()
    clock.at += timedelta(days=40)
    assert files.sweep(30) == 0
    assert reopened(tmp_path, clock).rows(ANYBODY) == ()


def test_many_threads_share_it(files: FileStore, clock: TurnedClock, tmp_path: Path) -> None:
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for step in range(5):
                file = keep(files, b"%d" % (step % 2), purpose="message" if number % 2 else "user_data")
                assert files.path(file).read_bytes() == b"%d" % (step % 2)
                if file.purpose == "user_data":
                    files.remove(file.id, ANYBODY)
        except BaseException as exc:
            failed.append(exc)
            raise

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(files.rows(ANYBODY)) == len(left(tmp_path, "content")) == 2
    assert reopened(tmp_path, clock).rows(ANYBODY) == files.rows(ANYBODY)
