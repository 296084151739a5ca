"""Files into an account: leave to upload, the bytes, and the service's reading of documents (protocol §9).

Bytes go from the disk to the storage in threads, a few files at once, so that memory stays flat.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

import anyio
from anyio.to_thread import run_sync

from qwenproxy.chat import FileKind
from qwenproxy.clock import Clock
from qwenproxy.errors import ProtocolChanged, QwenProxyError, UnsupportedFile, UpstreamTimeout
from qwenproxy.qwen.files import READ_KINDS, HostedFile, OnProgress, Refused, Ticket, ticket_of, unseen
from qwenproxy.settings import Settings

Json: TypeAlias = dict[str, Any]
AT_ONCE: Final = 8
"""Files on their way at a time."""
LOOK_EVERY_S: Final = 2.0
"""Between two looks at the reading of a document, as the site looks (protocol §9.3)."""
FIRST_LOOK_S: Final = 0.25
"""Before the second look; short texts are read at once. Each pause is twice the one before it."""
FRESH_MS: Final = 240_000
"""An address is signed for 300 s (protocol §9.1); older than this it is signed anew."""


class Client(Protocol):
    async def post(self, account_id: str, path: str, body: Json) -> Any: ...


class Uploads:
    def __init__(
        self, client: Client, settings: Settings, clock: Clock, *, look_every_s: float = LOOK_EVERY_S
    ) -> None:
        self._client = client
        self._settings = settings
        self._clock = clock
        self._look_every_s = look_every_s
        self._at_once = anyio.CapacityLimiter(AT_ONCE)

    async def ticket(self, account_id: str, name: str, size: int, kind: str) -> Json:
        """The service's leave to upload, as it says it. It holds credentials (protocol §9.1)."""
        body = {"filename": name, "filesize": str(size), "filetype": kind}
        data = await self._client.post(account_id, "/api/v2/files/getstsToken", body)
        if not isinstance(data, dict):
            raise ProtocolChanged("the service's leave to upload has a shape we do not know")
        return data

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
        """The file at `path`, uploaded to this account and, if it is a document, read by the service.
        `on_progress` gets what is being done, in words.

        Raises:
            UploadFailed: the storage did not take it.
            UnsupportedFile: the service cannot read it.
            UpstreamTimeout: the service did not get it read in time.
            …: whatever a call raises.
        """
        on_progress("uploading a file")
        ticket = await self._stored(account_id, path, name, media_type, kind, size)
        now_ms = self._now_ms()
        user_id = ticket.path.partition("/")[0]
        hosted = HostedFile(
            ticket.id, ticket.path, ticket.url, name, media_type, size, kind, user_id, now_ms, now_ms
        )
        if kind in READ_KINDS:
            on_progress("a document is read")
            await self._read(account_id, hosted)
        return hosted

    async def fresh(self, account_id: str, hosted: HostedFile) -> HostedFile:
        """The file with an address that holds for a minute at least, where the service gives one.

        An address whose time is over was seen to work in messages too (protocol §9.4).
        """
        if 0 <= self._now_ms() - hosted.signed_ms < FRESH_MS:
            return hosted
        try:
            data = await self._client.post(account_id, "/api/v2/files/getfilelink", {"fileUrl": hosted.url})
        except QwenProxyError:
            return hosted
        url = data.get("fileUrl") if isinstance(data, dict) else None
        if not isinstance(url, str) or not url.startswith(("https://", "http://")):
            return hosted
        return replace(hosted, url=url, signed_ms=self._now_ms())

    async def _stored(
        self, account_id: str, path: Path, name: str, media_type: str, kind: FileKind, size: int
    ) -> Ticket:
        """The ticket under which the file lies in the storage. One that does not hold is renewed once."""
        word = kind if kind in ("image", "video", "audio") else "file"
        renewed = False
        while True:
            ticket = ticket_of(await self.ticket(account_id, name, size, word))
            try:
                await self._put(ticket, path, media_type)
                return ticket
            except Refused:
                if renewed:
                    raise
                renewed = True

    async def _put(self, ticket: Ticket, path: Path, media_type: str) -> None:
        """In a thread, which goes on for `SILENCE_S` at most when nobody waits for it any more."""
        left = threading.Event()
        try:
            await run_sync(
                self._store,
                ticket,
                path,
                media_type,
                left,
                abandon_on_cancel=True,
                limiter=self._at_once,
            )
        finally:
            left.set()

    def _store(self, ticket: Ticket, path: Path, media_type: str, left: threading.Event) -> None:
        # Not before it is needed: no command should wait for an SDK that it does not use.
        from qwenproxy.qwen.object_storage import Storage

        Storage(self._settings).put(ticket, path, media_type, left)

    async def _read(self, account_id: str, hosted: HostedFile) -> None:
        """Waits until the service has read the document (protocol §9.3)."""
        await self._client.post(account_id, "/api/v2/files/parse", {"file_id": hosted.id})
        pause_s = min(FIRST_LOOK_S, self._look_every_s)
        with anyio.move_on_after(self._settings.parse_timeout_s):
            while True:
                if await self._is_read(account_id, hosted):
                    return
                await anyio.sleep(pause_s)
                pause_s = min(pause_s * 2, self._look_every_s)
        raise UpstreamTimeout(
            f"the service did not get {hosted.name} read within {self._settings.parse_timeout_s:g} s"
        )

    async def _is_read(self, account_id: str, hosted: HostedFile) -> bool:
        data = await self._client.post(
            account_id, "/api/v2/files/parse/status", {"file_id_list": [hosted.id]}
        )
        rows = [row for row in data if isinstance(row, dict)] if isinstance(data, list) else []
        row: Mapping[str, Any] = next((row for row in rows if row.get("file_id") == hosted.id), {})
        if row.get("status") == "failed":
            why = " ".join(str(row.get("error_msg") or "").split())[:200]
            raise UnsupportedFile(
                f"the service cannot read {hosted.name}" + (f": {why}" if why else ""), param="messages"
            )
        return row.get("status") == "success"

    def _now_ms(self) -> int:
        return int(self._clock.now().timestamp() * 1000)
