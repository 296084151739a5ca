"""The fields of a request's body, each read with its own clear error. Pure; every dialect has these."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from jsonschema.exceptions import SchemaError
from jsonschema.validators import Draft202012Validator, validator_for

from qwenproxy.chat import AnswerFormat, Tool
from qwenproxy.errors import BadRequest

DEFAULT_MODEL: Final = "qwen"
"""What a request that names no model asks for: the setting `DEFAULT_MODEL`."""
NAME_CHARACTERS: Final = 256
"""Of a tool; OpenAI takes 64, but names with prefixes of servers are longer."""

MOST_STOPS: Final = 16
"""OpenAI takes 4; several clients send more."""
THINKING_BY_EFFORT: Final[Mapping[str, bool]] = MappingProxyType(
    {
        "none": False,
        "minimal": False,
        "low": True,
        "medium": True,
        "high": True,
        "xhigh": True,
        "max": True,
    }
)


def flag(given: Mapping[str, Any], name: str, within: str = "") -> bool | None:
    """True, false, or None where it is not said; `within`: the path of `given`. Raises: BadRequest."""
    value = given.get(name)
    if value is not None and not isinstance(value, bool):
        raise BadRequest(f"{within}{name} must be true or false", param=within + name)
    return value


def count(given: Mapping[str, Any], name: str, most: int | None = None, within: str = "") -> int | None:
    """A whole number above 0, or None where it is not said. Raises: BadRequest."""
    value = given.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BadRequest(f"{within}{name} must be a whole number above 0", param=within + name)
    if most is not None and value > most:
        raise BadRequest(f"{within}{name} must be at most {most}", param=within + name)
    return value


def mapping(given: Mapping[str, Any], name: str, within: str = "") -> Mapping[str, Any]:
    """An object, an empty one where it is not said. Raises: BadRequest."""
    value = given.get(name, {})
    if not isinstance(value, dict):
        raise BadRequest(f"{within}{name} must be an object", param=within + name)
    return value


def stop(given: Mapping[str, Any], name: str = "stop") -> tuple[str, ...]:
    """Sequences that end the answer. Raises: BadRequest."""
    value = given.get(name, [])
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise BadRequest(f"{name} must be a string or a list of strings, none of them empty", param=name)
    if len(stops) > MOST_STOPS:
        raise BadRequest(f"{name} must be at most {MOST_STOPS} strings", param=name)
    return tuple(stops)


def nearest_ratio(width: int, height: int, ratios: Sequence[str]) -> str:
    """The one of the ratios, such as `16:9`, that is nearest to these sides' own."""

    def distance(ratio: str) -> float:
        across, down = map(int, ratio.split(":"))
        return abs(math.log(width * down / (height * across)))

    return min(ratios, key=distance)


def thinks_by_effort(effort: Any, place: str) -> bool | None:
    """Whether that effort means to think; None where none is said. Raises: BadRequest."""
    if effort is None:
        return None
    if not isinstance(effort, str) or effort not in THINKING_BY_EFFORT:
        raise BadRequest(f"{place} must be one of {', '.join(THINKING_BY_EFFORT)}", param=place)
    return THINKING_BY_EFFORT[effort]


def model(given: Mapping[str, Any]) -> str:
    """The model's name as the client wrote it. Raises: BadRequest."""
    name = given.get("model", DEFAULT_MODEL)
    if not isinstance(name, str) or not name.strip():
        raise BadRequest("model must be a model's name", param="model")
    return name.strip()


def tool(raw: Mapping[str, Any], place: str, schema: str = "parameters") -> Tool:
    """A tool of which `raw` holds name, description and, under the name `schema`, its JSON Schema.

    Raises:
        BadRequest: it has no name, or no such schema.
    """
    name, description = raw.get("name"), raw.get("description")
    if not isinstance(name, str) or not name.strip() or len(name) > NAME_CHARACTERS:
        raise BadRequest(f"{place}.name must be a tool's name", param=f"{place}.name")
    if description is not None and not isinstance(description, str):
        raise BadRequest(f"{place}.description must be a string", param=f"{place}.description")
    parameters = raw.get(schema)
    if parameters is not None and not isinstance(parameters, dict):
        raise BadRequest(f"{place}.{schema} must be a JSON Schema", param=f"{place}.{schema}")
    return Tool(name, description or "", parameters or {})


def answer_format(raw: Mapping[str, Any], place: str) -> AnswerFormat:
    """The JSON that an answer must be, of which `raw` holds `schema` and perhaps name and description.

    Raises:
        BadRequest: there is no schema of an object in it.
    """
    schema, name, description = raw.get("schema"), raw.get("name"), raw.get("description")
    if not isinstance(schema, dict) or schema.get("type", "object") != "object":
        raise BadRequest(f"{place}.schema must be the JSON Schema of an object", param=f"{place}.schema")
    for field, value in (("name", name), ("description", description)):
        if value is not None and not isinstance(value, str):
            raise BadRequest(f"{place}.{field} must be a string", param=f"{place}.{field}")
    try:
        validator_for(schema, default=Draft202012Validator).check_schema(schema)
    except SchemaError as exc:
        told = f"{place}.schema is no JSON Schema: at {exc.json_path}: {exc.message[:200]}"
        raise BadRequest(told, param=f"{place}.schema") from None
    return AnswerFormat(schema, name or "", description or "")
