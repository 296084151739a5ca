"""Who is inside, and whether anybody may still come in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import anyio

from qwenproxy.errors import QueueFull, ShuttingDown

INTERNAL: Final = "the proxy met an error of its own; its log says more"
"""What a client is told of a bug."""


class Admission:
    def __init__(self, most: int) -> None:
        self._most = most
        self.inside = 0
        self.draining = False
        self.stopped = anyio.Event()
        """Set: whoever is still inside ends now, with an error."""

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Counts a request. Raises: ShuttingDown, QueueFull."""
        if self.draining:
            raise ShuttingDown("the proxy is stopping")
        if self.inside >= self._most:
            raise QueueFull(f"{self._most} requests are inside already; QWENPROXY_MAX_IN_FLIGHT is the limit")
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1
