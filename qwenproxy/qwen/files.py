"""A file as the service has it: what its storage gives, what a message says of it (protocol §9)."""

from __future__ import annotations

from dataclasses import dataclass

from qwenproxy.chat import FileKind


@dataclass(frozen=True, slots=True)
class HostedFile:
    """A file in one account's storage. It means nothing to another account."""

    id: str
    path: str
    """`<user id>/<file id>_<name>`."""
    url: str
    """Signed for 300 s."""
    name: str
    type: str
    """Media type."""
    size: int
    """Bytes."""
    kind: FileKind
    user_id: str
    created_ms: int
