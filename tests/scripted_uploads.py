"""Uploads without a service: each account has what was brought to it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio

from qwenproxy.chat import FileKind
from qwenproxy.errors import QwenProxyError
from qwenproxy.qwen.files import HostedFile, OnProgress, unseen


@dataclass
class ScriptedUploads:
    """Fails as scripted, then takes everything. `begun` counts; `go_on` can hold uploads up."""

    ends: list[QwenProxyError] = field(default_factory=list)
    has: dict[str, list[bytes]] = field(default_factory=dict)
    """By account, in the order in which it came."""
    renewed: list[str] = field(default_factory=list)
    begun: int = 0
    go_on: anyio.Event = field(default_factory=anyio.Event)
    stale: bool = False

    def __post_init__(self) -> None:
        self.go_on.set()

    async def ticket(self, account_id: str, name: str, size: int, kind: str) -> dict[str, Any]:
        if self.ends:
            raise self.ends.pop(0)
        return {"account": account_id, "name": name, "size": size, "kind": kind}

    async def upload(
        self,
        account_id: str,
        path: Path,
        name: str,
        media_type: str,
        kind: FileKind,
        size: int,
        on_progress: OnProgress = unseen,
    ) -> HostedFile:
        on_progress("uploading a file")
        self.begun += 1
        await self.go_on.wait()
        if self.ends:
            raise self.ends.pop(0)
        self.has.setdefault(account_id, []).append(path.read_bytes())
        number = sum(map(len, self.has.values()))
        place = f"{account_id}/00000000-0000-4000-8000-{number:012d}_{name}"
        url = f"https://storage.example/{place}"
        return HostedFile(f"id-{number}", place, url, name, media_type, size, kind, account_id, 1, 1)

    async def fresh(self, account_id: str, hosted: HostedFile) -> HostedFile:
        if not self.stale:
            return hosted
        self.renewed.append(hosted.id)
        return replace(hosted, url=hosted.url + "?again")
