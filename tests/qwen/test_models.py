from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenproxy.errors import ProtocolChanged, UnknownModel
from qwenproxy.qwen.models import (
    ALIASES,
    BUILT_IN,
    FAMILIES,
    Model,
    Thinking,
    is_known,
    read_list,
    resolve,
)

LIVE = BUILT_IN[:6]
"""What a free account received on 2026-09-13 (protocol §7)."""


def entry(model_id: str = "qwen3.8-max", **meta: Any) -> dict[str, Any]:
    whole = {
        "capabilities": {"vision": True, "document": True, "video": True, "audio": True, "thinking": True}
        | {"search": True},
        "max_context_length": 1_000_000,
        "max_summary_generation_length": 131_072,
        "abilities": {"vision": 1, "thinking": 3},
        "auto_thinking": True,
        "thinking_format": "summary",
        "chat_type": ["t2t", "search"],
        "think_skip": {"enable": True},
    } | meta
    info = {"id": model_id, "name": "ignored", "meta": whole, "is_active": True, "created_at": 1732711466}
    return {"id": model_id, "name": model_id.title(), "object": "model", "info": info}


def only(*args: Any, **meta: Any) -> Model:
    (model,) = read_list([entry(*args, **meta)])
    return model


def models(*ids: str, vision: bool = False) -> list[Model]:
    return [Model(model_id, model_id, vision=vision) for model_id in ids]


def serving(name: str, live: Any = LIVE, default: str = "qwen3.7-plus", unknown: Any = "refuse") -> str:
    return resolve(name, live, default=default, unknown=unknown).id


# ---- the list ----


def test_reads_an_entry() -> None:
    assert only() == Model(
        id="qwen3.8-max",
        name="Qwen3.8-Max",
        context_length=1_000_000,
        output_limit=131_072,
        thinking="optional",
        vision=True,
        audio=True,
        video=True,
        document=True,
        search=True,
        chat_types=("t2t", "search"),
        created_at=1732711466,
    )


def test_reads_both_forms_in_order() -> None:
    entries = [entry("b"), entry("a"), entry("B", thinking_format="second")]
    for data in (entries, {"data": entries}, {"success": True, "data": {"data": entries}}):
        assert [model.id for model in read_list(data)] == ["b", "a"]
    assert read_list({"data": []}) == ()


def test_unusable_entries_are_left_out() -> None:
    inactive = entry("off")
    inactive["info"]["is_active"] = False
    odd: list[Any] = [None, 7, {}, {"id": 7}, {"id": ""}, {"id": " "}, inactive, entry("on")]
    assert [model.id for model in read_list(odd)] == ["on"]
    assert read_list([{"info": {"id": "x", "name": "X"}}]) == (Model("x", "X"),)
    assert read_list([{"id": "x"}]) == (Model("x", "x"),)


@pytest.mark.parametrize("data", [None, {}, "x", 7, {"data": {"models": []}}, [7], [{"id": ""}]])
def test_what_is_no_list(data: object) -> None:
    with pytest.raises(ProtocolChanged):
        read_list(data)


@pytest.mark.parametrize(
    ("meta", "thinking"),
    [
        ({"abilities": {"thinking": 1}}, "optional"),
        ({"abilities": {"thinking": 3}}, "optional"),
        ({"abilities": {"thinking": 4}}, "always"),
        ({"abilities": {"thinking": 2}}, "never"),
        ({"abilities": {}}, "optional"),
        ({"think_skip": {"enable": False}}, "always"),
        ({"think_skip": {}}, "optional"),
        ({"think_skip": None, "abilities": None}, "optional"),
        ({"capabilities": {}, "abilities": {"thinking": 2}}, "never"),
        ({"capabilities": {"thinking": False}, "think_skip": {"enable": False}}, "never"),
    ],
)
def test_thinking_rules(meta: dict[str, Any], thinking: Thinking) -> None:
    assert only(**meta).thinking == thinking


def test_limits() -> None:
    model = only(max_summary_generation_length=None, max_generation_length=65_536)
    assert model.output_limit == 65_536
    model = only(max_thinking_generation_length=81_920, abilities={"thinking": 1, "thinking_budget": 1})
    assert (model.thinking_limit, model.takes_budget) == (81_920, True)
    model = only(
        max_context_length="1000", max_summary_generation_length=-1, chat_type=[7], thinking_format=7
    )
    assert (model.context_length, model.output_limit, model.chat_types) == (0, 0, ("t2t",))
    assert model.thinking_format == "summary"
    assert only(max_context_length=True, chat_type="t2t").context_length == 0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["id", "info", "meta", "data", "abilities", "name", "thinking"]), inner
        )
    ),
    max_leaves=8,
)


@given(JSON)
def test_no_list_is_too_strange(data: object) -> None:
    with contextlib.suppress(ProtocolChanged):
        assert all(isinstance(model, Model) for model in read_list(data))


# ---- names ----


@pytest.mark.parametrize(
    ("name", "model_id"),
    [
        ("qwen3.8-max", "qwen3.8-max"),
        ("  Qwen3.8-MAX ", "qwen3.8-max"),
        ("qwen", "qwen3.7-plus"),
        ("QWEN", "qwen3.7-plus"),
        ("", "qwen3.7-plus"),
        ("qwen-max", "qwen3.8-max"),
        ("Qwen3-Max-Preview", "qwen3.8-max"),
        ("qwen-max-latest", "qwen3.8-max"),
        ("qwen-plus", "qwen3.7-plus"),
        ("qwen-turbo-latest", "qwen3.7-plus"),
        ("qwen3-coder", "qwen3.7-plus"),
        ("qwen-vl-max", "qwen3.8-max"),
        ("qwen3-omni", "qwen3.5-omni-plus"),
        ("qwq", "qwen3.7-plus"),
        ("qvq", "qwen3.8-max"),
        ("qwen3", "qwen3.7-plus"),
        ("qwen2.5-72b-instruct", "qwen3.7-plus"),
        ("qwen3.8-max-preview", "qwen3.8-max-preview"),
        ("QWEN3-Coder-Plus", "qwen3-coder-plus"),
    ],
)
def test_names(name: str, model_id: str) -> None:
    assert serving(name) == model_id


def test_live_ids_come_first_and_keep_their_case() -> None:
    assert serving("qwen-max", models("Qwen-Max", "qwen3.8-max")) == "Qwen-Max"
    assert serving("qwen-max", models("Qwen3-Max", "qwen3.8-max")) == "Qwen3-Max"
    assert serving("qwen3-max", models("qwen3-max", "qwen3.8-max")) == "qwen3-max"


@pytest.mark.parametrize(
    ("name", "live", "model_id"),
    [
        ("qwen-max", ["qwen3.7-max", "qwen3.10-max", "qwen3.9-max"], "qwen3.10-max"),
        ("qwen-max", ["qwen3.8-max-preview", "qwen3.7-max"], "qwen3.8-max-preview"),
        ("qwen-max", ["qwen3.8-max-preview", "qwen3.8-max"], "qwen3.8-max"),
        ("qwen-max", ["qwen4-omni-max", "qwen3-vl-max", "qwen3-coder-max", "qwen3.5-plus"], "qwen3.5-plus"),
        ("qwen-max", ["qwen3-max-2026-01-23", "qwen3-max-2026-03-01"], "qwen3-max-2026-03-01"),
        ("qwen-max", ["qwen-latest-series-invite-max-v16", "qwen3-max-1"], "qwen3-max-1"),
        ("qwen-plus", ["qwen3.8-max", "qwen3.5-omni-plus"], "qwen3.8-max"),
        ("qwen-plus", ["qwen3.6-plus-a", "qwen3.6-plus-b"], "qwen3.6-plus-a"),
        ("qwen-turbo", ["qwen3.7-plus", "qwen3.5-flash", "qwen3.8-omni-flash"], "qwen3.5-flash"),
        ("qwen-turbo", ["qwen3.8-max"], "qwen3.8-max"),
        ("qwen3-coder", ["qwen3.7-plus", "qwen3.5-coder-next"], "qwen3.5-coder-next"),
        ("qwen-vl", ["qwen3.8-max", "qwen3.5-vl-max"], "qwen3.5-vl-max"),
        ("qwen3-omni", ["qwen3.5-omni-plus", "qwen3.8-omni-flash"], "qwen3.8-omni-flash"),
    ],
)
def test_newest_of_a_family(name: str, live: list[str], model_id: str) -> None:
    assert serving(name, models(*live)) == model_id


def test_what_sees_pictures() -> None:
    blind, seeing = models("qwen3.9-max"), models("qwen3.7-plus", "qwen3.9-omni-max", vision=True)
    assert serving("qwen-vl", [*blind, *seeing]) == "qwen3.7-plus"
    assert serving("qwen-vl", [*blind, seeing[1]]) == "qwen3.9-omni-max"
    assert serving("qwen3-omni", [*blind, seeing[0]]) == "qwen3.7-plus"


def test_built_in_ids_when_no_family_is_live() -> None:
    assert serving("qwen-vl", models("other")) == "qwen3-vl-plus"
    with pytest.raises(UnknownModel):
        serving("qwen-max", models("other"))


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("qwen3.8-mx", "qwen3.8-max"), ("gpt-4o", "qwen3.7-plus"), ("x" * 100_000, "qwen3.7-plus")],
)
def test_unknown_names(name: str, nearest: str) -> None:
    with pytest.raises(UnknownModel, match=f"the nearest is '{nearest}'") as caught:
        serving(name)
    assert caught.value.param == "model"
    assert len(str(caught.value)) < 200
    assert serving(name, unknown="default") == "qwen3.7-plus"


def test_unknown_names_are_repeated_without_control_characters() -> None:
    with pytest.raises(UnknownModel, match=r"no model 'ab';"):
        serving("a\n\x1b\u202eb")


def test_a_default_that_does_not_exist() -> None:
    for name in ("qwen", "nonsense"):
        with pytest.raises(UnknownModel):
            serving(name, default="qwen", unknown="default")
    assert serving("qwen", default="Qwen-Max") == "qwen3.8-max"


@pytest.mark.parametrize("live", [LIVE, BUILT_IN])
@pytest.mark.parametrize("name", [*ALIASES, *FAMILIES])
def test_every_name_of_the_older_proxies_is_served(name: str, live: tuple[Model, ...]) -> None:
    assert name == name.lower()
    assert serving(name.upper(), live) in {model.id for model in BUILT_IN}


def test_the_aliases_lead_somewhere() -> None:
    assert set(ALIASES.values()) <= set(FAMILIES)
    assert len(FAMILIES) == 18
    assert ALIASES["qwen-max"] == "qwen3-max"
    assert ALIASES["qwen-vl-plus-latest"] == "qwen3-vl-plus"


def test_the_built_in_list() -> None:
    known = {model.id: model for model in BUILT_IN}
    assert len(known) == len(BUILT_IN)
    assert known["qwen3.8-max"].output_limit == 131_072
    assert known["qwen3.8-max-preview"].thinking == "always"
    assert known["qwen3.5-omni-plus"].thinking == "never"
    assert not known["qwen3.7-max"].vision


@pytest.mark.parametrize("name", ["", "Qwen", "QWEN3.7-plus", "qwen-max", "qwen3-coder-plus", " qwq "])
def test_names_that_are_known(name: str) -> None:
    assert is_known(name, BUILT_IN[:6])


@pytest.mark.parametrize("name", ["gpt-4o", "qwen3.7-plus-thinking", "qwen9-max"])
def test_names_that_nobody_here_knows(name: str) -> None:
    assert not is_known(name, BUILT_IN[:6])
    assert is_known(name, (*BUILT_IN[:6], Model(name, name)))
