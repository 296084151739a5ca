"""The stand-in's pages: sign-in and chat, whose own script boots, renews and verifies (protocol §1)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from .catalogue import LISTED, entry
from .memory import FE_VERSIONS, Records, Session
from .signins import SignIns

PROMOTED = 4
"""Models that the landing page carries (protocol §7)."""
LOOPBACK, OTHER_NAME = "127.0.0.1", "localhost"
_HERE = Path(__file__).parent


class Pages:
    def __init__(self, records: Records, sign_ins: SignIns) -> None:
        self._records = records
        self._sign_ins = sign_ins
        self._style = (_HERE / "page.css").read_text(encoding="utf-8")
        self._script = (_HERE / "page.js").read_text(encoding="utf-8")
        self.auth = ""
        """The origin that owns sign-in, set once it is known."""

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/", self.chat),
            Route("/c/{chat_id}", self.chat),
            Route("/auth", self.sign_in),
            Route("/o/oauth2/auth", _identity_provider),
            Route("/v3/signin/rejected", self.rejected),
            Route(f"{self._assets()}/page.js", self.script),
            Route(f"{self._assets()}/page.css", self.style),
            Route("/favicon.ico", _nothing),
        ]

    async def chat(self, request: Request) -> Response:
        return self._page(request, "chat", _CHAT_BODY, self._prerendered(self._sign_ins.session(request)))

    async def sign_in(self, request: Request) -> Response:
        if self._sign_ins.session(request):
            return RedirectResponse("/", status_code=302)
        return self._page(request, "auth", _SIGN_IN_BODY, self._prerendered(None))

    async def rejected(self, request: Request) -> Response:
        """The identity provider does not take this window, as such providers say it."""
        back = f"{self._site(request)}/auth"
        return HTMLResponse(_REJECTED.format(assets=self._assets(), back=back))

    async def script(self, request: Request) -> Response:
        return Response(self._script, media_type="text/javascript")

    async def style(self, request: Request) -> Response:
        return Response(self._style, media_type="text/css")

    def _assets(self) -> str:
        return f"/g/qwenweb/qwen-chat-fe/{FE_VERSIONS[self._records.options.era]}"

    def _site(self, request: Request) -> str:
        """Where the site itself is, also when its other name was asked."""
        return f"{request.url.scheme}://{LOOPBACK}:{request.url.port}"

    def _page(self, request: Request, kind: str, body: str, prerendered: dict[str, Any]) -> Response:
        options = self._records.options
        session = self._sign_ins.session(request)
        setup = {
            "page": kind,
            "era": options.era,
            "auth": self.auth,
            "version": FE_VERSIONS[options.era],
            "renew": options.renew,
            "demo": options.demo,
            "person": self._records.person,
            "personIn": options.person_in,
            "solvesAfterS": options.person_solves_s,
            "activatesAfterS": options.person_activates_s,
            "identity": options.identity,
            "provider": f"{_elsewhere(request)}/o/oauth2/auth",
            "challenged": bool(session and session.challenged),
        }
        return HTMLResponse(
            _PAGE.format(
                assets=self._assets(),
                prerendered=_in_script(prerendered),
                setup=_in_script(setup),
                body=body,
            )
        )

    def _prerendered(self, session: Session | None) -> dict[str, Any]:
        """In era B the user comes with the page, token and all (protocol §1.1)."""
        data: dict[str, Any] = {
            "language": "en-US",
            "theme": "light",
            "models": [entry(model) for model in LISTED[:PROMOTED]],
            "ua": {},
            "greetingText": "How can I help you today?",
            "requestId": "",
            "qwenThinkingMode": "Auto",
        }
        if session and self._records.options.era == "B":
            data["user"] = self._sign_ins.user(session.account, session.cookie)
        return data


def _elsewhere(request: Request) -> str:
    """Another origin that leads here, for what is not the site's own: the same port by another name."""
    name = OTHER_NAME if request.url.hostname == LOOPBACK else LOOPBACK
    return f"{request.url.scheme}://{name}:{request.url.port}"


async def _identity_provider(request: Request) -> Response:
    return RedirectResponse("/v3/signin/rejected?rrk=1", status_code=302)


async def _nothing(request: Request) -> Response:
    return Response(status_code=204)


def _in_script(value: object) -> str:
    return json.dumps(value).replace("<", "\\u003c")


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Qwen Chat (stand-in)</title>
<link rel="stylesheet" href="{assets}/page.css">
<script>window.__prerendered_data = {prerendered};</script>
<script>window.__setup = {setup};</script>
<script src="{assets}/page.js"></script>
</head>
<body>
{body}
</body>
</html>
"""
_NOTICE = (
    '<p class="notice">This is a <strong>stand-in</strong> that runs on your own computer. '
    "It is not Qwen Chat, and no model answers here.</p>"
)
_SIGN_IN_BODY = f"""<main class="card">
<h1>Sign in</h1>
{_NOTICE}
<form id="sign-in">
<label>E-mail<input type="email" name="email" autocomplete="email" placeholder="Email"></label>
<label>Password<input type="password" name="password" autocomplete="current-password"
placeholder="Password"></label>
<button type="submit" class="qwenchat-auth-pc-submit-button" disabled>Log in</button>
<p class="error" role="alert" hidden></p>
</form>
<p><button type="button" id="provider">Continue with Google</button></p>
<p class="hint">Any e-mail address and any password will do, except the password &ldquo;wrong&rdquo;.</p>
</main>"""
_REJECTED = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Sign-in refused (stand-in)</title>
<link rel="stylesheet" href="{{assets}}/page.css">
</head>
<body>
<main class="card">
<h1>Couldn&rsquo;t sign you in</h1>
{_NOTICE}
<p>This browser or app may not be secure.</p>
<p><a href="{{back}}">Back</a></p>
</main>
</body>
</html>
"""
_CHAT_BODY = f"""<div class="layout">
<aside><h2>Chats</h2><ol id="chats"></ol></aside>
<main>
<header><span id="who">…</span><select id="models" aria-label="Model"></select></header>
{_NOTICE}
<section id="talk" aria-live="polite"></section>
<form id="composer">
<textarea class="message-input-textarea" rows="2" placeholder="Say something to the stand-in"></textarea>
<button class="send-button" type="submit" aria-label="Send">Send</button>
</form>
</main>
</div>"""
