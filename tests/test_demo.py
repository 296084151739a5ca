"""The demo as a person runs it: a process of its own, a real Chromium, the official SDK."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import openai
import psutil
import pytest

from qwenproxy.browser.chromium import runs
from qwenproxy.demo import demo
from qwenproxy.settings import SettingsError
from tests.serve import free_port, until

ROOT = Path(__file__).parent.parent
READY_S = 60
"""Seconds, on a loaded machine; a quiet one takes three."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """One with a short name: Chromium's socket lies in it, and the path of a socket has 107 characters."""
    with TemporaryDirectory() as name:
        yield Path(name)


@contextmanager
def running_demo(folder: Path, *arguments: str) -> Iterator[tuple[psutil.Popen, list[str]]]:
    """The process and what it printed until it was ready. Killed at the end if it still runs."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("QWENPROXY_", "PYTHONUNBUFFERED"))
    }
    process = psutil.Popen(
        [sys.executable, "-m", "qwenproxy", "demo", *arguments],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    watch = threading.Timer(READY_S, process.kill)
    watch.start()
    try:
        yield process, _until_ready(process)
    finally:
        watch.cancel()
        if process.poll() is None:
            process.kill()
        process.communicate()


def _until_ready(process: psutil.Popen) -> list[str]:
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "Ctrl-C" in line:
            return lines
    raise AssertionError("".join(lines))


def assert_it_leaves_nothing(process: psutil.Popen, stop: signal.Signals, folder: Path) -> None:
    """Stops it as a terminal does: the driver and everything else of the group too."""
    family = process.children(recursive=True)
    assert family
    os.killpg(process.pid, stop)
    assert process.wait(30) == 0
    until(lambda: not any(map(runs, family)), 10)
    left = {path.name for path in folder.iterdir()}
    if stop != signal.SIGINT:
        # Playwright's driver takes no notice of Ctrl-C, but dies of the others before it has cleared up.
        left = {name for name in left if name.startswith("qwenproxy")}
    assert left == set()


@pytest.mark.browser
@pytest.mark.timeout(90)
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_the_demo_answers_and_leaves_nothing_behind(stop: signal.Signals, folder: Path) -> None:
    port = free_port()
    with running_demo(folder, "--port", str(port)) as (process, lines):
        told = "".join(lines)
        base = re.search(r"Base URL +(\S+)", told)
        assert base
        assert base[1] == f"http://127.0.0.1:{port}/v1"
        assert "not from Qwen" in told
        assert f"curl {base[1]}/chat/completions" in told
        with openai.OpenAI(base_url=base[1], api_key="any", max_retries=0) as client:
            answer = client.chat.completions.create(
                model="qwen", messages=[{"role": "user", "content": "Hello!"}]
            )
        assert answer.choices[0].message.content
        assert_it_leaves_nothing(process, stop, folder)


@pytest.mark.browser
@pytest.mark.timeout(90)
def test_the_next_free_port_is_used_and_told_and_a_hang_up_leaves_nothing_behind(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with running_demo(folder, "--port", str(port)) as (process, lines):
            told = "".join(lines)
            assert f"Port {port} is taken" in told
            assert f"127.0.0.1:{port}/" not in told
            assert_it_leaves_nothing(process, signal.SIGHUP, folder)


@pytest.mark.anyio
async def test_the_demo_is_for_this_computer_alone() -> None:
    with pytest.raises(SettingsError, match="the demo has no API keys") as caught:
        await demo({"host": "0.0.0.0", "port": 0}, str)
    assert "\n" not in str(caught.value)
