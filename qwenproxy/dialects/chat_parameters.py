"""What is done with each parameter of OpenAI's Chat Completions; the README's table is held equal. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Literal

from qwenproxy.dialects.fields import MOST_STOPS
from qwenproxy.errors import UnsupportedParameter

Treatment = Literal["honoured", "ignored", "refused"]

MOST_CHOICES: Final = 8
"""Each choice is a whole answer of the service, on a slot of its own."""

PARAMETERS: Final[Mapping[str, tuple[Treatment, str]]] = MappingProxyType(
    {
        "messages": ("honoured", "text, the parts of *Files and pictures*, calls of tools and their results"),
        "prompt": ("honoured", "without `messages`: draws, as `/v1/images/generations` does"),
        "model": ("honoured", "none: `qwen`, the default model"),
        "stream": ("honoured", ""),
        "stream_options": ("honoured", "`include_usage`"),
        "n": ("honoured", f"1 to {MOST_CHOICES}; each choice is an answer of its own"),
        "stop": ("honoured", f"a string or up to {MOST_STOPS}; done by the proxy"),
        "max_tokens": ("honoured", "done by the proxy"),
        "max_completion_tokens": ("honoured", "wins over `max_tokens`"),
        "tools": (
            "honoured",
            "of type `function` and `custom` (a `grammar` is told to the model, not enforced); "
            "one of type `web_search` searches the web if it is the only one or chosen",
        ),
        "tool_choice": (
            "honoured",
            "`auto`, `none`, `required` (also `any`), a named tool, `allowed_tools`",
        ),
        "parallel_tool_calls": ("honoured", "`false`: at most one call in an answer"),
        "functions": (
            "honoured",
            "the older form of `tools`: answered with `function_call`, one in an answer",
        ),
        "function_call": ("honoured", "`auto`, `none`, a named function"),
        "response_format": (
            "honoured",
            "`json_object`, `json_schema`: the answer is checked, whether `strict` or not",
        ),
        "web_search_options": ("honoured", "searches the web, whatever stands in it"),
        "enable_search": ("honoured", "the same"),
        "enable_thinking": ("honoured", "wins over the others that turn thinking on or off"),
        "chat_template_kwargs": ("honoured", "`enable_thinking`"),
        "thinking": ("honoured", "`type`: `enabled`, `disabled`; `budget_tokens`"),
        "reasoning": (
            "honoured",
            "`enabled`, `effort`, `max_tokens`; `exclude` leaves `reasoning_content` out",
        ),
        "reasoning_effort": ("honoured", "`none` and `minimal` turn thinking off, the others on"),
        "thinking_budget": ("honoured", "tokens"),
        "include_reasoning": ("honoured", "`false` leaves `reasoning_content` out"),
        "conversation_id": (
            "honoured",
            "the `id` of an answer of the last day, or a chat's; of `messages` the last question counts, or "
            "the results of the answer's calls",
        ),
        "chat_id": ("honoured", "the same"),
        "chatId": ("honoured", "the same"),
        "parent_id": ("honoured", "with a chat: the stored message to continue from"),
        "parentId": ("honoured", "the same"),
        "store": ("honoured", "`false`: the answer cannot be continued by its `id`"),
        "temperature": ("ignored", "the web service has no such knob"),
        "top_p": ("ignored", "the web service has no such knob"),
        "seed": ("ignored", "the web service has no such knob"),
        "presence_penalty": ("ignored", "the web service has no such knob"),
        "frequency_penalty": ("ignored", "the web service has no such knob"),
        "logit_bias": ("ignored", "the web service has no such knob"),
        "verbosity": ("ignored", "the web service has no such knob"),
        "user": ("ignored", ""),
        "metadata": ("ignored", ""),
        "service_tier": ("ignored", ""),
        "safety_identifier": ("ignored", ""),
        "moderation": ("ignored", "the service moderates by itself"),
        "prompt_cache_key": ("ignored", ""),
        "prompt_cache_options": ("ignored", ""),
        "prompt_cache_retention": ("ignored", ""),
        "logprobs": ("refused", "`false` is ignored"),
        "top_logprobs": ("refused", "`0` is ignored"),
        "modalities": ("refused", '`["text"]` is ignored'),
        "audio": ("refused", ""),
        "prediction": ("refused", ""),
        "previous_response_id": ("refused", "`conversation_id` does it here"),
    }
)
"""Every parameter with a meaning. One that is not listed is ignored; `null` is the same as absent."""

HARMLESS: Final[Mapping[str, tuple[Any, ...]]] = MappingProxyType(
    {"logprobs": (False,), "top_logprobs": (0,), "modalities": (["text"],)}
)
"""The values of refused parameters that ask for nothing."""


def refuse(given: Mapping[str, Any]) -> None:
    """Raises: UnsupportedParameter, for the first parameter that asks for what cannot be had."""
    for name, value in given.items():
        treatment, _ = PARAMETERS.get(name, ("ignored", ""))
        if treatment == "refused" and not _harmless(name, value):
            raise UnsupportedParameter(f"{name} is not supported here", param=name)


def _harmless(name: str, value: Any) -> bool:
    # `0 == False` in Python: a number is no answer to a question for true or false.
    return any(value == least and type(value) is type(least) for least in HARMLESS.get(name, ()))
