"""A coding program, unmodified, in its non-interactive mode against the demo: it has to change a file.

    tests/clients/claude_code.sh        # or codex.sh, opencode.sh, qwen_code.sh, aider.sh

The stand-in plays the model by the script of the program's name in `qwenproxy/standin/scripts/`. The program
is installed the first time, and runs with a home folder of its own and without a way to other computers.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import psutil

from qwenproxy.standin.agent import BESIDE
from tests.clients.coding_programs import PROGRAMS, Asked, CodingProgram, Run
from tests.clients.installed import node_folder
from tests.serve import Standin, free_port, process

RUN_S = 180
SHOWN = 6000
"""Characters of what a program printed that are shown when something is wrong."""
BEFORE = 'def greet():\n    return "Hello"\n'
AFTER = 'def greet():\n    return "Hello, world"\n'
NOWHERE = "http://127.0.0.1:9"
"""Nobody listens there: what a program wants from other computers fails at once."""


def main(name: str) -> None:
    program = PROGRAMS[name]
    command = str(program.install())
    print(f"{name}: {_told([command, '--version'])}, Node {_told(['node', '--version'])}", flush=True)
    with TemporaryDirectory(prefix="qwenproxy-client-") as folder, demo(Path(folder)) as (base, standin):
        work, home = Path(folder) / "work", Path(folder) / "home"
        work.mkdir()
        home.mkdir()
        file, secret = work / "greet.py", secrets.token_hex(8)
        file.write_text(f"# {secret}\n{BEFORE}")
        prompt = f"{{{{standin: agent script={name} file={file}}}}} Greet the world in greet.py"
        output = run(program.run(command, Asked(base, home, file, prompt)), work, home)
        check(name, program, file.read_text(), output, standin, secret)
    print(f"{name}: the file was changed as asked, all as expected")


@contextmanager
def demo(folder: Path) -> Iterator[tuple[str, Standin]]:
    """The demo's base URL, and the stand-in in it."""
    port = free_port()
    command = [sys.executable, "-u", "-m", "qwenproxy", "demo"]
    with process(command, folder, {"QWENPROXY_PORT": str(port)}) as started:
        assert started.stdout is not None
        while "Ctrl-C" not in (line := started.stdout.readline()):
            assert line, "the demo ended"
        site = _standin_of(started, port)
        yield f"http://127.0.0.1:{port}", Standin(site, site, "C", started)


def _standin_of(started: subprocess.Popen[str], proxy_port: int) -> str:
    """Where the stand-in of that demo is: another port that the same process listens on."""
    for each in psutil.Process(started.pid).net_connections("inet"):
        if each.status == psutil.CONN_LISTEN and each.laddr.port != proxy_port:
            site = f"http://127.0.0.1:{each.laddr.port}"
            answer = httpx.get(f"{site}/__standin__/state", trust_env=False)
            if answer.status_code == 200:
                return site
    raise SystemExit("the demo has no stand-in")


def run(what: Run, work: Path, home: Path) -> str:
    """What the program printed. It gets no variables of this shell.

    Raises:
        SystemExit: it failed, or took too long.
    """
    started = subprocess.Popen(
        what.command,
        cwd=work,
        env={**_surroundings(home), **what.env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = started.communicate(timeout=RUN_S)
    except subprocess.TimeoutExpired:
        os.killpg(started.pid, signal.SIGKILL)
        output, _ = started.communicate()
        raise SystemExit(f"it did not end within {RUN_S} s:\n{output[-SHOWN:]}") from None
    if started.returncode:
        raise SystemExit(f"it ended with {started.returncode}:\n{output[-SHOWN:]}")
    return output


def _surroundings(home: Path) -> Mapping[str, str]:
    away = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), NOWHERE)
    near = dict.fromkeys(("no_proxy", "NO_PROXY"), "127.0.0.1,localhost")
    path = f"{node_folder()}:{os.environ['PATH']}"
    return {"PATH": path, "HOME": str(home), "LANG": "C.UTF-8", "TERM": "dumb", **away, **near}


def check(
    name: str, program: CodingProgram, content: str, output: str, standin: Standin, secret: str
) -> None:
    """Raises: SystemExit: what came about is not what was asked for."""
    turns = standin.turns()
    played = [turn for turn in turns if _is_played(turn)]
    for turn in turns:
        print(f"  {'turn' if turn in played else 'beside'}: {turn['said'][:100]!r}")
    wrong = []
    if content not in (f"# {secret}\n{AFTER}", AFTER):
        wrong.append(f"the file is {content!r}")
    if len(played) != program.turns:
        wrong.append(f"the model was asked {len(played)} times, not {program.turns}")
    if program.turns > 1 and not any(secret in _told_to_model(turn) for turn in played[1:]):
        wrong.append("what the tool read never came back to the model")
    if program.streamed not in output:
        wrong.append("the calls were not streamed")
    if wrong:
        raise SystemExit(f"{name}: {'; '.join(wrong)}\n{output[-SHOWN:]}")


def _is_played(turn: Mapping[str, Any]) -> bool:
    return str(turn["said"]) != BESIDE


def _told_to_model(turn: Mapping[str, Any]) -> str:
    return "\n".join([str(turn["content"]), *turn["documents"]])


def _told(command: list[str]) -> str:
    with TemporaryDirectory() as home:
        env = _surroundings(Path(home))
        ran = subprocess.run(command, env=env, capture_output=True, text=True, timeout=RUN_S, check=True)
    return ran.stdout.strip().splitlines()[-1]


if __name__ == "__main__":
    main(sys.argv[1])
