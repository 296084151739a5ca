"""What the service does not do for us: ends an answer at a stop sequence or after so many tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final

from qwenproxy.chat import Delta, Finished, FinishReason, Text, Thinking, ToolCall, Usage

BYTES_PER_TOKEN = 4
"""Where nothing counts better; the usual estimate."""
WHOLE_CHARACTERS: Final = 200_000
"""Of a longer text samples are counted: 10 ms of counting are no pause for other streams, a second is."""
SAMPLES: Final = 20

Count = Callable[[str], int]
"""The tokens of a text."""


def by_bytes(text: str) -> int:
    """A quarter of the bytes."""
    return _tokens(len(text) if text.isascii() else len(text.encode("utf-8", "replace")))


def estimated_tokens(text: str, count: Count) -> int:
    """What `count` gives, at a bounded cost: of a long text evenly spread samples stand for the whole."""
    if len(text) <= WHOLE_CHARACTERS:
        return count(text)
    size, step = WHOLE_CHARACTERS // SAMPLES, len(text) // SAMPLES
    samples = [text[at : at + size] for at in range(0, step * SAMPLES, step)]
    return round(sum(map(count, samples)) * len(text) / sum(map(len, samples)))


class Meter:
    """Fills in the usage that the service did not tell, and says that it is an estimate.

    What is said is only collected, and counted once, at the end.
    """

    def __init__(self, prompt: str, count: Count = by_bytes) -> None:
        """`prompt`: what was said upstream."""
        self._prompt = prompt
        self._count = count
        self._said: list[str] = []
        self._thought: list[str] = []

    def read(self, delta: Delta) -> Delta:
        match delta:
            case Text():
                self._said.append(delta.text)
            case Thinking():
                self._thought.append(delta.text)
            case ToolCall():
                self._said.append(_call(delta))
            case Finished() if not self._is_told(delta.usage):
                return replace(delta, usage=self._estimated(delta.usage))
        return delta

    def _is_told(self, usage: Usage) -> bool:
        """Whether the service counted both sides; what was cut short it never does."""
        said_nothing = not self._said and not self._thought
        return usage.input_tokens > 0 and (usage.output_tokens > 0 or said_nothing)

    def _estimated(self, usage: Usage) -> Usage:
        """Of an answer that was cut only the visible tokens are told, perhaps by the service."""
        asked = usage.input_tokens or estimated_tokens(self._prompt, self._count)
        if usage.output_tokens and not usage.estimated:
            return replace(usage, input_tokens=asked, estimated=True)
        reasoning = self._tokens(self._thought)
        visible = usage.output_tokens or self._tokens(self._said)
        return Usage(asked, visible + reasoning, reasoning, estimated=True)

    def _tokens(self, texts: Sequence[str]) -> int:
        return estimated_tokens("".join(texts), self._count)


def _call(call: ToolCall) -> str:
    """About as the model wrote it."""
    return f'<tool_call>{{"name": "{call.name}", "arguments": {call.arguments}}}</tool_call>'


def _tokens(count_bytes: int) -> int:
    return -(-count_bytes // BYTES_PER_TOKEN)


class Cutter:
    """A filter over one answer's deltas. Once it is `done`, close the answer: nothing more comes out.

    Of the stop sequences the one that begins first wins, of those at one place the shortest, however the text
    is cut into pieces; it is not given out, but the end names it. Text is held back only while it could be
    the beginning of one. `max_tokens` counts visible tokens: the service's own count where a piece tells it,
    else a quarter of the bytes. A piece that goes past the limit is cut, in proportion. An answer that ends
    by itself exactly at the limit has not been cut.
    """

    def __init__(self, stop: Sequence[str] = (), max_tokens: int | None = None) -> None:
        self.done = False
        self._stop = tuple(sequence for sequence in stop if sequence)
        self._limit = None if max_tokens is None else max_tokens * BYTES_PER_TOKEN
        """In quarters of a token, so that a byte is 1."""
        self._spent = 0
        self._held = ""
        self._said_tokens = 0
        """The service's latest count."""

    def push(self, delta: Delta) -> Iterator[Delta]:
        if self.done:
            return
        if isinstance(delta, Text) and (self._stop or self._limit is not None):
            yield from self._push_text(delta)
        elif isinstance(delta, Finished):
            yield from self._finish(delta)
        else:
            yield delta

    def _push_text(self, delta: Text) -> Iterator[Delta]:
        if not delta.text:
            return
        self._said_tokens = delta.output_tokens or self._said_tokens
        kept = self._within_limit(delta)
        if not self._stop and kept == delta.text:
            yield delta
            return
        self._held += kept
        yield from self._give(is_last=kept != delta.text)
        if kept != delta.text and not self.done:
            yield self._cut("length")

    def _within_limit(self, delta: Text) -> str:
        raw = delta.text.encode("utf-8", "replace")
        before = self._spent
        said = delta.output_tokens * BYTES_PER_TOKEN
        self._spent = max(before, said) if said else before + len(raw)
        if self._limit is None or self._spent <= self._limit:
            return delta.text
        kept = len(raw) * (self._limit - before) // (self._spent - before)
        return raw[:kept].decode("utf-8", "ignore")

    def _give(self, *, is_last: bool) -> Iterator[Delta]:
        """Everything that cannot belong to a stop sequence any more; ends the answer at one."""
        places = ((at, len(s), s) for s in self._stop if (at := self._held.find(s)) >= 0)
        found, _, sequence = min(places, default=(None, 0, ""))
        certain = len(self._held) if is_last else self._beginning_of_stop()
        if found is not None and found <= certain:
            if found:
                yield Text(self._held[:found], self._said_tokens)
            yield self._cut("stop", sequence)
            return
        if certain:
            yield Text(self._held[:certain], self._said_tokens)
        self._held = self._held[certain:]

    def _beginning_of_stop(self) -> int:
        """Where the tail starts that the next piece could turn into a stop sequence."""
        longest = 0
        for sequence in self._stop:
            sizes = range(min(len(sequence) - 1, len(self._held)), longest, -1)
            longest = next((size for size in sizes if self._held.endswith(sequence[:size])), longest)
        return len(self._held) - longest

    def _finish(self, finished: Finished) -> Iterator[Delta]:
        for delta in self._give(is_last=True):
            yield replace(delta, usage=finished.usage) if isinstance(delta, Finished) else delta
        if not self.done:
            self.done = True
            yield finished

    def _cut(self, reason: FinishReason, sequence: str = "") -> Finished:
        """The service's own usage never comes now: what was given out is counted, the prompt is not."""
        self.done = True
        tokens = self._said_tokens or _tokens(self._spent)
        if self._limit is not None:
            tokens = min(tokens, self._limit // BYTES_PER_TOKEN)
        return Finished(reason, Usage(output_tokens=tokens, estimated=True), cut=True, stopped_by=sequence)
