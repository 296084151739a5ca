"""Old and damaged session folders: started with, or refused in one line, and nothing lost."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp

import pytest

from qwenproxy.accounts.registry import Registry
from qwenproxy.clock import SystemClock
from qwenproxy.errors import SessionDamaged, StoreError
from tests.accounts.old_sessions import DAMAGES, IDS, ROWS, TOKENS, Damage, old_session, token, write_rows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return old_session(tmp_path / "session")


def opened(folder: Path) -> tuple[Registry, tuple[str, ...]]:
    """A start; what it says of modes apart, which old folders never have right."""
    registry = Registry(folder, SystemClock())
    said = registry.open()
    return registry, tuple(line for line in said if "was open to others" not in line)


def contents(folder: Path) -> dict[str, bytes]:
    """Every plain file; of a huge one the start and the length."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            size = path.stat().st_size
            with path.open("rb") as file:
                start = file.read(100_000)
            found[path.relative_to(folder).as_posix()] = start if size == len(start) else start + b"%d" % size
    return found


def readable_tokens(files: dict[str, bytes]) -> set[str]:
    """Those that stand whole in any file that is to tell them."""
    telling = [
        raw for name, raw in files.items() if name.startswith("tokens.json") or name.endswith("token.txt")
    ]
    return {t for t in TOKENS.values() if any(t.encode() in raw.replace(b"\0", b"") for raw in telling)}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
def test_a_damaged_session_starts_or_says_why_not_and_loses_nothing(folder: Path, damage: Damage) -> None:
    damage.do(folder)
    before = contents(folder)
    if damage.refused:
        with pytest.raises(SessionDamaged, match=damage.refused):
            Registry(folder, SystemClock()).open()
        assert before.items() <= contents(folder).items()
        return

    registry, said = opened(folder)
    after = contents(folder)
    assert len(said) == bool(damage.says), said
    assert not damage.says or re.search(damage.says, said[0])
    accounts = registry.accounts()
    assert readable_tokens(before) <= {registry.token(account.id) for account in accounts}
    assert len(accounts) >= len(IDS)
    for name, raw in before.items():
        if not name.endswith(".tmp"):
            kept = {
                raw for other, raw in after.items() if other == name or other.startswith(f"{name}.corrupt-")
            }
            assert name.startswith("tokens.json") or raw in kept, name
            assert not damage.says or name != "tokens.json" or raw in kept or raw == b"[]", name
    assert not [name for name in after if name.endswith(".tmp")]
    assert not any(secret in "".join(said) for secret in TOKENS.values())
    assert (folder.parent / "session").stat().st_mode & 0o077 == 0

    again, more = opened(folder)
    assert more == (said if "link to nothing" in damage.name else ())
    assert again.accounts() == accounts
    assert contents(folder) == after


def test_a_registry_cut_anywhere_comes_back_with_its_states(folder: Path) -> None:
    whole = (folder / "tokens.json").read_bytes()
    opened(folder)
    for cut in range(0, len(whole) - 1, 97):
        (folder / "tokens.json").write_bytes(whole[:cut])
        registry, said = opened(folder)
        assert re.search(r"damaged and put aside .*; 3 accounts were found again$", said[0])
        assert [account.invalid for account in registry.accounts()] == [False, False, True]
        assert json.loads((folder / "tokens.json").read_text()) == list(ROWS)
    assert len(list(folder.glob("tokens.json.corrupt-*"))) == len(range(0, len(whole) - 1, 97))


def test_what_the_damaged_registry_still_tells_counts_more_than_its_mirror(folder: Path) -> None:
    opened(folder)
    newer = [{**ROWS[0], "token": token("newer")}, {**ROWS[1], "invalid": True}]
    (folder / "tokens.json").write_text(json.dumps(newer)[:-1] + ", {")
    registry, _ = opened(folder)
    assert registry.token(IDS[0]) == newer[0]["token"]
    assert [account.invalid for account in registry.accounts()] == [False, True, True]
    assert json.loads((folder / "tokens.json").read_text())[1]["note"] == ROWS[1]["note"]


def test_an_emptied_registry_of_ours_stays_empty_and_folders_nobody_names_are_left_alone(
    folder: Path,
) -> None:
    registry, _ = opened(folder)
    for account_id in IDS[:2]:
        registry.remove(account_id)
    write_rows(folder, [])
    (folder / "tokens.json.bak").write_text("[]")
    assert opened(folder)[1] == ()
    assert registry.accounts() == ()
    assert (folder / "accounts" / IDS[2] / "token.txt").read_text() == TOKENS[IDS[2]]


def test_a_start_that_died_while_healing_is_healed_by_the_next(folder: Path) -> None:
    (folder / "tokens.json").write_bytes(b"[{")
    os.link(folder / "tokens.json", folder / "tokens.json.corrupt-20261121T100000Z")
    registry, said = opened(folder)
    assert "put aside as tokens.json.corrupt-20261121T100000Z; 3 accounts" in said[0]
    assert len(registry.accounts()) == 3
    assert [path.name for path in folder.glob("*.corrupt-*")] == ["tokens.json.corrupt-20261121T100000Z"]


def test_a_sound_old_registry_is_not_written_again(folder: Path) -> None:
    registry = Registry(folder, SystemClock())
    stamp = registry.stamp()
    registry.open()
    assert registry.stamp() == stamp
    assert json.loads((folder / "tokens.json.bak").read_text()) == list(ROWS)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_a_fresh_clones_folder_is_closed_without_a_word(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("*")
    tmp_path.chmod(0o755)
    assert Registry(tmp_path, SystemClock()).open() == ()
    assert tmp_path.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_everything_becomes_private_and_that_is_said_once(folder: Path) -> None:
    folder.chmod(0o755)
    registry = Registry(folder, SystemClock())
    registry.open()
    (folder / "tokens.json").chmod(0o644)
    assert registry.open() == ("the session folder was open to others on this computer; it is private now",)
    assert registry.open() == ()
    ours = [
        folder,
        folder / "accounts",
        folder / "accounts" / IDS[0],
        folder / "accounts" / IDS[0] / "token.txt",
    ]
    for path in [*ours, *folder.glob("tokens.json*")]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_a_session_folder_that_is_a_link_is_its_owners_choice(tmp_path: Path) -> None:
    real = old_session(tmp_path / "elsewhere")
    real.chmod(0o755)
    (tmp_path / "session").symlink_to(real)
    registry, said = opened(tmp_path / "session")
    assert said == ()
    assert len(registry.accounts()) == 3
    assert stat.S_IMODE(real.stat().st_mode) == 0o700


def test_a_session_folder_that_is_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "session").write_text("")
    with pytest.raises(SessionDamaged, match="something that is no folder"):
        opened(tmp_path / "session")


def test_without_a_session_folder_nothing_is_made(tmp_path: Path) -> None:
    registry, said = opened(tmp_path / "session")
    assert (registry.accounts(), said, registry.there()) == ((), (), False)
    assert not (tmp_path / "session").exists()


NOBODY = 65_534


@pytest.fixture
def foreign() -> Iterator[Path]:
    """A session folder while this process is somebody whom file modes bind, as they do not bind root."""
    if not hasattr(os, "geteuid"):
        pytest.skip("this system has no such modes")
    me = os.geteuid()
    top = Path(mkdtemp())
    folder = old_session(top / "session")
    try:
        if me == 0:
            for path in [top, folder, *folder.rglob("*")]:
                os.chown(path, NOBODY, NOBODY)
            os.seteuid(NOBODY)
        yield folder
    finally:
        os.seteuid(me)
        for path in (folder, folder / "accounts"):
            path.chmod(0o700)
        shutil.rmtree(top)


def test_a_registry_that_may_not_be_read_is_not_taken_for_a_damaged_one(foreign: Path) -> None:
    (foreign / "tokens.json").chmod(0)
    before = {path.name for path in foreign.iterdir()}
    expected = (
        r"^tokens\.json in the session folder cannot be read \(Permission denied\); it was left as it is$"
    )
    with pytest.raises(SessionDamaged, match=expected):
        opened(foreign)
    assert {path.name for path in foreign.iterdir()} - before == {"tokens.json.lock"}


def test_a_session_that_may_not_be_written_is_served_as_it_is(foreign: Path) -> None:
    (foreign / "accounts").chmod(0o500)
    foreign.chmod(0o500)
    registry, said = opened(foreign)
    assert len(said) == 1
    assert said[0].startswith(
        "the session folder cannot be written, so nothing new will be kept: tokens.json.lock"
    )
    assert len(registry.accounts()) == 3


def test_a_deletion_that_cannot_be_finished_is_said_and_stays_one(foreign: Path) -> None:
    registry, _ = opened(foreign)
    (foreign / "accounts" / IDS[0]).chmod(0o500)
    with pytest.raises(StoreError, match=f"the folder {IDS[0]} cannot be deleted: Permission denied"):
        registry.remove(IDS[0])
    assert [account.id for account in registry.accounts()] == list(IDS[1:])
    _, said = opened(foreign)
    assert [line.partition(":")[0] for line in said] == [f"deleting account {IDS[0]} could not be finished"]
    (foreign / "accounts" / IDS[0]).chmod(0o700)
    assert opened(foreign)[1] == ()
    assert not (foreign / "accounts" / IDS[0]).exists()
    assert TOKENS[IDS[0]].encode() not in b"".join(contents(foreign).values())


def test_what_belongs_to_somebody_else_cannot_be_made_private_and_that_is_said(foreign: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can give files away")
    os.seteuid(0)
    os.chown(foreign / "tokens.json", 0, 0)
    os.seteuid(NOBODY)
    registry, said = opened(foreign)
    assert said == ("the session folder belongs to somebody else and cannot be made private",)
    assert len(registry.accounts()) == 3
