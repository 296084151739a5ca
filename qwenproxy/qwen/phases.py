"""Events of a completion stream to deltas (protocol §5).

What ends an answer: a `finished` frame of an answering phase without `timestamp`, `response.stopped`,
`{"done": true}`, `[DONE]`, an error. A `finished` with `timestamp` is an intermediate one, after which a tool
or another round follows; only if 15 s of silence follow is it the end (`settling`, `settle`; protocol §5.7).
A stream that ends otherwise is severed, or empty when there was nothing in it. After a research's report come
its files, whose phase ends the stream; once the report is whole, the stream may also end without (§10.5).

Frames are somebody else's and may hold anything: what has an unknown kind or a wrong type is passed over, and
only more than `MAX_BROKEN` unreadable frames in a row are an error.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from qwenproxy.chat import Delta, Finished, Media, Source, Started, Text, Thinking, Usage
from qwenproxy.errors import EmptyAnswer, ProtocolChanged, Severed
from qwenproxy.qwen import failures
from qwenproxy.qwen.research_notes import ResearchNotes

MAX_BROKEN = 5
"""Unreadable frames in a row that are passed over (reliability U12)."""

SURE_CHARACTERS = 8
"""How long a text must be before a piece that begins with all of it proves anything."""

_ANSWERING = frozenset({"answer", "image_gen", "image_edit", "finished", ""})
"""Phases whose `finished` can end the answer: `image_gen` for pictures, none without `output_schema`."""

_NOTING = frozenset({"DeepThinking", "ResearchNotice", "ResearchPlanning"})
"""Phases in which a deep research says what it is about to do (protocol §10.5)."""

_FILING = "PdfMdGen"
"""The phase that brings a research's files, and ends it."""

_PICTURING = frozenset({"image_gen", "image_edit"})
"""Phases whose content is the address of a picture (protocol §10.1)."""


class PhaseDecoder:
    """Turns one answer's events into `Started (Thinking | Text | Source | Media)* Finished`.

    `push`, `settle` and `finish` are generators, so that what came before a failure is given out before it.
    """

    def __init__(self, chat_id: str, model: str, *, researches: bool = False) -> None:
        """`researches`: the answer is the report of a deep research."""
        self.ended = False
        """The answer is complete; nothing more needs to be read."""
        self.settling = False
        """The last content seen was an intermediate end: after 15 s without any bytes call `settle`."""
        self.response_id = ""
        self.broken = 0
        """Unreadable frames passed over so far."""
        self._chat_id = chat_id
        self._model = model
        self._researches = researches
        self._others: set[str] = set()
        """Responses of the same stream that are not ours (protocol §5.2)."""
        self._started = False
        self._broken_in_a_row = 0
        self._gave = False
        """Anything but `Started` was given out, or a tool was at work."""
        self._answered = False
        """Text or a picture was given out."""
        self._tokens = _Tokens()
        self._text = _GrowingText()
        self._thought = _GrowingText()
        self._summary = _Summary()
        self._has_thought = False
        self._thought_is_over = False
        self._sources = _Sources()
        self._notes = ResearchNotes()
        self._is_reported = False
        """The report is whole; only its files may follow."""
        self._media: set[str] = set()

    @property
    def usage(self) -> Usage:
        """Summed over the rounds; zeros while the service said nothing."""
        return self._tokens.total

    def push(self, event: str) -> Iterator[Delta]:
        """Raises: whatever error the service reports in the stream; ProtocolChanged."""
        text = event.strip()
        if self.ended or not text:
            return
        if text == "[DONE]":
            yield from self._end()
            return
        frame = _read(text)
        if frame is None:
            self._count_broken(text)
            return
        self._broken_in_a_row = 0
        yield from self._frame(frame)

    def settle(self) -> Iterator[Delta]:
        """The end of an answer that fell silent while `settling` (protocol §5.7, rule 4)."""
        if not self.ended:
            yield from self._end()

    def finish(self) -> Iterator[Delta]:
        """The end of the stream.

        Raises:
            Severed: it came before the end of the answer.
            EmptyAnswer: nothing came before it, as happens to throttled accounts (protocol §5.7).
        """
        if self.ended:
            return
        if self._is_reported:
            yield from self._end()
            return
        yield from self._release()
        if self._gave:
            raise Severed("the answer broke off before its end")
        raise EmptyAnswer("the service ended the stream without an answer")

    def _count_broken(self, text: str) -> None:
        self.broken += 1
        self._broken_in_a_row += 1
        if self._broken_in_a_row > MAX_BROKEN:
            raise ProtocolChanged("the service's stream cannot be read", seen=text)

    def _frame(self, frame: Mapping[str, Any]) -> Iterator[Delta]:
        if "response.created" in frame:
            yield from self._created(_mapping(frame["response.created"]))
        elif (error := _error_in(frame)) is not None:
            if _text(frame.get("response_id")) not in self._others:
                yield from self._fail(error)
        elif "response.stopped" in frame:
            if self._is_ours(_mapping(frame["response.stopped"])):
                yield from self._end()
        elif "response.info" in frame:
            if _mapping(frame["response.info"]).get("action") == "skip_think":
                self._summary.close()
        elif frame.get("done") is True:
            yield from self._end()
        elif (delta := _delta_in(frame)) is not None and self._is_ours(frame):
            yield from self._spoken(frame, delta)

    def _spoken(self, frame: Mapping[str, Any], delta: Mapping[str, Any]) -> Iterator[Delta]:
        if not self.response_id or not self._started:
            yield from self._start(_text(frame.get("response_id")))
        self._tokens.take(_mapping(frame.get("usage")))
        yield from self._content(delta, intermediate=frame.get("timestamp") is not None)

    def _created(self, created: Mapping[str, Any]) -> Iterator[Delta]:
        response_id = _text(created.get("response_id"))
        if not self.response_id and str(created.get("response_index", "0")) == "0":
            yield from self._start(response_id)
        elif response_id and response_id != self.response_id:
            self._others.add(response_id)

    def _start(self, response_id: str) -> Iterator[Delta]:
        self.response_id = self.response_id or response_id
        if not self._started:
            self._started = True
            yield Started(self._chat_id, self.response_id, self._model)

    def _is_ours(self, frame: Mapping[str, Any]) -> bool:
        """A frame without a response id is ours; so is, before ours is known, any that is no other's."""
        response_id = _text(frame.get("response_id"))
        if not response_id:
            return True
        return response_id == self.response_id if self.response_id else response_id not in self._others

    def _content(self, delta: Mapping[str, Any], *, intermediate: bool) -> Iterator[Delta]:
        phase, status = _text(delta.get("phase")), _text(delta.get("status"))
        if phase == "KeepAlive":
            return
        extra = _mapping(delta.get("extra"))
        # A tool's own failure is its result: the model goes on without it.
        if status == "error" and delta.get("role") != "function":
            yield from self._fail(extra.get("error") or "Internal error")
        self.settling = False
        yield from self._said(phase, _string(delta.get("content")), extra)
        if extra:
            yield from self._found(extra)
        if delta.get("role") == "function":
            self._gave = True
            self._tokens.close()
        if status == "finished":
            yield from self._finished(phase, intermediate=intermediate)

    def _said(self, phase: str, content: str, extra: Mapping[str, Any]) -> Iterator[Delta]:
        if phase in {"answer", "ReportGeneration", ""}:
            yield from self._answer(self._text.push(content))
        elif phase in _NOTING:
            yield from self._note(self._thought.push(content) + self._summary.push(extra))
        elif phase == "think":
            yield from self._think(self._thought.push(content))
        elif phase == "thinking_summary":
            yield from self._think(self._summary.push(extra))
        elif phase in _PICTURING:
            yield from self._picture(_repaired(content), *_pixels(extra))

    def _finished(self, phase: str, *, intermediate: bool) -> Iterator[Delta]:
        if phase in {"think", "thinking_summary", "WebResearch"} | _NOTING:
            yield from self._think(self._thought.close())
            self._summary.close()
            self._thought_is_over = True
            for query in self._notes.close():
                yield from self._look_for(query)
        elif self._researches and phase in {"answer", "ReportGeneration", _FILING}:
            yield from self._answer(self._text.close())
            self._is_reported = self._is_reported or not intermediate
            self.settling = True
            if phase == _FILING and not intermediate:
                yield from self._end()
        elif phase in _ANSWERING:
            yield from self._answer(self._text.close())
            if intermediate:
                self.settling = True
            else:
                yield from self._end()

    def _answer(self, text: str) -> Iterator[Delta]:
        if text:
            self._gave = self._answered = True
            yield Text(text, self._tokens.visible)

    def _think(self, text: str) -> Iterator[Delta]:
        if text:
            separator = "\n\n" if self._thought_is_over and self._has_thought else ""
            self._gave = self._has_thought = True
            self._thought_is_over = False
            yield Thinking(separator + text)

    def _note(self, text: str) -> Iterator[Delta]:
        """A research's own words about itself: all that the turn says which only asks a question."""
        self._answered = self._answered or bool(text)
        yield from self._think(text)

    def _look_for(self, query: str) -> Iterator[Delta]:
        self._thought_is_over = True
        yield from self._note(f"Searching: {query}")
        self._thought_is_over = True

    def _picture(self, url: str, width: int = 0, height: int = 0) -> Iterator[Delta]:
        if url.startswith(("https://", "http://")) and url not in self._media:
            self._media.add(url)
            self._gave = self._answered = True
            yield Media(url, width, height)

    def _found(self, extra: Mapping[str, Any]) -> Iterator[Delta]:
        """What a tool brought: pages it read, pictures it made (protocol §5.5); what a research did."""
        for note in self._notes.push(extra.get("deep_research")):
            if isinstance(note, Source):
                self._gave = True
                yield note
            else:
                yield from self._look_for(note)
        for source in self._sources.push(extra):
            self._gave = True
            yield source
        for picture in _list(extra.get("image_list")) or _list(extra.get("tool_result")):
            yield from self._picture(_text(_mapping(picture).get("image")))

    def _release(self) -> Iterator[Delta]:
        """Text that was held back, at any end."""
        yield from self._think(self._thought.close())
        yield from self._answer(self._text.close())

    def _fail(self, error: object) -> Iterator[Delta]:
        self.ended = True
        yield from self._release()
        raise failures.in_stream(error)

    def _end(self) -> Iterator[Delta]:
        self.ended = True
        self.settling = False
        yield from self._release()
        if not self._answered:
            raise EmptyAnswer("the service ended its answer without saying anything")
        if self._notes.links:
            yield from self._answer(f"\n\n{self._notes.links}")
        yield Finished("stop", self.usage)


class _Tokens:
    """The counters of every round; each counts up from its own start (protocol §5.3)."""

    def __init__(self) -> None:
        self._past = Usage()
        """The sum of the rounds before."""
        self._read = self._wrote = self._thought = 0
        """What this round has counted so far."""
        self._round_is_over = False

    @property
    def total(self) -> Usage:
        return Usage(
            self._past.input_tokens + self._read,
            self._past.output_tokens + self._wrote,
            self._past.reasoning_tokens + self._thought,
        )

    @property
    def visible(self) -> int:
        past = self._past.output_tokens - self._past.reasoning_tokens
        return max(past + self._wrote - self._thought, 0)

    def close(self) -> None:
        """A tool has answered: if the next prompt has another size it is a new round's."""
        self._round_is_over = True

    def take(self, usage: Mapping[str, Any]) -> None:
        """What a frame leaves out stays as it was."""
        details = _mapping(usage.get("output_tokens_details"))
        read = _count(usage.get("input_tokens"))
        # `text_tokens` counts the reasoning too in recordings with both, so it can stand in for the whole.
        wrote = _count(usage.get("output_tokens"), _count(details.get("text_tokens")))
        if not read and not wrote:
            return  # nothing said, or a picture's, which count nothing
        is_other_prompt = read is not None and read != self._read
        if (wrote is not None and wrote < self._wrote) or (self._round_is_over and is_other_prompt):
            self._past = self.total
            self._read = self._wrote = self._thought = 0
        self._round_is_over = False
        thought = _count(details.get("reasoning_tokens"))
        self._read = self._read if read is None else read
        self._wrote = self._wrote if wrote is None else wrote
        self._thought = self._thought if thought is None else thought


class _GrowingText:
    """Pieces that should be appended, from a service that may send the whole text each time (protocol §5.3).

    Pieces are appended unless the very beginning proves otherwise. While every piece begins with the one
    before it, and has grown since the first, either may be true; so pieces are held back. From the third on,
    one that begins with at least `SURE_CHARACTERS` proves a cumulative text, of which only what is new is
    given out; any other piece proves an appended one, for good. So a piece that repeats what came before
    ("ha", "ha") is never lost. If the text ends while it is not known, that length alone decides.

    Half a surrogate pair at the end of a piece waits for the next; one without its half becomes U+FFFD.
    """

    def __init__(self) -> None:
        self._is_cumulative: bool | None = None
        self._chain: list[str] = []
        """The pieces so far while it is not known; all but the first are held back."""
        self._whole = ""
        """The last piece of a cumulative text."""
        self._before = ""
        """The same of the round before, with which the pieces of this one may begin too."""
        self._half = ""

    def push(self, piece: str) -> str:
        """What is new and certain."""
        if not piece:
            return ""
        if self._is_cumulative is None:
            piece = self._undecided(piece)
        elif self._is_cumulative:
            piece = self._rest(piece)
        return self._joined(piece)

    def close(self) -> str:
        """What is still held back: the text, or this round of it, is over."""
        new = ""
        if len(self._chain) > 1:
            new = self._decide(is_cumulative=len(self._chain[-2]) >= SURE_CHARACTERS)
        self._before, self._whole = self._whole or self._before, ""
        new, self._half = self._half + new, ""
        return _repaired(new)

    def _undecided(self, piece: str) -> str:
        self._chain.append(piece)
        if len(self._chain) == 1:
            return piece
        first, last = self._chain[0], self._chain[-2]
        if not piece.startswith(last) or len(piece) == len(first):
            return self._decide(is_cumulative=False)
        if len(self._chain) > 2 and len(last) >= SURE_CHARACTERS:
            return self._decide(is_cumulative=True)
        return ""

    def _decide(self, *, is_cumulative: bool) -> str:
        self._is_cumulative = is_cumulative
        (first, *held), self._chain = self._chain, []
        if not is_cumulative:
            return "".join(held)
        self._whole = held[-1]
        return self._whole[len(first) :]

    def _rest(self, piece: str) -> str:
        if self._whole.startswith(piece):
            return ""  # an older one, sent again
        known = next((k for k in (self._whole, self._before) if k and piece.startswith(k)), "")
        self._whole = piece
        return piece[len(known) :]

    def _joined(self, text: str) -> str:
        if not text or (text.isascii() and not self._half):
            return text
        text, self._half = self._half + text, ""
        if "\ud800" <= text[-1] <= "\udbff":
            text, self._half = text[:-1], text[-1]
        return _repaired(text)


class _Summary:
    """Thoughts in arrays that grow and are sent again in full (protocol §5.4).

    Reads as paragraphs: a title, its thought on the next line, an empty line before the next title.
    """

    def __init__(self) -> None:
        self._given: dict[tuple[int, int], str] = {}
        """By index and by kind, a title (0) or a thought (1)."""
        self._last: tuple[int, int] | None = None

    def push(self, extra: Mapping[str, Any]) -> str:
        """What is new."""
        kinds = [_lines(extra.get(name)) for name in ("summary_title", "summary_thought")]
        return "".join(
            self._grown((index, kind), lines[index])
            for index in range(max(map(len, kinds)))
            for kind, lines in enumerate(kinds)
            if index < len(lines)
        )

    def close(self) -> None:
        """The arrays are complete; the next ones start over (protocol §5.4)."""
        self._given.clear()
        self._last = None

    def _grown(self, place: tuple[int, int], text: str) -> str:
        given = self._given.get(place, "")
        self._given[place] = text
        # What was given out cannot be taken back, so a text that changed is left as it was.
        new = text[len(given) :] if text.startswith(given) else ""
        if not new:
            return ""
        last, self._last = self._last, place
        if last in {None, place}:
            return new
        return ("\n" if last is not None and last[0] == place[0] else "\n\n") + new


class _Sources:
    """Numbers the pages a search read as the answer's `[[n]]` cite them (protocol §5.5)."""

    def __init__(self) -> None:
        self._given: dict[int, str] = {}

    def push(self, extra: Mapping[str, Any]) -> Iterator[Source]:
        result = _mapping(extra.get("tool_result"))
        docs = _list(result.get("docs"))
        if not docs:
            # Without numbers, but complete each time.
            yield from self._new(1, _list(extra.get("web_search_info")))
            return
        after = _count(result.get("used_id"))
        if after is not None and after > len(docs):
            yield from self._new(after - len(docs), docs)
            return
        known = set(self._given.values())
        fresh = [doc for doc in docs if _text(_mapping(doc).get("url")) not in known]
        yield from self._new(max(self._given, default=0) + 1, fresh)

    def _new(self, first: int, docs: list[Any]) -> Iterator[Source]:
        for number, doc in enumerate(map(_mapping, docs), first):
            url = _text(doc.get("url"))
            if url and number not in self._given:
                self._given[number] = url
                yield Source(number, url, _text(doc.get("title")))


def _read(text: str) -> Mapping[str, Any] | None:
    try:
        frame = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return frame if isinstance(frame, dict) else None


def _error_in(frame: Mapping[str, Any]) -> object:
    """The error a frame reports, in any known shape (protocol §5.6, §6.2); None when it reports none."""
    if frame.get("error"):
        return frame["error"]
    if "choices" in frame:
        return None
    is_refusal = (
        frame.get("success") is False
        or isinstance(frame.get("ret"), list)
        or isinstance(frame.get("code"), str)
    )
    return frame if is_refusal else None


def _delta_in(frame: Mapping[str, Any]) -> Mapping[str, Any] | None:
    choices = _list(frame.get("choices"))
    delta = _mapping(choices[0]).get("delta") if choices else None
    return delta if isinstance(delta, dict) else None


def _pixels(extra: Mapping[str, Any]) -> tuple[int, int]:
    """Width and height of a drawn picture, told the other way round (protocol §10.1); zeros: not told."""
    rows = _list(extra.get("output_image_hw"))
    sides = _list(rows[0]) if rows else []
    height, width = (_count(side, 0) or 0 for side in sides) if len(sides) == 2 else (0, 0)
    return width, height


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _string(value: object) -> str:
    return value if isinstance(value, str) else ""


def _text(value: object) -> str:
    return _repaired(_string(value))


def _lines(value: object) -> list[str]:
    """The texts of one of the summary's arrays."""
    content = _mapping(value).get("content")
    return [_text(line) for line in _list([content] if isinstance(content, str) else content)]


def _count(value: object, otherwise: int | None = None) -> int | None:
    return value if type(value) is int and value >= 0 else otherwise


def _repaired(text: str) -> str:
    """Text that can be written as UTF-8: half surrogate pairs are joined, or become U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
