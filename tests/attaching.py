"""What takes in attachments, over a real store: whom it asks elsewhere plays a script."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from qwenproxy.addresses import ServiceHosts
from qwenproxy.caller import ANYBODY, Caller
from qwenproxy.clock import SystemClock
from qwenproxy.errors import NotFetched
from qwenproxy.file_store import FileStore, StoredFile
from qwenproxy.intake import Attachments
from qwenproxy.settings import Settings

PNG = b"\x89PNG\r\n\x1a\n" + bytes(64)


def stored(store: FileStore, data: bytes, name: str = "a.txt", caller: Caller = ANYBODY) -> StoredFile:
    with store.incoming() as incoming:
        incoming.write(data)
        return store.keep(incoming, name=name, purpose="message", caller=caller)


@dataclass
class Elsewhere:
    """The web, the shelf of what the service made, and the service's storage."""

    store: FileStore
    web: dict[str, bytes] = field(default_factory=dict)
    shelf: dict[str, bytes] = field(default_factory=dict)
    uploaded: dict[str, StoredFile] = field(default_factory=dict)
    fetched: list[str] = field(default_factory=list)

    async def fetch(
        self, url: str, store: FileStore, caller: Caller, *, param: str | None = None
    ) -> StoredFile:
        self.fetched.append(url)
        if url not in self.web:
            raise NotFetched("it gave nothing", param=param)
        return stored(store, self.web[url], url.rpartition("/")[2], caller)

    async def into_store(self, media_id: str, caller: Caller) -> StoredFile:
        return stored(self.store, self.shelf[media_id], f"{media_id}.png", caller)

    def file_of_path(self, path: str, caller: Caller = ANYBODY) -> StoredFile | None:
        file = self.uploaded.get(path)
        return file if file is not None and caller.sees(file.owner) else None

    def attachments(self, *, max_files: int = 10) -> Attachments:
        hosts = ServiceHosts()
        return Attachments(self.store, self, self, self, hosts, Settings(max_files=max_files))


def elsewhere(folder: Path, most_bytes: int = 100_000_000) -> Elsewhere:
    return Elsewhere(FileStore(folder, SystemClock(), most_bytes=most_bytes))
