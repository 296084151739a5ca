"""One answer as its client wants it: calls of tools out of the model's text, or the JSON that was asked for.

What the model wrote is read by the sieve; each call is checked by itself before it is given out. A call that
cannot be used, a call that is missing, JSON that does not fit: the model is told so and asked once more, and
then it is an error. The service's own machinery in place of an answer ("Tool X does not exists.", protocol
§5.5) has the request repeated once in another form. The pieces of all these rounds make one answer.

Text of a round that only mends what was said before is given out at its end, and only if it is all there is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from qwenproxy import structured, tools
from qwenproxy.chat import ChatRequest, Delta, Finished, Message, Started, Text, Usage
from qwenproxy.errors import InvalidAnswer, InvalidToolCall
from qwenproxy.sieve import NoSuchTool, RawCall, ToolSieve
from qwenproxy.structured import BadAnswer
from qwenproxy.tool_calls import BadCall, CallReader
from qwenproxy.tool_names import NoSuchName, meant

NO_ANSWER = "The answer held neither text nor a call."
NO_CALL = "The answer held no call, but it has to call one of the tools."
NO_MODEL = "The service answered in place of the model that there is no such tool."


@dataclass(frozen=True, slots=True)
class Again:
    """The next round."""

    messages: tuple[Message, ...] = ()
    """What is said after the conversation."""
    fenced: bool = False
    """Whether calls are asked for as fenced JSON."""


class Answering:
    """Turns the deltas of each round into those of the answer."""

    def __init__(self, request: ChatRequest, new_id: Callable[[], str]) -> None:
        """`new_id` gives the ids of calls."""
        self._request = request
        self._format = request.answer_format
        self._names = frozenset(tool.name for tool in request.tools)
        self._may_call = _may_call(request)
        self._reader = CallReader(request.tools, request.tool_choice, new_id)
        self._calls = False
        """Whether a call was given out."""
        self._spoke = False
        """Whether text was."""
        self._corrected = False
        self._fenced = False
        self._usage: list[Usage] = []
        self._started: Started | None = None
        """Held back until there is something to give, so that a failure can have a status of its own."""
        self._is_first = True
        self._begin()

    @staticmethod
    def wanted(request: ChatRequest) -> bool:
        """Whether answers to `request` have to be read at all."""
        if request.drawing is not None or request.research:
            return False
        return _may_call(request) or request.answer_format is not None

    def _begin(self) -> None:
        self.again: Again | None = None
        """After a round: the next one, or None when the answer is whole."""
        self._mends = self._corrected or (self._fenced and self._spoke)
        """Whether this round only mends what was said before."""
        self._sieve = ToolSieve(self._names) if self._may_call else None
        self._written: list[str] = []
        """All that the model wrote in this round."""
        self._held: list[str] = []
        """Text that waits for the end of the round."""
        self._said_tokens = 0
        self._problem: BadCall | BadAnswer | None = None
        self._refused = False
        """Whether the service's own machinery answered instead of the model."""

    def push(self, delta: Delta) -> Iterator[Delta]:
        """What the client gets of a round's delta.

        Raises:
            InvalidToolCall: the model wrote no call that can be used, also when asked again.
            InvalidAnswer: its JSON does not fit, also when asked again.
        """
        match delta:
            case Started():
                if self.again is not None:
                    self._begin()
                if self._is_first:
                    self._started, self._is_first = delta, False
            case Text():
                self._written.append(delta.text)
                self._said_tokens = delta.output_tokens or self._said_tokens
                if self._sieve is None:
                    yield from self._text(delta.text)
                else:
                    yield from self._read(self._sieve.push(delta.text))
            case Finished():
                if self._sieve is not None:
                    yield from self._read(self._sieve.finish())
                yield from self._end(delta)
            case _:
                yield from self._give(delta)

    def _read(self, pieces: Iterator[str | RawCall | NoSuchTool]) -> Iterator[Delta]:
        for piece in pieces:
            if self._refused:
                return  # what follows it is the machinery's too
            match piece:
                case str():
                    yield from self._text(piece)
                case RawCall():
                    yield from self._call(piece)
                case NoSuchTool():
                    if self._fenced and not self._is_a_tool(piece.name):
                        yield from self._text(f"Tool {piece.name} does not exist.\n")  # the model's own words
                    else:
                        self._refused = True

    def _is_a_tool(self, name: str) -> bool:
        try:
            meant(name, tuple(self._names))
        except NoSuchName:
            return False
        return True

    def _text(self, text: str) -> Iterator[Delta]:
        if self._format is not None or self._mends:
            self._held.append(text)
        else:
            self._spoke = self._spoke or not text.isspace()
            yield from self._give(Text(text, self._said_tokens))

    def _call(self, raw: RawCall) -> Iterator[Delta]:
        if self._calls and not self._request.tool_choice.parallel:
            return
        try:
            calls = self._reader.read(raw)
        except BadCall as exc:
            self._problem = self._problem or exc
            return
        if calls and self._format is not None and not self._corrected:
            yield from self._release()
        for call in calls:
            self._calls = True
            yield from self._give(call)

    def _release(self) -> Iterator[Delta]:
        text, self._held = "".join(self._held), []
        if text.strip():
            self._spoke = True
            yield from self._give(Text(text, self._said_tokens))

    def _give(self, delta: Delta) -> Iterator[Delta]:
        started, self._started = self._started, None
        if started is not None:
            yield started
        yield delta

    # ---- the end of a round ----

    def _end(self, finished: Finished) -> Iterator[Delta]:
        self._usage.append(finished.usage)
        if self._refused and not self._fenced and not self._calls:
            self._fenced = True
            self.again = Again(fenced=True)
            return
        yield from self._rest()
        problem = self._problem or self._missing()
        if problem is not None:
            self._correct(problem)
            return
        reason = "tool_calls" if self._calls else finished.reason
        cut = finished.cut or self._corrected or self._fenced
        yield from self._give(replace(finished, reason=reason, usage=self._summed(), cut=cut))

    def _rest(self) -> Iterator[Delta]:
        """What was held back, where it is wanted."""
        if self._problem is not None or self._calls or not self._held:
            return
        if self._format is not None:
            try:
                self._held = [structured.read("".join(self._held), self._format)]
            except BadAnswer as exc:
                self._problem = exc
                return
        yield from self._release()

    def _missing(self) -> BadCall | BadAnswer | None:
        """What the answer lacks."""
        if self._calls:
            return None
        if self._refused:
            return BadCall(NO_MODEL)
        if self._request.tool_choice.mode == "required" and self._request.tools:
            return BadCall(NO_CALL)
        if self._spoke:
            return None
        return BadCall(NO_ANSWER) if self._format is None else BadAnswer(NO_ANSWER)

    def _correct(self, problem: BadCall | BadAnswer) -> None:
        """Raises: InvalidToolCall, InvalidAnswer: the model has been told already."""
        if self._corrected or self._refused:
            if isinstance(problem, BadAnswer):
                raise InvalidAnswer(
                    f"the model's answer does not fit the format that was asked for: {problem}"
                )
            raise InvalidToolCall(f"the model wrote no call that can be used: {problem}")
        self._corrected = True
        told = (
            structured.correction(str(problem))
            if isinstance(problem, BadAnswer)
            else tools.correction(str(problem), fenced=self._fenced)
        )
        wrote = Message("assistant", "".join(self._written))
        self.again = Again((wrote, Message("user", told)), self._fenced)

    def _summed(self) -> Usage:
        """Over all rounds; nothing where the service told nothing of one of them."""
        if not all(usage.input_tokens for usage in self._usage):
            return Usage()
        return Usage(
            sum(usage.input_tokens for usage in self._usage),
            sum(usage.output_tokens for usage in self._usage),
            sum(usage.reasoning_tokens for usage in self._usage),
        )


def _may_call(request: ChatRequest) -> bool:
    """Whether calls may stand in the answer: who has called before may do so again, tools or not."""
    return bool(request.tools) or any(message.calls for message in request.messages)
