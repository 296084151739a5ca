"""The official `openai` package against the demo, as a new user would use it."""

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

import httpx
import openai
import pytest

from tests.serve import free_port, process, until

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]

HELLO: Any = [{"role": "user", "content": "Hello there"}]


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
