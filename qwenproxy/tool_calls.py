"""Calls as a model wrote them, read and checked."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from qwenproxy.chat import Tool, ToolCall, ToolChoice
from qwenproxy.sieve import RawCall


class BadCall(Exception):
    pass


class CallReader:
    def __init__(self, tools: Sequence[Tool], choice: ToolChoice, new_id: Callable[[], str]) -> None:
        self._tools = {tool.name: tool for tool in tools}
        self._new_id = new_id

    def read(self, raw: RawCall) -> tuple[ToolCall, ...]:
        try:
            row = json.loads(raw.body)
        except ValueError:
            raise BadCall("It is no JSON.") from None
        tool = self._tools.get(row.get("name"))
        if tool is None:
            raise BadCall("There is no such tool.")
        arguments = row.get("arguments") or {}
        for name in tool.parameters.get("required", ()):
            if name not in arguments:
                raise BadCall(f"{name} is missing.")
        text = json.dumps(arguments, ensure_ascii=False, separators=(",", ":"))
        return (ToolCall(self._new_id(), tool.name, text),)
