"""Bytes into the service's storage, by its maker's SDK and with temporary credentials (protocol §9.2).

The credentials go to the storage's maker alone, or to the endpoint that the settings name.
"""

from __future__ import annotations

import io
import re
import threading
from pathlib import Path
from typing import Final

import alibabacloud_oss_v2 as oss  # type: ignore[import-untyped]
import requests
from alibabacloud_oss_v2 import exceptions
from alibabacloud_oss_v2.transport import (  # type: ignore[import-untyped]
    RequestsHttpClient,
)

from qwenproxy.errors import ProtocolChanged, UploadFailed
from qwenproxy.qwen.files import Refused, Ticket
from qwenproxy.settings import Settings

MIB: Final = 1024 * 1024
LEAST_PART: Final = 2 * MIB
"""From this size on an object goes in parts, as the site sends it (protocol §9.2)."""
MOST_PART: Final = 10 * MIB
PARTS: Final = 10
"""Into about so many, within the bounds of a part."""
SILENCE_S: Final = 30.0
"""Longest wait for the storage at each step; so long at most goes on an upload that nobody wants."""
TRIES: Final = 2
_MAKER: Final = re.compile(r"(?:[a-z0-9-]+\.)+aliyuncs\.com")
_CODE: Final = re.compile(r"[A-Za-z]{1,60}")


class _Left(Exception):
    """Nobody waits for the upload any more."""


class _Watched(io.FileIO):
    """A file that cannot be read any further once it is left."""

    def __init__(self, path: Path, left: threading.Event) -> None:
        super().__init__(path)
        self._left = left

    def read(self, size: int | None = -1, /) -> bytes:
        if self._left.is_set():
            raise _Left
        return super().read(-1 if size is None else size) or b""


class Storage:
    """Blocks. May be used from any thread."""

    def __init__(self, settings: Settings) -> None:
        self._endpoint = settings.storage_endpoint
        # As Chromium does it: the proxy, not this computer, looks the name up.
        self._proxy = settings.proxy.replace("socks5://", "socks5h://", 1)

    def put(self, ticket: Ticket, path: Path, media_type: str, left: threading.Event) -> None:
        """Uploads the file at `path`, from disk, in parts from 2 MiB on; gives up once `left` is set.

        Raises:
            Refused: the ticket does not hold (any more).
            UploadFailed: the storage did not take it, or could not be reached.
            ProtocolChanged: the ticket names a host that is not the storage's maker's.
        """
        endpoint = self._endpoint or _checked(ticket.endpoint)
        with requests.Session() as session, _Watched(path, left) as body:
            session.trust_env = False
            if self._proxy:
                session.proxies = {"http": self._proxy, "https": self._proxy}
            uploader = oss.Client(_config(ticket, endpoint, session)).uploader(parallel_num=1)
            request = oss.PutObjectRequest(bucket=ticket.bucket, key=ticket.path, content_type=media_type)
            try:
                uploader.upload_from(request, body, part_size=part_size(path.stat().st_size))
            except exceptions.BaseError as exc:
                raise _failure(exc) from None


def part_size(size: int) -> int:
    """Bytes of a part: an object smaller than that goes in one piece."""
    return min(max(-(-size // PARTS), LEAST_PART), MOST_PART)


def _checked(host: str) -> str:
    """Raises: ProtocolChanged. Credentials go nowhere else."""
    if not _MAKER.fullmatch(host):
        raise ProtocolChanged("the service names a storage that we do not know", seen=host)
    return f"https://{host}"


def _config(ticket: Ticket, endpoint: str, session: requests.Session) -> oss.Config:
    return oss.Config(
        region=ticket.region,
        endpoint=endpoint,
        credentials_provider=oss.credentials.StaticCredentialsProvider(
            ticket.key_id, ticket.secret, ticket.token
        ),
        retry_max_attempts=TRIES,
        http_client=RequestsHttpClient(
            session=session, connect_timeout=SILENCE_S, readwrite_timeout=SILENCE_S
        ),
        # Slow where its C code is missing; the sizes are checked, and on the way TLS guards the bytes.
        disable_upload_crc64_check=True,
    )


def _failure(exc: BaseException) -> UploadFailed:
    """In our words: those of the storage may hold what was signed."""
    cause: object = exc
    while not isinstance(cause, exceptions.ServiceError) and hasattr(cause, "unwrap"):
        cause = cause.unwrap()
    if isinstance(cause, _Left):
        return UploadFailed("nobody waits for it")
    if not isinstance(cause, exceptions.ServiceError):
        return UploadFailed("the service's storage cannot be reached")
    code = str(cause.code or "")
    said = f" ({code})" if _CODE.fullmatch(code) else ""
    failure = Refused if cause.status_code == 403 else UploadFailed
    return failure(f"the service's storage refused the file with status {cause.status_code}{said}")
