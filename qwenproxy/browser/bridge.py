"""Many calls in one page, one batched stream of pieces out: the Python half of `fetch.js`.

The page reports through one CDP binding, a batch a tick, without an answer: a binding call per piece
collapses at 16 streams (house §3.6). `Runtime.enable` is not needed for that, and nothing of ours stays on
`window`: `fetch.js` takes the binding off, and Python holds what it returns by a remote handle. The handle
dies with the document, so a call never reaches a page that has navigated away.
"""

from __future__ import annotations

import json
import logging
import secrets
import time
from binascii import a2b_base64
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import anyio
from playwright.async_api import CDPSession

from qwenproxy.browser.chromium import reaching
from qwenproxy.errors import BrowserLost, NeedsHuman, ProtocolChanged, QwenProxyError, Severed, Unreachable
from qwenproxy.qwen.transport import Fetch, Fetched

CALL_S = 10.0
"""Seconds for one call into the page, which only starts something."""
PING_S = 5.0
"""Seconds for the smallest call there is; a page that misses it is hung (reliability B-4)."""
ABORT_S = 5.0
"""Seconds that leaving a call waits for the page to abort it; usually a few milliseconds."""
TICK_MS = 4
"""Least milliseconds between two batches of a page."""
UNREAD_LIMIT_BYTES = 64 * 1024 * 1024
"""Bytes that may wait for a reader of one call."""
DEFAULT_VERSION = "0.3.12"
"""The front-end build when the page does not tell it (protocol §2)."""

log = logging.getLogger(__name__)


@cache
def _script() -> str:
    return Path(__file__).with_name("fetch.js").read_text(encoding="utf-8")


class PageAnswer:
    """One call's answer as it comes; a `Fetched`."""

    __slots__ = ("_error", "_news", "_over", "_unread_bytes", "_waiting", "credential", "headers", "status")

    def __init__(self) -> None:
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self.credential = ""
        self._waiting: deque[bytes] = deque()
        self._unread_bytes = 0
        self._over = False
        self._error: QwenProxyError | None = None
        self._news: anyio.Event | None = None

    @property
    def in_page(self) -> bool:
        """The page still has this call."""
        return not self._over

    @property
    def done(self) -> bool:
        return self._over or self._error is not None

    def take(self, kind: str, payload: bytes) -> None:
        """Raises: KeyError, ValueError for what `fetch.js` never says."""
        if kind == "data":
            self._take_piece(payload)
        elif kind == "head":
            head = json.loads(payload)
            self.status, self.headers, self.credential = head["status"], head["headers"], head["credential"]
        else:
            self._over = True
            self._error = None if kind == "end" else _ending(kind, payload)
        self._wake()

    def _take_piece(self, piece: bytes) -> None:
        self._waiting.append(piece)
        self._unread_bytes += len(piece)
        if self._unread_bytes > UNREAD_LIMIT_BYTES:
            self._waiting.clear()
            self.fail(ProtocolChanged("the answer is larger than any known one"))

    def fail(self, error: QwenProxyError) -> None:
        if not self.done:
            self._error = error
            self._wake()

    def _wake(self) -> None:
        if self._news is not None:
            self._news.set()

    async def _something(self) -> None:
        self._news = anyio.Event()
        await self._news.wait()
        self._news = None

    async def head(self) -> None:
        while not self.status and not self.done:
            await self._something()
        if not self.status:
            raise self._error or Severed("the answer ended before it began")

    async def pieces(self) -> AsyncGenerator[bytes]:
        while True:
            if self._waiting:
                piece = self._waiting.popleft() if len(self._waiting) == 1 else b"".join(self._waiting)
                self._waiting.clear()
                self._unread_bytes = 0
                yield piece
            elif self._error is not None:
                raise self._error
            elif self._over:
                return
            else:
                await self._something()


def _ending(kind: str, payload: bytes) -> QwenProxyError:
    if kind == "challenge":
        return NeedsHuman("Qwen Chat asks this account for a human verification")
    log.debug("a call in the page ended with %s: %s", kind, payload[:200].decode(errors="replace"))
    if kind == "unreachable":
        return Unreachable("the page could not reach Qwen Chat")
    return Severed("the connection to Qwen Chat broke off")


class _Together:
    """Items that come while one call into the page is under way share the next: a call costs some 3 ms."""

    def __init__(self, send: Callable[[list[Any]], Awaitable[None]]) -> None:
        self._send = send
        self._waiting: list[Any] = []
        self._sending = anyio.Lock()

    async def add(self, item: Any) -> None:
        """Returns when the item has been sent, by whomever."""
        self._waiting.append(item)
        async with self._sending:
            items, self._waiting = self._waiting, []
            if items:
                await self._send(items)


class Bridge:
    """The calls of one document in one page."""

    def __init__(self, session: CDPSession) -> None:
        self._session = session
        self._binding = f"_{secrets.token_hex(8)}"
        self._handle = ""
        self._numbers = 0
        self._batches = 0
        self._answers: dict[int, PageAnswer] = {}
        self._starts = _Together(partial(self._tell, "start"))
        self._aborts = _Together(partial(self._tell, "abort"))
        self._lost: str | None = None
        self._idle = anyio.Event()
        self._idle.set()
        self._heard_at_s = time.monotonic()

    def __repr__(self) -> str:
        return f"<Bridge {len(self._answers)} calls{f', lost: {self._lost}' if self._lost else ''}>"

    @property
    def open_calls(self) -> int:
        return sum(not answer.done for answer in self._answers.values())

    @property
    def quiet_s(self) -> float:
        """Seconds since the page last gave a sign of life."""
        return time.monotonic() - self._heard_at_s

    async def install(self, auth_origin: str) -> None:
        """Raises: BrowserLost."""
        options = {
            "binding": self._binding,
            "auth": auth_origin,
            "tickMs": TICK_MS,
            "defaultVersion": DEFAULT_VERSION,
        }
        self._session.on("Runtime.bindingCalled", self._batch)
        await self._send("Runtime.addBinding", {"name": self._binding}, CALL_S)
        found = await self._send(
            "Runtime.evaluate", {"expression": f"{_script()}({json.dumps(options)})"}, CALL_S
        )
        self._handle = found["result"]["objectId"]

    @asynccontextmanager
    async def fetch(self, call: Fetch) -> AsyncGenerator[Fetched]:
        """Raises: Unreachable, NeedsHuman, BrowserLost."""
        if self._lost is not None:
            raise BrowserLost(self._lost)
        self._numbers += 1
        number, answer = self._numbers, PageAnswer()
        self._answers[number] = answer
        if self._idle.is_set():
            self._idle = anyio.Event()
        try:
            wanted = {
                "method": call.method,
                "path": call.path,
                "body": call.body,
                "host": call.host,
                "stream": call.stream,
            }
            # Shielded: a call that was queued must be in the page before it can be aborted there.
            with anyio.CancelScope(shield=True):
                await self._starts.add([number, wanted])
            await answer.head()
            yield answer
        finally:
            del self._answers[number]
            try:
                if answer.in_page:
                    await self._abort(number)
            finally:
                if not self._answers:
                    self._idle.set()

    async def credential(self) -> str:
        """The mark of the token that the page holds now; "" for none. Raises: BrowserLost."""
        return str(await self._call("credential"))

    async def asks_human(self) -> bool:
        """Whether a verification dialog stands in the page (protocol §6.3). Raises: BrowserLost."""
        return bool(await self._call("asked"))

    async def drained(self) -> None:
        """Returns when nobody has a call here."""
        while self._answers:
            await self._idle.wait()

    async def ping(self) -> None:
        """Raises: BrowserLost."""
        await self._call("ping", deadline_s=PING_S)

    def lose(self, why: str) -> None:
        """Ends every call at once; the page is no good any more."""
        if self._lost is not None:
            return
        self._lost = why
        for answer in self._answers.values():
            answer.fail(BrowserLost(why))

    async def _abort(self, number: int) -> None:
        with anyio.move_on_after(ABORT_S, shield=True):
            await self._aborts.add(number)

    async def _tell(self, method: str, items: list[Any]) -> None:
        """A page that does not take it is hung, and every call of it lost."""
        if self._lost is None:
            try:
                await self._call(method, items)
            except BrowserLost as exc:
                self.lose(str(exc))

    async def _call(self, method: str, *arguments: Any, deadline_s: float = CALL_S) -> Any:
        found = await self._send(
            "Runtime.callFunctionOn",
            {
                "objectId": self._handle,
                "functionDeclaration": f"function (...given) {{ return this.{method}(...given); }}",
                "arguments": [{"value": value} for value in arguments],
                "returnByValue": True,
                "awaitPromise": True,
            },
            deadline_s,
        )
        return found["result"].get("value")

    async def _send(self, method: str, params: dict[str, Any], deadline_s: float) -> dict[str, Any]:
        with reaching("the page", deadline_s):
            found: dict[str, Any] = await self._session.send(method, params)
        self._heard_at_s = time.monotonic()
        if "exceptionDetails" in found:
            log.debug("fetch.js raised: %s", found["exceptionDetails"].get("text"))
            raise BrowserLost("the page could not run a call")
        return found

    def _batch(self, event: dict[str, Any]) -> None:
        """Never raises: Playwright would hand the error to whichever call comes next (reliability B9)."""
        if event["name"] != self._binding:
            return
        self._heard_at_s = time.monotonic()
        sequence, *lines = event["payload"].split("\n")
        if sequence != str(self._batches):
            self.lose("pieces from the page were lost")
            return
        self._batches += 1
        for line in lines:
            self._line(line)

    def _line(self, line: str) -> None:
        try:
            number, kind, text = line.split(" ", 2)
            answer = self._answers.get(int(number))
            if answer is not None and not answer.done:
                answer.take(kind, a2b_base64(text, strict_mode=True))
        except (ValueError, KeyError):
            self.lose("a batch from the page could not be read")
