"""A web page that the owner happens to visit must not reach the accounts, in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Route

from tests.serve import Proxy, Standin, running, running_proxy, running_standin

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]

ATTACK = """async (base) => {
  const url = base + "/v1/chat/completions";
  const body = JSON.stringify({model: "qwen", messages: [{role: "user", content: "stolen"}]});
  const json = {"Content-Type": "application/json"};
  const told = [];
  const attempt = async (name, run) => {
    try { told.push([name, await run()]); } catch (error) { told.push([name, "failed"]); }
  };
  await attempt("fetch", async () => (await fetch(url, {method: "POST", headers: json, body})).status);
  await attempt("simple", async () => (await fetch(url, {method: "POST", mode: "no-cors", body})).type);
  await attempt("beacon", async () => navigator.sendBeacon(url, new Blob([body], {type: "text/plain"})));
  await attempt("read", async () => (await fetch(base + "/v1/models")).status);
  await attempt("image", () => new Promise((done) => {
    const image = new Image(); image.onload = () => done("loaded"); image.onerror = () => done("failed");
    image.src = base + "/v1/models";
  }));
  await attempt("events", () => new Promise((done) => {
    const source = new EventSource(url);
    source.onopen = () => done("open"); source.onerror = () => done("failed");
  }));
  const form = document.createElement("form");
  form.method = "post"; form.enctype = "text/plain"; form.action = url; form.target = "frame";
  form.innerHTML = `<input name='${body.slice(0, -1)},"x":"' value='"}'>`;
  document.body.append(form);
  form.submit();
  await new Promise((done) => setTimeout(done, 300));
  return told;
}"""


@pytest.fixture(scope="session")
def browser_type_launch_args(browser_type_launch_args: dict[str, Any], chromium_path: str) -> dict[str, Any]:
    return {**browser_type_launch_args, "executable_path": chromium_path, "chromium_sandbox": False}


def attacker(request: Request) -> HTMLResponse:
    return HTMLResponse("<!doctype html><title>Other</title><iframe name=frame></iframe>")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Proxy, Standin]]:
    """A proxy as it is by default, and the stand-in that is its own, so that it stays signed in."""
    folder = tmp_path_factory.mktemp("own")
    with running_standin(folder) as standin, running_proxy(folder, standin) as proxy:
        yield proxy, standin


def test_no_page_of_another_origin_gets_through(page: Page, own: tuple[Proxy, Standin]) -> None:
    proxy, standin = own
    with running(Starlette(routes=[Route("/", attacker)])) as site:
        for visited in (site, site.replace("127.0.0.1", "localhost")):
            page.goto(visited)
            told = dict(page.evaluate(ATTACK, proxy.base))
            assert told["fetch"] == told["read"] == "failed"
            assert told["image"] == told["events"] == "failed"
        assert standin.received("/api/v2/chat/") == []
        assert standin.received("/api/v2/chats/new") == []


def test_an_allowed_origin_may_call(page: Page, tmp_path: Path, standin: Standin) -> None:
    with (
        running(Starlette(routes=[Route("/", attacker)])) as site,
        running_proxy(tmp_path, standin, allowed_origins=site) as proxy,
    ):
        page.goto(site)
        assert dict(page.evaluate(ATTACK, proxy.base))["fetch"] == 200


def test_the_proxys_own_page_is_plain_and_readable(page: Page, own: tuple[Proxy, Standin]) -> None:
    proxy, _ = own
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.goto(proxy.base)
    assert proxy.base in page.inner_text("body")
    assert page.locator("script").count() == 0
    assert httpx.get(proxy.base).headers["content-security-policy"]
    assert [problem for problem in problems if "favicon" not in problem] == []
