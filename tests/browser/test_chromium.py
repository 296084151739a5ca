from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from time import monotonic
from typing import Any

import anyio
import psutil
import pytest

from qwenproxy.browser.chromium import Chromium, Running, runs
from qwenproxy.errors import BrowserLost, BrowserMissing
from qwenproxy.settings import Settings
from tests.serve import ROOT, clean_environment, until_async

pytestmark = pytest.mark.anyio

WEAKENING = (
    "--disable-web-security",
    "--disable-setuid-sandbox",
    "--disable-seccomp-filter-sandbox",
    "--disable-site-isolation-trials",
    "--single-process",
    "--ignore-certificate-errors",
    "--allow-running-insecure-content",
    "--remote-debugging-port",
    "--remote-debugging-address",
)


def browser(test: Any) -> Any:
    return pytest.mark.browser(pytest.mark.timeout(90)(test))


@pytest.fixture
def settings(chromium_path: str) -> Settings:
    return Settings(browser=chromium_path)


def family(running: Running) -> list[psutil.Process]:
    roots = [psutil.Process(running.driver_pid), psutil.Process(running.browser_pid)]
    return [*roots, *(child for root in roots for child in root.children(recursive=True))]


async def until_replaced(chromium: Chromium, old: Running) -> tuple[Running, float]:
    start_s = monotonic()
    await until_async(lambda: old.lost is not None)
    new = await chromium.current()
    assert new is not old
    return new, monotonic() - start_s


@browser
async def test_command_line_weakens_nothing_and_nothing_is_left_after_the_end(settings: Settings) -> None:
    async with Chromium(settings) as chromium:
        running = await chromium.current()
        words = psutil.Process(running.browser_pid).cmdline()
        profile = next(word.split("=", 1)[1] for word in words if word.startswith("--user-data-dir="))
        assert Path(profile).is_dir()
        processes = family(running)
        assert chromium.problem() is None
    assert not [word for word in words if word.startswith(WEAKENING)]
    assert "--remote-debugging-pipe" in words
    assert "--headless" in " ".join(words)
    assert not any(map(runs, processes))
    assert not Path(profile).exists()
    assert running.lost is not None


@browser
@pytest.mark.parametrize("victim", ["browser", "driver"])
async def test_a_killed_process_is_replaced_with_its_partner(settings: Settings, victim: str) -> None:
    async with Chromium(settings) as chromium:
        old = await chromium.current()
        told = list[str]()
        old.on_lost(told.append)
        processes = family(old)
        profile = old._profile
        psutil.Process(old.browser_pid if victim == "browser" else old.driver_pid).kill()
        new, took_s = await until_replaced(chromium, old)
        assert took_s < 15
        assert told == [old.lost]
        page = await new.browser.new_page()
        assert await page.evaluate("1 + 1") == 2
        assert not any(map(runs, processes))
        assert profile is not None
        assert not profile.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script plays the browser")
@pytest.mark.browser
async def test_a_browser_that_dies_at_start_is_tried_again_later_and_later(tmp_path: Path) -> None:
    script, starts = tmp_path / "browser", tmp_path / "starts"
    script.write_text(f"#!/bin/sh\necho x >> '{starts}'\nexit 1\n")
    script.chmod(0o755)
    async with Chromium(Settings(browser=str(script))) as chromium:
        with pytest.raises(BrowserLost):
            await chromium.current()
        assert chromium.problem() is not None
        await anyio.sleep(4)
        with pytest.raises(BrowserLost):
            await chromium.current()
        assert 2 <= len(starts.read_text()) // 2 <= 3


@pytest.mark.browser
async def test_a_setting_that_cannot_be_used_is_the_problem() -> None:
    async with Chromium(Settings(browser="/no/such/browser")) as chromium:
        with pytest.raises(BrowserMissing, match="QWENPROXY_BROWSER"):
            await chromium.current()
        assert "QWENPROXY_BROWSER" in str(chromium.problem())


@browser
async def test_leaving_while_it_starts_leaves_nothing(settings: Settings) -> None:
    me = psutil.Process()
    before = {child.pid for child in me.children(recursive=True)}
    for pause_s in (0.0, 0.3, 0.8):
        async with Chromium(settings):
            await anyio.sleep(pause_s)
        left = [child for child in me.children(recursive=True) if child.pid not in before and runs(child)]
        assert left == []


AS_NOBODY = """
import anyio, psutil
from pathlib import Path
from qwenproxy.browser.chromium import Chromium
from qwenproxy.settings import Settings

async def main():
    async with Chromium(Settings(browser={browser!r})) as chromium:
        running = await chromium.current()
        page = await running.browser.new_page()
        browser = psutil.Process(running.browser_pid)
        renderers = [p for p in browser.children(recursive=True) if "--type=renderer" in p.cmdline()]
        status = Path(f"/proc/{{renderers[-1].pid}}/status").read_text()
        print(*[line for line in status.splitlines() if line.startswith("Seccomp:")])
        print("--no-sandbox" in browser.cmdline())

anyio.run(main)
"""


def nobodys_python() -> str | None:
    """An interpreter of our version that the user nobody may run; this one may lie in root's home."""
    if not shutil.which("runuser") or psutil.Process().username() != "root":
        return None
    ours = "{}.{}".format(*sys.version_info)
    for python in (sys.executable, "/usr/bin/python3"):
        command = ["runuser", "-u", "nobody", "--", python, "-c", "import sys; print(sys.version)"]
        told = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=30)
        if told.stdout.startswith(f"{ours}."):
            return python
    return None


@browser
async def test_as_an_ordinary_user_the_sandbox_is_on(chromium_path: str, tmp_path: Path) -> None:
    python = await anyio.to_thread.run_sync(nobodys_python)
    if python is None:
        pytest.skip("needs root, runuser and a Python that the user nobody may run")
    # Chromium's sandbox is made of them; inside a chroot the kernel refuses.
    probe = ["runuser", "-u", "nobody", "--", "unshare", "--user", "true"]
    if (await anyio.run_process(probe, check=False)).returncode:
        pytest.skip("ordinary users may not make user namespaces here")
    home = Path("/tmp") / f"nobody-{tmp_path.parent.name}"  # tmp_path itself is closed to others
    home.mkdir(mode=0o777)
    home.chmod(0o777)
    try:
        done = await anyio.to_thread.run_sync(lambda: as_nobody(python, chromium_path, home))
    finally:
        shutil.rmtree(home)
    assert done.stdout.split() == ["Seccomp:", "2", "False"], done.stderr


def as_nobody(python: str, chromium_path: str, home: Path) -> subprocess.CompletedProcess[str]:
    packages = Path(psutil.__file__).parent.parent

    def run(script: str, *libraries: Path) -> subprocess.CompletedProcess[str]:
        path = ":".join(map(str, libraries))
        environment = clean_environment({"HOME": str(home), "TMPDIR": str(home), "PYTHONPATH": path})
        command = ["runuser", "-u", "nobody", "--", python, "-c", script]
        return subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, timeout=80)

    libraries = [ROOT, packages]
    if run("import qwenproxy.browser.contexts", *libraries).returncode:
        # The checkout lies where others may not look, such as root's home.
        tools = shutil.ignore_patterns(
            "mypy*", "ruff*", "uv*", "granian*", "openai*", "hypothesis*", "coverage*"
        )
        libraries = [home / "lib"]
        shutil.copytree(packages, libraries[0], ignore=tools)
        shutil.copytree(ROOT / "qwenproxy", libraries[0] / "qwenproxy", dirs_exist_ok=True)
    return run(textwrap.dedent(AS_NOBODY).format(browser=chromium_path), *libraries)
