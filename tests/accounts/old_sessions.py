"""Session folders as FreeQwenApi leaves them, and what can have happened to one.

A damage changes a folder that was sound; `says` is what a person reads of it at the next start ("" nothing),
`refused` what is raised instead.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt

IDS = ("acc_1752745840684", "acc_1752745890062", "acc_1752746000000")
KEY = "k" * 32


def token(owner: str, exp: int = 1_900_000_000, **claims: Any) -> str:
    """As eras A and B make them: no time of making, a month to live."""
    return jwt.encode({"id": owner, "last_password_change": 1_750_000_000, "exp": exp, **claims}, KEY)


TOKENS = {account_id: token(f"user-{account_id}") for account_id in IDS}
ROWS: tuple[dict[str, Any], ...] = (
    {"id": IDS[0], "token": TOKENS[IDS[0]], "resetAt": None},
    {"id": IDS[1], "token": TOKENS[IDS[1]], "resetAt": "2026-11-21T10:00:00.000Z", "note": "Вторая"},
    {"id": IDS[2], "token": TOKENS[IDS[2]], "resetAt": None, "invalid": True},
)


def old_session(folder: Path) -> Path:
    """Three accounts, and the files of that proxy that are none of our business."""
    folder.mkdir(parents=True)
    write_rows(folder, list(ROWS))
    for account_id in IDS:
        (folder / "accounts" / account_id).mkdir(parents=True)
        (folder / "accounts" / account_id / "token.txt").write_text(TOKENS[account_id])
        (folder / "accounts" / account_id / "cookies.json").write_text("[]")
    (folder / "history").mkdir()
    (folder / "history" / "1f2e.json").write_text('{"messages": []}')
    (folder / "auth_token.txt").write_text("an older single token")
    (folder / "state.json").write_text('{"cookies": []}')
    return folder


def write_rows(folder: Path, rows: Any) -> None:
    (folder / "tokens.json").write_text(json.dumps(rows, indent=2, ensure_ascii=False), "utf-8")


@dataclass(frozen=True)
class Damage:
    name: str
    do: Callable[[Path], object]
    says: str = ""
    refused: str = ""


REBUILT = (
    r"^tokens\.json was damaged and put aside as tokens\.json\.corrupt-\d{8}T\d{6}Z; 3 accounts were found"
)
MISSING = r"^tokens\.json was missing; 3 accounts were found again$"
UNFIT = r"^tokens\.json held \d without a usable id of its own; \d of them got a new one"
NO_FILE = r"^tokens\.json in the session folder is not a plain file; move it away$"


def raw(content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / "tokens.json").write_bytes(content)


def changed(change: Callable[[bytes], bytes], name: str = "tokens.json") -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def with_rows(change: Callable[[list[dict[str, Any]]], Any]) -> Callable[[Path], object]:
    return lambda folder: write_rows(folder, change([dict(row) for row in ROWS]))


def with_row(account: int, **fields: Any) -> Callable[[Path], object]:
    return with_rows(lambda rows: [{**r, **fields} if r["id"] == IDS[account] else r for r in rows])


def replaced(make: Callable[[Path], object], name: str = "tokens.json") -> Callable[[Path], object]:
    """Something else at the file's place."""

    def do(folder: Path) -> None:
        (folder / name).rename(folder / "elsewhere")
        make(folder / name)

    return do


def per_account(do: Callable[[Path], object]) -> Callable[[Path], object]:
    """To the folder of every account."""
    return lambda folder: [do(folder / "accounts" / account_id) for account_id in IDS]


def no_folders(folder: Path) -> None:
    for account_id in IDS:
        for path in (folder / "accounts" / account_id).iterdir():
            path.unlink()
        (folder / "accounts" / account_id).rmdir()


def only_the_mirror(folder: Path) -> None:
    no_folders(folder)
    (folder / "tokens.json").rename(folder / "tokens.json.bak")


def both_damaged(folder: Path) -> None:
    (folder / "tokens.json.bak").write_bytes((folder / "tokens.json").read_bytes()[:500])
    (folder / "tokens.json").write_bytes(b"")


def huge(folder: Path) -> None:
    with (folder / "tokens.json").open("ab") as file:
        file.truncate(100_000_000)


def left_temporary(folder: Path) -> None:
    for name in (".tokens.json.a1b2c3d4.tmp", f"accounts/{IDS[0]}/.state.json.zzzzzzzz.tmp"):
        (folder / name).write_text("torn")


def truncated_without_folders(folder: Path) -> None:
    no_folders(folder)
    changed(lambda text: text[: text.rindex(b'"resetAt"')])(folder)


DAMAGES = (
    Damage("sound", lambda folder: None),
    Damage("empty", raw(b""), REBUILT),
    Damage(
        "an empty list beside folders", raw(b"[]"), "^another program had emptied .*; 3 accounts were found"
    ),
    Damage("null", raw(b"null"), REBUILT),
    Damage("an object", raw(b"{}"), REBUILT),
    Damage("a table by id", with_rows(lambda rows: {row["id"]: row for row in rows}), REBUILT),
    Damage("zeros after a power cut", changed(lambda text: bytes(len(text))), REBUILT),
    Damage("half zeros", changed(lambda text: text[:300] + bytes(len(text) - 300)), REBUILT),
    Damage("a comma too many", changed(lambda text: text[:-1] + b",]"), REBUILT),
    Damage("two lists in one", changed(lambda text: text * 2), REBUILT),
    Damage("an HTML page", raw(b"<!doctype html><title>404</title>"), REBUILT),
    Damage("truncated, and no folders", truncated_without_folders, REBUILT),
    Damage("missing", lambda folder: (folder / "tokens.json").unlink(), MISSING),
    Damage("only the mirror", only_the_mirror, MISSING),
    Damage("registry and mirror damaged", both_damaged, REBUILT),
    Damage("a byte order mark", changed(lambda text: b"\xef\xbb\xbf" + text)),
    Damage("Windows line ends", changed(lambda text: text.replace(b"\n", b"\r\n"))),
    Damage("UTF-16", changed(lambda text: text.decode().encode("utf-16"))),
    Damage("one byte no UTF-8", changed(lambda text: text.replace("В".encode(), b"\xc2")), REBUILT),
    Damage(
        "Latin-1", changed(lambda text: text.decode().replace("Вторая", "café").encode("latin-1")), REBUILT
    ),
    Damage("100 MB", huge, REBUILT),
    Damage("nested too deep", raw(b"[" * 100_000), REBUILT),
    Damage("ids twice", with_rows(lambda rows: [*rows, rows[0]]), UNFIT),
    Damage(
        "ids twice, tokens of two",
        with_rows(lambda rows: [*rows, {**rows[0], "token": token("four")}]),
        UNFIT,
    ),
    Damage("ids that differ in capitals", with_rows(lambda r: [*r, {**r[0], "id": IDS[0].upper()}]), UNFIT),
    Damage("an id that climbs out", with_row(0, id="../../etc/cron.d/x"), UNFIT),
    Damage("an id that is a number", with_row(0, id=1752745840684), UNFIT),
    Damage("an id that is a device", with_row(0, id="CON"), UNFIT),
    Damage("an id of 300 letters", with_row(0, id="a" * 300), UNFIT),
    Damage("no id", with_rows(lambda rows: [{"token": rows[0]["token"]}, *rows[1:]]), UNFIT),
    Damage("rows that are none", with_rows(lambda rows: [None, 5, "x", *rows]), UNFIT),
    Damage("no token in a row", with_row(0, token=None)),
    Damage("a token with line ends", with_row(0, token=TOKENS[IDS[0]] + "\r\n")),
    Damage("token.txt with line ends", per_account(lambda f: (f / "token.txt").write_bytes(b"x.y.z\r\n"))),
    Damage("token.txt missing", per_account(lambda f: (f / "token.txt").unlink())),
    Damage("token.txt binary", per_account(lambda f: (f / "token.txt").write_bytes(bytes(range(256))))),
    Damage("token.txt a folder", per_account(lambda f: replaced(Path.mkdir, "token.txt")(f))),
    Damage("the folders are gone", no_folders),
    Damage("an id too many", lambda folder: (folder / "accounts" / "acc_1").mkdir()),
    Damage(
        "state.json garbage",
        lambda f: (f / "accounts" / IDS[0] / "state.json").write_bytes(b"\0garbage"),
        rf"^account {IDS[0]}: its browser state was damaged and put aside as state\.json\.corrupt-",
    ),
    Damage(
        "state.json a list",
        lambda folder: (folder / "accounts" / IDS[0] / "state.json").write_bytes(b"[]"),
        rf"^account {IDS[0]}: its browser state was damaged",
    ),
    Damage(
        "state.json a link to nothing",
        lambda folder: (folder / "accounts" / IDS[0] / "state.json").symlink_to("nothing"),
        rf"^account {IDS[0]}: state\.json in the session folder is not a plain file; move it away$",
    ),
    Damage("a reset time that is none", with_row(1, resetAt="tomorrow")),
    Damage("a reset time of another type", with_row(1, resetAt={"at": 5})),
    Damage("a local reset time called UTC", with_row(1, resetAt="2026-11-21T23:00:00.123456Z")),
    Damage("a reset time far ahead", with_row(1, resetAt="9999-12-31T23:59:59-12:00")),
    Damage("invalid in words", with_row(2, invalid="true")),
    Damage("fields that we do not know", with_row(0, cookies=[{"name": "x"}], added_at=5, label=7)),
    Damage("half a letter in a label", changed(lambda text: text.replace("Вторая".encode(), rb"\ud83d"))),
    Damage("temporary files", left_temporary),
    Damage("a folder at its place", replaced(Path.mkdir), refused=NO_FILE),
    Damage("a link at its place", replaced(lambda path: path.symlink_to("elsewhere")), refused=NO_FILE),
    Damage("a pipe at its place", replaced(lambda path: os.mkfifo(path)), refused=NO_FILE),
    Damage(
        "the mirror a folder",
        lambda folder: (folder / "tokens.json.bak").mkdir(),
        refused=r"^tokens\.json\.bak in the session folder is not a plain file",
    ),
    Damage(
        "the accounts a link",
        replaced(lambda path: path.symlink_to("elsewhere"), "accounts"),
        refused=r"^accounts in the session folder is not a plain folder; move it away$",
    ),
    Damage(
        "an account a link",
        replaced(lambda path: path.symlink_to("../elsewhere"), f"accounts/{IDS[0]}"),
        refused=rf"^{IDS[0]} in the session folder is not a plain folder; move it away$",
    ),
)
