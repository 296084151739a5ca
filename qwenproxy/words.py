"""What a request says upstream: all of it to a fresh chat, only the last to one that knows the rest.

The web protocol knows neither tools nor formats: what the client may want called, and how the answer must
look, stands in a system message of ours after the client's own; calls and their results stand in the text.

Files of earlier messages that are gone by now do not end a conversation: its turns say that they are.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Final, Protocol

from qwenproxy import structured, tools
from qwenproxy.addresses import own_file
from qwenproxy.answering import Again
from qwenproxy.chat import (
    Attachment,
    ChatRequest,
    Delta,
    FileKind,
    Finished,
    Home,
    Media,
    Message,
    Started,
    Text,
    UpstreamChat,
)
from qwenproxy.errors import GenerationFailed, UnknownFile, UnsupportedParameter
from qwenproxy.file_rules import check_drawing, check_kinds, check_number, check_size
from qwenproxy.file_store import StoredFile
from qwenproxy.qwen.client import Turn
from qwenproxy.qwen.files import HostedFile, OnProgress
from qwenproxy.qwen.models import Model, resolve
from qwenproxy.qwen.payload import RESEARCH, SEARCH, fold, pointer
from qwenproxy.settings import Settings

DRAWING: Final = "t2i"
"""The chat type of drawings, and what their limits are counted under (protocol §10.1, §13)."""
REDRAWING: Final = "image_edit"
TALK: Final = "t2t"
NO_HOME: Final = Home()
QUOTED_CHARACTERS: Final = 200
"""How much of what was said instead of a picture its caller gets to read."""


class Upstream(Protocol):
    async def models(self, account_id: str) -> tuple[Model, ...]: ...

    async def new_chat(self, account_id: str, model: Model, chat_type: str = ...) -> str: ...

    def fits(self, turn: Turn) -> bool: ...

    def stream(self, account_id: str, chat_id: str, turn: Turn) -> AsyncGenerator[Delta]: ...


class Hosting(Protocol):
    """Whoever brings files to the accounts."""

    async def files(self, messages: Sequence[Message]) -> Mapping[str, StoredFile]: ...

    async def hosted(
        self, account_id: str, attachments: Sequence[HostedFile | Attachment], on_progress: OnProgress = ...
    ) -> tuple[HostedFile | Attachment, ...]: ...

    async def holder(self, attachments: Sequence[HostedFile | Attachment]) -> str: ...

    async def forget(self, account_id: str, attachments: Sequence[HostedFile | Attachment]) -> bool: ...

    def document(self, text: str) -> AbstractAsyncContextManager[Attachment]: ...


def model_of(request: ChatRequest, live: Sequence[Model], settings: Settings) -> Model:
    """The model that serves the request. Whatever is no model that draws means, in a drawing, the default.

    Raises:
        UnknownModel: nothing serves it.
    """
    default, unknown = settings.default_model, settings.unknown_model
    if request.drawing is None:
        return resolve(request.model, live, default=default, unknown=unknown)
    model = resolve(request.model, live, default=default, unknown="default")
    return model if DRAWING in model.chat_types else resolve("", live, default=default, unknown=unknown)


class Words:
    def __init__(
        self,
        request: ChatRequest,
        model: Model,
        models: Sequence[Model],
        files: Mapping[str, StoredFile],
        nonce: str,
        *,
        most: int,
        most_tools_bytes: int,
        fenced: bool = False,
    ) -> None:
        """`files`: those of ours that are attached, by address; `most` may be in one message.

        `most_tools_bytes` is how much may be told of tools; `fenced`: calls are asked for as fenced JSON.

        Raises:
            UnknownFile: what the last message has attached is gone.
            UnsupportedFile: the model, or the service, does not take what is attached.
            UnsupportedParameter: the model does not search the web, or does no research.
        """
        home = request.home or NO_HOME
        self.model = model
        self.account_id = home.account_id
        """Who answers, as long as it may."""
        self._chat_type = _chat_type(request, model, models)
        lives = home.chat_id and self._chat_type != RESEARCH  # which needs a chat of its kind
        self.twin = UpstreamChat(home.chat_id, home.account_id) if lives else None
        """The chat that knows the rest, until it is left."""
        self.stays = request.home is not None
        """Whether the chat that answers belongs to a conversation."""
        self.draws = request.drawing is not None
        self.request = request
        """With the model and what it is to do as the name of the model tells."""
        self._models = models
        self._files = files
        self._most = most
        self._most_tools_bytes = most_tools_bytes
        self._fenced = fenced
        self._response_id = home.response_id
        self._nonce = nonce
        self._left = ""
        self._folded = False
        """Whether what is said is a whole conversation with marks."""
        self.input_tokens = 0
        """What `Started` tells of the prompt's size; 0: nothing."""
        self.turn = self._turn()
        """What is to be said now."""

    @property
    def limited_as(self) -> str:
        """What a usage limit is counted under, beside the account (protocol §13)."""
        if self.draws:
            return DRAWING
        return RESEARCH if self._chat_type == RESEARCH else self.model.id

    def leave(self, why: str) -> bool:
        """From here on everything is told to a fresh chat; whether that is new. Raises: UnsupportedFile."""
        if self.twin is None:
            return False
        self.twin, self._left = None, why
        self.turn = self._turn()
        return True

    def again(self, again: Again, account_id: str, nonce: str) -> Words:
        """What the next round says, to a fresh chat. Raises: as when made."""
        request = replace(self.request, messages=(*self.request.messages, *again.messages), home=None)
        words = Words(
            request,
            self.model,
            self._models,
            self._files,
            nonce,
            most=self._most,
            most_tools_bytes=self._most_tools_bytes,
            fenced=again.fenced,
        )
        words.account_id = account_id
        return words

    def point_to(self, document: Attachment) -> None:
        """The document says what was to be said."""
        turn = self.turn
        prompt = pointer(document.name, folded=self._folded)
        self.turn = replace(turn, prompt=prompt, attachments=(*turn.attachments, document))

    def placed(self, delta: Delta, account_id: str) -> Delta:
        if isinstance(delta, Started):
            return replace(delta, account_id=account_id, rebuilt=self._left, input_tokens=self.input_tokens)
        return delta

    def _told(self) -> tuple[Message, ...]:
        return self.request.messages if self.twin is None else self.request.messages[-1:]

    def _turn(self) -> Turn:
        (*before, last) = self._told()
        if any(not self._is_there(each) for each in last.attachments):
            raise UnknownFile("an attached file is no longer to be had", param="messages")
        messages = [self._named(message) for message in (*before, last)]
        preface = self._preface()
        self._folded = bool(before or preface) or last.role != "user"
        check_number(len(last.attachments), self._most)
        # Once each: the marks say which turn had which.
        every = {each.url: each for message in messages for each in message.attachments if each.url}
        attached = tuple(every.values())
        kinds = self._kinds(attached)
        drawing = self.request.drawing
        turn = Turn(
            self.model,
            fold([*tools.as_text(messages, fenced=self._fenced), *preface], self._nonce),
            self.request.thinking if drawing is None else False,
            self.request.thinking_budget,
            None if self.twin is None else self._response_id,
            attached,
        )
        if drawing is None:
            check_kinds(kinds, self.model, self._models)
            return replace(turn, chat_type=self._chat_type)
        check_drawing(kinds)
        edits = attached and REDRAWING in self.model.chat_types
        chat_type = REDRAWING if edits else DRAWING
        return replace(turn, chat_type=chat_type, size=drawing.size, generator=drawing.generator)

    def _preface(self) -> list[Message]:
        """What the model is told of tools and of the form of its answer."""
        request = self.request
        told = [
            tools.preface(
                request.tools,
                request.tool_choice,
                fenced=self._fenced,
                most_bytes=self._most_tools_bytes,
            )
            if request.tools
            else "",
            structured.preface(request.answer_format) if request.answer_format is not None else "",
        ]
        text = "\n\n".join(each for each in told if each)
        return [Message("system", text)] if text else []

    def _kinds(self, attached: Sequence[Attachment]) -> list[FileKind]:
        """Raises: UnsupportedFile, of a file that is too large."""
        kinds: list[FileKind] = []
        for each in attached:
            file = self._files.get(each.url)
            if file is not None:
                check_size(file)
            kinds.append(file.kind if file else "image" if each.kind == "image" else "document")
        return kinds

    def _named(self, message: Message) -> Message:
        """Each attachment with its name; without its address where it is gone."""
        if not message.attachments:
            return message
        attachments = tuple(
            replace(
                each,
                url=each.url if self._is_there(each) else "",
                name=each.name or (self._files[each.url].name if each.url in self._files else ""),
            )
            for each in message.attachments
        )
        return replace(message, attachments=attachments)

    def _is_there(self, attachment: Attachment) -> bool:
        return attachment.url in self._files or (bool(attachment.url) and not own_file(attachment.url))


def _chat_type(request: ChatRequest, model: Model, models: Sequence[Model]) -> str:
    """The service's kind of chat for it (protocol §4.3). Raises: UnsupportedParameter."""
    if request.research and RESEARCH not in model.chat_types:
        raise UnsupportedParameter(_lacking("do deep research", model, models, RESEARCH), param="model")
    if request.search and not request.research and SEARCH not in model.chat_types:
        raise UnsupportedParameter(_lacking("search the web", model, models, SEARCH), param="model")
    return RESEARCH if request.research else SEARCH if request.search else TALK


def _lacking(what: str, model: Model, models: Sequence[Model], chat_type: str) -> str:
    able = next((other.id for other in models if chat_type in other.chat_types), "")
    return f"{model.id} does not {what}" + (f"; {able} does" if able else "")


class Drawn:
    """Watches over an answer that should be a picture."""

    def __init__(self, *, due: bool) -> None:
        """`due`: a picture is."""
        self._due = due
        self._said = ""

    def check(self, delta: Delta) -> None:
        """Raises: GenerationFailed, at the end of an answer without a picture."""
        if not self._due:
            return
        if isinstance(delta, Media):
            self._due = False
        elif isinstance(delta, Text):
            self._said = (self._said + delta.text)[: QUOTED_CHARACTERS + 1]
        elif isinstance(delta, Finished):
            said = " ".join(self._said.split())[:QUOTED_CHARACTERS]
            raise GenerationFailed("the service drew nothing" + (f"; it said: {said}" if said else ""))
