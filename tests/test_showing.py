from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

import pytest

from qwenproxy.caller import ANYBODY, Caller
from qwenproxy.chat import ChatRequest, Delta, Drawing, Finished, Media, Started, Text
from qwenproxy.errors import GenerationFailed, Severed, StoreError, Unreachable
from qwenproxy.showing import Showing

pytestmark = pytest.mark.anyio
CDN = "https://cdn.qwenlm.ai/output"
OURS = "http://127.0.0.1:3264"
START, END = Started("c", "r", "m", account_id="acc_1"), Finished("stop")
ALICE = Caller("key_alice")


@dataclass
class Play:
    """Conversations and a shelf."""

    deltas: Sequence[Delta | Exception]
    full: bool = False
    empty: bool = False
    noted: list[tuple[str, str, str]] = field(default_factory=list)
    asked: list[frozenset[str] | None] = field(default_factory=list)
    forgotten: list[tuple[str, str]] = field(default_factory=list)
    closed: int = 0

    async def stream(
        self, request: ChatRequest, caller: Caller, *, only: frozenset[str] | None = None
    ) -> AsyncGenerator[Delta]:
        self.asked.append(only)
        try:
            for delta in self.deltas:
                if isinstance(delta, Exception):
                    raise delta
                yield delta
        finally:
            self.closed += 1

    async def forget(self, answer_id: str, caller: Caller) -> None:
        self.forgotten.append((answer_id, caller.mark))

    def takes(self, url: str) -> bool:
        return url.startswith(CDN)

    async def note(self, url: str, account_id: str, caller: Caller) -> str:
        if self.full:
            raise StoreError("what the service made cannot be written down")
        self.noted.append((url, account_id, caller.mark))
        return f"{len(self.noted):032x}"

    async def inline(self, url: str, account_id: str) -> str:
        if self.empty:
            raise Unreachable("the service's store cannot be reached")
        return f"content of {url} for {account_id}"

    async def shown(self, request: ChatRequest, caller: Caller = ALICE) -> list[Delta]:
        stream = Showing(self, self).stream(request, caller, only=frozenset({"guest_1"}))
        async with aclosing(stream) as deltas:
            return [delta async for delta in deltas]


def asked(*, inline: bool | None = None, base_url: str = OURS) -> ChatRequest:
    return ChatRequest("m", (), base_url=base_url, drawing=None if inline is None else Drawing(inline=inline))


async def test_pictures_are_shown_at_addresses_of_ours() -> None:
    play = Play([START, Text("Look:"), Media(f"{CDN}/1.png?key=k", 3, 4), END])
    ours = Media(f"{OURS}/api/media/{1:032x}", 3, 4)
    assert await play.shown(asked()) == [START, Text("Look:"), ours, END]
    assert play.noted == [(f"{CDN}/1.png?key=k", "acc_1", "key_alice")]
    assert (play.asked, play.closed) == ([frozenset({"guest_1"})], 1)


async def test_all_pictures_are_shown_where_only_addresses_are_wanted() -> None:
    play = Play([START, Media(f"{CDN}/1.png"), Media(f"{CDN}/2.png"), END])
    assert len(await play.shown(asked(inline=False))) == 4


@pytest.mark.parametrize("url", [f"{CDN}/1.png", "https://wanx.alicdn.com/1.png"])
async def test_an_address_stays_where_ours_would_lead_nowhere(url: str) -> None:
    play = Play([START, Media(url), END])
    assert await play.shown(asked(base_url="" if url.startswith(CDN) else OURS)) == [START, Media(url), END]
    assert not play.noted


async def test_a_full_disk_costs_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    play = Play([START, Media(f"{CDN}/1.png"), END], full=True)
    assert await play.shown(asked()) == [START, Media(f"{CDN}/1.png"), END]
    assert "cannot be written down" in caplog.text


async def test_the_picture_itself_is_the_last_one() -> None:
    play = Play([START, Media(f"{CDN}/1.png"), Text("Better:"), Media(f"{CDN}/2.png"), END])
    url = f"{OURS}/api/media/{1:032x}"
    last = Media(url, content=f"content of {CDN}/2.png for acc_1")
    assert await play.shown(asked(inline=True)) == [START, Text("Better:"), last, END]


async def test_a_picture_that_cannot_be_had_is_no_answer() -> None:
    play = Play([START, Media(f"{CDN}/1.png"), END], empty=True)
    with pytest.raises(GenerationFailed, match="drawn, but cannot be fetched: the service's store"):
        await play.shown(asked(inline=True))
    assert play.closed == 1


async def test_failures_pass() -> None:
    play = Play([START, Severed("the answer broke off")])
    with pytest.raises(Severed):
        await play.shown(asked(inline=True))


async def test_who_leaves_closes_the_conversation() -> None:
    play = Play([START, Text("a"), Text("b"), END])
    async with aclosing(Showing(play, play).stream(asked(), ANYBODY)) as deltas:
        await anext(deltas)
    assert play.closed == 1


async def test_what_is_forgotten_is_the_conversations_affair() -> None:
    play = Play([])
    await Showing(play, play).forget("a1", ALICE)
    assert play.forgotten == [("a1", "key_alice")]
