from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from anthropic.types import MessageTokensCount

from qwenproxy.chat import Attachment, ChatRequest, Message, Tool
from qwenproxy.errors import UnknownModel
from qwenproxy.server.relay import Bounds
from tests.server.serving import HELLO, Running, ScriptedGateway, running

pytestmark = pytest.mark.anyio

COUNT = "/v1/messages/count_tokens"
PDF = {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}
IMAGE = {"type": "url", "url": "https://example.org/cat.png"}


@dataclass
class CountingGateway(ScriptedGateway):
    """Answers with so many tokens, or fails."""

    tokens: int | Exception = 17
    counted: list[ChatRequest] = field(default_factory=list)

    async def count_tokens(self, request: ChatRequest) -> int:
        self.counted.append(request)
        if isinstance(self.tokens, Exception):
            raise self.tokens
        return self.tokens


@asynccontextmanager
async def counting(
    gateway: CountingGateway, bounds: Bounds | None = None, **values: Any
) -> AsyncGenerator[tuple[Running, httpx.AsyncClient]]:
    async with (
        running(gateway, bounds, **values) as proxy,
        httpx.AsyncClient(base_url=proxy.url, timeout=15, trust_env=False) as client,
    ):
        yield proxy, client


@pytest.mark.parametrize("path", [COUNT, f"{COUNT}/", "/api/v1/messages/count_tokens", f"{COUNT}?beta=true"])
async def test_a_count_is_marked_as_the_estimate_it_is(path: str) -> None:
    async with counting(CountingGateway()) as (_, client):
        answer = await client.post(path, json=HELLO)
        assert answer.status_code == 200
        assert answer.json() == {"input_tokens": 17, "estimated": True}
        MessageTokensCount.model_validate(answer.json(), strict=True)


async def test_what_is_counted_is_the_request_as_it_is_read() -> None:
    gateway = CountingGateway()
    content = [
        {"type": "text", "text": "What is it?"},
        {"type": "image", "source": IMAGE},
        {"type": "document", "source": PDF},
    ]
    tool = {"name": "look", "input_schema": {"type": "object"}}
    async with counting(gateway) as (_, client):
        body = {
            "model": "qwen3-max",
            "system": "Be brief.",
            "messages": [{"role": "user", "content": content}],
        }
        assert (await client.post(COUNT, json={**body, "tools": [tool]})).status_code == 200
    (asked,) = gateway.counted
    files = (
        Attachment("image", "https://example.org/cat.png"),
        Attachment("file", "data:application/pdf;base64,JVBERi0="),
    )
    assert asked.messages == (Message("system", "Be brief."), Message("user", "What is it?", files))
    assert (asked.model, asked.tools) == ("qwen3-max", (Tool("look", "", {"type": "object"}),))
    assert gateway.opened == 0, "nobody was asked, and nothing taken in"


async def test_failures_are_told_in_anthropics_shape(caplog: pytest.LogCaptureFixture) -> None:
    gateway = CountingGateway(tokens=UnknownModel("there is no model 'x'", param="model"))
    async with counting(gateway) as (proxy, client):
        unknown = await client.post(COUNT, json=HELLO)
        assert (unknown.status_code, unknown.json()["error"]["type"]) == (404, "not_found_error")
        wrong = await client.post(COUNT, json={"messages": []})
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "messages")
        gateway.tokens = RuntimeError("a bug")
        broken = await client.post(COUNT, json=HELLO)
        assert (broken.status_code, broken.json()["error"]["type"]) == (500, "api_error")
        assert "a bug" not in broken.text
        assert "tokens could not be counted" in caplog.text
        proxy.admission.draining = True
        late = await client.post(COUNT, json=HELLO)
        assert (late.status_code, late.json()["error"]["type"]) == (503, "overloaded_error")
        assert late.headers["retry-after"] == "5"
        assert proxy.admission.inside == 0


async def test_a_body_that_does_not_come() -> None:
    async with counting(CountingGateway(), Bounds(body_idle_s=0.1)) as (proxy, _):
        head = "Content-Type: application/json\r\nContent-Length: 10"
        answer = await proxy.say(proxy.head("POST", COUNT, head))
        assert b" 400 " in answer.partition(b"\r\n")[0]
        assert b"connection: close" in answer.lower()
        async with await proxy.connect() as connection:
            await connection.send(proxy.head("POST", COUNT, head))
        await proxy.empty()
