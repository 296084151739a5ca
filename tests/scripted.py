"""A road without a browser: each call plays the next scripted answer."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio

from qwenproxy.errors import QwenProxyError
from qwenproxy.qwen.transport import Fetch, Fetched

Piece = bytes | float | QwenProxyError
"""Bytes are given, a number is a pause in seconds, an error is raised."""

STREAM = {"content-type": "text/event-stream; charset=utf-8", "x-actual-status-code": "200"}
JSON = {"content-type": "application/json"}


@dataclass
class Answer:
    pieces: list[Piece] = field(default_factory=list)
    headers: Mapping[str, str] = field(default_factory=lambda: STREAM)
    status: int = 200
    before_head: list[Piece] = field(default_factory=list)
    credential: str = "first"


def frames(*rows: object) -> bytes:
    return b"".join(b"data: " + json.dumps(row).encode() + b"\n\n" for row in rows)


def said(value: object, status: int = 200) -> Answer:
    return Answer([json.dumps(value).encode()], {**JSON, "x-actual-status-code": str(status)})


class _Playing:
    def __init__(self, answer: Answer) -> None:
        self.status = answer.status
        self.headers = answer.headers
        self.credential = answer.credential
        self._pieces = answer.pieces

    async def pieces(self) -> AsyncGenerator[bytes]:
        for piece in self._pieces:
            if (given := await play(piece)) is not None:
                yield given


async def play(piece: Piece) -> bytes | None:
    match piece:
        case bytes():
            return piece
        case QwenProxyError():
            raise piece
        case _:
            await anyio.sleep(piece)
            return None


class ScriptedTransport:
    def __init__(self, *answers: Answer, renews: bool = False) -> None:
        self.answers = list(answers)
        self.calls: list[Fetch] = []
        self.renewals: list[str] = []
        self.renews = renews
        self.open = 0

    @asynccontextmanager
    async def fetch(self, account_id: str, call: Fetch) -> AsyncIterator[Fetched]:
        self.calls.append(call)
        self.open += 1
        try:
            answer = self.answers.pop(0)
            for piece in answer.before_head:
                await play(piece)
            yield _Playing(answer)
        finally:
            self.open -= 1

    async def renew(self, account_id: str, rejected: str) -> bool:
        self.renewals.append(rejected)
        return self.renews

    @property
    def paths(self) -> list[str]:
        return [call.path for call in self.calls]
