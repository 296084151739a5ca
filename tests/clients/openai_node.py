"""The official `openai` package for Node against the demo, streamed and not.

    .venv/bin/python -m tests.clients.openai_node

Installs the package from npm the first time; needs Node 20 or newer.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.clients.node_package import project
from tests.serve import free_port, process

SCRIPT = """
import assert from 'node:assert/strict';
import OpenAI from 'openai';

const client = new OpenAI({ baseURL: process.argv[2], apiKey: 'any', maxRetries: 0 });
const messages = [{ role: 'user', content: 'Hello from Node' }];

const answer = await client.chat.completions.create({ model: 'qwen', messages });
assert.match(answer.choices[0].message.content, /Hello from Node/);
assert.equal(answer.choices[0].finish_reason, 'stop');

const stream = await client.chat.completions.create({
  model: 'qwen-max', messages, stream: true, stream_options: { include_usage: true },
});
let text = '', pieces = 0, usage = null;
for await (const chunk of stream) {
  const piece = chunk.choices[0]?.delta?.content;
  if (piece) { text += piece; pieces += 1; }
  usage = chunk.usage ?? usage;
}
assert.match(text, /Hello from Node/);
assert.ok(pieces > 20 && usage.completion_tokens > 0);

const runner = client.chat.completions.stream({ model: 'qwen', messages });
assert.match((await runner.finalChatCompletion()).choices[0].message.content, /Hello from Node/);

const aborted = await client.chat.completions.create({ model: 'qwen', messages, stream: true });
for await (const chunk of aborted) { aborted.controller.abort(); break; }

await assert.rejects(
  client.chat.completions.create({ model: 'no-such-model', messages }),
  (error) => error instanceof OpenAI.NotFoundError && error.code === 'model_not_found',
);
const ids = (await client.models.list()).data.map((model) => model.id);
assert.ok(ids.includes('qwen3.7-plus'));
console.log(`openai for Node: ${pieces} pieces, ${ids.length} models, all as expected`);
"""


def main() -> None:
    port = free_port()
    with TemporaryDirectory() as name:
        folder = project(Path(name))
        (folder / "check.js").write_text(SCRIPT)
        with process(
            [sys.executable, "-u", "-m", "qwenproxy", "demo", "--port", str(port)], folder, {}
        ) as demo:
            assert demo.stdout is not None
            while "Ctrl-C" not in (line := demo.stdout.readline()):
                assert line, "the demo ended"
            subprocess.run(["node", "check.js", f"http://127.0.0.1:{port}/v1"], cwd=folder, check=True)


if __name__ == "__main__":
    main()
