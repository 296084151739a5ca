"""One agent's request in each dialect, sent by that dialect's official SDK, streamed or whole."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import anthropic
import openai

MODEL = "qwen"


@dataclass(frozen=True)
class Call:
    id: str
    name: str
    arguments: Mapping[str, Any]


@dataclass
class Heard:
    """An answer, as a program has it that uses the SDK."""

    text: str = ""
    calls: list[Call] = field(default_factory=list)
    ended: str = ""
    """Why, in the dialect's own word."""
    turns: list[Any] = field(default_factory=list)
    """What goes into the history for it."""


@dataclass(frozen=True)
class Task:
    tools: Sequence[Mapping[str, Any]] = ()
    """Each with `name`, `description` and `parameters`."""
    must_call: bool = False
    parallel: bool = True
    schema: Mapping[str, Any] | None = None
    """Of the JSON that is wanted."""


class Speaker(Protocol):
    calls_ended: str
    """What `Heard.ended` is after calls."""

    def say(self, history: Sequence[Any], task: Task, *, stream: bool) -> Heard: ...

    def result(self, call: Call, text: str) -> Any: ...

    def close(self) -> None: ...


class ChatCompletions:
    calls_ended = "tool_calls"

    def __init__(self, base: str) -> None:
        self._client: Any = openai.OpenAI(base_url=f"{base}/v1", api_key="any", max_retries=0)

    def say(self, history: Sequence[Any], task: Task, *, stream: bool) -> Heard:
        asked: dict[str, Any] = {"model": MODEL, "messages": list(history), "stream": stream}
        if task.tools:
            asked["tools"] = [{"type": "function", "function": tool} for tool in task.tools]
            asked["tool_choice"] = "required" if task.must_call else "auto"
            asked["parallel_tool_calls"] = task.parallel
        if task.schema is not None:
            form = {"name": "place", "schema": task.schema, "strict": True}
            asked["response_format"] = {"type": "json_schema", "json_schema": form}
        answer = self._client.chat.completions.create(**asked)
        text, calls, ended = self._pieces(answer) if stream else self._whole(answer)
        made = [
            {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
            for call_id, name, arguments in calls
        ]
        turn = {"role": "assistant", "content": text or None, **({"tool_calls": made} if made else {})}
        heard = [Call(call_id, name, json.loads(arguments)) for call_id, name, arguments in calls]
        return Heard(text, heard, ended, [turn])

    def result(self, call: Call, text: str) -> Any:
        return {"role": "tool", "tool_call_id": call.id, "content": text}

    def close(self) -> None:
        self._client.close()

    def _whole(self, answer: Any) -> tuple[str, list[tuple[str, str, str]], str]:
        [choice] = answer.choices
        made = choice.message.tool_calls or []
        calls = [(each.id, each.function.name, each.function.arguments) for each in made]
        return choice.message.content or "", calls, choice.finish_reason

    def _pieces(self, answer: Any) -> tuple[str, list[tuple[str, str, str]], str]:
        text, ended, calls = "", "", list[list[str]]()
        for chunk in answer:
            for choice in chunk.choices:
                assert not ended, "a piece after the end"
                text += choice.delta.content or ""
                ended = choice.finish_reason or ended
                for piece in choice.delta.tool_calls or []:
                    if piece.index == len(calls):
                        assert piece.id
                        assert piece.function.name
                        calls.append([piece.id, piece.function.name, ""])
                    calls[piece.index][2] += piece.function.arguments or ""
        return text, [(one, two, three) for one, two, three in calls], ended


class Responses:
    calls_ended = "completed"

    def __init__(self, base: str) -> None:
        self._client: Any = openai.OpenAI(base_url=f"{base}/v1", api_key="any", max_retries=0)

    def say(self, history: Sequence[Any], task: Task, *, stream: bool) -> Heard:
        asked: dict[str, Any] = {"model": MODEL, "input": list(history), "store": False}
        if task.tools:
            asked["tools"] = [{"type": "function", "strict": False, **tool} for tool in task.tools]
            asked["tool_choice"] = "required" if task.must_call else "auto"
            asked["parallel_tool_calls"] = task.parallel
        if task.schema is not None:
            form = {"type": "json_schema", "name": "place", "schema": task.schema, "strict": True}
            asked["text"] = {"format": form}
        if stream:
            with self._client.responses.stream(**asked) as events:
                text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
                answer = events.get_final_response()
            assert text == answer.output_text
        else:
            answer = self._client.responses.create(**asked)
        calls = [
            Call(item.call_id, item.name, json.loads(item.arguments))
            for item in answer.output
            if item.type == "function_call"
        ]
        turns = [item.model_dump(exclude_none=True, exclude={"parsed_arguments"}) for item in answer.output]
        return Heard(answer.output_text, calls, answer.status, turns)

    def result(self, call: Call, text: str) -> Any:
        return {"type": "function_call_output", "call_id": call.id, "output": text}

    def close(self) -> None:
        self._client.close()


class Messages:
    calls_ended = "tool_use"

    def __init__(self, base: str) -> None:
        self._client: Any = anthropic.Anthropic(base_url=base, api_key="any", max_retries=0)

    def say(self, history: Sequence[Any], task: Task, *, stream: bool) -> Heard:
        asked: dict[str, Any] = {"model": MODEL, "max_tokens": 8000, "messages": _merged(history)}
        if task.tools:
            asked["tools"] = [
                {
                    "name": tool["name"],
                    "description": tool["description"],
                    "input_schema": tool["parameters"],
                }
                for tool in task.tools
            ]
            asked["tool_choice"] = {
                "type": "any" if task.must_call else "auto",
                "disable_parallel_tool_use": not task.parallel,
            }
        if task.schema is not None:
            asked["output_config"] = {"format": {"type": "json_schema", "schema": task.schema}}
        if stream:
            with self._client.messages.stream(**asked) as events:
                text = "".join(events.text_stream)
                answer = events.get_final_message()
            assert text == "".join(block.text for block in answer.content if block.type == "text")
        else:
            answer = self._client.messages.create(**asked)
            text = "".join(block.text for block in answer.content if block.type == "text")
        calls = [
            Call(block.id, block.name, block.input) for block in answer.content if block.type == "tool_use"
        ]
        content = [block.model_dump(exclude_none=True) for block in answer.content]
        turns = [{"role": "assistant", "content": content}]
        return Heard(text, calls, answer.stop_reason or "", turns)

    def result(self, call: Call, text: str) -> Any:
        block = {"type": "tool_result", "tool_use_id": call.id, "content": text}
        return {"role": "user", "content": [block]}

    def close(self) -> None:
        self._client.close()


def _merged(history: Sequence[Any]) -> list[Any]:
    """Results of parallel calls are one message."""
    merged: list[Any] = []
    for turn in history:
        if merged and merged[-1]["role"] == turn["role"] == "user":
            merged[-1] = {"role": "user", "content": [*merged[-1]["content"], *turn["content"]]}
        else:
            merged.append(turn)
    return merged


SPEAKERS: Mapping[str, type[ChatCompletions] | type[Responses] | type[Messages]] = {
    "chat": ChatCompletions,
    "responses": Responses,
    "messages": Messages,
}
