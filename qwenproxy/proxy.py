"""One proxy from its start to its end: the folder held, the port bound, the accounts read, served, let go.

A menu may run several in one process, one after another.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack, asynccontextmanager
from functools import partial

import anyio
from anyio.to_thread import run_sync

from qwenproxy import keys, logs
from qwenproxy.accounts.refusals import no_account
from qwenproxy.accounts.registry import Registry
from qwenproxy.api_keys import KeyRing, counted, key_files
from qwenproxy.clock import SystemClock
from qwenproxy.demo import base_url
from qwenproxy.engine import Engine, engine
from qwenproxy.enrolment import Enrolment
from qwenproxy.instance import hold
from qwenproxy.live import live
from qwenproxy.server.access import Gate
from qwenproxy.server.app import bind, create_app, serve
from qwenproxy.settings import Settings

log = logging.getLogger(__name__)

Say = Callable[[str], object]


async def run(settings: Settings, say: Say, *, view: bool) -> None:
    """Until a signal, the live view's `quit`, or the end of every sign-in; drained in each case.

    Raises:
        SettingsError: the address cannot be listened on, or the API keys cannot be read.
        SessionLocked: another proxy serves this session folder.
        NoAccount: none is usable, at the start or at the end.
        KeyboardInterrupt: not the view's `quit` but a signal ended it: whatever stands behind it ends too.
        SessionDamaged, BrowserMissing, …: whatever else keeps it from serving.
    """
    with ExitStack() as stack:
        held = stack.enter_context(hold(settings.session_dir))
        stack.enter_context(logs.kept(settings.session_dir / "logs"))
        ring = KeyRing(key_files(settings.session_dir))
        await run_sync(ring.open)
        listener = stack.enter_context(bind(settings, keyed=ring.on))
        registry = Registry(settings.session_dir, SystemClock())
        for line in await run_sync(registry.open):
            log.warning(line)  # noqa: G004,RUF100 - one line for a person, composed there
        if not (settings.stay_up or settings.passthrough_tokens):
            accounts = await run_sync(registry.accounts)
            if not any(account.usable for account in accounts):
                raise no_account(accounts)
        base = base_url(listener)
        held.tell(base, ring.run_key)
        if not view:
            say(f"Serving {base}/v1; Ctrl-C ends it\n")
        log.info("serving %s/v1", base)
        if ring.on:
            log.info("%s may call; /health is open to all", counted(len(ring.keys)))
        seen = _Seen(settings, base) if view else None
        with logs.console(on=not view), keys.kept():
            made = seen.engine if seen else partial(engine, settings)
            await serve(create_app(settings, made, gate=Gate(ring)), settings, listener)
        if seen is not None and not seen.quits:
            raise KeyboardInterrupt


class _Seen:
    """The engine behind the live view."""

    def __init__(self, settings: Settings, base: str) -> None:
        self._settings = settings
        self._base = base
        self.quits = 0

    @asynccontextmanager
    async def engine(self) -> AsyncGenerator[Engine]:
        """The engine, and the live view for as long as it runs, drain included."""
        async with engine(self._settings) as running, anyio.create_task_group() as tasks:
            tasks.start_soon(self.watch, running)
            yield running
            tasks.cancel_scope.cancel()

    async def watch(self, running: Engine) -> None:
        """A view that fails must not end what is served: the plain log takes its place."""
        clock = SystemClock()

        def enrolment(say: Say) -> Enrolment:
            return Enrolment(self._settings, running.registry, clock, say=say)

        try:
            await live(running.gateway, running.registry, enrolment, self._base, clock, quit=self.quit)
        except Exception:
            with logs.console(on=True):
                log.exception("the live view failed; serving goes on, and the log follows")
                await anyio.sleep_forever()

    def quit(self) -> None:
        """What one Ctrl-C does: the server drains; at once, when it is asked again."""
        self.quits += 1
        signal.raise_signal(signal.SIGINT)
