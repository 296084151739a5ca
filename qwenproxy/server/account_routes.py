"""How the accounts are, in the seed's shape, without costing a message. No token and no whole e-mail."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final, Protocol

from starlette.requests import Request
from starlette.responses import Response

from qwenproxy.accounts.pool import PoolView, SeatView
from qwenproxy.dialects.base import Json
from qwenproxy.dialects.openai_chat import envelope
from qwenproxy.errors import BadRequest, QwenProxyError
from qwenproxy.server.access import KeyRoute
from qwenproxy.server.admission import Admission
from qwenproxy.server.body import ClientGone
from qwenproxy.server.relay import Bounds, Guests, read_object
from qwenproxy.server.responses import error_response, json_response

TOKEN_CHARACTERS: Final = 4096
"""The service's tokens are some 200 characters (protocol §1.2)."""


class Checkup(Protocol):
    def view(self) -> PoolView:
        """The accounts as the running proxy knows them."""

    async def served_today(self) -> Mapping[str, int]:
        """Answers by account."""

    async def run(self) -> Mapping[str, str]:
        """Asks the service for free; what was found, by account."""


class AccountRoutes:
    def __init__(self, admission: Admission, bounds: Bounds) -> None:
        self._admission = admission
        self._bounds = bounds

    def routes(self, prefix: str) -> list[KeyRoute]:
        """The status, and the token check, which also stands at the root, as its seeds had it."""
        return [
            KeyRoute(path, endpoint, methods=[method], needs="accounts")
            for path, method, endpoint in (
                (f"{prefix}/status", "GET", self.status),
                (f"{prefix}/status", "POST", self.check),
                (f"{prefix}/token/check", "POST", self.check_token),
                ("/token/check", "POST", self.check_token),
            )
        ]

    async def status(self, request: Request) -> Response:
        return json_response(await self._told(request, {}))

    async def check(self, request: Request) -> Response:
        """The same after every account was asked about. A POST, for it changes what is known."""
        try:
            with self._admission.enter():
                found = await _checkup(request).run()
        except QwenProxyError as exc:
            return error_response(exc, envelope(exc))
        return json_response(await self._told(request, found))

    async def check_token(self, request: Request) -> Response:
        guests: Guests = request.app.state.guests
        try:
            with self._admission.enter():
                body = await read_object(request.scope, request.receive, self._bounds)
                live = await guests.token_lives(_token_in(body))
        except ClientGone:
            return Response()
        except QwenProxyError as exc:
            return error_response(exc, envelope(exc))
        return json_response({"live": live})

    async def _told(self, request: Request, found: Mapping[str, str]) -> Json:
        checkup = _checkup(request)
        now = datetime.now(UTC)
        view, served = checkup.view(), await checkup.served_today()
        accounts = [_account(seat, now, served, found) for seat in view.seats]
        ready = request.app.state.gateway.readiness()
        return {
            "authenticated": any(row["status"] != "INVALID" for row in accounts),
            "message": "ready" if ready is None else ready,
            "accounts": accounts,
            "queue": view.queue,
            "requests": self._admission.inside,
        }


def _account(seat: SeatView, now: datetime, served: Mapping[str, int], found: Mapping[str, str]) -> Json:
    account = seat.account
    told: Json = account.told(now) | {
        "email": account.masked_email,
        "inUse": seat.busy,
        "slots": seat.slots,
        "servedToday": served.get(account.id, 0),
    }
    return told | {"check": found[account.id]} if account.id in found else told


def _token_in(body: Json) -> str:
    """Raises: BadRequest."""
    token = body.get("token")
    if not isinstance(token, str) or not token.strip() or len(token) > TOKEN_CHARACTERS:
        raise BadRequest("token must be the token to check, as text", param="token")
    if not token.strip().isprintable() or not token.isascii():
        raise BadRequest("token holds characters that no token has", param="token")
    return token.strip()


def _checkup(request: Request) -> Checkup:
    checkup: Checkup = request.app.state.checkup
    return checkup
