"""Signing in, passing a check and asking for free, over the stand-in, whose page plays the person."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

from qwenproxy import enrolment as module
from qwenproxy.accounts.account import Account, SignIn
from qwenproxy.accounts.registry import Registry
from qwenproxy.browser.chromium import Chromium
from qwenproxy.browser.contexts import BrowserTransport
from qwenproxy.browser.login import CLOSED, PENDING
from qwenproxy.browser.site_page import close
from qwenproxy.clock import SystemClock
from qwenproxy.enrolment import HUMAN, NOT_CONFIRMED, NOTHING_ASKED, SIGNED_OUT, Checked, Enrolment
from qwenproxy.errors import AccountGone, BrowserMissing, NeedsHuman, SignInFailed, Unreachable
from qwenproxy.qwen.client import QwenClient
from qwenproxy.settings import Settings
from tests.serve import Standin, free_port, until_async
from tests.xvfb import virtual_screen

pytestmark = [pytest.mark.anyio, pytest.mark.browser, pytest.mark.timeout(90)]
ONE, TWO, LATE = "one@example.com", "two@example.com", "pending@example.com"


class Desk:
    """An enrolment over a session folder, and what it said."""

    def __init__(self, standin: Standin, chromium: Chromium, folder: Path, **more: Any) -> None:
        self.said: list[str] = []
        self.asked: list[str] = []
        self.watches: list[module._Watch] = []
        self.answer = True
        # Shorter than a test may take: what nobody does here fails by its own words.
        wait = {"sign_in_timeout_s": 60, **more}
        self.settings = Settings(
            upstream=standin.site, auth_upstream=standin.auth, session_dir=folder / "session", **wait
        )
        self.chromium = chromium
        self.registry = Registry(self.settings.session_dir, SystemClock())
        self.enrolment = Enrolment(
            self.settings, self.registry, SystemClock(), say=self.said.append, chromium=chromium
        )

    async def confirm(self, question: str) -> bool:
        self.asked.append(question)
        return self.answer

    async def page(self) -> Any:
        """The page of the window that is open."""
        browser = (await self.chromium.current()).browser
        await until_async(lambda: any(context.pages for context in browser.contexts))
        return next(page for context in browser.contexts for page in context.pages)

    async def dialog(self, page: Any) -> None:
        """The service's check is shown, and for longer than we take to see it, as when a person passes it."""
        await page.locator(".baxia-dialog").wait_for()
        await until_async(lambda: any(watch.asked for watch in self.watches))

    def known(self, standin: Standin, account: str) -> Account:
        """An account that signed in before."""
        state = standin.storage_state(account)
        token = state["origins"][0]["localStorage"][0]["value"]
        return self.registry.add(SignIn(token, state))[0]

    def now(self, account: Account) -> Account:
        return next(each for each in self.registry.accounts() if each.id == account.id)


@pytest.fixture
async def desk(
    standin: Standin, chromium: Chromium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Desk]:
    await chromium.current()
    desk, watch = Desk(standin, chromium, tmp_path), module._Watch

    def watched(*opened: Any) -> module._Watch:
        desk.watches.append(watch(*opened))
        return desk.watches[-1]

    monkeypatch.setattr(module, "_Watch", watched)
    yield desk
    assert (await chromium.current()).browser.contexts == []


@asynccontextmanager
async def meanwhile(act: Callable[[], Any]) -> AsyncIterator[None]:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(act)
        yield


async def works_headless(desk: Desk, account: Account) -> bool:
    async with BrowserTransport(
        desk.settings, desk.enrolment._state_of, desk.registry.keep_state, chromium=desk.chromium
    ) as transport:
        user = await QwenClient(transport, desk.settings, SystemClock()).who(account.id)
        return str(user["email"]) == account.email


@pytest.mark.parametrize("standin", ["B", "C"], indirect=True)
async def test_a_person_signs_in_and_the_account_works_from_what_is_on_disk(
    desk: Desk, standin: Standin
) -> None:
    standin.options(demo=True, people=[ONE])
    added = await desk.enrolment.add()
    assert (added.known, added.account.email, added.account.state(SystemClock().now())) == (False, ONE, "OK")
    assert added.account.user_id
    assert added.account.holds_until is not None
    assert timedelta(days=29) < added.account.holds_until - SystemClock().now() < timedelta(days=31)
    assert added.account.signed_in_at is not None
    folder = desk.settings.session_dir / "accounts" / added.account.id
    token = (folder / "token.txt").read_text()
    assert json.loads((desk.settings.session_dir / "tokens.json").read_text())[0]["token"] == token
    if standin.era == "C":
        standin.expire()  # the page renews
    assert await works_headless(desk, added.account)
    assert standin.state()["opened"] == 0


async def test_signing_in_twice_updates_the_account(desk: Desk, standin: Standin) -> None:
    standin.options(demo=True, people=[ONE, TWO, ONE])
    first, other, again = [await desk.enrolment.add() for _ in range(3)]
    assert [each.known for each in (first, other, again)] == [False, False, True]
    assert again.account.id == first.account.id != other.account.id
    assert [account.email for account in desk.registry.accounts()] == [ONE, TWO]


async def test_a_sign_in_is_proved_without_a_message(desk: Desk, standin: Standin) -> None:
    standin.options(demo=True, people=[ONE])
    await desk.enrolment.add()
    paths = [each["path"] for each in standin.received()]
    assert paths.count("/api/v2/auths/") >= 2  # the page's own, and ours
    assert not [path for path in paths if "completions" in path or "chats/new" in path]


@pytest.mark.parametrize("pending", ["overlay", "refused"])
async def test_an_address_that_is_not_confirmed_is_waited_for(
    desk: Desk, standin: Standin, pending: str
) -> None:
    standin.options(demo=True, people=[LATE], pending=pending, person_activates_s=2.0)
    added = await desk.enrolment.add()
    assert added.account.email == LATE
    assert desk.said == [PENDING]


async def test_time_runs_out(chromium: Chromium, standin: Standin, tmp_path: Path) -> None:
    desk = Desk(standin, chromium, tmp_path, sign_in_timeout_s=1)
    with pytest.raises(SignInFailed, match=r"^nobody signed in within 1 second"):
        await desk.enrolment.add()
    desk = Desk(standin, chromium, tmp_path, sign_in_timeout_s=8)
    standin.options(demo=True, people=[LATE])
    with pytest.raises(SignInFailed, match=r"^the e-mail address was not confirmed within 8 seconds$"):
        await desk.enrolment.add()
    assert desk.registry.accounts() == ()
    assert (await chromium.current()).browser.contexts == []


async def test_a_sign_in_that_the_service_does_not_confirm_is_none(
    chromium: Chromium, standin: Standin, tmp_path: Path
) -> None:
    desk = Desk(standin, chromium, tmp_path, sign_in_timeout_s=8)
    standin.options(demo=True, people=[ONE])
    standin.fault("invalid_header", on="auths", times=1000)
    with pytest.raises(SignInFailed, match=r"did not confirm the sign-in \(.+\) within 8 seconds"):
        await desk.enrolment.add()
    assert desk.registry.accounts() == ()


@pytest.mark.parametrize("what", ["page", "context"])
async def test_a_closed_window_ends_it(desk: Desk, what: str) -> None:
    async def leave() -> None:
        page = await desk.page()
        await page.wait_for_url("**/auth")
        await close(page if what == "page" else page.context)

    async with meanwhile(leave):
        with pytest.raises(SignInFailed) as failed:
            await desk.enrolment.add()
    assert str(failed.value) == CLOSED


async def test_a_browser_that_is_ended_ends_it(desk: Desk) -> None:
    async def end() -> None:
        await (await desk.page()).wait_for_url("**/auth")
        psutil.Process((await desk.chromium.current()).browser_pid).kill()

    async with meanwhile(end):
        with pytest.raises(SignInFailed) as failed:
            await desk.enrolment.add()
    assert str(failed.value) == CLOSED
    await desk.chromium.current()


@pytest.mark.parametrize("identity", ["page", "popup"])
async def test_an_identity_provider_that_refuses_is_told(desk: Desk, standin: Standin, identity: str) -> None:
    standin.options(demo=True, people=[ONE], identity=identity)

    async def by_mail() -> None:
        await until_async(lambda: desk.said)
        standin.options(identity="")
        if identity == "page":
            await (await desk.page()).get_by_text("Back").click()

    async with meanwhile(by_mail):
        added = await desk.enrolment.add()
    assert added.account.email == ONE
    (note,) = desk.said
    assert "e-mail" in note
    assert "--browser chrome" in note
    state = desk.registry.browser_state(added.account.id)
    assert state is not None
    assert [origin["origin"] for origin in state["origins"]] == [standin.site]


async def test_signing_in_again_brings_an_account_back(desk: Desk, standin: Standin) -> None:
    account = desk.known(standin, ONE)
    desk.registry.update(account.id, lambda known: replace(known, invalid=True, label="mine"))
    standin.revoke()
    standin.options(demo=True, people=[ONE])
    again = await desk.enrolment.sign_in_again(account.id, desk.confirm)
    assert (again.id, again.label, again.email, again.invalid) == (account.id, "mine", ONE, False)
    assert desk.asked == []
    assert await works_headless(desk, again)


@pytest.mark.parametrize("answer", [True, False])
async def test_another_person_is_asked_about(desk: Desk, standin: Standin, answer: bool) -> None:
    account = desk.known(standin, ONE)
    before = (desk.settings.session_dir / "tokens.json").read_bytes()
    standin.options(demo=True, people=[TWO])
    desk.answer = answer
    if answer:
        again = await desk.enrolment.sign_in_again(account.id, desk.confirm)
        assert (again.id, again.email) == (account.id, TWO)
    else:
        with pytest.raises(SignInFailed, match="nothing was changed"):
            await desk.enrolment.sign_in_again(account.id, desk.confirm)
        assert (desk.settings.session_dir / "tokens.json").read_bytes() == before
    (question,) = desk.asked
    assert TWO in question


async def test_another_known_person_renews_their_own_account(desk: Desk, standin: Standin) -> None:
    standin.options(demo=True, people=[ONE, TWO, TWO])
    one, two = [(await desk.enrolment.add()).account for _ in range(2)]
    again = await desk.enrolment.sign_in_again(one.id, desk.confirm)
    assert again.id == two.id
    assert [account.email for account in desk.registry.accounts()] == [ONE, TWO]
    assert TWO in desk.asked[0]


async def test_a_deleted_account_is_not_signed_in_again(desk: Desk) -> None:
    with pytest.raises(AccountGone):
        await desk.enrolment.sign_in_again("acc_1", desk.confirm)
    with pytest.raises(AccountGone):
        await desk.enrolment.pass_check("acc_1")


async def test_without_a_screen_the_ways_that_work_are_named_at_once(
    standin: Standin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    settings = Settings(upstream=standin.site, auth_upstream=standin.auth, session_dir=tmp_path / "session")
    enrolment = Enrolment(settings, Registry(settings.session_dir, SystemClock()), SystemClock(), say=print)
    with anyio.fail_after(2), pytest.raises(SignInFailed) as failed:
        await enrolment.add()
    for way in ("copy", "--token-stdin", "xvfb-run"):
        assert way in str(failed.value)
    assert standin.received() == []


async def test_a_window_of_ones_own_opens_on_the_screen_and_is_gone_after(
    chromium_path: str, standin: Standin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    standin.options(demo=True, people=[ONE], person_in="windows")
    settings = Settings(upstream=standin.site, auth_upstream=standin.auth, session_dir=tmp_path / "session")
    enrolment = Enrolment(settings, Registry(settings.session_dir, SystemClock()), SystemClock(), say=print)
    children = {child.pid for child in psutil.Process().children(recursive=True)}
    with virtual_screen() as display:
        monkeypatch.setenv("DISPLAY", display)
        added = await enrolment.add(browser=chromium_path)
        assert added.account.email == ONE
        names = [c.name() for c in psutil.Process().children(recursive=True) if c.pid not in children]
        assert names == ["Xvfb"]


async def test_a_browser_that_is_not_installed_is_named(standin: Standin, tmp_path: Path) -> None:
    settings = Settings(upstream=standin.site, auth_upstream=standin.auth, session_dir=tmp_path / "session")
    enrolment = Enrolment(settings, Registry(settings.session_dir, SystemClock()), SystemClock(), say=print)
    with virtual_screen() as display, pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISPLAY", display)
        with pytest.raises(BrowserMissing, match="msedge"):
            await enrolment.add(browser="msedge")


# Checks.


async def checked(desk: Desk, *accounts: Account) -> list[tuple[bool | None, str]]:
    found: tuple[Checked, ...] = await desk.enrolment.check([account.id for account in accounts])
    assert [each.account.id for each in found] == [account.id for account in accounts]
    assert [each.account for each in found] == [desk.now(account) for account in accounts]
    return [(each.live, each.note) for each in found]


async def test_checks_tell_the_living_from_the_gone(desk: Desk, standin: Standin) -> None:
    one, two = desk.known(standin, ONE), desk.known(standin, TWO)
    standin.revoke(TWO)
    standin.expire(ONE)
    desk.registry.update(one.id, lambda known: replace(known, invalid=True))
    old = desk.registry.token(one.id)
    assert await checked(desk, one, two) == [(True, ""), (False, SIGNED_OUT)]
    assert (desk.now(one).invalid, desk.now(one).email) == (False, ONE)
    assert desk.now(one).user_id
    assert desk.registry.token(one.id) != old
    assert desk.now(two).invalid
    assert standin.state()["opened"] == 0


async def test_a_check_leaves_a_limits_wait(desk: Desk, standin: Standin) -> None:
    one = desk.known(standin, ONE)
    until = SystemClock().now() + timedelta(hours=3)
    desk.registry.update(one.id, lambda known: replace(known, wait_until=until, why="limit"))
    assert await checked(desk, one) == [(True, "")]
    assert (desk.now(one).wait_until, desk.now(one).why) == (until, "limit")


async def test_a_check_that_meets_the_human_check_says_so(desk: Desk, standin: Standin) -> None:
    one = desk.known(standin, ONE)
    standin._control("POST", "challenge", {"account": ONE})
    assert await checked(desk, one) == [(True, HUMAN)]
    assert (desk.now(one).why, desk.now(one).wait_until) == ("human", None)
    standin.solve()
    assert await checked(desk, one) == [(True, "")]
    assert desk.now(one).why == "human"


async def test_a_check_says_what_is_not_confirmed(desk: Desk, standin: Standin) -> None:
    assert await checked(desk, desk.known(standin, LATE)) == [(False, NOT_CONFIRMED)]


async def test_a_check_that_cannot_ask_changes_nothing(
    chromium: Chromium, standin: Standin, tmp_path: Path
) -> None:
    desk = Desk(standin, chromium, tmp_path)
    one = desk.known(standin, ONE)
    nowhere = f"http://127.0.0.1:{free_port()}"
    away = desk.settings.model_copy(update={"upstream": nowhere, "auth_upstream": nowhere})
    enrolment = Enrolment(away, desk.registry, SystemClock(), say=print, chromium=chromium)
    (found,) = await enrolment.check([one.id, "acc_404"])
    assert found.live is None
    # Chromium counts a cookie's end in whole microseconds.
    assert replace(found.account, holds_until=None) == replace(one, holds_until=None)
    assert "could not reach" in found.note
    with pytest.raises(Unreachable):
        await enrolment.token_lives("any")


# Passing the service's human check.


async def challenged(desk: Desk, standin: Standin) -> Account:
    account = desk.known(standin, ONE)
    standin._control("POST", "challenge", {"account": ONE})
    desk.registry.update(account.id, lambda known: replace(known, why="human"))
    return account


async def test_a_passed_check_clears_the_wait(desk: Desk, standin: Standin) -> None:
    account = await challenged(desk, standin)

    async def solve() -> None:
        page = await desk.page()
        await desk.dialog(page)
        await page.evaluate("localStorage.passed = 'yes'")
        standin.solve()

    async with meanwhile(solve):
        passed = await desk.enrolment.pass_check(account.id)
    assert (passed.why, passed.wait_until, passed.state(SystemClock().now())) == ("", None, "OK")
    assert "passed" in json.dumps(desk.registry.browser_state(account.id))
    assert standin.state()["opened"] == 0


async def test_a_window_closed_over_the_dialog_has_passed_nothing(desk: Desk, standin: Standin) -> None:
    account = await challenged(desk, standin)

    async def leave() -> None:
        page = await desk.page()
        await desk.dialog(page)
        await close(page)

    async with meanwhile(leave):
        with pytest.raises(SignInFailed, match="closed while it was still shown"):
            await desk.enrolment.pass_check(account.id)
    assert desk.now(account).why == "human"


async def test_where_nothing_is_asked_the_person_is_told_and_the_free_check_decides(
    desk: Desk, standin: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "NO_DIALOG_S", 0.5)
    monkeypatch.setattr(module, "KEEP_EVERY_S", 0.1)
    account = desk.known(standin, ONE)
    desk.registry.update(account.id, lambda known: replace(known, why="human"))

    async def close_when_told() -> None:
        page = await desk.page()
        await until_async(lambda: desk.said)
        await page.evaluate("localStorage.passed = 'yes'")
        await until_async(lambda: "passed" in json.dumps(desk.registry.browser_state(account.id)))
        await close(page)

    async with meanwhile(close_when_told):
        passed = await desk.enrolment.pass_check(account.id)
    assert desk.said == [NOTHING_ASKED]
    assert passed.why == ""


async def test_the_free_check_after_a_closed_window_may_say_no(desk: Desk, standin: Standin) -> None:
    account = desk.known(standin, ONE)
    desk.registry.update(account.id, lambda known: replace(known, why="human"))

    async def leave() -> None:
        page = await desk.page()
        await page.get_by_text("Signed in as").wait_for()
        standin._control("POST", "challenge", {"account": ONE})
        await close(page)

    async with meanwhile(leave):
        with pytest.raises(SignInFailed, match="not passed"):
            await desk.enrolment.pass_check(account.id)
    assert desk.now(account).why == "human"


async def test_a_sign_in_that_is_gone_cannot_pass(desk: Desk, standin: Standin) -> None:
    account = await challenged(desk, standin)
    standin.revoke()
    with pytest.raises(SignInFailed, match="sign in again"):
        await desk.enrolment.pass_check(account.id)
    assert desk.now(account).invalid


async def test_a_proxy_uses_what_the_person_passed(desk: Desk, standin: Standin) -> None:
    """The cookies of a passed check are the window's: a context from before would be asked again."""
    account = await challenged(desk, standin)
    async with BrowserTransport(
        desk.settings, desk.enrolment._state_of, desk.registry.keep_state, chromium=desk.chromium
    ) as transport:
        client = QwenClient(transport, desk.settings, SystemClock())
        model = (await client.models(account.id))[0]
        with pytest.raises(NeedsHuman):
            await client.new_chat(account.id, model)

        async def solve() -> None:
            browser = (await desk.chromium.current()).browser
            await until_async(lambda: len(browser.contexts) == 2 and browser.contexts[1].pages)
            page = browser.contexts[1].pages[0]
            await desk.dialog(page)
            await page.evaluate("document.cookie = 'x5sec=passed; max-age=1000'")
            standin.solve()

        async with meanwhile(solve):
            await desk.enrolment.pass_check(account.id)
        await transport.warm(account.id)
        await client.new_chat(account.id, model)
        assert "x5sec" in standin.received("/api/v2/chats/new")[-1]["cookies"]


# Tokens.


@pytest.mark.parametrize("standin", ["B", "C"], indirect=True)
async def test_a_token_is_checked_before_it_is_stored(desk: Desk, standin: Standin) -> None:
    token, _ = standin.sign_in(ONE)
    user = await desk.enrolment.token_lives(token)
    assert user is not None
    assert user["email"] == ONE
    if standin.era == "C":
        with pytest.raises(SignInFailed, match=r"dies on .* UTC.*--yes"):
            await desk.enrolment.add_token(token, yes=False)
        assert desk.registry.accounts() == ()
    added = await desk.enrolment.add_token(token, yes=standin.era == "C")
    assert (added.account.email, added.known) == (ONE, False)
    assert desk.registry.token(added.account.id) == token


async def test_a_dead_token_is_not_stored(desk: Desk, standin: Standin) -> None:
    token, _ = standin.sign_in(ONE)
    standin.revoke()
    assert await desk.enrolment.token_lives(token) is None
    with pytest.raises(SignInFailed, match="does not take") as failed:
        await desk.enrolment.add_token(token, yes=True)
    assert token not in str(failed.value)
    assert standin.state()["opened"] == 0
