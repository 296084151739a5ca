"""A file as the service has it: what its storage gives, what a message says of it (protocol §9)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from qwenproxy.chat import FileKind
from qwenproxy.errors import ProtocolChanged, UploadFailed

READ_KINDS = frozenset({"document", "text"})
"""What the service reads (parses) before a message may name it (protocol §9.3)."""

OnProgress: TypeAlias = Callable[[str], None]
"""Gets what is being done with a file, in words for its owner."""


class Refused(UploadFailed):
    """The storage does not accept the ticket: a new one may do."""


def unseen(_: str) -> None:
    """Progress for whom nobody waits."""


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
    signed_ms: int = 0
    """When `url` was signed; 0: nobody knows."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """Leave to put one object into the service's storage (protocol §9.1)."""

    id: str
    path: str
    url: str
    bucket: str
    region: str
    """Without the `oss-` in front."""
    endpoint: str
    """A host."""
    key_id: str = field(repr=False)
    secret: str = field(repr=False)
    token: str = field(repr=False)


def ticket_of(data: object) -> Ticket:
    """What `files/getstsToken` answered (protocol §9.1).

    Raises:
        ProtocolChanged: something is missing.
    """
    row: Mapping[str, Any] = data if isinstance(data, dict) else {}

    def text(name: str) -> str:
        value = row.get(name)
        if not isinstance(value, str) or not value:
            raise ProtocolChanged(f"the service's leave to upload has no {name}")
        return value

    return Ticket(
        text("file_id"),
        text("file_path"),
        text("file_url"),
        text("bucketname"),
        text("region").removeprefix("oss-"),
        text("endpoint"),
        text("access_key_id"),
        text("access_key_secret"),
        text("security_token"),
    )
