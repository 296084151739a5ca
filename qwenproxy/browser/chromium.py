"""One Chromium, started, watched and replaced; the border that Playwright's types and errors do not cross.

What is watched, and why Playwright is not asked (reliability §2.7): `is_connected()` stays true and
`disconnected` never fires when the driver is killed (B-7), and a frozen browser fails no call (B-4). So both
processes are polled, and a tiny call with a deadline is made all the time. Whatever died, driver and browser
are replaced together: a new pair takes about a second, and half a pair is never to be trusted.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import anyio
import psutil
from anyio.to_thread import run_sync
from playwright.async_api import Browser, CDPSession, Playwright, ProxySettings, async_playwright
from playwright.async_api import Error as PlaywrightError

from qwenproxy.browser.install import HINT, Executable, Say, driver_hint, find, get_driver_library
from qwenproxy.errors import BrowserError, BrowserLost, BrowserMissing
from qwenproxy.settings import Settings

POLL_S = 0.25
"""Seconds between two looks at the processes: under 0.1 ms each."""
PROBE_EVERY_S = 2.0
PROBE_S = 5.0
"""Seconds for the tiny call; usually 1 ms."""
PROBE_MISSES = 2
START_S = 30.0
"""Seconds for the driver, and again for the browser, to start; usually under 1 s each."""
WAIT_S = 60.0
"""Longest wait of a call for a browser that is starting."""
STOP_S = 5.0
"""Seconds for driver and browser to go by themselves before they are killed."""
LIVED_S = 2.0
"""A browser that dies younger counts as a failed launch."""
BACK_OFF_LIMIT_S = 60.0

log = logging.getLogger(__name__)


@contextmanager
def reaching(what: str, deadline_s: float) -> Iterator[None]:
    """The border: a call into Playwright with a deadline, and our errors.

    Raises:
        BrowserLost: `what` is gone or did not answer in time.
    """
    try:
        with anyio.fail_after(deadline_s):
            yield
    except TimeoutError:
        raise BrowserLost(f"{what} did not answer within {deadline_s:g} s") from None
    except PlaywrightError as exc:
        log.debug("Playwright: %s", exc.message)
        raise BrowserLost(f"{what} went away") from None


def runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _tree(roots: Iterable[psutil.Process]) -> set[psutil.Process]:
    found = set(roots)
    for root in roots:
        with suppress(psutil.Error):
            found.update(root.children(recursive=True))
    return found


async def kill(processes: Iterable[psutil.Process]) -> None:
    """Ends them and everything they started. Polls, for psutil's own wait would reap asyncio's children."""
    doomed = _tree(list(processes))
    for process in doomed:
        with suppress(psutil.Error):
            process.kill()
    with anyio.move_on_after(STOP_S):
        while any(map(runs, doomed)):  # noqa: ASYNC110 - the system tells of its processes' ends only when asked
            await anyio.sleep(0.02)


class Running:
    """One driver and its browser, from launch to loss."""

    def __init__(
        self, driver: _Driver, browser: Browser, session: CDPSession, process: psutil.Process
    ) -> None:
        self.browser = browser
        self._driver = driver
        self._session = session
        self._process = process
        self._profile = _profile_of(process)
        self._listeners: set[Callable[[str], None]] = set()
        self.lost: str | None = None
        self.started_at_s = time.monotonic()
        browser.on("disconnected", lambda _browser: self.lose("the browser died"))

    def __repr__(self) -> str:
        return f"<Running browser {self._process.pid}, driver {self._driver.pid}, lost: {self.lost}>"

    @property
    def browser_pid(self) -> int:
        return self._process.pid

    @property
    def driver_pid(self) -> int:
        return self._driver.pid

    def on_lost(self, listener: Callable[[str], None]) -> Callable[[], None]:
        """`listener` is told why, once, at once; the result takes it off again."""
        if self.lost is not None:
            listener(self.lost)
        self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    def lose(self, why: str) -> None:
        if self.lost is None:
            self.lost = why
            for listener in list(self._listeners):
                listener(why)

    def lose_if_dead(self) -> None:
        """Looks at the two processes."""
        if not runs(self._process):
            self.lose("the browser died")
        elif not self._driver.runs():
            self.lose("the browser's driver died")

    async def probe(self) -> bool:
        try:
            with reaching("the browser", PROBE_S):
                await self._session.send("Browser.getVersion")
        except BrowserLost:
            return False
        return True

    async def stop(self, *, politely: bool) -> None:
        """Leaves no process and no profile folder behind."""
        remains = _tree([self._process, *self._driver.processes])
        if politely:
            with suppress(BrowserLost), reaching("the browser", STOP_S):
                await self.browser.close()
        else:
            await kill([self._process])
        await self._driver.stop()
        await kill(remains)
        if self._profile is not None:
            await run_sync(partial(shutil.rmtree, self._profile, ignore_errors=True))


def _profile_of(process: psutil.Process) -> Path | None:
    """The temporary profile that the driver made and removes, unless the driver is killed."""
    switch = "--user-data-dir="
    with suppress(psutil.Error):
        found = [Path(word.removeprefix(switch)) for word in process.cmdline() if word.startswith(switch)]
        own = [path for path in found if path.parent == Path(tempfile.gettempdir())]
        return own[0] if own and own[0].name.startswith("playwright_chromiumdev_profile-") else None
    return None


class _Driver:
    """Playwright's Node process."""

    def __init__(self) -> None:
        self._context = async_playwright()
        self.playwright: Playwright
        self.processes: list[psutil.Process] = []

    @property
    def pid(self) -> int:
        return self.processes[0].pid if self.processes else 0

    def runs(self) -> bool:
        return any(map(runs, self.processes))

    async def start(self) -> None:
        """Raises: BrowserLost."""
        before = _drivers()
        try:
            # Shielded, for Playwright leaves tasks with errors behind when its start is cancelled.
            with anyio.CancelScope(shield=True), reaching("Playwright's driver", START_S):
                self.playwright = await self._context.start()
        except BrowserLost:
            raise
        except Exception as exc:  # noqa: BLE001 - Playwright raises a plain Exception when its driver dies at start
            log.warning("Playwright's driver did not start: %s", exc)
            raise BrowserLost(f"Playwright's driver did not start{driver_hint()}") from None
        finally:
            self.processes = list(_drivers() - before)
            self._hush()

    def _hush(self) -> None:
        """Playwright never reads the error of a driver that died; asyncio would log it as never retrieved."""
        transport = getattr(getattr(self._context, "_client", None), "_transport", None)
        future = getattr(transport, "on_error_future", None)
        if future is not None:
            future.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def stop(self) -> None:
        if self.processes and self.runs() and hasattr(self, "playwright"):
            with suppress(BrowserLost), reaching("Playwright's driver", STOP_S):
                await self.playwright.stop()
        await kill(self.processes)


def _drivers() -> set[psutil.Process]:
    found = set()
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if "run-driver" in child.cmdline():
                found.add(child)
    return found


def _is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0


class Chromium:
    """`async with Chromium(settings)` starts one in the background and keeps one until the end."""

    def __init__(self, settings: Settings, *, say: Say = log.info) -> None:
        self._settings = settings
        self._say = say
        self._running: Running | None = None
        self._problem: BrowserError | None = None
        self._news = anyio.Event()
        self._life = AsyncExitStack()

    def __repr__(self) -> str:
        return f"<Chromium {self._running or self._problem or 'starting'}>"

    async def __aenter__(self) -> Self:
        tasks = await self._life.enter_async_context(anyio.create_task_group())
        self._life.callback(tasks.cancel_scope.cancel)
        tasks.start_soon(self._keep_one)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._life.aclose()

    def problem(self) -> str | None:
        """Why there is no browser now."""
        if self._usable() is not None:
            return None
        return str(self._problem) if self._problem else "Chromium is starting"

    async def first(self) -> Running:
        """The first browser, however long it takes to download one.

        Raises:
            BrowserMissing, BrowserLost: why there is none.
        """
        while self._running is None and self._problem is None:
            await self._news.wait()
        return await self.current()

    async def current(self) -> Running:
        """The browser of now; waits while one is starting.

        Raises:
            BrowserMissing, BrowserLost: why there is none.
        """
        with anyio.move_on_after(WAIT_S):
            while self._usable() is None and self._problem is None:
                await self._news.wait()
        running = self._usable()
        if running is not None:
            return running
        if self._problem is not None:
            raise type(self._problem)(*self._problem.args)
        raise BrowserLost(f"Chromium did not start within {WAIT_S:g} s")

    def _usable(self) -> Running | None:
        return self._running if self._running is not None and self._running.lost is None else None

    def _tell(self, running: Running | None, problem: BrowserError | None) -> None:
        self._running, self._problem = running, problem
        self._news.set()
        self._news = anyio.Event()

    async def _keep_one(self) -> None:
        failures = 0
        while True:
            try:
                running = await self._launch()
            except BrowserError as exc:
                log.warning("no browser: %s", exc)
                self._tell(None, exc)
                lived_s = 0.0
            else:
                self._tell(running, None)
                await self._live(running)
                lived_s = time.monotonic() - running.started_at_s
                if lived_s < LIVED_S and failures:
                    self._tell(None, BrowserLost("Chromium dies as soon as it starts"))
            failures = 0 if lived_s >= LIVED_S else failures + 1
            if failures:
                await anyio.sleep(min(BACK_OFF_LIMIT_S, 2.0 ** (failures - 1)))

    async def _live(self, running: Running) -> None:
        """Until it is lost; then nothing of it is left."""
        politely = True
        try:
            await self._watch(running)
            politely = False
            log.warning("%s; a new one is started", running.lost)
            self._tell(None, None)
        finally:
            running.lose("the proxy is stopping")
            with anyio.CancelScope(shield=True):
                await running.stop(politely=politely)

    async def _watch(self, running: Running) -> None:
        """Until the browser is lost."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._probe, running)
            while running.lost is None:
                await anyio.sleep(POLL_S)
                running.lose_if_dead()
            tasks.cancel_scope.cancel()

    async def _probe(self, running: Running) -> None:
        misses = 0
        while misses < PROBE_MISSES:
            await anyio.sleep(0 if misses else PROBE_EVERY_S)
            misses = 0 if await running.probe() else misses + 1
        running.lose("the browser froze")

    async def _launch(self) -> Running:
        """Raises: BrowserMissing, BrowserLost. Whatever it started is gone then, cancelled or not."""
        await get_driver_library(self._say)
        driver = _Driver()
        try:
            await driver.start()
            own = Path(driver.playwright.chromium.executable_path)
            executable = await find(self._settings.browser, own, self._say)
            browser = await self._start_browser(driver.playwright, executable)
            with reaching("the browser", START_S):
                session = await browser.new_browser_cdp_session()
                known = await session.send("SystemInfo.getProcessInfo")
            return Running(driver, browser, session, psutil.Process(_browser_pid(known)))
        except BaseException:
            with anyio.CancelScope(shield=True):
                remains = _tree(driver.processes)
                await driver.stop()
                await kill(remains)
            raise

    async def _start_browser(self, playwright: Playwright, executable: Executable) -> Browser:
        if _is_root():
            log.warning("running as root: Chromium's sandbox is off; start the proxy as an ordinary user")
        try:
            with anyio.fail_after(START_S + 5):
                browser = await playwright.chromium.launch(
                    executable_path=executable.path,
                    channel=executable.channel,
                    headless=self._settings.headless,
                    chromium_sandbox=not _is_root(),
                    handle_sigint=False,
                    handle_sigterm=False,
                    handle_sighup=False,
                    proxy=ProxySettings(server=self._settings.proxy) if self._settings.proxy else None,
                    timeout=START_S * 1000,
                )
        except TimeoutError:
            raise BrowserLost(f"Chromium did not start within {START_S:g} s") from None
        except PlaywrightError as exc:
            log.debug("Playwright: %s", exc.message)
            if executable.channel and "is not found at" in exc.message:
                raise BrowserMissing(f"the browser {executable.channel} is not installed; {HINT}") from None
            raise BrowserLost(f"Chromium could not be started; {_reason(exc.message)}") from None
        return browser


def _reason(message: str) -> str:
    """The line of Playwright's report that says something."""
    lines = [line.strip(" -╔║╗╚╝═") for line in message.splitlines()]
    telling = [
        line
        for line in lines
        if any(word in line for word in ("shared librar", "missing", "sandbox", "[err]"))
    ]
    return (telling or lines or [""])[0][:200]


def _browser_pid(known: dict[str, Any]) -> int:
    return int(next(process["id"] for process in known["processInfo"] if process["type"] == "browser"))
