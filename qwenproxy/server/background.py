"""Answers that are made whether or not anybody listens, until they end, are cancelled, or the proxy stops.

The deltas of one are kept while it runs, so that clients may follow it from its beginning, and leave.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from typing import Final, TypeAlias

import anyio
from anyio.abc import TaskGroup

from qwenproxy.chat import Delta, Finished
from qwenproxy.errors import QwenProxyError, ShuttingDown
from qwenproxy.server.admission import INTERNAL, Admission

log = logging.getLogger(__name__)

CLEAN_UP_S: Final = 5.0
"""How long an answer that is ended may take to clean up, and its end to be kept."""
STOPPED: Final = "the proxy stopped before the answer was whole"

Ended: TypeAlias = Callable[[Sequence[Delta], QwenProxyError | None], Awaitable[None]]
"""Keeps an answer: its deltas, and why they are not all."""


class Run:
    """One answer under way."""

    def __init__(self, deltas: AsyncGenerator[Delta], ended: Ended) -> None:
        self._source = deltas
        self._keep = ended
        self._deltas: list[Delta] = []
        self._error: QwenProxyError | None = None
        self._scope = anyio.CancelScope()
        self._news = anyio.Event()
        self._over = anyio.Event()

    @property
    def started(self) -> bool:
        return bool(self._deltas)

    @property
    def _whole(self) -> bool:
        return bool(self._deltas) and isinstance(self._deltas[-1], Finished)

    async def follow(self) -> AsyncGenerator[Delta]:
        """All of it, from its beginning. Raises: why it broke off."""
        given = 0
        while True:
            news, over = self._news, self._over.is_set()
            while given < len(self._deltas):
                given += 1
                yield self._deltas[given - 1]
            if over:
                break
            await news.wait()
        if self._error is not None:
            raise self._error

    async def stop(self, why: QwenProxyError) -> None:
        """Returns when it has ended, one way or the other."""
        if not self._whole:
            self._error = self._error or why
        self._scope.cancel()
        await self._over.wait()

    async def go(self) -> None:
        """Makes the answer. Its end is kept before anybody is told of it."""
        try:
            with self._scope:
                await self._make()
        except QwenProxyError as exc:
            self._error = exc
        except Exception:
            log.exception("an answer in the background broke")
            self._error = QwenProxyError(INTERNAL)
        finally:
            await self._end()

    async def _make(self) -> None:
        try:
            async for delta in self._source:
                if isinstance(delta, Finished):
                    # Whole by now, whatever is wanted of it.
                    with anyio.CancelScope(shield=True):
                        await self._keep([*self._deltas, delta], None)
                    self._error = None
                self._tell(delta)
        finally:
            with anyio.move_on_after(CLEAN_UP_S, shield=True):
                await self._source.aclose()
        if not self._whole:
            raise RuntimeError("the stream ended before the answer did")

    async def _end(self) -> None:
        if not self._whole:
            self._error = self._error or ShuttingDown(STOPPED)
            with anyio.move_on_after(CLEAN_UP_S, shield=True):
                await self._keep(self._deltas, self._error)
        self._over.set()
        self._news.set()

    def _tell(self, delta: Delta) -> None:
        self._deltas.append(delta)
        self._news.set()
        self._news = anyio.Event()


class Background:
    """The answers under way, by the id of each."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._runs: dict[str, Run] = {}
        self._tasks: TaskGroup | None = None

    @asynccontextmanager
    async def at_work(self) -> AsyncGenerator[None]:
        """Answers are made in here; what still runs at its end is ended."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            tasks.start_soon(self._stop_with_server)
            try:
                yield
            finally:
                self._tasks = None
                tasks.cancel_scope.cancel()

    def find(self, answer_id: str) -> Run | None:
        return self._runs.get(answer_id)

    def start(self, answer_id: str, deltas: AsyncGenerator[Delta], ended: Ended) -> Run:
        """Makes an answer, which counts as a request inside. Raises: ShuttingDown, QueueFull."""
        if self._tasks is None:
            raise ShuttingDown("the proxy is stopping")
        inside = ExitStack()
        inside.enter_context(self._admission.enter())
        run = self._runs[answer_id] = Run(deltas, ended)
        self._tasks.start_soon(self._go, answer_id, run, inside)
        return run

    async def _go(self, answer_id: str, run: Run, inside: ExitStack) -> None:
        with inside:
            try:
                await run.go()
            finally:
                del self._runs[answer_id]

    async def _stop_with_server(self) -> None:
        await self._admission.stopped.wait()
        async with anyio.create_task_group() as tasks:
            for run in list(self._runs.values()):
                tasks.start_soon(run.stop, ShuttingDown(STOPPED))
