"""The pictures and videos that the service has made: kept there, given out here under addresses of ours.

The service's own addresses want its cookies or a `Referer` of its site (protocol §10.1), which a client has
not. Fetched is only what an answer has named, and only from the service's hosts, also after a redirect: what
a client writes never becomes a request.
"""

from __future__ import annotations

import re
import sqlite3
from base64 import b64encode
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from http.cookiejar import CookieJar, DefaultCookiePolicy
from types import TracebackType
from typing import Final, Self, TypeAlias
from urllib.parse import urljoin

import anyio
import httpx2
from anyio.to_thread import run_sync

from qwenproxy.addresses import ServiceHosts
from qwenproxy.caller import Caller
from qwenproxy.errors import (
    QwenProxyError,
    StoreError,
    UnknownFile,
    Unreachable,
    UpstreamError,
)
from qwenproxy.file_store import MESSAGE, FileStore, StoredFile
from qwenproxy.incoming import off_the_loop
from qwenproxy.media_rows import MediaRow, MediaRows

CookiesOf: TypeAlias = Callable[[str, str], Awaitable[Mapping[str, str]]]
"""An account's cookies for an address."""

MOST_BYTES: Final = 2_000_000_000
INLINE_BYTES: Final = 30_000_000
"""A picture of the service is 1 to 10 MB."""
REDIRECTS: Final = 3
COOKIES_S: Final = 15.0
"""For an account's context to open; then the address must do without."""
TIMEOUT: Final = httpx2.Timeout(30.0, connect=15.0, pool=None)
"""Seconds of silence."""
SHOWN: Final = re.compile(r"(?:image/(?!svg)|video/|audio/)[a-z0-9.+-]+")
"""Media types that no browser runs as a page of ours."""
UNKNOWN_TYPE: Final = "application/octet-stream"
RANGE: Final = re.compile(r"bytes=(?:\d{1,15}-\d{0,15}|-\d{1,15})")
GONE: Final = frozenset({404, 410})
ELSEWHERE: Final = "the service sends to a host that is not its own; nothing is fetched there"


@dataclass(frozen=True, slots=True)
class Opened:
    """Something the service made, whose content comes as it is read."""

    status: int
    """200, 206 for a part, 416 for one that is not there."""
    type: str
    """`application/octet-stream` for what is neither picture, film nor sound."""
    length: int | None
    """Bytes that follow; None: not told."""
    content_range: str
    pieces: AsyncGenerator[bytes]
    """Raises: Unreachable, UpstreamError."""


class Shelf:
    """`async with` it."""

    def __init__(
        self,
        rows: MediaRows,
        store: FileStore,
        hosts: ServiceHosts,
        cookies: CookiesOf,
        *,
        upstream: str,
        proxy: str,
    ) -> None:
        """`upstream`: the site's origin; `proxy`: the proxy server to go through, "" for none."""
        self._rows = rows
        self._store = store
        self._hosts = hosts
        self._cookies = cookies
        self._referer = f"{upstream}/"
        self._proxy = proxy
        self._client: httpx2.AsyncClient | None = None
        self._making = anyio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._client is not None:
            with anyio.CancelScope(shield=True):
                await self._client.aclose()

    def takes(self, url: str) -> bool:
        """Whether what lies there can be put on the shelf: only what the service itself gives out."""
        return self._hosts.own(url)

    async def note(self, url: str, account_id: str, caller: Caller) -> str:
        """Puts on the shelf what the service made for the account; gives its id.

        Raises:
            StoreError: it cannot be written down.
        """
        try:
            return await run_sync(self._rows.add, url, account_id, caller)
        except sqlite3.Error as exc:
            raise StoreError("what the service made cannot be written down") from exc

    async def inline(self, url: str, account_id: str) -> str:
        """What lies at an address out of an answer of the service, in base64.

        Raises:
            UnknownFile, Unreachable, UpstreamError: it cannot be had, or is too large for this.
        """
        async with self._fetched(MediaRow(url, account_id), "") as opened:
            content = await _read(opened)
        return (await run_sync(b64encode, content)).decode()

    @asynccontextmanager
    async def open(self, media_id: str, part: str = "") -> AsyncGenerator[Opened]:
        """What the id stands for, as it comes from the service; `part` is a client's `Range` header.

        Raises:
            UnknownFile: there is no such id, or the service has it no more.
            Unreachable, UpstreamError: the service does not give it.
            StoreError: the shelf cannot be read.
        """
        try:
            row = await run_sync(self._rows.get, media_id)
        except sqlite3.Error as exc:
            raise StoreError("what the service made cannot be looked up") from exc
        if row is None:
            raise UnknownFile("there is no such picture or video here")
        async with self._fetched(row, part) as opened:
            yield opened

    async def into_store(self, media_id: str, caller: Caller) -> StoredFile:
        """The picture or video among the caller's files, as if it had come inside a message.

        Raises:
            TooLarge: it is larger than a file may be.
            …: whatever `open` and the store raise.
        """
        async with self.open(media_id) as opened, off_the_loop(self._store.incoming()) as incoming:
            async with aclosing(opened.pieces) as pieces:
                async for piece in pieces:
                    await run_sync(incoming.write, piece)
            name = f"{media_id}.{opened.type.partition('/')[2]}"
            keep = partial(self._store.keep, incoming, name=name, purpose=MESSAGE, caller=caller)
            return await run_sync(keep)

    @asynccontextmanager
    async def _fetched(self, row: MediaRow, part: str) -> AsyncGenerator[Opened]:
        url, account_id = row.url, row.account_id
        for _ in range(REDIRECTS + 1):
            if not self._hosts.own(url):
                raise UpstreamError(ELSEWHERE)
            async with self._answer(url, account_id, part) as answer:
                if not answer.has_redirect_location:
                    yield _opened(answer)
                    return
                url = _next(url, answer.headers["location"])
        raise UpstreamError("the service sends from one address to the next")

    @asynccontextmanager
    async def _answer(self, url: str, account_id: str, part: str) -> AsyncGenerator[httpx2.Response]:
        headers = {"referer": self._referer, "accept": "*/*", "accept-encoding": "identity"}
        cookies = await self._cookies_for(account_id, url)
        if cookies:
            headers["cookie"] = "; ".join(f"{name}={value}" for name, value in cookies.items())
        if RANGE.fullmatch(part):
            headers["range"] = part
        client = await self._ready()
        try:
            request = client.build_request("GET", url, headers=headers)
            answer = await client.send(request, stream=True)
        except (httpx2.HTTPError, httpx2.InvalidURL) as exc:
            raise Unreachable(f"the service's store cannot be reached ({type(exc).__name__})") from exc
        try:
            yield answer
        finally:
            with anyio.CancelScope(shield=True):
                await answer.aclose()

    async def _cookies_for(self, account_id: str, url: str) -> Mapping[str, str]:
        with anyio.move_on_after(COOKIES_S), suppress(QwenProxyError):
            return await self._cookies(account_id, url)
        return {}

    async def _ready(self) -> httpx2.AsyncClient:
        """Made late and in a thread: reading the computer's certificates takes a while."""
        async with self._making:
            if self._client is None:
                try:
                    self._client = await run_sync(_new_client, self._proxy)
                except (ImportError, ValueError) as exc:
                    raise Unreachable("nothing can be fetched through QWENPROXY_PROXY as it is") from exc
            return self._client


def _new_client(proxy: str) -> httpx2.AsyncClient:
    # What one account is given to keep must not go out with another's requests.
    forgetful = CookieJar(DefaultCookiePolicy(allowed_domains=()))
    return httpx2.AsyncClient(
        cookies=forgetful, proxy=proxy or None, trust_env=False, timeout=TIMEOUT, follow_redirects=False
    )


def _next(url: str, location: str) -> str:
    """Where a redirect leads; "" when that cannot be read."""
    try:
        return urljoin(url, location)
    except ValueError:
        return ""


def _opened(answer: httpx2.Response) -> Opened:
    """Raises: UnknownFile, UpstreamError."""
    status = answer.status_code
    if status in GONE:
        raise UnknownFile("the service has this picture or video no more")
    if status not in {200, 206, 416}:
        raise UpstreamError(f"the service does not give it out (status {status})")
    kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    told = answer.headers.get("content-length", "")
    # A length of packed content says nothing of what follows here.
    length = int(told) if told.isdecimal() and "content-encoding" not in answer.headers else None
    if length is not None and length > MOST_BYTES:
        raise UpstreamError("what the service gives is too large")
    return Opened(
        status,
        kind if SHOWN.fullmatch(kind) else UNKNOWN_TYPE,
        length,
        answer.headers.get("content-range", ""),
        _pieces(answer),
    )


async def _pieces(answer: httpx2.Response) -> AsyncGenerator[bytes]:
    size = 0
    try:
        async for piece in answer.aiter_bytes():
            size += len(piece)
            if size > MOST_BYTES:
                raise UpstreamError("what the service gives is too large")
            yield piece
    except httpx2.HTTPError as exc:
        raise Unreachable(f"the service's store broke off ({type(exc).__name__})") from exc


async def _read(opened: Opened) -> bytes:
    """The whole content. Raises: UpstreamError, Unreachable."""
    content = bytearray()
    async with aclosing(opened.pieces) as pieces:
        async for piece in pieces:
            content += piece
            if len(content) > INLINE_BYTES:
                raise UpstreamError("it is too large to be sent inside an answer")
    return bytes(content)
