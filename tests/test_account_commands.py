"""The commands over a session folder, in this process where nothing but the folder is needed."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from qwenproxy import account_commands
from qwenproxy.account_commands import Misused, choose
from qwenproxy.accounts.account import Account
from qwenproxy.accounts.registry import Registry
from qwenproxy.cli import parser
from qwenproxy.clock import SystemClock
from qwenproxy.errors import NoAccount
from qwenproxy.instance import hold
from tests.serve import clean_environment, running

SESSION = Path("session")
LATER = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=3)
TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJpZCI6IjEifQ.c2lnbmF0dXJl"
ROWS = [
    {"id": "acc_1", "token": TOKEN, "resetAt": None, "label": "work", "email": "one@example.com"},
    {"id": "acc_2", "token": TOKEN + "2", "resetAt": LATER.isoformat(), "waitsFor": "limit", "label": "Home"},
    {"id": "acc_3", "token": TOKEN + "3", "resetAt": None, "invalid": True, "email": "three@example.com"},
]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _session(tmp_path: Path) -> None:
    SESSION.mkdir(mode=0o700)
    tokens = SESSION / "tokens.json"
    tokens.write_text(json.dumps(ROWS))
    tokens.chmod(0o600)


@pytest.fixture
def accounts(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """`accounts …`: its exit code, stdout and stderr."""

    def run(*arguments: str, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        code = account_commands.run(vars(parser().parse_args(["accounts", *arguments])))
        told = capsys.readouterr()
        assert TOKEN not in told.out + told.err
        return code, told.out, told.err

    return run


def known() -> dict[str, Account]:
    return {account.id: account for account in Registry(SESSION, SystemClock()).accounts()}


def test_the_list_is_a_table_of_all_accounts(accounts: Run) -> None:
    code, out, err = accounts("list")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) == 4
    assert "work" in lines[1]
    assert "OK" in lines[1]

    assert re.search(r"WAIT (3 h|2 h \d+ min) limit", lines[2])
    assert "INVALID" in lines[3]
    assert "three@example.com" in lines[3]


def test_the_list_for_programs_has_its_documented_fields(accounts: Run) -> None:
    told = json.loads(accounts("list", "--json")[1])
    assert told["proxy"] is None
    names = [
        name.strip(" .") for name in account_commands.FIELDS.partition(": ")[2].partition(";")[0].split(",")
    ]
    documented = {name.split(" (")[0] for name in names if " " not in name.split(" (")[0]}
    for row in told["accounts"]:
        assert set(row) <= documented | {"WAIT", "INVALID"}
    first, second, third = told["accounts"]
    assert first["number"] == 1
    assert (first["status"], first["label"], first["email"]) == ("OK", "work", "one@example.com")
    assert second["status"] == "WAIT"
    assert second["waitsFor"] == "limit"
    assert second["resetAt"] == LATER.isoformat().replace("+00:00", "Z")
    assert (third["status"], third["invalid"]) == ("INVALID", True)


def test_the_list_names_the_proxy_that_serves(accounts: Run) -> None:
    with hold(SESSION) as held:
        held.tell("http://127.0.0.1:9")
        told = json.loads(accounts("list", "--json")[1])
    assert told["proxy"] == {"pid": os.getpid(), "url": "http://127.0.0.1:9"}


def test_no_account_yet_is_no_error_of_the_list(accounts: Run) -> None:
    (SESSION / "tokens.json").write_text("[]")
    code, out, err = accounts("list")
    assert (code, out) == (0, "")
    assert "accounts add" in err
    assert json.loads(accounts("list", "--json")[1])["accounts"] == []


@pytest.mark.parametrize("name", ["acc_2", "2", "home", "Home", " HOME "])
def test_an_account_has_many_names(name: str, accounts: Run) -> None:
    assert accounts("pause", name)[0] == 0
    assert [account.id for account in known().values() if account.paused] == ["acc_2"]


def test_an_email_names_an_account(accounts: Run) -> None:
    assert accounts("pause", "Three@Example.com")[0] == 0
    assert known()["acc_3"].paused


def test_an_unclear_name_is_refused_with_the_candidates(accounts: Run) -> None:
    accounts("rename", "acc_3", "2")
    code, out, err = accounts("remove", "2", "--yes")
    assert (code, out) == (2, "")
    assert "acc_2 (Home), acc_3 (2)" in err
    assert len(err.splitlines()) == 1
    assert len(known()) == 3


def test_an_id_is_never_unclear() -> None:
    listed = (Account("acc_1", label="acc_2"), Account("acc_2"))
    assert choose(listed, "acc_2").id == "acc_2"
    with pytest.raises(Misused):
        choose((Account("a", label="x"), Account("b", label="X")), "x")
    with pytest.raises(NoAccount, match="accounts list"):
        choose(listed, "")


def test_an_unknown_account_is_one_line(accounts: Run) -> None:
    code, out, err = accounts("pause", "nobody")
    assert (code, out) == (1, "")
    assert "'nobody'" in err
    assert len(err.splitlines()) == 1


def test_a_label_is_one_printable_line(accounts: Run) -> None:
    code, out, _ = accounts("rename", "1", " my\n first\x1b[31m one ")
    assert (code, out) == (0, "acc_1 is called my first [31m one now\n")
    assert accounts("rename", "1", "x" * 61)[0] == 2
    assert accounts("rename", "1", "")[1] == "acc_1 is called one@example.com now\n"


def test_a_wait_is_cleared_with_the_limits_of_single_models(accounts: Run) -> None:
    Registry(SESSION, SystemClock()).update(
        "acc_2", lambda account: Account(**{**_fields(account), "model_waits": (("qwen3-max", LATER),)})
    )
    assert accounts("clear-wait", "acc_2")[0] == 0
    account = known()["acc_2"]
    assert (account.wait_until, account.why, account.model_waits) == (None, "", ())


def _fields(account: Account) -> dict[str, Any]:
    return {name: getattr(account, name) for name in Account.__slots__}


def test_pause_and_resume(accounts: Run) -> None:
    assert accounts("pause", "1")[0] == 0
    assert known()["acc_1"].paused
    assert json.loads(accounts("list", "--json")[1])["accounts"][0]["paused"] is True
    assert accounts("resume", "1")[0] == 0
    assert not known()["acc_1"].paused


def test_deleting_asks_and_without_a_terminal_needs_yes(accounts: Run) -> None:
    code, out, err = accounts("remove", "1", stdin="y\n")
    assert (code, out) == (2, "")
    assert "--yes" in err
    assert len(err.splitlines()) == 1
    assert accounts("remove", "1", "--yes")[0] == 0
    assert list(known()) == ["acc_2", "acc_3"]


@pytest.mark.parametrize(
    ("stdin", "said"),
    [("", "no token"), ("\n \n", "no token"), ("two words", "is no token"), ("é", "is no token")],
)
def test_what_is_no_token_is_refused(stdin: str, said: str, accounts: Run) -> None:
    code, out, err = accounts("add", "--token-stdin", stdin=stdin)
    assert (code, out) == (2, "")
    assert said in err


@pytest.mark.skipif(sys.platform != "linux", reason="other systems always have a screen")
@pytest.mark.parametrize("arguments", [("add",), ("relogin", "1"), ("pass-check", "1")])
def test_without_a_screen_the_ways_that_work_are_named(
    arguments: tuple[str, ...], accounts: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    code, out, err = accounts(*arguments)
    assert (code, out) == (1, "")
    assert len(err.splitlines()) == 1
    for way in ("--token-stdin", "xvfb-run", "session"):
        assert way in err


# ---- check, while a proxy serves ----


@contextmanager
def serving(*answers: Response | Sequence[dict[str, str]]) -> Iterator[list[str]]:
    """A proxy that holds the folder and answers a check so; gives what it was asked."""
    asked: list[str] = []
    left = iter(answers)

    async def status(request: Request) -> Response:
        asked.append(f"{request.method} {request.headers['host'].split(':')[0]}")
        answer = next(left)
        return answer if isinstance(answer, Response) else JSONResponse({"accounts": list(answer)})

    app = Starlette(routes=[Route("/api/status", status, methods=["GET", "POST"])])
    with hold(SESSION) as held, running(app) as url:
        held.tell(url)
        yield asked


FOUND = [
    {"id": "acc_1", "check": "live"},
    {"id": "acc_2", "check": "live"},
    {"id": "acc_3", "check": "signed out"},
]


def test_a_proxy_that_serves_is_asked_to_check(accounts: Run) -> None:
    with serving(FOUND) as asked:
        code, out, err = accounts("check")
    assert asked == ["POST 127.0.0.1"]
    assert code == 1, "one of them is signed out"
    assert out.splitlines() == [
        "acc_1 (work): live",
        "acc_2 (Home): live",
        "acc_3 (three@example.com): signed out",
    ]
    assert "it is asked to check" in err


@pytest.mark.parametrize("key", ["", "the-key-of-this-run"])
def test_a_proxy_that_wants_keys_is_asked_with_that_of_its_run(accounts: Run, key: str) -> None:
    async def status(request: Request) -> Response:
        if request.headers.get("x-api-key", "") != key:
            return JSONResponse({"error": {"message": "no key"}}, 401)
        return JSONResponse({"accounts": FOUND})

    app = Starlette(routes=[Route("/api/status", status, methods=["POST"])])
    with hold(SESSION) as held, running(app) as url:
        held.tell(url, key)
        code, out, err = accounts("check", "1", "2")
        listed = accounts("list", "--json")[1]
    assert (code, out.splitlines()) == (0, ["acc_1 (work): live", "acc_2 (Home): live"])
    assert not key or key not in out + err + listed


def test_only_the_accounts_named_count(accounts: Run) -> None:
    with serving(FOUND):
        code, out, _ = accounts("check", "work", "2", "acc_1", "--json")
    assert code == 0
    told = [(row["id"], row["live"], row["check"]) for row in json.loads(out)["accounts"]]
    assert told == [("acc_1", True, "live"), ("acc_2", True, "live")]


def test_what_could_not_be_asked_is_neither_live_nor_signed_out(accounts: Run) -> None:
    reason = "the browser could not reach the site"
    with serving([{"id": "acc_1", "check": reason}], [{"id": "acc_1", "check": reason}]):
        code, out, _ = accounts("check", "1", "--json")
        assert code == 1
        assert [(row["live"], row["check"]) for row in json.loads(out)["accounts"]] == [(None, reason)]
        assert accounts("check", "1")[1] == f"acc_1 (work): not known: {reason}\n"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (JSONResponse({"error": {"message": "no Chromium"}}, 503), "the proxy could not check: no Chromium"),
        (Response("<html>", 500), "the proxy could not check: it answered with status 500"),
        (Response("{}", 200), "did not answer"),
        (Response("[1]", 200), "did not answer"),
    ],
)
def test_a_proxy_that_cannot_check_is_one_line(answer: Response, said: str, accounts: Run) -> None:
    with serving(answer):
        code, out, err = accounts("check")
    assert (code, out) == (1, "")
    assert said in err.splitlines()[-1]


def test_a_proxy_that_only_starts_is_one_line(accounts: Run) -> None:
    with hold(SESSION):
        code, _, err = accounts("check")
    assert code == 1
    assert f"process {os.getpid()}" in err


def test_nothing_to_check_is_not_fine(accounts: Run) -> None:
    (SESSION / "tokens.json").write_text("[]")
    code, out, err = accounts("check")
    assert (code, out) == (1, "")
    assert "accounts add" in err


# ---- as a process ----


def run_process(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "qwenproxy", "accounts", *arguments],
        env=clean_environment(variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="latin-1",
        timeout=15,
        check=False,
    )


def test_an_action_is_needed_and_an_unknown_one_is_refused_with_the_known(tmp_path: Path) -> None:
    for arguments in ([], ["lst"]):
        done = run_process(*arguments)
        assert done.returncode == 2
    assert "clear-wait" in done.stderr


def test_every_action_has_help() -> None:
    for name in account_commands.ACTIONS:
        with pytest.raises(SystemExit) as ended:
            parser().parse_args(["accounts", name, "--help"])
        assert ended.value.code == 0


def test_a_console_of_an_old_code_page_shows_what_it_can(accounts: Run) -> None:
    accounts("rename", "1", "дом ✅")
    done = run_process("list", PYTHONIOENCODING="cp1252")
    assert (done.returncode, done.stderr) == (0, "")
    assert "???" in done.stdout
    assert "OK" in done.stdout


def test_a_damaged_registry_that_nothing_can_mend_is_one_line(tmp_path: Path) -> None:
    (SESSION / "tokens.json").unlink()
    (SESSION / "tokens.json").mkdir()
    done = run_process("list")
    assert (done.returncode, done.stdout) == (1, "")
    assert "tokens.json" in done.stderr
    assert len(done.stderr.splitlines()) == 1
