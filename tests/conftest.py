"""The fixtures every test may use."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import ExitStack
from functools import wraps
from inspect import iscoroutinefunction
from pathlib import Path

import anyio
import pytest

from qwenproxy.browser.chromium import Chromium
from qwenproxy.settings import Settings
from tests.serve import Standin, leaking, running_standin

ASYNC_SHARE = 0.8
"""Of a test's time limit, in which what is async has to be over; the rest is for its fixtures' ends."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def pytest_configure() -> None:
    """Under `nohup` every process started here would ignore a hang-up, and the product rightly so too."""
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Who shares the tests takes whole files, and one process all that drives the whole program.

    Two Chromiums at once take twice as long on two cores, and what waits for them gives up.
    """
    folder = item.path.parent
    whole = folder.name == "e2e" and "page" not in getattr(item, "fixturenames", ())
    item.add_marker(pytest.mark.xdist_group("whole program" if whole else str(item.path)))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The whole program first, beside it what needs no browser, then the rest.

    pytest-playwright's `page` leaves its loop running in this thread: async tests after it would break.
    """
    waits = {item.path for item in items if item.get_closest_marker("browser")}

    def place(item: pytest.Item) -> int:
        if "page" in getattr(item, "fixturenames", ()):
            return 3
        return 0 if item.path.parent.name == "e2e" else 1 + (item.path in waits)

    items.sort(key=place)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Between the processes that share the tests a report travels as UTF-8, whatever was logged."""
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections
    ]
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> None:
    """An async test that takes too long is cancelled, and fails, while there is time left to end what it had.

    pytest-timeout's signal, which comes after, would strike inside the loop: no test or fixture of the file
    could use it any more, and nobody would end the file's Chromium.
    """
    if not iscoroutinefunction(pyfuncitem.obj):
        return
    marker = pyfuncitem.get_closest_marker("timeout")
    limit_s = float(marker.args[0] if marker else pyfuncitem.config.getini("timeout"))
    pyfuncitem.obj = _ended_in_time(pyfuncitem.obj, limit_s * ASYNC_SHARE)


def _ended_in_time(test: Callable[..., Awaitable[None]], deadline_s: float) -> Callable[..., Awaitable[None]]:
    @wraps(test)
    async def ended(*arguments: object, **fixtures: object) -> None:
        with anyio.fail_after(deadline_s):
            await test(*arguments, **fixtures)

    return ended


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """One loop a file, where a fixture lives as long as the file."""
    return "asyncio"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable of this shell, and no `.env` of this folder, reaches a test."""
    for name in filter(leaking, list(os.environ)):
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def chromium_path() -> str:
    """What `settings.browser` is in tests: the system's Chromium."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("no Chromium on this computer; on Debian: apt-get install chromium")
    return found


@pytest.fixture(scope="module")
async def chromium(chromium_path: str) -> AsyncIterator[Chromium]:
    """One for all the tests of a file."""
    async with Chromium(Settings(browser=chromium_path)) as started:
        yield started


@pytest.fixture(scope="session")
def _standins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, bool], Standin]]:
    """Stand-ins already running, by era and protocol: starting one takes half a second."""
    with ExitStack() as stack:
        started: dict[tuple[str, bool], Standin] = {}

        def standin(era: str, http2: bool) -> Standin:
            if (era, http2) not in started:
                folder = tmp_path_factory.mktemp("standin")
                started[era, http2] = stack.enter_context(running_standin(folder, era=era, http2=http2))
            return started[era, http2]

        yield standin


@pytest.fixture
def standin(request: pytest.FixtureRequest, _standins: Callable[[str, bool], Standin]) -> Standin:
    """A fresh stand-in over HTTP/1.1, era C: `@pytest.mark.parametrize("standin", ["B"], indirect=True)`."""
    found = _standins(getattr(request, "param", "C"), False)
    found.reset()
    return found


@pytest.fixture
def h2_standin(request: pytest.FixtureRequest, _standins: Callable[[str, bool], Standin]) -> Standin:
    """The same over HTTP/2 and TLS: for more than six streams of one page."""
    found = _standins(getattr(request, "param", "C"), True)
    found.reset()
    return found
