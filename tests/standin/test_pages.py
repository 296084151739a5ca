"""The stand-in's pages in a real Chromium: signing in, booting, renewing, being verified."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser, Page, Response

from qwenproxy.browser.chromium import Chromium
from tests.serve import Standin

pytestmark = [pytest.mark.anyio, pytest.mark.browser, pytest.mark.timeout(90)]


@pytest.fixture
async def browser(chromium: Chromium) -> AsyncIterator[Browser]:
    """With nothing left in it of another test."""
    browser = (await chromium.current()).browser
    yield browser
    for context in browser.contexts:
        await context.close()


def is_boot_end(answer: Response) -> bool:
    return "/api/v2/chats/?page=1&exclude_project=true" in answer.url


async def sign_in(page: Page, standin: Standin) -> None:
    """As a person would: the tests may type, the product may not."""
    await page.goto(f"{standin.site}/auth")
    button = page.locator("button.qwenchat-auth-pc-submit-button[type=submit]")
    await page.locator('input[type="email"][name="email"]').fill("one@example.com")
    assert await button.is_disabled()
    await page.locator('input[type="password"]').fill("secret")
    async with page.expect_response(is_boot_end):
        await button.click()


@pytest.mark.parametrize("standin", ["B", "C"], indirect=True)
async def test_a_person_signs_in_and_the_page_boots(browser: Browser, standin: Standin) -> None:
    page = await browser.new_page()
    await sign_in(page, standin)
    assert "/auth" not in page.url
    version = {"B": "0.2.91", "C": "0.3.12"}[standin.era]
    assert f"/g/qwenweb/qwen-chat-fe/{version}/" in await page.content()
    assert await page.evaluate("window.__prerendered_data.models.length") == 4
    asked = [each["path"] for each in standin.received() if "/auths/" not in each["path"]]
    assert asked[:2] == ["/api/v2/configs/", "/api/v2/configs/setting-config"]
    assert asked[-1] == "/api/v2/chats/?page=1&exclude_project=true"
    assert [session["booted"] for session in standin.state()["sessions"]] == [True]
    await page.goto(f"{standin.site}/auth")
    assert "/auth" not in page.url


async def test_a_wrong_password_is_said(browser: Browser, standin: Standin) -> None:
    page = await browser.new_page()
    await page.goto(f"{standin.site}/auth")
    await page.locator('input[type="email"]').fill("one@example.com")
    await page.locator('input[type="password"]').fill("wrong")
    await page.locator("button[type=submit]").click()
    await page.get_by_text("The email or password is incorrect.").wait_for()


async def test_the_demo_page_signs_itself_in(browser: Browser, standin: Standin) -> None:
    standin.options(demo=True)
    page = await browser.new_page()
    async with page.expect_response(is_boot_end):
        await page.goto(standin.site)
    assert standin.state()["sessions"][0]["account"] == "demo@example.com"


async def test_people_sign_in_one_after_the_other(browser: Browser, standin: Standin) -> None:
    standin.options(demo=True, people=["one@example.com", "two@example.com"])
    for _ in range(3):
        context = await browser.new_context()
        page = await context.new_page()
        async with page.expect_response(is_boot_end):
            await page.goto(f"{standin.site}/auth")
        await context.close()
    assert accounts(standin) == ["one@example.com", "two@example.com", "two@example.com"]
    standin.options(people=["three@example.com"])
    page = await browser.new_page()
    async with page.expect_response(is_boot_end):
        await page.goto(f"{standin.site}/auth")
    assert accounts(standin)[3:] == ["three@example.com"]


def accounts(standin: Standin) -> list[str]:
    return [session["account"] for session in standin.state()["sessions"]]


async def test_a_person_in_windows_leaves_a_headless_page_alone(browser: Browser, standin: Standin) -> None:
    standin.options(demo=True, person_in="windows")
    page = await browser.new_page()
    await page.goto(standin.site)
    await page.wait_for_url("**/auth")
    await page.clock.install()
    await page.clock.run_for(10_000)
    assert accounts(standin) == []


@pytest.mark.parametrize("pending", ["overlay", "refused"])
async def test_an_address_is_confirmed_by_the_person(
    browser: Browser, standin: Standin, pending: str
) -> None:
    standin.options(demo=True, people=["pending@example.com"], pending=pending)
    page = await browser.new_page()
    await page.goto(f"{standin.site}/auth")
    if pending == "refused":
        await page.get_by_text("Your account is not activated.").wait_for()
        assert "/auth" in page.url
        standin.options(person_activates_s=0.1)
        async with page.expect_response(is_boot_end):
            await page.reload()
    else:
        await page.locator(".account-pending-overlay").wait_for()
        async with page.expect_response(is_boot_end):
            await page.get_by_text("Open the link").click()
    await page.get_by_text("Signed in as pending@example.com").wait_for()
    assert not await page.locator(".account-pending-overlay").count()


@pytest.mark.parametrize("identity", ["page", "popup"])
async def test_an_identity_provider_on_another_origin_refuses(
    browser: Browser, standin: Standin, identity: str
) -> None:
    standin.options(demo=True, identity=identity)
    context = await browser.new_context()
    page = await context.new_page()
    if identity == "popup":
        async with context.expect_page() as popup, page.expect_response(is_boot_end):
            await page.goto(f"{standin.site}/auth")
        page = await popup.value
    else:
        await page.goto(f"{standin.site}/auth")
    await page.wait_for_url("**/v3/signin/rejected**")
    assert not page.url.startswith(standin.site)
    standin.options(demo=False)
    await page.get_by_text("Back").click()
    await page.wait_for_url(f"{standin.site}/{'' if identity == 'popup' else 'auth'}")


async def test_a_challenged_sign_ins_page_shows_the_dialog_until_it_is_solved(
    browser: Browser, standin: Standin
) -> None:
    context = await browser.new_context(storage_state=standin.storage_state("one@example.com"))  # type: ignore[arg-type]
    standin._control("POST", "challenge", {"account": "one@example.com"})
    page = await context.new_page()
    await page.goto(standin.site)
    await page.locator(".baxia-dialog #waf_nc_block").wait_for()
    standin.options(person_solves_s=0.1)
    await page.reload()
    await page.locator(".baxia-dialog").wait_for()
    await page.locator(".baxia-dialog").wait_for(state="detached")
    assert [session["challenged"] for session in standin.state()["sessions"]] == [False]


async def test_a_refused_token_is_renewed_as_the_page_loads(browser: Browser, standin: Standin) -> None:
    context = await browser.new_context(storage_state=standin.storage_state("one@example.com"))  # type: ignore[arg-type]
    page = await context.new_page()
    async with page.expect_response(is_boot_end):
        await page.goto(standin.site)
    old = await page.evaluate("localStorage.token")
    standin.expire()
    second = await context.new_page()
    async with second.expect_response(is_boot_end):
        await second.goto(standin.site)
    assert await page.evaluate("localStorage.token") != old
    standin.revoke()
    await second.reload()
    await second.wait_for_url("**/auth")


async def test_a_page_may_renew_by_a_timer(browser: Browser, standin: Standin) -> None:
    standin.options(renew="timer", access_token_s=2.0)
    context = await browser.new_context(storage_state=standin.storage_state("one@example.com"))  # type: ignore[arg-type]
    page = await context.new_page()
    async with page.expect_response(is_boot_end):
        await page.goto(standin.site)
    old = await page.evaluate("localStorage.token")
    await page.wait_for_function("old => localStorage.token !== old", arg=old)


async def test_a_challenged_call_hangs_under_a_dialog(browser: Browser, standin: Standin) -> None:
    context = await browser.new_context(storage_state=standin.storage_state("one@example.com"))  # type: ignore[arg-type]
    page = await context.new_page()
    async with page.expect_response(is_boot_end):
        await page.goto(standin.site)
    standin.fault("dialog")
    standin.options(pieces_per_s=2000)
    await page.locator("textarea.message-input-textarea").fill("Hello")
    await page.locator("button.send-button").click()
    await page.locator(".baxia-dialog #waf_nc_block").wait_for()
    assert not await page.locator("p.assistant").count()
    standin.solve()
    await page.get_by_text("This is the stand-in for Qwen Chat speaking").wait_for()
    assert not await page.locator(".baxia-dialog").count()
    assert {each["headers"]["bx-v"] for each in standin.received("/api/v2/chat/")} == {"stand-in"}
