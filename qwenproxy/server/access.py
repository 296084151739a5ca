"""Who may do what: with API keys on, every request needs one, `/health` apart.

| what comes                      | what becomes of it                                                       |
|---------------------------------|--------------------------------------------------------------------------|
| no key                          | 401 `invalid_api_key`                                                    |
| a wrong key                     | the same, the later the more of them came; 429 when too many wait for it |
| a key without the route's scope | 403 `not_allowed`; every key is without it where none is declared   |
| a key over its limits           | 429 `key_limit`, with `Retry-After`                                      |
| a key                           | goes on as its caller; never slowed, whatever others try                 |

Stands behind the guard and before anything reads a body. No address is trusted more than another: behind a
reverse proxy everybody has the same.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

import anyio
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from qwenproxy.api_keys import ApiKey, KeyRing
from qwenproxy.caller import ANYBODY, Caller
from qwenproxy.caller import Scope as KeyScope
from qwenproxy.errors import InvalidKey, KeyLimit, NotAllowed, QwenProxyError
from qwenproxy.server.error_shapes import refusal

log = logging.getLogger(__name__)

CALLER: Final = "qwenproxy.caller"
"""Key in the ASGI scope."""
MINUTE_S: Final = 60.0
FIRST_S: Final = 0.05
"""How long the first wrong key waits for its answer; each further one of the last minute doubles it."""
SLOWEST_S: Final = 2.0
SLOWED_AT_ONCE: Final = 8
FAILURES_KEPT: Final = 16
BUSY_RETRY_S: Final = 1.0

Needs: TypeAlias = KeyScope | Literal["any key", "nothing"]


def caller_of(scope: Scope) -> Caller:
    """Who asks."""
    caller: Caller = scope.get(CALLER, ANYBODY)
    return caller


class KeyRoute(Route):
    """A route that says what a key needs to use it: a scope, or no scope (`any key`), or no key at all."""

    def __init__(
        self,
        path: str,
        endpoint: Callable[..., Any],
        *,
        needs: Needs,
        methods: Sequence[str] | None = None,
    ) -> None:
        super().__init__(path, endpoint, methods=None if methods is None else list(methods))
        self.needs = needs


@dataclass(slots=True)
class _Use:
    """What one key does."""

    inside: int = 0
    entered_s: deque[float] = field(default_factory=deque)
    """When, in the last minute."""


class Gate:
    """The keys, and how they and the wrong ones are used."""

    def __init__(
        self,
        ring: KeyRing | None = None,
        *,
        slowest_s: float = SLOWEST_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Without a ring there are no keys and never will be. `clock` gives seconds."""
        self.ring = ring
        self._slowest_s = slowest_s
        self._clock = clock
        self._uses: dict[bytes, _Use] = {}
        self._failed_s: deque[float] = deque(maxlen=FAILURES_KEPT)
        self._slowed = 0

    @property
    def on(self) -> bool:
        return self.ring is not None and self.ring.on

    async def key_of(self, candidates: Sequence[str]) -> ApiKey:
        """The key that one of `candidates` is.

        Raises:
            InvalidKey: none is; after a while, when there was one.
            KeyLimit: too many wrong ones wait for that already.
        """
        found = self.ring.find(candidates) if self.ring is not None else None
        if found is not None:
            return found
        if not candidates:
            raise InvalidKey("an API key is needed, for instance as Authorization: Bearer KEY")
        await self._slow_down()
        raise InvalidKey("this API key is not known here")

    @contextmanager
    def entered(self, key: ApiKey) -> Iterator[None]:
        """Counts the key's request. Raises: KeyLimit."""
        use = self._uses.setdefault(key.digest, _Use())
        now_s = self._clock()
        while use.entered_s and use.entered_s[0] <= now_s - MINUTE_S:
            use.entered_s.popleft()
        if key.rpm is not None and len(use.entered_s) >= key.rpm:
            raise KeyLimit(
                f"this API key may ask {key.rpm} times a minute",
                # Its limit may have been lowered since: so many must grow old.
                retry_after_s=use.entered_s[-key.rpm] + MINUTE_S - now_s,
            )
        if key.concurrency is not None and use.inside >= key.concurrency:
            raise KeyLimit(
                f"this API key may have {key.concurrency} requests at once", retry_after_s=BUSY_RETRY_S
            )
        if key.rpm is not None:
            use.entered_s.append(now_s)
        use.inside += 1
        try:
            yield
        finally:
            use.inside -= 1

    async def _slow_down(self) -> None:
        """Raises: KeyLimit."""
        now_s = self._clock()
        recent = sum(at_s > now_s - MINUTE_S for at_s in self._failed_s)
        self._failed_s.append(now_s)
        if not recent:  # once a minute at most
            log.warning("a request with an unknown API key was refused")
        if self._slowed >= SLOWED_AT_ONCE:
            raise KeyLimit("too many wrong API keys at once", retry_after_s=max(self._slowest_s, 1.0))
        self._slowed += 1
        try:
            await anyio.sleep(min(self._slowest_s, FIRST_S * 2**recent))
        finally:
            self._slowed -= 1


class Access:
    def __init__(self, app: ASGIApp, gate: Gate, *, public: bool) -> None:
        """`public`: other computers can reach us, so without keys nobody may call."""
        self._app = app
        self._gate = gate
        self._public = public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        needs = _needs(scope) if scope["type"] == "http" else "nothing"
        if needs == "nothing" or not (self._gate.on or self._public):
            await self._app(scope, receive, send)
            return
        with ExitStack() as inside:
            try:
                key = await self._gate.key_of(_candidates(scope))
                _check(key, needs)
                inside.enter_context(self._gate.entered(key))
            except QwenProxyError as exc:
                more = {"WWW-Authenticate": "Bearer"} if isinstance(exc, InvalidKey) else None
                await refusal(scope, exc, more)(scope, receive, send)
                return
            scope[CALLER] = key.caller
            await self._app(scope, receive, send)


def _needs(scope: Scope) -> Needs | None:
    """What the request's route needs; None where it declares nothing."""
    for route in scope["app"].routes:
        if route.matches(scope)[0] is Match.FULL:
            return route.needs if isinstance(route, KeyRoute) else None
    # There is no such route: only who has a key is told so.
    return "any key"


def _check(key: ApiKey, needs: Needs | None) -> None:
    """Raises: NotAllowed."""
    if needs is None:
        raise NotAllowed("no API key may use this route")
    if needs not in {"any key", *key.caller.scopes}:
        raise NotAllowed(f"this API key may not do this: it lacks the scope {needs!r}")


def _candidates(scope: Scope) -> list[str]:
    """What may be a key. A header that comes twice counts for nothing: nobody knows which one is meant."""
    found: list[str] = []
    for name in (b"x-api-key", b"x-goog-api-key", b"authorization"):
        values = [value.decode("latin-1").strip() for key, value in scope["headers"] if key == name]
        if len(values) == 1 and name == b"authorization":
            scheme, _, rest = values[0].partition(" ")
            values = [rest.strip()] if scheme.lower() == "bearer" else []
        if len(values) == 1 and values[0]:
            found.append(values[0])
    return found
