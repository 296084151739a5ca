"""Everything at work without an account: the stand-in of Qwen Chat and the proxy, in one process.

The session folder is a temporary one. The demo account signs in as a person's does, in Chromium, on the
stand-in's sign-in page, which fills its own form.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio

from qwenproxy.accounts.registry import Registry
from qwenproxy.browser.chromium import Chromium
from qwenproxy.clock import SystemClock
from qwenproxy.engine import Engine, engine
from qwenproxy.enrolment import Enrolment
from qwenproxy.gateway import Gateway
from qwenproxy.server.app import PortTaken, bind, create_app, serve
from qwenproxy.server.guard import is_loopback
from qwenproxy.settings import Settings, SettingsError, load
from qwenproxy.standin.memory import Options
from qwenproxy.standin.site import Standin

log = logging.getLogger(__name__)

SIGN_IN_S = 60.0
"""Seconds for the stand-in's page to sign in; it takes one."""
PORTS_TRIED = 100
LOOK_EVERY_S = 0.02
READY = """
The demo is ready. Its answers come from a stand-in on this computer, not from Qwen.

  Base URL   {base}/v1
  API key    any

  curl {base}/v1/chat/completions -H "Content-Type: application/json" \\
    -d '{{"model": "qwen", "stream": true, "messages": [{{"role": "user", "content": "Hello!"}}]}}'

  from openai import OpenAI
  client = OpenAI(base_url="{base}/v1", api_key="any")
  messages = [{{"role": "user", "content": "Hello!"}}]
  print(client.chat.completions.create(model="qwen", messages=messages).choices[0].message.content)

Ctrl-C ends it and leaves nothing behind.
"""

Say = Callable[[str], object]


async def demo(overrides: Mapping[str, Any], say: Say) -> None:
    """Runs until it is stopped; `say` gets what a person should read.

    Raises:
        SettingsError: a setting cannot be used, or no port is free.
        SignInFailed, Unreachable, BrowserMissing, BrowserLost: the demo account could not sign in.
    """
    standin = Standin(Options(demo=True))
    with TemporaryDirectory(prefix="qwenproxy-demo-", ignore_cleanup_errors=True) as folder:
        async with standin.serve() as addresses:
            own = {
                "upstream": addresses.site,
                "auth_upstream": addresses.auth,
                "storage_endpoint": addresses.site,
                "session_dir": Path(folder),
            }
            settings = load({**overrides, **own})
            if not is_loopback(settings.host):
                raise SettingsError(
                    f"QWENPROXY_HOST={settings.host!r} cannot be used: the demo has no API keys, so it "
                    "listens on loopback addresses only"
                )
            with _bind_near(settings, say) as listener:
                await _run(settings, listener, say)


async def _run(settings: Settings, listener: socket.socket, say: Say) -> None:
    @asynccontextmanager
    async def announced_engine() -> AsyncGenerator[Engine]:
        async with engine(settings, chromium=chromium) as running, anyio.create_task_group() as tasks:
            tasks.start_soon(_announce, running.gateway, base_url(listener), say)
            yield running
            tasks.cancel_scope.cancel()

    async with Chromium(settings) as chromium:
        await chromium.first()
        say("Signing the demo account in, on the stand-in's own page\n")
        await _sign_in(chromium, settings)
        await serve(create_app(settings, announced_engine), settings, listener)


def base_url(listener: socket.socket) -> str:
    """Where this computer's own programs reach `listener`, without a path."""
    host, port = listener.getsockname()[:2]
    if ip_address(host).is_unspecified:
        host = "::1" if ":" in host else "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _bind_near(settings: Settings, say: Say) -> socket.socket:
    """The port of the settings, or the next free one.

    Raises:
        SettingsError: the address cannot be used, or that many ports are taken.
    """
    for port in range(settings.port, min(settings.port + PORTS_TRIED, 65_536)):
        try:
            listener = bind(settings.model_copy(update={"port": port}))
        except PortTaken:
            continue
        if port != settings.port:
            say(f"Port {settings.port} is taken, so the demo uses {port}\n")
        return listener
    return bind(settings)


async def _sign_in(chromium: Chromium, settings: Settings) -> None:
    """Raises: SignInFailed, Unreachable, BrowserMissing, BrowserLost."""
    clock = SystemClock()
    patient = settings.model_copy(update={"sign_in_timeout_s": SIGN_IN_S})
    await Enrolment(
        patient, Registry(settings.session_dir, clock), clock, say=log.info, chromium=chromium
    ).add()


async def _announce(gateway: Gateway, base: str, say: Say) -> None:
    """Says how to call as soon as a call would be answered."""
    while gateway.readiness() is not None:  # noqa: ASYNC110 - readiness is looked up, nothing announces it
        await anyio.sleep(LOOK_EVERY_S)
    say(READY.format(base=base))
