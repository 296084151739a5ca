"""Addresses in requests and answers that are ours or the service's, told by host and path.

Ours stand for a file or a picture whatever host and query they carry: a client may reach us by any name. The
service's are signed for 300 s only (protocol §9.1), so a path says which file it is, and the query nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

FILE_ID: Final = r"file-[0-9a-f]{24}"
MEDIA_ID: Final = r"[0-9a-f]{32}"
_OWN_FILE: Final = re.compile(rf"(?:/api)?(?:/v[12])?/files/({FILE_ID})(?:/content)?/?")
_OWN_MEDIA: Final = re.compile(rf"/api(?:/v[12])?/media/({MEDIA_ID})/?")
_STORED: Final = re.compile(r"[^/]+/[0-9a-f-]{36}_[^/]+")
SERVICE_DOMAINS: Final = ("qwen.ai", "qwenlm.ai")
STORAGE: Final = re.compile(r"qwen-webui-[a-z0-9-]+\.(?:[a-z0-9-]+\.)*aliyuncs\.com")
"""The buckets of protocol §9.1, under any of the storage's endpoints."""


def file_address(file_id: str) -> str:
    """Where a stored file is read."""
    return f"/v1/files/{file_id}/content"


def media_address(media_id: str) -> str:
    """Where something that the service made is read."""
    return f"/api/media/{media_id}"


def own_file(url: str) -> str:
    """The id of the stored file that `url` names; "" when it names none."""
    return _named(_OWN_FILE, url)


def own_media(url: str) -> str:
    """The id of the picture or video that `url` names; "" when it names none."""
    return _named(_OWN_MEDIA, url)


class ServiceHosts:
    """The hosts of the service and of its storage."""

    def __init__(self, origins: Iterable[str] = ()) -> None:
        """`origins`: further ones, such as `upstream` and `storage_endpoint` of the settings."""
        self._origins = frozenset(_origin(_split(origin)) for origin in origins if origin)

    def own(self, url: str) -> bool:
        """Whether the service itself answers there. Only https, but for the origins given."""
        split = _split(url)
        if _origin(split) in self._origins:
            return True
        host = (split.hostname or "").lower()
        plain = split.scheme == "https" and _port(split) in (None, 443) and not split.username
        known = any(host == domain or host.endswith("." + domain) for domain in SERVICE_DOMAINS)
        return plain and (known or STORAGE.fullmatch(host) is not None)

    def file_path(self, url: str) -> str:
        """`<user id>/<file id>_<name>` of an uploaded file (protocol §9.1); "" when `url` names none."""
        if not self.own(url):
            return ""
        found = _STORED.search(unquote(_split(url).path))
        return found[0] if found else ""


def _named(form: re.Pattern[str], url: str) -> str:
    split = _split(url)
    if split.scheme not in ("", "http", "https"):
        return ""
    found = form.fullmatch(split.path)
    return found[1] if found else ""


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:
        return SplitResult("", "", "", "", "")


def _port(split: SplitResult) -> int | None:
    try:
        return split.port
    except ValueError:
        return -1


def _origin(split: SplitResult) -> tuple[str, str, int]:
    default = 443 if split.scheme == "https" else 80
    port = _port(split)
    return (split.scheme, (split.hostname or "").lower(), default if port is None else port)
