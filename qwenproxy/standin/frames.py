"""The lines of the SSE answer, to the letter of protocol §5."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from .memory import Turn

PROMPT_OVERHEAD_TOKENS = 1040
"""The service's hidden system prompt, in tokens (protocol §4.4)."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Seconds after the last step was due: steps keep their schedule, and do not drift."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Head:
    """Send the status line and headers."""


@dataclass(frozen=True, slots=True)
class Done:
    """The answer is complete; what follows is only the end of the wire."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Close the connection without ending the body."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Say nothing until the client leaves."""


Step: TypeAlias = bytes | Pause | Head | Done | Cut | Hold


def line(value: object, *, end: str = "\n\n") -> bytes:
    """JSON with a space after each separator, as the service writes it (protocol §5.1)."""
    return f"data: {json.dumps(value, ensure_ascii=False)}{end}".encode()


@dataclass(slots=True)
class Frames:
    """Writes one response's frames and keeps its usage, which restarts each model round (protocol §5.3)."""

    turn: Turn
    response_id: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    titles: list[str] = field(default_factory=list)
    paragraphs: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.response_id = self.response_id or self.turn.response_id
        self.input_tokens = self.input_tokens or PROMPT_OVERHEAD_TOKENS + len(self.turn.prompt) // 4

    def next_round(self, more_input_tokens: int = 3000) -> None:
        self.input_tokens += more_input_tokens
        self.output_tokens = self.reasoning_tokens = 0
        self.titles, self.paragraphs = [], []

    def usage(self) -> dict[str, Any]:
        output = {"text_tokens": self.output_tokens}
        if self.reasoning_tokens:
            output = {"reasoning_tokens": self.reasoning_tokens, **output}
        return {
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "characters": 0,
            "total_tokens": self.input_tokens + self.output_tokens,
            "input_tokens_details": {"text_tokens": self.input_tokens},
            "output_tokens_details": output,
            "prompt_tokens_details": {"cached_tokens": 0},
        }

    def created(self, index: int = 0) -> bytes:
        """The first line: `response_index` is a string, a space trails (protocol §5.1–5.2)."""
        ids = {
            "chat_id": self.turn.chat.id,
            "parent_id": self.turn.user_id,
            "response_id": self.response_id,
            "response_index": str(index),
        }
        return line({"response.created": ids}, end=" \n\n")

    def delta(self, delta: dict[str, Any], *, usage: dict[str, Any] | None = None) -> bytes:
        frame: dict[str, Any] = {"choices": [{"delta": delta}], "response_id": self.response_id}
        if usage is not None:
            frame["usage"] = usage
        return line({**frame, "timestamp": int(time.time())})

    def _typing(self, content: str, phase: str, **more: Any) -> bytes:
        delta: dict[str, Any] = {"role": "assistant", "content": content}
        if self.turn.feature.get("output_schema", "phase") == "phase":
            delta["phase"] = phase
        return self.delta({**delta, "status": "typing", **more}, usage=self.usage())

    def answer(self, text: str, tokens: int = 1) -> bytes:
        self.output_tokens += tokens
        self.turn.said.append(text)
        return self._typing(text, "answer")

    def empty(self) -> bytes:
        """An empty piece with the final usage; two of them precede the end (protocol §5.7)."""
        return self._typing("", "answer")

    def think(self, text: str, tokens: int = 1) -> bytes:
        """A piece of the detail format (protocol §5.4)."""
        self.reasoning_tokens += tokens
        self.output_tokens += tokens
        self.turn.thoughts.append(text)
        return self._typing(text, "think")

    def summary(self, title: str, paragraph: str) -> bytes:
        """The summary arrays, grown by one and sent whole (protocol §5.4)."""
        self.titles.append(title)
        self.paragraphs.append(paragraph)
        self.turn.thoughts.append(paragraph)
        return self.same_summary(tokens=len(paragraph) // 4)

    def same_summary(self, tokens: int = 3) -> bytes:
        self.reasoning_tokens += tokens
        self.output_tokens += tokens
        extra = {
            "summary_title": {"content": self.titles},
            "summary_thought": {"content": self.paragraphs},
        }
        return self._typing("", "thinking_summary", extra=extra)

    def note(self, phase: str, text: str = "", extra: dict[str, Any] | None = None) -> bytes:
        """A piece of a research's phase (protocol §10.5)."""
        self.output_tokens += bool(text)
        return self._typing(text, phase, extra=extra or {})

    def phase_finished(self, phase: str, extra: dict[str, Any] | None = None) -> bytes:
        """The end of a phase that is not the end of the answer: it has a timestamp (protocol §5.7)."""
        delta = {"role": "assistant", "content": "", "phase": phase, "status": "finished"}
        return self.delta(delta if extra is None else {**delta, "extra": extra})

    def tool_call(self, phase: str, name: str, call: str, arguments: str, extra: dict[str, Any]) -> bytes:
        """`arguments` is the JSON text so far (protocol §5.5)."""
        function = {"name": name, "arguments": arguments}
        return self._typing("", phase, function_call=function, function_id=f"round_0_{call}", extra=extra)

    def tool_result(self, phase: str, name: str, call: str, extra: dict[str, Any]) -> bytes:
        delta = {
            "role": "function",
            "content": "",
            "phase": phase,
            "status": "finished",
            "name": name,
            "extra": {"function_id": call, **extra},
            "function_id": f"round_0_{call}",
        }
        return self.delta(delta, usage={})

    def image(self, url: str, height: int, width: int) -> bytes:
        usage = {
            "input_tokens": 0,
            "output_tokens": 0,
            "characters": 0,
            "width": width,
            "image_count": 1,
            "height": height,
        }
        delta = {
            "role": "assistant",
            "content": url,
            "phase": "image_gen",
            "extra": {"output_image_hw": [[height, width]]},
            "status": "typing",
        }
        return self.delta(delta, usage=usage)

    def terminal(self, phase: str = "answer", extra: dict[str, Any] | None = None) -> bytes:
        """The last frame: neither usage nor timestamp (protocol §5.7)."""
        delta: dict[str, Any] = {"content": "", "role": "assistant", "status": "finished", "phase": phase}
        if extra is not None:
            delta["extra"] = extra
        return line({"choices": [{"delta": delta}], "response_id": self.response_id})

    def info(self, action: str) -> bytes:
        ids = {"action": action, "chat_id": self.turn.chat.id, "response_id": self.response_id}
        return line({"response.info": {**ids, "timestamp": int(time.time())}})

    def stopped(self) -> bytes:
        ids = {"chat_id": self.turn.chat.id, "response_id": self.response_id}
        return line({"response.stopped": ids})

    def error(self, code: str, details: str, **more: Any) -> bytes:
        return line({"error": {"code": code, "details": details, **more}, "response_id": self.response_id})

    def sources(self, documents: Sequence[dict[str, str]], position: str) -> dict[str, Any]:
        """The `extra` of a search result; `used_id` is the next free citation number (protocol §5.5)."""
        text = "\n".join(f"[{number}] {doc['url']}" for number, doc in enumerate(documents, 1))
        return {
            "tool_result": {
                "docs": list(documents),
                "used_id": len(documents) + 1,
                "tool_call_metrics": {"success": [1]},
                "tool_observation": f"```\n{text}\n```",
            },
            "web_search_info": list(documents),
            "display_position": position,
        }
