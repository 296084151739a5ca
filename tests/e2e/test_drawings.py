"""Pictures out of the proxy, over the stand-in: drawn, changed, shown, fetched."""

from __future__ import annotations

import base64
import hashlib
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.samples import png
from tests.serve import Proxy, Standin, running_proxy, running_proxy_of, running_standin

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]
OURS = re.compile(r"http://127\.0\.0\.1:\d+/api/media/[0-9a-f]{32}")
SIZES = {"2:3": (1664, 2496), "16:9": (2688, 1536), "1:1": (2048, 2048)}


@dataclass(frozen=True)
class Studio:
    proxy: Proxy
    standin: Standin

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.proxy.base}/v1", api_key="none", max_retries=0, timeout=60)

    def post(self, path: str, **body: Any) -> Any:
        answer = httpx.post(f"{self.proxy.base}{path}", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()

    @property
    def last(self) -> dict[str, Any]:
        return self.standin.turns()[-1]


def pixels(content: bytes) -> tuple[int, int]:
    assert content.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", content[16:24])
    return width, height


def fetched(url: str) -> bytes:
    answer = httpx.get(url, timeout=30)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    return answer.content


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    folder = tmp_path_factory.mktemp("drawings")
    with running_standin(folder) as standin, running_proxy(folder, standin) as proxy:
        standin.options(media_referer=True, draw_s=0.2)
        yield Studio(proxy, standin)


def test_pictures_are_drawn_in_the_size_that_is_wanted(studio: Studio) -> None:
    drawn = studio.post("/v1/images/generations", prompt="A cat", n=2, size="1024x1536", model="dall-e-3")
    urls = [row["url"] for row in drawn["data"]]
    assert set(drawn) == {"created", "data"}
    assert len(set(urls)) == 2
    for url in urls:
        assert OURS.fullmatch(url)
        assert pixels(fetched(url)) == SIZES["2:3"]
    told = {name: studio.last[name] for name in ("chat_type", "size", "content")}
    assert told == {"chat_type": "t2i", "size": "2:3", "content": "A cat"}


def test_a_generator_is_chosen_by_its_name(studio: Studio) -> None:
    studio.post("/api/images/generations", prompt="A cat", model="qwen-image-3.0-pro")
    assert studio.last["generator"] == "qwen-image-3.0-pro"


def test_the_picture_itself_is_the_last_of_its_drafts(studio: Studio) -> None:
    with studio.client as client:
        drawn = client.images.generate(prompt="A cat", size="1024x1024", response_format="b64_json")
    assert drawn.data is not None
    content = base64.b64decode(drawn.data[0].b64_json or "")
    assert pixels(content) == SIZES["1:1"]
    assert content == httpx.get(studio.last["said"], headers={"Referer": f"{studio.standin.site}/"}).content
    assert httpx.get(studio.last["said"]).status_code == 403, "the stand-in gives it to everybody"


def test_a_stream_ends_with_the_picture(studio: Studio) -> None:
    with studio.client as client, client.images.generate(prompt="A cat", stream=True) as events:
        (event,) = list(events)
    assert event.type == "image_generation.completed"
    assert event.size == "2688x1536"
    assert pixels(base64.b64decode(event.b64_json)) == SIZES["16:9"]


def test_a_picture_that_is_brought_is_changed(studio: Studio) -> None:
    picture = png()
    with studio.client as client:
        edited = client.images.edit(image=("cat.png", picture), prompt="Bluer")
    assert edited.data is not None
    assert pixels(fetched(edited.data[0].url or "")) in SIZES.values()
    assert [file["sha256"] for file in studio.last["files"]] == [hashlib.sha256(picture).hexdigest()]
    again = studio.post("/v1/images/edits", prompt="Redder", image=edited.data[0].url)
    assert OURS.fullmatch(again["data"][0]["url"])
    assert studio.last["files"][0]["sha256"] == hashlib.sha256(fetched(edited.data[0].url or "")).hexdigest()


def test_a_prompt_to_completions_draws(studio: Studio) -> None:
    drawn = studio.post("/v1/chat/completions", model="wanxiang", prompt="A cut cat")
    assert set(drawn) == {"created", "data"}
    assert pixels(fetched(drawn["data"][0]["url"])) == SIZES["16:9"]


def test_pictures_inside_a_chat_are_shown_at_addresses_of_ours(studio: Studio) -> None:
    answer = studio.post("/api/chat", message="Draw. {{standin: image tool=1}}")
    content = answer["choices"][0]["message"]["content"]
    (url,) = re.findall(r"!\[image\]\((.+?)\)", content)
    assert OURS.fullmatch(url)
    assert pixels(fetched(url)) == SIZES["16:9"]
    part = httpx.get(url, headers={"Range": "bytes=1-3"})
    assert (part.status_code, part.content) == (206, b"PNG")


def test_what_is_wrong_is_said_before_anything_is_drawn(studio: Studio) -> None:
    turns = len(studio.standin.turns())
    for path, body, param in (
        ("/v1/images/generations", {"prompt": ""}, "prompt"),
        ("/v1/images/generations", {"prompt": "A cat", "size": "large"}, "size"),
        ("/v1/images/edits", {"prompt": "A cat"}, "image"),
    ):
        answer = httpx.post(f"{studio.proxy.base}{path}", json=body, timeout=60)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    unknown = httpx.get(f"{studio.proxy.base}/api/media/{'0' * 32}")
    assert unknown.status_code == 404
    assert len(studio.standin.turns()) == turns


def test_an_address_outlives_the_proxy(tmp_path: Path, standin: Standin) -> None:
    standin.options(media_referer=True, draw_s=0.2)
    with running_proxy(tmp_path, standin) as proxy:
        url = Studio(proxy, standin).post("/v1/images/generations", prompt="A cat")["data"][0]["url"]
    with running_proxy_of(tmp_path, standin) as proxy:
        assert pixels(fetched(proxy.base + url[url.index("/api/") :])) == SIZES["16:9"]
