"""An account's context over the stand-in: renewals, and what of them is on disk when."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

from qwenproxy.browser import account_context as module
from qwenproxy.browser.chromium import Chromium, runs
from qwenproxy.browser.contexts import BrowserTransport
from qwenproxy.browser.site_page import SitePage, StorageState, mark_of, token_in
from qwenproxy.errors import SessionLocked, TokenRejected
from qwenproxy.qwen.transport import Fetch
from qwenproxy.settings import Settings
from tests.serve import Standin, clean_environment, until_async, write_session

pytestmark = [pytest.mark.anyio, pytest.mark.browser, pytest.mark.timeout(90)]
ONE = "one@example.com"


@asynccontextmanager
async def signed_in(standin: Standin, chromium: Chromium) -> AsyncIterator[BrowserTransport]:
    state = standin.storage_state(ONE)
    settings = Settings(upstream=standin.site, auth_upstream=standin.auth)
    async with BrowserTransport(settings, lambda _: state, chromium=chromium) as transport:
        yield transport


async def credential_of(transport: BrowserTransport) -> tuple[str, str]:
    """The actual status of a call that needs a sign-in, and its credential."""
    async with transport.fetch("a", Fetch("GET", "/api/v2/chats/?page=1")) as fetched:
        return fetched.headers["x-actual-status-code"], fetched.credential


async def test_a_signed_out_account_is_refused_until_it_is_asked_again(
    standin: Standin, chromium: Chromium
) -> None:
    async with signed_in(standin, chromium) as transport:
        await transport.warm("a")
        standin.revoke()
        await transport.forget("a")
        with pytest.raises(TokenRejected):
            await transport.warm("a")
        assert not transport.ready("a")
        assert not await transport.renew("a", "")


async def test_renewal_happens_beside_a_running_stream_once_for_all(
    standin: Standin, chromium: Chromium
) -> None:
    async with signed_in(standin, chromium) as transport:
        status, old = await credential_of(transport)
        assert status == "200"
        refreshes = len(standin.received("/api/v2/auths/refresh"))
        standin.expire()
        assert (await credential_of(transport))[0] == "401"
        page = await transport._account("a").usable_page()
        renewed = list[bool]()

        async def renew() -> None:
            renewed.append(await transport.renew("a", old))

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(renew)
        assert renewed == [True, True, True]
        status, new = await credential_of(transport)
        assert (status, new != old) == ("200", True)
        assert len(standin.received("/api/v2/auths/refresh")) == refreshes + 1
        assert await transport._account("a").usable_page() is page
        assert pages(transport) == 1


async def test_nothing_is_renewed_without_a_session(standin: Standin, chromium: Chromium) -> None:
    async with signed_in(standin, chromium) as transport:
        _, old = await credential_of(transport)
        standin.revoke()
        assert not await transport.renew("a", old)
        assert pages(transport) == 1


async def test_a_renewed_sign_in_outlives_the_browser(standin: Standin, chromium: Chromium) -> None:
    async with signed_in(standin, chromium) as transport:
        _, old = await credential_of(transport)
        standin.expire()
        assert await transport.renew("a", old)
        account = transport._account("a")
        await until_async(lambda: account._unkept is not None and old not in _marks(account._unkept))
        psutil.Process((await transport.chromium.current()).browser_pid).kill()
        await until_async(lambda: not transport.ready("a"))
        assert (await credential_of(transport))[0] == "200"


def pages(transport: BrowserTransport) -> int:
    context = transport._account("a")._context
    return len(context.pages) if context else 0


def _marks(state: dict[str, Any]) -> set[str]:
    return {mark_of(item["value"]) for origin in state["origins"] for item in origin["localStorage"]}


class Disk:
    """A state on a disk that may fail or belong to somebody else."""

    def __init__(self, state: StorageState) -> None:
        self.state = state
        self.writes = 0
        self.failing = False
        self.gone = False

    def state_of(self, _: str) -> StorageState:
        return self.state

    def keep(self, _: str, state: StorageState) -> bool:
        if self.failing:
            raise SessionLocked("tokens.json is locked by another program")
        if not self.gone:
            self.state = state
            self.writes += 1
        return not self.gone


@asynccontextmanager
async def kept(standin: Standin, chromium: Chromium, disk: Disk) -> AsyncIterator[BrowserTransport]:
    settings = Settings(upstream=standin.site, auth_upstream=standin.auth)
    async with BrowserTransport(settings, disk.state_of, disk.keep, chromium=chromium) as transport:
        yield transport


def disk_of(standin: Standin) -> Disk:
    return Disk(standin.storage_state(ONE))


def mark_on(disk: Disk, standin: Standin) -> str:
    return mark_of(token_in(disk.state, standin.site))


async def test_a_renewal_is_on_disk_before_it_is_told(standin: Standin, chromium: Chromium) -> None:
    disk = disk_of(standin)
    async with kept(standin, chromium, disk) as transport:
        _, old = await credential_of(transport)
        standin.expire()
        assert await transport.renew("a", old)
        assert mark_on(disk, standin) not in {"", old}


async def until_renewed(disk: Disk, standin: Standin) -> None:
    before = mark_on(disk, standin)
    await until_async(lambda: mark_on(disk, standin) != before)


async def test_what_the_page_renews_by_itself_is_kept_at_once(standin: Standin, chromium: Chromium) -> None:
    standin.options(renew="timer", access_token_s=3.0)
    disk = disk_of(standin)
    async with kept(standin, chromium, disk) as transport:
        await transport.warm("a")
        for _ in range(2):
            await until_renewed(disk, standin)
            renewed_at_s = standin.received("/api/v2/auths/refresh")[-1]["at"]
            assert anyio.current_time() - renewed_at_s < 2.5


async def test_what_has_not_changed_is_not_written_again(standin: Standin, chromium: Chromium) -> None:
    disk = disk_of(standin)
    async with kept(standin, chromium, disk) as transport:
        await credential_of(transport)
        account = transport._account("a")
        await account._save()
        writes = disk.writes
        await account._save()
        assert disk.writes == writes
        await (await transport._page("a"))._page.evaluate("localStorage.locale = 'en'")
        await account._save()
        assert disk.writes == writes + 1
        await (await transport._page("a"))._page.evaluate("localStorage.locale = 'de'")
    assert '"de"' in json.dumps(disk.state)


async def test_a_disk_that_fails_breaks_no_call_and_gets_the_renewal_later(
    standin: Standin, chromium: Chromium, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SAVE_AGAIN_S", 0.05)
    disk = disk_of(standin)
    async with kept(standin, chromium, disk) as transport:
        _, old = await credential_of(transport)
        disk.failing = True
        standin.expire()
        assert await transport.renew("a", old)
        assert (await credential_of(transport))[0] == "200"
        assert mark_on(disk, standin) == old
        disk.failing = False
        await until_async(lambda: mark_on(disk, standin) != old)


async def test_what_a_page_stored_last_is_kept_as_it_is_stopped_and_no_other_is_opened_for_it(
    standin: Standin, chromium: Chromium
) -> None:
    disk = Disk(standin.storage_state(ONE))
    opened = list[str]()
    async with kept(standin, chromium, disk) as transport:
        page = (await _warmed(transport))._page
        session = await (await chromium.current()).browser.new_browser_cdp_session()
        await session.send("Target.setDiscoverTargets", {"discover": True})
        session.on("Target.targetCreated", lambda event: opened.append(event["targetInfo"]["type"]))
        await page.evaluate("localStorage.last = 'here'")
    await session.detach()
    assert "here" in json.dumps(disk.state)
    assert "page" not in opened


async def _warmed(transport: BrowserTransport) -> SitePage:
    await transport.warm("a")
    return await transport._account("a").usable_page()


async def test_nothing_is_kept_of_a_forgotten_account(standin: Standin, chromium: Chromium) -> None:
    disk = disk_of(standin)
    async with kept(standin, chromium, disk) as transport:
        page = await transport._page("a")
        await transport._account("a")._save()
        writes = disk.writes
        await page._page.evaluate("localStorage.locale = 'en'")
        await transport.forget("a")
        assert disk.writes == writes


async def test_nothing_is_kept_in_the_place_of_a_new_sign_in(standin: Standin, chromium: Chromium) -> None:
    disk = disk_of(standin)
    async with kept(standin, chromium, disk) as transport:
        page = await transport._page("a")
        await transport._account("a")._save()
        disk.state = newer = standin.storage_state("two@example.com")
        await page._page.evaluate("localStorage.locale = 'en'")
        await transport._account("a")._save()
        assert disk.state is newer
        assert (await credential_of(transport))[0] == "200"
        assert standin.received("/api/v2/chats/?page=1")[-1]["account"] == "two@example.com"


async def test_an_account_that_is_not_stored_lives_on_in_memory(standin: Standin, chromium: Chromium) -> None:
    disk = disk_of(standin)
    disk.gone = True
    async with kept(standin, chromium, disk) as transport:
        _, old = await credential_of(transport)
        standin.expire()
        assert await transport.renew("a", old)
        assert transport._account("a")._unkept is not None
        page = await transport._page("a")
        psutil.Process((await transport.chromium.current()).browser_pid).kill()
        await until_async(lambda: page.lost is not None)
        assert (await credential_of(transport))[0] == "200"


async def test_a_signed_out_page_does_not_take_the_place_of_what_is_stored(
    standin: Standin, chromium: Chromium
) -> None:
    disk = disk_of(standin)
    async with kept(standin, chromium, disk) as transport:
        page = await transport._page("a")
        await transport._account("a")._save()
        stored = disk.state
        await page._page.evaluate("localStorage.clear()")
        await page._page.context.clear_cookies()
        await transport._account("a")._save()
        assert disk.state is stored


async def test_a_renewal_by_another_program_is_taken_up_where_tokens_rotate(
    standin: Standin, chromium: Chromium
) -> None:
    """A check from another console renews: what this context holds is dead then."""
    standin.options(rotate_refresh=True)
    disk = disk_of(standin)
    async with kept(standin, chromium, disk) as transport:
        _, old = await credential_of(transport)
        await transport._account("a")._save()
        standin.expire()
        async with kept(standin, chromium, disk) as other:
            assert (await credential_of(other))[0] == "200"
        assert await transport.renew("a", old)
        assert (await credential_of(transport))[0] == "200"
        standin.revoke()
        _, old = await credential_of(transport)
        assert not await transport.renew("a", old)


async def test_a_page_that_opens_late_takes_up_what_another_program_renewed(
    standin: Standin, chromium: Chromium
) -> None:
    standin.options(rotate_refresh=True)
    disk = disk_of(standin)
    async with kept(standin, chromium, disk) as transport:
        disk.failing = True
        page = await transport._page("a")
        disk.failing = False
        standin.expire()
        async with kept(standin, chromium, disk) as other:
            await other.warm("a")
        page.lose("for a test")
        await until_async(lambda: not transport.ready("a"))
        assert (await credential_of(transport))[0] == "200"


KILLED = """
import json, os, signal
import anyio
from qwenproxy.accounts.registry import Registry
from qwenproxy.browser.contexts import BrowserTransport
from qwenproxy.clock import SystemClock
from qwenproxy.qwen.transport import Fetch
from qwenproxy.settings import load

async def main():
    settings = load()
    registry = Registry(settings.session_dir, SystemClock())
    async with BrowserTransport(settings, registry.browser_state, registry.keep_state) as transport:
        running = await transport.chromium.current()
        async with transport.fetch("acc_1", Fetch("GET", "/api/v2/chats/?page=1")) as fetched:
            status = fetched.headers["x-actual-status-code"]
            print(json.dumps([status, running.browser_pid, running.driver_pid]), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

anyio.run(main)
"""


def gone(pid: int) -> bool:
    try:
        return not runs(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return True


def all_gone(pids: list[int]) -> bool:
    return all(map(gone, pids))


@pytest.mark.skipif(sys.platform == "win32", reason="kills with a signal")
async def test_a_killed_proxy_starts_again_signed_in_from_what_is_on_disk(
    standin: Standin, chromium_path: str, tmp_path: Path
) -> None:
    """Each start renews as its page boots, and the refresh token it came with is dead then."""
    standin.options(rotate_refresh=True)
    write_session(tmp_path / "session", standin, (ONE,))
    environment = clean_environment(
        {
            "QWENPROXY_UPSTREAM": standin.site,
            "QWENPROXY_AUTH_UPSTREAM": standin.auth,
            "QWENPROXY_SESSION_DIR": str(tmp_path / "session"),
            "QWENPROXY_BROWSER": chromium_path,
        }
    )
    for start in range(2):
        standin.expire()
        done = await anyio.run_process([sys.executable, "-c", KILLED], check=False, env=environment)
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()
        status, *pids = json.loads(done.stdout)
        await until_async(partial(all_gone, pids))
        assert status == "200"
        assert len(standin.received("/api/v2/auths/refresh")) == start + 1
