"""The items of an answer in OpenAI's Responses, each while it grows. Pure.

An item is announced as it begins, grows by pieces or sources, and is told again whole when it is done.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Final, TypeAlias

from qwenproxy.chat import Media, Source, cited, written
from qwenproxy.dialects.base import Json

BETWEEN: Final = "\n\n"
"""Between a picture and what stands beside it."""

Told: TypeAlias = tuple[str, Json]
"""An event's name, and its fields beside those that say which item it is about."""


class Growing:
    """An item of text, which comes in pieces: `event` is one's event, `inner` where in the item it goes."""

    prefix: ClassVar[str]
    event: ClassVar[str]
    inner: ClassVar[str]
    tail: ClassVar[str] = ""

    def __init__(self) -> None:
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    def grow(self, text: str) -> str:
        """The piece as it stands in the item."""
        self._pieces.append(text)
        return text


class Reasoning(Growing):
    """What the service shows of its thoughts: a summary, in OpenAI's terms."""

    prefix = "rs"
    event = "response.reasoning_summary_text.delta"
    inner = '"summary_index":0'

    def begun(self, item_id: str) -> Json:
        return {"id": item_id, "type": "reasoning", "status": "in_progress", "summary": []}

    def opening(self) -> Iterator[Told]:
        yield "response.reasoning_summary_part.added", {"summary_index": 0, "part": _summary("")}

    def closing(self) -> Iterator[Told]:
        text = self.text
        yield "response.reasoning_summary_text.done", {"summary_index": 0, "text": text}
        yield "response.reasoning_summary_part.done", {"summary_index": 0, "part": _summary(text)}

    def whole(self, item_id: str, status: str) -> Json:
        return {"id": item_id, "type": "reasoning", "status": status, "summary": [_summary(self.text)]}


class Saying(Growing):
    """A message."""

    prefix = "msg"
    event = "response.output_text.delta"
    inner = '"content_index":0'
    tail = ',"logprobs":[]'

    def __init__(self) -> None:
        super().__init__()
        self.annotations: list[Json] = []
        self._after_picture = False

    def grow(self, text: str) -> str:
        piece = (BETWEEN if self._after_picture else "") + text
        self._after_picture = False
        return super().grow(piece)

    def show(self, media: Media) -> str:
        """The piece that shows a picture."""
        self._after_picture = bool(self._pieces)
        piece = self.grow(written("", [media]))
        self._after_picture = True
        return piece

    def begun(self, item_id: str) -> Json:
        return {**self._message(item_id, "in_progress"), "content": []}

    def opening(self) -> Iterator[Told]:
        yield "response.content_part.added", {"content_index": 0, "part": _output_text("", [])}

    def closing(self) -> Iterator[Told]:
        for index, annotation in enumerate(self.annotations):
            fields = {"content_index": 0, "annotation_index": index, "annotation": annotation}
            yield "response.output_text.annotation.added", fields
        yield "response.output_text.done", {"content_index": 0, "text": self.text, "logprobs": []}
        yield "response.content_part.done", {"content_index": 0, "part": self._part()}

    def whole(self, item_id: str, status: str) -> Json:
        return {**self._message(item_id, status), "content": [self._part()]}

    def _part(self) -> Json:
        return _output_text(self.text, self.annotations)

    def _message(self, item_id: str, status: str) -> Json:
        return {"id": item_id, "type": "message", "role": "assistant", "status": status}


class Searching:
    """What the service read on the web; it does not say what it searched for."""

    prefix = "ws"

    def __init__(self) -> None:
        self.sources: list[Source] = []

    def begun(self, item_id: str) -> Json:
        return self.whole(item_id, "in_progress")

    def opening(self) -> Iterator[Told]:
        yield "response.web_search_call.in_progress", {}
        yield "response.web_search_call.searching", {}

    def closing(self) -> Iterator[Told]:
        yield "response.web_search_call.completed", {}

    def whole(self, item_id: str, status: str) -> Json:
        sources = [{"type": "url", "url": source.url} for source in self.sources]
        action = {"type": "search", "query": "", "queries": [], "sources": sources}
        return {"id": item_id, "type": "web_search_call", "status": status, "action": action}


Item: TypeAlias = Reasoning | Saying | Searching


def citations(text: str, sources: Sequence[Source], told: set[int]) -> list[Json]:
    """In the order numbered: the sources that `text` cites, and those that are not yet in `told`.

    A page that is not cited stands from 0 to 0. Adds to `told`.
    """
    found: list[Json] = []
    for source in sorted(sources, key=lambda source: source.number):
        start, end = cited(text, source.number)
        if end or source.number not in told:
            told.add(source.number)
            found.append(
                {
                    "type": "url_citation",
                    "start_index": start,
                    "end_index": end,
                    "url": source.url,
                    "title": source.title,
                }
            )
    return found


def _summary(text: str) -> Json:
    return {"type": "summary_text", "text": text}


def _output_text(text: str, found: Sequence[Json]) -> Json:
    return {"type": "output_text", "text": text, "annotations": list(found), "logprobs": []}
