"""Tools told to a model that knows none, and calls and results written as its kind was trained to read them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from qwenproxy.chat import Message, Tool, ToolChoice


def preface(tools: Sequence[Tool], choice: ToolChoice, *, fenced: bool, most_bytes: int) -> str:
    """The text that tells the model of its tools; "" where none may be called."""
    if choice.mode == "none":
        return ""
    listed = [tool for tool in tools if not choice.only or tool.name in choice.only]
    lines = "\n".join(
        json.dumps(
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": dict(tool.parameters),
                },
            },
            ensure_ascii=False,
        )
        for tool in listed
    )
    form = (
        '```json\n{"name": <name>, "arguments": <object>}\n```'
        if fenced
        else '<tool_call>\n{"name": <name>, "arguments": <object>}\n</tool_call>'
    )
    must = "You must call a tool. " if choice.mode == "required" else ""
    return f"# Tools\n\n<tools>\n{lines}\n</tools>\n\n{must}To call a tool, write:\n{form}"


def as_text(messages: Sequence[Message], *, fenced: bool) -> tuple[Message, ...]:
    """The messages with calls and results written out."""
    return tuple(_told(message, fenced=fenced) for message in messages)


def _told(message: Message, *, fenced: bool) -> Message:
    if message.role == "tool":
        return replace(message, text=f"<tool_response>\n{message.text}\n</tool_response>", call_id="")
    if not message.calls:
        return message
    first, last = ("```json\n", "\n```") if fenced else ("<tool_call>\n", "\n</tool_call>")
    calls = [
        f'{first}{{"name": {json.dumps(call.name)}, "arguments": {call.arguments}}}{last}'
        for call in message.calls
    ]
    return replace(message, text="\n".join([*([message.text] if message.text else []), *calls]), calls=())


def correction(problem: str, *, fenced: bool) -> str:
    """What the model is told when its call cannot be used."""
    return f"Your call could not be used. {problem} Write the whole call again, and nothing else."
