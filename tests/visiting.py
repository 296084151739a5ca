"""A road to the stand-in without a browser: each account is a plain HTTP client, signed in."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import anyio
import httpx

from qwenproxy.qwen.transport import Fetch, Fetched
from tests.serve import DEADLINE_S, Standin, trusting_all


@dataclass(frozen=True)
class _Answer:
    answer: httpx.Response
    credential: str = "token"

    @property
    def status(self) -> int:
        return self.answer.status_code

    @property
    def headers(self) -> Mapping[str, str]:
        return self.answer.headers

    async def pieces(self) -> AsyncGenerator[bytes]:
        async for piece in self.answer.aiter_bytes():
            yield piece


@dataclass
class VisitingTransport:
    standin: Standin
    clients: dict[str, httpx.AsyncClient] = field(default_factory=dict)
    lock: anyio.Lock = field(default_factory=anyio.Lock)

    @asynccontextmanager
    async def fetch(self, account_id: str, call: Fetch) -> AsyncIterator[Fetched]:
        client = await self._client(account_id)
        base = self.standin.auth if call.host == "auth" else self.standin.site
        body: dict[str, Any] = {} if call.body is None else {"content": call.body.encode()}
        async with client.stream(call.method, base + call.path, headers=_headers(), **body) as answer:
            yield _Answer(answer)

    async def renew(self, account_id: str, rejected: str) -> bool:
        return False

    async def aclose(self) -> None:
        for client in self.clients.values():
            await client.aclose()

    async def _client(self, account_id: str) -> httpx.AsyncClient:
        async with self.lock:
            if account_id not in self.clients:
                token, cookie = await anyio.to_thread.run_sync(self.standin.sign_in, account_id)
                client = httpx.AsyncClient(
                    cookies={cookie["name"]: cookie["value"]},
                    headers={"authorization": f"Bearer {token}"},
                    verify=trusting_all(),
                    trust_env=False,
                    timeout=DEADLINE_S,
                )
                self.clients[account_id] = client
                booting = "/api/v2/chats/?page=1&exclude_project=true"
                (await client.get(self.standin.site + booting, headers=_headers())).raise_for_status()
            return self.clients[account_id]


def _headers() -> dict[str, str]:
    """Protocol §2."""
    return {
        "content-type": "application/json",
        "version": "0.3.12",
        "source": "web",
        "x-request-id": str(uuid4()),
    }
