"""How a model is told of the client's tools, of calls that it made, and of their results.

The service takes no tools of a client's, so they are text, in the form that Qwen's models are trained on
(their published chat template): signatures as JSON within `<tools>`, calls within `<tool_call>`, results
within `<tool_response>`. The service's own machinery sometimes takes such a call for one of its tools and
answers "Tool X does not exists." (protocol §5.5); then all is asked for once more `fenced`, as JSON in a code
fence, where that tag stands nowhere.

A result is told word for word. Where an answer made several calls, a line before the result says which it is
of: models take results to be in the order of the calls, and clients send them as they come in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from qwenproxy.chat import Message, Tool, ToolCall, ToolChoice
from qwenproxy.tool_list import lines

LEAST_BYTES: Final = 2_000
"""What the text takes without any tool, and some room for names."""
_TAG: Final = re.compile(r"<(?=/?tool_)", re.IGNORECASE)

_TAGGED: Final = (
    '<tool_call>\n{"name": "name of the tool", "arguments": {"its parameter": "value"}}\n</tool_call>'
)
_FENCED: Final = '```json\n{"name": "name of the tool", "arguments": {"its parameter": "value"}}\n```'


def preface(tools: Sequence[Tool], choice: ToolChoice, *, fenced: bool, most_bytes: int) -> str:
    """The text that tells the model of the tools it may call; "" where it may call none.

    At most `most_bytes` in UTF-8, which should be no less than `LEAST_BYTES`.
    """
    offered = [tool for tool in tools if not choice.only or tool.name in choice.only]
    if not offered or choice.mode == "none":
        return ""
    before, after = _before(), _after(choice, len(offered), fenced=fenced)
    room = most_bytes - len(before.encode()) - len(after.encode())
    return before + lines(offered, max(0, room)) + after


def _before() -> str:
    return (
        "# Tools\n\n"
        "You can call tools to fulfil the task. They run on the user's side, and their results come back to "
        "you. Here is what each is called, what it does and which arguments it takes, one object a line:\n"
        "<tools>\n"
    )


def _after(choice: ToolChoice, offered: int, *, fenced: bool) -> str:
    form = "in a code block of its own" if fenced else "between tags of its own"
    rules = [
        "Words before a call are fine; after your last call write nothing more: end the answer there.",
        "The result comes in the next message, within <tool_response></tool_response>. Never write a result "
        "yourself and never act as if you had one.",
        _how_many(choice, form),
        _whether(choice, offered),
        "No other tools exist here. Whatever else you know of, such as a web search, a code interpreter or "
        "image tools of your own, cannot be called.",
        "Arguments are valid JSON: within strings escape quotation marks, backslashes and line breaks.",
    ]
    return (
        "\n</tools>\n\n"
        f"To call a tool, write a JSON object with its name and its arguments {form}, exactly so:\n"
        f"{_FENCED if fenced else _TAGGED}\n\n" + "\n".join(f"- {rule}" for rule in rules)
    )


def _how_many(choice: ToolChoice, form: str) -> str:
    if choice.parallel:
        return f"Calls that do not need each other's results may follow one another, each {form}."
    return "Make at most one call an answer; when its result has come you can make the next."


def _whether(choice: ToolChoice, offered: int) -> str:
    if choice.mode == "required":
        which = "the tool above" if offered == 1 else "one of the tools above"
        return f"This time you must call {which}: an answer without a call is of no use."
    return "Call a tool when it helps; when it does not, answer in words."


def as_text(messages: Sequence[Message], *, fenced: bool) -> tuple[Message, ...]:
    """The messages with calls and results written out in their text, in the same roles and order.

    Give it all that was said: which call a result answers stands in an earlier message.
    """
    answered: dict[str, str] = {}
    told = []
    for message in messages:
        if message.role == "tool":
            which = answered.get(message.call_id, "") if message.call_id else ""
            told.append(replace(message, text=which + _result(message.text), call_id=""))
        elif message.calls:
            answered |= _answers(message.calls)
            blocks = [_call(call, fenced=fenced) for call in message.calls]
            text = "\n".join([*([message.text] if message.text else []), *blocks])
            told.append(replace(message, text=text, calls=()))
        else:
            told.append(message)
    return tuple(told)


def _answers(calls: Sequence[ToolCall]) -> Mapping[str, str]:
    """What is said before the result of each call, by its id."""
    if len(calls) == 1:
        return {calls[0].id: ""}
    return {
        call.id: f"Result of call {number} of {len(calls)}, {call.name}:\n"
        for number, call in enumerate(calls, 1)
    }


def _result(text: str) -> str:
    return f"<tool_response>\n{text}\n</tool_response>"


def _call(call: ToolCall, *, fenced: bool) -> str:
    """As the model would have written it, so that it learns no other form from its own words."""
    arguments = call.arguments.strip() or "{}"
    try:
        json.loads(arguments)
    except (ValueError, RecursionError):
        arguments = json.dumps(arguments, ensure_ascii=False)
    name = json.dumps(call.name, ensure_ascii=False)
    body = _TAG.sub(r"\\u003c", f'{{"name": {name}, "arguments": {arguments}}}')
    return f"```json\n{body}\n```" if fenced else f"<tool_call>\n{body}\n</tool_call>"


def correction(problem: str, *, fenced: bool) -> str:
    """What the model is told when its call could not be used."""
    form = "in a ```json code block" if fenced else "within <tool_call></tool_call>"
    return (
        f"Your tool call was not carried out. {problem} Write the whole call again, corrected, and nothing "
        f"else: one JSON object with name and arguments {form}."
    )
