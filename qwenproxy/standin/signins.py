"""Sign-in, renewal and who-am-I, in both eras (protocol §1.2–1.3)."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import jwt
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from .memory import SESSION_S, Access, Records, Session
from .replies import enveloped, refused, unauthorized

REFUSED_PASSWORD = "wrong"  # noqa: S105 - the one password that the stand-in does not take
Handler = Callable[[Request], Awaitable[Response]]
Fallible = Callable[[str, Handler], Handler]
"""Puts a handler behind the faults queued for calls of that kind."""


class SignIns:
    def __init__(self, records: Records) -> None:
        self._records = records
        self._secret = secrets.token_hex(32)

    def site_routes(self, fallible: Fallible) -> list[BaseRoute]:
        routes: list[BaseRoute] = [Route("/api/v1/auths/", fallible("auths", self.who_am_i_flat))]
        if self._records.options.era == "B":
            routes += [
                Route("/api/v2/auths/signin", fallible("signin", self.sign_in), methods=["POST"]),
                Route("/api/v2/auths/signout", self.sign_out),
                Route("/api/v2/auths/", fallible("auths", self.who_am_i)),
            ]
        return routes

    def auth_routes(self, fallible: Fallible) -> list[BaseRoute]:
        if self._records.options.era == "B":
            return []
        return [
            Route("/api/v2/auths/signin", fallible("signin", self.sign_in), methods=["POST"]),
            Route("/api/v2/auths/refresh", fallible("refresh", self.refresh)),
            Route("/api/v2/auths/signout", self.sign_out),
            Route("/api/v2/auths/", fallible("auths", self.who_am_i)),
        ]

    def bearer(self, request: Request) -> str:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        return token if scheme.lower() == "bearer" else ""

    def known(self, request: Request) -> Session | None:
        """Whose request this is, expired or not: for the records only."""
        access = self._records.tokens.get(self.bearer(request) or request.cookies.get("token", ""))
        return access.session if access else None

    def credential(self, request: Request) -> Session | None:
        """The sign-in that a live token proves: a Bearer, or in era B the cookie (protocol §2)."""
        token = self.bearer(request)
        if not token and self._records.options.era == "B":
            token = request.cookies.get("token", "")
        access = self._records.tokens.get(token)
        if access is None or access.expired or access.expires_at <= time.time() or not access.session.alive:
            return None
        return access.session

    def session(self, request: Request) -> Session | None:
        """The sign-in that the session cookie proves."""
        session = self._records.sessions.get(request.cookies.get(self.cookie_name, ""))
        return session if session and session.alive else None

    @property
    def cookie_name(self) -> str:
        """The cookie that carries the session; sources disagree about era C (protocol Appendix B)."""
        return "token" if self._records.options.era == "B" else "refresh_token"

    def open_session(self, account: str) -> tuple[str, Session]:
        """A new sign-in and its token: the session's own in era B, a short access token in era C."""
        session = Session(account, self._long_token(account))
        self._records.sessions[session.cookie] = session
        self._records.counters(account)
        if self._records.options.era == "C":
            return self._access_token(session), session
        self._records.tokens[session.cookie] = Access(session, time.time() + SESSION_S)
        return session.cookie, session

    def user(self, account: str, token: str) -> dict[str, Any]:
        rights = {"file_upload": True, "delete": True, "edit": True, "temporary": True}
        return {
            "id": self._records.user_id(account),
            "email": account,
            "name": account.partition("@")[0].title(),
            "role": "pending" if self._records.pends(account) else "user",
            "profile_image_url": "/static/user.png",
            "token": token,
            "token_type": "Bearer",
            "expires_at": int(time.time()) + SESSION_S,
            "permissions": {
                "workspace": dict.fromkeys(("models", "knowledge", "prompts", "tools"), False),
                "chat": rights,
            },
            "tier": "free",
        }

    async def sign_in(self, request: Request) -> Response:
        if not request.headers.get("version") or self._wrong_origin(request):
            return refused(request, "Bad_Request", "Invalid request header")
        try:
            form = json.loads(await request.body())
            email, password = str(form["email"]).strip(), str(form["password"])
        except (ValueError, KeyError, TypeError):
            return refused(request, "RequestValidationError", "Field 'email': Field required")
        if (
            len(password) != 64
            or password == hashlib.sha256(REFUSED_PASSWORD.encode()).hexdigest()
            or not email
        ):
            return refused(request, "INVALID_CRED", "The email or password is incorrect.")
        if self._records.pends(email) and self._records.options.pending == "refused":
            return refused(request, "ACCOUNT_PENDING", "Your account is not activated.", account_info={})
        return self._signed_in(request, email)

    async def refresh(self, request: Request) -> Response:
        session = self.session(request)
        if session is None or self._wrong_origin(request):
            return unauthorized(request)
        if self._records.options.rotate_refresh:
            self._rotate(session)
        tokens = {"access_token": self._access_token(session), "refresh_token": session.cookie}
        answer = enveloped(request, tokens)
        if self._records.options.rotate_refresh:
            self._set_cookie(request, answer, session)
        return answer

    async def who_am_i(self, request: Request) -> Response:
        session = self.credential(request)
        if session is None:
            return unauthorized(request)
        return enveloped(request, self.user(session.account, self._current(request, session)))

    async def who_am_i_flat(self, request: Request) -> Response:
        session = self.credential(request)
        if session is None:
            return JSONResponse({"detail": "401 Unauthorized"}, status_code=401)
        return JSONResponse(self.user(session.account, self._current(request, session)))

    async def sign_out(self, request: Request) -> Response:
        session = self.credential(request) or self.session(request)
        if session is not None:
            session.alive = False
        answer = enveloped(request, {"status": True})
        for name in ("token", "refresh_token"):
            answer.delete_cookie(name)
        return answer

    def _wrong_origin(self, request: Request) -> bool:
        return self._records.options.era == "C" and not request.headers.get("x-request-origin")

    def _current(self, request: Request, session: Session) -> str:
        return self.bearer(request) or session.cookie

    def _signed_in(self, request: Request, email: str) -> Response:
        token, session = self.open_session(email)
        user = self.user(email, token)
        era_c = self._records.options.era == "C"
        if era_c:
            user = {key: user[key] for key in ("id", "email", "name", "role")} | {"access_token": token}
        answer = enveloped(request, user)
        self._set_cookie(request, answer, session)
        if email == self._records.person:
            self._records.played += 1
        return answer

    def _set_cookie(self, request: Request, answer: Response, session: Session) -> None:
        answer.set_cookie(
            self.cookie_name,
            session.cookie,
            max_age=SESSION_S,
            httponly=self._records.options.era == "C",
            secure=request.url.scheme == "https",
            samesite="lax",
        )

    def _rotate(self, session: Session) -> None:
        del self._records.sessions[session.cookie]
        session.cookie = self._long_token(session.account)
        self._records.sessions[session.cookie] = session

    def _access_token(self, session: Session) -> str:
        now, life_s = time.time(), self._records.options.access_token_s
        claims = {
            "id": self._records.user_id(session.account),
            "last_password_change": 1_750_000_000,
            "type": "access_token",
            "iat": int(now),
            "exp": int(now + life_s),
            # Not among the recorded claims: two tokens of one second must differ.
            "jti": str(uuid.uuid4()),
        }
        token = jwt.encode(claims, self._secret, algorithm="HS256", headers={"kid": "legacy"})
        self._records.tokens[token] = Access(session, now + life_s)
        return token

    def _long_token(self, account: str) -> str:
        claims = {
            "id": self._records.user_id(account),
            "last_password_change": 1_750_000_000,
            "exp": int(time.time()) + SESSION_S,
            "jti": str(uuid.uuid4()),
        }
        return jwt.encode(claims, self._secret, algorithm="HS256")
