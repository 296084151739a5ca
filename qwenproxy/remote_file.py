"""Fetches what requests name by a web address, and nothing that only we could reach (reliability T14).

Everything is checked where the connection is made: the name is resolved once, each of its addresses has to be
one of the public internet, and the connection goes to that very address. So neither another reading of the
URL nor a resolver that changes its mind leads elsewhere. Nothing of the signed-in browser takes part; no
cookie, no proxy and no password goes along.
"""

from __future__ import annotations

import re
import socket
import ssl
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final, Protocol
from urllib.parse import unquote

import anyio
import httpcore2
import httpx2
from anyio.to_thread import run_sync

from qwenproxy.caller import Caller
from qwenproxy.errors import NotFetched, TooLarge
from qwenproxy.file_store import FileStore, StoredFile
from qwenproxy.incoming import Incoming, off_the_loop
from qwenproxy.media_types import extension_of, media_type
from qwenproxy.public_address import is_public
from qwenproxy.settings import variable_of

MOST_BYTES: Final = 20_000_000
"""Of one file, unpacked."""
DEADLINE_S: Final = 15.0
"""For one file, with all its redirects."""
CONNECT_S: Final = 5.0
MOST_REDIRECTS: Final = 3
MOST_AT_ONCE: Final = 16
"""Files being fetched, for all callers."""
PORTS: Final = frozenset({80, 443})
REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
PACKED: Final = frozenset({"gzip", "x-gzip", "deflate"})
PIECE_BYTES: Final = 65_536
ODD: Final = re.compile(r"[\\\s\x00-\x20\x7f]")
"""What two readers of an address could read differently."""
HEADERS: Final = (("Accept", "*/*"), ("Accept-Encoding", "identity"), ("User-Agent", "qwenproxy"))

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
Connect = Callable[[str, int], Awaitable[httpcore2.AsyncNetworkStream]]


class Settings(Protocol):
    @property
    def fetch_urls(self) -> bool: ...

    @property
    def fetch_allow(self) -> tuple[str, ...]: ...


async def resolved(host: str, port: int) -> Sequence[str]:
    """The IP addresses of a name, or of a number in any of its spellings. Raises: OSError, UnicodeError."""
    found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(str(address[0]) for *_, address in found))


async def connected(address: str, port: int) -> httpcore2.AsyncNetworkStream:
    """Raises: httpcore2's errors of the network."""
    return await httpcore2.AnyIOBackend().connect_tcp(address, port, timeout=CONNECT_S)


class RemoteFiles:
    def __init__(
        self,
        settings: Settings,
        *,
        resolve: Resolve = resolved,
        connect: Connect = connected,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._on = settings.fetch_urls
        self._door = _Door(frozenset(each.lower() for each in settings.fetch_allow), resolve, connect)
        self._tls = tls
        self._reading = anyio.Lock()
        self._places = anyio.CapacityLimiter(MOST_AT_ONCE)

    async def fetch(
        self, url: str, store: FileStore, caller: Caller, *, param: str | None = None
    ) -> StoredFile:
        """The file at a web address, as it is kept now; `param` is where the request has the address.

        Raises:
            NotFetched: why there is none.
            StoreError: the session folder.
        """
        try:
            if not self._on:
                off = f"{variable_of('fetch_urls')}=0"
                raise NotFetched(f"addresses are not fetched here ({off}): send the file itself")
            async with self._places:
                with anyio.fail_after(DEADLINE_S):
                    return await self._fetched(url, store, caller)
        except NotFetched as exc:
            exc.param = param
            raise
        except TimeoutError:
            told = f"the address in the request gave no whole file within {DEADLINE_S:.0f} s"
            raise NotFetched(told, param=param) from None

    async def _fetched(self, url: str, store: FileStore, caller: Caller) -> StoredFile:
        async with off_the_loop(store.incoming(MOST_BYTES)) as incoming:
            found = await self._followed(_checked(url), incoming)
            name = unquote(found.path.rpartition("/")[2]) or "file"
            kind = media_type(incoming.head, name)
            if kind == "text/html":
                raise NotFetched(f"{_host(found)} gave a web page, not a file")
            name = name if "." in name else name + extension_of(kind)
            return await run_sync(partial(store.keep, incoming, name=name, purpose="message", caller=caller))

    async def _followed(self, url: httpx2.URL, incoming: Incoming) -> httpx2.URL:
        """Where the content, which is written to the disk, was in the end."""
        for _ in range(MOST_REDIRECTS + 1):
            following = await self._got(url, incoming)
            if following is None:
                return url
            url = following
        raise NotFetched(f"{_host(url)} is behind more than {MOST_REDIRECTS} redirects")

    async def _got(self, url: httpx2.URL, incoming: Incoming) -> httpx2.URL | None:
        """Writes what is there to the disk; or where it is said to be instead."""
        asked = httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        try:
            async with (
                httpcore2.AsyncConnectionPool(
                    ssl_context=await self._trusted(), max_connections=1, network_backend=self._door
                ) as pool,
                pool.stream("GET", asked, headers=list(HEADERS)) as response,
            ):
                headers = {name.decode("latin-1").lower(): each for name, each in response.headers}
                if response.status in REDIRECTS:
                    return _next(url, headers.get("location", b"").decode("latin-1"))
                if response.status != 200:
                    raise NotFetched(f"{_host(url)} answered {response.status}")
                await _take(url, headers, response.aiter_stream(), incoming)
                return None
        except (httpcore2.NetworkError, httpcore2.TimeoutException, httpcore2.ProtocolError, ssl.SSLError):
            raise NotFetched(f"{_host(url)} gave no whole answer that can be read") from None

    async def _trusted(self) -> ssl.SSLContext:
        """Made late and in a thread: reading the computer's certificates takes a while."""
        async with self._reading:
            if self._tls is None:
                self._tls = await run_sync(partial(httpx2.create_ssl_context, trust_env=False))
            return self._tls


class _Door(httpcore2.AsyncNetworkBackend):
    """The only way out: opens connections to hosts of the public internet, and to those that are allowed."""

    def __init__(self, allow: frozenset[str], resolve: Resolve, connect: Connect) -> None:
        self._allow = allow
        self._resolve = resolve
        self._connect = connect

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the library's own shape
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        for address in await self._addresses(host, port):
            try:
                return await self._connect(address, port)
            except (OSError, httpcore2.NetworkError, httpcore2.TimeoutException):
                continue
        raise NotFetched(f"{host[:100]} cannot be reached")

    async def _addresses(self, host: str, port: int) -> Sequence[str]:
        named = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        allowed = named.lower() in self._allow
        if not allowed and port not in PORTS:
            raise NotFetched(f"port {port} is not fetched from, only 80 and 443")
        try:
            addresses = await self._resolve(host, port)
        except (OSError, UnicodeError):
            addresses = ()
        # One answer for both, so that nobody learns which names exist in here.
        if not addresses or not (allowed or all(map(is_public, addresses))):
            raise NotFetched(f"{host[:100]} is no host of the public internet")
        return addresses


def _checked(raw: str) -> httpx2.URL:
    if ODD.search(raw):
        raise NotFetched("the address holds characters that none may hold")
    try:
        url = httpx2.URL(raw)
    except (httpx2.InvalidURL, ValueError):
        raise NotFetched("the address cannot be read") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise NotFetched("only http and https addresses are fetched")
    if url.userinfo:
        raise NotFetched("addresses with a user name or a password are not fetched")
    return url


def _next(url: httpx2.URL, location: str) -> httpx2.URL:
    """Where a redirect leads."""
    if not location or ODD.search(location):
        raise NotFetched(f"{_host(url)} redirects to nowhere")
    try:
        following = _checked(str(url.join(location)))
    except httpx2.InvalidURL:
        raise NotFetched(f"{_host(url)} redirects to nowhere") from None
    if url.scheme == "https" and following.scheme != "https":
        raise NotFetched(f"{_host(url)} redirects from https to http")
    return following


async def _take(
    url: httpx2.URL, headers: Mapping[str, bytes], pieces: AsyncIterator[bytes], incoming: Incoming
) -> None:
    """Writes a body to the disk as it comes."""
    too_large = NotFetched(f"what {_host(url)} gives is larger than {MOST_BYTES // 1_000_000} MB")
    if int(headers.get("content-length", b"0")) > MOST_BYTES:  # a number, the protocol has seen to that
        raise too_large
    unpacked = _unpacker(headers.get("content-encoding", b"").decode("latin-1").strip().lower(), url)
    try:
        async for packed in pieces:
            for piece in unpacked(packed):
                await run_sync(incoming.write, piece)
    except TooLarge:
        raise too_large from None
    except zlib.error:
        raise NotFetched(f"what {_host(url)} gives cannot be unpacked") from None
    if not incoming.size:
        raise NotFetched(f"{_host(url)} gave an empty file")


def _unpacker(encoding: str, url: httpx2.URL) -> Callable[[bytes], Iterator[bytes]]:
    """Some servers pack what nobody asked them to."""
    if encoding in ("", "identity"):
        return lambda piece: iter((piece,))
    if encoding not in PACKED:
        raise NotFetched(f"{_host(url)} packs its answer in a way that nobody asked for")
    machine = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)

    def unpacked(piece: bytes) -> Iterator[bytes]:
        # In bounded pieces: a small one can hold very much.
        while piece:
            yield machine.decompress(piece, PIECE_BYTES)
            piece = machine.unconsumed_tail

    return unpacked


def _host(url: httpx2.URL) -> str:
    return url.host[:100]
