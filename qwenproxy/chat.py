"""The words every other module speaks: a request, its messages, and the stream of deltas that answers it.

A stream is `Started (Thinking | Text | Source | Media | ToolCall)* Finished`: exactly one of each end,
nothing after. A failure is an exception, never a delta, so that no `match` can forget it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Role = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True)
class UpstreamChat:
    """A chat in a web account."""

    id: str
    account_id: str


AttachmentKind = Literal["image", "file"]
FileKind = Literal["image", "video", "audio", "document", "text"]
"""What a file is, by its content; plain text goes to the service in a way of its own (protocol §9.4)."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """Something a message carries beside its text, by its address.

    A client writes a web address, a data URL, or one of ours. Once it is taken in (`intake.py`) the
    address is `/v1/files/{id}/content`, or one of the service's own of a file that we do not know.
    """

    kind: AttachmentKind
    """The client's word for it; what it is, its content tells."""
    url: str
    name: str = ""
    """As the client calls the file."""
    place: str = field(default="", compare=False)
    """Where the request has it, such as messages[0].content[1]; "" when it is of an earlier one."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool that the model wants used: whole, checked, never a piece of one."""

    id: str
    name: str
    """As the client calls the tool."""
    arguments: str
    """A JSON object, as text."""


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    text: str
    attachments: tuple[Attachment, ...] = ()
    calls: tuple[ToolCall, ...] = ()
    """What an assistant's message called, after its text."""
    call_id: str = ""
    """Of a tool's message: the call it answers; "": the client did not say."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool of the client's, which the model may call."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """JSON Schema of the arguments; empty: any object."""


@dataclass(frozen=True, slots=True)
class ToolChoice:
    mode: Literal["auto", "none", "required"] = "auto"
    only: tuple[str, ...] = ()
    """The tools that may be called; (): all of them."""
    parallel: bool = True
    """Whether one answer may call several."""


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """The answer must be one JSON value that fits."""

    schema: Mapping[str, Any]
    """JSON Schema; `{"type": "object"}` where any object will do."""
    name: str = ""
    description: str = ""


@dataclass(frozen=True, slots=True)
class ConversationRef:
    """Which conversation a request belongs to, in the client's words."""

    id: str = ""
    """A chat of ours, or (where `is_chat` is false) also the id of an earlier answer; "": a new chat."""
    parent_id: str = ""
    """The message to continue from, or to answer anew; "": the last one."""
    is_chat: bool = True
    regenerate: bool = False
    """Answers a question again instead of asking a new one."""
    appends: bool = False
    """All of the request's messages follow that answer, and its system messages are the only ones; else just
    the last question follows."""


@dataclass(frozen=True, slots=True)
class Home:
    """Where a conversation lives in the web accounts; the chat it is answered in is not tidied away."""

    account_id: str = ""
    """Who answers, as long as it may; "": whose turn it is."""
    chat_id: str = ""
    """The upstream chat that knows all but the last message; "": none does."""
    response_id: str = ""
    """The answer in there that the last message follows."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """A picture that is wanted instead of words; what is attached to the question is to be changed."""

    size: str = ""
    """A ratio that the service knows, such as 16:9 (protocol §10.1); "": its own choice."""
    generator: str = ""
    """The service's id of what draws; "": its own choice."""
    inline: bool = False
    """Whether the picture itself is wanted, not only its address."""


@dataclass(frozen=True, slots=True)
class Filming:
    """A video that is wanted."""

    prompt: str
    size: str = ""
    """A ratio that the service knows, such as 16:9 (protocol §10.2); "": its own choice."""
    frame: str = ""
    """The address of the picture that it begins with; "": none is given."""


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
    conversation: ConversationRef | None = None
    """None: `messages` are the whole of it."""
    remember: bool = True
    """Whether the answer may be continued by its id."""
    home: Home | None = None
    """Where the conversation lives upstream; None: nowhere, a chat of its own is made and tidied away."""
    drawing: Drawing | None = None
    """None: an answer in words is wanted."""
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice()
    answer_format: AnswerFormat | None = None
    """None: free text."""
    search: bool = False
    """Whether the web must be searched first (protocol §10.4)."""
    research: bool = False
    """Whether the answer is a deep research (protocol §10.5)."""
    counts_input: bool = False
    """Whether `Started` must tell the size of the prompt."""
    answer_id: str = ""
    """Under which the answer is remembered; "": the service's own id of it."""
    echo: Mapping[str, Any] = field(default_factory=dict)
    """What the dialect itself wants to know of the request when it answers; nobody else reads it."""
    base_url: str = ""
    """How the client reaches us, such as http://127.0.0.1:3264: for addresses of ours in an answer."""


@dataclass(frozen=True, slots=True)
class Started:
    chat_id: str
    """The upstream chat's."""
    response_id: str
    model: str
    """The model that serves."""
    account_id: str = ""
    rebuilt: str = ""
    """Why the conversation so far was told anew in a fresh upstream chat; "": it was not."""
    conversation_id: str = ""
    """The chat of ours it is kept in, and the id under which this answer is kept there; "": nowhere."""
    message_id: str = ""
    input_tokens: int = 0
    """Of the prompt, counted by us, where the request wants it; 0: not counted."""


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
    """A picture."""

    url: str
    width: int = 0
    height: int = 0
    """Pixels; 0: not told."""
    content: str = ""
    """The picture itself in base64, where the request wants it; else ""."""


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
    cut: bool = False
    """Upstream it stands otherwise: it was ended by the proxy and may go on, or came of several rounds."""
    stopped_by: str = ""
    """The stop sequence that ended it; "": none did."""


Delta: TypeAlias = Started | Thinking | Text | Source | Media | ToolCall | Finished
Part: TypeAlias = Thinking | Text | Source | Media | ToolCall


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer: the fold of a finished stream."""

    started: Started
    thinking: str
    text: str
    sources: tuple[Source, ...]
    media: tuple[Media, ...]
    finished: Finished
    calls: tuple[ToolCall, ...] = ()
    parts: tuple[Part, ...] = ()
    """All of it in the order it came; thoughts and texts that follow each other are one."""


def written(text: str, media: Iterable[Media]) -> str:
    """An answer's text, with its pictures after it in Markdown."""
    urls = (m.url.replace(" ", "%20").replace("(", "%28").replace(")", "%29") for m in media)
    return "\n\n".join([*([text] if text else []), *(f"![image]({url})" for url in urls)])


def cited(text: str, number: int) -> tuple[int, int]:
    """From where to where the text first cites that source, as `[[2]]` or `[[1,2]]`; (0, 0): nowhere."""
    found = re.search(rf"\[\[(?:\d+,\s?)*{number}(?:,\s?\d+)*\]\]", text)
    return found.span() if found is not None else (0, 0)


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
        tuple(d for d in every if isinstance(d, ToolCall)),
        tuple(_joined(every)),
    )


def _joined(deltas: Iterable[Delta]) -> Iterator[Part]:
    kind: type[Thinking] | type[Text] | None = None
    pieces: list[str] = []
    for delta in deltas:
        if isinstance(delta, Started | Finished):
            continue
        if kind is not None and not isinstance(delta, kind):
            yield kind("".join(pieces))
            kind, pieces = None, []
        if isinstance(delta, Thinking | Text):
            kind = type(delta)
            pieces.append(delta.text)
        else:
            yield delta
    if kind is not None:
        yield kind("".join(pieces))
