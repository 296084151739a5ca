"""What says that the proxy runs, and what it can serve."""

from __future__ import annotations

import html
from collections.abc import Sequence
from string import Template
from typing import Final

from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from qwenproxy import __version__
from qwenproxy.dialects.base import Json
from qwenproxy.errors import QwenProxyError
from qwenproxy.qwen.models import Model
from qwenproxy.server import anthropic_models
from qwenproxy.server.access import KeyRoute
from qwenproxy.server.admission import Admission
from qwenproxy.server.error_shapes import refusal, speaks_anthropic
from qwenproxy.server.relay import Gateway
from qwenproxy.server.responses import json_response

OWNER: Final = "qwen"
RETRY_S: Final = "1"
"""Seconds between two looks at `/ready`."""
PAGE_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
PAGE: Final = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>qwenproxy</title>
<style>body{font:16px/1.5 sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem}
pre{overflow:auto;padding:1rem;border:1px solid #888}</style>
</head>
<body>
<h1>qwenproxy $version is running</h1>
<p>$state</p>
<p>Base URL for OpenAI clients: <code>$base/v1</code> (also <code>$base/api</code> and
<code>$base/api/v1</code>)</p>
<pre>curl $base/v1/chat/completions -H 'Content-Type: application/json' \\
  -d '{"model": "qwen", "messages": [{"role": "user", "content": "Hello"}]}'</pre>
<p><a href="/v1/models">Models</a> · <a href="/health">Health</a> · <a href="/ready">Ready</a></p>
</body>
</html>
""")


class StatusRoutes:
    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    def routes(self) -> list[KeyRoute]:
        return [
            KeyRoute("/", self.page, needs="any key"),
            KeyRoute("/ping", self.ping, needs="any key"),
            KeyRoute("/health", self.health, needs="nothing"),
            KeyRoute("/ready", self.ready, needs="any key"),
        ]

    def models_routes(self, prefixes: Sequence[str]) -> list[KeyRoute]:
        """OpenAI's model routes under each prefix, Anthropic's with its header. An id may hold slashes."""
        return [
            route
            for prefix in prefixes
            for route in (
                KeyRoute(f"{prefix}/models", self.models, needs="any key"),
                KeyRoute(f"{prefix}/models/{{model_id:path}}", self.model, needs="any key"),
            )
        ]

    async def page(self, request: Request) -> Response:
        # The guard has let this Host pass: it is one that reaches us.
        base = f"http://{request.headers['host']}"
        reason = self._not_ready(request)
        state = "Ready to answer." if reason is None else f"Not ready to answer yet: {reason}."
        text = PAGE.substitute(version=__version__, base=html.escape(base), state=html.escape(state))
        return HTMLResponse(text, headers=PAGE_HEADERS)

    async def ping(self, request: Request) -> Response:
        return PlainTextResponse("pong")

    async def health(self, request: Request) -> Response:
        return json_response({"status": "ok", "version": __version__})

    async def ready(self, request: Request) -> Response:
        reason = self._not_ready(request)
        if reason is None:
            return json_response({"status": "ready"})
        return json_response({"status": "not ready", "reason": reason}, 503, {"Retry-After": RETRY_S})

    async def models(self, request: Request) -> Response:
        try:
            models = await _gateway(request).models()
            if speaks_anthropic(request.scope):
                return json_response(anthropic_models.page_of(models, request.query_params))
        except QwenProxyError as exc:
            return refusal(request.scope, exc)
        return json_response({"object": "list", "data": [_model(model) for model in models]})

    async def model(self, request: Request) -> Response:
        try:
            found = await _gateway(request).model(request.path_params["model_id"])
        except QwenProxyError as exc:
            return refusal(request.scope, exc)
        anthropic = speaks_anthropic(request.scope)
        return json_response(anthropic_models.told(found) if anthropic else _model(found))

    def _not_ready(self, request: Request) -> str | None:
        return "the proxy is stopping" if self._admission.draining else _gateway(request).readiness()


def _gateway(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


def _model(model: Model) -> Json:
    said: Json = {
        "id": model.id,
        "object": "model",
        "created": model.created_at,
        "owned_by": OWNER,
        "name": model.name,
    }
    if model.context_length:
        said["context_length"] = model.context_length
    if model.output_limit:
        said["max_output_tokens"] = model.output_limit
    return said
