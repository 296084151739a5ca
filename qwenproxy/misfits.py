"""What does not fit a JSON Schema, in a sentence that a model and a person understand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from jsonschema.exceptions import ValidationError

from qwenproxy.json_text import compact

MOST_TOLD: Final = 3
"""Problems; the others are counted."""
MOST_CHARACTERS: Final = 240
"""Of one of them."""
QUOTED_CHARACTERS: Final = 60
MOST_NAMES: Final = 12
_KINDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "string": "a string",
        "integer": "a whole number",
        "number": "a number",
        "boolean": "true or false",
        "array": "a list",
        "object": "an object",
        "null": "null",
    }
)
_LIMITS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "minimum": "must be at least {}",
        "maximum": "must be at most {}",
        "exclusiveMinimum": "must be more than {}",
        "exclusiveMaximum": "must be less than {}",
        "multipleOf": "must be a multiple of {}",
        "minLength": "must have at least {} characters",
        "maxLength": "must have at most {} characters",
        "minItems": "must have at least {} items",
        "maxItems": "must have at most {} items",
        "minProperties": "must have at least {} fields",
        "maxProperties": "must have at most {} fields",
        "pattern": "must match the pattern {}",
        "uniqueItems": "must not have an item twice",
        "const": "must be {}",
    }
)
_MARKS: Final = ("type", "const", "enum")
"""What marks out a branch of several."""


def told(problems: Sequence[ValidationError], subject: str) -> str:
    """The problems as a sentence, no full stop; `subject`: what a whole value is called."""
    texts = list(dict.fromkeys(_told(problem, subject)[:MOST_CHARACTERS] for problem in problems))
    more = len(texts) - MOST_TOLD
    sentence = "; ".join([*texts[:MOST_TOLD], *([f"and {more} more"] if more > 0 else [])])
    return sentence.encode("utf-8", "replace").decode()


def quoted(value: Any, most: int = QUOTED_CHARACTERS) -> str:
    """A value as JSON, cut where it is long."""
    text = compact(value)
    return text if len(text) <= most else f"{text[:most]}…"


def listed(names: Sequence[Any]) -> str:
    """Names, the first dozen."""
    told = ", ".join(quoted(name) for name in names[:MOST_NAMES])
    return told + (f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else "")


def _told(problem: ValidationError, subject: str) -> str:
    place = _place(problem)
    what = place or subject
    wanted: Any = problem.validator_value
    value: Any = problem.instance
    match problem.validator:
        case "required":
            missing = [name for name in wanted if name not in value]
            names = ", ".join(f"{place}.{name}" if place else name for name in missing)
            return f"{names} {'is' if len(missing) == 1 else 'are'} missing"
        case "type":
            return f"{what} must be {_kinds(wanted)}, not {quoted(value)}"
        case "enum":
            return f"{what} must be one of {listed(wanted)}, not {quoted(value)}"
        case "additionalProperties" if wanted is False:
            schema: Any = problem.schema
            known = list(schema.get("properties", {}))
            extra = [name for name in value if name not in known]
            return f"{what} must not have {listed(extra)}; there is {listed(known) or 'no field'}"
        case "anyOf" | "oneOf":
            return _of_choice(problem, what, subject)
        case str() as keyword if keyword in _LIMITS:
            return f"{what} {_LIMITS[keyword].format(quoted(wanted))}"
    return f'{what} does not fit the "{problem.validator}" of the schema'


def _of_choice(problem: ValidationError, what: str, subject: str) -> str:
    """Of the branch that was probably meant: what marks it out, such as its type, is right."""
    branches: dict[Any, list[ValidationError]] = {}
    for each in problem.context or ():
        branches.setdefault(each.schema_path[0], []).append(each)
    if not branches:
        return f"{what} fits more than one of the forms it may have"
    nearest = min(branches.values(), key=_distance)
    if _distance(nearest) == (0, len(nearest)):
        return _told(nearest[0], subject)
    marks = [next(each for each in problems if each.validator in _MARKS) for problems in branches.values()]
    wanted: list[Any] = [each.validator_value for each in marks]
    if all(each.validator == "type" for each in marks):
        return f"{what} must be {_kinds(wanted)}, not {quoted(problem.instance)}"
    if all(each.validator == "const" and each.path == marks[0].path for each in marks):
        return f"{_place(marks[0]) or what} must be one of {listed(wanted)}, not {quoted(marks[0].instance)}"
    return f"{what} fits none of the forms it may have: {quoted(problem.instance)}"


def _distance(problems: Sequence[ValidationError]) -> tuple[int, int]:
    return sum(each.validator in _MARKS for each in problems), len(problems)


def _kinds(wanted: Any) -> str:
    names = [wanted] if isinstance(wanted, str) else wanted
    return " or ".join(dict.fromkeys(_KINDS.get(str(name), str(name)) for name in names))


def _place(problem: ValidationError) -> str:
    """Such as edits[0].path; "" of the whole value."""
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in problem.absolute_path)
    return "".join(steps).removeprefix(".")
