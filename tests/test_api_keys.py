from __future__ import annotations

import hashlib
import logging
import os
import stat
import sys
from pathlib import Path

import pytest

from qwenproxy.api_keys import TEMPLATE, KeyRing, counted, key_files, parse
from qwenproxy.caller import SCOPES
from qwenproxy.settings import SettingsError

ONE, TWO = "sk-the-first-of-the-long-keys", "sk-the-second-of-the-long-keys"
SECRET = "hunter22"
needs_rights = pytest.mark.skipif(sys.platform == "win32", reason="Windows has other rights")


def hashed(key: str) -> str:
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


def ring_of(folder: Path, text: str | bytes | None = None) -> KeyRing:
    """Over a session folder and the older proxy's `src` beside it; not yet opened."""
    if text is not None:
        write(folder, text)
    return KeyRing(key_files(folder / "session"))


def write(folder: Path, text: str | bytes, name: str = "session") -> Path:
    path = folder / name / "Authorization.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def settle(ring: KeyRing) -> None:
    """What two looks of a serving proxy do."""
    ring.look()
    ring.look()


# ---- a file's text ----


def test_a_line_is_a_key_and_what_it_may() -> None:
    text = f"""
# the family
{ONE}
\t{TWO}   name=phone  scopes=chat,files rpm=60\tconcurrency=4 # the old one
    # {SECRET}
{hashed("third").upper()} scopes=accounts
"""
    first, second, third = parse(text.replace("\n", "\r\n"))
    assert (first.caller.name, first.caller.scopes, first.rpm, first.concurrency) == ("", SCOPES, None, None)
    assert second.caller.scopes == {"chat", "files"}
    assert (second.caller.name, second.rpm, second.concurrency) == ("phone", 60, 4)
    assert third.caller.scopes == {"accounts"}
    assert third.digest == hashlib.sha256(b"third").digest()
    assert first.caller.mark == "key_" + hashlib.sha256(ONE.encode()).hexdigest()[:16]


def test_the_same_key_counts_once_and_as_it_came_first() -> None:
    (key,) = parse(f"{ONE} name=first\n{ONE} name=second\n{hashed(ONE)}")
    assert key.caller.name == "first"


def test_signs_that_keys_may_hold() -> None:
    for key in ("YWJj==", "a#b", "sk-a=b", "'quoted'", "a,b;c"):
        assert parse(key)[0].digest == hashlib.sha256(key.encode()).digest(), key
    assert [key.short for key in parse(f"abc\n{ONE}\n{hashed('abcd')}")] == [True, False, False]


@pytest.mark.parametrize(
    "line",
    [
        f"my {SECRET} key",
        f"{ONE} {SECRET}",
        f"{ONE} {SECRET}=1",
        f"{ONE} name",
        f"{ONE} name=",
        f"{ONE} name=a name=b",
        f"{ONE} Name=a",
        f"{ONE} name={'x' * 61}",
        f"{ONE} scopes=chat,{SECRET}",
        f"{ONE} scopes=chat,",
        f"{ONE} scopes=admin",
        f"{ONE} rpm=0",
        f"{ONE} rpm=-1",
        f"{ONE} rpm=1.5",
        f"{ONE} rpm=²",
        f"{ONE} rpm={'9' * 5000}",
        f"{ONE} concurrency=many",
        f"name={SECRET}",
        f"rpm=60 {ONE}",
        "sha256:",
        "sha256:" + "0" * 63,
        "sha256:" + SECRET,
        hashed(""),
        f"ключ-{SECRET}",
        f"{SECRET}\x00",
        SECRET * 200,
    ],
)
def test_a_line_that_is_no_key_is_named_by_its_number_alone(line: str) -> None:
    with pytest.raises(ValueError, match=r"^line 3: ") as caught:
        parse(f"# one\n{TWO}\n{line}\n")
    assert SECRET not in str(caught.value)
    assert ONE not in str(caught.value)


# ---- the files ----


def test_without_a_file_a_private_template_is_written_and_keys_are_off(tmp_path: Path) -> None:
    ring = ring_of(tmp_path)
    assert not (tmp_path / "session").exists()
    umask = os.umask(0)
    try:
        ring.open()
    finally:
        os.umask(umask)
    path = tmp_path / "session" / "Authorization.txt"
    assert path.read_text() == TEMPLATE
    if sys.platform != "win32":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (ring.on, ring.keys, parse(TEMPLATE)) == (False, (), ())
    assert not (tmp_path / "src").exists()


@pytest.mark.parametrize("text", ["", "\n\n", "# only\r\n  # comments\r\n", "\ufeff", "\ufeff# x"])
def test_empty_means_off(tmp_path: Path, text: str) -> None:
    ring = ring_of(tmp_path, text)
    ring.open()
    assert not ring.on
    assert (tmp_path / "session" / "Authorization.txt").read_text("utf-8") == text.replace("\r\n", "\n")


def test_the_older_proxys_file_counts_too(tmp_path: Path) -> None:
    write(tmp_path, f"\ufeff{ONE} name=older\r\n{TWO} name=other\r\n", "src")
    ring = ring_of(tmp_path, f"{hashed(ONE)} name=ours scopes=chat")
    ring.open()
    assert [key.caller.name for key in ring.keys] == ["ours", "other"]
    found = ring.find([ONE])
    assert found is not None
    assert found.caller.scopes == {"chat"}


def test_the_older_proxys_file_is_looked_for_beside_the_start_script_too(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    write(tmp_path, ONE, "src")  # tests run in tmp_path
    ring = KeyRing(key_files(elsewhere / "session"))
    ring.open()
    assert ring.on
    assert len(key_files(Path("session"))) == 2


def _folder(path: Path) -> None:
    path.mkdir()


def _link(path: Path) -> None:
    path.symlink_to("/dev/null")


def _loose_link(path: Path) -> None:
    path.symlink_to("nowhere")


def _no_text(path: Path) -> None:
    path.write_bytes(ONE.encode("utf-16"))


def _no_key(path: Path) -> None:
    path.write_text(f"{ONE}\n{ONE} {SECRET}\n")


def _large(path: Path) -> None:
    path.write_text("#" * (1024 * 1024 + 1))


def _pipe(path: Path) -> None:
    os.mkfifo(path)


@needs_rights
@pytest.mark.parametrize("name", ["session", "src"])
@pytest.mark.parametrize("make", [_folder, _link, _loose_link, _no_text, _no_key, _large, _pipe])
def test_what_cannot_be_read_is_refused_and_never_means_off(tmp_path: Path, make: object, name: str) -> None:
    path = tmp_path / name / "Authorization.txt"
    path.parent.mkdir()
    assert callable(make)
    make(path)
    with pytest.raises(
        SettingsError, match=f"^the API keys of {name}/Authorization.txt cannot be used: "
    ) as c:
        ring_of(tmp_path).open()
    said = str(c.value)
    assert not any(part in said for part in (SECRET, ONE, str(tmp_path), "\n"))


@needs_rights
def test_a_file_without_the_right_to_read_is_refused(tmp_path: Path) -> None:
    write(tmp_path, ONE).chmod(0)
    ring, user = ring_of(tmp_path), os.geteuid()
    try:
        if user == 0:  # who may read everything
            os.seteuid(65_534)
        with pytest.raises(SettingsError, match="Permission denied"):
            ring.read()
    finally:
        os.seteuid(user)


@needs_rights
def test_a_start_makes_our_file_private_and_says_of_others(tmp_path: Path) -> None:
    ours, older = write(tmp_path, ONE), write(tmp_path, TWO, "src")
    ours.chmod(0o644)
    older.chmod(0o644)
    ring = ring_of(tmp_path)
    ring.read()
    assert list(ring.open_to_others()) == ["session/Authorization.txt", "src/Authorization.txt"]
    ring.open()
    assert list(ring.open_to_others()) == ["src/Authorization.txt"]


def test_who_calls_is_found_by_any_of_the_candidates(tmp_path: Path) -> None:
    ring = ring_of(tmp_path, f"{ONE} name=one\n{hashed(TWO)} name=two")
    ring.open()
    found = [ring.find(each) for each in ([ONE], ["wrong", TWO], [ring.run_key])]
    assert [key and key.caller.name for key in found] == ["one", "two", "this computer"]
    for wrong in ([], [""], [ONE + "x"], [ONE[:-1]], [ONE.upper()], ["ключ"], [hashed(TWO)]):
        assert ring.find(wrong) is None, wrong
    own = found[2]
    assert own is not None
    assert (own.caller.scopes, own.caller.mark) == (SCOPES, "")
    assert ring.run_key != ring_of(tmp_path).run_key


# ---- while it serves ----


def test_a_change_is_taken_up_when_it_was_seen_twice(tmp_path: Path) -> None:
    ring = ring_of(tmp_path)
    ring.open()
    path = write(tmp_path, ONE)
    ring.look()
    assert not ring.on, "somebody may still be writing"
    ring.look()
    assert ring.find([ONE]) is not None
    path.write_text(f"{TWO}\n")
    settle(ring)
    assert ring.find([ONE]) is None
    assert ring.find([TWO]) is not None
    write(tmp_path, ONE, "src")
    settle(ring)
    assert len(ring.keys) == 2


def test_a_file_that_is_emptied_for_a_moment_opens_nothing(tmp_path: Path) -> None:
    ring = ring_of(tmp_path, ONE)
    ring.open()
    write(tmp_path, "")
    ring.look()
    assert ring.on
    write(tmp_path, f"{ONE}\n{TWO}\n")
    settle(ring)
    assert len(ring.keys) == 2


def test_emptied_means_off(tmp_path: Path) -> None:
    ring = ring_of(tmp_path, ONE)
    ring.open()
    write(tmp_path, "# none\n")
    settle(ring)
    assert not ring.on


@needs_rights
@pytest.mark.parametrize("make", [None, _folder, _loose_link, _no_text, _no_key])
def test_what_breaks_while_serving_keeps_the_keys_and_is_logged_once(
    tmp_path: Path, make: object, caplog: pytest.LogCaptureFixture
) -> None:
    older = write(tmp_path, TWO, "src")
    ring = ring_of(tmp_path, ONE)
    ring.open()
    older.unlink()
    if callable(make):
        make(older)
    for _ in range(3):
        settle(ring)
    assert ring.find([ONE]) is not None
    assert ring.find([TWO]) is not None
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
    assert "the keys it had still count" in errors[0].getMessage()
    write(tmp_path, f"{ONE} name=changed")
    settle(ring)
    assert [key.caller.name for key in ring.keys] == ["changed", ""], "the other file is followed meanwhile"
    if older.is_dir():
        older.rmdir()
    else:
        older.unlink(missing_ok=True)
    write(tmp_path, "# none", "src")
    settle(ring)
    assert ring.find([TWO]) is None


def test_rights_that_change_are_a_change(tmp_path: Path) -> None:
    path = write(tmp_path, ONE)
    ring = ring_of(tmp_path)
    ring.open()
    before = ring._files[0]._stamp()
    path.chmod(0o400)
    assert (ring._files[0]._stamp() != before) == (sys.platform != "win32")


def test_keys_are_counted_in_words() -> None:
    assert [counted(number) for number in range(3)] == ["no API key", "1 API key", "2 API keys"]
