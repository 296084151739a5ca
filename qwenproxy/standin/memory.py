"""What the stand-in remembers: options, accounts, sign-ins, chats, turns and counters. Data only."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

Era = Literal["B", "C"]
Renewal = Literal["load", "timer"]
Place = Literal["all", "windows"]
Pending = Literal["overlay", "refused"]
Identity = Literal["", "page", "popup"]
Ending = Literal["finished", "aborted", "stopped", "failed"]

SESSION_S = 30 * 24 * 3600
"""Seconds a sign-in lasts (protocol §1.2)."""
FE_VERSIONS: dict[Era, str] = {"B": "0.2.91", "C": "0.3.12"}
"""The front-end build each era's pages name (protocol §2)."""
PENDING_PREFIX = "pending@"
"""E-mail addresses that begin so have to be confirmed first."""
PASTED = "Pasted_Text_"
"""Begins the name of a prompt that came as a document, as the site itself names one (protocol §13)."""
RECEIVED_LIMIT = 2000
"""Requests remembered for `GET /__standin__/received`."""
TURNS_LIMIT = 20_000
"""Turns remembered for `GET /__standin__/turns`."""


@dataclass(frozen=True, slots=True)
class Options:
    era: Era = "C"
    access_token_s: float = 900.0
    settle_s: float = 2.0
    """Seconds a chat stays busy after its answer (protocol §13)."""
    demo: bool = False
    """The sign-in page fills and sends its own form."""
    people: tuple[str, ...] = ("demo@example.com",)
    """Who does so: one after the other, each sign-in the next; the last stays."""
    person_in: Place = "all"
    """Where a person acts who is played: `windows` leaves headless browsers alone."""
    person_solves_s: float = 0.0
    """After how long a played person solves the verification; 0: nobody does."""
    person_activates_s: float = 0.0
    """After how long a played person opens the link in the mail; 0: nobody does."""
    pending: Pending = "overlay"
    """What the site does with an e-mail address that is not confirmed yet (protocol §1.1, §1.3)."""
    identity: Identity = ""
    """How a played person tries the identity provider first, which refuses."""
    rotate_refresh: bool = False
    """A renewal gives another refresh token, and the old one is dead; sources disagree (Appendix B)."""
    renew: Renewal = "load"
    """When the page renews its access token: as it loads, or by a timer too."""
    cold_check: bool = True
    """Refuse writes of a sign-in whose page has not finished its boot calls (protocol §2)."""
    check_headers: bool = True
    real_statuses: bool = False
    """Put the application's status on the wire, as older gateways did (protocol §0.2)."""
    refuse_busy_delete: bool = False
    max_body_bytes: int = 180_000
    """Larger bodies meet the risk control: 150 kB passed, 190 kB did not (protocol §13)."""
    max_prompt_chars: int = 131_072
    """The app's limit on one message (protocol §13)."""
    too_long_code: str = "Bad_Request"
    """The code of a prompt over the limit: no source knows it (protocol §6.2)."""
    pieces_per_s: float = 45.0
    storage_endpoint: str = "oss-accelerate.aliyuncs.com"
    """What a ticket names, as the real one does; the storage itself is served by the site's port."""
    sts_s: float = 3600.0
    """Seconds that a ticket's credentials live."""
    link_s: float = 300.0
    """Seconds that a file's signed address is good (protocol §9.1)."""
    parse_s: float = 0.2
    """Seconds until a document is read."""
    draw_s: float = 20.0
    """Seconds until a picture is drawn."""
    media_referer: bool = False
    """Show what was made only to the site's own pages and to whoever asked for it."""
    video_s: float = 2.0
    """Seconds until a video is made; the real ones take minutes."""
    tasks_at: Literal["v2", "v1", "both"] = "v2"
    """Which of the two addresses tells of a task; sources disagree (protocol §10.2)."""
    history: Literal["map", "array"] = "array"
    """Where `GET /chats/{id}` puts the messages: map until July, array since August (protocol §8)."""


@dataclass(slots=True)
class Counters:
    """`open` is sockets now; every opened stream ends as exactly one of the other four."""

    open: int = 0
    opened: int = 0
    finished: int = 0
    aborted: int = 0
    stopped: int = 0
    failed: int = 0
    stop_calls: int = 0


@dataclass(slots=True)
class Session:
    """One sign-in: what the session cookie of era C, or the 30-day token of era B, stands for."""

    account: str
    cookie: str
    alive: bool = True
    booted: bool = False
    """Its page has made the chats list call that ends the boot."""
    challenged: bool = False
    """A verification dialog stands in its page until somebody solves it."""


@dataclass(slots=True)
class Access:
    session: Session
    expires_at: float
    """Wall seconds."""
    expired: bool = False


@dataclass(frozen=True, slots=True)
class Attached:
    """A file that the model got with a question."""

    kind: str
    """`image`, `video`, `audio` or `document`."""
    name: str
    sha256: str
    size: int
    text: str = ""
    """What a document says, where it is text."""


@dataclass(frozen=True, slots=True)
class Made:
    """Something the stand-in drew or filmed."""

    account: str
    media_type: str
    key: str
    """Opens its address."""
    content: Callable[[], bytes]


@dataclass(slots=True)
class Task:
    """A video in the making (protocol §10.2)."""

    id: str
    turn: Turn
    ratio: str
    done_at: float
    """Monotonic seconds."""
    error: str = ""


def content_of(message: dict[str, Any]) -> str:
    """The words of a message, which stand in a string or in parts."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(str(part.get("text", "")) for part in parts if isinstance(part, dict))


@dataclass(slots=True)
class Turn:
    """One question and its answer."""

    chat: Chat
    prompt: str
    """Without the stand-in's marks."""
    model: str
    body: dict[str, Any]
    message: dict[str, Any]
    response_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    user_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    files: list[Attached] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    ending: Ending | None = None
    skip_thinking: bool = False
    stopping: bool = False
    interrupted: asyncio.Event = field(default_factory=asyncio.Event)
    started_at: int = field(default_factory=lambda: int(time.time()))

    @property
    def parent_id(self) -> str:
        """The answer it follows; "" for a chat's first turn."""
        return str(self.body.get("parent_id") or "")

    @property
    def before(self) -> list[Turn]:
        """The turns that led to this one, oldest first: what a model would know of its chat."""
        found: list[Turn] = []
        turn = self.chat.turns.get(self.parent_id)
        while turn is not None:
            found.append(turn)
            turn = turn.chat.turns.get(turn.parent_id)
        return found[::-1]

    @property
    def told(self) -> str:
        """What the model reads: the message, or the document it came as, the stand-in's marks included."""
        documents = (file.text for file in self.files if file.name.startswith(PASTED))
        return next(documents, content_of(self.message))

    @property
    def meta(self) -> dict[str, Any]:
        extra = self.message.get("extra")
        meta = extra.get("meta") if isinstance(extra, dict) else None
        return meta if isinstance(meta, dict) else {}

    @property
    def size(self) -> str | None:
        """The ratio that is asked for, which is said in two places (protocol §10.1); None: they disagree."""
        sizes = {str(self.body.get("size") or ""), str(self.meta.get("size") or "")}
        return sizes.pop() if len(sizes) == 1 else None

    @property
    def kind(self) -> str:
        """What is asked for. A message may ask for a search in a chat of another type (protocol §4.3)."""
        asked = self.message.get("chat_type")
        return "search" if asked == "search" else self.chat.chat_type

    @property
    def sub_kind(self) -> str:
        return str(self.message.get("sub_chat_type") or self.kind)

    @property
    def feature(self) -> dict[str, Any]:
        config = self.message.get("feature_config")
        return config if isinstance(config, dict) else {}


@dataclass(slots=True)
class Chat:
    id: str
    account: str
    chat_type: str
    models: list[str]
    created_at: int
    title: str = "New chat"
    updated_at: int = 0
    pinned: bool = False
    project_id: str | None = None
    turns: dict[str, Turn] = field(default_factory=dict)
    """By response id, oldest first."""
    live: Turn | None = None
    busy_until: float = 0.0
    """Monotonic seconds."""

    def busy(self) -> bool:
        return self.live is not None or time.monotonic() < self.busy_until


@dataclass(slots=True)
class Records:
    options: Options
    accounts: dict[str, Counters] = field(default_factory=dict)
    sessions: dict[str, Session] = field(default_factory=dict)
    """By session cookie (era C), or by token (era B)."""
    tokens: dict[str, Access] = field(default_factory=dict)
    chats: dict[str, Chat] = field(default_factory=dict)
    faults: list[dict[str, Any]] = field(default_factory=list)
    marks_met: dict[str, int] = field(default_factory=dict)
    """How often each mark of a prompt has struck, for `times=`."""
    received: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=RECEIVED_LIMIT))
    asked: deque[Turn] = field(default_factory=lambda: deque(maxlen=TURNS_LIMIT))
    """Every turn, also of chats that are deleted."""
    made: dict[str, Made] = field(default_factory=dict)
    """By path."""
    tasks: dict[str, Task] = field(default_factory=dict)
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By account, the sections that were changed."""
    played: int = 0
    """How many of `people` have signed in."""
    activated: set[str] = field(default_factory=set)
    closing: bool = False
    first_options: Options = field(init=False)
    site: str = ""
    """Where the site is served."""
    streams: dict[int, Turn] = field(default_factory=dict)
    """Turns whose socket is open."""

    def __post_init__(self) -> None:
        self.first_options = self.options

    def forget(self, *, sessions: bool) -> None:
        """Back to the start; answers that run are broken off and counted no more."""
        for turn in self.streams.values():
            turn.ending = turn.ending or "failed"
            turn.interrupted.set()
        self.options = self.first_options
        self.played = 0
        chats = (self.chats, self.asked, self.made, self.tasks, self.settings)
        for kept in (*chats, self.faults, self.marks_met, self.received, self.accounts, self.activated):
            kept.clear()
        if sessions:
            self.sessions.clear()
            self.tokens.clear()
        for session in self.sessions.values():
            session.challenged = False
            self.counters(session.account)

    def counters(self, account: str) -> Counters:
        return self.accounts.setdefault(account, Counters())

    @property
    def person(self) -> str:
        """Whom the sign-in page plays next."""
        people = self.options.people
        return people[min(self.played, len(people) - 1)] if people else ""

    def pends(self, account: str) -> bool:
        """Whether the account's e-mail address is not confirmed yet."""
        return account.startswith(PENDING_PREFIX) and account not in self.activated

    def user_id(self, account: str) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, account))

    def end(self, turn: Turn, ending: Ending) -> None:
        """Counts how the turn ended, once, and starts the chat's settling time."""
        if turn.ending is not None:
            return
        turn.ending = ending
        counters = self.counters(turn.chat.account)
        setattr(counters, ending, getattr(counters, ending) + 1)
        if turn.chat.live is turn:
            turn.chat.live = None
        turn.chat.busy_until = time.monotonic() + self.options.settle_s
        turn.chat.updated_at = int(time.time())
