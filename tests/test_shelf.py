"""The shelf, over a service of its own on a real socket."""

from __future__ import annotations

import sqlite3
from base64 import b64decode
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from qwenproxy import shelf as module
from qwenproxy.addresses import ServiceHosts
from qwenproxy.caller import ANYBODY, Caller
from qwenproxy.clock import SystemClock
from qwenproxy.errors import (
    BrowserLost,
    StoreError,
    UnknownFile,
    Unreachable,
    UpstreamError,
)
from qwenproxy.file_store import FileStore
from qwenproxy.media_rows import MediaRows
from qwenproxy.shelf import Opened, Shelf
from tests.serve import free_port, serving

pytestmark = pytest.mark.anyio
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40


@dataclass
class Service:
    """Gives out a picture, and does what its paths say."""

    url: str = ""
    seen: list[Request] = field(default_factory=list)
    elsewhere: str = ""

    def app(self) -> Starlette:
        routes = {
            "/cat.png": self.picture,
            "/page": self.page,
            "/drawing.svg": self.drawing,
            "/moved": self.moved,
            "/away": self.away,
            "/round": self.round,
            "/nowhere": self.nowhere,
            "/gone": self.gone,
            "/closed": self.closed,
            "/broken": self.broken,
            "/cookie": self.cookie,
        }
        return Starlette(routes=[Route(path, self.noting(work)) for path, work in routes.items()])

    def noting(self, work: Any) -> Any:
        async def noted(request: Request) -> Response:
            self.seen.append(request)
            answer: Response = work(request)
            return answer

        return noted

    def picture(self, request: Request) -> Response:
        if "range" in request.headers:
            first, last = map(int, request.headers["range"].removeprefix("bytes=").split("-"))
            told = {"content-range": f"bytes {first}-{last}/{len(PNG)}"}
            return Response(PNG[first : last + 1], 206, told, "image/png")
        return Response(PNG, media_type="image/png")

    def page(self, request: Request) -> Response:
        return Response(b"<script>1</script>", media_type="text/html")

    def drawing(self, request: Request) -> Response:
        return Response(b"<svg/>", media_type="image/svg+xml")

    def moved(self, request: Request) -> Response:
        return RedirectResponse("/cat.png")

    def away(self, request: Request) -> Response:
        return RedirectResponse(f"{self.elsewhere}/cat.png")

    def round(self, request: Request) -> Response:
        return RedirectResponse("/round")

    def nowhere(self, request: Request) -> Response:
        return Response(status_code=302, headers={"location": "http://[nowhere/"})

    def gone(self, request: Request) -> Response:
        return Response(status_code=404)

    def closed(self, request: Request) -> Response:
        return Response(b"signature=secret", 403)

    def broken(self, request: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            yield PNG[:100]

        return StreamingResponse(pieces(), headers={"content-length": str(len(PNG))}, media_type="image/png")

    def cookie(self, request: Request) -> Response:
        answer = Response(PNG, media_type="image/png")
        answer.set_cookie("left", "behind")
        return answer


@dataclass
class Browser:
    """The accounts' cookies."""

    jar: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)

    async def cookies(self, account_id: str, url: str) -> Mapping[str, str]:
        self.asked.append((account_id, url))
        if account_id not in self.jar:
            raise BrowserLost("it went away")
        return self.jar[account_id]


@dataclass
class Shop:
    service: Service
    browser: Browser
    shelf: Shelf
    rows: MediaRows
    store: FileStore

    async def id_of(self, path: str) -> str:
        return await self.shelf.note(self.service.url + path, "acc_1", ANYBODY)

    async def get(self, path: str, part: str = "") -> tuple[Opened, bytes]:
        async with self.shelf.open(await self.id_of(path), part) as opened, aclosing(opened.pieces) as pieces:
            return opened, b"".join([piece async for piece in pieces])


@asynccontextmanager
async def shop(folder: Path, *, proxy: str = "", more: Sequence[str] = ()) -> AsyncIterator[Shop]:
    service, browser, clock = Service(), Browser({"acc_1": {"token": "secret", "ssxmod": "1"}}), SystemClock()
    async with AsyncExitStack() as stack:
        service.url = await stack.enter_async_context(serving(service.app()))
        rows = stack.enter_context(closing(MediaRows(folder, clock)))
        store = FileStore(folder, clock, most_bytes=1_000_000)
        hosts = ServiceHosts([service.url, *more])
        shelf = Shelf(rows, store, hosts, browser.cookies, upstream=service.url, proxy=proxy)
        await stack.enter_async_context(shelf)
        yield Shop(service, browser, shelf, rows, store)


async def test_a_picture_comes_with_the_accounts_cookies_and_the_sites_referer(tmp_path: Path) -> None:
    async with shop(tmp_path) as here:
        opened, content = await here.get("/cat.png?key=k")
        (asked,) = here.service.seen
    assert (opened.status, opened.type, opened.length, content) == (200, "image/png", len(PNG), PNG)
    assert asked.headers["cookie"] == "token=secret; ssxmod=1"
    assert asked.headers["referer"] == f"{here.service.url}/"
    assert asked.url.query == "key=k"
    assert here.browser.asked == [("acc_1", f"{here.service.url}/cat.png?key=k")]


async def test_without_the_account_it_is_fetched_without_cookies(tmp_path: Path) -> None:
    async with shop(tmp_path) as here:
        here.browser.jar = {}
        _, content = await here.get("/cat.png")
        assert "cookie" not in here.service.seen[0].headers
    assert content == PNG


async def test_cookies_that_do_not_come_are_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "COOKIES_S", 0.01)
    async with shop(tmp_path) as here:
        monkeypatch.setattr(here.shelf, "_cookies", lambda *_: anyio.sleep_forever())
        _, content = await here.get("/cat.png")
    assert content == PNG


async def test_what_one_account_is_given_to_keep_does_not_go_out_with_anothers(tmp_path: Path) -> None:
    async with shop(tmp_path) as here:
        here.browser.jar = {}
        await here.get("/cookie")
        await here.get("/cat.png")
        assert "cookie" not in here.service.seen[1].headers


async def test_a_part_is_passed_on(tmp_path: Path) -> None:
    async with shop(tmp_path) as here:
        opened, content = await here.get("/cat.png", "bytes=2-5")
        assert (opened.status, opened.content_range) == (206, f"bytes 2-5/{len(PNG)}")
        assert (opened.length, content) == (4, PNG[2:6])
        await here.get("/cat.png", "bytes=0-1, 3-4")
        assert "range" not in here.service.seen[1].headers


@pytest.mark.parametrize("path", ["/page", "/drawing.svg"])
async def test_what_a_browser_would_run_has_no_type(tmp_path: Path, path: str) -> None:
    async with shop(tmp_path) as here:
        opened, _ = await here.get(path)
    assert opened.type == "application/octet-stream"


async def test_a_redirect_is_followed_within_the_service_and_its_cookies_asked_anew(tmp_path: Path) -> None:
    async with shop(tmp_path) as here:
        _, content = await here.get("/moved")
        assert [url for _, url in here.browser.asked] == [
            here.service.url + "/moved",
            here.service.url + "/cat.png",
        ]
    assert content == PNG


async def test_nothing_is_fetched_from_other_hosts(tmp_path: Path) -> None:
    tripwire = Service()
    async with shop(tmp_path) as here, serving(tripwire.app()) as url:
        here.service.elsewhere = url
        with pytest.raises(UpstreamError, match="not its own"):
            await here.get("/away")
        with pytest.raises(UpstreamError, match="not its own"):
            await here.get("/nowhere")
        foreign = await here.shelf.note(f"{url}/cat.png", "acc_1", ANYBODY)
        with pytest.raises(UpstreamError, match="not its own"):
            async with here.shelf.open(foreign):
                pass
        assert [account for account, _ in here.browser.asked] == ["acc_1"] * 2
    assert not tripwire.seen


async def test_redirects_end(tmp_path: Path) -> None:
    async with shop(tmp_path) as here:
        with pytest.raises(UpstreamError, match="from one address to the next"):
            await here.get("/round")
        assert len(here.service.seen) == 4


async def test_failures_say_what_is_wrong_and_nothing_of_the_address(tmp_path: Path) -> None:
    async with shop(tmp_path) as here:
        with pytest.raises(UnknownFile, match="no more"):
            await here.get("/gone")
        with pytest.raises(UpstreamError, match="status 403") as refused:
            await here.get("/closed?key=secret")
        assert "secret" not in str(refused.value)
        with pytest.raises(Unreachable, match="broke off"):
            await here.get("/broken")
        with pytest.raises(UnknownFile, match="no such"):
            async with here.shelf.open("0" * 32):
                pass


async def test_a_service_that_is_not_there_cannot_be_reached(tmp_path: Path) -> None:
    closed = f"http://127.0.0.1:{free_port()}"
    async with shop(tmp_path, more=[closed]) as here:
        media_id = await here.shelf.note(f"{closed}/cat.png", "acc_1", ANYBODY)
        with pytest.raises(Unreachable, match="ConnectError"):
            async with here.shelf.open(media_id):
                pass


async def test_what_is_too_large_is_not_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 1000)
    async with shop(tmp_path) as here:
        with pytest.raises(UpstreamError, match="too large"):
            await here.get("/cat.png")


async def test_it_goes_through_the_proxy_server_that_is_set(tmp_path: Path) -> None:
    closed = f"http://127.0.0.1:{free_port()}"
    async with shop(tmp_path, proxy=closed) as here:
        with pytest.raises(Unreachable):
            await here.get("/cat.png")
        assert not here.service.seen
    async with shop(tmp_path, proxy="odd://127.0.0.1:1") as here:
        with pytest.raises(Unreachable, match="QWENPROXY_PROXY"):
            await here.get("/cat.png")


async def test_a_picture_becomes_a_file_of_its_asker(tmp_path: Path) -> None:
    caller = Caller("key_one")
    async with shop(tmp_path) as here:
        file = await here.shelf.into_store(await here.id_of("/cat.png"), caller)
        assert here.store.path(file).read_bytes() == PNG
    assert (file.type, file.purpose, file.owner) == ("image/png", "message", "key_one")
    assert not list((tmp_path / "files" / "incoming").iterdir())


async def test_a_shelf_on_a_broken_disk_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> str:
        raise sqlite3.OperationalError("the disk is full")

    async with shop(tmp_path) as here:
        monkeypatch.setattr(here.rows, "add", full)
        monkeypatch.setattr(here.rows, "get", full)
        with pytest.raises(StoreError):
            await here.id_of("/cat.png")
        with pytest.raises(StoreError):
            async with here.shelf.open("0" * 32):
                pass


async def test_a_picture_is_sent_inside_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with shop(tmp_path) as here:
        url = f"{here.service.url}/cat.png"
        assert here.shelf.takes(url)
        assert b64decode(await here.shelf.inline(url, "acc_1")) == PNG
        assert here.browser.asked == [("acc_1", url)]
        monkeypatch.setattr(module, "INLINE_BYTES", 1000)
        with pytest.raises(UpstreamError, match="too large"):
            await here.shelf.inline(url, "acc_1")
        foreign = "https://wanx.alicdn.com/wanx/1/cat.png"
        assert not here.shelf.takes(foreign)
        with pytest.raises(UpstreamError, match="not its own"):
            await here.shelf.inline(foreign, "acc_1")
