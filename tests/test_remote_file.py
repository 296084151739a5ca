"""Against real servers on loopback. Nothing here leaves it: connecting to anything else fails the test."""

from __future__ import annotations

import gzip
import hashlib
import socket
import ssl
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpcore2
import httpx2
import pytest
import trustme
from anyio.abc import SocketStream
from anyio.streams.tls import TLSListener
from hypothesis import given
from hypothesis import strategies as st

from qwenproxy import remote_file
from qwenproxy.caller import ANYBODY, Caller
from qwenproxy.clock import SystemClock
from qwenproxy.errors import NotFetched
from qwenproxy.file_store import FileStore, StoredFile
from qwenproxy.remote_file import MOST_BYTES, RemoteFiles, _checked, _next, connected, resolved
from qwenproxy.settings import Settings

pytestmark = pytest.mark.anyio

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4
PUBLIC = "93.184.215.14"
ANN = Caller("key_ann", "ann", frozenset({"chat"}))
NOBODY = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Trusts no certificate, and costs nothing to make."""
Handler = Callable[[str], "bytes | Sequence[bytes]"]


def answer(body: bytes, *headers: str, status: str = "200 OK", length: bool = True) -> bytes:
    lines = [f"HTTP/1.1 {status}", *headers, *([f"Content-Length: {len(body)}"] if length else [])]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode() + body


def moved(to: str, status: str = "302 Found") -> bytes:
    return answer(b"", f"Location: {to}", status=status)


@dataclass
class Web:
    """A server on loopback that plays the internet, and how to reach it under any name."""

    port: int
    hits: list[str]
    hosts: list[str]
    names: dict[str, list[list[str]]] = field(default_factory=dict)
    dialled: list[tuple[str, int]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        """The answers of the table, one after the other; numbers are read by the system alone."""
        self.asked.append(host)
        if host.lower().rstrip(".") == "localhost":
            return ["127.0.0.1", "::1"]
        if host in self.names:
            answers = self.names[host]
            return answers.pop(0) if len(answers) > 1 else answers[0]
        found = await anyio.getaddrinfo(host, port, flags=socket.AI_NUMERICHOST)
        return [str(address[0]) for *_, address in found]

    async def connect(self, address: str, port: int) -> httpcore2.AsyncNetworkStream:
        """The public address leads to the server; every other that is not loopback ends the test."""
        self.dialled.append((address, port))
        assert address in (PUBLIC, "127.0.0.1"), f"dialled {address}"
        return await connected("127.0.0.1", self.port if address == PUBLIC else port)

    def files(self, tls: ssl.SSLContext | None = None, **settings: Any) -> RemoteFiles:
        known = Settings(**settings)
        return RemoteFiles(known, resolve=self.resolve, connect=self.connect, tls=tls or NOBODY)


async def _serve(stream: Any, handler: Handler, web: Web) -> None:
    async with stream:
        asked = b""
        while b"\r\n\r\n" not in asked:
            asked += await stream.receive()
        head = asked.decode().split("\r\n")
        web.hits.append(head[0].split()[1])
        web.hosts += [line.partition(": ")[2] for line in head if line.lower().startswith("host:")]
        told = handler(web.hits[-1])
        for piece in [told] if isinstance(told, bytes) else told:
            if not piece:
                await anyio.sleep_forever()
            try:
                await stream.send(piece)
            except anyio.BrokenResourceError:
                return


@pytest.fixture
async def serve() -> AsyncIterator[Callable[..., Awaitable[Web]]]:
    async with anyio.create_task_group() as group:

        async def start(handler: Handler, tls: ssl.SSLContext | None = None) -> Web:
            listener: Any = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
            web = Web(listener.extra(anyio.abc.SocketAttribute.local_port), [], [])
            listener = TLSListener(listener, tls, standard_compatible=False) if tls else listener

            async def served(stream: SocketStream) -> None:
                await _serve(stream, handler, web)

            group.start_soon(listener.serve, served)
            closing.append(listener)
            return web

        closing: list[Any] = []
        yield start
        group.cancel_scope.cancel()
    for listener in closing:
        await listener.aclose()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FileStore]:
    """Whatever happens, nothing that was coming stays."""
    yield FileStore(tmp_path, SystemClock(), most_bytes=100_000_000)
    incoming = tmp_path / "files" / "incoming"
    assert not incoming.exists() or not list(incoming.iterdir())


async def fetched(web: Web, store: FileStore, url: str, **settings: Any) -> StoredFile:
    return await web.files(**settings).fetch(url, store, ANN)


async def refused(web: Web, store: FileStore, url: str, **settings: Any) -> str:
    with pytest.raises(NotFetched) as caught:
        await web.files(**settings).fetch(url, store, ANYBODY, param="messages[0].content[1]")
    assert (caught.value.status, caught.value.param) == (400, "messages[0].content[1]")
    assert not store.rows(ANYBODY)
    return str(caught.value)


# ---- what is fetched ----


async def test_a_file_comes_from_the_very_address_that_was_looked_at(serve: Any, store: FileStore) -> None:
    web = await serve(lambda path: answer(PNG, "Content-Type: text/html"))
    web.names["cats.example"] = [[PUBLIC], ["127.0.0.1"]]
    file = await fetched(web, store, "http://cats.example/a%20cat.png?size=1#top")
    assert (web.dialled, web.asked) == ([(PUBLIC, 80)], ["cats.example"])
    assert (web.hits, web.hosts) == (["/a%20cat.png?size=1"], ["cats.example"])
    assert (file.name, file.type, file.kind, file.size) == ("a cat.png", "image/png", "image", len(PNG))
    assert (file.purpose, file.owner) == ("message", ANN.mark)
    assert hashlib.sha256(store.path(file).read_bytes()).hexdigest() == file.sha256


async def test_over_tls_the_certificate_is_the_names(serve: Any, store: FileStore) -> None:
    ca = trustme.CA()
    here, there = ssl.create_default_context(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.configure_trust(here)
    ca.issue_cert("cats.example").configure_cert(there)
    web = await serve(lambda path: answer(b"%PDF-1.7 x"), there)
    web.names |= {"cats.example": [[PUBLIC]], "dogs.example": [[PUBLIC]]}
    file = await web.files(here).fetch("https://cats.example/", store, ANN)
    assert (file.name, file.kind, web.dialled) == ("file.pdf", "document", [(PUBLIC, 443)])
    with pytest.raises(NotFetched, match="no whole answer"):
        await web.files(here).fetch("https://dogs.example/", store, ANN)
    with pytest.raises(NotFetched, match="no whole answer"):
        await RemoteFiles(Settings(), resolve=web.resolve, connect=web.connect).fetch(
            "https://cats.example/", store, ANN
        )


async def test_the_next_address_is_tried_when_one_fails(serve: Any, store: FileStore) -> None:
    web = await serve(lambda path: answer(PNG))
    web.names["cats.example"] = [["8.8.8.8", PUBLIC]]

    async def connect(address: str, port: int) -> httpcore2.AsyncNetworkStream:
        if address == "8.8.8.8":
            raise httpcore2.ConnectError("refused")
        return await connected("127.0.0.1", web.port)

    files = RemoteFiles(Settings(), resolve=web.resolve, connect=connect)
    assert (await files.fetch("http://cats.example/a.png", store, ANN)).size == len(PNG)
    web.names["cats.example"] = [["8.8.8.8"]]
    with pytest.raises(NotFetched, match=r"cats\.example cannot be reached"):
        await files.fetch("http://cats.example/a.png", store, ANN)


@pytest.mark.parametrize(("coding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
async def test_what_a_server_packs_unasked_is_unpacked(
    serve: Any, store: FileStore, coding: str, pack: Callable[[bytes], bytes]
) -> None:
    web = await serve(lambda path: answer(pack(PNG * 300), f"Content-Encoding: {coding}"))
    web.names["cats.example"] = [[PUBLIC]]
    assert (await fetched(web, store, "http://cats.example/cat")).name == "cat.png"
    assert store.rows(ANN)[0].size == len(PNG) * 300


async def test_redirects_are_followed_and_looked_at_each(serve: Any, store: FileStore) -> None:
    chain = {"/1": moved("/2"), "/2": moved("//dogs.example/3", "307 X"), "/3": moved("4.png", "308 X")}
    web = await serve(lambda path: chain.get(path, answer(PNG)))
    web.names |= {"cats.example": [[PUBLIC]], "dogs.example": [[PUBLIC]]}
    assert (await fetched(web, store, "http://cats.example/1")).name == "4.png"
    assert web.asked == ["cats.example", "cats.example", "dogs.example", "dogs.example"]
    chain["/4.png"] = moved("/5")
    store.remove(store.rows(ANN)[0].id, ANN)
    assert "more than 3 redirects" in await refused(web, store, "http://cats.example/1")


async def test_what_the_owner_allows_may_be_private_and_on_any_port(serve: Any, store: FileStore) -> None:
    web = await serve(lambda path: answer(PNG))
    web.names["nas.lan"] = [["127.0.0.1"]]
    for host in ("127.0.0.1", "nas.lan"):
        allow = (f"{host.upper()}:{web.port}",)
        assert await fetched(web, store, f"http://{host}:{web.port}/a.png", fetch_allow=allow)
        with pytest.raises(NotFetched):
            await fetched(web, store, f"http://{host}:{web.port + 1}/a.png", fetch_allow=allow)
    with pytest.raises(NotFetched):
        await fetched(web, store, f"http://localhost:{web.port}/", fetch_allow=(f"127.0.0.1:{web.port}",))
    assert len(web.hits) == 2


# ---- what is not ----

BODIES: list[tuple[bytes, str]] = [
    (answer(b"<!doctype html><title>Cats</title>", "Content-Type: image/png"), "a web page, not a file"),
    (answer(b""), "an empty file"),
    (answer(b"no", status="404 Not Found"), "answered 404"),
    (answer(b"", status="204 No Content"), "answered 204"),
    (answer(PNG, status="206 Partial Content"), "answered 206"),
    (answer(PNG, status="401 Unauthorized"), "answered 401"),
    (moved(""), "redirects to nowhere"),
    (moved("http://[::1"), "cannot be read|redirects to nowhere"),
    (answer(PNG, "Content-Encoding: br"), "packs its answer"),
    (answer(PNG, "Content-Encoding: gzip"), "cannot be unpacked"),
    (answer(PNG)[:-9], "no whole answer"),
    (b"SSH-2.0-OpenSSH_9.2\r\n", "no whole answer"),
    (answer(PNG, f"Content-Length: {MOST_BYTES + 1}", length=False), "larger than 20 MB"),
]


@pytest.mark.parametrize(("body", "why"), BODIES)
async def test_what_is_no_file_is_said(serve: Any, store: FileStore, body: bytes, why: str) -> None:
    web = await serve(lambda path: body)
    web.names["cats.example"] = [[PUBLIC]]
    told = await refused(web, store, "http://cats.example/cat.png?token=secret")
    assert any(each in told for each in why.split("|")), told
    assert "secret" not in told


async def test_no_more_is_taken_than_there_may_be(serve: Any, store: FileStore) -> None:
    large = answer(b"", length=False)
    web = await serve(lambda path: [large, *[bytes(1_000_000)] * 30])
    web.names["cats.example"] = [[PUBLIC]]
    assert "larger than 20 MB" in await refused(web, store, "http://cats.example/")
    bomb = await serve(lambda path: answer(gzip.compress(bytes(40_000_000)), "Content-Encoding: gzip"))
    bomb.names["cats.example"] = [[PUBLIC]]
    assert "larger than 20 MB" in await refused(bomb, store, "http://cats.example/")


async def test_time_is_up_for_all_of_it(
    serve: Any, store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_file, "DEADLINE_S", 0.2)
    web = await serve(lambda path: [answer(PNG, f"Content-Length: {len(PNG)}", length=False)[:-5], b""])
    web.names["cats.example"] = [[PUBLIC]]
    assert "gave no whole file within" in await refused(web, store, "http://cats.example/")


async def test_it_can_be_switched_off(serve: Any, store: FileStore) -> None:
    web = await serve(lambda path: answer(PNG))
    told = await refused(web, store, f"http://127.0.0.1:{web.port}/", fetch_urls=False)
    assert "QWENPROXY_FETCH_URLS=0" in told
    assert (web.hits, web.asked) == ([], [])


# ---- the corpus of T14 ----

LITERAL = [
    *("127.0.0.1", "127.1", "127.0.1", "127.255.255.254", "0", "0.0.0.0", "0x0"),
    *("2130706433", "017700000001", "0x7f000001", "0x7f.1", "0177.0.0.1", "0177.0x0.1", "127.0.0.01"),
    *("[::1]", "[::]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]"),
    *("[64:ff9b::127.0.0.1]", "[64:ff9b:1::7f00:1]", "[2002:7f00:1::]", "[fe80::1%25lo]", "[fe80::1%lo]"),
    *(
        "localhost",
        "LOCALHOST",
        "localhost.",
        "127.0.0.1.",
        "127\u30020\u30020\u30021",
        "127\uff0e0\uff0e0\uff0e1",
    ),
    *(
        "\u2460\u2461\u2466.0.0.1",
        "\uff11\uff12\uff17.0.0.1",
        "loc\u00adalhost",
        "lo%63alhost",
        "127%2e0%2e0%2e1",
    ),
    *("10.0.0.1", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.100.100.200", "168.63.129.16"),
    *("[fc00::1]", "[fd00:ec2::254]", "224.0.0.1", "255.255.255.255"),
]
TRICKS = [
    *("http://cats.example@{here}/", "http://cats.example:80@{here}/", "http://@{here}/", "http://:@{here}/"),
    *(
        "http://{here}\\@cats.example/",
        "http://cats.example\\@{here}/",
        "http:\\\\{here}\\",
        "http:/\\{here}/",
    ),
    *(
        "http://{here} @cats.example/",
        "http://{here}\t/",
        "http://\n{here}/",
        "http://{here}\r\nX: y/",
        " http://{here}/",
    ),
    *("http://{here}%23@cats.example/", "http://{here}%2f@cats.example/", "http://cats.example%00.{here}/"),
    *(
        "file:///etc/passwd",
        "gopher://{here}/_GET",
        "ftp://{here}/",
        "dict://{here}/",
        "http:{here}",
        "http:///{here}",
    ),
    *("//{here}/", "https://{here}/", "HTTP://{here}/", "jar:http://{here}/!/", "http://", ""),
    *("http://{here}:99999/", "http://{here}:-1/", "http://{here}:/"),
]
REDIRECTS = [
    *("http://{here}/", "http://127.0.0.1/", "http://[::1]/", "http://localhost/", "//{here}/", "http://0/"),
    *("file:///etc/passwd", "gopher://{here}/", "data:image/png;base64,AAAA", "http://u:p@{here}/"),
    *("\\\\{here}\\", "http://169.254.169.254/latest/meta-data/", "https://{here}/", "http:{here}"),
]


async def tripwire(serve: Any) -> Web:
    """What nobody may reach. Were it reached, it would give a picture."""
    web: Web = await serve(lambda path: answer(PNG))
    web.names |= {"cats.example": [[PUBLIC]]}
    return web


@pytest.mark.parametrize("host", LITERAL)
async def test_no_spelling_of_a_private_address_is_reached(serve: Any, store: FileStore, host: str) -> None:
    web = await tripwire(serve)
    for port in ("", ":80", f":{web.port}"):
        for scheme in ("http", "https"):
            await refused(web, store, f"{scheme}://{host}{port}/cat.png")
    assert (web.hits, web.dialled) == ([], [])


@pytest.mark.parametrize("form", TRICKS)
async def test_no_trick_of_writing_reaches_one(serve: Any, store: FileStore, form: str) -> None:
    web = await tripwire(serve)
    for here in (f"127.0.0.1:{web.port}", "127.0.0.1"):
        await refused(web, store, form.format(here=here))
    assert (web.hits, web.dialled) == ([], [])


@pytest.mark.parametrize("target", REDIRECTS)
async def test_no_redirect_leads_to_one(serve: Any, store: FileStore, target: str) -> None:
    wire = await tripwire(serve)
    web = await serve(lambda path: moved(target.format(here=f"127.0.0.1:{wire.port}")))
    web.names["cats.example"] = [[PUBLIC]]
    await refused(web, store, "http://cats.example/")
    assert (wire.hits, set(web.dialled)) == ([], {(PUBLIC, 80)})


async def test_https_is_not_left_for_http(serve: Any, store: FileStore) -> None:
    ca = trustme.CA()
    here, there = ssl.create_default_context(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.configure_trust(here)
    ca.issue_cert("cats.example").configure_cert(there)
    web = await serve(lambda path: moved("http://cats.example/"), there)
    web.names["cats.example"] = [[PUBLIC]]
    with pytest.raises(NotFetched, match="from https to http"):
        await web.files(here).fetch("https://cats.example/", store, ANN)


@pytest.mark.parametrize(
    "answers",
    [
        [["127.0.0.1"]],
        [[PUBLIC, "127.0.0.1"]],
        [["10.0.0.1", PUBLIC]],
        [[PUBLIC, "::ffff:127.0.0.1"]],
        [["::1"]],
        [[]],
        [["fe80::1%eth0"]],
        [["not an address"]],
    ],
)
async def test_every_address_of_a_name_has_to_be_public(
    serve: Any, store: FileStore, answers: list[list[str]]
) -> None:
    web = await tripwire(serve)
    web.names["flip.example"] = answers
    told = await refused(web, store, "http://flip.example/")
    assert told == await refused(web, store, "http://flip.example/")
    web.names.pop("flip.example")
    # A name that there is tells no more than one that there is not.
    assert told == (await refused(web, store, "http://unknown.example/")).replace("unknown", "flip")
    assert (web.hits, web.dialled) == ([], [])


async def test_a_resolver_that_changes_its_mind_leads_nowhere(serve: Any, store: FileStore) -> None:
    wire = await tripwire(serve)
    web = await serve(lambda path: moved("http://flip.example/"))
    web.names["flip.example"] = [[PUBLIC], ["127.0.0.1"]]
    await refused(web, store, "http://flip.example/")
    assert (web.dialled, web.hits, wire.hits) == ([(PUBLIC, 80)], ["/"], [])


async def test_the_system_reads_every_spelling_of_a_number() -> None:
    for host in ("127.0.0.1", "127.1", "2130706433", "0x7f000001", "017700000001"):
        assert await resolved(host, 80) == ("127.0.0.1",)
    assert await resolved("::1", 80) == ("::1",)


@given(st.text(max_size=30), st.sampled_from(["http://", "https://", "//", "http:", ""]))
def test_whatever_is_written_is_an_address_or_none(text: str, before: str) -> None:
    for read in (_checked, partial(_next, httpx2.URL("http://cats.example/a?b"))):
        try:
            found = read(before + text)
        except NotFetched:
            continue
        assert (found.scheme in ("http", "https"), found.userinfo, bool(found.host)) == (True, b"", True)


def test_the_corpus_is_no_smaller_than_t14_asks() -> None:
    assert len({*LITERAL, *TRICKS, *REDIRECTS}) >= 40
