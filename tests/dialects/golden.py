"""Golden files of a dialect, in `tests/wire/<dialect>/`: what both ways of answering must look like.

`<scenario>.in.json` holds a request's body and, with the choice that each belongs to, the deltas that answer
it; `.out.sse` is the stream that comes of it, `.out.json` the whole answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

from qwenproxy import chat
from qwenproxy.chat import ChatRequest, Delta, Reply, Usage, fold
from qwenproxy.dialects.base import Dialect

WIRE = Path(__file__).parent.parent / "wire"
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)

Told: TypeAlias = tuple[int, Delta]
"""A choice's delta."""


class StandingClock:
    def now(self) -> datetime:
        return NOON

    def monotonic_s(self) -> float:
        return 0.0


def scenarios(folder: str) -> list[str]:
    return sorted(path.name.removesuffix(".in.json") for path in (WIRE / folder).glob("*.in.json"))


def scenario(dialect: Dialect, folder: str, name: str) -> tuple[ChatRequest, list[Told]]:
    """The request, read by `dialect`, and the deltas that answer it."""
    raw = json.loads((WIRE / folder / f"{name}.in.json").read_text(encoding="utf-8"))
    return dialect.parse(raw["body"], {}), [(choice, delta_of(delta)) for choice, delta in raw["deltas"]]


def golden_stream(folder: str, name: str) -> str:
    return (WIRE / folder / f"{name}.out.sse").read_text(encoding="utf-8")


def golden_reply(folder: str, name: str) -> Any:
    return json.loads((WIRE / folder / f"{name}.out.json").read_text(encoding="utf-8"))


def delta_of(raw: dict[str, Any]) -> Delta:
    fields = {**raw}
    if "usage" in fields:
        fields["usage"] = Usage(**fields["usage"])
    delta: Delta = getattr(chat, fields.pop("kind"))(**fields)
    return delta


def streamed(dialect: Dialect, request: ChatRequest, deltas: Iterable[Told]) -> str:
    """The whole stream that `deltas` become."""
    encoder = dialect.encoder(request)
    frames = [frame for choice, delta in deltas for frame in encoder.encode(delta, choice)]
    return "".join([*frames, *encoder.end()])


def replies(request: ChatRequest, deltas: Sequence[Told]) -> list[Reply]:
    """What the relay hands to a dialect for a whole answer."""
    return [fold([d for c, d in deltas if c == choice]) for choice in range(request.choices)]


def events(stream: str) -> list[Any]:
    """The data of every event; OpenAI's `[DONE]` as it is."""
    datas = [event.partition("data: ")[2] for event in stream.split("\n\n") if event]
    return [data if data == "[DONE]" else json.loads(data) for data in datas]
