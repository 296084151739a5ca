"""Looks at every request before its body is read: whose name it uses, which page sent it, what it carries.

A browser on this computer will send requests here for any web page it has open. What tells them apart:

| sign | rule |
|---|---|
| `Host` | exactly one: a loopback name with our port, or one of `ALLOWED_HOSTS`; others are rebound |
| `Origin` | absent, our own page's, or one of `ALLOWED_ORIGINS`, letter for letter; `null` is nobody |
| `Sec-Fetch-Site` | `cross-site` and `same-site` only with an allowed `Origin`, or to follow a link, |
| | or to show a picture or video that an answer told the address of: its id is a secret |
| `Content-Type` | JSON, which a page cannot send across sites without asking first (a preflight) |
| | on the paths that take files also a form; a page can send one, and then `Origin` gives it away |

Where other computers may call, which takes API keys, any IP address with our port will do as a `Host`: no
address can be rebound. Apart from that, trust is never derived from the `Host` header: under rebinding it
carries the attacker's name, like `Origin`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Mapping
from typing import Final

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwenproxy.addresses import own_media
from qwenproxy.errors import BadRequest, OriginRefused, QwenProxyError, TooLarge, WrongMediaType
from qwenproxy.server.error_shapes import refusal, speaks_anthropic, with_request_id
from qwenproxy.settings import Settings

LOOPBACK_NAMES: Final = frozenset({"127.0.0.1", "localhost", "[::1]"})
CONTAINER_NAME: Final = "host.docker.internal"
"""How a container calls the computer it runs on; not an origin of ours, other machines may answer to it."""
HEADERS_BYTES: Final = 65_536
HEADERS_COUNT: Final = 200
BODY_METHODS: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})
BODY_TYPE: Final = "application/json"
HARMLESS_SITES: Final = frozenset({"none", "same-origin"})
BAD_PATH: Final = re.compile(r"[\x00-\x1f\x7f\\]|(?:^|/)\.{1,2}(?:/|$)")
PREFLIGHT_HEADERS: Final = re.compile(r"[\w\-, ]{0,2000}", re.ASCII)
FORM_TYPE: Final = "multipart/form-data"
VERSIONS: Final = frozenset({"v1", "v2"})
HTTP_PORT: Final = 80
PREFLIGHT_S: Final = 600
"""How long a browser may remember a preflight's answer."""


def is_loopback(host: str) -> bool:
    """Whether only this computer reaches an address that is written so."""
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Guard:
    def __init__(self, app: ASGIApp, settings: Settings, forms: Collection[str] = ()) -> None:
        """`forms`: the paths that take forms with files."""
        self._app = app
        self._forms = frozenset(forms)
        self._public = not is_loopback(settings.host)
        own = f"[{settings.host}]" if ":" in settings.host else settings.host
        self._own_names = LOOPBACK_NAMES | {own.lower()}
        self._listed_hosts = frozenset(host.lower() for host in settings.allowed_hosts)
        self._listed_origins = frozenset(settings.allowed_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope = {**scope, "path": _served(scope["path"])}
        listed = self._listed_origin(scope)
        if listed is not None:
            send = _adding(send, {"Access-Control-Allow-Origin": listed, "Vary": "Origin"})
        if speaks_anthropic(scope):
            send = with_request_id(send)
        try:
            self._check(scope)
        except QwenProxyError as exc:
            await refusal(scope, exc)(scope, receive, send)
            return
        if listed is not None and _is_preflight(scope):
            await _preflight(scope)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers = scope["headers"]
        if len(headers) > HEADERS_COUNT or sum(len(n) + len(v) for n, v in headers) > HEADERS_BYTES:
            raise TooLarge("the request's headers are too large")
        if BAD_PATH.search(scope["path"]):
            raise BadRequest("the path cannot be used")
        self._check_host(scope)
        self._check_page(scope)
        _check_type(scope, {BODY_TYPE, FORM_TYPE} if scope["path"] in self._forms else {BODY_TYPE})

    def _check_host(self, scope: Scope) -> None:
        hosts = _values(scope, b"host")
        if len(hosts) != 1 or not hosts[0]:
            raise BadRequest("exactly one Host header is needed")
        host = hosts[0].lower()
        name = host.removesuffix(f":{_port(scope)}")
        names = self._own_names | self._listed_hosts | {CONTAINER_NAME}
        with_port = name != host or _port(scope) == HTTP_PORT
        if host in self._listed_hosts or (with_port and (name in names or self._is_public_address(name))):
            return
        raise OriginRefused(
            "this Host name may not be used here; QWENPROXY_ALLOWED_HOSTS lists the names that may"
        )

    def _check_page(self, scope: Scope) -> None:
        origins = _values(scope, b"origin")
        port = "" if _port(scope) == HTTP_PORT else f":{_port(scope)}"
        own = {f"http://{name}{port}" for name in self._own_names}
        host = _values(scope, b"host")[0].lower()
        if self._is_public_address(host.removesuffix(f":{_port(scope)}")):
            own.add(f"http://{host}")
        known = origins[:1] == origins and set(origins) <= own | self._listed_origins
        elsewhere = not set(_values(scope, b"sec-fetch-site")) <= HARMLESS_SITES
        if known and (origins or not elsewhere or _follows_link(scope) or _shows_media(scope)):
            return
        raise OriginRefused(
            "web pages of other origins may not call; QWENPROXY_ALLOWED_ORIGINS lists those that may"
        )

    def _is_public_address(self, name: str) -> bool:
        return self._public and _is_address(name)

    def _listed_origin(self, scope: Scope) -> str | None:
        origins = _values(scope, b"origin")
        return origins[0] if len(origins) == 1 and origins[0] in self._listed_origins else None


def _is_address(name: str) -> bool:
    """Whether it is an IP address as browsers write it; written otherwise it may be a name to others."""
    try:
        if name.startswith("["):
            return name == f"[{ipaddress.IPv6Address(name[1:-1]).compressed}]" and "%" not in name
        return name == str(ipaddress.IPv4Address(name))
    except ValueError:
        return False


def _served(path: str) -> str:
    """The path as the routes know it: slashes single and none at the end, and below `/api` no version.

    The seed dropped a version from anywhere in a path (peers.md §2.1), and its clients rely on it.
    """
    parts = [part for part in path.split("/") if part]
    if parts[:1] == ["api"]:
        parts = [part for part in parts if part not in VERSIONS]
    return "/" + "/".join(parts)


def _check_type(scope: Scope, taken: Collection[str]) -> None:
    lengths = _values(scope, b"content-length")
    has_body = bool(_values(scope, b"transfer-encoding")) or any(length != "0" for length in lengths)
    if scope["method"] not in BODY_METHODS or not has_body:
        return
    types = [value.partition(";")[0].strip().lower() for value in _values(scope, b"content-type")]
    if len(types) == 1 and types[0] in taken:
        return
    if FORM_TYPE in taken:
        raise WrongMediaType(f"the body must be a form with a file ({FORM_TYPE}) or JSON ({BODY_TYPE})")
    raise WrongMediaType(f"the body must be JSON, sent with the header Content-Type: {BODY_TYPE}")


def _follows_link(scope: Scope) -> bool:
    return scope["method"] in {"GET", "HEAD"} and _values(scope, b"sec-fetch-mode") == ["navigate"]


def _shows_media(scope: Scope) -> bool:
    """Whether a page shows something that the service made, as chat programs in a browser do."""
    reads = scope["method"] in {"GET", "HEAD"} and _values(scope, b"sec-fetch-mode") == ["no-cors"]
    return reads and bool(own_media(scope["path"]))


def _is_preflight(scope: Scope) -> bool:
    return scope["method"] == "OPTIONS" and bool(_values(scope, b"access-control-request-method"))


def _preflight(scope: Scope) -> Response:
    asked = ", ".join(_values(scope, b"access-control-request-headers"))
    headers = {
        "Access-Control-Allow-Methods": "GET, POST, PUT, PATCH, DELETE",
        "Access-Control-Allow-Headers": asked if PREFLIGHT_HEADERS.fullmatch(asked) else "",
        "Access-Control-Max-Age": str(PREFLIGHT_S),
    }
    if _values(scope, b"access-control-request-private-network") == ["true"]:
        headers["Access-Control-Allow-Private-Network"] = "true"
    return Response(status_code=204, headers=headers)


def _adding(send: Send, headers: Mapping[str, str]) -> Send:
    more = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    more.append((b"access-control-expose-headers", b"Retry-After"))

    async def send_with_more(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *more]}
        await send(message)

    return send_with_more


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1").strip() for key, value in scope["headers"] if key == name]


def _port(scope: Scope) -> int:
    port: int = scope["server"][1]
    return port
