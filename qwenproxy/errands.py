"""Work that some account has to do and that is no answer in words: a video, speech.

Who does it changes as in `gateway.py`: an account that met a limit, a human check or a lost sign-in is out of
turn and the next one is asked; what may have been an accident is tried on one other account. Once something
has been given out, nothing is tried again.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Final, TypeVar

from qwenproxy.accounts.pool import OUT_OF_TURN, AllTried, Pool
from qwenproxy.activity import Activity, InFlight
from qwenproxy.errors import (
    BrowserLost,
    ChatGone,
    EmptyAnswer,
    QwenProxyError,
    Severed,
    Unreachable,
    UpstreamError,
)

T = TypeVar("T")
ACCIDENTS: Final = (BrowserLost, ChatGone, EmptyAnswer, Severed, Unreachable)
MOST_TRIES: Final = 32
"""Accounts asked for one errand: many can have used up their day, and saying so costs them nothing."""


class Errands:
    def __init__(self, pool: Pool, activity: Activity) -> None:
        self._pool = pool
        self._activity = activity

    async def run(self, kind: str, work: Callable[[str], AsyncGenerator[T]]) -> AsyncGenerator[T]:
        """What `work` gives on the account that does it, which has a slot as long as it gives.

        `kind` stands in the pool where a model does for words: a limit of it rests nothing else.

        Raises: what `Pool.lease` raises, and what the last try raised.
        """
        with self._activity.begin(kind) as inside:
            tried: frozenset[str] = frozenset()
            last: QwenProxyError | None = None
            for _ in range(MOST_TRIES):
                inside.account_id = ""
                try:
                    async with self._pool.lease(tried, model=kind, request=inside) as account_id:
                        inside.account_id = account_id
                        async with aclosing(work(account_id)) as given:
                            async for piece in given:
                                inside.pieces += 1
                                yield piece
                    self._activity.serve(account_id)
                    return
                except AllTried:
                    break
                except QwenProxyError as exc:
                    last = exc
                    self._activity.fail(exc, inside.account_id)
                    if not self._again(exc, inside, first=not tried):
                        raise
                    if not isinstance(exc, OUT_OF_TURN):
                        tried |= {inside.account_id}
            raise last or UpstreamError("no account could do it")

    def _again(self, exc: QwenProxyError, inside: InFlight, *, first: bool) -> bool:
        """Whether another account is asked; after an accident only once."""
        if inside.pieces or not inside.account_id:
            return False
        accident = isinstance(exc, ACCIDENTS) or type(exc) is UpstreamError
        return isinstance(exc, OUT_OF_TURN) or (accident and first)
