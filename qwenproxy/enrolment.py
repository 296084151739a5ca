"""What needs a person's window or a free check: one way for the menu, the live view and the commands.

A sign-in is never attempted from here: a window is opened when its owner asked for it, and the owner does the
rest. What a window shows is proved by asking the service who is signed in, which costs no message.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import anyio
from anyio.to_thread import run_sync

from qwenproxy.accounts import rows
from qwenproxy.accounts.account import Account, SignIn
from qwenproxy.accounts.registry import Registry
from qwenproxy.browser.chromium import Chromium
from qwenproxy.browser.contexts import BrowserTransport
from qwenproxy.browser.login import CLOSED, LOOK_EVERY_S, PENDING, Window, screen_problem, window
from qwenproxy.browser.site_page import (
    StorageState,
    mark_of_state,
    proves_somebody,
    state_from_token,
    token_in,
)
from qwenproxy.clock import Clock
from qwenproxy.errors import (
    AccountGone,
    BrowserLost,
    NeedsHuman,
    QwenProxyError,
    SignInFailed,
    StoreError,
    TokenRejected,
)
from qwenproxy.qwen.client import QwenClient
from qwenproxy.settings import Settings

ASK_EVERY_S = 2.0
"""Between two who-am-I calls while a sign-in is not complete."""
BETWEEN_S = 0.5
"""Between two accounts' checks: one computer asks for all of them."""
KEEP_EVERY_S = 2.0
"""Between two looks whether a window's cookies have changed: closing it must lose nothing."""
NO_DIALOG_S = 8.0
"""After so long without a dialog the person is told how to make the service ask."""
GONE_LOOKS = 5
"""Looks in a row that see no dialog any more; one that was failed comes back at once."""
SHORT_LIVED = timedelta(days=1)

HUMAN = "the service asks for a human check: open this account's window and pass it"
SIGNED_OUT = "the sign-in is gone: sign in again"
NOT_CONFIRMED = "its e-mail address is not confirmed yet: open the link in the mail"
NOTHING_ASKED = (
    "no check is shown: send a short message in the window, pass what it asks, then close the window"
)
PERSON = "person"
"""The name that stands for whoever sits before the window."""

log = logging.getLogger(__name__)

Say = Callable[[str], object]
Confirm = Callable[[str], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class Added:
    account: Account
    known: bool
    """It was an account of ours before, and is renewed."""


@dataclass(frozen=True, slots=True)
class Checked:
    account: Account
    live: bool | None
    """Whether the service takes the sign-in; None when it could not be asked."""
    note: str
    """What its owner should know, in one line; empty when all is well."""


class Enrolment:
    """Raises, beside what is said: StoreError, BrowserMissing, BrowserLost, Unreachable."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        clock: Clock,
        *,
        say: Say,
        chromium: Chromium | None = None,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._clock = clock
        self._say = say
        self._lent = chromium

    async def add(self, *, browser: str = "") -> Added:
        """Somebody signs in, in a window. Raises: SignInFailed."""
        sign_in = await self._sign_in(browser)
        account, known = await run_sync(self._registry.add, sign_in)
        return Added(account, known)

    async def sign_in_again(self, account_id: str, confirm: Confirm, *, browser: str = "") -> Account:
        """The same for an account that is there; `confirm` is asked about another person.

        Raises:
            SignInFailed: nobody signed in, or somebody else who is not wanted.
            AccountGone
        """
        before = await self._account(account_id)
        sign_in = await self._sign_in(browser)
        place = await self._place_of(before, sign_in, confirm)
        return await run_sync(self._registry.sign_in_again, place, sign_in)

    async def pass_check(self, account_id: str, *, browser: str = "") -> Account:
        """Opens the account's own window, where its owner passes what the service asks for.

        Raises:
            SignInFailed: it was not passed.
            AccountGone
        """
        await self._account(account_id)
        async with self._browser(browser, headless=False) as (chromium, settings):
            live = await self._let_pass(chromium, settings, account_id)
        if not live:
            async with self._browser("", headless=True) as (chromium, settings):
                found = await self._check(chromium, settings, account_id)
            if found is None:
                raise AccountGone("this account has been deleted")
            if not found.live or found.note:
                raise SignInFailed(f"the check was not passed: {found.note}")
        return await self._learnt(account_id, _passed)

    async def check(self, account_ids: Iterable[str]) -> tuple[Checked, ...]:
        """Asks the service about each, for free. A limit's wait stays; unknown accounts are left out."""
        found: list[Checked] = []
        async with self._browser("", headless=True) as (chromium, settings):
            for number, account_id in enumerate(account_ids):
                if number:
                    await anyio.sleep(BETWEEN_S)
                checked = await self._check(chromium, settings, account_id)
                if checked is not None:
                    found.append(checked)
        return tuple(found)

    async def token_lives(self, token: str) -> dict[str, Any] | None:
        """Whose token it is; None when the service does not take it. Raises: whatever kept from asking."""
        state = state_from_token(token, self._settings.upstream)
        async with (
            self._browser("", headless=True) as (chromium, settings),
            BrowserTransport(settings, lambda _: state, chromium=chromium) as transport,
        ):
            try:
                return await QwenClient(transport, settings, self._clock).who(PERSON)
            except TokenRejected:
                return None

    async def add_token(self, token: str, *, yes: bool) -> Added:
        """Stores a bare token that works. Raises: SignInFailed: it does not, or dies soon without `yes`."""
        user = await self.token_lives(token)
        if user is None:
            raise SignInFailed(
                "the service does not take this token; it may have expired, or was not copied whole"
            )
        ends = rows.ends_at(None, token)
        if ends is not None and ends - self._clock.now() < SHORT_LIVED and not yes:
            raise SignInFailed(
                f"this token dies on {ends:%Y-%m-%d at %H:%M} UTC and cannot be renewed: signing in, with "
                "`accounts add`, is the lasting way; --yes stores it all the same"
            )
        account, known = await run_sync(self._registry.add, _sign_in(user, token, None))
        return Added(account, known)

    @asynccontextmanager
    async def _browser(self, browser: str, *, headless: bool) -> AsyncGenerator[tuple[Chromium, Settings]]:
        """Raises: SignInFailed (there is no screen), BrowserMissing, BrowserLost."""
        if self._lent is not None:
            yield self._lent, self._settings
            return
        problem = None if headless else screen_problem()
        if problem is not None:
            raise SignInFailed(problem)
        wanted = {"headless": headless, "browser": browser or self._settings.browser}
        settings = self._settings.model_copy(update=wanted)
        async with Chromium(settings) as chromium:
            await chromium.first()
            yield chromium, settings

    async def _account(self, account_id: str) -> Account:
        """Raises: AccountGone."""
        known = await run_sync(self._registry.accounts)
        found = next((account for account in known if account.id == account_id), None)
        if found is None:
            raise AccountGone("this account has been deleted")
        return found

    def _state_of(self, account_id: str) -> StorageState:
        """Raises: AccountGone."""
        if not self._registry.known(account_id):
            raise AccountGone("this account has been deleted")
        saved = self._registry.browser_state(account_id)
        return saved or state_from_token(self._registry.token(account_id), self._settings.upstream)

    async def _learnt(self, account_id: str, edit: Callable[[Account], Account]) -> Account:
        """Raises: AccountGone."""
        account = await run_sync(self._registry.update, account_id, edit)
        if account is None:
            raise AccountGone("this account has been deleted")
        return account

    # Signing in.

    async def _sign_in(self, browser: str) -> SignIn:
        """Raises: SignInFailed."""
        attempt = _Attempt()
        limit_s = self._settings.sign_in_timeout_s
        try:
            async with self._browser(browser, headless=False) as (chromium, settings):
                with anyio.fail_after(limit_s):
                    return await self._in_window(chromium, settings, attempt)
        except TimeoutError:
            raise SignInFailed(f"{attempt.missing} within {_minutes(limit_s)}") from None

    async def _in_window(self, chromium: Chromium, settings: Settings, attempt: _Attempt) -> SignIn:
        async with window(chromium, settings, say=self._say) as opened:
            try:
                user = await self._person_in(opened, attempt)
                await opened.settled()
                state = await opened.state()
            except BrowserLost:
                if opened.closed:
                    raise SignInFailed(CLOSED) from None
                raise
            return _sign_in(user, token_in(state, settings.upstream), state)

    async def _person_in(self, opened: Window, attempt: _Attempt) -> dict[str, Any]:
        """Until the service names an activated person. Raises: SignInFailed."""
        client = QwenClient(opened.transport, self._settings, self._clock)
        while True:
            await opened.signed_in()
            try:
                user = await client.who(PERSON)
            except BrowserLost:
                # The page went on to its next document meanwhile.
                await anyio.sleep(LOOK_EVERY_S)
                continue
            except NeedsHuman:
                opened.note("the site asks for a human check: pass it in the window")
            except QwenProxyError as exc:
                attempt.missing = f"the service did not confirm the sign-in ({exc})"
            else:
                if user.get("role") != "pending":
                    return user
                opened.note(PENDING)
            if PENDING in opened.notes:
                attempt.missing = "the e-mail address was not confirmed"
            await opened.look()
            await anyio.sleep(ASK_EVERY_S)

    async def _place_of(self, before: Account, sign_in: SignIn, confirm: Confirm) -> str:
        """The account that the sign-in is to be stored for. Raises: SignInFailed."""
        if not await self._is_other(before, sign_in):
            return before.id
        known = await run_sync(self._registry.accounts)
        twin = next((a for a in known if a.user_id and a.user_id == sign_in.user_id), None)
        who = sign_in.email or "somebody else"
        question = f"{who} signed in, not {before.email or 'the person before'}: "
        if twin is None:
            question += f"is {before.name} to be theirs from now on?"
        else:
            question += f"renew their own account {twin.name}, and leave {before.name} as it is?"
        if not await confirm(question):
            raise SignInFailed("another person signed in; nothing was changed")
        return twin.id if twin else before.id

    async def _is_other(self, before: Account, sign_in: SignIn) -> bool:
        if before.user_id and sign_in.user_id:
            return before.user_id != sign_in.user_id
        if before.email and sign_in.email:
            return before.email.lower() != sign_in.email.lower()
        token = await run_sync(self._registry.token, before.id)
        return rows.same_owner(token, sign_in.token) is False

    # Passing a check.

    async def _let_pass(self, chromium: Chromium, settings: Settings, account_id: str) -> bool:
        """Whether the service named the person in the window itself; what the window held is stored.

        Raises:
            SignInFailed: the person closed the window over the dialog, or ran out of time.
        """
        state = await run_sync(self._state_of, account_id)
        limit_s = settings.sign_in_timeout_s
        try:
            with anyio.fail_after(limit_s):
                async with window(chromium, settings, state=state, at_sign_in=False, say=self._say) as opened:
                    watch = _Watch(opened, mark_of_state(state))
                    while True:
                        if await self._done(watch, account_id):
                            break
                        await anyio.sleep(LOOK_EVERY_S)
                    return not opened.closed and await self._named(watch, account_id)
        except TimeoutError:
            raise SignInFailed(f"the check was not passed within {_minutes(limit_s)}") from None

    async def _done(self, watch: _Watch, account_id: str) -> bool:
        """Whether the person has passed what was asked, or left. Raises: SignInFailed."""
        opened = watch.opened
        if opened.closed:
            if watch.asked:
                raise SignInFailed("the check was not passed: the window was closed while it was still shown")
            return True
        if opened.at_sign_in:
            await self._learnt(account_id, _signed_out)
            raise SignInFailed(SIGNED_OUT)
        try:
            passed = await watch.passed()
            await self._keep(watch, account_id)
        except BrowserLost:
            return False
        if watch.quiet_s > NO_DIALOG_S:
            opened.note(NOTHING_ASKED)
        return passed

    async def _keep(self, watch: _Watch, account_id: str, *, now: bool = False) -> None:
        """Raises: BrowserLost."""
        if not now and anyio.current_time() < watch.keep_at_s:
            return
        watch.keep_at_s = anyio.current_time() + KEEP_EVERY_S
        state = await watch.opened.state()
        if mark_of_state(state) != watch.kept and proves_somebody(state, self._settings.upstream):
            await run_sync(self._registry.keep_state, account_id, state)
            watch.kept = mark_of_state(state)

    async def _named(self, watch: _Watch, account_id: str) -> bool:
        """Whether the service says who it is in the window itself."""
        client = QwenClient(watch.opened.transport, self._settings, self._clock)
        try:
            await client.who(PERSON)
            await self._keep(watch, account_id, now=True)
        except (TokenRejected, BrowserLost, NeedsHuman):
            return False
        return True

    # Checking.

    async def _check(self, chromium: Chromium, settings: Settings, account_id: str) -> Checked | None:
        """None when there is no such account."""
        keep = self._registry.keep_state
        try:
            async with BrowserTransport(settings, self._state_of, keep, chromium=chromium) as transport:
                found = await self._asked(transport, account_id)
            return replace(found, account=await self._account(account_id))
        except AccountGone:
            return None

    async def _asked(self, transport: BrowserTransport, account_id: str) -> Checked:
        """Raises: AccountGone."""
        before = await self._account(account_id)
        client = QwenClient(transport, self._settings, self._clock)
        try:
            user = await client.who(account_id)
            human = await transport.asks_human(account_id)
        except AccountGone:
            raise
        except TokenRejected:
            return await self._found(before, False, SIGNED_OUT, _signed_out)
        except NeedsHuman:
            return await self._found(before, None, HUMAN, _asked_for)
        except QwenProxyError as exc:
            return Checked(before, None, str(exc))
        if user.get("role") == "pending":
            return Checked(before, False, NOT_CONFIRMED)
        note, then = (HUMAN, _asked_for) if human else ("", _unchanged)
        return await self._found(before, True, note, lambda account: then(_named(account, user)))

    async def _found(
        self, before: Account, live: bool | None, note: str, edit: Callable[[Account], Account]
    ) -> Checked:
        try:
            await self._learnt(before.id, edit)
        except AccountGone:
            raise
        except (StoreError, OSError) as exc:
            log.warning("account %s: what the check found could not be stored: %s", before.id, exc)
        return Checked(before, live, note)


@dataclass(slots=True)
class _Attempt:
    """What is still missing, for when time runs out."""

    missing: str = "nobody signed in"


class _Watch:
    """What a window has shown of the service's check."""

    def __init__(self, opened: Window, kept: str) -> None:
        self.opened = opened
        self.kept = kept
        """The mark of the state that is stored."""
        self.keep_at_s = 0.0
        self.asked = False
        self._gone_looks = 0
        self._navigations = opened.navigations
        self._quiet_since_s = anyio.current_time()

    @property
    def quiet_s(self) -> float:
        """Seconds in which no dialog has been seen since the page's document came."""
        return 0.0 if self.asked else anyio.current_time() - self._quiet_since_s

    async def passed(self) -> bool:
        """Whether a dialog that was seen has gone for good. A document that is new starts from nothing.

        Raises:
            BrowserLost: the page cannot tell now.
        """
        shown = await self.opened.asks_human()
        if self._navigations != self.opened.navigations:
            self._navigations = self.opened.navigations
            self.asked, self._quiet_since_s = False, anyio.current_time()
        self._gone_looks = 0 if shown else self._gone_looks + 1
        self.asked = self.asked or shown
        return self.asked and self._gone_looks >= GONE_LOOKS


def _sign_in(user: dict[str, Any], token: str, state: StorageState | None) -> SignIn:
    return SignIn(token, state, str(user["id"]), str(user.get("email") or ""))


def _named(account: Account, user: dict[str, Any]) -> Account:
    """The service takes it, and says whose it is."""
    email = str(user.get("email") or account.email)
    return replace(account, invalid=False, user_id=str(user["id"]), email=email)


def _unchanged(account: Account) -> Account:
    return account


def _signed_out(account: Account) -> Account:
    return replace(account, invalid=True)


def _asked_for(account: Account) -> Account:
    return replace(account, why="human", wait_until=None)


def _passed(account: Account) -> Account:
    if account.why == "human":
        account = replace(account, why="", wait_until=None)
    return replace(account, invalid=False)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:g} minutes" if seconds >= 120 else f"{seconds:g} seconds"
