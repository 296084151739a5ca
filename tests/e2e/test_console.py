"""The console as somebody at a terminal has it: menu, sign-ins in a window, the live view, the end."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import openai
import psutil
import pytest

from tests.serve import DEADLINE_S, Standin, clean_environment, free_port, until, write_session
from tests.terminal import ALTERNATE_OFF, ALTERNATE_ON, CTRL_C, DOWN, ENTER, ESC, Terminal, terminal
from tests.xvfb import virtual_screen

pytestmark = pytest.mark.timeout(120)

ONE, TWO = "one@example.com", "two@example.com"
COMMAND = (sys.executable, "-m", "qwenproxy")
COLOUR = re.compile(rb"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7])(?:;\d+)*m")
SHOW_CURSOR, HIDE_CURSOR = b"\x1b[?25h", b"\x1b[?25l"


def _runs(pid: int) -> bool:
    """A zombie does not: whoever has inherited it may take seconds to notice."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Console:
    """A person at the console of a proxy of their own."""

    def __init__(self, screen: Terminal, standin: Standin, port: int, modes: tuple[int, int]) -> None:
        self.screen = screen
        self.standin = standin
        self.port = port
        self.modes = modes

    def ask(self, text: str, **more: object) -> str:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="any", max_retries=0)
        with client:
            asked = f'{{{{standin: say text="{text}"}}}}'
            answer = client.chat.completions.create(
                model="qwen", messages=[{"role": "user", "content": asked}], timeout=60
            )
        return str(answer.choices[0].message.content)

    def asked(self) -> list[str]:
        """Whom the service was asked by, in order."""
        return [call["account"] for call in self.standin.received("/api/v2/chat/completions", "POST")]

    def until_serving(self) -> None:
        self.screen.until(f"http://127.0.0.1:{self.port}/v1", "None now")

    def leave(self) -> None:
        """Quits the menu, and looks whether all is as it was before."""
        self.screen.running()
        self.screen.press("q", ENTER)
        self.ended()

    def ended(self, code: int = 0, deadline_s: float = DEADLINE_S) -> None:
        assert self.screen.ended(deadline_s) == code, self.screen.dump()
        until(lambda: not [pid for pid in self.screen.running() if _runs(pid)], 10)
        assert self.screen.modes() == self.modes, "the terminal is not what it was"
        written = self.screen.written
        assert written.rfind(ALTERNATE_OFF) >= written.rfind(ALTERNATE_ON)
        assert written.rfind(SHOW_CURSOR) >= written.rfind(HIDE_CURSOR)
        assert b"Traceback" not in written


@contextmanager
def console(
    folder: Path,
    standin: Standin,
    chromium: str,
    env: Mapping[str, str] | None = None,
    *,
    arguments: tuple[str, ...] = (),
    width: int = 120,
    height: int = 35,
) -> Iterator[Console]:
    port = free_port()
    known = {
        "QWENPROXY_UPSTREAM": standin.site,
        "QWENPROXY_AUTH_UPSTREAM": standin.auth,
        "QWENPROXY_SESSION_DIR": str(folder / "session"),
        "QWENPROXY_PORT": str(port),
        "QWENPROXY_BROWSER": chromium,
    }
    command = [*COMMAND, *arguments]
    with terminal(command, folder, {**known, **(env or {})}, width=width, height=height) as screen:
        yield Console(screen, standin, port, screen.modes())


@pytest.mark.browser
def test_from_nothing_to_a_running_proxy_and_back(
    tmp_path: Path, standin: Standin, chromium_path: str
) -> None:
    standin.options(demo=True, person_in="windows", people=[ONE, TWO])
    with (
        virtual_screen() as display,
        console(tmp_path, standin, chromium_path, {"DISPLAY": display}) as person,
    ):
        screen = person.screen
        screen.until("No account yet. Choose 1")
        screen.press("1", ENTER)
        screen.until("A browser window opens")
        screen.until("one@example.com is added")
        screen.press("1", ENTER)
        screen.until("two@example.com is added")
        assert "OK" in screen.line_of(" 1  one@")
        assert "OK" in screen.line_of(" 2  two@")

        screen.press(ENTER)
        person.until_serving()
        assert [person.ask("first"), person.ask("second")] == ["first", "second"]
        assert person.asked() == [ONE, TWO]
        screen.until("2 today")

        standin.fault("rate_limited", num=3, account=ONE)
        assert person.ask("third") == "third", "the other account answers"
        assert person.asked()[2:] == [ONE, TWO]
        screen.until("limit", "Last errors")
        assert re.search(r"WAIT (3 h|2 h 59 min) limit", screen.line_of(" 1  one@"))

        standin.revoke(TWO)
        standin.expire(TWO)
        with pytest.raises(openai.RateLimitError) as refused:
            person.ask("nobody can answer")
        assert 10_000 < float(refused.value.response.headers["retry-after"]) <= 10_800
        screen.until("Sign in again: press r for two@example.com", "Every account waits")
        assert "INVALID sign in again" in screen.line_of(" 2  two@")

        standin.options(people=[TWO])
        screen.press("r")
        screen.until("which account?")
        screen.press("2")
        screen.until("two@example.com is signed in again", without="INVALID")
        assert "OK" in screen.line_of(" 2  two@")
        assert person.ask("fourth") == "fourth"
        assert person.asked()[-1] == TWO

        standin.options(pieces_per_s=10)
        with ThreadPoolExecutor(1) as pool:
            long = pool.submit(person.ask, "word " * 20)
            screen.until("1 answering", "pieces/s")
            screen.press("q")
            screen.until("Stopping: answers that run are finished first")
            screen.until("The proxy has stopped", "What now?")
            assert long.result() == "word " * 20
        assert re.search(r"WAIT (3 h|2 h \d+ min) limit", screen.line_of(" 1  one@"))
        person.leave()
    rows = json.loads((tmp_path / "session" / "tokens.json").read_text())
    assert [(row["email"], row.get("invalid", False)) for row in rows] == [(ONE, False), (TWO, False)]


@pytest.mark.parametrize("keys", [ESC, CTRL_C])
def test_the_menu_is_left_without_a_trace(
    tmp_path: Path, standin: Standin, chromium_path: str, keys: str
) -> None:
    with console(tmp_path, standin, chromium_path) as person:
        person.screen.until("What now?")
        person.screen.press(keys)
        person.ended()


def test_a_start_without_an_account_is_refused_and_enter_then_adds(
    tmp_path: Path, standin: Standin, chromium_path: str
) -> None:
    with console(tmp_path, standin, chromium_path) as person:
        person.screen.until("> 3) Start the proxy")
        person.screen.press(ENTER)
        person.screen.until("there is no account; choose 1 to add one", "> 1) Add an account")
        person.leave()


def test_digits_arrows_esc_and_ctrl_c_go_about_the_menu(
    tmp_path: Path, standin: Standin, chromium_path: str
) -> None:
    write_session(tmp_path / "session", standin, (ONE, TWO))
    with console(tmp_path, standin, chromium_path, width=80, height=24) as person:
        screen = person.screen
        screen.until("> 3) Start the proxy", "acc_2")
        screen.press("8")
        screen.until("> 8) Pause or resume an account")
        screen.press(ENTER)
        screen.until("Which account is paused or resumed?")
        screen.press(CTRL_C)
        screen.until("What now?")
        screen.press(DOWN)
        screen.until("> 4) Delete an account")
        screen.press(ENTER)
        screen.until("Which account is deleted?")
        screen.press("2", ENTER)
        screen.until("Delete acc_2 and its sign-in? (y/N)")
        screen.press(ESC)
        screen.until("What now?", "acc_2")
        screen.press("4", ENTER, "2", ENTER)
        screen.until("(y/N)")
        screen.press("y", ENTER)
        screen.until("acc_2 is deleted; chats on this computer stay", "> 3) Start the proxy")
        person.leave()
    assert not (tmp_path / "session" / "accounts" / "acc_2").exists()
    assert (tmp_path / "session" / "accounts" / "acc_1").exists()


@pytest.mark.parametrize(
    ("env", "emoji"),
    [
        ({}, True),
        ({"NO_COLOR": "1"}, True),
        ({"PYTHONIOENCODING": "cp866"}, False),
        ({"TERM": "dumb"}, False),
    ],
)
def test_words_tell_the_states_on_any_terminal(
    tmp_path: Path, standin: Standin, chromium_path: str, env: dict[str, str], emoji: bool
) -> None:
    write_session(tmp_path / "session", standin, (ONE, TWO, "three@example.com", "four@example.com"))
    tokens = tmp_path / "session" / "tokens.json"
    rows = json.loads(tokens.read_text())
    rows[1]["resetAt"] = "2999-01-01T00:00:00Z"
    rows[2]["invalid"] = True
    rows[3]["paused"] = True
    tokens.write_text(json.dumps(rows))
    with console(tmp_path, standin, chromium_path, env) as person:
        shown = person.screen.until("What now?", "4")
        assert all(word in shown for word in ("OK", "WAIT", "INVALID sign in again", "PAUSED"))
        assert ("✅" in shown) == emoji
        person.leave()
        assert bool(COLOUR.search(person.screen.written)) == (
            "NO_COLOR" not in env and env.get("TERM") != "dumb"
        )


@pytest.mark.browser
def test_the_live_view_alone_and_a_resize(tmp_path: Path, standin: Standin, chromium_path: str) -> None:
    write_session(tmp_path / "session", standin, (ONE,))
    with console(tmp_path, standin, chromium_path, arguments=("serve",)) as person:
        screen = person.screen
        person.until_serving()
        raw = screen.modes()
        screen.set_modes(person.modes)
        until(lambda: screen.modes() == raw)  # whatever another program did to the terminal
        for size in ((80, 24), (40, 10), (12, 3), (120, 35)):
            screen.resize(*size)
            screen.until("qwen")
        screen.until("acc_1", "? help")
        screen.press("p")
        screen.until("acc_1 is paused", "PAUSED")
        screen.press("p")
        screen.until("acc_1 takes part again", without="PAUSED")
        assert person.ask("hi") == "hi"
        screen.press(CTRL_C)
        person.ended()


@pytest.mark.browser
def test_a_signal_ends_the_live_view_and_the_menu_behind_it(
    tmp_path: Path, standin: Standin, chromium_path: str
) -> None:
    write_session(tmp_path / "session", standin, (ONE,))
    with console(tmp_path, standin, chromium_path) as person:
        person.screen.until("What now?")
        person.screen.press(ENTER)
        person.until_serving()
        person.screen.running()
        person.screen.child.kill(signal.SIGTERM)
        person.ended(deadline_s=10)


@pytest.mark.browser
@pytest.mark.parametrize("arguments", [(), ("serve",)])
def test_a_terminal_that_is_closed_leaves_nothing_running(
    tmp_path: Path, standin: Standin, chromium_path: str, arguments: tuple[str, ...]
) -> None:
    write_session(tmp_path / "session", standin, (ONE,))
    with console(tmp_path, standin, chromium_path, arguments=arguments) as person:
        if not arguments:
            person.screen.until("What now?")
            person.screen.press(ENTER)
        person.until_serving()
        left = set(person.screen.running())
        person.screen.hang_up()
        until(lambda: not [pid for pid in left if _runs(pid)])


@pytest.mark.browser
def test_a_signal_ends_the_live_view(tmp_path: Path, standin: Standin, chromium_path: str) -> None:
    write_session(tmp_path / "session", standin, (ONE,))
    with console(tmp_path, standin, chromium_path, arguments=("serve",)) as person:
        person.until_serving()
        person.screen.running()
        person.screen.child.kill(signal.SIGTERM)
        person.ended()


@pytest.mark.parametrize("name", ["SIGHUP", "SIGINT"])
def test_a_signal_ends_the_menu(tmp_path: Path, standin: Standin, chromium_path: str, name: str) -> None:
    """Not SIGTERM, which coverage takes for itself."""
    with console(tmp_path, standin, chromium_path) as person:
        person.screen.until("What now?")
        person.screen.child.kill(getattr(signal, name))
        person.ended()


@pytest.mark.browser
def test_the_menu_starts_the_proxy_again_and_comes_back_when_every_sign_in_goes(
    tmp_path: Path, standin: Standin, chromium_path: str
) -> None:
    write_session(tmp_path / "session", standin, (ONE,))
    with console(tmp_path, standin, chromium_path) as person:
        person.screen.until("What now?")
        person.screen.press(ENTER)
        person.until_serving()
        person.screen.press("q")
        person.screen.until("The proxy has stopped", "What now?")
        person.screen.press(ENTER)
        person.until_serving()
        standin.revoke(ONE)
        standin.expire(ONE)
        with pytest.raises(openai.APIStatusError):
            person.ask("nobody can answer")
        person.screen.until("What now?", "INVALID")
        assert re.search("sign-in is gone", person.screen.dump())
        person.leave()
    assert "Traceback" not in (tmp_path / "session" / "logs" / "proxy.log").read_text("utf-8")


@pytest.mark.parametrize("given", ["nothing", "pipe"])
def test_without_a_terminal_nothing_is_asked(
    tmp_path: Path, standin: Standin, chromium_path: str, given: str
) -> None:
    env = clean_environment(
        {
            "QWENPROXY_UPSTREAM": standin.site,
            "QWENPROXY_AUTH_UPSTREAM": standin.auth,
            "QWENPROXY_PORT": str(free_port()),
        }
    )
    stdin = subprocess.DEVNULL if given == "nothing" else subprocess.PIPE
    started = subprocess.Popen(
        COMMAND, cwd=tmp_path, env=env, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        out, err = started.communicate(timeout=30)
    finally:
        started.kill()
    assert started.returncode == 3, err
    assert "no account is signed in" in err
    assert "What now?" not in out + err
