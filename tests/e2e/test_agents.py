"""Agents through the whole proxy: every script of the stand-in, over the official SDKs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import anthropic
import openai
import pytest

from qwenproxy.standin import agent
from tests.acting import SPEAKERS, Call, Heard, Speaker, Task
from tests.serve import Standin, running_proxy, running_standin

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]

FILE = "/tmp/two_lines.txt"
TWO = "one\ntwo\n"
WRITE_FILE: Mapping[str, Any] = {
    "name": "write_file",
    "description": "Writes a file.",
    "parameters": {
        "type": "object",
        "properties": {
            "path": {"type": "string"},
            "content": {"type": "string"},
            "lines": {"type": "integer"},
            "overwrite": {"type": "boolean"},
        },
        "required": ["path", "content"],
    },
}
LIST_FILES: Mapping[str, Any] = {
    "name": "list_files",
    "description": "Lists a folder.",
    "parameters": {
        "type": "object",
        "properties": {"folder": {"type": "string"}, "depth": {"type": "integer"}},
        "required": ["folder"],
    },
}
PLACE: Mapping[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "people": {"type": "integer"}},
    "required": ["city", "people"],
    "additionalProperties": False,
}
TOOLS = Task((WRITE_FILE, LIST_FILES))
JSON = Task(schema=PLACE)
WRITES = ("write_file", {"path": FILE, "content": TWO})
NUUK = '{"city": "Nuuk", "people": 19872}'
MARKUP = ("<tool_", "</tool_", "<function", "</function", "<parameter", "does not exists", '"arguments"')


@dataclass(frozen=True)
class Expected:
    """What a client sees of a script."""

    task: Task = TOOLS
    text: str = ""
    calls: tuple[tuple[str, Mapping[str, Any]], ...] = (WRITES,)
    rounds: int = 1
    """How often the model is asked until it has called."""
    last: str = "The file is written."
    """What it says when the results are there."""
    code: str = ""
    """Of the error that the client gets instead."""


@dataclass
class Play:
    """A conversation that is played to its end."""

    speaker: Speaker
    stream: bool
    task: Task
    history: list[Any] = field(default_factory=list)

    def say(self) -> Heard:
        heard = self.speaker.say(self.history, self.task, stream=self.stream)
        self.history.extend(heard.turns)
        return heard

    def hand_in(self, calls: list[Call]) -> None:
        """From now on a call is not needed any more."""
        self.history.extend(self.speaker.result(call, f"{call.name} is done") for call in calls)
        self.task = replace(self.task, must_call=False)


AFTER_WORDS = Expected(text="I will write the file.")
TWO_CALLS = Expected(
    text="I will look around and write at the same time.",
    calls=(
        ("list_files", {"folder": ".", "depth": 2}),
        ("write_file", {"path": FILE, "content": "<html>\n</html>\n"}),
    ),
    last="Both are done.",
)
PREFIXED: Mapping[str, Any] = {**WRITE_FILE, "name": "mcp__files__write_file"}
EXPECTED: Mapping[str, Expected] = {
    "trained_form": Expected(text="I will write the file. It will hold two lines."),
    "parallel_calls": TWO_CALLS,
    "unclosed_tag": Expected(),
    "broken_json": Expected(),
    "raw_newlines": Expected(),
    "coder_xml": replace(
        AFTER_WORDS,
        calls=(
            (
                "write_file",
                {"path": FILE, "content": 'if a < b and c > d:\n    print("<b>")', "lines": 2},
            ),
        ),
    ),
    "coder_xml_alone": Expected(calls=(("write_file", {"path": FILE, "content": "one\ntwo"}),)),
    "fenced": replace(AFTER_WORDS, text="I will write the file:"),
    "bare_object": Expected(),
    "arguments_as_text": Expected(),
    "wrong_types": Expected(calls=((WRITES[0], {**WRITES[1], "lines": 2, "overwrite": True}),)),
    "other_prefix": Expected(),
    "without_prefix": Expected(Task((PREFIXED,)), calls=(("mcp__files__write_file", WRITES[1]),)),
    "imagined_response": Expected(text="I imagine that the file is written."),
    "unknown_tool": replace(AFTER_WORDS, text="I will save the file.", rounds=2),
    "missing_argument": Expected(rounds=2),
    "never_right": Expected(calls=(), rounds=2, code="invalid_tool_call"),
    "no_call": Expected(
        replace(TOOLS, must_call=True),
        "I could write the file, but I would rather talk about it.",
        rounds=2,
    ),
    "service_refuses": Expected(rounds=2),
    "service_always_refuses": Expected(calls=(), rounds=2, code="invalid_tool_call"),
    "looks_like_a_call": Expected(calls=()),
    "json_at_once": Expected(JSON, NUUK, ()),
    "json_in_a_fence": Expected(JSON, NUUK, ()),
    "json_corrected": Expected(JSON, NUUK, (), rounds=2),
    "json_never_right": Expected(JSON, calls=(), rounds=2, code="invalid_structured_output"),
}
WHOLE = ("trained_form", "parallel_calls", "missing_argument", "service_refuses", "json_corrected")
"""Played without a stream too: each another way through a request."""
PROGRAMS = {"claude_code", "codex", "opencode", "qwen_code", "aider", "conformance"}
"""The scripts that programs play: tests/clients."""


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory, chromium_path: str) -> Iterator[tuple[str, Standin]]:
    """A proxy's base URL, and the stand-in behind it."""
    folder = tmp_path_factory.mktemp("agents")
    with (
        running_standin(folder) as standin,
        running_proxy(folder, standin, browser=chromium_path) as proxy,
    ):
        standin.options(pieces_per_s=20_000)
        yield proxy.base, standin


@pytest.fixture(params=SPEAKERS)
def speaker(request: pytest.FixtureRequest, road: tuple[str, Standin]) -> Iterator[Speaker]:
    with closing(SPEAKERS[request.param](road[0])) as made:
        yield made


@pytest.fixture
def client(road: tuple[str, Standin]) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{road[0]}/v1", api_key="any", max_retries=0) as made:
        yield made


def asked(script: str) -> dict[str, Any]:
    text = f"{{{{standin: agent script={script} file={FILE}}}}} Do it."
    return {"role": "user", "content": [{"type": "text", "text": text}]}


def play(speaker: Speaker, script: str, expected: Expected, *, stream: bool) -> Play:
    question = asked(script)
    if not isinstance(speaker, SPEAKERS["messages"]):
        question["content"] = question["content"][0]["text"]
    return Play(speaker, stream, expected.task, [question])


def test_every_script_is_played() -> None:
    assert set(EXPECTED) | PROGRAMS == set(agent.names())


@pytest.mark.parametrize(
    ("script", "stream"),
    [
        *((name, True) for name, expected in EXPECTED.items() if not expected.code),
        *((name, False) for name in WHOLE),
    ],
)
def test_what_the_model_writes_is_what_the_client_gets(
    road: tuple[str, Standin], speaker: Speaker, script: str, stream: bool
) -> None:
    expected, standin = EXPECTED[script], road[1]
    before = len(standin.turns())
    played = play(speaker, script, expected, stream=stream)
    heard = played.say()
    turns = standin.turns()[before:]
    assert len(turns) == expected.rounds, [turn["said"] for turn in turns]
    assert [(call.name, call.arguments) for call in heard.calls] == list(expected.calls)
    if expected.task.schema is not None:
        assert json.loads(heard.text) == json.loads(expected.text)
        return
    if not heard.calls:
        assert heard.text == turns[-1]["said"]
        return
    assert len({call.id for call in heard.calls}) == len(heard.calls)
    assert heard.ended == speaker.calls_ended
    assert " ".join(heard.text.split()) == expected.text
    assert not [markup for markup in MARKUP if markup in heard.text]
    played.hand_in(heard.calls)
    last = played.say()
    assert (last.text, last.calls) == (expected.last, [])
    told = standin.turns()[-1]["content"]
    assert all(f"{call.name} is done" in told for call in heard.calls)


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("script", [name for name, expected in EXPECTED.items() if expected.code])
def test_what_stays_wrong_is_an_error_that_says_so(
    road: tuple[str, Standin], speaker: Speaker, script: str, stream: bool
) -> None:
    expected, standin = EXPECTED[script], road[1]
    before = len(standin.turns())
    with pytest.raises((openai.InternalServerError, anthropic.InternalServerError)) as caught:
        play(speaker, script, expected, stream=stream).say()
    refused: Any = caught.value
    assert refused.status_code == 502
    assert len(standin.turns()) - before == expected.rounds
    if isinstance(refused, openai.InternalServerError):
        assert refused.code == expected.code
    assert "the model" in str(refused)


def test_one_call_at_a_time_is_kept_to(speaker: Speaker) -> None:
    alone = Expected(replace(TOOLS, parallel=False))
    heard = play(speaker, "parallel_calls", alone, stream=True).say()
    assert [call.name for call in heard.calls] == ["list_files"]


def test_thinking_stays_out_of_text_and_calls(client: Any) -> None:
    tools = [{"type": "function", "function": tool} for tool in TOOLS.tools]
    question = {"role": "user", "content": asked("trained_form")["content"][0]["text"]}
    answer = client.chat.completions.create(
        model="qwen", messages=[question], tools=tools, reasoning_effort="high"
    )
    message = answer.choices[0].message
    assert "I am the stand-in" in message.reasoning_content
    assert "stand-in" not in message.content
    assert message.tool_calls[0].function.name == "write_file"


def test_a_result_alone_goes_on_from_the_stored_response(client: Any) -> None:
    tools = [{"type": "function", "strict": False, **tool} for tool in TOOLS.tools]
    question = asked("parallel_calls")["content"][0]["text"]
    first = client.responses.create(model="qwen", input=question, tools=tools)
    calls = [item for item in first.output if item.type == "function_call"]
    results = [
        {"type": "function_call_output", "call_id": call.call_id, "output": f"{call.name} is done"}
        for call in calls
    ]
    second = client.responses.create(model="qwen", previous_response_id=first.id, input=results, tools=tools)
    assert (len(calls), second.output_text) == (2, "Both are done.")
