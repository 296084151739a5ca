"""What a request says upstream: all of it to a fresh chat, only the last to one that knows the rest.

Files of earlier messages that are gone by now do not end a conversation: its turns say that they are.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Final, Protocol

from qwenproxy.addresses import own_file
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
from qwenproxy.errors import GenerationFailed, UnknownFile
from qwenproxy.file_rules import check_drawing, check_kinds, check_number, check_size
from qwenproxy.file_store import StoredFile
from qwenproxy.qwen.client import Turn
from qwenproxy.qwen.files import HostedFile, OnProgress
from qwenproxy.qwen.models import Model, resolve
from qwenproxy.qwen.payload import fold, pointer
from qwenproxy.settings import Settings

DRAWING: Final = "t2i"
"""The chat type of drawings, and what their limits are counted under (protocol §10.1, §13)."""
REDRAWING: Final = "image_edit"
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
    ) -> None:
        """`files`: those of ours that are attached, by address; `most` may be in one message.

        Raises:
            UnknownFile: what the last message has attached is gone.
            UnsupportedFile: the model, or the service, does not take what is attached.
        """
        home = request.home or Home()
        self.model = model
        self.account_id = home.account_id
        """Who answers, as long as it may."""
        self.twin = UpstreamChat(home.chat_id, home.account_id) if home.chat_id else None
        """The chat that knows the rest, until it is left."""
        self.stays = request.home is not None
        """Whether the chat that answers belongs to a conversation."""
        self.draws = request.drawing is not None
        self._request = request
        self._models = models
        self._files = files
        self._most = most
        self._response_id = home.response_id
        self._nonce = nonce
        self._left = ""
        self.turn = self._turn()
        """What is to be said now."""

    @property
    def limited_as(self) -> str:
        """What a usage limit is counted under, beside the account (protocol §13)."""
        return DRAWING if self.draws else self.model.id

    def leave(self, why: str) -> bool:
        """From here on everything is told to a fresh chat; whether that is new. Raises: UnsupportedFile."""
        if self.twin is None:
            return False
        self.twin, self._left = None, why
        self.turn = self._turn()
        return True

    def point_to(self, document: Attachment) -> None:
        """The document says what was to be said."""
        (*before, last), turn = self._told(), self.turn
        prompt = pointer(document.name, folded=bool(before) or last.role != "user")
        self.turn = replace(turn, prompt=prompt, attachments=(*turn.attachments, document))

    def placed(self, delta: Delta, account_id: str) -> Delta:
        if isinstance(delta, Started):
            return replace(delta, account_id=account_id, rebuilt=self._left)
        return delta

    def _told(self) -> tuple[Message, ...]:
        return self._request.messages if self.twin is None else self._request.messages[-1:]

    def _turn(self) -> Turn:
        (*before, last) = self._told()
        if any(not self._is_there(each) for each in last.attachments):
            raise UnknownFile("an attached file is no longer to be had", param="messages")
        messages = [self._named(message) for message in (*before, last)]
        check_number(len(last.attachments), self._most)
        # Once each: the marks say which turn had which.
        every = {each.url: each for message in messages for each in message.attachments if each.url}
        attached = tuple(every.values())
        kinds = self._kinds(attached)
        drawing = self._request.drawing
        turn = Turn(
            self.model,
            fold(messages, self._nonce),
            self._request.thinking if drawing is None else False,
            self._request.thinking_budget,
            None if self.twin is None else self._response_id,
            attached,
        )
        if drawing is None:
            check_kinds(kinds, self.model, self._models)
            return turn
        check_drawing(kinds)
        edits = attached and REDRAWING in self.model.chat_types
        chat_type = REDRAWING if edits else DRAWING
        return replace(turn, chat_type=chat_type, size=drawing.size, generator=drawing.generator)

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
