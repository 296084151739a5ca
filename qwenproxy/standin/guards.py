"""The checks that calls of the site's share, and the faults that wait for them (protocol §2, §6)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response

from .faults import DIALOG, REFUSALS, STALL, challenged, stalled
from .marks import Switch
from .memory import Records, Session
from .replies import EdgeJSON, punished, refused, unauthorized, waf_page
from .signins import Handler, SignIns

NOTE = "standin.note"
"""Where a request's record stands in its scope."""
Guarded = Callable[[Request, Session], Awaitable[Response]]
Striking = Callable[[Request, Session, list[Switch]], Awaitable[Response]]


class Guards:
    def __init__(self, records: Records, sign_ins: SignIns) -> None:
        self._records = records
        self._sign_ins = sign_ins

    def struck(self, kind: str, handler: Striking) -> Handler:
        """The handler behind the checks, which gets the faults that are its own business."""

        async def striking(request: Request) -> Response:
            faults: list[Switch] = []
            return await self.guarded(kind, lambda again, who: handler(again, who, faults), faults)(request)

        return striking

    def guarded(self, kind: str, handler: Guarded, struck: list[Switch] | None = None) -> Handler:
        """The handler behind the checks that all writes share, and behind the queued faults.

        Those that are the handler's own business are put into `struck`.
        """

        async def guarded(request: Request) -> Response:
            session = self.session_or_refusal(request)
            if isinstance(session, Response):
                return session
            for switch in self.queued(request, kind, session.account):
                if switch.name == DIALOG:
                    return challenged(request, session)
                if switch.name in REFUSALS:
                    return REFUSALS[switch.name](request, switch)
                if switch.name == STALL:
                    await stalled(request, switch)
                if struck is not None:
                    struck.append(switch)
            return await handler(request, session)

        return guarded

    def faulted(self, kind: str, handler: Handler) -> Handler:
        async def faulted(request: Request) -> Response:
            session = self._sign_ins.known(request) or self._sign_ins.session(request)
            for switch in self.queued(request, kind, session.account if session else ""):
                if switch.name in REFUSALS:
                    return REFUSALS[switch.name](request, switch)
                if switch.name == STALL:
                    await stalled(request, switch)
            return await handler(request)

        return faulted

    def session_or_refusal(self, request: Request) -> Session | Response:
        """Headers, then the credential, then whether the page is warm: the order the service seems to use."""
        refusal = self._header_refusal(request)
        if refusal is not None:
            return refusal
        session = self._sign_ins.credential(request)
        if session is None:
            return unauthorized(request)
        writes = ("/api/v2/chats/new", "/api/v2/chat/completions")
        if request.method == "POST" and request.url.path in writes:
            if session.challenged:
                note(request, "challenged")
                return punished(request, header=True)
            if self._records.options.cold_check and not session.booted:
                note(request, "cold")
                return punished(request)
        return session

    def _header_refusal(self, request: Request) -> Response | None:
        """What a missing header of protocol §2 costs; reading calls are not checked."""
        if not self._records.options.check_headers or request.method == "GET":
            return None
        headers = request.headers
        if int(headers.get("content-length") or 0) > self._records.options.max_body_bytes:
            return punished(request)
        if not headers.get("x-request-id"):
            return waf_page()
        if not headers.get("source"):
            return EdgeJSON({"ret": ["FAIL_SYS_USER_VALIDATE::no source"], "data": {}})
        if not headers.get("version"):
            return refused(request, "Bad_Request", "Internal error, please contact the service provider.")
        if request.method == "POST" and not headers.get("content-type", "").startswith("application/json"):
            details = ["Field '': Input should be a valid dictionary"]
            return refused(request, "RequestValidationError", details)
        return None

    def queued(self, request: Request, kind: str, account: str) -> list[Switch]:
        """The faults whose turn has come for this call; each is used up by one, and noted."""
        struck = []
        for fault in list(self._records.faults):
            if fault["on"] not in (kind, "any") or fault["account"] not in (None, account):
                continue
            struck.append(Switch(fault["name"], fault["params"]))
            note(request, fault["name"])
            fault["times"] -= 1
            if fault["times"] <= 0:
                self._records.faults.remove(fault)
        return struck


def note(request: Request, name: str) -> None:
    """Notes what a request met: a queued fault, or a rule of the service's."""
    request.scope[NOTE]["struck"].append(name)
