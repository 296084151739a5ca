"""One account as it is known: its state, waits and sign-in. Values only; `registry.py` keeps them on disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

State = Literal["OK", "WAIT", "INVALID"]
Why = Literal["", "limit", "human"]

ENDS_SOON = timedelta(days=3)
"""How long ahead the end of a sign-in is announced; one lasts 30 days (protocol §1.2)."""


@dataclass(frozen=True, slots=True)
class Account:
    id: str
    label: str = ""
    """What the owner calls it."""
    email: str = ""
    """As the service tells it; shown whole only in the owner's own console."""
    user_id: str = ""
    """The service's id of the person: two sign-ins of one person are one account."""
    invalid: bool = False
    """The sign-in is gone: somebody has to sign in again."""
    paused: bool = False
    """The owner keeps it out of turn."""
    wait_until: datetime | None = None
    why: Why = ""
    """What the account waits for: the end of a limit, or a person, which has no `wait_until`."""
    model_waits: tuple[tuple[str, datetime], ...] = ()
    """Limits of single models: id, until when."""
    signed_in_at: datetime | None = None
    holds_until: datetime | None = None
    """When the sign-in ends, as far as its cookies or its token tell."""

    @property
    def usable(self) -> bool:
        """Whether it may ever answer as it is: a wait ends by itself or by its owner's hand."""
        return not (self.invalid or self.paused)

    @property
    def name(self) -> str:
        """What to call it in front of its owner."""
        return self.label or self.email or self.id

    @property
    def masked_email(self) -> str:
        """Fit for a page or a log: `j…@example.com`."""
        local, at, host = self.email.partition("@")
        return f"{local[:1]}…@{host}" if at else ""

    def state(self, now: datetime) -> State:
        if self.invalid:
            return "INVALID"
        waits = self.why == "human" or (self.wait_until is not None and self.wait_until > now)
        return "WAIT" if waits else "OK"

    def ready(self, now: datetime, model: str = "") -> bool:
        """Whether it may answer now, with this model where one is named."""
        return not self.paused and self.state(now) == "OK" and self.free_at(now, model) is None

    def free_at(self, now: datetime, model: str = "") -> datetime | None:
        """When the last limit that keeps it from answering ends; None where none does."""
        limits = [until for name, until in self.model_waits if name == model]
        ahead = [until for until in (self.wait_until, *limits) if until is not None and until > now]
        return max(ahead, default=None)

    def told(self, now: datetime) -> dict[str, Any]:
        """What programs may know of it, by the names of `tokens.json`: no token, and no e-mail yet."""
        state = self.state(now)
        return {
            "id": self.id,
            "status": state,
            "resetAt": _iso(self.wait_until if state == "WAIT" else None),
            "invalid": self.invalid,
            "paused": self.paused,
            "waitsFor": self.why if state == "WAIT" else "",
            "modelResetAt": {model: _iso(until) for model, until in self.model_waits if until > now},
            "label": self.label,
            "signedInAt": _iso(self.signed_in_at),
            "holdsUntil": _iso(self.holds_until),
        }

    def ends_soon(self, now: datetime) -> bool:
        return not self.invalid and self.holds_until is not None and self.holds_until - now < ENDS_SOON


@dataclass(frozen=True, slots=True)
class SignIn:
    """What a sign-in leaves: who it is, and what proves it. All of it is secret."""

    token: str = field(repr=False)
    state: dict[str, Any] | None = field(repr=False)
    """The browser's cookies and storage; None for a bare token."""
    user_id: str = ""
    email: str = ""


def _iso(instant: datetime | None) -> str | None:
    """UTC, with the `Z` that the older proxies wrote."""
    return None if instant is None else instant.astimezone(UTC).isoformat().replace("+00:00", "Z")
