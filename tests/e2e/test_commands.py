"""The commands that need a browser, as processes: windows on a virtual screen, and a played person."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from qwenproxy.accounts.account import Account
from qwenproxy.accounts.registry import Registry
from qwenproxy.clock import SystemClock
from tests.serve import Standin, clean_environment, proxy_variables, running_proxy, until, write_session
from tests.xvfb import virtual_screen

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]

ONE, TWO = "one@example.com", "two@example.com"


@pytest.fixture(scope="module")
def screen() -> Iterator[str]:
    with virtual_screen() as display:
        yield display


class Commands:
    """`accounts …` against a stand-in, over one session folder."""

    def __init__(self, folder: Path, standin: Standin, screen: str) -> None:
        self.registry = Registry(folder / "session", SystemClock())
        self._env = clean_environment({**proxy_variables(folder, standin), "DISPLAY": screen})

    def __call__(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "qwenproxy", "accounts", *arguments],
            env=self._env,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=80,
            check=False,
        )
        assert "eyJ" not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    def known(self) -> list[Account]:
        return list(self.registry.accounts())


@pytest.fixture
def accounts(tmp_path: Path, standin: Standin, screen: str) -> Commands:
    return Commands(tmp_path, standin, screen)


def test_an_account_is_added_in_a_window_checked_and_never_doubled(
    accounts: Commands, standin: Standin
) -> None:
    standin.options(demo=True, people=[ONE, ONE], person_in="windows")
    done = accounts("add")
    (added,) = accounts.known()
    assert (done.returncode, done.stdout) == (0, f"{added.id} ({ONE}) is signed in\n")
    again = accounts("add")
    assert again.stdout == f"{added.id} ({ONE}) was known and is signed in again\n"
    checked = accounts("check", "--json")
    assert checked.returncode == 0
    assert [row["live"] for row in json.loads(checked.stdout)["accounts"]] == [True]
    standin.revoke(ONE)
    checked = accounts("check")
    assert checked.returncode == 1
    assert checked.stdout.startswith(f"{added.id} ({ONE}): signed out")
    assert [account.invalid for account in accounts.known()] == [True]


def test_another_person_is_not_taken_without_being_asked(
    tmp_path: Path, accounts: Commands, standin: Standin
) -> None:
    standin.options(demo=True, people=[TWO], person_in="windows")
    write_session(tmp_path / "session", standin, (ONE,))
    accounts.registry.update("acc_1", lambda account: replace(account, email=ONE))
    refused = accounts("relogin", ONE)
    assert refused.returncode == 2
    assert "--yes" in refused.stderr.splitlines()[-1]
    assert [account.email for account in accounts.known()] == [ONE]
    taken = accounts("relogin", "acc_1", "--yes")
    assert (taken.returncode, taken.stdout) == (0, f"acc_1 ({TWO}) is signed in\n")
    assert [(account.id, account.email) for account in accounts.known()] == [("acc_1", TWO)]


def test_a_human_check_is_passed_in_the_accounts_own_window(
    tmp_path: Path, accounts: Commands, standin: Standin
) -> None:
    write_session(tmp_path / "session", standin, (ONE,))
    accounts.registry.update("acc_1", lambda account: replace(account, why="human"))
    # As long as a person takes at least: a dialog that is gone before it was seen was none.
    standin.options(demo=True, person_solves_s=3)
    standin._control("POST", "challenge", {"account": ONE})
    done = accounts("pass-check", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("is OK\n")
    (account,) = accounts.known()
    assert (account.why, account.wait_until) == ("", None)


def test_a_token_is_checked_and_its_early_death_is_told(accounts: Commands, standin: Standin) -> None:
    """Of a dead token `test_enrolment.py` tells."""
    token, _ = standin.sign_in(ONE)
    refused = accounts("add", "--token-stdin", stdin=f'"{token}"\n')
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "dies on" in refused.stderr
    assert "--yes" in refused.stderr
    assert accounts.known() == []
    kept = accounts("add", "--token-stdin", "--yes", stdin=token)
    assert kept.returncode == 0, kept.stderr
    assert ONE in kept.stdout


def test_a_proxy_that_serves_takes_up_what_commands_do(
    tmp_path: Path, accounts: Commands, standin: Standin
) -> None:
    standin.options(demo=True, people=[TWO], person_in="windows")
    with running_proxy(tmp_path, standin, (ONE,)) as proxy:

        def rows() -> list[dict[str, Any]]:
            told = httpx.get(f"{proxy.base}/api/status", timeout=30, trust_env=False, verify=False).json()
            found: list[dict[str, Any]] = told["accounts"]
            return found

        assert accounts("add").returncode == 0
        until(lambda: len(rows()) == 2, 2)
        assert accounts("pause", "acc_1").returncode == 0
        until(lambda: [row["paused"] for row in rows()] == [True, False], 2)
        checked = accounts("check", "--json")
        assert checked.returncode == 0, checked.stdout
        assert f"the proxy at {proxy.base} serves this session folder" in checked.stderr
        assert accounts("remove", "acc_1", "--yes").returncode == 0
        until(lambda: len(rows()) == 1, 2)
