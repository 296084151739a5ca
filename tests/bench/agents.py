"""What agents cost the proxy: reading calls out of answers, telling answers, telling tools; in one run.

    .venv/bin/python -m tests.bench.agents [--pieces 1000] [--times 30]

Each row is compared, in the same run, with the least that could be done with the same: an answer's pieces
put together, the tools as plain JSON. Time is the processor's, so that other programs do not count; the
median of so many times. The command fails if what comes out is not what must.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from qwenproxy import tools
from qwenproxy.chat import Delta, Finished, Started, Text, Tool, ToolCall, ToolChoice, Usage
from qwenproxy.dialects.base import Dialect
from qwenproxy.server.app import DIALECTS
from qwenproxy.settings import Settings
from qwenproxy.sieve import RawCall, ToolSieve
from qwenproxy.tool_calls import CallReader
from tests.dialects.wire_reader import contracts

PROSE: Final = (
    "The function reads a file, `a < b` and all, and gives back a list.\n\nIt is called once a day: [1, 2]. "
)
CODE: Final = """```python
for x in rows:
    if x["id"] < 3 and x.get('a') != {}:
        print(f"<b>{x}</b>")
```
"""
CHARACTERS: Final = 5
"""Of a piece, about a token."""
TOOL_COUNT: Final = 200
SCHEMA_BYTES: Final = 60_000


@dataclass(frozen=True)
class Row:
    what: str
    ours_us: float
    plain_us: float


def timed_us(action: Callable[[], object], times: int) -> float:
    """Median microseconds of the processor's."""

    def once() -> float:
        began_s = time.process_time()
        action()
        return (time.process_time() - began_s) * 1e6

    action()  # what is compiled and cached on first use
    return statistics.median(once() for _ in range(times))


def compared(what: str, ours: Callable[[], object], plain: Callable[[], object], times: int) -> Row:
    return Row(what, timed_us(ours, times), timed_us(plain, times))


def cut(text: str, count: int) -> list[str]:
    """So many pieces, of the text over and over."""
    endless = itertools.cycle(text)
    return ["".join(itertools.islice(endless, CHARACTERS)) for _ in range(count)]


# ---- the sieve ----


def call_of(count: int) -> str:
    """A call that comes in about so many pieces."""
    content = "".join(cut(CODE, count))
    return json.dumps({"name": "tool_7", "arguments": {"path": "a.py", "content": content}})


def xml_of(count: int) -> str:
    content = "".join(cut(CODE, count))
    return f"<function=tool_7>\n<parameter=content>\n{content}\n</parameter>\n</function>"


def sieve_rows(count: int, times: int) -> Iterator[Row]:
    answers = {
        "prose": PROSE,
        "code": CODE,
        "a call in `<tool_call>`": f"<tool_call>\n{call_of(count)}\n</tool_call>",
        "a call in Qwen3-Coder's XML": f"<tool_call>\n{xml_of(count)}\n</tool_call>",
        "a call in a fence": f"```json\n{call_of(count)}\n```",
    }
    for what, answer in answers.items():
        calls = int("call" in what)
        pieces = cut(answer, -(-len(answer) // CHARACTERS)) if calls else cut(answer, count)
        ours = partial(sieved, pieces, calls)
        row = compared(f"sieve: {what}", ours, partial("".join, pieces), times)
        share = count / len(pieces)
        yield Row(row.what, row.ours_us * share, row.plain_us * share)


def sieved(pieces: Sequence[str], calls: int) -> None:
    sieve = ToolSieve([f"tool_{number}" for number in range(TOOL_COUNT)])
    out = [piece for text in pieces for piece in sieve.push(text)]
    out += sieve.finish()
    if sum(isinstance(piece, RawCall) for piece in out) != calls:
        raise SystemExit("the sieve lost a call, or made one up")
    if not calls and "".join(map(str, out)) != "".join(pieces):
        raise SystemExit("the sieve changed the text")


def reader_rows(count: int, times: int) -> Iterator[Row]:
    """The same calls read and checked against their tool's schema, per call."""
    offered = schemas(TOOL_COUNT, SCHEMA_BYTES)
    body = call_of(count)

    def read() -> None:
        (call,) = CallReader(offered, ToolChoice(), lambda: "call_1").read(RawCall("json", body, body))
        if json.loads(call.arguments) != json.loads(body)["arguments"]:
            raise SystemExit("the call has changed")

    yield compared("a whole call checked", read, partial(json.loads, body), times)


# ---- the dialects ----


def encoder_rows(count: int, times: int) -> Iterator[Row]:
    pieces = cut(PROSE, count)
    arguments = json.dumps({"content": "".join(pieces)})
    text = [Text(piece, number) for number, piece in enumerate(pieces)]
    call = ToolCall("call_1", "get_weather", arguments)
    for name, dialect, body in of_chats():
        encode = partial(encoded, dialect, body)
        yield compared(f"{name}: text", partial(encode, text), partial("".join, pieces), times)
        if "tools" in body:
            yield compared(f"{name}: a call", partial(encode, [call]), partial("".join, pieces), times)


def of_chats() -> Iterator[tuple[str, Dialect, dict[str, Any]]]:
    """Every dialect with a contract, and the body of a streamed request in it, with tools if it has them."""
    for _, dialect in DIALECTS:
        name = type(dialect).__name__
        if name in contracts():
            requests = contracts()[name].raw["requests"]
            yield name, dialect, {**requests.get("tools", requests["plain"]), "stream": True}


def encoded(dialect: Dialect, body: dict[str, Any], deltas: Sequence[Delta]) -> None:
    encoder = dialect.encoder(dialect.parse(body, {}))
    started = Started("chat", "response", "qwen3.7-plus", "account", conversation_id="kept", message_id="m")
    finished = Finished("tool_calls" if isinstance(deltas[-1], ToolCall) else "stop", Usage(12, 1000))
    every = [started, *deltas, finished]
    frames = [frame for delta in every for frame in encoder.encode(delta)]
    if len("".join(frames)) < len(deltas):
        raise SystemExit("the encoder says nothing")


# ---- a request's tools ----


def schemas(count: int, size_bytes: int) -> list[Tool]:
    """So many tools as coding programs have them, of about so many bytes of JSON altogether."""
    note = "What the tool works on, relative to the root of the project. " * 20

    def tool(number: int, length: int) -> Tool:
        properties = {
            "path": {"type": "string", "description": note[:length]},
            "content": {"type": "string"},
            "mode": {"type": "string", "enum": ["fast", "slow"]},
        }
        schema = {"type": "object", "properties": properties, "required": ["path"]}
        return Tool(f"tool_{number}", note[: length // 2], schema)

    bare = len(as_json([tool(number, 0) for number in range(count)]))
    length = max(0, (size_bytes - bare) * 2 // (count * 3))
    return [tool(number, length) for number in range(count)]


def as_json(offered: Sequence[Tool]) -> str:
    return json.dumps([[tool.name, tool.description, tool.parameters] for tool in offered])


def tool_rows(_count: int, times: int) -> Iterator[Row]:
    offered = schemas(TOOL_COUNT, SCHEMA_BYTES)
    size_bytes = len(as_json(offered))
    for most_bytes in (size_bytes * 2, Settings().max_tools_bytes, 10_000):
        what = f"{TOOL_COUNT} tools, {size_bytes // 1000} kB, told in at most {most_bytes // 1000} kB"
        yield compared(what, partial(told, offered, most_bytes), partial(as_json, offered), times)


def told(offered: Sequence[Tool], most_bytes: int) -> None:
    text = tools.preface(offered, ToolChoice(), fenced=False, most_bytes=most_bytes)
    if len(text.encode()) > most_bytes or not all(tool.name in text for tool in offered):
        raise SystemExit("the tools do not fit, or some have gone")


# ---- the table ----

ROWS: Final = (sieve_rows, reader_rows, encoder_rows, tool_rows)
"""Each yields rows for so many pieces, measured so many times. Add yours here."""


def rows(count: int, times: int) -> list[Row]:
    return [row for make in ROWS for row in make(count, times)]


def report(found: Sequence[Row], count: int) -> None:
    print(f"| per {count:,} pieces, or per request | µs | plain µs | µs more a piece |")
    print("|---|---|---|---|")
    for row in found:
        each = f"{(row.ours_us - row.plain_us) / count:.2f}" if ": " in row.what else ""
        print(f"| {row.what} | {row.ours_us:,.0f} | {row.plain_us:,.0f} | {each} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pieces", type=int, default=1000)
    parser.add_argument("--times", type=int, default=30)
    args = parser.parse_args()
    report(rows(args.pieces, args.times), args.pieces)


if __name__ == "__main__":
    main()
