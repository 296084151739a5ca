"""A file on its way in."""

from __future__ import annotations

import hashlib
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from qwenproxy.errors import StoreError, TooLarge
from qwenproxy.incoming import Incoming, off_the_loop
from qwenproxy.media_types import HEAD_BYTES


def test_it_is_counted_and_hashed_on_its_way_to_the_disk(tmp_path: Path) -> None:
    pieces = [b"a" * 1000, b"b" * HEAD_BYTES, b"c"]
    incoming = Incoming(tmp_path / "new", 100_000)
    for piece in pieces:
        incoming.write(piece)
    whole = b"".join(pieces)
    incoming.settle()
    assert (tmp_path / "new").read_bytes() == whole
    assert incoming.size == len(whole)
    assert incoming.sha256 == hashlib.sha256(whole).hexdigest()
    assert incoming.head == whole[:HEAD_BYTES]


@pytest.mark.skipif(sys.platform == "win32", reason="no such modes")
def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    incoming = Incoming(tmp_path / "new", 10)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600
    incoming.drop()


def test_one_that_is_too_large_is_refused_at_the_byte_too_many(tmp_path: Path) -> None:
    incoming = Incoming(tmp_path / "new", 10)
    incoming.write(b"0123456789")
    with pytest.raises(TooLarge, match="10 bytes"):
        incoming.write(b"x")
    assert incoming.size == (tmp_path / "new").stat().st_size == 10
    incoming.drop()


def test_what_is_dropped_is_gone_and_may_be_dropped_again(tmp_path: Path) -> None:
    incoming = Incoming(tmp_path / "new", 10)
    incoming.write(b"words")
    incoming.drop()
    incoming.drop()
    assert not list(tmp_path.iterdir())


def test_it_never_writes_over_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "new").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="cannot be taken in"):
        Incoming(tmp_path / "new", 10)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_a_full_disk_is_said_without_its_path(tmp_path: Path) -> None:
    incoming = Incoming(tmp_path / "new", 10)
    with Path("/dev/full").open("wb", buffering=0) as full, incoming._file as kept:
        incoming._file = full
        with pytest.raises(StoreError) as failed:
            incoming.write(b"words")
        incoming._file = kept
    assert "No space left" in str(failed.value)
    assert "/" not in str(failed.value)


def test_what_was_dropped_cannot_be_settled(tmp_path: Path) -> None:
    incoming = Incoming(tmp_path / "new", 10)
    incoming.drop()
    with pytest.raises(ValueError, match="closed"):
        incoming.settle()


@pytest.mark.anyio
async def test_it_is_made_and_removed_off_the_loop_also_when_nobody_waits_any_more(tmp_path: Path) -> None:
    threads: list[int] = []

    @contextmanager
    def door() -> Iterator[Incoming]:
        threads.append(threading.get_ident())
        incoming = Incoming(tmp_path / "new", 10)
        try:
            yield incoming
        finally:
            threads.append(threading.get_ident())
            incoming.drop()

    with anyio.CancelScope() as scope:
        async with off_the_loop(door()) as incoming:
            assert incoming.path.exists()
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert not incoming.path.exists()
    assert len(threads) == 2
    assert threading.get_ident() not in threads
