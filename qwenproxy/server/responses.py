"""JSON answers, and how an error becomes one."""

from __future__ import annotations

import math
from collections.abc import Mapping

from starlette.responses import Response

from qwenproxy.dialects.base import Json, json_text
from qwenproxy.errors import QwenProxyError


def json_response(body: Json, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(json_text(body).encode(), status, headers, media_type="application/json")


def error_response(error: QwenProxyError, body: Json, headers: Mapping[str, str] | None = None) -> Response:
    """`body` is what the dialect makes of `error`."""
    more = dict(headers or {})
    if error.ends_connection:
        more["Connection"] = "close"
    if error.retry_after_s is not None:
        more["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    return json_response(body, error.status, more)
