"""The words every other module speaks: a request, its messages, and the stream of deltas that answers it.

A stream is `Started (Thinking | Text | Source | Media)* Finished`: exactly one of each end, nothing after.
A failure is an exception, never a delta, so that no `match` can forget it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One question, in no dialect. Each stage that changes it returns a changed copy."""

    model: str
    """As the client wrote it; the gateway replaces it by the id that serves."""
    messages: tuple[Message, ...]
    stream: bool = False
    thinking: bool | None = None
    """None: the client did not say, so Fast unless the model forbids it (protocol §4.2)."""
    thinking_budget: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    choices: int = 1
    include_usage: bool = False


@dataclass(frozen=True, slots=True)
class Started:
    chat_id: str
    response_id: str
    model: str
    """The model that serves."""


@dataclass(frozen=True, slots=True)
class Thinking:
    text: str


@dataclass(frozen=True, slots=True)
class Text:
    text: str
    output_tokens: int = 0
    """Tokens of the visible answer up to and with this piece, as the service counts them; 0: not said."""


@dataclass(frozen=True, slots=True)
class Source:
    """A web page the service read; `number` is the one the text cites as `[[number]]` (protocol §5.5)."""

    number: int
    url: str
    title: str


@dataclass(frozen=True, slots=True)
class Media:
    url: str


@dataclass(frozen=True, slots=True)
class Usage:
    input_tokens: int = 0
    output_tokens: int = 0
    """With reasoning."""
    reasoning_tokens: int = 0
    estimated: bool = False


@dataclass(frozen=True, slots=True)
class Finished:
    reason: FinishReason
    usage: Usage = Usage()


Delta: TypeAlias = Started | Thinking | Text | Source | Media | Finished


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer: the fold of a finished stream."""

    started: Started
    thinking: str
    text: str
    sources: tuple[Source, ...]
    media: tuple[Media, ...]
    finished: Finished


def fold(deltas: Iterable[Delta]) -> Reply:
    """The whole answer that a finished stream adds up to."""
    every = list(deltas)
    return Reply(
        next(d for d in every if isinstance(d, Started)),
        "".join(d.text for d in every if isinstance(d, Thinking)),
        "".join(d.text for d in every if isinstance(d, Text)),
        tuple(d for d in every if isinstance(d, Source)),
        tuple(d for d in every if isinstance(d, Media)),
        next(d for d in every if isinstance(d, Finished)),
    )
