from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from qwenproxy.dialects.openai_chat import envelope
from qwenproxy.errors import GenerationFailed, QwenProxyError
from qwenproxy.server.admission import INTERNAL, Admission
from qwenproxy.server.patience import PatientAnswer
from qwenproxy.server.responses import error_response, json_response
from tests.serve import serving, until_async

pytestmark = pytest.mark.anyio


def failed(error: QwenProxyError) -> Response:
    return error_response(error, envelope(error))


@dataclass
class Site:
    """A route whose work each test gives."""

    work: Callable[[], Awaitable[Response]]
    silence_s: float = 0.02
    admission: Admission = field(default_factory=lambda: Admission(1))
    url: str = ""

    async def answer(self, request: Request) -> Response:
        return PatientAnswer(self.work, failed, self.admission, heartbeat_s=0.01, silence_s=self.silence_s)

    @asynccontextmanager
    async def served(self) -> AsyncIterator[httpx.AsyncClient]:
        app = Starlette(
            routes=[Route("/", self.answer, methods=["POST"])],
            middleware=[Middleware(GZipMiddleware, minimum_size=1)],
        )
        async with serving(app) as self.url, httpx.AsyncClient(base_url=self.url) as client:
            yield client


async def done() -> Response:
    return json_response({"done": True}, 201)


async def test_an_answer_that_comes_soon_is_sent_as_it_is() -> None:
    async with Site(done, silence_s=30).served() as client:
        answer = await client.post("/", json={})
    assert (answer.status_code, answer.json()) == (201, {"done": True})
    assert answer.content.lstrip() == answer.content


async def test_one_that_comes_late_begins_with_spaces_that_arrive_at_once() -> None:
    go = anyio.Event()

    async def slow() -> Response:
        await go.wait()
        return await done()

    async with Site(slow).served() as client, client.stream("POST", "/", json={}) as answer:
        pieces = answer.aiter_bytes()
        assert await anext(pieces) == b" "
        assert await anext(pieces) == b" "
        go.set()
        rest = b"".join([piece async for piece in pieces])
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert json.loads(rest) == {"done": True}


async def test_a_failure_has_its_status_while_nothing_was_sent() -> None:
    async def fails() -> Response:
        raise GenerationFailed("no picture came of it")

    async with Site(fails, silence_s=30).served() as client:
        answer = await client.post("/", json={})
    assert answer.status_code == 502
    assert answer.json()["error"]["code"] == "generation_failed"


async def test_a_late_failure_is_the_body() -> None:
    go = anyio.Event()

    async def fails() -> Response:
        await go.wait()
        raise GenerationFailed("no picture came of it")

    async with Site(fails).served() as client, client.stream("POST", "/", json={}) as answer:
        pieces = answer.aiter_bytes()
        assert await anext(pieces) == b" "
        go.set()
        rest = b"".join([piece async for piece in pieces])
    assert answer.status_code == 200
    assert json.loads(rest)["error"]["message"] == "no picture came of it"


async def test_a_bug_tells_the_client_nothing_of_itself(caplog: pytest.LogCaptureFixture) -> None:
    async def breaks() -> Response:
        raise ValueError("a secret")

    async with Site(breaks).served() as client:
        answer = await client.post("/", json={})
    assert (answer.status_code, answer.json()["error"]["message"]) == (500, INTERNAL)
    assert "a secret" in caplog.text


async def test_work_ends_when_its_client_leaves() -> None:
    begun, ended = anyio.Event(), anyio.Event()

    async def endless() -> Response:
        begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()
        raise AssertionError

    site = Site(endless)
    async with site.served() as client:
        async with client.stream("POST", "/", json={}):
            await begun.wait()
            assert site.admission.inside == 1
        with anyio.fail_after(10):
            await ended.wait()
        await until_async(lambda: site.admission.inside == 0)


async def test_work_ends_with_the_server_and_says_so() -> None:
    async def endless() -> Response:
        site.admission.stopped.set()
        await anyio.sleep_forever()
        raise AssertionError

    site = Site(endless, silence_s=30)
    async with site.served() as client:
        answer = await client.post("/", json={})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "shutting_down")


async def test_it_counts_as_a_request_inside() -> None:
    site = Site(done)
    site.admission.draining = True
    async with site.served() as client:
        answer = await client.post("/", json={})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "shutting_down")
