"""Answers that must be JSON: asked for, taken out of what is around them, checked."""

from __future__ import annotations

import json
import re

from jsonschema import Draft202012Validator

from qwenproxy.chat import AnswerFormat


class BadAnswer(Exception):
    pass


def preface(form: AnswerFormat) -> str:
    return f"Answer with one JSON value that fits this schema, and nothing else:\n{json.dumps(dict(form.schema))}"


def read(text: str, form: AnswerFormat) -> str:
    found = re.search(r"[{\[].*[}\]]", text, re.DOTALL)
    try:
        value = json.loads(found[0] if found else text)
    except ValueError:
        raise BadAnswer("It is no JSON.") from None
    error = next(Draft202012Validator(dict(form.schema)).iter_errors(value), None)
    if error is not None:
        raise BadAnswer(error.message[:200])
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def correction(problem: str) -> str:
    return f"Your answer does not fit. {problem} Write the whole JSON again, and nothing else."
