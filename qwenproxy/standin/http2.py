"""The stand-in over HTTP/2 and TLS, for more than the six streams that HTTP/1.1 gives a browser.

granian is a test extra. It tells of a reset stream at once (`http.disconnect` 1 ms after RST_STREAM, tried
with 2.8.7), which the count of aborted answers needs.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from anyio import create_task_group, current_time, sleep
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP2Settings
from granian.server.embed import Server

from .site import Addresses, Standin

CLOSING_S = 0.5
"""Seconds that open connections get when the stand-in stops."""
MAX_STREAMS = 1000
"""Concurrent streams on one connection."""


@asynccontextmanager
async def serve_http2(
    standin: Standin, host: str, port: int, certificate: Path, key: Path
) -> AsyncGenerator[Addresses]:
    with _reserved(host, port) as reserved:
        number = reserved.getsockname()[1]
        standin.place(f"https://{host}:{number}")
        server = Server(
            standin,
            address=host,
            port=number,
            interface=Interfaces.ASGINL,
            http=HTTPModes.auto,
            http2_settings=HTTP2Settings(max_concurrent_streams=MAX_STREAMS),
            ssl_cert=certificate,
            ssl_key=key,
            websockets=False,
            log_enabled=False,
        )
        async with create_task_group() as group:
            group.start_soon(server.serve)
            await _listening(host, number)
            try:
                yield standin.addresses
            finally:
                standin.close_streams()
                server.stop()  # type: ignore[no-untyped-call]
                standin.close()
                # granian waits for idle connections without end.
                group.cancel_scope.deadline = current_time() + CLOSING_S


def _reserved(host: str, port: int) -> socket.socket:
    """Holds a free port, without listening, until granian's own socket has it too."""
    reserved = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    reserved.bind((host, port))
    return reserved


async def _listening(host: str, port: int) -> None:
    while True:
        with socket.socket() as probe:
            probe.settimeout(0.2)
            if probe.connect_ex((host, port)) == 0:
                return
        await sleep(0.02)
