"""The command line, run as a person runs it: in a process of its own."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pexpect
import pytest

from qwenproxy import __version__
from qwenproxy.instance import hold
from qwenproxy.settings import PLAIN, Settings, variable_of

ROOT = Path(__file__).parent.parent
UNSAID = {variable_of(field) for field in Settings.model_fields} | set(PLAIN)

needs_terminal = pytest.mark.skipif(sys.platform == "win32", reason="pexpect needs a pseudo-terminal")


def run(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in UNSAID}
    return subprocess.run(
        [sys.executable, "-m", "qwenproxy", *arguments],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(ROOT)} | variables,
        capture_output=True,
        text=True,
        timeout=15,
        check=False,
    )


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr.strip()


def test_help_tells_the_commands_and_options(tmp_path: Path) -> None:
    done = run(tmp_path, "--help")
    assert done.returncode == 0
    words = (
        "serve",
        "demo",
        "accounts",
        "doctor",
        "--host",
        "--port",
        "--plain",
        ".env",
        "README.md",
        "menu",
    )
    for word in words:
        assert word in done.stdout
    assert "demo" in run(tmp_path, "demo", "--help").stdout


def test_the_version_is_told(tmp_path: Path) -> None:
    assert run(tmp_path, "--version").stdout.strip() == __version__


def test_an_unknown_command_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    done = run(tmp_path, "sreve")
    assert done.returncode == 2
    assert "serve" in done.stderr
    assert "demo" in done.stderr


@pytest.mark.parametrize("arguments", [["serve"], []])
def test_without_an_account_one_line_leads_to_the_menu_and_the_demo(
    arguments: list[str], tmp_path: Path
) -> None:
    done = run(tmp_path, *arguments, QWENPROXY_PORT="0")
    assert done.returncode == 3
    assert re.search("no account is signed in: .*; hint: ./start.sh", one_line(done))
    assert "./start.sh demo" in one_line(done)


def test_only_signed_out_accounts_are_no_account(tmp_path: Path) -> None:
    session = tmp_path / "session"
    session.mkdir(mode=0o700)
    account = {"id": "acc_1", "token": "t", "resetAt": None, "invalid": True}
    (session / "tokens.json").write_text(json.dumps([account]))
    (session / "tokens.json").chmod(0o600)
    done = run(tmp_path, "serve", QWENPROXY_PORT="0")
    assert done.returncode == 3
    assert "every account's sign-in is gone" in one_line(done)


def test_a_registry_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "session" / "tokens.json").mkdir(parents=True)
    done = run(tmp_path, "serve", QWENPROXY_PORT="0")
    assert done.returncode == 1
    assert "tokens.json" in one_line(done)


def test_a_folder_that_is_served_already_is_one_line_and_code_2(tmp_path: Path) -> None:
    with hold(tmp_path / "session") as held:
        held.tell("http://127.0.0.1:9")
        done = run(tmp_path, "serve", QWENPROXY_PORT="0")
    assert done.returncode == 2
    assert f"process {os.getpid()} at http://127.0.0.1:9" in one_line(done)


@pytest.mark.parametrize("where", ["before", "after", "environment", "plain"])
def test_a_taken_port_is_one_line_and_code_2(where: str, tmp_path: Path, taken_port: int) -> None:
    port = str(taken_port)
    done = {
        "before": lambda: run(tmp_path, "--port", port, "serve"),
        "after": lambda: run(tmp_path, "serve", "--port", port),
        "environment": lambda: run(tmp_path, "serve", QWENPROXY_PORT=port),
        "plain": lambda: run(tmp_path, "serve", PORT=port),
    }[where]()
    assert done.returncode == 2
    assert port in one_line(done)


@pytest.mark.parametrize(
    ("command", "host"),
    [("serve", "0.0.0.0"), ("serve", "example.com"), ("demo", "::"), ("demo", "192.0.2.1")],
)
def test_an_address_that_others_reach_is_refused(command: str, host: str, tmp_path: Path) -> None:
    done = run(tmp_path, command, "--host", host)
    assert done.returncode == 2
    assert host in one_line(done)
    assert "loopback" in one_line(done)


@pytest.mark.parametrize(
    ("arguments", "variables", "named"),
    [
        (["--port", "http"], {}, "--port=http"),
        ([], {"QWENPROXY_PACE_S": "soon"}, "QWENPROXY_PACE_S=soon"),
        ([], {"PORT": "x"}, "PORT=x"),
    ],
)
def test_a_bad_setting_is_one_line_and_code_2(
    arguments: list[str], variables: dict[str, str], named: str, tmp_path: Path
) -> None:
    done = run(tmp_path, "serve", *arguments, **variables)
    assert done.returncode == 2
    assert one_line(done).startswith(f"qwenproxy: {named} cannot be used; allowed: a")


def test_settings_come_from_the_file_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("QWENPROXY_HOST=0.0.0.0\n")
    assert "0.0.0.0" in one_line(run(tmp_path, "serve"))


def test_a_secret_in_a_bad_setting_is_not_shown(tmp_path: Path) -> None:
    done = run(tmp_path, "serve", QWENPROXY_UPSTREAM="https://me:hunter22@example.com")
    assert "QWENPROXY_UPSTREAM" in one_line(done)
    assert "hunter22" not in done.stderr


def test_what_is_written_is_private_from_the_first_moment(tmp_path: Path) -> None:
    program = "import os; from qwenproxy import cli; print(cli.main(['--port', 'x']), oct(os.umask(0)))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=15, check=True
    )
    assert done.stdout == "2 0o77\n"


def test_a_reader_that_has_gone_is_no_error(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    environment = {name: value for name, value in os.environ.items() if name not in UNSAID}
    done = subprocess.run(
        [sys.executable, "-m", "qwenproxy", "accounts", "list", "--json"],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(ROOT)},
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        timeout=15,
        check=False,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


# ---- in a terminal ----


@contextmanager
def terminal(folder: Path, *arguments: str, **variables: str) -> Iterator[pexpect.spawn[str]]:
    environment = {name: value for name, value in os.environ.items() if name not in UNSAID}
    child = pexpect.spawn(
        sys.executable,
        ["-m", "qwenproxy", *arguments],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(ROOT), "TERM": "xterm", "QWENPROXY_PORT": "0"} | variables,
        encoding="utf-8",
        dimensions=(40, 120),
        timeout=20,
    )
    try:
        yield child
    finally:
        child.close(force=True)


def code_of(child: pexpect.spawn[str]) -> int:
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus is not None, f"ended by signal {child.signalstatus}"
    return child.exitstatus


@needs_terminal
@pytest.mark.parametrize("variable", ["SKIP_ACCOUNT_MENU", "NON_INTERACTIVE"])
def test_the_menu_can_be_left_out(variable: str, tmp_path: Path) -> None:
    with terminal(tmp_path, **{variable: "1"}) as child:
        assert code_of(child) == 3
        assert "no account is signed in" in str(child.before)


@needs_terminal
@pytest.mark.parametrize(
    ("answer", "code", "left"), [("y\r", 0, []), ("\r", 1, ["acc_1"]), ("\x03", 1, ["acc_1"])]
)
def test_deleting_is_asked_in_a_terminal(answer: str, code: int, left: list[str], tmp_path: Path) -> None:
    session = tmp_path / "session"
    session.mkdir(mode=0o700)
    (session / "tokens.json").write_text(json.dumps([{"id": "acc_1", "token": "t", "resetAt": None}]))
    with terminal(tmp_path, "accounts", "remove", "acc_1") as child:
        child.expect("Delete acc_1")
        child.send(answer)
        assert code_of(child) == code
        assert ("nothing was deleted" in str(child.before)) == bool(code)
    assert [row["id"] for row in json.loads((session / "tokens.json").read_text())] == left


@needs_terminal
def test_a_token_typed_in_a_terminal_is_not_shown(tmp_path: Path) -> None:
    with terminal(tmp_path, "accounts", "add", "--token-stdin") as child:
        child.expect("Token: ")
        child.send("two words\r")
        assert code_of(child) == 2
        assert "two words" not in str(child.before)


@needs_terminal
def test_an_interrupted_command_could_not_be_done(tmp_path: Path) -> None:
    with terminal(tmp_path, "accounts", "add", "--token-stdin") as child:
        child.expect("Token: ")
        child.sendintr()
        assert code_of(child) == 1
        assert "qwenproxy: stopped" in str(child.before)
