"""JSON Schemas as clients write them, each with values that fit, for the tests of tools and formats."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

NAMES = st.from_regex(r"[a-zA-Z_][\w-]{0,8}", fullmatch=True)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
WHOLE = st.integers(-(2**62), 2**62)
JSON = st.recursive(
    st.none() | st.booleans() | WHOLE | NUMBERS | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
Case = tuple[dict[str, Any], st.SearchStrategy[Any]]


def scalars(texts: st.SearchStrategy[str]) -> st.SearchStrategy[Case]:
    """Schemas of single values, none of which may be of several types."""
    return st.one_of(
        st.just(({"type": "string"}, texts)),
        st.just(({"type": "integer"}, WHOLE)),
        st.just(({"type": "number"}, NUMBERS | WHOLE)),
        st.just(({"type": "boolean"}, st.booleans())),
        st.just(({"type": "null"}, st.none())),
        st.lists(texts, min_size=1, max_size=3, unique=True).map(
            lambda members: ({"type": "string", "enum": members}, st.sampled_from(members))
        ),
    )


def arrays(inner: st.SearchStrategy[Case]) -> st.SearchStrategy[Case]:
    return inner.map(lambda case: ({"type": "array", "items": case[0]}, st.lists(case[1], max_size=3)))


@st.composite
def objects(draw: st.DrawFn, inner: st.SearchStrategy[Case]) -> Case:
    cases = draw(st.dictionaries(NAMES, inner, max_size=4))
    names = sorted(cases)
    required = [name for name in names if draw(st.booleans())]
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: cases[name][0] for name in names},
        "required": required,
    }
    if draw(st.booleans()):
        schema["additionalProperties"] = False
    values = st.fixed_dictionaries(
        {name: cases[name][1] for name in required},
        optional={name: cases[name][1] for name in names if name not in required},
    )
    return schema, values


@st.composite
def choices(draw: st.DrawFn, inner: st.SearchStrategy[Case]) -> Case:
    """One of two, by `anyOf` or a list of types."""
    (first, values), (second, others) = draw(st.tuples(inner, inner))
    if set(first) == set(second) == {"type"} and first["type"] != second["type"]:
        return {"type": [first["type"], second["type"]]}, values | others
    return {"anyOf": [first, second]}, values | others


def any_of_them() -> st.SearchStrategy[Case]:
    return st.recursive(
        scalars(st.text()),
        lambda inner: arrays(inner) | objects(inner) | choices(scalars(st.text()) | arrays(inner)),
        max_leaves=5,
    )


@st.composite
def fitting(draw: st.DrawFn, cases: st.SearchStrategy[Case]) -> tuple[dict[str, Any], Any]:
    """A schema, and a value that fits it."""
    schema, values = draw(cases)
    return schema, draw(values)
