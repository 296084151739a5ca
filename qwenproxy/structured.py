"""Answers that must be one JSON value: how they are asked for, and how one is read out of what was said."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import islice
from types import MappingProxyType
from typing import Any, Final

from qwenproxy import json_text
from qwenproxy.chat import AnswerFormat
from qwenproxy.json_schema import Misfit, Schema
from qwenproxy.json_text import NotJson, compact
from qwenproxy.misfits import listed

ANY_OBJECT: Final[Mapping[str, Any]] = MappingProxyType({"type": "object"})
MOST_PLACES: Final = 20
"""At which a value is looked for among other words."""
_OPENS: Final = re.compile(r'\{\s*+["\'}]|\[\s*+[\[{"\d\]tfn-]')


class BadAnswer(Exception):
    """The answer is no such value; `str(exc)` tells the model why, in a sentence or two."""


def preface(form: AnswerFormat) -> str:
    """How to answer, for the system's part of the conversation."""
    about = [f'It is called "{form.name}".'] if form.name else []
    about += [form.description.strip()] if form.description.strip() else []
    if form.schema == ANY_OBJECT:
        wanted = " ".join(["The whole of your answer must be one JSON object.", *about])
    else:
        first = "The whole of your answer must be one JSON value that fits the JSON Schema below."
        wanted = " ".join([first, *about]) + f"\n<schema>\n{_written(form.schema)}\n</schema>"
    return (
        f"# Form of the answer\n\n{wanted}\n"
        "Write the value itself, not the schema, as valid JSON: no words before or after it, no code fence, "
        "no comments; within strings escape quotation marks, backslashes and line breaks."
    )


def read(text: str, form: AnswerFormat) -> str:
    """The answer as JSON text alone, mended where that is harmless.

    Raises:
        BadAnswer: there is no such value in it.
    """
    schema = Schema(form.schema, "the answer")
    problem = ""
    try:
        for value in _values(text, schema):
            try:
                return compact(schema.fitted(value))
            except Misfit as exc:
                problem = problem or f"The answer does not fit: {exc}."
    except NotJson as exc:
        problem = problem or f"The answer cannot be read: {exc}."
    raise BadAnswer(problem or "The answer holds no JSON value.")


def correction(problem: str) -> str:
    """What the model is told after an answer that could not be used."""
    return (
        f"Your answer could not be used. {problem} Write the whole answer again, corrected: only the one "
        "JSON value, nothing before or after it."
    )


def _values(text: str, schema: Schema) -> Iterator[Any]:
    """What may be the answer, the likeliest first. Raises: NotJson, after all."""
    try:
        yield json_text.read(text)
        return
    except NotJson as exc:
        problem = exc
    for block in islice(_fenced(text), MOST_PLACES):
        try:
            yield json_text.read(block)
        except NotJson as exc:
            problem = exc
    if "string" in schema.kinds and not _OPENS.match(text.lstrip()):
        yield text.strip()
    yield from _among_words(text, schema, problem)


def _fenced(text: str) -> Iterator[str]:
    block: list[str] | None = None
    for line in text.split("\n"):
        if not line.lstrip().startswith("```"):
            if block is not None:
                block.append(line)
        elif block is None:
            block = []
        else:
            yield "\n".join(block)
            block = None


def _among_words(text: str, schema: Schema, problem: NotJson) -> Iterator[Any]:
    """Values that begin with a bracket; a broken one is mended, and the last: it may hold the others."""
    at = 0
    for _ in range(MOST_PLACES):
        found = _OPENS.search(text, at)
        if found is None:
            raise problem
        try:
            value, at = json_text.value_at(text, found.start())
        except NotJson as exc:
            value = json_text.mended(_to_fence(text[found.start() :]), exc)
            unknown = [each for each in value if each not in schema.names] if isinstance(value, dict) else []
            if schema.names and unknown:
                raise NotJson(f"it is not valid JSON near {listed(unknown)}") from None
            yield value
            return
        yield value


def _to_fence(text: str) -> str:
    return re.split(r"\n[ \t]{0,20}```", text, maxsplit=1)[0]


def _written(schema: Mapping[str, Any]) -> str:
    try:
        return compact(schema)
    except (RecursionError, ValueError):
        return '{"description":"too deep to be shown"}'
