"""A chat as it is kept: its messages as a tree, one branch of it current. In the seed's form, and around it.

`{"id", "name", "created", "messages": [{"id", "role", "content", "timestamp", "chat_type", "info"}]}` is what
FreeQwenApi wrote (peers.md §2.1), and what it can still read: `messages` is the current branch. Ours beside
it: `branches` (every other message), each message's `parentId`, and the keys that `Entry` and `Transcript`
name. What somebody else wrote beside these is kept. A file that is only a list of messages is the older form.

Nothing changes in place: each change gives a changed copy, so that one that cannot be stored is no change.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final, TypeAlias, TypeVar
from uuid import NAMESPACE_OID, uuid5

from qwenproxy.chat import Attachment, AttachmentKind, Message, Role, UpstreamChat
from qwenproxy.errors import BadRequest, UnknownChat

Json: TypeAlias = dict[str, Any]
Told = TypeVar("Told", bound="Entry | Message")
Content: TypeAlias = str | list[Json]
"""Text, or parts as the seed has them: `{"type": "text", "text"}`, `{"type": "image", "image": url}` or
`{"type": "file", "file": url}`."""

NONE: Final[Mapping[str, Any]] = MappingProxyType({})
ROLES: Final[Mapping[str, Role]] = MappingProxyType(
    {"system": "system", "developer": "system", "assistant": "assistant"}
)
KINDS: Final[Mapping[str, AttachmentKind]] = MappingProxyType({"image": "image", "file": "file"})
CHAT_KEYS: Final = frozenset(
    {"id", "name", "created", "messages", "branches", "owner", "account", "twin", "untwinned"}
)
MESSAGE_KEYS: Final = frozenset(
    {
        *("id", "role", "content", "timestamp", "parentId", "unanswered", "partial", "model", "account"),
        *("reasoning", "sources", "info", "rebuilt", "upstream"),
    }
)
UNNAMED: Final = "New chat"
PENDING: Final = "pending"
"""Of a question whose answer is being made, or was when the program was killed."""


def text_of(content: Content) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if isinstance(part.get("text"), str))


def message_of(role: Role, content: Content) -> Message:
    """As the model is told it."""
    attachments: list[Attachment] = []
    for part in content if isinstance(content, list) else ():
        kind = KINDS.get(str(part.get("type")))
        if kind is not None and isinstance(part.get(kind), str):
            attachments.append(Attachment(kind, part[kind]))
    return Message(role, text_of(content), tuple(attachments))


def _readdressed(content: Content, addresses: Mapping[str, str]) -> Content:
    if isinstance(content, str):
        return content
    parts: list[Json] = []
    for part in content:
        kind = KINDS.get(str(part.get("type")))
        url = part.get(kind) if kind is not None else None
        known = isinstance(url, str) and url in addresses
        parts.append({**part, str(kind): addresses[str(url)]} if known else part)
    return parts


@dataclass(frozen=True, slots=True)
class Entry:
    """One message."""

    id: str
    parent_id: str
    """"" for a first one."""
    role: str
    content: Content
    timestamp: int
    """Seconds."""
    unanswered: str = ""
    """Of a question: why it has no answer, `PENDING` or an error's code. The next one takes its place."""
    partial: str = ""
    """Of an answer: why it was cut short, an error's code or `interrupted`."""
    model: str = ""
    account: str = ""
    """Who answered."""
    reasoning: str = ""
    sources: tuple[Json, ...] = ()
    """`{"number", "url", "title"}` each."""
    info: Json | None = None
    """Usage, of an answer."""
    rebuilt: str = ""
    """Why the conversation had to be told anew for this answer; see `Started.rebuilt`."""
    upstream_chat: str = ""
    upstream_response: str = ""
    """Where the same answer stands in the web account; "" when it does not stand there word for word."""
    more: Mapping[str, Any] = field(default_factory=lambda: NONE)
    """What others wrote."""

    @property
    def text(self) -> str:
        """The content's text."""
        return text_of(self.content)

    @property
    def message(self) -> Message:
        """As the model is told it."""
        return message_of(ROLES.get(self.role, "user"), self.content)


@dataclass(frozen=True, slots=True)
class Transcript:
    """One chat."""

    id: str
    name: str
    created: int
    """Milliseconds."""
    entries: Mapping[str, Entry] = field(default_factory=lambda: NONE)
    """By id; a parent stands before its children."""
    leaf: str = ""
    """The last message of the current branch; "" in an empty chat."""
    owner: str = ""
    """The mark of the key that made it; "": made without keys."""
    account: str = ""
    """Who shall answer, where somebody moved the chat and it has no twin there yet."""
    twin: UpstreamChat | None = None
    """The upstream chat that mirrors this one."""
    untwinned: str = ""
    """Why there is no twin, where there was one or the chat came from elsewhere."""
    more: Mapping[str, Any] = field(default_factory=lambda: NONE)

    # ---- reading ----

    def entry(self, entry_id: str, param: str | None = None) -> Entry:
        """Raises: UnknownChat, with the field that named it."""
        found = self.entries.get(entry_id)
        if found is None:
            raise UnknownChat("there is no such message in this chat", param=param)
        return found

    def branch(self, leaf: str | None = None) -> tuple[Entry, ...]:
        """From the first message to `leaf`, or to the end of the current branch."""
        path: list[Entry] = []
        found = self.entries.get(self.leaf if leaf is None else leaf)
        while found is not None:
            path.append(found)
            found = self.entries.get(found.parent_id)
        return tuple(reversed(path))

    def others(self) -> tuple[Entry, ...]:
        """The messages of the other branches."""
        current = {entry.id for entry in self.branch()}
        return tuple(entry for entry in self.entries.values() if entry.id not in current)

    def model_of(self, question_id: str) -> str:
        """The model that answered a question last, or the nearest one before it; "" when none did."""
        answers = [entry for entry in self.entries.values() if entry.parent_id == question_id]
        spoken = [entry.model for entry in (*self.branch(question_id), *answers) if entry.model]
        return spoken[-1] if spoken else ""

    # ---- a turn ----

    def preceded(self, entry: Entry) -> Transcript:
        """With a message at the end of the current branch that is no question."""
        return self._with(replace(entry, parent_id=self.leaf), leaf=entry.id)

    def asked(
        self, content: Content, *, parent_id: str, new_id: str, timestamp: int
    ) -> tuple[Transcript, Entry]:
        """With the question after `parent_id` ("": after the last message), and that question.

        The same question at the same place is the same message, so that a retry doubles nothing. A question
        that was never answered gives its place to the next one.

        Raises:
            UnknownChat: there is no such parent.
            BadRequest: the parent is itself a question.
        """
        parent = self._parent(content) if not parent_id else self.entry(parent_id, "parentId").id
        if parent_id and self.entries[parent_id].role == "user":
            raise BadRequest("parentId must be the id of an answer, not of a question", param="parentId")
        same = (
            entry
            for entry in self.entries.values()
            if entry.parent_id == parent and entry.role == "user" and entry.content == content
        )
        question = next(same, None)
        if question is None or (not parent_id and not self._open(question)):
            question = Entry(new_id, parent, "user", content, timestamp, unanswered=PENDING)
        elif question.unanswered:
            question = replace(question, unanswered=PENDING)
        return self._with(question, leaf=question.id), question

    def asked_again(self, entry_id: str = "") -> tuple[Transcript, Entry]:
        """With the question of the answer `entry_id` ("": of the last) as the leaf, and that question.

        Raises:
            UnknownChat: there is no such message.
            BadRequest: there is no question to answer.
        """
        entry = self.entry(entry_id or self.leaf, "messageId") if self.entries else None
        question = self.entries.get(entry.parent_id) if entry and entry.role == "assistant" else entry
        if question is None or question.role != "user":
            raise BadRequest("there is no question to answer again", param="messageId")
        return self._with(question, leaf=question.id), question

    def answered(self, answer: Entry) -> Transcript:
        """With the answer, as the end of the current branch."""
        question = self.entry(answer.parent_id)
        return self._with(replace(question, unanswered=""), answer, leaf=answer.id)

    def failed(self, question_id: str, why: str) -> Transcript:
        """With the reason why a question has no answer; one that has an older answer shows that again."""
        answers = [entry.id for entry in self.entries.values() if entry.parent_id == question_id]
        if answers:
            return replace(self, leaf=self._end_below(answers[-1]))
        return self._with(replace(self.entry(question_id), unanswered=why), leaf=question_id)

    def _parent(self, content: Content) -> str:
        """What an unplaced question follows: the last message, unless that turn came to nothing."""
        last = self.entries.get(self.leaf)
        if last is not None and last.unanswered:
            return last.parent_id
        if last is not None and last.partial:
            question = self.entries.get(last.parent_id)
            if question is not None and question.content == content:
                return question.parent_id
        return self.leaf

    def _open(self, question: Entry) -> bool:
        """Whether it still wants an answer: it has none, or none that is whole."""
        answers = [entry for entry in self.entries.values() if entry.parent_id == question.id]
        return all(entry.partial for entry in answers)

    # ---- what people change ----

    def edited(self, entry_id: str, content: Content) -> Transcript:
        """With other words in one message; what was said upstream after it is no longer the same."""
        entry = self.entry(entry_id)
        if entry.content == content:
            return self
        changed = {entry_id: replace(entry, content=content, upstream_chat="", upstream_response="")}
        for other in self.entries.values():
            if other.parent_id in changed:
                changed[other.id] = replace(other, upstream_chat="", upstream_response="")
        return replace(self, entries=MappingProxyType({**self.entries, **changed}))

    def readdressed(self, addresses: Mapping[str, str]) -> Transcript:
        """With other addresses of the same pictures and files. No words change."""
        entries = {
            entry.id: replace(entry, content=_readdressed(entry.content, addresses))
            for entry in self.entries.values()
        }
        return replace(self, entries=MappingProxyType(entries))

    def forked(self, entry_id: str, *, new_id: str, created: int) -> Transcript:
        """A new chat that holds what led to a message, and that message. The ids of the messages stay."""
        path = self.branch(self.entry(entry_id, "messageId").id)
        kept = {entry.id: replace(entry, upstream_chat="", upstream_response="") for entry in path}
        return Transcript(
            new_id,
            self.name,
            created,
            MappingProxyType(kept),
            entry_id,
            self.owner,
            untwinned="forked",
        )

    def moved(self, account_id: str) -> Transcript:
        """To be answered by that account from now on."""
        if self.twin is not None and self.twin.account_id == account_id:
            return self
        return replace(self, account=account_id, twin=None, untwinned="moved")

    def _with(self, *entries: Entry, leaf: str) -> Transcript:
        more = {entry.id: entry for entry in entries}
        return replace(self, entries=MappingProxyType({**self.entries, **more}), leaf=leaf)

    def _end_below(self, entry_id: str) -> str:
        """The end of the newest branch below a message."""
        while True:
            below = [entry.id for entry in self.entries.values() if entry.parent_id == entry_id]
            if not below:
                return entry_id
            entry_id = below[-1]

    # ---- the file ----

    def to_json(self) -> Json:
        branch = self.branch()
        told: Json = {
            "id": self.id,
            "name": self.name,
            "created": self.created,
            **self.more,
            "messages": [_entry_json(entry) for entry in branch],
        }
        others = [_entry_json(entry) for entry in self.others()]
        twin = self.twin and {"account": self.twin.account_id, "chat": self.twin.id}
        ours = {
            "branches": others,
            "owner": self.owner,
            "account": self.account,
            "twin": twin,
            "untwinned": self.untwinned,
        }
        return told | {name: value for name, value in ours.items() if value}


def window(path: Sequence[Told], most: int) -> tuple[Told, ...]:
    """At most `most` of the messages for the model: the system's, then the newest, from a question on."""
    if len(path) <= most:
        return tuple(path)
    told = [each for each in path if ROLES.get(each.role) == "system"][: most - 1]
    rest = [each for each in path if ROLES.get(each.role) != "system"]
    newest = rest[-(most - len(told)) :]
    while len(newest) > 1 and newest[0].role == "assistant":
        newest = newest[1:]
    return (*told, *newest)


def transcript_of(value: Any, chat_id: str) -> Transcript:
    """What a chat's file says; `chat_id` is the one its name gives.

    Raises:
        ValueError: it is no chat.
    """
    chat: Json = {"messages": value} if isinstance(value, list) else value
    if not isinstance(chat, dict) or not isinstance(chat.get("messages", []), list):
        raise ValueError("it is no chat")
    branch = tuple(_chained(chat.get("messages", []), chat_id))
    branches = chat.get("branches")
    others = _chained(branches if isinstance(branches, list) else [], chat_id, "branch")
    entries = {entry.id: entry for entry in _parents_first([*branch, *others])}
    created = _whole(chat.get("created"))
    if not created and branch:
        created = branch[0].timestamp * 1000
    name = chat.get("name")
    return Transcript(
        chat_id,
        name if isinstance(name, str) and name else UNNAMED,
        created,
        MappingProxyType(entries),
        branch[-1].id if branch else "",
        _text(chat, "owner"),
        _text(chat, "account"),
        _twin(chat.get("twin")),
        _text(chat, "untwinned"),
        {name: value for name, value in chat.items() if name not in CHAT_KEYS},
    )


def _chained(messages: Sequence[Any], chat_id: str, kind: str = "message") -> Iterator[Entry]:
    """Messages in their order. One without a parent, as the seed wrote them, follows the one before it."""
    before = ""
    seen: set[str] = set()
    for place, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError(f"{kind} {place} is none")
        entry_id = message.get("id")
        if not isinstance(entry_id, str) or not entry_id or entry_id in seen:
            entry_id = str(uuid5(NAMESPACE_OID, f"{chat_id} {kind} {place}"))
        seen.add(entry_id)
        parent = before if kind == "message" else _text(message, "parentId")
        yield _entry_of(message, entry_id, parent)
        before = entry_id


def _parents_first(entries: Sequence[Entry]) -> Iterator[Entry]:
    """In the order given, parents before children; who has no parent in the chat is a first message."""
    known = {entry.id: entry for entry in entries}
    given: set[str] = set()
    for entry in known.values():
        line: dict[str, Entry] = {}
        at: Entry | None = entry
        while at is not None and at.id not in given and at.id not in line:
            line[at.id] = at
            at = known.get(at.parent_id)
        for each in reversed(line.values()):
            given.add(each.id)
            # A circle, where somebody edited the file, is cut at the end of the line.
            rooted = each.parent_id in given and each.parent_id != each.id
            yield each if rooted or not each.parent_id else replace(each, parent_id="")


def _entry_of(message: Json, entry_id: str, parent_id: str) -> Entry:
    content = message.get("content")
    said: Content = "" if content is None else content
    if not isinstance(said, str) and not (isinstance(said, list) and all(isinstance(p, dict) for p in said)):
        raise ValueError("a message has no content that can be read")
    upstream, sources, info = (message.get(name) for name in ("upstream", "sources", "info"))
    place = upstream if isinstance(upstream, dict) else NONE
    return Entry(
        entry_id,
        parent_id,
        message["role"],
        said,
        _whole(message.get("timestamp")),
        unanswered=_text(message, "unanswered"),
        partial=_text(message, "partial"),
        model=_text(message, "model"),
        account=_text(message, "account"),
        reasoning=_text(message, "reasoning"),
        sources=tuple(each for each in sources if isinstance(each, dict))
        if isinstance(sources, list)
        else (),
        info=info if isinstance(info, dict) else None,
        rebuilt=_text(message, "rebuilt"),
        upstream_chat=_text(place, "chat"),
        upstream_response=_text(place, "response"),
        more={name: value for name, value in message.items() if name not in MESSAGE_KEYS},
    )


def _entry_json(entry: Entry) -> Json:
    told: Json = {
        "id": entry.id,
        "role": entry.role,
        "content": entry.content,
        "timestamp": entry.timestamp,
        "chat_type": "t2t",
        **entry.more,
        "parentId": entry.parent_id or None,
    }
    upstream = {"chat": entry.upstream_chat, "response": entry.upstream_response}
    ours = {
        "unanswered": entry.unanswered,
        "partial": entry.partial,
        "model": entry.model,
        "account": entry.account,
        "reasoning": entry.reasoning,
        "sources": list(entry.sources),
        "info": entry.info,
        "rebuilt": entry.rebuilt,
        "upstream": upstream if entry.upstream_response else None,
    }
    return told | {name: value for name, value in ours.items() if value}


def _twin(value: Any) -> UpstreamChat | None:
    if not isinstance(value, dict) or not _text(value, "account") or not _text(value, "chat"):
        return None
    return UpstreamChat(value["chat"], value["account"])


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    return value if isinstance(value, str) else ""


def _whole(value: Any) -> int:
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return int(value) if known else 0
