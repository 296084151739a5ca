"""A request's body: read within bounds, taken for one sound JSON object or refused."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final

import anyio
from anyio.to_thread import run_sync
from starlette.types import Receive, Scope

from qwenproxy.dialects.base import Json
from qwenproxy.errors import BadRequest, TooLarge

DEPTH: Final = 64
"""Of objects and lists inside one another (reliability.md, T16)."""
INLINE_BYTES: Final = 262_144
"""Larger bodies are parsed in a thread, so that other answers go on."""


class ClientGone(Exception):
    pass


class BodyTooSlow(BadRequest):
    ends_connection = True


async def read_body(
    scope: Scope, receive: Receive, *, most_bytes: int, idle_s: float, total_s: float
) -> bytes:
    """The request's body, whole.

    Raises:
        TooLarge: it is larger than `most_bytes`, or says so.
        BodyTooSlow: nothing of it came for `idle_s`, or not all in `total_s`.
        ClientGone: the client left.
    """
    for name, value in scope["headers"]:
        if name == b"content-length" and int(value) > most_bytes:
            raise TooLarge(f"the body is larger than {most_bytes} bytes")
    body = bytearray()
    async with aclosing(pieces(receive, idle_s=idle_s, total_s=total_s)) as coming:
        async for piece in coming:
            body += piece
            if len(body) > most_bytes:
                raise TooLarge(f"the body is larger than {most_bytes} bytes")
    return bytes(body)


async def pieces(receive: Receive, *, idle_s: float, total_s: float) -> AsyncGenerator[bytes]:
    """A body as it comes. Raises: BodyTooSlow and ClientGone, as `read_body`."""
    deadline = anyio.current_time() + total_s
    more = True
    while more:
        message: Any = None
        with anyio.CancelScope(deadline=min(deadline, anyio.current_time() + idle_s)):
            message = await receive()
        if message is None:
            raise BodyTooSlow("the body came too slowly")
        if message["type"] == "http.disconnect":
            raise ClientGone
        yield message.get("body", b"")
        more = message.get("more_body", False)


async def read_json(body: bytes) -> Json:
    """`parse_json`, off the loop where it would hold it up."""
    if len(body) <= INLINE_BYTES:
        return parse_json(body)
    return await run_sync(parse_json, body)


def parse_json(body: bytes) -> Json:
    """Raises: BadRequest, for everything that is not one sound JSON object."""
    try:
        value = json.loads(body.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        raise BadRequest("the body is not UTF-8 text") from None
    except json.JSONDecodeError as exc:
        raise BadRequest(f"the body is not JSON: {exc.msg} (line {exc.lineno}, column {exc.colno})") from None
    except RecursionError:
        raise BadRequest(f"the body is nested deeper than {DEPTH} levels") from None
    except ValueError:
        raise BadRequest("the body holds a number that cannot be used") from None
    if not isinstance(value, dict):
        raise BadRequest("the body is not a JSON object")
    _check_values(value)
    return value


def _refuse_constant(name: str) -> None:
    raise BadRequest(f"the body is not JSON: {name} is no value")


def _check_values(body: Json) -> None:
    level: list[Any] = [body]
    for _ in range(DEPTH):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, str):
                _check_text(value)
            elif isinstance(value, dict):
                inner += value
                inner += value.values()
            elif isinstance(value, list):
                inner += value
        if not inner:
            return
        level = inner
    raise BadRequest(f"the body is nested deeper than {DEPTH} levels")


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRequest("the body holds half a surrogate pair") from None
