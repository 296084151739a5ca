"""A plain HTTP client that says to the stand-in what the site's own page would say."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.serve import DEADLINE_S, Standin, trusting_all

MODEL = "qwen3.7-plus"


@dataclass
class Visitor:
    standin: Standin
    account: str = "one@example.com"
    booted: bool = True
    http: httpx.Client = field(init=False)
    token: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.http = httpx.Client(
            base_url=self.standin.site, verify=trusting_all(), http2=True, timeout=DEADLINE_S
        )
        self.token, cookie = self.standin.sign_in(self.account)
        self.http.cookies.set(cookie["name"], cookie["value"])
        if self.booted:
            self.call("GET", "/api/v2/chats/?page=1&exclude_project=true")

    def __enter__(self) -> Visitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def headers(self, **changes: str | None) -> dict[str, str]:
        """The headers of protocol §2; None takes one away."""
        usual = {
            "Content-Type": "application/json",
            "Version": "0.3.12",
            "source": "web",
            "X-Request-Id": str(uuid.uuid4()),
            "Authorization": f"Bearer {self.token}",
        }
        named = {name.replace("_", "-"): value for name, value in changes.items()}
        return {name: value for name, value in {**usual, **named}.items() if value is not None}

    def call(self, method: str, path: str, body: object = None, **changes: str | None) -> httpx.Response:
        content = None if body is None else json.dumps(body)
        return self.http.request(method, path, content=content, headers=self.headers(**changes))

    def new_chat(self, chat_type: str = "t2t") -> str:
        answer = self.call("POST", "/api/v2/chats/new", new_body(chat_type=chat_type)).json()
        return str(answer["data"]["id"])

    def ask(
        self, prompt: str, chat: str | None = None, *, parent: str | None = None, **features: Any
    ) -> httpx.Response:
        """The whole answer to a completion."""
        chat = chat or self.new_chat()
        body = question(chat, prompt, parent, **features)
        return self.call("POST", f"/api/v2/chat/completions?chat_id={chat}", body)

    def asking(self, prompt: str, chat: str) -> Any:
        """The answer as it comes: a context manager that leaves when it is left."""
        url = f"/api/v2/chat/completions?chat_id={chat}"
        content = json.dumps(question(chat, prompt))
        return self.http.stream("POST", url, content=content, headers=self.headers())

    def frames(self, prompt: str, chat: str | None = None, **features: Any) -> list[dict[str, Any]]:
        answer = self.ask(prompt, chat, **features)
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8", answer.text
        return parsed(answer.text)


def new_body(**changes: Any) -> dict[str, Any]:
    usual = {"chatId": "", "models": [MODEL], "project_id": "", "timestamp": 1, "chat_type": "t2t"}
    return {**usual, "chat_mode": "normal", **changes}


def question(chat: str, prompt: str, parent: str | None = None, **features: Any) -> dict[str, Any]:
    """A completion as the app builds it (protocol §4.1), Fast unless told otherwise.

    `chat_type`, `size`, `generator` and `files` are a drawing's or a video's too (protocol §9.4, §10).
    """
    model = features.pop("model", MODEL)
    files, kind = features.pop("files", []), features.pop("chat_type", "t2t")
    size, generator = features.pop("size", None), features.pop("generator", None)
    stream = features.pop("stream", True)
    config = {"thinking_enabled": False, "output_schema": "phase", "thinking_mode": "Fast", **features}
    message = {
        "fid": str(uuid.uuid4()),
        "parent_id": parent,
        "role": "user",
        "content": prompt,
        "user_action": "chat",
        "files": files,
        "models": [model],
        "chat_type": kind,
        "sub_chat_type": kind,
        "feature_config": config,
        "extra": {"meta": {"subChatType": kind, **given(size=size, model=generator)}},
    }
    more = given(size=size)
    return {
        **more,
        "stream": stream,
        "chat_id": chat,
        "model": model,
        "parent_id": parent,
        "messages": [message],
    }


def given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def parsed(text: str) -> list[dict[str, Any]]:
    lines = (line.removeprefix("data:").strip() for line in text.splitlines() if line.startswith("data:"))
    return [json.loads(line) for line in lines if line != "[DONE]"]


def deltas(frames: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    return (frame["choices"][0]["delta"] for frame in frames if frame.get("choices"))


def text_of(frames: list[dict[str, Any]]) -> str:
    """The answer that the frames add up to."""
    return "".join(delta["content"] for delta in deltas(frames) if delta.get("phase", "answer") == "answer")


def hashed(password: str) -> str:
    return hashlib.sha256(password.encode()).hexdigest()
