"""An answer as OpenAI's Responses tell it: the events of its stream, and the body that they add up to. Pure.

The items follow each other; each is open from its `response.output_item.added` to its `.done`:

| deltas | item |
|---|---|
| thoughts | `reasoning`, as its summary |
| sources | `web_search_call`; each is also an annotation of the message that cites it |
| text, pictures | `message` |
| a call | `function_call` and its kin |

What belongs to another item ends the open one, so text after a call is a message of its own. Only sources
that come amid a message wait for its end, and its annotations are told there, for a citation may come before
or after its source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final, TypeVar

from qwenproxy.chat import (
    ChatRequest,
    Delta,
    Finished,
    Media,
    Source,
    Started,
    Text,
    Thinking,
    ToolCall,
    Usage,
)
from qwenproxy.dialects.base import Json, frame, json_text
from qwenproxy.dialects.chat_tools import INPUT, PIECE_CHARACTERS
from qwenproxy.dialects.response_output import Growing, Item, Reasoning, Saying, Searching, citations
from qwenproxy.dialects.response_tools import CallKind, Known, call_item
from qwenproxy.errors import CallerError, QwenProxyError

Kind = TypeVar("Kind", Reasoning, Saying, Searching)

CALL_PREFIXES: Final[Mapping[CallKind, str]] = MappingProxyType(
    {"function_call": "fc", "custom_tool_call": "ctc", "tool_search_call": "tsc"}
)
TOO_MANY: Final = 429


class ResponseEncoder:
    """One answer. `body` is the response as it stands; at its end what is answered, and what is kept."""

    def __init__(
        self,
        request: ChatRequest,
        settled: Mapping[str, Any],
        known: Mapping[str, Known],
        ended: Callable[[], int],
    ) -> None:
        """`settled` are the fields that the request decides; `ended` tells the second of the answer's end."""
        self._answer_id = request.answer_id
        self._known = known
        self._ended = ended
        self._sequence = 0
        self._item: Item | None = None
        self._item_id = ""
        self._piece_head = ""
        self._sources: list[Source] = []
        self._waiting: list[Source] = []
        """Sources that came amid a message."""
        self._told: set[int] = set()
        """The numbers of the sources that are annotations of a message."""
        self._begun = False
        self._output: list[Json] = []
        self.body: Json = {**settled, "output": self._output}

    def encode(self, delta: Delta, choice: int = 0) -> list[str]:
        match delta:
            case Text():
                return self._say(delta.text) if delta.text else []
            case Thinking():
                return self._think(delta.text) if delta.text else []
            case Started():
                return list(self._start(delta))
            case Source():
                return self._read(delta)
            case Media():
                return self._show(delta)
            case ToolCall():
                return list(self._call(delta))
            case Finished():
                return list(self._finish(delta))

    def end(self) -> list[str]:
        return []

    def fail(self, error: QwenProxyError) -> list[str]:
        """What is open breaks off: it stands in the response, but no event calls it done."""
        failure = failure_of(error)
        if not self._begun:
            told = {"code": error.code, "message": failure["message"], "param": failure["param"]}
            return [self._event("error", **told)]
        if self._item is not None:
            self._output.append(self._item.whole(self._item_id, "incomplete"))
        self._item = None
        self.body |= {"status": "failed", "error": failure}
        return [self._event("response.failed", response=self.body)]

    # ---- the answer as a whole ----

    def _start(self, started: Started) -> Iterator[str]:
        self._begun = True
        self._answer_id = self._answer_id or started.response_id
        self.body |= {"id": f"resp_{self._answer_id}", "model": started.model, "status": "in_progress"}
        yield self._event("response.created", response=self.body)
        yield self._event("response.in_progress", response=self.body)

    def _finish(self, finished: Finished) -> Iterator[str]:
        whole = finished.reason != "length"
        status = "completed" if whole else "incomplete"
        yield from self._close(status)
        self.body |= {
            "status": status,
            "incomplete_details": None if whole else {"reason": "max_output_tokens"},
            "completed_at": self._ended() if whole else None,
            "usage": usage_of(finished.usage),
        }
        yield self._event(f"response.{status}", response=self.body)

    # ---- its items ----

    def _say(self, text: str) -> list[str]:
        message, frames = self._now(Saying)
        return [*frames, self._piece(message, message.grow(text))]

    def _show(self, media: Media) -> list[str]:
        message, frames = self._now(Saying)
        return [*frames, self._piece(message, message.show(media))]

    def _think(self, text: str) -> list[str]:
        reasoning, frames = self._now(Reasoning)
        return [*frames, self._piece(reasoning, reasoning.grow(text))]

    def _read(self, source: Source) -> list[str]:
        self._sources.append(source)
        if isinstance(self._item, Saying):
            self._waiting.append(source)
            return []
        search, frames = self._now(Searching)
        search.sources.append(source)
        return frames

    def _now(self, kind: type[Kind]) -> tuple[Kind, list[str]]:
        """The open item, a new one where it is of another kind, and what that adds to the stream."""
        if isinstance(self._item, kind):
            return self._item, []
        item = kind()
        return item, self._open(item)

    def _call(self, call: ToolCall) -> Iterator[str]:
        yield from self._close()
        kind = self._known.get(call.name, Known(call.name)).kind
        index = len(self._output)
        item = call_item(call, self._known, f"{CALL_PREFIXES[kind]}_{self._answer_id}_{index}")
        name, events = "arguments", "response.function_call_arguments"
        if kind == "custom_tool_call":
            name, events = INPUT, "response.custom_tool_call_input"
        said = item[name]
        begun = {**item, "status": "in_progress", name: type(said)()}
        yield self._event("response.output_item.added", output_index=index, item=begun)
        if isinstance(said, str):
            place = {"item_id": item["id"], "output_index": index}
            for at in range(0, len(said), PIECE_CHARACTERS):
                yield self._event(f"{events}.delta", **place, delta=said[at : at + PIECE_CHARACTERS])
            yield self._event(f"{events}.done", **place, **{name: said})
        yield self._done(item)

    def _open(self, item: Item) -> list[str]:
        frames = list(self._close())
        index = len(self._output)
        item_id = f"{item.prefix}_{self._answer_id}_{index}"
        self._item, self._item_id = item, item_id
        if isinstance(item, Growing):
            place = f'"item_id":{json_text(item_id)},"output_index":{index},{item.inner}'
            self._piece_head = f'{place},"delta":'
        begun = item.begun(item_id)
        frames.append(self._event("response.output_item.added", output_index=index, item=begun))
        for name, fields in item.opening():
            frames.append(self._event(name, item_id=item_id, output_index=index, **fields))
        return frames

    def _close(self, status: str = "completed") -> Iterator[str]:
        item, self._item = self._item, None
        if item is None:
            return
        if isinstance(item, Saying):
            item.annotations = citations(item.text, self._sources, self._told)
        for name, fields in item.closing():
            yield self._event(name, item_id=self._item_id, output_index=len(self._output), **fields)
        # A search is over in any case: the service says nothing of one that goes on.
        ended = "completed" if isinstance(item, Searching) else status
        yield self._done(item.whole(self._item_id, ended))
        if isinstance(item, Saying) and self._waiting:
            search = Searching()
            search.sources, self._waiting = self._waiting, []
            yield from self._open(search)
            yield from self._close()

    def _done(self, item: Json) -> str:
        told = self._event("response.output_item.done", output_index=len(self._output), item=item)
        self._output.append(item)
        return told

    # ---- its events ----

    def _event(self, name: str, **fields: Any) -> str:
        return frame({"type": name, "sequence_number": self._number(), **fields}, name)

    def _piece(self, item: Growing, text: str) -> str:
        """Of the open item: nearly every event is one of these, so what is the same in them is kept."""
        return (
            f'event: {item.event}\ndata: {{"type":"{item.event}","sequence_number":{self._number()},'
            f"{self._piece_head}{json_text(text)}{item.tail}}}\n\n"
        )

    def _number(self) -> int:
        self._sequence += 1
        return self._sequence - 1


def failure_of(error: QwenProxyError) -> Json:
    """An error as a response holds it: OpenAI's few codes, with ours as the type."""
    code = "server_error"
    if error.status == TOO_MANY:
        code = "rate_limit_exceeded"
    elif isinstance(error, CallerError):
        code = "invalid_prompt"
    param = error.param if isinstance(error, CallerError) else None
    return {"code": code, "message": str(error) or error.code, "param": param, "type": error.code}


def usage_of(usage: Usage) -> Json:
    said: Json = {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }
    return {**said, "estimated": True} if usage.estimated else said
