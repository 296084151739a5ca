"""A file that a person writes; tests/test_api_keys.py tries it out as the keys', in all that can go wrong."""

from __future__ import annotations

import logging
import stat
import sys
from pathlib import Path

import pytest

from qwenproxy.settings import SettingsError
from qwenproxy.watched_file import WatchedFile


def number(text: str) -> int:
    if not text.strip().isdigit():
        raise ValueError("it is no number")
    return int(text)


def watched(folder: Path) -> WatchedFile[int]:
    return WatchedFile(
        folder / "number.txt",
        number,
        7,
        what="the number",
        template="1\n",
        kept="the old one counts",
        counted=lambda value: f"number {value}",
    )


def settle(file: WatchedFile[int]) -> None:
    file.look()
    file.look()


def test_a_template_is_made_once_and_privately(tmp_path: Path) -> None:
    file = watched(tmp_path)
    assert (file.value, list(tmp_path.iterdir())) == (7, [])
    file.read()
    assert file.value == 7, "what was never there says what it says when it is missing"
    file.make()
    file.read()
    assert file.value == 1
    path = tmp_path / "number.txt"
    if sys.platform != "win32":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert not file.open_to_others()
        path.chmod(0o644)
        assert file.open_to_others()
    path.write_text("2")
    file.make()
    assert path.read_text() == "2"


def test_a_change_is_taken_up_once_it_was_seen_twice_alike(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = watched(tmp_path)
    file.make()
    file.read()
    (tmp_path / "number.txt").write_text("23")
    with caplog.at_level(logging.INFO):
        file.look()
        assert file.value == 1
        settle(file)
    assert file.value == 23
    assert caplog.messages == [f"{tmp_path.name}/number.txt was read again: number 23"]


@pytest.mark.parametrize(
    "content", [b"none", b"\xff", b"1" * 2_000_000, None], ids=["text", "bytes", "long", "gone"]
)
def test_what_cannot_be_used_is_told_once_and_changes_nothing(
    content: bytes | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = watched(tmp_path)
    file.make()
    file.read()
    path = tmp_path / "number.txt"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
        with pytest.raises(SettingsError, match=r"^the number of .+/number.txt cannot be used: it is "):
            watched(tmp_path).read()
    for _ in range(3):
        settle(file)
    assert file.value == 1
    (message,) = caplog.messages
    assert message.endswith("; the old one counts")
    path.write_text("44")
    settle(file)
    assert file.value == 44


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "number.txt").mkdir()
    with pytest.raises(SettingsError, match="not a plain file"):
        watched(tmp_path).read()
