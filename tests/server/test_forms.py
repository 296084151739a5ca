"""Forms with files: what is taken, what is refused, and that nothing stays behind."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from qwenproxy.clock import SystemClock
from qwenproxy.errors import BadRequest, QwenProxyError, ShuttingDown, TooLarge, WrongMediaType
from qwenproxy.file_store import FileStore
from qwenproxy.server.body import BodyTooSlow, ClientGone
from qwenproxy.server.forms import BATCH_BYTES, Form, FormBounds, read_form

pytestmark = pytest.mark.anyio

BOUNDS = FormBounds(2_000_000, fields_bytes=1000, parts=5, idle_s=0.2, total_s=10)
NAMED = b'Content-Disposition: form-data; name="%s"\r\n\r\n'
FILE = b'Content-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path, SystemClock(), most_bytes=2_000_000)


def left(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "files" / "incoming").glob("*")]


def body_of(*parts: bytes, end: bytes = b"--x--\r\n") -> bytes:
    return b"".join(b"--x\r\n" + part + b"\r\n" for part in parts) + end


def pieces_of(body: bytes, size: int) -> list[bytes]:
    return [body[start : start + size] for start in range(0, len(body), size)]


@asynccontextmanager
async def read(
    store: FileStore,
    pieces: Iterable[bytes],
    content_type: str = "multipart/form-data; boundary=x",
    headers: Iterable[tuple[bytes, bytes]] = (),
    bounds: FormBounds = BOUNDS,
    after: Callable[[], Any] | None = None,
) -> AsyncGenerator[Form]:
    """The form that arrives in such pieces; `after` is what the server says when there are no more."""
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]

    async def receive() -> Any:
        if messages:
            return messages.pop(0)
        return after() if after else {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "headers": [(b"content-type", content_type.encode()), *headers]}
    async with read_form(scope, receive, bounds, store) as form:
        yield form


async def failure(store: FileStore, pieces: Iterable[bytes], **more: Any) -> QwenProxyError:
    with pytest.raises(QwenProxyError) as failed:
        async with read(store, pieces, **more):
            pass
    return failed.value


async def form_of(store: FileStore, body: bytes, **more: Any) -> dict[str, Any]:
    async with read(store, [body], **more) as form:
        files = [(part.field, part.name, part.incoming.path.read_bytes()) for part in form.files]
        return {**form.fields, "files": files}


@pytest.mark.parametrize("size", [1, 7, 1000, 10_000_000])
async def test_a_form_is_the_same_in_whatever_pieces_it_comes(
    store: FileStore, tmp_path: Path, size: int
) -> None:
    content = b"\r\n--x\r--\r\n-" * 3 + b"\0\xff" * (50 if size < 100 else BATCH_BYTES)
    body = body_of(NAMED % b"purpose" + b"user_data", FILE + content, NAMED % b"purpose" + "да".encode())
    async with read(store, pieces_of(body, size)) as form:
        assert form.fields == {"purpose": ["user_data", "да"]}
        part = form.file("file")
        assert part.name == "a.txt"
        assert part.incoming.sha256 == hashlib.sha256(content).hexdigest()
        assert part.incoming.path.read_bytes() == content
    assert not left(tmp_path)


async def test_what_a_real_client_sends(store: FileStore) -> None:
    files = [("image", ("ein „Bild“.png", b"one", "image/png")), ("image", ("b.png", b"", "image/png"))]
    request = httpx.Request("POST", "http://x", data={"prompt": "draw"}, files=files)
    found = await form_of(store, request.read(), content_type=request.headers["content-type"])
    assert found == {
        "prompt": ["draw"],
        "files": [("image", "ein „Bild“.png", b"one"), ("image", "b.png", b"")],
    }


@pytest.mark.parametrize(
    ("header", "name"),
    [
        (b'form-data; name="file"; filename="a b.txt"', "a b.txt"),
        (b"form-data; name=file; filename=a.txt", "a.txt"),
        (b'form-data; name="file"; filename=""', ""),
        (b"form-data; name=\"file\"; filename*=UTF-8''%D0%B4%D0%B0.txt", "да.txt"),
        (b'form-data; name="file"; filename="x"; filename*=utf-8\'en\'%D0%B4.txt', "д.txt"),
        ('form-data; name="file"; filename="да.txt"'.encode(), "да.txt"),
        (b'form-data; name="file"; filename="../../x"', "../../x"),
        (b'form-data; name="file"; filename="\xff.txt"', "\ufffd.txt"),
    ],
)
async def test_a_file_is_told_by_its_name(store: FileStore, header: bytes, name: str) -> None:
    body = body_of(b"Content-Disposition: " + header + b"\r\nContent-Type: image/png\r\n\r\nwords")
    assert (await form_of(store, body))["files"] == [("file", name, b"words")]


BROKEN = {
    "nothing": b"",
    "no end": body_of(FILE + b"words", end=b""),
    "cut in a header": b"--x\r\nContent-Dispo",
    "another boundary": body_of(FILE + b"words").replace(b"--x", b"--y"),
    "words before it": b"words\r\n" + body_of(FILE + b"words"),
    "no disposition": body_of(b"Content-Type: text/plain\r\n\r\nwords"),
    "no name": body_of(b'Content-Disposition: form-data; filename="a"\r\n\r\nwords'),
    "an attachment": body_of(b'Content-Disposition: attachment; name="file"; filename="a"\r\n\r\nwords'),
    "encoded": body_of(b"Content-Transfer-Encoding: base64\r\n" + FILE + b"d29yZHM="),
    "a long header": body_of(b"X: " + b"x" * 10_000 + b"\r\n" + FILE),
    "many headers": body_of(b"".join(b"X-%d: x\r\n" % number for number in range(20)) + FILE),
    "a header without a value": body_of(b"words\r\n" + FILE),
    "many parts": body_of(*[NAMED % b"a" + b"b"] * 6),
    "many files": body_of(*[FILE + b"b"] * 6),
    "no text": body_of(NAMED % b"a" + b"\xff"),
}


@pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN.keys())
async def test_a_broken_form_is_the_callers_fault_and_leaves_nothing(
    store: FileStore, tmp_path: Path, body: bytes
) -> None:
    assert isinstance(await failure(store, pieces_of(body, 100)), BadRequest)
    assert not left(tmp_path)


@pytest.mark.parametrize(
    ("content_type", "kind"),
    [
        ("application/json", WrongMediaType),
        ("multipart/mixed; boundary=x", WrongMediaType),
        ("", WrongMediaType),
        ("multipart/form-data", BadRequest),
        ("multipart/form-data; boundary=", BadRequest),
        ("multipart/form-data; boundary=" + "x" * 71, BadRequest),
    ],
)
async def test_what_says_that_it_is_no_form_is_none(
    store: FileStore, content_type: str, kind: type[QwenProxyError]
) -> None:
    assert type(await failure(store, [body_of(FILE)], content_type=content_type)) is kind


async def test_a_form_that_says_that_it_is_too_large_is_not_read(store: FileStore) -> None:
    def never() -> Any:
        raise AssertionError("it was read")

    more = {"headers": [(b"content-length", b"4000000")], "after": never}
    assert isinstance(await failure(store, [], **more), TooLarge)


LARGE = {
    "one file": body_of(FILE + b"x" * 2_000_001),
    "two files together": body_of(FILE + b"x" * 1_000_001, FILE + b"x" * 1_000_001),
    "a value": body_of(NAMED % b"a" + b"x" * 1001),
    "two values together": body_of(NAMED % b"a" + b"x" * 600, NAMED % b"b" + b"x" * 600),
    "what comes after its end": body_of(FILE + b"x") + b"x" * 2_500_000,
    "line ends before it": b"\r\n" * 1_500_000,
}


@pytest.mark.parametrize("body", LARGE.values(), ids=LARGE.keys())
async def test_what_is_too_large_is_refused_and_leaves_nothing(
    store: FileStore, tmp_path: Path, body: bytes
) -> None:
    assert isinstance(await failure(store, pieces_of(body, 60_000)), TooLarge)
    assert not left(tmp_path)


async def test_the_largest_form_is_taken(store: FileStore) -> None:
    body = body_of(FILE + b"x" * 2_000_000, NAMED % b"a" + b"x" * 1000)
    found = await form_of(store, body, headers=[(b"content-length", b"%d" % len(body))])
    assert len(found["files"][0][2]) == 2_000_000
    assert len(found["a"][0]) == 1000


@pytest.mark.parametrize("seed", range(5))
async def test_whatever_comes_is_a_form_or_the_callers_fault(
    store: FileStore, tmp_path: Path, seed: int
) -> None:
    dice = random.Random(seed)
    sound = body_of(NAMED % b"purpose" + b"x", FILE + b"\r\n-" * 20, FILE + b"words")
    for _ in range(60):
        body = bytearray(sound)
        for _ in range(dice.randint(1, 4)):
            place = dice.randrange(len(body))
            body[place : place + dice.randint(0, 3)] = dice.choice((b"\r\n", b"--x", b"-", b"\0", b":", b'"'))
        try:
            async with read(store, pieces_of(bytes(body), dice.randint(1, 50))) as form:
                assert all(part.incoming.size >= 0 for part in form.files)
        except (BadRequest, TooLarge):
            pass
        assert not left(tmp_path)


async def test_a_client_that_stops_or_dawdles_leaves_nothing(store: FileStore, tmp_path: Path) -> None:
    half = body_of(FILE + b"x" * BATCH_BYTES, end=b"")

    def gone() -> Any:
        assert left(tmp_path)
        return {"type": "http.disconnect"}

    with pytest.raises(ClientGone):
        async with read(store, [half], after=gone):
            pass
    assert not left(tmp_path)

    async def silent() -> Any:
        await anyio.sleep_forever()

    scope = {"type": "http", "headers": [(b"content-type", b"multipart/form-data; boundary=x")]}
    with pytest.raises(BodyTooSlow):
        async with read_form(scope, silent, BOUNDS, store):
            pass

    async def dripping() -> Any:
        await anyio.sleep(0.01)
        return {"type": "http.request", "body": b"\r", "more_body": True}

    with pytest.raises(BodyTooSlow):
        async with read_form(scope, dripping, FormBounds(1000, idle_s=5, total_s=0.1), store):
            pass


async def test_a_server_that_ends_waits_for_no_form_and_nothing_stays(
    store: FileStore, tmp_path: Path
) -> None:
    stopped = anyio.Event()

    async def silent() -> Any:
        if not pieces:
            assert left(tmp_path)
            stopped.set()
            await anyio.sleep_forever()
        return {"type": "http.request", "body": pieces.pop(), "more_body": True}

    pieces = [body_of(FILE + b"x" * BATCH_BYTES, end=b"")]
    scope = {"type": "http", "headers": [(b"content-type", b"multipart/form-data; boundary=x")]}
    with pytest.raises(ShuttingDown):
        async with read_form(scope, silent, replace(BOUNDS, idle_s=60, stopped=stopped), store):
            pass
    assert not left(tmp_path)


async def test_nothing_at_all_is_no_form(store: FileStore) -> None:
    async def never() -> Any:
        raise AssertionError("it was read")

    with pytest.raises(BadRequest) as refused:
        async with read_form({"type": "http", "headers": []}, never, BOUNDS, store):
            pass
    assert refused.value.param == "file"


async def test_whoever_uses_the_form_and_fails_or_is_cancelled_leaves_nothing(
    store: FileStore, tmp_path: Path
) -> None:
    async def use() -> None:
        async with read(store, [body_of(FILE + b"words")]):
            assert left(tmp_path)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await use()
    assert not left(tmp_path)
    with anyio.CancelScope() as scope:
        async with read(store, [body_of(FILE + b"words")]):
            scope.cancel()
            await anyio.sleep_forever()
    assert not left(tmp_path)


async def test_one_file_and_one_value_are_asked_for_by_name(store: FileStore) -> None:
    body = body_of(FILE + b"one", FILE + b"two", *[NAMED % b"purpose" + b"x"] * 2, NAMED % b"text" + b"y")
    async with read(store, [body]) as form:
        assert (form.text("text"), form.text("missing")) == ("y", "")
        for ask, name in ((form.file, "file"), (form.file, "image"), (form.text, "purpose")):
            with pytest.raises(BadRequest) as refused:
                ask(name)
            assert refused.value.param == name


@pytest.mark.skipif(os.name == "nt", reason="no such modes")
async def test_a_file_that_comes_is_nobody_elses(store: FileStore) -> None:
    async with read(store, [body_of(FILE + b"words")]) as form:
        assert form.files[0].incoming.path.stat().st_mode & 0o077 == 0
