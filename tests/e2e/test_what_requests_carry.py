"""Pictures and documents by address and by content, through the whole proxy, in both dialects."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from tests.attaching import PNG
from tests.serve import Proxy, Standin, running, running_proxy
from tests.test_remote_file import LITERAL, TRICKS

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

PDF = b"%PDF-1.7\nThe cat is 7 years old.\n%%EOF\n"
CONTENTS = {"/cat.png": PNG, "/cat.pdf": PDF}
Json = dict[str, Any]


@dataclass
class Web:
    """The one web server that may be fetched from, and the tripwire, which may not."""

    allowed: str = ""
    tripwire: str = ""
    hits: list[str] = field(default_factory=list)
    tripped: list[str] = field(default_factory=list)

    def give(self, request: Request) -> Response:
        path = request.url.path
        self.hits.append(path)
        if path == "/to-the-tripwire":
            return RedirectResponse(f"{self.tripwire}/cat.png")
        return Response(CONTENTS[path], media_type="text/html")

    def trip(self, request: Request) -> Response:
        self.tripped.append(request.url.path)
        return Response(PNG)


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    web = Web()
    with ExitStack() as stack:
        web.allowed = stack.enter_context(running(Starlette(routes=[Route("/{path:path}", web.give)])))
        web.tripwire = stack.enter_context(running(Starlette(routes=[Route("/{path:path}", web.trip)])))
        yield web


@pytest.fixture(scope="module")
def proxy(
    _standins: Callable[[str, bool], Standin], web: Web, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    folder = tmp_path_factory.mktemp("carried")
    with running_proxy(folder, _standins("C", False), fetch_allow=web.allowed[7:]) as proxy:
        yield proxy


@pytest.fixture
def site(_standins: Callable[[str, bool], Standin]) -> Standin:
    """The stand-in of the module's proxy, with the sign-ins that it has."""
    standin = _standins("C", False)
    standin.reset(sessions=False)
    return standin


def post(proxy: Proxy, path: str, body: Json) -> httpx.Response:
    """Without certificates, whose reading takes longer than the call."""
    return httpx.post(f"{proxy.base}{path}", json=body, timeout=90, trust_env=False, verify=False)


def asked(proxy: Proxy, dialect: str, *parts: Json) -> httpx.Response:
    content = [{"type": "text", "text": "What is it?"}, *parts]
    if dialect == "native":
        return post(proxy, "/api/chat", {"message": content})
    return post(proxy, "/v1/chat/completions", {"messages": [{"role": "user", "content": content}]})


def known(site: Standin) -> list[tuple[str, str]]:
    """Of the last turn: what the model has."""
    return [(file["name"], file["sha256"]) for file in site.turns()[-1]["files"]]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("dialect", ["native", "openai"])
def test_the_model_gets_what_lies_at_an_address_and_what_is_written_out(
    proxy: Proxy, site: Standin, web: Web, dialect: str
) -> None:
    web.hits.clear()
    inside = PNG + dialect.encode()
    answer = asked(
        proxy,
        dialect,
        {"type": "image_url", "image_url": {"url": f"{web.allowed}/cat.png"}},
        {"type": "file", "file_url": {"url": f"{web.allowed}/cat.pdf"}},
        {"type": "image", "image": f"data:image/png;base64,{base64.b64encode(inside).decode()}"},
    )
    assert answer.status_code == 200, answer.text
    assert known(site) == [
        ("cat.png", sha256(PNG)),
        ("cat.pdf", sha256(PDF)),
        ("image.png", sha256(inside)),
    ]
    assert sorted(web.hits) == ["/cat.pdf", "/cat.png"]


def test_what_was_uploaded_is_known_by_either_address_and_fetched_by_nobody(
    proxy: Proxy, site: Standin, web: Web
) -> None:
    form = {"file": ("кот.png", PNG + b"uploaded", "image/png")}
    upload = httpx.post(
        f"{proxy.base}/api/files/upload", files=form, timeout=90, trust_env=False, verify=False
    )
    assert upload.status_code == 200, upload.text
    told = upload.json()
    web.hits.clear()
    for part in (
        {"type": "file", "file": told["imageUrl"]},
        {"type": "image_url", "image_url": {"url": told["imageUrl"].partition("?")[0]}},
        {"type": "file", "file": {"file_id": told["id"]}},
        {"type": "image", "image": f"http://elsewhere.example:1/v1/files/{told['id']}/content"},
    ):
        answer = asked(proxy, "openai", part)
        assert answer.status_code == 200, answer.text
        assert known(site) == [("кот.png", sha256(PNG + b"uploaded"))]
    assert len(site.objects()) == 1
    assert web.hits == []


def test_what_is_kept_of_a_chat_holds_no_content(proxy: Proxy, site: Standin) -> None:
    picture = f"data:image/png;base64,{base64.b64encode(PNG + b'kept').decode()}"
    answer = asked(proxy, "native", {"type": "image", "image": picture}).json()
    chat = httpx.get(f"{proxy.base}/api/chats/{answer['chatId']}", trust_env=False, verify=False)
    assert "base64" not in chat.text
    address = next(
        part["image"] for part in chat.json()["history"]["messages"][0]["content"] if part["type"] == "image"
    )
    content = httpx.get(f"{proxy.base}{address}", trust_env=False, verify=False)
    assert content.content == PNG + b"kept"


@pytest.mark.parametrize("dialect", ["native", "openai"])
def test_nothing_that_only_we_can_reach_is_fetched(
    proxy: Proxy, site: Standin, web: Web, dialect: str
) -> None:
    port = web.tripwire.rpartition(":")[2]
    tricks = [form.format(here=f"127.0.0.1:{port}") for form in TRICKS]
    addresses = [*(f"http://{host}:{port}/cat.png" for host in LITERAL), *tricks]
    for address in (*addresses, f"{web.allowed}/to-the-tripwire", proxy.base):
        answer = asked(proxy, dialect, {"type": "image_url", "image_url": {"url": address}})
        said = answer.json()
        error = said if dialect == "native" else said["error"]
        assert answer.status_code == 400, (address, said)
        assert error["code"] in ("url_not_fetched", "invalid_request", "unsupported_parameter"), address
        assert error["param"].endswith("[1]")
    assert web.tripped == []
    assert site.turns() == []
