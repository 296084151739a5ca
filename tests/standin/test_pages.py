"""The stand-in's pages in a real Chromium: signing in, booting, renewing, being verified."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser, Page, Response, async_playwright

from tests.serve import Standin

pytestmark = [pytest.mark.anyio, pytest.mark.browser, pytest.mark.timeout(90)]


@pytest.fixture
async def chromium(chromium_path: str) -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        yield await playwright.chromium.launch(executable_path=chromium_path, chromium_sandbox=False)


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
async def test_a_person_signs_in_and_the_page_boots(chromium: Browser, standin: Standin) -> None:
    page = await chromium.new_page()
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


async def test_a_wrong_password_is_said(chromium: Browser, standin: Standin) -> None:
    page = await chromium.new_page()
    await page.goto(f"{standin.site}/auth")
    await page.locator('input[type="email"]').fill("one@example.com")
    await page.locator('input[type="password"]').fill("wrong")
    await page.locator("button[type=submit]").click()
    await page.get_by_text("The email or password is incorrect.").wait_for()


async def test_the_demo_page_signs_itself_in(chromium: Browser, standin: Standin) -> None:
    standin.options(demo=True)
    page = await chromium.new_page()
    async with page.expect_response(is_boot_end):
        await page.goto(standin.site)
    assert standin.state()["sessions"][0]["account"] == "demo@example.com"


async def test_a_refused_token_is_renewed_as_the_page_loads(chromium: Browser, standin: Standin) -> None:
    context = await chromium.new_context(storage_state=standin.storage_state("one@example.com"))  # type: ignore[arg-type]
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


async def test_a_page_may_renew_by_a_timer(chromium: Browser, standin: Standin) -> None:
    standin.options(renew="timer", access_token_s=2.0)
    context = await chromium.new_context(storage_state=standin.storage_state("one@example.com"))  # type: ignore[arg-type]
    page = await context.new_page()
    async with page.expect_response(is_boot_end):
        await page.goto(standin.site)
    old = await page.evaluate("localStorage.token")
    await page.wait_for_function("old => localStorage.token !== old", arg=old)


async def test_a_challenged_call_hangs_under_a_dialog(chromium: Browser, standin: Standin) -> None:
    context = await chromium.new_context(storage_state=standin.storage_state("one@example.com"))  # type: ignore[arg-type]
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
