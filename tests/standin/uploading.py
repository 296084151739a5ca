"""A visitor's uploads: the ticket, the storage by Alibaba's own SDK, the reading of documents."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import alibabacloud_oss_v2 as oss  # type: ignore[import-untyped]

from tests.serve import until
from tests.standin.visitor import Visitor

TYPES = {"image": "image/png", "video": "video/mp4", "audio": "audio/mpeg"}


@dataclass(frozen=True)
class Uploaded:
    """A file in the account's storage."""

    id: str
    url: str
    name: str
    size: int


def ticket(
    visitor: Visitor, name: str = "a.txt", size: object = "3", kind: object = "file"
) -> dict[str, Any]:
    body = {"filename": name, "filesize": size, "filetype": kind}
    answer: dict[str, Any] = visitor.call("POST", "/api/v2/files/getstsToken", body).json()["data"]
    return answer


def storage(visitor: Visitor, sts: Mapping[str, Any], **changes: Any) -> oss.Client:
    """The SDK, told what the ticket says but for the endpoint, which is the stand-in's own."""
    config = oss.config.load_default()
    token = changes.pop("token", sts["security_token"])
    secret = changes.pop("secret", sts["access_key_secret"])
    key_id = changes.pop("key_id", sts["access_key_id"])
    config.credentials_provider = oss.credentials.StaticCredentialsProvider(key_id, secret, token)
    config.region = changes.pop("region", sts["region"].removeprefix("oss-"))
    config.endpoint = visitor.standin.site
    config.retry_max_attempts = changes.pop("attempts", 1)
    config.additional_headers = changes.pop("additional_headers", [])
    config.readwrite_timeout = changes.pop("timeout_s", 10)
    return oss.Client(config)


def put(visitor: Visitor, sts: Mapping[str, Any], body: bytes, *, key: str = "", **changes: Any) -> None:
    request = oss.PutObjectRequest(sts["bucketname"], key or sts["file_path"], body=body)
    request.content_type = "text/plain"
    storage(visitor, sts, **changes).put_object(request)


def uploaded(visitor: Visitor, body: bytes, name: str, kind: str = "file") -> Uploaded:
    """The whole way; a document is read too."""
    sts = ticket(visitor, name, str(len(body)), kind)
    put(visitor, sts, body)
    if kind == "file":
        parse(visitor, sts["file_id"])
    return Uploaded(sts["file_id"], sts["file_url"], name, len(body))


def parse(visitor: Visitor, file_id: str, wanted: str = "success") -> dict[str, Any]:
    """Has a document read, and gives the last word on it."""
    assert visitor.call("POST", "/api/v2/files/parse", {"file_id": file_id}).json()["success"]
    until(lambda: status(visitor, file_id)["status"] == wanted)
    return status(visitor, file_id)


def status(visitor: Visitor, file_id: str) -> dict[str, Any]:
    answer = visitor.call("POST", "/api/v2/files/parse/status", {"file_id_list": [file_id]}).json()
    row: dict[str, Any] = answer["data"][0]
    return row


def file_object(file: Uploaded, kind: str = "document", **changes: Any) -> dict[str, Any]:
    """What a message says of it (protocol §9.4), as short as is known to work."""
    shown = {"vision": "image", "video": "video", "audio": "audio"}.get(kind, "file")
    return {
        "type": shown,
        "file_type": TYPES.get(shown, "text/plain"),
        "showType": shown,
        "file_class": kind,
        "id": file.id,
        "url": file.url,
        "name": file.name,
        "size": file.size,
        "status": "uploaded",
        "itemId": str(uuid.uuid4()),
        **changes,
    }
