"""Files over HTTP, through the whole server: OpenAI's Files API by its own client, the seed's routes raw."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx
import httpx2
import openai
import pytest

from qwenproxy.api_keys import KeyRing
from qwenproxy.caller import ANYBODY
from qwenproxy.errors import UnsupportedFile
from qwenproxy.server.access import Gate
from qwenproxy.server.patience import PatientAnswer
from qwenproxy.server.relay import Bounds
from tests.server.serving import Running, ScriptedGateway, heard, running

pytestmark = pytest.mark.anyio

UPLOAD = "/api/files/upload"
TICKET = "/api/files/getstsToken"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)
FORM = (
    b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\nwords\r\n'
    b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n--x--\r\n'
)


@dataclass
class Place:
    proxy: Running
    gateway: ScriptedGateway
    http: httpx.AsyncClient
    openai: openai.AsyncOpenAI

    async def create(self, content: bytes = b"words", name: str = "a.txt", purpose: Any = "user_data") -> str:
        return (await self.openai.files.create(file=(name, content), purpose=purpose)).id


@asynccontextmanager
async def place(**more: Any) -> AsyncGenerator[Place]:
    gateway = ScriptedGateway()
    async with (
        running(gateway, **more) as proxy,
        httpx.AsyncClient(base_url=proxy.url, timeout=15, trust_env=False) as http,
        httpx2.AsyncClient(timeout=15, trust_env=False) as road,
        openai.AsyncOpenAI(
            base_url=proxy.url + "/v1", api_key="none", max_retries=0, http_client=road
        ) as client,
    ):
        yield Place(proxy, gateway, http, client)


def temporary() -> list[Path]:
    return list(Path("session/files/incoming").glob("*"))


def stored() -> list[Path]:
    return list(Path("session/files").glob("file-*"))


async def test_openais_client_creates_lists_reads_and_deletes() -> None:
    async with place() as at:
        made = await at.openai.files.create(file=("cat.txt", PNG), purpose="vision")
        assert (made.filename, made.bytes, made.purpose) == ("cat.txt", len(PNG), "vision")
        assert (made.object, made.status, made.expires_at) == ("file", "processed", None)
        assert await at.openai.files.retrieve(made.id) == made
        content = await at.openai.files.content(made.id)
        assert content.read() == PNG
        assert content.response.headers["content-type"] == "image/png"
        assert [file async for file in at.openai.files.list()] == [made]
        deleted = await at.openai.files.delete(made.id)
        assert (deleted.id, deleted.deleted) == (made.id, True)
        assert [file async for file in at.openai.files.list()] == []
        assert not temporary()
        assert not stored()


async def test_a_file_is_a_download_and_no_page_whatever_it_holds() -> None:
    async with place() as at:
        file_id = await at.create(b"<html><script>alert(1)</script>", 'a "page"\r\n.html')
        for prefix in ("/v1", "/api", "/api/v1"):
            got = await at.http.get(f"{prefix}/files/{file_id}/content")
            assert got.headers["content-type"] == "text/html"
            assert got.headers["content-disposition"].startswith("attachment;")
            assert got.headers["x-content-type-options"] == "nosniff"
            assert got.headers["content-security-policy"].startswith("sandbox")
        part = await at.http.get(f"/v1/files/{file_id}/content", headers={"Range": "bytes=1-4"})
        assert (part.status_code, part.content) == (206, b"html")
        head = await at.http.head(f"/v1/files/{file_id}/content")
        assert (head.headers["content-length"], head.content) == ("31", b"")


async def test_text_is_not_said_to_be_in_an_encoding_that_nobody_knows() -> None:
    async with place() as at:
        file_id = await at.create("Привет".encode("cp1251"))
        got = await at.http.get(f"/v1/files/{file_id}/content")
        assert got.headers["content-type"] == "text/plain"
        assert got.content == "Привет".encode("cp1251")


async def test_a_long_list_comes_in_pages() -> None:
    async with place() as at:
        made = [await at.create(b"%d" % number) for number in range(5)]
        await at.create(purpose="batch")
        first = await at.openai.files.list(purpose="user_data", limit=2)
        assert [file.id for file in first.data] == made[:2:-1]
        assert first.has_more
        assert [file.id async for file in first] == made[::-1]
        oldest = await at.openai.files.list(purpose="user_data", order="asc", after=made[2])
        assert [file.id for file in oldest.data] == made[3:]
        assert not oldest.has_more
        told = (await at.http.get("/v1/files?limit=1&order=asc")).json()
        assert (told["first_id"], told["last_id"], told["has_more"]) == (made[0], made[0], True)


async def test_what_came_inside_messages_is_listed_only_when_asked_for() -> None:
    async with place() as at:
        with at.gateway.files.incoming() as incoming:
            incoming.write(b"words")
            file = at.gateway.files.keep(incoming, name="a", purpose="message", caller=ANYBODY)
        assert (await at.http.get("/v1/files")).json()["data"] == []
        listed = (await at.http.get("/v1/files?purpose=message")).json()["data"]
        assert [each["id"] for each in listed] == [file.id]
        assert (await at.http.get(f"/v1/files/{file.id}")).status_code == 200


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=10001", "limit"),
        ("limit=x", "limit"),
        ("order=up", "order"),
        ("after=file-0", "after"),
    ],
)
async def test_a_list_that_cannot_be_is_the_callers_fault(query: str, param: str) -> None:
    async with place() as at:
        got = await at.http.get(f"/v1/files?{query}")
        assert (got.status_code, got.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("data", "files", "status", "code", "param"),
    [
        ({"purpose": "user_data"}, {"other": b"x"}, 400, "invalid_request", "file"),
        ({"purpose": "user_data"}, {"file": b""}, 400, "invalid_request", "file"),
        ({}, {"file": b"x"}, 400, "invalid_request", "purpose"),
        ({"purpose": "message"}, {"file": b"x"}, 400, "invalid_request", "purpose"),
        ({"purpose": "vision", "seconds": "9"}, {"file": b"x"}, 400, "unsupported_parameter", "seconds"),
        ({"purpose": "user_data"}, {"file": b"x" * 10_001}, 413, "too_large", None),
        ({"purpose": "user_data"}, {"file": b"x" * 2_000_000}, 413, "too_large", None),
    ],
)
async def test_a_file_that_is_not_taken_is_refused_in_openais_shape_and_leaves_nothing(
    data: dict[str, str], files: dict[str, bytes], status: int, code: str, param: str | None
) -> None:
    async with place(max_file_bytes=10_000) as at:
        got = await at.http.post("/v1/files", data=data, files=files)
        error = got.json()["error"]
        assert (got.status_code, error["code"], error["param"]) == (status, code, param)
        assert not temporary()
        assert not stored()
        assert (await at.http.get("/ping")).status_code == 200


@pytest.mark.parametrize("path", ["/v1/files", UPLOAD])
async def test_json_in_place_of_a_form_is_refused(path: str) -> None:
    async with place() as at:
        assert (await at.http.post(path, json={"file": "x"})).status_code == 415


@pytest.mark.parametrize("path", ["/v1/files/file-0", "/v1/files/upload", "/v1/files/file-0/content"])
async def test_an_unknown_file_is_told_so(path: str) -> None:
    async with place() as at:
        got = await at.http.get(path)
        assert (got.status_code, got.json()["error"]["code"]) == (404, "file_not_found")
        assert (await at.http.delete(path.removesuffix("/content"))).status_code == 404


async def test_the_seeds_upload_answers_everything_its_readers_look_for() -> None:
    async with place() as at:
        got = await at.http.post(UPLOAD, files={"file": ("cat.txt", PNG)})
        told = got.json()
        file = at.gateway.hosting.placed[0]
        url = f"https://files.example/user-1/{file.id}_cat.txt?x-oss-signature=abc"
        known = {"url": url, "id": file.id, "name": "cat.txt", "size": len(PNG), "type": "image/png"}
        assert told == {"success": True, "file": known, "imageUrl": url, **known}
        # The README greps for this text.
        assert f'"file":{{"url":"{url}"' in got.text
        assert (await at.http.get(f"/v1/files/{file.id}/content")).content == PNG


async def test_an_upload_that_the_service_refuses_is_not_kept() -> None:
    async with place() as at:
        at.gateway.hosting.failing = UnsupportedFile("the service cannot read this")
        got = await at.http.post(UPLOAD, files={"file": ("a.bin", b"words")})
        assert (got.status_code, got.json()["code"]) == (400, "unsupported_file")
        assert not stored()


async def test_an_upload_that_is_deleted_meanwhile_fails_as_the_service_says() -> None:
    async with place() as at:
        at.gateway.hosting.takes_s = 0.3
        at.gateway.hosting.failing = UnsupportedFile("the service cannot read this")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(delete_first, at)
            got = await at.http.post(UPLOAD, files={"file": ("a.bin", b"words")})
        assert (got.status_code, got.json()["code"]) == (400, "unsupported_file")


async def delete_first(at: Place) -> None:
    with anyio.fail_after(5):
        while not (rows := await anyio.to_thread.run_sync(at.gateway.files.rows, ANYBODY)):
            await anyio.sleep(0.01)
    at.gateway.files.remove(rows[0].id, ANYBODY)


async def test_an_upload_whose_client_leaves_is_not_kept() -> None:
    async with place() as at:
        at.gateway.hosting.takes_s = 3600
        with pytest.raises(httpx.ReadTimeout):
            await at.http.post(UPLOAD, files={"file": ("a.txt", b"words")}, timeout=0.5)
        await at.proxy.empty()
        assert not stored()


async def test_a_client_that_waits_for_the_service_is_kept_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    impatient = partial(PatientAnswer, silence_s=0.05)
    monkeypatch.setattr("qwenproxy.server.file_routes.PatientAnswer", impatient)
    async with place(heartbeat_s=0.05) as at:
        at.gateway.hosting.takes_s = 0.5
        got = await at.http.post(UPLOAD, files={"file": ("a.txt", b"words")})
        assert got.text.startswith("  ")
        assert got.json()["success"]


@pytest.mark.parametrize(
    ("files", "status", "code"),
    [
        ({"image": b"x"}, 400, "invalid_request"),
        ({"file": b""}, 400, "invalid_request"),
        ({"file": b"x" * 10_001}, 413, "too_large"),
    ],
)
async def test_what_cannot_be_uploaded_is_refused_in_the_seeds_shape(
    files: dict[str, bytes], status: int, code: str
) -> None:
    async with place(max_file_bytes=10_000) as at:
        got = await at.http.post(UPLOAD, files=files)
        assert (got.status_code, got.json()["code"]) == (status, code)
        assert isinstance(got.json()["error"], str)
        assert not at.gateway.hosting.placed


@pytest.mark.parametrize("size", [182_734, "182734"])
async def test_a_ticket_is_what_the_service_said_and_the_log_does_not_hold_it(
    size: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with place() as at:
        body = {"filename": "report.pdf", "filesize": size, "filetype": "file"}
        got = await at.http.post(TICKET, json=body)
        assert got.json()["data"]["access_key_id"] == "STS.example"
        assert got.headers["cache-control"] == "no-store"
        assert at.gateway.hosting.tickets == [("report.pdf", 182_734, "file")]
    lines = [line for line in caplog.messages if "handed out" in line]
    assert len(lines) == 1
    assert "STS" not in caplog.text
    assert "report.pdf" not in caplog.text


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"filename": None}, "filename"),
        ({"filename": " "}, "filename"),
        ({"filename": "x" * 256}, "filename"),
        ({"filetype": 5}, "filetype"),
        ({"filesize": None}, "filesize"),
        ({"filesize": 0}, "filesize"),
        ({"filesize": True}, "filesize"),
        ({"filesize": "much"}, "filesize"),
        ({"filesize": 1.5}, "filesize"),
        ({"filesize": 10**15}, "filesize"),
    ],
)
async def test_a_ticket_for_nothing_is_the_callers_fault(changes: dict[str, Any], param: str) -> None:
    async with place() as at:
        got = await at.http.post(TICKET, json={"filename": "a", "filesize": 1, "filetype": "file"} | changes)
        assert (got.status_code, got.json()["code"], got.json()["param"]) == (400, "invalid_request", param)
        assert not at.gateway.hosting.tickets


async def test_a_key_needs_the_scope_and_sees_only_its_own(tmp_path: Path) -> None:
    names = ("ann", "bob", "eve")
    ann, bob, eve = ({"Authorization": f"Bearer sk-{name}-0123456789abcdef0123"} for name in names)
    keys = tmp_path / "Authorization.txt"
    scopes = {"ann": "files", "bob": "files", "eve": "chat"}
    keys.write_text(
        "\n".join(f"sk-{name}-0123456789abcdef0123 name={name} scopes={scopes[name]}" for name in names)
    )
    ring = KeyRing([keys])
    ring.open()
    async with place(gate=Gate(ring)) as at:
        made = await at.http.post(
            "/v1/files", data={"purpose": "user_data"}, files={"file": b"x"}, headers=ann
        )
        file = made.json()
        for path in ("/v1/files", f"/v1/files/{file['id']}", UPLOAD, TICKET):
            method = "POST" if path in (UPLOAD, TICKET) else "GET"
            assert (await at.http.request(method, path, headers=eve)).status_code == 403
            assert (await at.http.request(method, path)).status_code == 401
        for path in (f"/v1/files/{file['id']}", f"/api/files/{file['id']}/content"):
            assert (await at.http.get(path, headers=ann)).status_code == 200
            assert (await at.http.get(path, headers=bob)).status_code == 404
        assert (await at.http.delete(f"/v1/files/{file['id']}", headers=bob)).status_code == 404
        assert (await at.http.get("/v1/files", headers=bob)).json()["data"] == []
        assert len((await at.http.get("/v1/files", headers=ann)).json()["data"]) == 1
        assert not at.gateway.hosting.tickets


async def test_a_client_that_leaves_or_dawdles_in_the_middle_leaves_nothing() -> None:
    async with place(bounds=Bounds(body_idle_s=0.3)) as at:
        head = at.proxy.head(
            "POST", UPLOAD, "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 1000000"
        )
        begun = head + FORM[:80] + b"x" * 400_000
        async with await at.proxy.connect() as connection:
            await connection.send(begun)
            with anyio.fail_after(5):
                while not temporary():
                    await anyio.sleep(0.01)
        await at.proxy.empty()
        assert not temporary()
        answer = await at.proxy.say(begun)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "invalid_request"
        assert not temporary()


async def test_a_server_that_ends_says_so_to_who_still_sends() -> None:
    async with place() as at:
        more = "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 1000000"
        async with await at.proxy.connect() as connection:
            await connection.send(at.proxy.head("POST", UPLOAD, more) + FORM[:80] + b"x" * 400_000)
            with anyio.fail_after(5):
                while not temporary():
                    await anyio.sleep(0.01)
            at.proxy.admission.stopped.set()
            answer = await heard(connection)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "shutting_down"
        assert not temporary()


async def test_nothing_at_all_is_no_upload() -> None:
    async with place() as at:
        got = await at.http.post(UPLOAD)
        assert (got.status_code, got.json()["param"]) == (400, "file")


async def test_a_web_page_of_elsewhere_sends_no_files() -> None:
    async with place() as at:
        more = f"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: {len(FORM)}\r\n"
        for sign in ("Origin: https://evil.example", "Origin: null", "Sec-Fetch-Site: cross-site"):
            for path in ("/v1/files", UPLOAD):
                answer = await at.proxy.say(at.proxy.head("POST", path, more + sign) + FORM)
                assert answer.startswith(b"HTTP/1.1 403 ")
        answer = await at.proxy.say(at.proxy.head("POST", "/v1/chat/completions", more.strip()) + FORM)
        assert answer.startswith(b"HTTP/1.1 415 ")
        assert not stored()
        answer = await at.proxy.say(at.proxy.head("POST", "/v1/files", more.strip()) + FORM)
        assert answer.startswith(b"HTTP/1.1 200 ")


async def test_a_bug_is_an_error_of_the_routes_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    async with place() as at:
        monkeypatch.setattr(at.gateway.files, "rows", None)
        got = await at.http.get("/v1/files")
        assert (got.status_code, got.json()["error"]["code"]) == (500, "internal_error")
