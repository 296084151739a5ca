from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from anthropic.types.shared import ErrorResponse

from qwenproxy.errors import BadRequest, NoAccount, QueueFull
from qwenproxy.server.error_shapes import error_body, refusal, speaks_anthropic
from qwenproxy.server.relay import Bounds
from tests.server.serving import HELLO, START, ScriptedGateway, running

VERSION = (b"anthropic-version", b"2023-06-01")


def scope(path: str, *headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "http", "path": path, "headers": list(headers)}


@pytest.mark.parametrize(
    ("path", "headers", "expected"),
    [
        ("/v1/messages", (), True),
        ("/api/messages", (), True),
        ("/v1/messages/count_tokens", (), True),
        ("/v1/messages/batches/x\n", (), True),
        ("/v1/models", (VERSION,), True),
        ("/api/models/a/b", (VERSION,), True),
        ("/v1/models", (), False),
        ("/v1/messages_of_mine", (), False),
        ("/v1/chat/completions", (VERSION,), False),
        ("/messages", (), False),
        ("/api/chats", (VERSION,), False),
    ],
)
def test_who_speaks_anthropic(path: str, headers: tuple[tuple[bytes, bytes], ...], *, expected: bool) -> None:
    assert speaks_anthropic(scope(path, *headers)) is expected


@pytest.mark.parametrize(
    ("path", "keys"),
    [
        ("/v1/messages", {"type", "error", "request_id"}),
        ("/v1/chat/completions", {"error"}),
        ("/api/chat/completions", {"error"}),
        ("/api/chat", {"error", "code", "param"}),
        ("/api/chats/x", {"error", "code", "param"}),
        ("/api/files/upload", {"error", "code", "param"}),
        ("/nothing", {"error"}),
    ],
)
def test_every_path_has_its_shape(path: str, keys: set[str]) -> None:
    assert error_body(scope(path), BadRequest("why", param="x")).keys() == keys


def test_a_refusal_says_when_to_come_again() -> None:
    answer = refusal(scope("/v1/messages"), QueueFull("why"), {"Connection": "close"})
    assert (answer.status_code, answer.headers["retry-after"], answer.headers["connection"]) == (
        429,
        "5",
        "close",
    )
    assert json.loads(bytes(answer.body))["error"]["type"] == "rate_limit_error"


MESSAGES = "/v1/messages"
REFUSED: list[tuple[str, dict[str, Any], int, str, str]] = [
    ("POST", {"json": {}}, 400, "invalid_request_error", "invalid_request"),
    ("POST", {"json": {**HELLO, "tools": "all"}}, 400, "invalid_request_error", "invalid_request"),
    ("POST", {"content": b"{"}, 400, "invalid_request_error", "invalid_request"),
    ("POST", {"content": b"x" * 2000}, 413, "request_too_large", "too_large"),
    ("POST", {"data": {"a": "b"}}, 415, "invalid_request_error", "unsupported_media_type"),
    (
        "POST",
        {"json": HELLO, "headers": {"Origin": "https://a.example"}},
        403,
        "permission_error",
        "origin_refused",
    ),
    ("GET", {}, 405, "invalid_request_error", "method_not_allowed"),
    ("DELETE", {}, 405, "invalid_request_error", "method_not_allowed"),
]


@pytest.mark.anyio
async def test_whoever_refuses_does_it_in_anthropics_shape() -> None:
    gateway = ScriptedGateway(lambda request: [NoAccount("nobody is signed in")])
    async with (
        running(gateway, Bounds(body_bytes=1000)) as proxy,
        httpx.AsyncClient(base_url=proxy.url, timeout=15, trust_env=False) as client,
    ):
        for path in (MESSAGES, "/api/v1/messages/", f"{MESSAGES}/count_tokens"):
            for method, more, status, kind, code in REFUSED:
                headers = {"Content-Type": "application/json"} if "content" in more else {}
                asked = {"headers": headers} | more
                answer = await client.request(method, path, **asked)
                where = f"{method} {path} {more}"
                assert answer.status_code == status, where
                body = answer.json()
                assert (body["type"], body["error"]["type"]) == ("error", kind), where
                assert body["error"]["details"]["error_code"] == code, where
                if kind != "request_too_large":
                    ErrorResponse.model_validate(body, strict=True)
        gone = await client.post(MESSAGES, json=HELLO)
        assert (gone.status_code, gone.json()["error"]["type"]) == (503, "api_error")


@pytest.mark.anyio
async def test_each_answer_of_anthropics_has_a_name_of_its_own() -> None:
    async with (
        running(ScriptedGateway()) as proxy,
        httpx.AsyncClient(base_url=proxy.url, timeout=15, trust_env=False) as client,
    ):
        answers = [
            await client.post(MESSAGES, json=HELLO),
            await client.post(MESSAGES, json={**HELLO, "stream": True}),
            await client.post(MESSAGES, json={}),
            await client.post(MESSAGES, json={}, headers={"Origin": "https://a.example"}),
            await client.get("/v1/models", headers={"anthropic-version": "2023-06-01"}),
        ]
        names = [answer.headers["request-id"] for answer in answers]
        assert len(set(names)) == len(names)
        assert all(name.startswith("req_") for name in names)
        assert [answer.status_code for answer in answers] == [200, 200, 400, 403, 200]
        for path in ("/v1/models", "/v1/chat/completions"):
            assert "request-id" not in (await client.get(path)).headers


@pytest.mark.anyio
async def test_a_stream_that_breaks_ends_with_the_error_and_nothing_else() -> None:
    gateway = ScriptedGateway(lambda request: [START, NoAccount("nobody is signed in")])
    async with (
        running(gateway) as proxy,
        httpx.AsyncClient(base_url=proxy.url, timeout=15, trust_env=False) as client,
    ):
        answer = await client.post(MESSAGES, json={**HELLO, "stream": True})
        assert answer.status_code == 200
        *_, last, end = answer.text.split("\n\n")
        assert end == ""
        assert last.startswith("event: error\ndata: ")
        assert "message_stop" not in answer.text
