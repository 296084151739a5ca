"""Marks in a prompt that switch the stand-in: `{{standin: NAME key=value key="two words"}}`."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MARK_OPEN = "{{standin:"
"""Begins a mark. The product must never look for it; a test greps."""
_MARK = re.compile(re.escape(MARK_OPEN) + r"(.*?)\}\}", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Switch:
    """A scenario or a fault asked for by name, with its parameters."""

    name: str
    params: Mapping[str, Any]
    text: str = ""
    """The mark as written, which `times=` counts by."""

    def number(self, key: str, default: float) -> float:
        return float(self.params.get(key, default))

    def whole(self, key: str, default: int) -> int:
        return int(self.params.get(key, default))

    def word(self, key: str, default: str) -> str:
        return str(self.params.get(key, default))


def split_marks(prompt: str) -> tuple[str, list[Switch]]:
    """The prompt without its marks, and what they ask for, in order."""
    return _MARK.sub("", prompt).strip(), [_switch(found.group(1)) for found in _MARK.finditer(prompt)]


def behind_last(text: str, name: str) -> str:
    """What stands behind the last mark of that name; "" where there is none."""
    ends = [found.end() for found in _MARK.finditer(text) if _switch(found.group(1)).name == name]
    return text[ends[-1] :] if ends else ""


def _switch(text: str) -> Switch:
    try:
        words = shlex.split(text)
    except ValueError:
        words = text.split()
    name, *rest = words or [""]
    pairs = (word.partition("=") for word in rest)
    return Switch(name, {key: value for key, _, value in pairs}, text.strip())
