"""Alibaba's signatures: V4 in a header, and a signed address (protocol §9.1–9.2)."""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qs, quote, urlencode

ALGORITHM = "OSS4-HMAC-SHA256"
STAMP = "%Y%m%dT%H%M%SZ"
_AUTHORIZATION = re.compile(
    rf"{ALGORITHM} Credential=(?P<id>[^/,]+)/(?P<date>\d{{8}})/(?P<region>[^/]*)/oss/aliyun_v4_request,\s*"
    r"(?:AdditionalHeaders=(?P<more>[^,]*),\s*)?Signature=(?P<signature>[0-9a-f]{64})"
)


@dataclass(frozen=True, slots=True)
class Authorization:
    access_key_id: str
    date: str
    region: str
    more_headers: tuple[str, ...]
    """Signed ones beside those that always are."""
    signature: str


@dataclass(frozen=True, slots=True)
class Signed:
    """What a signature is over."""

    method: str
    path: str
    """Decoded, with the bucket: `/{bucket}/{key}`."""
    query: str
    """As it came, still encoded."""
    headers: Mapping[str, str]
    """By lower-case name."""


def authorization(header: str) -> Authorization | None:
    found = _AUTHORIZATION.fullmatch(header)
    if found is None:
        return None
    more = tuple(name for name in (found["more"] or "").split(";") if name)
    return Authorization(found["id"], found["date"], found["region"], more, found["signature"])


def v4_signature(signed: Signed, secret: str, asked: Authorization) -> str:
    """The signature that the request must carry."""
    scope = f"{asked.date}/{asked.region}/oss/aliyun_v4_request"
    canonical = hashlib.sha256(_canonical(signed, asked.more_headers).encode()).hexdigest()
    text = "\n".join((ALGORITHM, signed.headers.get("x-oss-date", ""), scope, canonical))
    key = f"aliyun_v4{secret}".encode()
    for word in (asked.date, asked.region, "oss", "aliyun_v4_request"):
        key = hmac.digest(key, word.encode(), "sha256")
    return hmac.digest(key, text.encode(), "sha256").hex()


def _canonical(signed: Signed, more: tuple[str, ...]) -> str:
    pairs = sorted(pair.partition("=") for pair in signed.query.split("&") if pair)
    query = "&".join(f"{key}={value}" if value else key for key, _, value in pairs)
    names = sorted(name for name in signed.headers if _always(name) or name in more)
    headers = "".join(f"{name}:{signed.headers[name].strip()}\n" for name in names)
    payload = signed.headers.get("x-oss-content-sha256", "UNSIGNED-PAYLOAD")
    path = quote(signed.path, safe="/")
    return "\n".join((signed.method, path, query, headers, ";".join(sorted(more)), payload))


def _always(name: str) -> bool:
    return name.startswith("x-oss-") or name in ("content-type", "content-md5")


def signed_query(path: str, secret: str, life_s: float) -> str:
    """The query that opens `path` for so long."""
    stamp = time.strftime(STAMP, time.gmtime())
    expires = f"{life_s:g}"
    # The begin with its fraction, so that tests can ask for lives under a second.
    began = f"{time.time():.3f}"
    fields = {
        "x-oss-signature-version": ALGORITHM,
        "x-oss-date": stamp,
        "x-oss-began": began,
        "x-oss-expires": expires,
        "x-oss-signature": _of_path(path, began, expires, secret),
    }
    return urlencode(fields)


def refused_query(path: str, query: str, secret: str) -> str:
    """Why the query does not open `path`, as one of the storage's codes; "" when it does."""
    fields = {name: values[0] for name, values in parse_qs(query).items()}
    began, expires = fields.get("x-oss-began", ""), fields.get("x-oss-expires", "")
    signature = fields.get("x-oss-signature", "")
    if not hmac.compare_digest(signature, _of_path(path, began, expires, secret)):
        return "SignatureDoesNotMatch" if signature else "AccessDenied"
    return "AccessDenied" if time.time() > float(began) + float(expires) else ""


def _of_path(path: str, began: str, expires: str, secret: str) -> str:
    return hmac.digest(secret.encode(), f"GET\n{path}\n{began}\n{expires}".encode(), "sha256").hex()
