"""What the model has seen, read from the stand-in's record of turns.

The record says what each turn was told and what was said; a turn knows those of its chat that it follows. One
that was told a whole conversation in one message is unfolded here, by a reader that knows of the marks only
what the docstring of `qwen/payload.py` says. So it is where the message is a pointer to a document.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypeAlias

Turn: TypeAlias = dict[str, Any]
"""As `Standin.turns` tells it."""
Said: TypeAlias = tuple[str, str]
"""A role and a text."""

_ANSWER = re.compile(r"^\[(\w+) answer\]$", re.MULTILINE)


_FILES = r"(?:, (?:attached|gone): [^\[\]\n]*)?"
"""What a mark says of the files that came with its turn."""
_POINTER = "[attached prompt]"


def told(turn: Turn) -> str:
    """What the turn's message says; a pointer stands for the document that it names."""
    content = str(turn["content"])
    if not content.startswith(_POINTER):
        return content
    documents = [file for file in turn["files"] if file["kind"] == "document"]
    pairs = zip(documents, turn["documents"], strict=True)
    return next(str(text) for file, text in pairs if file["name"] in content)


def unfolded(content: str) -> tuple[Said, ...]:
    """The conversation that one upstream message tells; plain text is one user message."""
    opening = content.partition("\n")[0]
    for found in reversed(list(_ANSWER.finditer(content))):
        nonce = found[1]
        if f"[{nonce} " in opening:
            marks = re.compile(rf"^\[{nonce} (system|user|assistant){_FILES}\]\n", re.MULTILINE)
            _, *parts = marks.split(content[: found.start()])
            pairs = zip(parts[::2], parts[1::2], strict=True)
            return tuple((role, text.removesuffix("\n")) for role, text in pairs)
    return (("user", content),)


def seen(turns: Sequence[Turn], turn: Turn) -> tuple[Said, ...]:
    """All that the model had seen when it gave the turn's answer, the question last."""
    found: list[Said] = []
    for each in path(turns, turn):
        found += [*unfolded(told(each)), ("assistant", each["said"])]
    return tuple(found[:-1])


def path(turns: Sequence[Turn], turn: Turn) -> list[Turn]:
    """The turns that led to this one inside its upstream chat, and this one."""
    by_id = {each["response"]: each for each in turns if each["chat"] == turn["chat"]}
    found = [turn]
    while found[0]["parent"]:
        found.insert(0, by_id[found[0]["parent"]])
    return found


def answering(turns: Sequence[Turn], text: str) -> Turn:
    """The last turn that said exactly this."""
    return next(turn for turn in reversed(turns) if turn["said"] == text)
