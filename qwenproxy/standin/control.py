"""Switches and counters for tests and demo, under `/__standin__/`: no part of the service."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from typing import Any

from anyio.to_thread import run_sync
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from .faults import NAMES
from .memory import Counters, Options, Records, Session, Turn
from .objects import Objects
from .signins import SignIns
from .talks import read_object
from .uploads import Uploads

FIXED_OPTIONS = ("era",)
"""What the routes are built from cannot change while it runs."""


class Control:
    def __init__(self, records: Records, sign_ins: SignIns, objects: Objects, uploads: Uploads) -> None:
        self._records = records
        self._sign_ins = sign_ins
        self._objects = objects
        self._uploads = uploads

    def routes(self) -> list[BaseRoute]:
        posts = {
            "faults": self.add_fault,
            "reset": self.reset,
            "expire": self.expire,
            "revoke": self.revoke,
            "solve": self.solve,
            "challenge": self.ask_for_a_human,
            "activate": self.activate,
            "options": self.set_options,
            "token": self.token,
            "break": self.break_streams,
        }
        return [
            Route("/__standin__/state", self.state),
            Route("/__standin__/received", self.received),
            Route("/__standin__/turns", self.turns),
            Route("/__standin__/objects", self.objects),
            Route("/__standin__/challenge", self.challenge),
            *(Route(f"/__standin__/{name}", call, methods=["POST"]) for name, call in posts.items()),
        ]

    async def state(self, request: Request) -> Response:
        """Counters per account and in all, chats per account, sign-ins, faults still queued."""
        total = Counters()
        for counters in self._records.accounts.values():
            for item in fields(Counters):
                setattr(total, item.name, getattr(total, item.name) + getattr(counters, item.name))
        chats: dict[str, list[str]] = {}
        for chat in self._records.chats.values():
            chats.setdefault(chat.account, []).append(chat.id)
        return JSONResponse(
            {
                **asdict(total),
                "accounts": {name: asdict(each) for name, each in self._records.accounts.items()},
                "chats": chats,
                "sessions": [self._told(session) for session in self._records.sessions.values()],
                "faults": self._records.faults,
                "options": asdict(self._records.options),
            }
        )

    async def received(self, request: Request) -> Response:
        return JSONResponse(list(self._records.received))

    async def turns(self, request: Request) -> Response:
        """Every turn that was asked since the last reset, oldest first, also of deleted chats."""
        return JSONResponse([_turn(turn) for turn in self._records.asked])

    async def objects(self, request: Request) -> Response:
        """Every object of the storage, oldest first."""
        return JSONResponse(await run_sync(self._uploads.objects))

    async def challenge(self, request: Request) -> Response:
        """Whether the asking page's sign-in still has to be verified."""
        session = self._sign_ins.session(request)
        return JSONResponse({"challenged": bool(session and session.challenged)})

    async def add_fault(self, request: Request) -> Response:
        """`{"name", "times"?, "account"?, "on"?, …parameters}`; an unknown name is a 400."""
        asked = await read_object(request) or {}
        name = asked.pop("name", None)
        if name not in NAMES:
            return JSONResponse({"error": f"unknown fault {name!r}", "known": sorted(NAMES)}, status_code=400)
        fault = {
            "name": name,
            "times": int(asked.pop("times", 1)),
            "account": asked.pop("account", None),
            "on": asked.pop("on", "completions"),
            "params": asked,
        }
        self._records.faults.append(fault)
        return JSONResponse({"queued": len(self._records.faults)})

    async def reset(self, request: Request) -> Response:
        """Back to the start: options, chats, counters, faults; sign-ins stay unless `{"sessions": true}`."""
        asked = await read_object(request) or {}
        self._records.forget(sessions=bool(asked.get("sessions")))
        self._objects.forget()
        return JSONResponse({})

    async def expire(self, request: Request) -> Response:
        """Every access token given out so far is refused from now on; `{"account"}` narrows it."""
        asked = await read_object(request) or {}
        for access in self._records.tokens.values():
            if asked.get("account") in (None, access.session.account):
                access.expired = True
        return JSONResponse({})

    async def revoke(self, request: Request) -> Response:
        """The account's sign-ins are gone: its tokens are refused and cannot be renewed."""
        asked = await read_object(request) or {}
        for session in self._records.sessions.values():
            if asked.get("account") in (None, session.account):
                session.alive = False
        return JSONResponse({})

    async def solve(self, request: Request) -> Response:
        """Somebody has solved the verification of `{"account"}`, or of everybody."""
        asked = await read_object(request) or {}
        for session in self._records.sessions.values():
            if asked.get("account") in (None, session.account):
                session.challenged = False
        return JSONResponse({})

    async def ask_for_a_human(self, request: Request) -> Response:
        """From now on a verification stands in the pages of `{"account"}`, or of everybody."""
        asked = await read_object(request) or {}
        for session in self._records.sessions.values():
            if asked.get("account") in (None, session.account):
                session.challenged = True
        return JSONResponse({})

    async def activate(self, request: Request) -> Response:
        """Somebody has opened the link in the mail to `{"account"}`."""
        asked = await read_object(request) or {}
        self._records.activated.add(str(asked.get("account")))
        return JSONResponse({})

    async def set_options(self, request: Request) -> Response:
        asked = await read_object(request) or {}
        known = {item.name for item in fields(Options)} - set(FIXED_OPTIONS)
        unknown = sorted(set(asked) - known)
        if unknown:
            return JSONResponse(
                {"error": f"unknown options {unknown}", "known": sorted(known)}, status_code=400
            )
        if "people" in asked:
            asked["people"] = tuple(asked["people"])
            self._records.played = 0
        self._records.options = replace(self._records.options, **asked)
        return JSONResponse(asdict(self._records.options))

    async def token(self, request: Request) -> Response:
        """Signs `{"account"}` in without the page: the token, and the cookie that goes with it."""
        asked = await read_object(request) or {}
        token, session = self._sign_ins.open_session(str(asked.get("account")))
        cookie = {"name": self._sign_ins.cookie_name, "value": session.cookie}
        return JSONResponse({"token": token, "cookie": cookie})

    async def break_streams(self, request: Request) -> Response:
        """Closes every open answer abruptly."""
        for turn in self._records.streams.values():
            turn.interrupted.set()
        return JSONResponse({"broken": len(self._records.streams)})

    def _told(self, session: Session) -> dict[str, Any]:
        return {
            "account": session.account,
            "alive": session.alive,
            "booted": session.booted,
            "challenged": session.challenged,
        }


def _turn(turn: Turn) -> dict[str, Any]:
    return {
        "account": turn.chat.account,
        "chat": turn.chat.id,
        "parent": turn.parent_id,
        "response": turn.response_id,
        "user": turn.user_id,
        "content": turn.message.get("content"),
        "prompt": turn.prompt,
        "said": "".join(turn.said),
        "ending": turn.ending,
        "model": turn.model,
        "chat_type": turn.chat.chat_type,
        "kind": turn.kind,
        "sub_kind": turn.sub_kind,
        "features": turn.feature,
        "size": turn.size,
        "generator": turn.meta.get("model", ""),
        "files": [
            {"kind": file.kind, "name": file.name, "sha256": file.sha256, "size": file.size}
            for file in turn.files
        ],
        "documents": [file.text for file in turn.files if file.kind == "document"],
    }
