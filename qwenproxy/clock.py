"""Wall and monotonic time: the seam that tests turn."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    def now(self) -> datetime:
        """Wall time, UTC. For what is stored and shown."""

    def monotonic_s(self) -> float:
        """Seconds that never jump. For every wait and deadline."""


class SystemClock:
    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic_s(self) -> float:
        return time.monotonic()
