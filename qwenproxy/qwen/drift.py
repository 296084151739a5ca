"""What the live service says that the protocol reference does not know, and what it no longer says.

The decoders pass over what they do not know, so that the proxy goes on answering; `doctor --live` puts the
same answers to `Drift`, which tells what was passed over. Names of fields and short codes only: no text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from qwenproxy.qwen import failures

NAME_CHARACTERS = 40
"""How much of an unknown name is told."""
MOST = 50
"""Findings that are told; a service that changed this much needs a newer version, not a list."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


PHASES = _words(
    "think thinking_summary answer web_search web_extractor web_search_image image_search image "
    "image_zoom_in_tool code_interpreter history_retriever bio image_gen image_gen_think "
    "image_gen_websearch image_gen_tool image_edit image_edit_tool tool local_tool slides DeepThinking "
    "ResearchPlanning ResearchNotice WebResearch ReportGeneration PdfMdGen interrupt InterruptReceived "
    "KeepAlive finished tool_call search_result bash fetch_page generate_image read_file write_file "
    "edit_file present_file"
)
"""Protocol §5.3, era C's included."""
STATUSES = _words("typing finished error pause running")
ROLES = _words("assistant function")
ACTIONS = _words("keep_alive skip_think")
KEEP_ALIVE = "KeepAlive"
GENERAL_CODES = _words("Bad_Request Not_Found internal_error Internal_Server_Error")
"""Codes that say nothing by themselves: the words beside them count (protocol §6.2)."""

FIELDS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "a frame": _words(
            "choices response_id usage timestamp response.created response.info response.stopped error done "
            "success data request_id ret code detail details message num sources selected_model_id "
            "code_interpreter_info lang_code"
        ),
        "response.created": _words("chat_id parent_id response_id response_index"),
        "response.info": _words("action chat_id response_id timestamp"),
        "response.stopped": _words("chat_id response_id timestamp"),
        "choices[0]": _words("delta"),
        "delta": _words("role content phase status extra name function_id function_call"),
        "usage": _words(
            "input_tokens output_tokens total_tokens characters input_tokens_details output_tokens_details "
            "prompt_tokens_details image_tokens image_count width height"
        ),
        "extra": _words(
            "summary_title summary_thought display_position function_id tool_result web_search_info "
            "image_list search_result output_image_hw error wanx aipodcast meta deep_research"
        ),
    }
)
"""Every field that protocol §5 names, by where it stands."""

PROMISED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "response.created": ("chat_id", "parent_id", "response_id"),
        "delta": ("role", "content", "phase", "status"),
        "the user": ("id", "email", "role"),
        "a model": ("id", "name", "info"),
        "a model's info": ("meta", "is_active"),
        "a model's meta": ("capabilities", "max_context_length", "chat_type"),
    }
)
"""Fields that the reference saw everywhere, and that this program reads."""


class Drift:
    """Collects differences, each once, in the order they were met."""

    def __init__(self) -> None:
        self._found: dict[str, None] = {}
        self._created = False
        self._spoke = False
        self._counted = False
        self._ended = False

    def report(self) -> tuple[str, ...]:
        """One line each."""
        return tuple(self._found)[:MOST]

    def head(self, call: str, headers: Mapping[str, str]) -> None:
        """The head of any answer; `call` says which."""
        if "x-actual-status-code" not in headers:
            self._tell(f"the answer to {call} has no header x-actual-status-code")

    def event(self, text: str) -> None:
        """One event of a completion's stream."""
        if not text.strip():
            return
        if text.strip() == "[DONE]":
            self._ended = True
            return
        frame = _json(text)
        if not isinstance(frame, dict):
            self._tell("an event of the stream is no JSON object")
            return
        self._keys("a frame", frame)
        for name in ("response.created", "response.info", "response.stopped"):
            if name in frame:
                self._keys(name, _mapping(frame[name]))
        if "response.created" in frame:
            self._created = True
            self._promised("response.created", _mapping(frame["response.created"]))
        if "response.info" in frame:
            self._value("action", _mapping(frame["response.info"]).get("action"), ACTIONS)
        if frame.get("error") or frame.get("success") is False or "code" in frame:
            self.refusal(frame)
            self._created = self._ended = True  # nothing else is promised then
        self._ended = self._ended or frame.get("done") is True or "response.stopped" in frame
        self._choices(frame)

    def end(self) -> None:
        """The end of the stream: what should have come by now."""
        if not self._created:
            self._tell("the stream did not begin with response.created")
        if self._spoke and not self._counted:
            self._tell("no frame of the stream had usage")
        if self._spoke and not self._ended:
            self._tell("the stream had no last frame: status finished without timestamp")

    def refusal(self, answer: object) -> None:
        """An answer, or a frame, that says no: is its code known?"""
        row = _mapping(answer)
        rows = (row, _mapping(row.get("error")), _mapping(row.get("data")))
        for code in (each.get("code") for each in rows):
            # Only a code that means nothing to us is quoted in the error that it becomes.
            if not isinstance(code, str) or not code or code in GENERAL_CODES:
                continue
            if code in str(failures.in_stream({"code": code})):
                self._tell(f"unknown code {_shown(code)} of a refusal")

    def user(self, user: object) -> None:
        """The answer to who-am-I."""
        self._promised("the user", _mapping(user))

    def models(self, listed: object) -> None:
        """The model list, out of its envelope."""
        while isinstance(listed, dict):
            listed = listed.get("data")
        for entry in listed if isinstance(listed, list) else ():
            info = _mapping(_mapping(entry).get("info"))
            self._promised("a model", _mapping(entry))
            self._promised("a model's info", info)
            self._promised("a model's meta", _mapping(info.get("meta")))

    def _choices(self, frame: Mapping[str, Any]) -> None:
        choices = frame.get("choices")
        if not isinstance(choices, list) or not choices:
            if "choices" in frame:
                self._tell("a frame has choices without a choice")
            return
        self._keys("choices[0]", _mapping(choices[0]))
        delta = _mapping(_mapping(choices[0]).get("delta"))
        if delta.get("phase") == KEEP_ALIVE:
            return
        self._spoke = True
        if not frame.get("response_id"):
            self._tell("a content frame has no response_id")
        self._keys("delta", delta)
        self._promised("delta", delta)
        self._value("phase", delta.get("phase"), PHASES)
        self._value("status", delta.get("status"), STATUSES)
        self._value("role", delta.get("role"), ROLES)
        self._keys("extra", _mapping(delta.get("extra")))
        self._keys("usage", _mapping(frame.get("usage")))
        self._counted = self._counted or bool(_mapping(frame.get("usage")))
        self._ended = self._ended or (delta.get("status") == "finished" and frame.get("timestamp") is None)

    def _keys(self, where: str, row: Mapping[str, Any]) -> None:
        for key in row:
            if key not in FIELDS[where]:
                self._tell(f"unknown field {_shown(key)} in {where}")

    def _promised(self, where: str, row: Mapping[str, Any]) -> None:
        for key in PROMISED[where]:
            if key not in row:
                self._tell(f"{where} has no {key}")

    def _value(self, what: str, value: object, known: frozenset[str]) -> None:
        if value not in (None, "") and not (isinstance(value, str) and value in known):
            self._tell(f"unknown {what} {_shown(value)}")

    def _tell(self, finding: str) -> None:
        self._found.setdefault(finding)


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _shown(name: object) -> str:
    text = name if isinstance(name, str) else type(name).__name__
    return '"' + "".join(c if c.isprintable() else " " for c in text[:NAME_CHARACTERS]) + '"'
