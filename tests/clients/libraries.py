"""Libraries, unmodified, against the demo: a loop with tools that changes a file, and structured answers.

    tests/clients/langchain.sh          # or litellm.sh, llm.sh, openai_node.sh

A library is installed the first time, of one version, into a folder outside the repository. Its setup is the
README's, to the letter; only the address is the demo's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from tests.clients.coding import demo, run
from tests.clients.coding_programs import Run
from tests.clients.installed import node_folder, npm_package, pip_packages
from tests.clients.node_package import PACKAGE

ADDRESS: Final = "http://127.0.0.1:3264"
"""What the README calls the proxy."""
PAGE: Final = "<html>\n</html>\n"
"""What the file is to hold; as in the stand-in's script `parallel_calls`."""


@dataclass(frozen=True)
class Library:
    packages: tuple[str, ...]
    """The library and its kin, each of one version, as its package manager writes it."""
    setup: tuple[str, ...]
    """Blocks of the README."""
    task: str
    """What is done after them: a program that is given the file's path."""
    command: Callable[[Library, Path, str], Run]
    """Lays the program into an empty folder, its text given, and gives what to start there."""


def main(name: str) -> None:
    """Raises: SystemExit: what came about is not what was asked for."""
    library = LIBRARIES[name]
    with TemporaryDirectory(prefix="qwenproxy-client-") as folder, demo(Path(folder)) as (base, _):
        work, home = Path(folder) / "work", Path(folder) / "home"
        work.mkdir()
        home.mkdir()
        program = "\n".join([*library.setup, library.task]).replace(ADDRESS, base)
        file = work / "page.html"
        program = program.replace("{{file}}", str(file))
        print(run(library.command(library, work, program), work, home), end="", flush=True)
        if file.read_text() != PAGE:
            raise SystemExit(f"{name}: the file holds {file.read_text()!r}")
    print(f"{name}: the file was changed as asked, all as expected")


# ---- how a program is started ----


def _python(library: Library, work: Path, program: str) -> Run:
    folder = pip_packages(library.packages[0].replace("==", "-"), *library.packages)
    (work / "trial.py").write_text(program)
    return Run([str(folder / "python"), "-W", "ignore", "trial.py"], {"LITELLM_LOCAL_MODEL_COST_MAP": "True"})


def _shell(library: Library, work: Path, program: str) -> Run:
    folder = pip_packages(library.packages[0].replace("==", "-"), *library.packages)
    (work / "trial.sh").write_text(f"set -euo pipefail\nexport PATH={folder}:$PATH\n{program}")
    return Run(["bash", "trial.sh"], {})


def _node(library: Library, work: Path, program: str) -> Run:
    name, _, version = library.packages[0].rpartition("@")
    folder = npm_package(name, version, path=f"{node_folder()}:/usr/local/bin:/usr/bin:/bin")
    (work / "package.json").write_text(PACKAGE)
    (work / "node_modules").symlink_to(folder / "node_modules", target_is_directory=True)
    (work / "trial.js").write_text(program)
    return Run(["node", "trial.js"], {})


# ---- the libraries ----

LANGCHAIN: Final = Library(
    ("langchain==1.4.7", "langchain-openai==1.7.3", "langchain-anthropic==1.7.7"),
    (
        """\
from langchain_openai import ChatOpenAI

model = ChatOpenAI(model="qwen", base_url="http://127.0.0.1:3264/v1", api_key="any")""",
        """\
from langchain_anthropic import ChatAnthropic

claude = ChatAnthropic(model="qwen", base_url="http://127.0.0.1:3264", api_key="any")""",
    ),
    '''
from importlib.metadata import version
from pathlib import Path

from langchain.agents import create_agent
from langchain_core.tools import tool
from pydantic import BaseModel

print(*(f"{name} {version(name)}" for name in ("langchain", "langchain-openai", "langchain-anthropic")))
file = Path("{{file}}")
ASKED = "{{standin: agent script=parallel_calls file={{file}}}} Do it."


@tool
def write_file(path: str, content: str) -> str:
    """Writes a file."""
    Path(path).write_text(content)
    return "done"


@tool
def list_files(folder: str, depth: int) -> str:
    """Lists a folder."""
    return "nothing"


class Place(BaseModel):
    """A city."""

    city: str
    people: int


responses = ChatOpenAI(
    model="qwen", base_url=model.openai_api_base, api_key="any", use_responses_api=True
)
for each in (model, responses, claude):
    file.write_text("")
    agent = create_agent(each, [write_file, list_files])
    said = agent.invoke({"messages": [{"role": "user", "content": ASKED}]})["messages"]
    assert [message.type for message in said] == ["human", "ai", "tool", "tool", "ai"], said
    assert said[-1].text == "Both are done.", said[-1]
    assert file.read_text() == "<html>\\n</html>\\n"
    place = each.with_structured_output(Place, method="json_schema").invoke(
        "{{standin: agent script=json_corrected}} Where?"
    )
    assert place == Place(city="Nuuk", people=19872), place
    pieces = list(each.bind_tools([write_file, list_files]).stream(ASKED))
    whole = sum(pieces[1:], pieces[0])
    assert len(pieces) > 3
    assert [call["name"] for call in whole.tool_calls] == ["list_files", "write_file"], whole
    print(f"{type(each).__name__}: {len(pieces)} pieces")
''',
    _python,
)

LITELLM: Final = Library(
    ("litellm==1.106.2", "mcp==2.3.0"),
    (
        """\
import litellm

asked = {"model": "openai/qwen", "api_base": "http://127.0.0.1:3264/v1", "api_key": "any"}""",
        """\
claude = {"model": "anthropic/claude-sonnet-4-5", "api_base": "http://127.0.0.1:3264", "api_key": "any"}""",
    ),
    """
import json
from importlib.metadata import version
from pathlib import Path

from pydantic import BaseModel

print("litellm", version("litellm"))
file = Path("{{file}}")
ASKED = {"role": "user", "content": "{{standin: agent script=parallel_calls file={{file}}}} Do it."}


class Place(BaseModel):
    city: str
    people: int


def tool(name, **properties):
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": name, "parameters": schema}}


TEXT = {"type": "string"}
TOOLS = [
    tool("write_file", path=TEXT, content=TEXT),
    tool("list_files", folder=TEXT, depth={"type": "integer"}),
]
for how in (asked, claude):
    for stream in (False, True):
        file.write_text("")
        talk, turns = [ASKED], 0
        while True:
            answer = litellm.completion(**how, messages=talk, tools=TOOLS, stream=stream)
            if stream:
                answer = litellm.stream_chunk_builder(list(answer), messages=talk)
            message, turns = answer.choices[0].message, turns + 1
            talk.append(message.model_dump())
            if not message.tool_calls:
                break
            for call in message.tool_calls:
                wanted = json.loads(call.function.arguments)
                if call.function.name == "write_file":
                    Path(wanted["path"]).write_text(wanted["content"])
                talk.append({"role": "tool", "tool_call_id": call.id, "content": "done"})
        assert (turns, message.content) == (2, "Both are done."), (turns, message)
        assert file.read_text() == "<html>\\n</html>\\n"
    where = [{"role": "user", "content": "{{standin: agent script=json_corrected}} Where?"}]
    place = litellm.completion(**how, messages=where, response_format=Place)
    said = Place.model_validate_json(place.choices[0].message.content)
    assert said == Place(city="Nuuk", people=19872), said
    print(f"{how['model']}: {turns} turns")
answered = litellm.responses(**asked, input="{{standin: say text=hi}}")
assert answered.output[-1].content[0].text == "hi", answered
""",
    _python,
)

LLM: Final = Library(
    ("llm==0.36",),
    (
        """\
cat > "$(dirname "$(llm logs path)")/extra-openai-models.yaml" <<'END'
- model_id: qwen
  model_name: qwen
  api_base: http://127.0.0.1:3264/v1
  api_key_name: qwenproxy
  supports_tools: true
  supports_schema: true
  vision: true
END
llm keys set qwenproxy --value any""",
    ),
    """
llm --version
cat > tools.py <<'END'
from pathlib import Path


def write_file(path: str, content: str) -> str:
    "Writes a file."
    Path(path).write_text(content)
    return "done"


def list_files(folder: str, depth: int) -> str:
    "Lists a folder."
    return "nothing"
END
ask='{{standin: agent script=parallel_calls file={{file}}}} Do it.'
for stream in "" --no-stream; do
  : > {{file}}
  said=$(llm -m qwen --functions tools.py --td $stream "$ask" 2> calls)
  grep -q 'Tool call: write_file' calls
  case $said in *"Both are done.") ;; *) echo "$said" && exit 1 ;; esac
  [ "$(cat {{file}})" = $'<html>\\n</html>' ]
  place=$(llm -m qwen $stream --schema 'city, people int' '{{standin: agent script=json_corrected}} Where?')
  [ "$(printf %s "$place" | python -c 'import json,sys; print(json.load(sys.stdin))')" = \
    "{'city': 'Nuuk', 'people': 19872}" ]
done
llm logs list -n 1 --json | grep -q '"model": "qwen"'
""",
    _shell,
)

OPENAI_NODE: Final = Library(
    ("openai@7.57.0",),
    (
        """\
import OpenAI from 'openai';

const client = new OpenAI({ baseURL: 'http://127.0.0.1:3264/v1', apiKey: 'any' });""",
    ),
    """
import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';

console.log(`openai ${JSON.parse(readFileSync('node_modules/openai/package.json')).version}`,
  `Node ${process.version}`);
const file = '{{file}}';
const hello = [{ role: 'user', content: 'Hello from Node' }];
const task = [{ role: 'user', content: `{{standin: agent script=parallel_calls file=${file}}} Do it.` }];

const answer = await client.chat.completions.create({ model: 'qwen', messages: hello });
assert.match(answer.choices[0].message.content, /Hello from Node/);
assert.equal(answer.choices[0].finish_reason, 'stop');

const stream = await client.chat.completions.create({
  model: 'qwen-max', messages: hello, stream: true, stream_options: { include_usage: true },
});
let text = '', pieces = 0, usage = null;
for await (const chunk of stream) {
  const piece = chunk.choices[0]?.delta?.content;
  if (piece) { text += piece; pieces += 1; }
  usage = chunk.usage ?? usage;
}
assert.match(text, /Hello from Node/);
assert.ok(pieces > 20 && usage.completion_tokens > 0);

const string = { type: 'string' };
const tool = (name, properties, run) => ({
  type: 'function',
  function: {
    name, description: name, parse: JSON.parse, function: run,
    parameters: { type: 'object', properties, required: Object.keys(properties) },
  },
});
const write = ({ path, content }) => { writeFileSync(path, content); return 'done'; };
const tools = [
  tool('write_file', { path: string, content: string }, write),
  tool('list_files', { folder: string, depth: { type: 'integer' } }, () => 'nothing'),
];
for (const streamed of [false, true]) {
  writeFileSync(file, '');
  const runner = client.chat.completions.runTools({ model: 'qwen', messages: task, tools, stream: streamed });
  assert.equal(await runner.finalContent(), 'Both are done.');
  assert.equal(readFileSync(file, 'utf8'), '<html>\\n</html>\\n');
}

const schema = {
  type: 'object', additionalProperties: false, required: ['city', 'people'],
  properties: { city: string, people: { type: 'integer' } },
};
const where = '{{standin: agent script=json_corrected}} Where?';
const place = await client.chat.completions.create({
  model: 'qwen', messages: [{ role: 'user', content: where }],
  response_format: { type: 'json_schema', json_schema: { name: 'place', strict: true, schema } },
});
assert.deepEqual(JSON.parse(place.choices[0].message.content), { city: 'Nuuk', people: 19872 });

writeFileSync(file, '');
const flat = tools.map(({ function: { name, description, parameters } }) => (
  { type: 'function', name, description, parameters, strict: false }));
const first = client.responses.stream({ model: 'qwen', input: task, tools: flat });
const kinds = new Set();
for await (const event of first) kinds.add(event.type);
const response = await first.finalResponse();
assert.ok(kinds.has('response.function_call_arguments.delta') && kinds.has('response.completed'));
const input = response.output.filter((item) => item.type === 'function_call').map((call) => {
  if (call.name === 'write_file') write(JSON.parse(call.arguments));
  return { type: 'function_call_output', call_id: call.call_id, output: 'done' };
});
const last = await client.responses.create({
  model: 'qwen', input, tools: flat, previous_response_id: response.id,
});
assert.equal(last.output_text, 'Both are done.');
const formed = await client.responses.create({
  model: 'qwen', input: where, text: { format: { type: 'json_schema', name: 'place', schema, strict: true } },
});
assert.deepEqual(JSON.parse(formed.output_text), { city: 'Nuuk', people: 19872 });

const aborted = await client.chat.completions.create({ model: 'qwen', messages: hello, stream: true });
for await (const chunk of aborted) { aborted.controller.abort(); break; }
await assert.rejects(
  client.chat.completions.create({ model: 'no-such-model', messages: hello }),
  (error) => error instanceof OpenAI.NotFoundError && error.code === 'model_not_found',
);
const ids = (await client.models.list()).data.map((model) => model.id);
assert.ok(ids.includes('qwen3.7-plus'));
console.log(`${pieces} pieces, ${kinds.size} kinds of events, ${ids.length} models`);
""",
    _node,
)

LIBRARIES: Final[Mapping[str, Library]] = {
    "openai_node": OPENAI_NODE,
    "langchain": LANGCHAIN,
    "litellm": LITELLM,
    "llm": LLM,
}


if __name__ == "__main__":
    main(sys.argv[1])
