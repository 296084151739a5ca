"""The tags that models write around tool calls, as they stand at one place of a text that is still coming.

Qwen's own are `<tool_call>` and `<tool_response>`, and `<function=…>` with `<parameter=…>` in Qwen3-Coder's
form. Read as the same are the slips seen of these models: other spellings (`<toolcall>`, `<TOOL_CALL >`,
`<|tool_call|>`, `<tool_calls>`, `<tool_call name="…">`), other words (`<function_call>`, `<tool_result>`),
other models' forms (`<function name="…">`, `<invoke name="…">`), and a missing `>`.

`sure` tells what can be nothing else from what is also ordinary code: `List<ToolCall>`, XML with `<function
name="…">`. Of those whoever reads decides by what follows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import product
from types import MappingProxyType
from typing import Final, Literal

Kind = Literal[
    "open", "close", "result", "result_end", "tools", "tools_end", "function", "function_end", "parameter",
    "parameter_end", "plain", "unfinished",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tag:
    kind: Kind
    """"plain": `<function>` and its like, which are no markup; "unfinished": more text will tell."""
    end: int
    """The place after it."""
    name: str = ""
    """Of the function or the parameter; of a wrapper that has one as an attribute."""
    sure: bool = True
    word: str = ""
    """As it is told apart: in small letters, without - and _."""


def _words() -> dict[str, tuple[Kind, Kind]]:
    """Each word with what it opens and what it closes as."""
    words: dict[str, tuple[Kind, Kind]] = {"tools": ("tools", "tools_end")}
    for first, second in product(("tool", "function"), ("call", "calls")):
        words[first + second] = ("open", "close")
        words[first + second + "begin"] = words[first + second + "start"] = ("open", "open")
        words[first + second + "end"] = ("close", "close")
    for first, second in product(("tool", "function"), ("response", "responses", "result", "results")):
        words[first + second] = ("result", "result_end")
    words["function"] = words["invoke"] = ("function", "function_end")
    words["parameter"] = ("parameter", "parameter_end")
    return words


_WORDS: Final = MappingProxyType(_words())

TAG_BEGINS: Final = r"<(?=[ \t|/]|[tTfFiIpP]|\Z)"
"""A pattern that every tag here begins with: a quick look before `read_tag`."""

_HEAD: Final = re.compile(r"<(?P<before>[ \t|/]{0,4})(?P<word>(?:[A-Za-z][A-Za-z_-]{0,23}+)?+)")


def beginning(*atoms: str) -> str:
    """A pattern for what the end of the text has cut off of these, one after the other."""
    pattern = ""
    for atom in reversed(atoms):
        pattern = rf"{atom}(?:\Z|{pattern})" if pattern else rf"{atom}\Z"
    return rf"(?:\Z|{pattern})"


_NAMED: Final = (r"\s{1,3}+", "n", "a", "m", "e", r"\s{0,2}+", "=", r"\s{0,2}+", "[\"']")
_NAME: Final = (r"[^\"'<>\n]{1,128}+", "[\"']", r"[^<>\n]{0,100}+", ">")
_NAMED_TAIL: Final = re.compile("".join((*_NAMED, f"({_NAME[0]})", *_NAME[1:])))
_NAMED_BEGINS: Final = re.compile(beginning(*_NAMED, *_NAME))

_EQUALS: Final = (r"\s{0,2}+", "=", r"\s{0,2}+[\"']?+")
_VALUE: Final = (r"[^\s\"'<>{}=]{0,128}+", r"[^<>\n{}]{0,100}+")
_EQUALS_TAIL: Final = re.compile("".join((*_EQUALS, f"({_VALUE[0]})", _VALUE[1], r"(?:>|(?=[\n<{]))")))
_EQUALS_BEGINS: Final = re.compile(beginning(*_EQUALS, *_VALUE))

_ATTRIBUTE: Final = (
    r"\s{1,3}+",
    r"[\w:-]{1,32}+",
    r"\s{0,2}+",
    "=",
    r"\s{0,2}+",
    '"',
    r'[^"<>]{0,128}+',
    '"',
)
_ATTRIBUTES: Final = rf"(?:{''.join(_ATTRIBUTE)}){{0,4}}+"
_CLOSE: Final = (r"\s{0,8}+", r"\|?+", "/?+", ">")
_WRAPPER_TAIL: Final = re.compile(f"({_ATTRIBUTES}){''.join(_CLOSE)}")
_WRAPPER_BEGINS: Final = re.compile(f"{_ATTRIBUTES}(?:{beginning(*_ATTRIBUTE)}|{beginning(*_CLOSE)})")
_END_TAIL: Final = re.compile("".join(_CLOSE))
_END_BEGINS: Final = re.compile(beginning(*_CLOSE))
_NAME_ATTRIBUTE: Final = re.compile(r'\sname\s*=\s*"([^"]+)"')
_GOES_ON: Final = re.compile(r"[\w.:]")
"""After the word: another word than that."""


def read_tag(text: str, at: int, *, ended: bool = False) -> Tag | None:
    """The tag at a `<`; None: there is none. `ended`: no more text will come."""
    found = _HEAD.match(text, at)
    if found is None:
        return None
    word, end = found["word"], found.end()
    plain = word.lower().replace("_", "").replace("-", "")
    if end == len(text) and (not ended or plain not in _WORDS):
        return _growing(word, plain, end, ended=ended)
    if plain not in _WORDS or _GOES_ON.match(text, end):
        return None
    opening, closing = _WORDS[plain]
    if "/" in found["before"]:
        return _end(text, end, Tag(closing, end, sure=_sure(found, opening), word=plain), ended=ended)
    if opening == "function" or opening == "parameter":
        return _named(text, end, opening, plain, ended=ended)
    return _wrapper(text, end, Tag(opening, end, sure=_sure(found, opening), word=plain), ended=ended)


def _growing(word: str, plain: str, end: int, *, ended: bool) -> Tag | None:
    if not any(known.startswith(plain) for known in _WORDS):
        return None
    if not ended:
        return Tag("unfinished", end)
    # What is left of a tag that the end of the answer has cut; `<tool` alone may be anything.
    return Tag("close", end) if "_" in word and plain else None


def _sure(found: re.Match[str], kind: Kind) -> bool:
    """`ToolCall` is a name that programs have; `tool_call` too, but less often than it is markup."""
    word: str = found["word"]
    separated = "_" in word or "-" in word or "|" in found["before"]
    return kind != "tools" and (separated or word.islower() or word.isupper())


def _end(text: str, end: int, tag: Tag, *, ended: bool) -> Tag:
    if found := _END_TAIL.match(text, end):
        return replace(tag, end=found.end())
    if not ended and _END_BEGINS.match(text, end):
        return Tag("unfinished", end)
    return tag  # its `>` is missing


def _wrapper(text: str, end: int, tag: Tag, *, ended: bool) -> Tag:
    if found := _WRAPPER_TAIL.match(text, end):
        name = _NAME_ATTRIBUTE.search(found[1])
        return replace(tag, end=found.end(), name=name[1] if name else "")
    if _WRAPPER_BEGINS.match(text, end):
        return replace(tag, kind="close", end=len(text)) if ended else Tag("unfinished", end)
    return tag  # its `>` is missing


def _named(text: str, end: int, kind: Kind, word: str, *, ended: bool) -> Tag:
    if word != "invoke" and (found := _EQUALS_TAIL.match(text, end)):
        return Tag(kind, found.end(), found[1], word=word)
    if found := _NAMED_TAIL.match(text, end):
        return Tag(kind, found.end(), found[1], sure=False, word=word)
    if _EQUALS_BEGINS.match(text, end) if word != "invoke" else False:
        cut = Tag("close", len(text), word=word) if "=" in text[end:] else Tag("plain", end, word=word)
        return cut if ended else Tag("unfinished", end)
    if not ended and _NAMED_BEGINS.match(text, end):
        return Tag("unfinished", end)
    return Tag("plain", end, word=word)
