"""What is said in a conversation that goes on: the new question, and what came of its answer so far."""

from __future__ import annotations

from dataclasses import dataclass, field

from qwenproxy.chat import (
    ChatRequest,
    Delta,
    Finished,
    Home,
    Media,
    Message,
    Source,
    Started,
    Text,
    Thinking,
    ToolCall,
    UpstreamChat,
    written,
)
from qwenproxy.errors import BadRequest


def new_messages(request: ChatRequest) -> tuple[Message, ...]:
    """What a request adds to a conversation that is remembered: its last question, or results of calls.

    Raises:
        BadRequest: nothing, or several answers are wanted.
    """
    since: list[Message] = []
    for message in reversed(request.messages):
        if message.role == "assistant":
            break
        since.append(message)
    if any(message.role == "tool" for message in since):
        return tuple(message for message in reversed(since) if message.role != "system")
    return (last_question(request),)


def last_question(request: ChatRequest) -> Message:
    """The new message of a request whose conversation is kept elsewhere; only one answer may follow it.

    Raises:
        BadRequest: there is none, or several answers are wanted.
    """
    if request.choices > 1:
        raise BadRequest("n must be 1 in a conversation that goes on", param="n")
    for message in reversed(request.messages):
        if message.role == "user":
            return message
    raise BadRequest("messages hold no message of a user", param="messages")


@dataclass(slots=True)
class Said:
    """What came of an answer so far."""

    started: Started | None = None
    text: list[str] = field(default_factory=list)
    thinking: list[str] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    media: list[Media] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)

    def take(self, delta: Delta) -> None:
        match delta:
            case Started():
                self.started = delta
            case Text():
                self.text.append(delta.text)
            case Thinking():
                self.thinking.append(delta.text)
            case Source():
                self.sources.append(delta)
            case Media():
                self.media.append(delta)
            case ToolCall():
                self.calls.append(delta)
            case Finished():
                pass

    @property
    def content(self) -> str:
        return written("".join(self.text), self.media)

    @property
    def message(self) -> Message:
        return Message("assistant", self.content, calls=tuple(self.calls))

    @property
    def response_id(self) -> str:
        return self.started.response_id if self.started is not None else ""

    @property
    def upstream(self) -> UpstreamChat:
        """The chat that answered; without a name before it began."""
        if self.started is None:
            return UpstreamChat("", "")
        return UpstreamChat(self.started.chat_id, self.started.account_id)

    @property
    def home(self) -> Home:
        return Home(self.upstream.account_id, self.upstream.id, self.response_id)
