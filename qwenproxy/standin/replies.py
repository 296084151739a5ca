"""The shapes of an answer: enveloped, bare, refused (protocol §0.2, §6)."""

from __future__ import annotations

import uuid
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import Receive, Scope, Send

ACTUAL_STATUS = "x-actual-status-code"
"""Carries the application's status while the wire says 200 (protocol §0.2)."""
EDGE = "standin.edge"
"""In the scope of a call that the application does not answer: no `x-actual-status-code` then."""
WAF_PAGE = (
    '<!doctypehtml><html><head><meta name="aliyun_waf_aa" content="stand-in">'
    "<title>Access Verification</title></head><body><h1>Access Verification</h1>"
    "<p>The stand-in plays the risk control's page.</p>" + "<!-- padding -->" * 900 + "</body></html>"
)
"""About as long as the real one, 16 kB (protocol §6.3)."""


def request_id(request: Request) -> str:
    return request.headers.get("x-request-id") or str(uuid.uuid4())


def enveloped(request: Request, data: Any) -> JSONResponse:
    return JSONResponse({"success": True, "request_id": request_id(request), "data": data})


def refused(request: Request, code: str, details: Any, actual: int = 400, **more: Any) -> JSONResponse:
    return JSONResponse(
        {
            "success": False,
            "request_id": request_id(request),
            "data": {"code": code, "details": details, **more},
        },
        headers={ACTUAL_STATUS: str(actual)},
    )


def unauthorized(request: Request, details: str = "401 Unauthorized") -> JSONResponse:
    return refused(request, "Unauthorized", details, 401)


def busy(request: Request) -> JSONResponse:
    return refused(request, "Bad_Request", "The chat is in progress!")


class EdgeJSON(JSONResponse):
    """An answer of the gateway before the application: it has no `x-actual-status-code`."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[EDGE] = True
        await super().__call__(scope, receive, send)


class EdgeHTML(HTMLResponse):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[EDGE] = True
        await super().__call__(scope, receive, send)


def punished(request: Request, *, captcha: bool = True, header: bool = False) -> Response:
    """Risk control as JSON (protocol §6.3.1); without the captcha it is only "busy, try later"."""
    address = f"{request.url.scheme}://{request.url.netloc}/{request.url.path}"
    url = f"{address}/_____tmd_____/punish?x5step=2&action=captcha" if captcha else ""
    answer = EdgeJSON(
        {
            "ret": ["FAIL_SYS_USER_VALIDATE", "RGV587_ERROR::SM::busy, please retry later"],
            "data": {"url": url} if captcha else {},
        },
        media_type="application/json;charset=utf-8",
    )
    if header:
        answer.headers["bxpunish"] = "1"
    return answer


def waf_page(status: int = 200) -> Response:
    return EdgeHTML(WAF_PAGE, status_code=status)


def gateway_page(status: int, title: str) -> Response:
    return EdgeHTML(
        f"<html>\r\n<head><title>{status} {title}</title></head>\r\n<body><center><h1>{status} {title}</h1>"
        "</center><hr><center>nginx</center></body>\r\n</html>",
        status_code=status,
    )
