"""What is tried again, where, and what never is."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import anyio
import pytest

from qwenproxy import gateway as gateway_module
from qwenproxy.accounts.pool import Pool
from qwenproxy.accounts.registry import Registry
from qwenproxy.activity import Activity
from qwenproxy.addresses import file_address
from qwenproxy.caller import ANYBODY, Caller
from qwenproxy.chat import (
    Attachment,
    ChatRequest,
    Delta,
    Drawing,
    Finished,
    Home,
    Media,
    Message,
    Reply,
    Started,
    Text,
    Tool,
    ToolCall,
    fold,
)
from qwenproxy.clock import SystemClock
from qwenproxy.copies import Copies
from qwenproxy.errors import (
    AccountGone,
    AllWaiting,
    BadRequest,
    BrowserLost,
    ChatBusy,
    ChatGone,
    ContentBlocked,
    ContextTooLong,
    EmptyAnswer,
    FileGone,
    GenerationFailed,
    InvalidToolCall,
    LimitReached,
    NeedsHuman,
    NoAccount,
    ProtocolChanged,
    QwenProxyError,
    Severed,
    TokenRejected,
    UnknownFile,
    UnknownModel,
    Unreachable,
    UnsupportedFile,
    UnsupportedParameter,
    UploadFailed,
    UpstreamError,
    UpstreamTimeout,
)
from qwenproxy.file_store import FileStore, StoredFile
from qwenproxy.gateway import Gateway
from qwenproxy.hosting import Hosting
from qwenproxy.janitor import Janitor
from qwenproxy.ledger import Ledger
from qwenproxy.model_names import ModelNames
from qwenproxy.qwen.client import Turn
from qwenproxy.qwen.files import HostedFile
from qwenproxy.qwen.models import BUILT_IN, Model
from qwenproxy.settings import Settings
from tests.scripted_uploads import ScriptedUploads
from tests.serve import until_async

pytestmark = pytest.mark.anyio

End: TypeAlias = QwenProxyError | Callable[[str], QwenProxyError | None] | None
PNG = b"\x89PNG\r\n\x1a\n" + b"cat" * 9
HELLO = ChatRequest("qwen", (Message("user", "Hello"),))


class ScriptedUpstream:
    """Plays one scripted end after another; `None` is a good answer, a function is called before it."""

    def __init__(self, *ends: End) -> None:
        self.ends = list(ends)
        self.calls: list[tuple[str, str, Turn]] = []
        self.deleted: list[str] = []
        self.made = 0
        self.types: list[str] = []
        self.draws = True
        self.open = 0
        self.models_fail = False
        self.list = BUILT_IN
        self.most = 1000
        self.says: list[str] = []
        """What the answers are, one after the other, instead of the usual one."""
        self.slow_new_chat = anyio.Event()
        self.slow_new_chat.set()

    async def models(self, account_id: str) -> tuple[Model, ...]:
        if self.models_fail:
            raise Unreachable("down")
        return self.list

    async def new_chat(self, account_id: str, model: Model, chat_type: str = "t2t") -> str:
        await self.slow_new_chat.wait()
        self.made += 1
        self.types.append(chat_type)
        return f"chat-{self.made}"

    def fits(self, turn: Turn) -> bool:
        return len(turn.prompt) <= self.most

    async def delete(self, account_id: str, chat_id: str) -> None:
        self.deleted.append(chat_id)

    async def rename(self, account_id: str, chat_id: str, title: str) -> None:
        raise AssertionError("nothing is kept here")

    async def stream(self, account_id: str, chat_id: str, turn: Turn) -> AsyncGenerator[Delta]:
        self.calls.append((account_id, chat_id, turn))
        self.open += 1
        try:
            end = self.ends.pop(0) if self.ends else None
            if callable(end):
                end = end(account_id)
            late = isinstance(end, QwenProxyError) and getattr(end, "late", False)
            if end is not None and not late:
                raise end
            yield Started(chat_id, "r1", turn.model.id)
            if turn.draws and self.draws:
                yield Media("https://cdn.qwenlm.ai/output/a.png")
            if self.says:
                yield Text(self.says.pop(0))
                yield Finished("stop")
                return
            yield Text("Hello ")
            await anyio.sleep(0)
            if end is not None:
                raise end
            yield Text("you")
            yield Finished("stop")
        finally:
            self.open -= 1

    @property
    def accounts(self) -> list[str]:
        return [account for account, _, _ in self.calls]

    @property
    def chats(self) -> list[str]:
        return [chat for _, chat, _ in self.calls]


class Letters:
    """Counts letters as tokens."""

    def count(self, text: str) -> int:
        return len(text)

    surely = count


class Pauses:
    """Counts the pauses between tries, each of which asks for a random number."""

    def __init__(self) -> None:
        self.count = 0

    def take(self) -> float:
        self.count += 1
        return 0.5


@asynccontextmanager
async def gateway(
    tmp_path: Path,
    upstream: ScriptedUpstream,
    *,
    accounts: int = 3,
    pauses: Pauses | None = None,
    uploads: ScriptedUploads | None = None,
    **settings: object,
) -> AsyncIterator[Gateway]:
    pauses = pauses or Pauses()
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "tokens.json").write_text(
        json.dumps([{"id": f"a{n}", "token": "t"} for n in range(accounts)])
    )
    clock = SystemClock()
    registry = Registry(tmp_path, clock)
    pool = Pool(registry.accounts(), registry, clock, slots=2, pace_s=0, queue_timeout_s=5)
    janitor = Janitor(Ledger(tmp_path / "chats.jsonl"), upstream, keep=False)
    files = FileStore(tmp_path, clock, most_bytes=30_000_000)
    with closing(Copies(tmp_path, clock)) as copies:
        hosting = Hosting(files, copies, uploads or ScriptedUploads(), pool, clock)
        async with janitor.at_work():
            yield Gateway(
                pool,
                upstream,
                hosting,
                janitor,
                Settings(**settings),  # type: ignore[arg-type]
                clock,
                activity=Activity(clock),
                not_ready=lambda usable: None if usable else "none",
                jitter=pauses.take,
                names=ModelNames(tmp_path),
                tokens=Letters(),
            )


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_module, "RETRY_PAUSES_S", (0.0, 0.0, 0.0))


async def collect(gate: Gateway, seen: list[Delta]) -> None:
    async with aclosing(gate.stream(HELLO)) as deltas:
        async for delta in deltas:
            seen.append(delta)  # noqa: PERF401 -- what came before the failure counts


async def text(gate: Gateway, request: ChatRequest = HELLO, *, only: frozenset[str] | None = None) -> str:
    async with aclosing(gate.stream(request, only=only)) as deltas:
        return fold([d async for d in deltas]).text


def late(error: QwenProxyError) -> QwenProxyError:
    error.late = True  # type: ignore[attr-defined]
    return error


async def test_an_answer_comes_from_a_fresh_chat_that_goes_again(tmp_path: Path) -> None:
    upstream = ScriptedUpstream()
    async with gateway(tmp_path, upstream) as gate:
        assert await text(gate) == "Hello you"
        assert await text(gate) == "Hello you"
    assert upstream.accounts == ["a0", "a1"]
    assert upstream.deleted == ["chat-1", "chat-2"]
    assert Ledger(tmp_path / "chats.jsonl").left_over() == ()


@pytest.mark.parametrize(
    ("ends", "accounts", "chats"),
    [
        ([ChatBusy("busy")], ["a0", "a0"], ["chat-1", "chat-1"]),
        ([ChatBusy("busy")] * 3, ["a0"] * 4, ["chat-1"] * 4),
        ([ChatGone("gone")], ["a0", "a0"], ["chat-1", "chat-2"]),
        ([Unreachable("net")], ["a0", "a0"], ["chat-1", "chat-2"]),
        ([EmptyAnswer("empty")], ["a0", "a0"], ["chat-1", "chat-2"]),
        ([EmptyAnswer("empty"), Severed("cut")], ["a0", "a0", "a1"], ["chat-1", "chat-2", "chat-3"]),
        ([UpstreamError("500")], ["a0", "a0"], ["chat-1", "chat-2"]),
        ([BrowserLost("crash")], ["a0", "a0"], ["chat-1", "chat-2"]),
        ([LimitReached("limit", wait_s=60)], ["a0", "a1"], ["chat-1", "chat-2"]),
        ([NeedsHuman("check")], ["a0", "a1"], ["chat-1", "chat-2"]),
        ([TokenRejected("out"), TokenRejected("out")], ["a0", "a1", "a2"], ["chat-1", "chat-2", "chat-3"]),
    ],
    ids=lambda value: "-".join(type(v).__name__ for v in value) if isinstance(value[0], Exception) else "",
)
async def test_what_is_tried_again_and_where(
    tmp_path: Path, ends: list[QwenProxyError], accounts: list[str], chats: list[str]
) -> None:
    upstream = ScriptedUpstream(*ends)
    async with gateway(tmp_path, upstream) as gate:
        assert await text(gate) == "Hello you"
    assert upstream.accounts == accounts
    assert upstream.chats == chats
    assert sorted(upstream.deleted) == sorted(set(chats))
    assert len({turn.prompt for _, _, turn in upstream.calls}) == 1
    assert upstream.open == 0


@pytest.mark.parametrize(
    "error",
    [
        ContentBlocked("no"),
        BadRequest("bad"),
        ContextTooLong("long"),
        UnknownModel("what"),
        ProtocolChanged("new"),
        UpstreamTimeout("slow"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_what_is_never_tried_again(tmp_path: Path, error: QwenProxyError) -> None:
    upstream = ScriptedUpstream(error)
    async with gateway(tmp_path, upstream) as gate:
        with pytest.raises(type(error)):
            await text(gate)
    assert len(upstream.calls) == 1
    assert upstream.deleted == ["chat-1"]


@pytest.mark.parametrize("error", [Severed("cut"), LimitReached("limit", wait_s=60), TokenRejected("out")])
async def test_nothing_is_tried_again_once_a_piece_was_given(tmp_path: Path, error: QwenProxyError) -> None:
    upstream = ScriptedUpstream(late(error))
    async with gateway(tmp_path, upstream) as gate:
        seen: list[Delta] = []
        with pytest.raises(type(error)):
            await collect(gate, seen)
    assert seen[-1] == Text("Hello ")
    assert len(upstream.calls) == 1


async def test_three_retries_are_the_end(tmp_path: Path) -> None:
    upstream = ScriptedUpstream(*[LimitReached("limit", wait_s=60)] * 9)
    async with gateway(tmp_path, upstream, accounts=6) as gate:
        with pytest.raises(LimitReached):
            await text(gate)
    assert len(upstream.calls) == 4


async def test_a_passing_failure_is_the_end_after_one_other_account(tmp_path: Path) -> None:
    upstream = ScriptedUpstream(*[EmptyAnswer("empty")] * 9)
    async with gateway(tmp_path, upstream) as gate:
        with pytest.raises(EmptyAnswer):
            await text(gate)
    assert upstream.accounts == ["a0", "a0", "a1"]


async def test_when_the_last_account_is_limited_the_caller_hears_when_to_come_back(tmp_path: Path) -> None:
    upstream = ScriptedUpstream(*[LimitReached("limit", wait_s=60)] * 2)
    async with gateway(tmp_path, upstream, accounts=2) as gate:
        with pytest.raises(AllWaiting) as caught:
            await text(gate)
        assert caught.value.retry_after_s is not None
        calls = len(upstream.calls)
        with pytest.raises(AllWaiting):
            await text(gate)
        assert len(upstream.calls) == calls
        assert gate.readiness() == "none"


@pytest.mark.parametrize(
    "error", [NeedsHuman("check"), LimitReached("limit", wait_s=60), TokenRejected("out")]
)
async def test_without_another_account_the_end_comes_at_once(tmp_path: Path, error: QwenProxyError) -> None:
    upstream, pauses = ScriptedUpstream(error), Pauses()
    async with gateway(tmp_path, upstream, accounts=1, pauses=pauses) as gate:
        with pytest.raises((NeedsHuman, AllWaiting, NoAccount)):
            await text(gate)
    assert (len(upstream.calls), pauses.count) == (1, 0)


async def test_without_accounts_nothing_is_called(tmp_path: Path) -> None:
    upstream = ScriptedUpstream()
    async with gateway(tmp_path, upstream, accounts=0) as gate:
        with pytest.raises(NoAccount):
            await text(gate)
    assert upstream.made == 0


async def test_one_account_that_fails_is_not_tried_for_ever(tmp_path: Path) -> None:
    upstream = ScriptedUpstream(*[Severed("cut")] * 9)
    async with gateway(tmp_path, upstream, accounts=1) as gate:
        with pytest.raises(Severed):
            await text(gate)
    assert len(upstream.calls) == 2


async def test_leaving_closes_the_answer_and_frees_the_slot(tmp_path: Path) -> None:
    upstream = ScriptedUpstream()
    async with gateway(tmp_path, upstream, accounts=1) as gate:
        for _ in range(5):
            async with aclosing(gate.stream(HELLO)) as deltas:
                assert isinstance(await anext(deltas), Started)
                assert upstream.open == 1
            assert upstream.open == 0
    assert sorted(upstream.deleted) == [f"chat-{n}" for n in range(1, 6)]


async def test_leaving_while_the_chat_is_made_loses_no_chat(tmp_path: Path) -> None:
    upstream = ScriptedUpstream()
    upstream.slow_new_chat = anyio.Event()
    async with gateway(tmp_path, upstream) as gate:
        with anyio.move_on_after(0.05):
            await text(gate)
        upstream.slow_new_chat.set()
    assert upstream.calls == []
    assert upstream.deleted == ["chat-1"]


async def test_a_stop_sequence_ends_the_answer_on_the_service_too(tmp_path: Path) -> None:
    upstream = ScriptedUpstream()
    request = ChatRequest("qwen", HELLO.messages, stop=("lo",))
    async with gateway(tmp_path, upstream) as gate:
        assert await text(gate, request) == "Hel"
    assert upstream.open == 0


async def test_what_is_too_long_goes_as_a_document(tmp_path: Path) -> None:
    upstream, uploads = ScriptedUpstream(ChatGone("gone")), ScriptedUploads()
    async with gateway(tmp_path, upstream, uploads=uploads) as gate:
        await text(gate, ChatRequest("qwen", (Message("user", "x" * 2000),)))
        assert not list((tmp_path / "files").glob("*.json"))
        await text(gate, ChatRequest("qwen", (Message("system", "Obey."), Message("user", "x" * 2000))))
    assert uploads.has["a0"] == [b"x" * 2000]
    (folded,) = uploads.has["a1"]
    assert folded.endswith(b"Write only the assistant's reply to the last user text above.")
    alone, again, talk = (turn for _, _, turn in upstream.calls)
    assert alone.prompt == again.prompt
    (document,) = alone.attachments
    assert isinstance(document, HostedFile)
    assert alone.prompt.startswith("[attached prompt]\n")
    assert f" {document.name}:" in alone.prompt
    assert (document.kind, document.type, document.name[:12]) == ("text", "text/plain", "Pasted_Text_")
    assert ("conversation" in alone.prompt, "conversation" in talk.prompt) == (False, True)
    assert not list((tmp_path / "files" / "content").iterdir())


@pytest.mark.parametrize(
    "request_",
    [
        ChatRequest("qwen", (Message("user", "x" * 2000),), drawing=Drawing()),
        ChatRequest("unread", (Message("user", "x" * 2000),)),
        ChatRequest("qwen", (Message("user", "x" * 20_971_521),)),
    ],
    ids=["a drawing", "a model without documents", "larger than documents"],
)
async def test_what_can_go_nowhere_costs_no_call(tmp_path: Path, request_: ChatRequest) -> None:
    upstream = ScriptedUpstream()
    upstream.list = (*BUILT_IN, Model("unread", "Unread"))
    async with gateway(tmp_path, upstream) as gate:
        with pytest.raises(ContextTooLong):
            await text(gate, request_)
    assert upstream.made == 0


async def test_an_unknown_model_is_refused_or_means_the_default(tmp_path: Path) -> None:
    upstream = ScriptedUpstream()
    unknown = ChatRequest("no-such-model", HELLO.messages)
    async with gateway(tmp_path, upstream) as gate:
        with pytest.raises(UnknownModel):
            await text(gate, unknown)
    async with gateway(tmp_path, upstream, unknown_model="default") as gate:
        await text(gate, unknown)
    assert [turn.model.id for _, _, turn in upstream.calls] == ["qwen3.7-plus"]


async def test_the_model_list_is_asked_once_and_stood_in_for(tmp_path: Path) -> None:
    upstream = ScriptedUpstream()
    upstream.list = BUILT_IN[:2]
    async with gateway(tmp_path, upstream) as gate:
        assert await gate.models() == BUILT_IN[:2]
        upstream.list = ()
        assert await gate.models() == BUILT_IN[:2]
    upstream.models_fail = True
    async with gateway(tmp_path, upstream) as gate:
        assert await gate.models() == BUILT_IN
        assert await text(gate) == "Hello you"


# ---- limits of one model, guests, accounts that go ----


async def test_a_models_limit_leaves_the_accounts_other_models(tmp_path: Path) -> None:
    upstream = ScriptedUpstream(LimitReached("quota", wait_s=600, model_only=True))
    async with gateway(tmp_path, upstream, accounts=1) as gate:
        request = ChatRequest(BUILT_IN[0].id, HELLO.messages)
        with pytest.raises(AllWaiting):
            await text(gate, request)
        with pytest.raises(AllWaiting):
            await text(gate, request)
        assert len(upstream.calls) == 1
        assert await text(gate, ChatRequest(BUILT_IN[1].id, HELLO.messages)) == "Hello you"
        assert gate.readiness() is None


async def test_guests_alone_answer_a_request_that_brings_them(tmp_path: Path) -> None:
    upstream = ScriptedUpstream(TokenRejected("out"))
    async with gateway(tmp_path, upstream) as gate:
        only = frozenset({"guest_1", "guest_2"})
        for guest in sorted(only):
            gate.pool.invite(guest)
        assert await text(gate, only=only) == "Hello you"
        assert set(upstream.accounts) == only
        assert gate.activity.take_served() == {}
        with pytest.raises(NoAccount):
            await text(gate, only=frozenset({upstream.accounts[0]}))
        assert len(upstream.calls) == 2


async def test_an_account_deleted_before_its_answer_began_is_nobodys_failure(tmp_path: Path) -> None:
    upstream = ScriptedUpstream()
    async with gateway(tmp_path, upstream) as gate:

        def delete(account_id: str) -> QwenProxyError:
            gate.pool.take_up(s.account for s in gate.pool.view().seats if s.account.id != account_id)
            return BrowserLost("the page was closed")

        upstream.ends = [delete, AccountGone("deleted")]
        assert await text(gate) == "Hello you"
        assert upstream.accounts == ["a0", "a1", "a2"]
        assert gate.pool.usable() == ("a1", "a2")


async def test_an_account_deleted_under_its_answer_is_named_as_the_cause(tmp_path: Path) -> None:
    upstream = ScriptedUpstream()
    async with gateway(tmp_path, upstream) as gate:

        def delete(account_id: str) -> QwenProxyError:
            gate.pool.take_up(s.account for s in gate.pool.view().seats if s.account.id != account_id)
            return late(BrowserLost("the page was closed"))

        upstream.ends = [delete]
        with pytest.raises(AccountGone):
            await collect(gate, [])
        assert len(upstream.calls) == 1
        assert await text(gate) == "Hello you"


async def test_an_account_healed_meanwhile_is_tried_again(tmp_path: Path) -> None:
    upstream = ScriptedUpstream()
    async with gateway(tmp_path, upstream, accounts=2) as gate:
        healthy = tuple(seat.account for seat in gate.pool.view().seats)

        def heal_the_first(account_id: str) -> QwenProxyError:
            gate.pool.take_up(healthy)
            return TokenRejected("out")

        upstream.ends = [LimitReached("limit", wait_s=3600), heal_the_first]
        assert await text(gate) == "Hello you"
        assert upstream.accounts == ["a0", "a1", "a0"]


async def test_the_last_account_deleted_under_a_request_leaves_none(tmp_path: Path) -> None:
    upstream = ScriptedUpstream()
    async with gateway(tmp_path, upstream, accounts=1) as gate:

        def delete(account_id: str) -> QwenProxyError:
            gate.pool.take_up(())
            return BrowserLost("the page was closed")

        upstream.ends = [delete]
        with pytest.raises(NoAccount):
            await text(gate)
        ended = gate.ended()
        assert ended is not None
        assert gate.readiness() == "none"


# ---- what a person reads ----


@pytest.mark.parametrize("headless", [True, False])
async def test_a_human_check_names_the_account_and_the_way(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, headless: bool
) -> None:
    upstream = ScriptedUpstream(late(NeedsHuman("the site asks for a human verification")))
    async with gateway(tmp_path, upstream, accounts=1, headless=headless) as gate:
        with pytest.raises(NeedsHuman, match="accounts pass-check a0") as during:
            await collect(gate, [])
        with pytest.raises(NeedsHuman, match="accounts pass-check a0") as after:
            await text(gate)
        for message in (str(during.value), str(after.value)):
            assert ("QWENPROXY_HEADLESS=0" in message) is headless
            assert "\n" not in message
        assert ("QWENPROXY_HEADLESS=0" in caplog.text) is headless
        assert "accounts pass-check a0" in caplog.text
        assert gate.activity.failures()[0].message == str(after.value)
    assert len(upstream.calls) == 1


async def test_an_accounts_refusal_does_not_keep_callers_away_from_the_others(tmp_path: Path) -> None:
    upstream = ScriptedUpstream(*[LimitReached("limit", wait_s=3600)] * 4)
    async with gateway(tmp_path, upstream, accounts=5) as gate:
        with pytest.raises(LimitReached) as caught:
            await text(gate)
        assert caught.value.retry_after_s == 1
        assert await text(gate) == "Hello you"


# ---- what the owner sees ----


async def test_a_request_is_seen_from_its_place_in_the_queue_to_its_end(tmp_path: Path) -> None:
    upstream = ScriptedUpstream()
    async with gateway(tmp_path, upstream, accounts=1) as gate, anyio.create_task_group() as tasks:
        held = [gate.pool.lease() for _ in range(2)]
        for lease in held:
            await lease.__aenter__()
        go_on, seen = anyio.Event(), anyio.Event()

        async def ask() -> None:
            async with aclosing(gate.stream(HELLO)) as deltas:
                async for delta in deltas:
                    if isinstance(delta, Text):
                        seen.set()
                        await go_on.wait()

        tasks.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        (request,) = gate.activity.in_flight()
        assert (request.model, request.place, request.account_id) == ("qwen3.7-plus", 1, "")
        assert (request.started_s, request.pieces) == (None, 0)
        for lease in held:
            await lease.__aexit__(None, None, None)
        await seen.wait()
        assert (request.place, request.account_id, request.pieces) == (0, "a0", 2)
        assert request.started_s is not None
        assert request.started_s >= request.began_s
        assert gate.activity.take_served() == {}
        go_on.set()
    assert gate.activity.in_flight() == ()
    assert gate.activity.take_served() == {"a0": 1}


async def test_answers_are_counted_for_the_account_that_gave_them(tmp_path: Path) -> None:
    upstream = ScriptedUpstream(LimitReached("limit", wait_s=60), None, late(Severed("cut")))
    async with gateway(tmp_path, upstream, accounts=2) as gate:
        await text(gate)
        with pytest.raises(Severed):
            await collect(gate, [])
        await text(gate, ChatRequest("qwen", HELLO.messages, stop=("lo",)))
        assert gate.activity.take_served() == {"a1": 2}
        assert gate.activity.in_flight() == ()


async def test_failures_are_kept_once_each_with_their_account(tmp_path: Path) -> None:
    upstream = ScriptedUpstream(LimitReached("limit", wait_s=60), ContentBlocked("no"), Severed("cut"))
    async with gateway(tmp_path, upstream, accounts=1) as gate:
        with pytest.raises(AllWaiting):
            await text(gate)
        assert [(f.code, f.account_id) for f in gate.activity.failures()] == [
            ("all_accounts_waiting", ""),
            ("all_accounts_waiting", "a0"),
        ]
    async with gateway(tmp_path / "more", upstream) as gate:
        with pytest.raises(ContentBlocked):
            await text(gate)
        assert gate.activity.failures() == ()


# ---- conversations ----

TALK = (Message("user", "One"), Message("assistant", "Two"), Message("user", "Three"))
AT_HOME = ChatRequest("qwen", TALK, home=Home("a1", "twin", "r0"))


async def started(gate: Gateway, request: ChatRequest) -> Started:
    async with aclosing(gate.stream(request)) as deltas:
        return fold([delta async for delta in deltas]).started


async def test_a_conversation_goes_on_where_it_lives_with_its_last_message_alone(tmp_path: Path) -> None:
    upstream = ScriptedUpstream()
    async with gateway(tmp_path, upstream) as gate:
        for _ in range(2):
            assert (await started(gate, AT_HOME)) == Started("twin", "r1", "qwen3.7-plus", "a1")
    assert [(account, chat) for account, chat, _ in upstream.calls] == [("a1", "twin")] * 2
    assert [(turn.prompt, turn.parent_id) for _, _, turn in upstream.calls] == [("Three", "r0")] * 2
    assert upstream.deleted == []
    assert upstream.made == 0


@pytest.mark.parametrize(
    ("ends", "accounts", "why"),
    [
        ([ChatGone("gone")], ["a1", "a1"], "twin_gone"),
        ([EmptyAnswer("empty")], ["a1", "a1"], "retried"),
        ([LimitReached("day", wait_s=60)], ["a1", "a0"], "account_waiting"),
        ([NeedsHuman("check")], ["a1", "a0"], "account_waiting"),
        ([TokenRejected("gone")], ["a1", "a0"], "account_invalid"),
        ([ChatBusy("busy"), LimitReached("day", wait_s=60)], ["a1", "a1", "a0"], "account_waiting"),
    ],
)
async def test_a_conversation_that_cannot_go_on_there_is_told_whole_to_a_fresh_chat(
    tmp_path: Path, ends: list[End], accounts: list[str], why: str
) -> None:
    upstream = ScriptedUpstream(*ends)
    async with gateway(tmp_path, upstream) as gate:
        found = await started(gate, AT_HOME)
    assert upstream.accounts == accounts
    assert (found.chat_id, found.account_id, found.rebuilt) == ("chat-1", accounts[-1], why)
    *before, (_, _, turn) = upstream.calls
    assert {chat for _, chat, _ in before} == {"twin"}
    assert turn.parent_id is None
    assert all(message.text in turn.prompt for message in TALK)
    assert upstream.deleted == []  # both chats are the conversation's affair


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"invalid": True}, "account_invalid"),
        ({"paused": True}, "account_paused"),
        ({"resetAt": "2099-01-01T00:00:00.000Z"}, "account_waiting"),
        (None, "account_deleted"),
    ],
)
async def test_an_account_that_is_away_is_not_asked(
    tmp_path: Path, change: dict[str, object] | None, why: str
) -> None:
    upstream = ScriptedUpstream()
    async with gateway(tmp_path, upstream, accounts=2) as gate:
        rows = json.loads((tmp_path / "tokens.json").read_text())
        rows = [rows[0]] if change is None else [rows[0], {**rows[1], **change}]
        (tmp_path / "tokens.json").write_text(json.dumps(rows))
        gate.pool.take_up(Registry(tmp_path, SystemClock()).accounts())
        found = await started(gate, AT_HOME)
    assert upstream.accounts == ["a0"]
    assert found.rebuilt == why


async def test_the_home_account_is_waited_for_even_if_others_are_free(tmp_path: Path) -> None:
    upstream = ScriptedUpstream()
    async with gateway(tmp_path, upstream) as gate, anyio.create_task_group() as tasks:
        for _ in range(6):
            tasks.start_soon(started, gate, AT_HOME)
    assert upstream.accounts == ["a1"] * 6


async def test_a_new_conversation_keeps_its_chat_unless_nothing_came_of_it(tmp_path: Path) -> None:
    upstream = ScriptedUpstream(None, late(Severed("cut")), ContentBlocked("no"))
    new = ChatRequest("qwen", TALK, home=Home())
    async with gateway(tmp_path, upstream) as gate:
        assert (await started(gate, new)).rebuilt == ""
        for error in (Severed, ContentBlocked):
            with pytest.raises(error):
                await started(gate, new)
    assert upstream.deleted == ["chat-3"]


async def test_only_what_is_said_has_to_fit(tmp_path: Path) -> None:
    upstream = ScriptedUpstream(None, ChatGone("gone"))
    long = ChatRequest("qwen", (Message("user", "x" * 2000), *TALK[1:]), home=Home("a1", "twin", "r0"))
    async with gateway(tmp_path, upstream) as gate:
        await started(gate, long)
        await started(gate, long)
    twin, gone, anew = (turn for _, _, turn in upstream.calls)
    assert twin.prompt == gone.prompt == TALK[-1].text
    assert anew.prompt.startswith("[attached prompt]\n")


# ---- what is attached ----


def stored(tmp_path: Path, content: bytes, name: str = "notes.txt", caller: Caller = ANYBODY) -> StoredFile:
    files = FileStore(tmp_path, SystemClock(), most_bytes=30_000_000)
    with files.incoming() as incoming:
        incoming.write(content)
        return files.keep(incoming, name=name, purpose="message", caller=caller)


def attached(*files: StoredFile, text: str = "Look") -> Message:
    return Message("user", text, tuple(Attachment("file", file_address(file.id)) for file in files))


async def test_what_is_attached_is_brought_to_the_account_that_answers_once(tmp_path: Path) -> None:
    upstream, uploads = ScriptedUpstream(None, LimitReached("limit", wait_s=60)), ScriptedUploads()
    notes, cat = stored(tmp_path, b"notes"), stored(tmp_path, PNG, "cat.png")
    request = ChatRequest("qwen", (attached(notes, cat),))
    async with gateway(tmp_path, upstream, uploads=uploads) as gate:
        await text(gate, request)
        # Who has the files answers again, and as it may not, another gets them.
        await text(gate, request)
        await text(gate, request)
    assert upstream.accounts == ["a0", "a0", "a1", "a1"]
    assert {account: sorted(has) for account, has in uploads.has.items()} == {
        "a0": sorted([b"notes", PNG]),
        "a1": sorted([b"notes", PNG]),
    }
    for account, _, turn in upstream.calls:
        assert [(f.user_id, f.name) for f in turn.attachments if isinstance(f, HostedFile)] == [
            (account, "notes.txt"),
            (account, "cat.png"),
        ]


async def test_what_is_done_with_files_is_seen_while_it_is_done(tmp_path: Path) -> None:
    upstream, uploads = ScriptedUpstream(), ScriptedUploads()
    request = ChatRequest("qwen", (attached(stored(tmp_path, b"notes")),))

    async def ask(gate: Gateway) -> None:
        async with aclosing(gate.stream(request)) as deltas:
            async for _ in deltas:
                assert [each.step for each in gate.activity.in_flight()] == [""]

    uploads.go_on = anyio.Event()
    async with gateway(tmp_path, upstream, uploads=uploads) as gate, anyio.create_task_group() as tasks:
        tasks.start_soon(ask, gate)
        await until_async(lambda: uploads.begun)
        assert [each.step for each in gate.activity.in_flight()] == ["uploading a file"]
        uploads.go_on.set()


async def test_a_file_that_the_account_lost_is_uploaded_again_once(tmp_path: Path) -> None:
    upstream, uploads = ScriptedUpstream(None, FileGone("gone")), ScriptedUploads()
    request = ChatRequest("qwen", (attached(stored(tmp_path, b"notes")),))
    async with gateway(tmp_path, upstream, uploads=uploads) as gate:
        await text(gate, request)
        await text(gate, request)
        upstream.ends = [FileGone("gone")] * 2
        with pytest.raises(FileGone):
            await text(gate, request)
    assert uploads.has == {"a0": [b"notes"] * 3}
    assert upstream.chats == ["chat-1", *["chat-2"] * 2, *["chat-3"] * 2]


async def test_a_file_of_the_services_that_is_gone_is_not_asked_for_again(tmp_path: Path) -> None:
    upstream = ScriptedUpstream(FileGone("gone"))
    theirs = Attachment("file", "https://qwen-webui-prod.oss-accelerate.aliyuncs.com/u/f_a.pdf")
    async with gateway(tmp_path, upstream) as gate:
        with pytest.raises(FileGone):
            await text(gate, ChatRequest("qwen", (Message("user", "Read", (theirs,)),)))
    assert [turn.attachments for _, _, turn in upstream.calls] == [(theirs,)]


async def test_a_failed_upload_is_tried_again_here_and_then_elsewhere(tmp_path: Path) -> None:
    uploads = ScriptedUploads([UploadFailed("no"), UploadFailed("no")])
    upstream = ScriptedUpstream()
    notes, others = stored(tmp_path, b"notes"), stored(tmp_path, b"others")
    async with gateway(tmp_path, upstream, uploads=uploads) as gate:
        await text(gate, ChatRequest("qwen", (attached(notes),)))
        uploads.ends = [UnsupportedFile("unreadable")]
        with pytest.raises(UnsupportedFile):
            await text(gate, ChatRequest("qwen", (attached(others),)))
        uploads.ends = [UploadFailed("no")] * 3
        with pytest.raises(UploadFailed, match=r"^no$"):
            await text(gate, ChatRequest("qwen", (attached(others),)))
    assert list(uploads.has) == ["a1"]
    assert upstream.made == 1


async def test_a_failed_upload_is_no_reason_to_leave_a_chat(tmp_path: Path) -> None:
    uploads, upstream = ScriptedUploads([Unreachable("net")]), ScriptedUpstream()
    request = ChatRequest("qwen", (*TALK, attached(stored(tmp_path, b"n"))), home=Home("a1", "twin", "r0"))
    async with gateway(tmp_path, upstream, uploads=uploads) as gate:
        assert (await started(gate, request)).rebuilt == ""
        assert upstream.chats == ["twin"]


async def test_a_file_that_is_gone_ends_a_conversation_only_at_its_end(tmp_path: Path) -> None:
    upstream, uploads = ScriptedUpstream(), ScriptedUploads()
    gone = Attachment("image", file_address("file-" + "0" * 24), "old.png")
    talk = (
        Message("user", "See", (gone,)),
        Message("assistant", "Nice"),
        attached(stored(tmp_path, b"new")),
    )
    async with gateway(tmp_path, upstream, uploads=uploads) as gate:
        await text(gate, ChatRequest("qwen", talk))
        with pytest.raises(UnknownFile):
            await text(gate, ChatRequest("qwen", talk[:1]))
    ((_, _, turn),) = upstream.calls
    assert " user, gone: old.png]\nSee\n" in turn.prompt
    assert " user, attached: notes.txt]\nLook\n" in turn.prompt
    assert len(turn.attachments) == 1


async def test_only_the_last_message_brings_files_to_a_chat_that_knows_the_rest(tmp_path: Path) -> None:
    upstream, uploads = ScriptedUpstream(None, ChatGone("gone")), ScriptedUploads()
    old, new = stored(tmp_path, b"old", "old.txt"), stored(tmp_path, b"new", "new.txt")
    talk = (attached(old), Message("assistant", "Read"), attached(new))
    request = ChatRequest("qwen", talk, home=Home("a1", "twin", "r0"))
    async with gateway(tmp_path, upstream, uploads=uploads) as gate:
        await text(gate, request)
        assert uploads.has == {"a1": [b"new"]}
        await text(gate, request)
    assert uploads.has == {"a1": [b"new", b"old"]}
    assert [len(turn.attachments) for _, _, turn in upstream.calls] == [1, 1, 2]


# ---- drawings ----


async def test_a_drawing_has_its_own_kind_of_chat_and_its_own_limits(tmp_path: Path) -> None:
    limit = LimitReached("limit", wait_s=60)
    upstream = ScriptedUpstream(limit)
    request = ChatRequest(
        "no-such", HELLO.messages, thinking=True, drawing=Drawing("16:9", "qwen-image-3.0-pro")
    )
    async with gateway(tmp_path, upstream, accounts=2) as gate:
        await text(gate, request)
        assert upstream.accounts == ["a0", "a1"]
        assert gate.pool.usable() == ("a0", "a1")
        assert gate.pool.usable("t2i") == ("a1",)
        cat = Message("user", "Bluer", attached(stored(tmp_path, PNG, "cat.png")).attachments)
        await text(gate, replace(request, messages=(cat,)))
    assert upstream.types == ["t2i", "t2i", "image_edit"]
    turn = upstream.calls[0][2]
    assert (turn.model.id, turn.thinking, turn.size, turn.generator) == (
        "qwen3.7-plus",
        False,
        "16:9",
        "qwen-image-3.0-pro",
    )
    assert upstream.accounts[2] == "a1"


async def test_words_instead_of_a_picture_are_a_failure(tmp_path: Path) -> None:
    upstream = ScriptedUpstream()
    upstream.draws = False
    async with gateway(tmp_path, upstream) as gate:
        with pytest.raises(GenerationFailed, match="it said: Hello you"):
            await text(gate, replace(HELLO, drawing=Drawing()))


READ = Tool(
    "read_file",
    "Reads a file.",
    {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
)
CALL = '<tool_call>{"name": "read_file", "arguments": {"path": "a.txt"}}</tool_call>'
BAD = '<tool_call>{"name": "read_file", "arguments": {"line": 1}}</tool_call>'
WITH_TOOLS = replace(HELLO, tools=(READ,))


async def whole(gate: Gateway, request: ChatRequest) -> Reply:
    async with aclosing(gate.stream(request)) as deltas:
        return fold([d async for d in deltas])


async def test_tools_are_told_and_their_calls_come_out_of_the_text(tmp_path: Path) -> None:
    upstream = ScriptedUpstream()
    upstream.most = 100_000
    upstream.says = [f"Look: {CALL}"]
    async with gateway(tmp_path, upstream) as gate:
        reply = await whole(gate, WITH_TOOLS)
    (call,) = reply.calls
    assert (call.name, call.arguments, reply.finished.reason) == (
        "read_file",
        '{"path":"a.txt"}',
        "tool_calls",
    )
    assert call.id.startswith("call_")
    prompt = upstream.calls[0][2].prompt
    assert all(told in prompt for told in ("read_file", "Reads a file.", "<tool_call>", "Hello"))


async def test_results_of_calls_are_told_as_the_model_knows_them(tmp_path: Path) -> None:
    upstream = ScriptedUpstream()
    upstream.most = 100_000
    call = ToolCall("c1", "read_file", '{"path":"a.txt"}')
    talk = (
        *HELLO.messages,
        Message("assistant", "Look:", calls=(call,)),
        Message("tool", "It is 7", call_id="c1"),
    )
    async with gateway(tmp_path, upstream) as gate:
        assert await text(gate, replace(WITH_TOOLS, messages=talk)) == "Hello you"
    prompt = upstream.calls[0][2].prompt
    assert "<tool_response>" in prompt
    assert "It is 7" in prompt
    assert prompt.index("Look:") < prompt.index('"name"', prompt.index("Look:")) < prompt.index("It is 7")


async def test_a_correction_goes_to_a_fresh_chat_of_the_same_account_with_all_that_was_said(
    tmp_path: Path,
) -> None:
    upstream = ScriptedUpstream()
    upstream.most = 100_000
    upstream.says = [BAD, CALL]
    async with gateway(tmp_path, upstream) as gate:
        reply = await whole(gate, WITH_TOOLS)
    assert len(reply.calls) == 1
    assert upstream.accounts == ["a0", "a0"]
    assert upstream.chats == ["chat-1", "chat-2"]
    assert upstream.deleted == ["chat-1", "chat-2"]
    first, second = (turn.prompt for _, _, turn in upstream.calls)
    assert BAD not in first
    assert all(told in second for told in ("Hello", BAD, "path", "read_file"))
    assert reply.started.chat_id == "chat-1"
    assert reply.finished.cut


async def test_each_round_may_be_tried_again(tmp_path: Path) -> None:
    upstream = ScriptedUpstream(None, EmptyAnswer("empty"), LimitReached("limit", wait_s=60))
    upstream.most = 100_000
    upstream.says = [BAD, CALL]
    async with gateway(tmp_path, upstream) as gate:
        assert len((await whole(gate, WITH_TOOLS)).calls) == 1
    assert upstream.accounts == ["a0", "a0", "a0", "a1"]


async def test_a_call_that_cannot_be_used_twice_is_an_error_before_anything_was_given(tmp_path: Path) -> None:
    upstream = ScriptedUpstream()
    upstream.most = 100_000
    upstream.says = [BAD, BAD]
    seen: list[Delta] = []
    async with gateway(tmp_path, upstream) as gate, aclosing(gate.stream(WITH_TOOLS)) as deltas:
        with pytest.raises(InvalidToolCall):
            seen += [delta async for delta in deltas]
    assert seen == []
    assert len(upstream.calls) == 2


async def test_refused_by_the_services_machinery_it_is_asked_again_in_fenced_json(tmp_path: Path) -> None:
    upstream = ScriptedUpstream()
    upstream.most = 100_000
    upstream.says = [
        "Tool read_file does not exists.",
        '```json\n{"name": "read_file", "arguments": {"path": "a.txt"}}\n```',
    ]
    async with gateway(tmp_path, upstream) as gate:
        assert len((await whole(gate, WITH_TOOLS)).calls) == 1
    first, second = (turn.prompt for _, _, turn in upstream.calls)
    assert "<tool_call>" in first
    assert "<tool_call>" not in second
    assert "```json" in second


async def test_a_name_tells_to_think_and_to_search(tmp_path: Path) -> None:
    upstream = ScriptedUpstream()
    upstream.most = 100_000
    async with gateway(tmp_path, upstream) as gate:
        for name in ("qwen3.7-plus-thinking", "qwen3.7-plus-search", "qwen3.7-plus"):
            await text(gate, replace(HELLO, model=name))
        await text(gate, replace(HELLO, model="qwen3.7-plus-thinking", thinking=False))
        with pytest.raises(UnsupportedParameter):
            await text(gate, replace(HELLO, model="qwen3.5-omni-plus", research=True))
    told = [(turn.model.id, turn.thinking, turn.chat_type) for _, _, turn in upstream.calls]
    assert told == [
        ("qwen3.7-plus", True, "t2t"),
        ("qwen3.7-plus", None, "search"),
        ("qwen3.7-plus", None, "t2t"),
        ("qwen3.7-plus", False, "t2t"),
    ]
    assert upstream.types == ["t2t", "search", "t2t", "t2t"]


async def test_the_size_of_a_prompt_is_counted_where_it_is_wanted(tmp_path: Path) -> None:
    upstream = ScriptedUpstream()
    upstream.most = 100_000
    async with gateway(tmp_path, upstream) as gate:
        assert (await whole(gate, HELLO)).started.input_tokens == 0
        assert (await whole(gate, replace(HELLO, counts_input=True))).started.input_tokens == len("Hello")
        picture = Attachment("image", "https://x/a.png")
        with_picture = replace(HELLO, messages=(Message("user", "Hello", (picture,)),))
        assert await gate.count_tokens(with_picture) == len("Hello")
        assert await gate.count_tokens(WITH_TOOLS) > 100
        with pytest.raises(UnknownModel):
            await gate.count_tokens(replace(HELLO, model="nobody"))
    assert len(upstream.calls) == 2


async def test_a_clients_name_tells_the_model_that_serves_it(tmp_path: Path) -> None:
    names = ModelNames(tmp_path)
    tmp_path.joinpath("model_names.txt").write_text("claude-* = qwen3.8-max-thinking\n")
    async with gateway(tmp_path, ScriptedUpstream()) as gate:
        gate._names = names
        names.open()
        assert (await gate.model("claude-sonnet-4-5[1m]")).id == "qwen3.8-max"
        with pytest.raises(UnknownModel):
            await gate.model("nobody")
