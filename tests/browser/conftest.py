"""A small site over HTTP/2 and TLS, and the road to it."""

from __future__ import annotations

import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, closing
from pathlib import Path

import pytest
import trustme

from qwenproxy.browser.chromium import Chromium
from qwenproxy.browser.contexts import BrowserTransport
from qwenproxy.browser.site_page import StorageState, state_from_token
from qwenproxy.qwen.transport import Fetch
from qwenproxy.settings import Settings
from tests.serve import free_port, process, until

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def small_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder, port = tmp_path_factory.mktemp("small_site"), free_port()
    certificate = trustme.CA().issue_cert("127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    command = [sys.executable, "-m", "granian", "--interface", "asginl", "--port", str(port)]
    command += ["--ssl-certificate", str(folder / "cert.pem"), "--ssl-keyfile", str(folder / "key.pem")]
    command += ["--log-level", "critical", "--working-dir", str(HERE), "small_site:app"]
    with process(command, folder, {}):
        until(lambda: _listens(port))
        yield f"https://127.0.0.1:{port}"


def _listens(port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def small_settings(small_site: str, chromium_path: str) -> Settings:
    return Settings(upstream=small_site, auth_upstream=small_site, browser=chromium_path)


@pytest.fixture
async def road(small_settings: Settings, chromium: Chromium) -> AsyncIterator[BrowserTransport]:
    """A transport whose every account is signed in to the small site."""

    def state_of(account_id: str) -> StorageState:
        return state_from_token(f"token-of-{account_id}", small_settings.upstream)

    async with BrowserTransport(small_settings, state_of, chromium=chromium) as transport:
        yield transport


async def whole(transport: BrowserTransport, account_id: str, path: str) -> bytes:
    """The body of one call."""
    async with (
        transport.fetch(account_id, Fetch("GET", path)) as fetched,
        aclosing(fetched.pieces()) as pieces,
    ):
        return b"".join([piece async for piece in pieces])


@pytest.fixture
def body_of() -> object:
    return whole
