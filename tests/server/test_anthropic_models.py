from __future__ import annotations

from typing import Any

import pytest
from anthropic.types import ModelInfo

from qwenproxy.errors import BadRequest
from qwenproxy.qwen.models import Model
from qwenproxy.server.anthropic_models import page_of, told

MODELS = tuple(Model(f"m{number}", f"Model {number}") for number in range(5))


def ids(**query: str) -> list[str]:
    return [row["id"] for row in page_of(MODELS, query)["data"]]


def test_a_model_has_anthropics_type() -> None:
    full = told(Model("qwen3-max", "Qwen3 Max", 262_144, 65_536, created_at=1_790_000_000))
    assert full == {
        "type": "model",
        "id": "qwen3-max",
        "display_name": "Qwen3 Max",
        "created_at": "2026-09-21T14:13:20Z",
        "lifecycle": "active",
        "max_input_tokens": 262_144,
        "max_tokens": 65_536,
        "capabilities": None,
    }
    for row in (full, told(MODELS[0]), told(Model("x", "X", created_at=10**18))):
        ModelInfo.model_validate(row)
    assert told(MODELS[0])["created_at"] == "1970-01-01T00:00:00Z"
    assert told(MODELS[0])["max_tokens"] is None


def test_all_of_them_are_one_page() -> None:
    assert page_of(MODELS, {}) == {
        "data": [told(model) for model in MODELS],
        "has_more": False,
        "first_id": "m0",
        "last_id": "m4",
    }
    assert page_of((), {}) == {"data": [], "has_more": False, "first_id": None, "last_id": None}


@pytest.mark.parametrize(
    ("query", "expected", "more"),
    [
        ({"limit": "2"}, ["m0", "m1"], True),
        ({"limit": "5"}, ["m0", "m1", "m2", "m3", "m4"], False),
        ({"limit": "2", "after_id": "m1"}, ["m2", "m3"], True),
        ({"limit": "2", "after_id": "m2"}, ["m3", "m4"], False),
        ({"after_id": "m4"}, [], False),
        ({"limit": "2", "before_id": "m4"}, ["m2", "m3"], True),
        ({"limit": "2", "before_id": "m2"}, ["m0", "m1"], False),
        ({"before_id": "m0"}, [], False),
        ({"limit": "1", "after_id": "m0", "before_id": "m3"}, ["m1"], True),
        ({"after_id": "m3", "before_id": "m1"}, [], False),
        ({"after_id": "", "limit": "1000"}, ["m0", "m1", "m2", "m3", "m4"], False),
    ],
)
def test_pages(query: dict[str, str], expected: list[str], *, more: bool) -> None:
    page = page_of(MODELS, query)
    assert [row["id"] for row in page["data"]] == expected
    assert page["has_more"] is more
    assert page["first_id"] == (expected[0] if expected else None)
    assert page["last_id"] == (expected[-1] if expected else None)


@pytest.mark.parametrize("size", ["1", "2", "3"])
def test_walking_either_way_meets_every_model_once(size: str) -> None:
    forth: list[str] = []
    while True:
        page = page_of(MODELS, {"limit": size, **({"after_id": forth[-1]} if forth else {})})
        forth += [row["id"] for row in page["data"]]
        if not page["has_more"]:
            break
    assert forth == [model.id for model in MODELS]
    back: list[str] = ["m4"]
    while True:
        page = page_of(MODELS, {"limit": size, "before_id": back[0]})
        back = [row["id"] for row in page["data"]] + back
        if not page["has_more"]:
            break
    assert back == forth


@pytest.mark.parametrize(
    "query",
    [{"limit": limit} for limit in ("0", "1001", "-1", "", "x", "٣", "1.5", "9" * 5000)]
    + [{"after_id": "gpt-17"}, {"before_id": "gpt-17"}],
)
def test_what_is_wrong_is_named(query: dict[str, Any]) -> None:
    with pytest.raises(BadRequest) as caught:
        page_of(MODELS, query)
    assert caught.value.param == next(iter(query))
    assert ids() == [model.id for model in MODELS]
