"""What parts of a JSON Schema say, as far as a value can be told from them. Nothing is fetched."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

MOST_HOPS: Final = 8
"""References that lead to references, and choices within choices."""


def target(part: Any, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the part's reference means, by way of others too, else the part; {} where that is unknown."""
    for _ in range(MOST_HOPS):
        if not isinstance(part, Mapping):
            break
        reference = part.get("$ref")
        if reference is None:
            return part
        part = _at(root, reference) if isinstance(reference, str) else None
    return {}


def _at(root: Any, reference: str) -> Any:
    """What a reference into the schema itself, such as #/$defs/path, refers to."""
    if reference != "#" and not reference.startswith("#/"):
        return None
    found = root
    for escaped in reference.split("/")[1:]:
        step = escaped.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and step.isdecimal() and int(step) < len(found):
            found = found[int(step)]
        else:
            found = found.get(step) if isinstance(found, Mapping) else None
    return found


def kind_of(value: Any) -> str:
    """The type of a value, as JSON Schema calls it."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
    return "object"


def kinds(part: Any, root: Mapping[str, Any], hops: int = MOST_HOPS) -> frozenset[str]:
    """The types that a value may have; none where it may have any."""
    found = target(part, root)
    declared = found.get("type")
    if isinstance(declared, str):
        return frozenset({declared})
    if isinstance(declared, list):
        return frozenset(each for each in declared if isinstance(each, str))
    if isinstance(found.get("enum"), list):
        return frozenset(map(kind_of, found["enum"]))
    if "const" in found:
        return frozenset({kind_of(found["const"])})
    for choice in ("anyOf", "oneOf"):
        if isinstance(found.get(choice), list) and hops:
            branches = [kinds(each, root, hops - 1) for each in found[choice]]
            return frozenset().union(*branches) if all(branches) else frozenset()
    if isinstance(found.get("allOf"), list) and hops:
        every = (kinds(each, root, hops - 1) for each in found["allOf"])
        return next(filter(None, every), frozenset())
    if isinstance(found.get("properties"), Mapping):
        return frozenset({"object"})
    return frozenset({"array"} if "items" in found else ())


def alike(name: str) -> str:
    """The same for `file_path`, `filePath`, `File-Path` and the like."""
    return re.sub(r"[-_. ]", "", name).casefold()
