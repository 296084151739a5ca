from __future__ import annotations

from typing import Any

import pytest

from qwenproxy.schema_parts import alike, kind_of, kinds, target

ROOT: dict[str, Any] = {
    "$defs": {
        "path": {"type": "string"},
        "again": {"$ref": "#/$defs/path"},
        "round": {"$ref": "#/$defs/round"},
        "a/b~c": {"type": "null"},
    },
    "anyOf": [{"type": "integer"}, {"$ref": "#/$defs/path"}],
}


@pytest.mark.parametrize(
    ("reference", "found"),
    [
        ("#/$defs/path", {"type": "string"}),
        ("#/$defs/again", {"type": "string"}),
        ("#/$defs/a~1b~0c", {"type": "null"}),
        ("#/anyOf/0", {"type": "integer"}),
        ("#", ROOT),
        ("#/$defs/round", {}),
        ("#/$defs/none", {}),
        ("#/anyOf/7", {}),
        ("#/$defs/path/type/deeper", {}),
        ("https://example.com/schema", {}),
        (5, {}),
    ],
)
def test_references_lead_only_into_the_schema(reference: Any, found: Any) -> None:
    assert target({"$ref": reference}, ROOT) == found


def test_a_part_that_is_no_object_says_nothing() -> None:
    assert target(True, ROOT) == {}


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (None, "null"),
        (True, "boolean"),
        (5, "integer"),
        (5.0, "number"),
        ("5", "string"),
        ([], "array"),
        ({}, "object"),
    ],
)
def test_each_value_has_a_type(value: Any, kind: str) -> None:
    assert kind_of(value) == kind


@pytest.mark.parametrize(
    ("part", "wanted"),
    [
        ({"type": "string"}, {"string"}),
        ({"type": ["string", "null", 5]}, {"string", "null"}),
        ({"enum": ["a", 1, None]}, {"string", "integer", "null"}),
        ({"const": 1.5}, {"number"}),
        ({"$ref": "#/$defs/again"}, {"string"}),
        (ROOT, {"integer", "string"}),
        ({"oneOf": [{"type": "null"}, {"properties": {}}]}, {"null", "object"}),
        ({"anyOf": [{"type": "null"}, {}]}, set()),
        ({"allOf": [{}, {"type": "array"}]}, {"array"}),
        ({"allOf": [{}]}, set()),
        ({"items": {}}, {"array"}),
        ({"description": "any"}, set()),
        (True, set()),
        (None, set()),
    ],
)
def test_what_types_a_value_may_have(part: Any, wanted: set[str]) -> None:
    assert kinds(part, ROOT) == wanted


def test_choices_that_never_end_allow_anything() -> None:
    endless = {"anyOf": [{"$ref": "#"}]}
    assert kinds(endless, endless) == set()


def test_spellings_of_a_name_are_alike() -> None:
    assert (
        len({alike(name) for name in ("file_path", "filePath", "File-Path", "file path", "file.path")}) == 1
    )
    assert alike("file_path") != alike("filepaths")
