"""Pictures to change, as OpenAI's own client sends them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import httpx2
import openai
import pytest

from qwenproxy.addresses import file_address, own_file
from qwenproxy.caller import ANYBODY
from qwenproxy.chat import ChatRequest, Finished, Media, Started
from tests.server.serving import ScriptedGateway, Step, running

pytestmark = pytest.mark.anyio
EDITS = "/v1/images/edits"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)
FILE = "file-" + "0" * 24


def drawn(request: ChatRequest) -> Sequence[Step]:
    return [Started("c", "r", "m"), Media("http://here/1"), Finished("stop")]


@dataclass
class Place:
    gateway: ScriptedGateway
    http: httpx.AsyncClient
    openai: openai.AsyncOpenAI

    @property
    def pictures(self) -> list[str]:
        """What the last request brought, by address."""
        return [each.url for each in self.gateway.asked[-1].messages[-1].attachments]

    @property
    def kept(self) -> int:
        return len(self.gateway.files.rows(ANYBODY))


@asynccontextmanager
async def place() -> AsyncIterator[Place]:
    gateway = ScriptedGateway(drawn)
    async with (
        running(gateway) as proxy,
        httpx.AsyncClient(base_url=proxy.url, timeout=15, trust_env=False) as http,
        httpx2.AsyncClient(timeout=15, trust_env=False) as road,
        openai.AsyncOpenAI(
            base_url=proxy.url + "/v1", api_key="none", max_retries=0, http_client=road
        ) as client,
    ):
        yield Place(gateway, http, client)


async def test_openais_client_sends_a_picture() -> None:
    async with place() as here:
        answer = await here.openai.images.edit(image=("cat.png", PNG), prompt="Bluer", n=2, size="1024x1024")
        (address,) = here.pictures
        stored = here.gateway.files.get(own_file(address), ANYBODY)
        assert here.gateway.files.path(stored).read_bytes() == PNG
    assert answer.data is not None
    assert [each.url for each in answer.data] == ["http://here/1"] * 2
    asked = here.gateway.asked[-1]
    assert (asked.messages[-1].text, asked.drawing and asked.drawing.size) == ("Bluer", "1:1")
    assert (stored.name, stored.purpose, stored.kind) == ("cat.png", "message", "image")
    assert not list((Path("session") / "files" / "incoming").iterdir())


async def test_openais_client_sends_several_pictures() -> None:
    async with place() as here:
        await here.openai.images.edit(image=[("a.png", PNG), ("b.png", PNG + b"2")], prompt="Together")
    assert len(set(here.pictures)) == 2


async def test_a_form_may_name_files_and_addresses() -> None:
    form = [("prompt", "Bluer"), ("image[]", FILE), ("image[]", "https://example.org/cat.png")]
    async with place() as here:
        answer = await here.http.post(EDITS, files=[(name, (None, value)) for name, value in form])
    assert answer.status_code == 200
    assert here.pictures == [file_address(FILE), "https://example.org/cat.png"]


async def test_json_says_the_same() -> None:
    async with place() as here:
        answer = await here.http.post(EDITS, json={"prompt": "Bluer", "images": [{"file_id": FILE}]})
    assert answer.json()["data"] == [{"url": "http://here/1"}]
    assert here.pictures == [file_address(FILE)]


@pytest.mark.parametrize(
    ("files", "code", "param"),
    [
        ({"mask": ("mask.png", PNG)}, "unsupported_parameter", "mask"),
        ({"document": ("a.txt", b"words")}, "unsupported_parameter", "document"),
        ({"image": ("cat.png", b"")}, "invalid_request", "image"),
        ({}, "invalid_request", "image"),
    ],
)
async def test_what_cannot_be_used_is_refused_and_nothing_kept(
    files: dict[str, Any], code: str, param: str
) -> None:
    async with place() as here:
        more = {} if "image" in files or not files else {"image": ("cat.png", PNG)}
        form = {"prompt": (None, "Bluer"), **more, **files}
        answer = await here.http.post(EDITS, files=form)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (400, code, param)
        assert (here.kept, here.gateway.asked) == (0, [])


async def test_a_field_is_given_once() -> None:
    form = [("prompt", "Bluer"), ("prompt", "Redder"), ("image", FILE)]
    async with place() as here:
        answer = await here.http.post(EDITS, files=[(name, (None, value)) for name, value in form])
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")


async def test_drawings_from_words_come_in_json_alone() -> None:
    async with place() as here:
        answer = await here.http.post("/v1/images/generations", files={"prompt": (None, "A cat")})
    assert answer.status_code == 415
