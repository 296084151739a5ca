"""The official `openai` and `anthropic` packages against the demo, as a new user would use them."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
from anthropic import beta_async_tool, beta_tool
from pydantic import BaseModel

from tests.serve import free_port, process, until

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]

HELLO: Any = [{"role": "user", "content": "Hello there"}]
TWO = "one\ntwo\n"
WRITTEN = "The file is written."


class WriteFile(BaseModel):
    """Writes a file."""

    path: str
    content: str


class ListFiles(BaseModel):
    """Lists a folder."""

    folder: str
    depth: int


class Place(BaseModel):
    city: str
    people: int


NUUK = Place(city="Nuuk", people=19872)
TOOLS: Any = [
    openai.pydantic_function_tool(WriteFile, name="write_file"),
    openai.pydantic_function_tool(ListFiles, name="list_files"),
]


def acts(script: str, file: Path | None = None) -> Any:
    """What a user says, so that the stand-in plays that script."""
    return {"role": "user", "content": f"{{{{standin: agent script={script} file={file}}}}} Do it."}


def done(call: Any) -> Any:
    """Does what a call of `chat.completions` asks for; the message that says so."""
    if call.function.name == "write_file":
        wanted = WriteFile.model_validate_json(call.function.arguments)
        Path(wanted.path).write_text(wanted.content)
    return {"role": "tool", "tool_call_id": call.id, "content": f"{call.function.name} is done"}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The demo's base URL and what it printed."""
    folder, port = tmp_path_factory.mktemp("demo"), free_port()
    command = [sys.executable, "-u", "-m", "qwenproxy", "demo", "--port", str(port)]
    with process(command, folder, {}) as started:
        assert started.stdout is not None
        said = ""
        while "Ctrl-C" not in said:
            line = started.stdout.readline()
            assert line, f"the demo ended: {said}"
            said += line
        yield f"http://127.0.0.1:{port}", said


@pytest.fixture
def client(demo: tuple[str, str]) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{demo[0]}/v1", api_key="any", max_retries=0) as made:
        yield made


def test_an_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="qwen", messages=HELLO)
    assert answer.object == "chat.completion"
    assert answer.model == "qwen3.7-plus"
    assert "Hello there" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_streamed_answer(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="qwen-max",
        messages=HELLO,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len(chunks) > 20
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert "Hello there" in text
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == [
        "stop"
    ]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None


def test_thinking_is_apart_from_the_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="qwen",
        messages=HELLO,
        reasoning_effort="high",
    )
    message: Any = answer.choices[0].message
    assert message.reasoning_content
    assert message.reasoning_content not in (message.content or "")


def test_the_whole_conversation_arrives(client: openai.OpenAI) -> None:
    talk: Any = [
        {"role": "system", "content": "You are Zanzibar."},
        {"role": "user", "content": "First question"},
        {"role": "assistant", "content": "First answer"},
        {"role": "user", "content": "{{standin: say text=echo}} Last question"},
    ]
    answer = client.chat.completions.create(model="qwen", messages=talk)
    assert answer.choices[0].message.content == "echo"


def test_limits_are_honoured(client: openai.OpenAI) -> None:
    say: Any = [
        {
            "role": "user",
            "content": '{{standin: say text="one two three four five six seven eight nine ten"}}',
        }
    ]
    stopped = client.chat.completions.create(model="qwen", messages=say, stop=[" four"])
    assert stopped.choices[0].message.content == "one two three"
    cut = client.chat.completions.create(model="qwen", messages=say, max_tokens=3)
    assert cut.choices[0].finish_reason == "length"
    several = client.chat.completions.create(model="qwen", messages=say, n=2)
    assert [choice.index for choice in several.choices] == [0, 1]


def test_models(client: openai.OpenAI) -> None:
    ids = [model.id for model in client.models.list()]
    assert ids[0] == "qwen3.7-plus"
    assert client.models.retrieve(ids[0]).id == ids[0]
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("qwen3.7-plos")
    assert caught.value.code == "model_not_found"
    assert "qwen3.7-plus" in str(caught.value)


@pytest.mark.parametrize(
    ("mark", "kind", "code"),
    [
        ("inspected", openai.BadRequestError, "content_blocked"),
        ("context_too_long", openai.BadRequestError, "context_length_exceeded"),
        ("html", openai.InternalServerError, "protocol_changed"),
    ],
)
def test_errors_are_the_callers_own(
    client: openai.OpenAI, mark: str, kind: type[openai.APIStatusError], code: str
) -> None:
    asked: Any = [{"role": "user", "content": f"{{{{standin: {mark}}}}}"}]
    for stream in (False, True):
        with pytest.raises(kind) as caught:
            client.chat.completions.create(model="qwen", messages=asked, stream=stream)
        assert caught.value.code == code


def test_an_error_after_the_first_piece_is_an_error_event(client: openai.OpenAI) -> None:
    asked: Any = [{"role": "user", "content": "{{standin: severed after=5}}"}]
    stream: Any = client.chat.completions.create(model="qwen", messages=asked, stream=True)
    finished: list[str] = []

    def read() -> None:
        finished.extend(c.choices[0].finish_reason or "" for c in stream if c.choices)

    with pytest.raises(openai.APIError):
        read()
    assert "stop" not in finished


def test_every_prefix_serves(demo: tuple[str, str]) -> None:
    body = {"model": "qwen", "messages": [{"role": "user", "content": "{{standin: say text=hi}}"}]}
    for prefix in ("/v1", "/api", "/api/v1", "/api/v2"):
        answer = httpx.post(f"{demo[0]}{prefix}/chat/completions", json=body, timeout=30)
        assert answer.json()["choices"][0]["message"]["content"] == "hi", prefix


def as_curl(command: str) -> str:
    """What the command prints; a computer without curl is spoken for by httpx."""
    if shutil.which("curl"):
        ran = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60, check=True)
        return ran.stdout
    _, url, _, header, _, data = shlex.split(command.replace("\\\n", " "))
    name, _, value = header.partition(": ")
    return httpx.post(url, content=data, headers={name: value}, timeout=60).text


def test_what_the_demo_prints_works_as_printed(demo: tuple[str, str], tmp_path: Path) -> None:
    base, said = demo
    assert "not from Qwen" in said
    assert f"{base}/v1" in said
    curl = re.search(r"  (curl .*?}')", said, re.DOTALL)
    assert curl is not None
    streamed = as_curl(curl[1])
    frames = [line.removeprefix("data: ") for line in streamed.splitlines() if line.startswith("data: ")]
    assert frames[-1] == "[DONE]"
    assert json.loads(frames[0])["choices"][0]["delta"]["role"] == "assistant"
    snippet = re.search(r"  (from openai.*?content\))", said, re.DOTALL)
    assert snippet is not None
    script = tmp_path / "snippet.py"
    script.write_text("\n".join(line.strip() for line in snippet[1].splitlines()))
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=True)
    assert "Hello!" in ran.stdout


def test_pages_for_people(demo: tuple[str, str]) -> None:
    base, _ = demo
    until(lambda: httpx.get(f"{base}/ready").status_code == 200)
    assert httpx.get(f"{base}/ping").text.strip() == "pong"
    assert httpx.get(f"{base}/health").status_code == 200
    page = httpx.get(f"{base}/")
    assert base in page.text
    assert "curl" in page.text
    assert httpx.get(f"{base}/v1/nothing").json()["error"]["code"] == "not_found"


# ---- tools and structured answers: openai ----


def test_a_loop_with_tools(client: openai.OpenAI, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    talk: list[Any] = [acts("parallel_calls", file)]
    answer = client.chat.completions.create(model="qwen", messages=talk, tools=TOOLS)
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert "look around" in (choice.message.content or "")
    calls = choice.message.tool_calls or []
    assert [call.function.name for call in calls if call.type == "function"] == ["list_files", "write_file"]
    talk += [choice.message, *map(done, calls)]
    last = client.chat.completions.create(model="qwen", messages=talk, tools=TOOLS)
    assert last.choices[0].message.content == "Both are done."
    assert last.choices[0].finish_reason == "stop"
    assert file.read_text() == "<html>\n</html>\n"


def test_the_stream_helper_checks_arguments_as_they_come(client: openai.OpenAI, tmp_path: Path) -> None:
    file = tmp_path / "two.txt"
    talk: list[Any] = [acts("trained_form", file)]
    kinds: list[str] = []
    with client.chat.completions.stream(model="qwen", messages=talk, tools=TOOLS) as stream:
        kinds.extend(event.type for event in stream)
        answer = stream.get_final_completion()
    assert {
        "content.delta",
        "tool_calls.function.arguments.delta",
        "tool_calls.function.arguments.done",
    } <= set(kinds)
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.function.parsed_arguments == WriteFile(path=str(file), content=TWO)
    talk += [answer.choices[0].message, done(call)]
    with client.chat.completions.stream(model="qwen", messages=talk, tools=TOOLS) as stream:
        text = "".join(event.delta for event in stream if event.type == "content.delta")
    assert text == WRITTEN
    assert file.read_text() == TWO


def test_the_older_functions(client: openai.OpenAI, tmp_path: Path) -> None:
    file = tmp_path / "two.txt"
    functions: Any = [tool["function"] for tool in TOOLS]
    talk: list[Any] = [acts("trained_form", file)]
    stream: Any = client.chat.completions.create(
        model="qwen", messages=talk, functions=functions, function_call="auto", stream=True
    )
    choices = [chunk.choices[0] for chunk in stream]
    pieces = [choice.delta.function_call for choice in choices if choice.delta.function_call]
    assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["function_call"]
    called = {"name": pieces[0].name, "arguments": "".join(piece.arguments for piece in pieces)}
    assert WriteFile.model_validate_json(called["arguments"]).content == TWO
    talk += [
        {"role": "assistant", "content": None, "function_call": called},
        {"role": "function", "name": "write_file", "content": "done"},
    ]
    last = client.chat.completions.create(model="qwen", messages=talk, functions=functions)
    assert last.choices[0].message.content == WRITTEN


def test_a_custom_tool_takes_plain_text(client: openai.OpenAI) -> None:
    tool: Any = {"type": "custom", "custom": {"name": "run", "description": "Runs Python."}}
    # Two braces end a mark.
    written = r"<tool_call>{\"name\": \"run\", \"arguments\": {\"input\": \"1 + 1\"} }</tool_call>"
    asked: Any = {"role": "user", "content": f'{{{{standin: say text="{written}"}}}} Go on.'}
    answer = client.chat.completions.create(model="qwen", messages=[asked], tools=[tool])
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "custom"
    assert (call.custom.name, call.custom.input) == ("run", "1 + 1")
    assert answer.choices[0].message.content is None


@pytest.mark.parametrize("script", ["json_at_once", "json_corrected"])
def test_an_answer_is_parsed(client: openai.OpenAI, script: str) -> None:
    answer = client.chat.completions.parse(model="qwen", messages=[acts(script)], response_format=Place)
    assert answer.choices[0].message.parsed == NUUK
    said = client.responses.parse(model="qwen", input=[acts(script)], text_format=Place)
    assert said.output_parsed == NUUK


@pytest.mark.anyio
async def test_the_asynchronous_client_does_the_same(demo: tuple[str, str], tmp_path: Path) -> None:
    file = tmp_path / "two.txt"
    talk: list[Any] = [acts("trained_form", file)]
    async with openai.AsyncOpenAI(base_url=f"{demo[0]}/v1", api_key="any", max_retries=0) as client:
        async with client.chat.completions.stream(model="qwen", messages=talk, tools=TOOLS) as stream:
            answer = await stream.get_final_completion()
        (call,) = answer.choices[0].message.tool_calls or []
        talk += [answer.choices[0].message, done(call)]
        last = await client.chat.completions.create(model="qwen", messages=talk, tools=TOOLS)
        parsed = await client.chat.completions.parse(
            model="qwen", messages=[acts("json_at_once")], response_format=Place
        )
    assert last.choices[0].message.content == WRITTEN
    assert file.read_text() == TWO
    assert parsed.choices[0].message.parsed == NUUK


def test_responses_go_on_from_each_other(client: openai.OpenAI, tmp_path: Path) -> None:
    file = tmp_path / "two.txt"
    tools: Any = [{"type": "function", **tool["function"]} for tool in TOOLS]
    with client.responses.stream(model="qwen", input=[acts("trained_form", file)], tools=tools) as stream:
        kinds = [event.type for event in stream]
        answer = stream.get_final_response()
    assert "response.function_call_arguments.delta" in kinds
    (call,) = [item for item in answer.output if item.type == "function_call"]
    wanted = WriteFile.model_validate_json(call.arguments)
    Path(wanted.path).write_text(wanted.content)
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "done"}
    last = client.responses.create(model="qwen", input=[result], tools=tools, previous_response_id=answer.id)
    assert last.output_text == WRITTEN
    assert file.read_text() == TWO
    assert client.responses.retrieve(last.id).output_text == WRITTEN


# ---- anthropic ----


@pytest.fixture
def claude(demo: tuple[str, str]) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=demo[0], api_key="any", max_retries=0) as made:
        yield made


@beta_tool
def write_file(path: str, content: str) -> str:
    """Writes a file."""
    Path(path).write_text(content)
    return "done"


@beta_tool
def list_files(folder: str, depth: int) -> str:
    """Lists a folder."""
    return f"{folder}: nothing within {depth}"


@pytest.mark.parametrize("stream", [True, False])
def test_anthropics_tool_runner_runs_to_its_end(
    claude: anthropic.Anthropic, tmp_path: Path, stream: bool
) -> None:
    file = tmp_path / "page.html"
    runner: Any = claude.beta.messages.tool_runner(
        model="claude-sonnet-5",
        max_tokens=8000,
        messages=[acts("parallel_calls", file)],
        tools=[write_file, list_files],
        stream=stream,
    )
    messages = [turn.get_final_message() if stream else turn for turn in runner]
    assert [message.stop_reason for message in messages] == ["tool_use", "end_turn"]
    assert messages[-1].content[-1].text == "Both are done."
    assert messages[-1].model == "qwen3.7-plus"
    assert file.read_text() == "<html>\n</html>\n"


def test_anthropics_stream_tells_of_calls_piece_by_piece(claude: anthropic.Anthropic, tmp_path: Path) -> None:
    file = tmp_path / "two.txt"
    with claude.messages.stream(
        model="qwen",
        max_tokens=8000,
        messages=[acts("trained_form", file)],
        tools=[write_file.to_dict(), list_files.to_dict()],
    ) as stream:
        kinds = [event.type for event in stream]
        message = stream.get_final_message()
    assert {"text", "input_json", "content_block_stop", "message_stop"} <= set(kinds)
    (call,) = [block for block in message.content if block.type == "tool_use"]
    assert (call.name, call.input) == ("write_file", {"path": str(file), "content": TWO})


def test_anthropics_answer_is_parsed(claude: anthropic.Anthropic) -> None:
    message = claude.messages.parse(
        model="qwen", max_tokens=8000, messages=[acts("json_corrected")], output_format=Place
    )
    assert message.parsed_output == NUUK


@pytest.mark.anyio
async def test_anthropics_asynchronous_client_does_the_same(demo: tuple[str, str], tmp_path: Path) -> None:
    file = tmp_path / "two.txt"

    @beta_async_tool(name="write_file")
    async def write(path: str, content: str) -> str:
        """Writes a file."""
        return write_file.func(path, content)

    async with anthropic.AsyncAnthropic(base_url=demo[0], api_key="any", max_retries=0) as client:
        runner = client.beta.messages.tool_runner(
            model="qwen", max_tokens=8000, messages=[acts("trained_form", file)], tools=[write]
        )
        message = await runner.until_done()
        counted = await client.messages.count_tokens(model="qwen", messages=HELLO)
    assert message.stop_reason == "end_turn"
    assert file.read_text() == TWO
    assert counted.input_tokens > 0
