from __future__ import annotations

import anthropic
import httpx
import openai
import pytest

from qwenproxy import __version__
from qwenproxy.errors import NoAccount
from qwenproxy.qwen.models import Model
from tests.server.serving import FOREVER, HELLO, START, Running, ScriptedGateway, heard, running

pytestmark = pytest.mark.anyio

PREFIXES = ("/v1", "/api", "/api/v1", "/api/v2")


def client_of(proxy: Running) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=proxy.url, timeout=15, trust_env=False)


async def test_page() -> None:
    async with running(ScriptedGateway(not_ready="<no> account")) as proxy, client_of(proxy) as client:
        page = await client.get("/")
        assert page.status_code == 200
        assert page.headers["content-type"].startswith("text/html")
        for part in (__version__, f"{proxy.url}/v1", "curl ", "&lt;no&gt; account"):
            assert part in page.text
        assert "<script" not in page.text
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src" not in policy
        assert page.headers["x-content-type-options"] == "nosniff"
        assert (await client.head("/")).status_code == 200


async def test_alive_and_ready_are_two_things() -> None:
    gateway = ScriptedGateway(not_ready="the first account's page is still opening")
    async with running(gateway) as proxy, client_of(proxy) as client:
        assert (await client.get("/ping")).text == "pong"
        assert (await client.get("/health")).json() == {"status": "ok", "version": __version__}
        waiting = await client.get("/ready")
        assert waiting.status_code == 503
        assert waiting.json()["reason"] == gateway.not_ready
        assert waiting.headers["retry-after"] == "1"
        gateway.not_ready = None
        assert (await client.get("/ready")).json() == {"status": "ready"}
        proxy.admission.draining = True
        assert (await client.get("/ready")).status_code == 503
        assert (await client.get("/health")).status_code == 200


@pytest.mark.parametrize("prefix", PREFIXES)
async def test_models(prefix: str) -> None:
    listed = (
        Model("qwen3.7-plus", "Qwen3.7 Plus", 1_000_000, 65_536, created_at=1_790_000_000),
        Model("a/b", "Slashed"),
    )
    gateway = ScriptedGateway(listed=listed)
    async with running(gateway) as proxy, client_of(proxy) as client:
        answer = (await client.get(f"{prefix}/models")).json()
        first = {
            "id": "qwen3.7-plus",
            "object": "model",
            "created": 1_790_000_000,
            "owned_by": "qwen",
            "name": "Qwen3.7 Plus",
            "context_length": 1_000_000,
            "max_output_tokens": 65_536,
        }
        assert answer["object"] == "list"
        assert answer["data"][0] == first
        assert (await client.get(f"{prefix}/models/QWEN3.7-plus")).json() == first
        assert (await client.get(f"{prefix}/models/qwen")).json() == first, "the default model's name"
        assert (await client.get(f"{prefix}/models/a%2Fb")).json()["id"] == "a/b"
        missing = await client.get(f"{prefix}/models/gpt-17")
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


async def test_models_with_the_official_client() -> None:
    async with running(ScriptedGateway()) as proxy:
        official = openai.AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="none", max_retries=0)
        async with official as client:
            assert [model.id async for model in client.models.list()] == ["qwen3.7-plus", "qwen3-max"]
            assert (await client.models.retrieve("qwen3-max")).owned_by == "qwen"
            with pytest.raises(openai.NotFoundError):
                await client.models.retrieve("gpt-17")


VERSION = {"anthropic-version": "2023-06-01"}


@pytest.mark.parametrize("prefix", PREFIXES)
async def test_models_as_anthropic_lists_them(prefix: str) -> None:
    async with running(ScriptedGateway()) as proxy, client_of(proxy) as client:
        page = (await client.get(f"{prefix}/models?limit=1", headers=VERSION)).json()
        assert (page["has_more"], page["first_id"], page["last_id"]) == (True, "qwen3.7-plus", "qwen3.7-plus")
        (first,) = page["data"]
        assert (first["type"], first["display_name"]) == ("model", "Qwen3.7 Plus")
        assert (await client.get(f"{prefix}/models/qwen", headers=VERSION)).json() == first
        missing = await client.get(f"{prefix}/models/gpt-17", headers=VERSION)
        assert (missing.status_code, missing.json()["error"]["type"]) == (404, "not_found_error")
        wrong = await client.get(f"{prefix}/models?limit=0", headers=VERSION)
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "limit")
        assert (await client.get(f"{prefix}/models?limit=0")).status_code == 200, "OpenAI has no pages"


async def test_models_with_anthropics_client() -> None:
    listed = tuple(Model(f"model-{number}", f"Model {number}") for number in range(5))
    async with running(ScriptedGateway(listed=listed)) as proxy:
        official = anthropic.AsyncAnthropic(base_url=proxy.url, api_key="none", max_retries=0)
        async with official as client:
            assert [model.id async for model in client.models.list()] == [model.id for model in listed]
            assert [model.id async for model in client.models.list(limit=2)] == [model.id for model in listed]
            last = await client.models.list(limit=2, before_id="model-2")
            assert [model.id for model in last.data] == ["model-0", "model-1"]
            found = await client.models.retrieve("model-3")
            assert (found.display_name, found.created_at.year, found.lifecycle) == ("Model 3", 1970, "active")
            with pytest.raises(anthropic.NotFoundError) as caught:
                await client.models.retrieve("gpt-17")
            assert caught.value.error_code == "model_not_found"


class Failing(ScriptedGateway):
    async def models(self) -> tuple[Model, ...]:
        raise NoAccount("no account is usable")


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/qwen"])
async def test_models_that_cannot_be_told(path: str) -> None:
    async with running(Failing()) as proxy, client_of(proxy) as client:
        answer = await client.get(path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_account")
        answer = await client.get(path, headers=VERSION)
        assert (answer.status_code, answer.json()["error"]["type"]) == (503, "api_error")


async def test_many_models_are_compressed_and_streams_never() -> None:
    listed = tuple(Model(f"model-{n}", f"Model {n}") for n in range(100))
    gateway = ScriptedGateway(lambda request: [START, FOREVER], listed=listed)
    async with running(gateway) as proxy, client_of(proxy) as client:
        models = await client.get("/v1/models")
        assert models.headers["content-encoding"] == "gzip"
        assert len(models.json()["data"]) == 100
        plain = await client.get("/v1/models", headers={"Accept-Encoding": "identity"})
        assert "content-encoding" not in plain.headers
        async with await proxy.connect() as connection:
            request = proxy.post({**HELLO, "stream": True}).replace(
                b"\r\n", b"\r\nAccept-Encoding: gzip\r\n", 1
            )
            await connection.send(request)
            answer = await heard(connection, b"data: ")
        assert b"content-encoding" not in answer.lower()
        assert b'"role":"assistant"' in answer
