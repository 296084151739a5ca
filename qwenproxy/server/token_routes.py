"""How many tokens a request would be, without asking anybody: Anthropic's `count_tokens`.

What the gateway would send is counted, as it does for an answer whose usage the service does not tell. Files
are neither fetched nor uploaded for that, so they do not count.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response

from qwenproxy.chat import ChatRequest
from qwenproxy.dialects.base import Dialect
from qwenproxy.errors import QwenProxyError
from qwenproxy.server.access import KeyRoute
from qwenproxy.server.admission import INTERNAL, Admission
from qwenproxy.server.body import ClientGone
from qwenproxy.server.relay import Bounds, read_object
from qwenproxy.server.responses import error_response, json_response

log = logging.getLogger(__name__)


class Counter(Protocol):
    async def count_tokens(self, request: ChatRequest) -> int:
        """Of what the model would be told, without files. Raises: UnknownModel, UnsupportedParameter."""


class TokenRoutes:
    def __init__(self, dialect: Dialect, admission: Admission, bounds: Bounds) -> None:
        """`dialect` reads the requests, and speaks of errors."""
        self._dialect = dialect
        self._admission = admission
        self._bounds = bounds

    def routes(self, prefixes: Sequence[str]) -> list[KeyRoute]:
        return [
            KeyRoute(f"{prefix}{path}/count_tokens", self.count, methods=["POST"], needs="chat")
            for prefix in prefixes
            for path in self._dialect.paths
        ]

    async def count(self, request: Request) -> Response:
        counter: Counter = request.app.state.gateway
        try:
            with self._admission.enter():
                body = await read_object(request.scope, request.receive, self._bounds)
                asked = self._dialect.parse(body, request.path_params)
                tokens = await counter.count_tokens(asked)
        except ClientGone:
            return Response()
        except QwenProxyError as exc:
            return error_response(exc, self._dialect.error(exc))
        except Exception:
            log.exception("tokens could not be counted")
            error = QwenProxyError(INTERNAL)
            return error_response(error, self._dialect.error(error))
        return json_response({"input_tokens": tokens, "estimated": True})
