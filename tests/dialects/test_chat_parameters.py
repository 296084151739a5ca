from __future__ import annotations

import re
from typing import Any

import pytest
from openai.types.chat.completion_create_params import (
    CompletionCreateParamsBase,
    CompletionCreateParamsStreaming,
)

from qwenproxy.dialects.chat_parameters import HARMLESS, PARAMETERS, refuse
from qwenproxy.errors import UnsupportedParameter


def test_the_table_knows_every_parameter_of_the_official_package() -> None:
    official = {*CompletionCreateParamsBase.__annotations__, *CompletionCreateParamsStreaming.__annotations__}
    assert official - set(PARAMETERS) == set()


def test_only_what_is_refused_has_harmless_values() -> None:
    assert {name for name, (how, _) in PARAMETERS.items() if how == "refused"} >= set(HARMLESS)


def test_a_parameter_that_says_the_same_follows_the_one_it_means() -> None:
    names = list(PARAMETERS)
    for name, (how, why) in PARAMETERS.items():
        if why == "the same":
            assert PARAMETERS[names[names.index(name) - 1]][0] == how


@pytest.mark.parametrize("name", [name for name, (how, _) in PARAMETERS.items() if how == "refused"])
def test_what_is_refused_is_named(name: str) -> None:
    with pytest.raises(UnsupportedParameter, match=re.escape(name)) as caught:
        refuse({"model": "qwen", name: {"any": "thing"}})
    assert caught.value.param == name
    for value in HARMLESS.get(name, ()):
        refuse({name: value})


@pytest.mark.parametrize("value", [True, 1, 0, "no"])
def test_a_number_is_no_answer_to_a_yes_or_no(value: Any) -> None:
    with pytest.raises(UnsupportedParameter):
        refuse({"logprobs": value})


def test_the_rest_is_let_through() -> None:
    refuse({"model": "qwen", "temperature": 3, "min_p": 0.1, "tools": []})
