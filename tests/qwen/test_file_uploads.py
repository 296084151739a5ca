"""Uploads into the stand-in, which checks signatures and keeps what it gets."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from qwenproxy.chat import Delta, FileKind, Text
from qwenproxy.clock import SystemClock
from qwenproxy.errors import ProtocolChanged, UnsupportedFile, UploadFailed, UpstreamTimeout
from qwenproxy.qwen.client import QwenClient, Turn
from qwenproxy.qwen.file_uploads import Uploads
from qwenproxy.qwen.files import HostedFile
from qwenproxy.qwen.models import BUILT_IN
from qwenproxy.settings import Settings
from tests.serve import Standin
from tests.visiting import VisitingTransport

pytestmark = pytest.mark.anyio
ONE, TWO = "one@example.com", "two@example.com"
TYPES: dict[FileKind, str] = {"image": "image/png", "text": "text/plain", "document": "application/pdf"}


@pytest.fixture
async def road(standin: Standin) -> AsyncIterator[VisitingTransport]:
    road = VisitingTransport(standin)
    yield road
    await road.aclose()


def client_of(road: VisitingTransport, **settings: Any) -> tuple[QwenClient, Settings]:
    known = Settings(storage_endpoint=road.standin.site, upstream=road.standin.site, **settings)
    return QwenClient(road, known, SystemClock()), known


def uploads_of(road: VisitingTransport, **settings: Any) -> Uploads:
    client, known = client_of(road, **settings)
    return Uploads(client, known, SystemClock(), look_every_s=0.01)


async def upload(
    uploads: Uploads, path: Path, content: bytes, kind: FileKind = "text", account: str = ONE
) -> HostedFile:
    path.write_bytes(content)
    return await uploads.upload(account, path, path.name, TYPES[kind], kind, len(content))


@pytest.mark.parametrize(
    ("size", "parts"), [(5, 0), (2 * 1024**2 - 1, 0), (2 * 1024**2, 1), (5 * 1024**2 + 7, 3)]
)
async def test_what_arrives_is_what_is_on_disk(
    road: VisitingTransport, tmp_path: Path, size: int, parts: int
) -> None:
    content = (b"0123456789" * (size // 10 + 1))[:size]
    hosted = await upload(uploads_of(road), tmp_path / "Größe & mehr.txt", content)
    (found,) = await anyio.to_thread.run_sync(road.standin.objects)
    assert found["sha256"] == hashlib.sha256(content).hexdigest()
    assert (found["account"], found["path"], found["parts"]) == (ONE, hosted.path, parts)
    assert found["parsed"]
    assert hosted.path == f"{hosted.user_id}/{hosted.id}_Größe & mehr.txt"
    assert (hosted.size, hosted.kind, hosted.name) == (size, "text", "Größe & mehr.txt")


async def test_only_documents_are_read_and_each_step_is_told(road: VisitingTransport, tmp_path: Path) -> None:
    uploads, steps = uploads_of(road), list[str]()
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    await uploads.upload(ONE, path, "a.png", "image/png", "image", 3, steps.append)
    assert steps == ["uploading a file"]
    await uploads.upload(ONE, path, "a.pdf", "application/pdf", "document", 3, steps.append)
    assert steps[1:] == ["uploading a file", "a document is read"]


async def test_the_model_gets_what_was_uploaded(road: VisitingTransport, tmp_path: Path) -> None:
    client, settings = client_of(road)
    uploads = Uploads(client, settings, SystemClock(), look_every_s=0.01)
    files = (
        await upload(uploads, tmp_path / "cat.png", b"\x89PNG cat", "image"),
        await upload(uploads, tmp_path / "report.pdf", b"%PDF-1.7 report", "document"),
        await upload(uploads, tmp_path / "notes.txt", b"remember the milk", "text"),
    )
    chat = await client.new_chat(ONE, BUILT_IN[0])
    turn = Turn(BUILT_IN[0], "What is this?", attachments=files)
    deltas: list[Delta] = [delta async for delta in client.stream(ONE, chat, turn)]
    assert any(isinstance(delta, Text) for delta in deltas)
    (seen,) = road.standin.turns()
    assert [(each["name"], each["sha256"]) for each in seen["files"]] == [
        ("cat.png", hashlib.sha256(b"\x89PNG cat").hexdigest()),
        ("report.pdf", hashlib.sha256(b"%PDF-1.7 report").hexdigest()),
        ("notes.txt", hashlib.sha256(b"remember the milk").hexdigest()),
    ]
    assert "remember the milk" in seen["documents"]


async def test_a_refused_ticket_is_renewed_once(road: VisitingTransport, tmp_path: Path) -> None:
    uploads = uploads_of(road)
    road.standin.fault("oss_error", on="storage", status=403, code="SecurityTokenExpired")
    await upload(uploads, tmp_path / "a.txt", b"abc")
    assert len(road.standin.received("/api/v2/files/getstsToken")) == 2
    road.standin.fault("oss_error", on="storage", status=403, code="SecurityTokenExpired", times=2)
    with pytest.raises(UploadFailed, match=r"status 403 \(SecurityTokenExpired\)"):
        await upload(uploads, tmp_path / "b.txt", b"abc")


async def test_a_ticket_whose_time_is_over_is_renewed(road: VisitingTransport, tmp_path: Path) -> None:
    road.standin.options(sts_s=0)
    with pytest.raises(UploadFailed, match="SecurityTokenExpired") as caught:
        await upload(uploads_of(road), tmp_path / "a.txt", b"abc")
    assert "STS." not in repr(caught.value)
    assert road.standin.objects() == []


@pytest.mark.parametrize("size", [3, 3 * 1024**2])
async def test_a_passing_failure_of_the_storage_is_overcome(
    road: VisitingTransport, tmp_path: Path, size: int
) -> None:
    road.standin.fault("oss_error", on="storage", status=500)
    await upload(uploads_of(road), tmp_path / "a.txt", b"x" * size)
    (found,) = road.standin.objects()
    assert found["size"] == size


async def test_a_lasting_one_is_told_without_its_words(road: VisitingTransport, tmp_path: Path) -> None:
    road.standin.fault("oss_error", on="storage", status=500, times=9)
    with pytest.raises(UploadFailed) as caught:
        await upload(uploads_of(road), tmp_path / "a.txt", b"abc")
    assert str(caught.value).startswith("the service's storage refused the file with status 500")


async def test_a_storage_that_cannot_be_reached(road: VisitingTransport, tmp_path: Path) -> None:
    client, _ = client_of(road)
    away = Settings(storage_endpoint="http://127.0.0.1:1")
    with pytest.raises(UploadFailed, match="cannot be reached"):
        await upload(Uploads(client, away, SystemClock()), tmp_path / "a.txt", b"abc")


async def test_who_leaves_leaves_at_once_and_nothing_is_uploaded(
    road: VisitingTransport, tmp_path: Path
) -> None:
    road.standin.fault("oss_slow", on="storage", s=0.5)
    uploads = uploads_of(road)
    with anyio.move_on_after(0.1) as left:
        await upload(uploads, tmp_path / "a.txt", b"x" * 5 * 1024**2)
    assert left.cancelled_caught
    (tmp_path / "a.txt").unlink()


async def test_a_document_that_cannot_be_read(road: VisitingTransport, tmp_path: Path) -> None:
    road.standin.fault("parse_failed", on="parse", error="It is locked.")
    with pytest.raises(UnsupportedFile, match=r"the service cannot read a.pdf: It is locked\."):
        await upload(uploads_of(road), tmp_path / "a.pdf", b"%PDF", "document")


async def test_a_document_that_is_read_for_ever(road: VisitingTransport, tmp_path: Path) -> None:
    road.standin.fault("parse_hangs", on="parse")
    with pytest.raises(UpstreamTimeout, match=r"a.pdf read within 0.1 s"):
        await upload(uploads_of(road, parse_timeout_s=0.1), tmp_path / "a.pdf", b"%PDF", "document")


async def test_an_old_address_is_signed_anew(road: VisitingTransport, tmp_path: Path) -> None:
    uploads = uploads_of(road)
    hosted = await upload(uploads, tmp_path / "a.png", b"\x89PNG", "image")
    assert await uploads.fresh(ONE, hosted) == hosted
    road.standin.options(link_s=600)
    old = replace(hosted, signed_ms=hosted.signed_ms - 240_000)
    fresh = await uploads.fresh(ONE, old)
    assert fresh.url != hosted.url
    assert fresh.signed_ms >= hosted.signed_ms
    assert httpx.get(fresh.url, trust_env=False).content == b"\x89PNG"
    assert await uploads.fresh(TWO, old) == old


@pytest.mark.parametrize("answer", [None, {}, {"fileUrl": 7}, {"fileUrl": "javascript:x"}])
async def test_an_odd_new_address_is_none(answer: object) -> None:
    hosted = HostedFile("f", "u/f_a", "https://x/u/f_a", "a", "text/plain", 1, "text", "u", 1)
    assert await Uploads(_Saying(answer), Settings(), SystemClock()).fresh(ONE, hosted) == hosted


@pytest.mark.parametrize("answer", [None, {}, {"file_id": "x"}])
async def test_an_odd_ticket_is_a_changed_protocol(tmp_path: Path, answer: object) -> None:
    with pytest.raises(ProtocolChanged):
        await upload(Uploads(_Saying(answer), Settings(), SystemClock()), tmp_path / "a.txt", b"abc")


async def test_a_ticket_is_given_as_the_service_says_it(road: VisitingTransport) -> None:
    data = await uploads_of(road).ticket(ONE, "a.txt", 3, "file")
    assert {"access_key_id", "access_key_secret", "security_token", "file_url"} <= set(data)


class _Saying:
    def __init__(self, answer: object) -> None:
        self._answer = answer

    async def post(self, account_id: str, path: str, body: dict[str, Any]) -> Any:
        return self._answer
