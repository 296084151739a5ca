"""Sign-ins that come with a request: who they are, how many, how long."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import anyio
import pytest

from qwenproxy import guests
from qwenproxy.errors import QueueFull, TokenRejected, Unreachable
from qwenproxy.guests import MOST, Guests, tokens_in

pytestmark = pytest.mark.anyio
ONE, TWO = "eyJhbGciOiJIUzI1NiJ9.e30.one", "eyJhbGciOiJIUzI1NiJ9.e30.two"


class Hotel:
    """The pool's seats, the browser's contexts, the service and the clock, as far as guests need them."""

    def __init__(self) -> None:
        self.seated: list[str] = []
        self.forgotten: list[str] = []
        self.asked: list[str] = []
        self.error: Exception | None = None
        self.time_s = 0.0

    def invite(self, account_id: str) -> None:
        self.seated.append(account_id)

    def dismiss(self, account_id: str) -> None:
        self.seated.remove(account_id)

    async def forget(self, account_id: str) -> None:
        self.forgotten.append(account_id)

    async def who(self, account_id: str) -> dict[str, Any]:
        self.asked.append(account_id)
        if self.error is not None:
            raise self.error
        return {"id": "u1"}

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic_s(self) -> float:
        self.time_s += 1
        return self.time_s


@pytest.fixture
def hotel() -> Hotel:
    return Hotel()


@pytest.fixture
def house(hotel: Hotel) -> Guests:
    return Guests(hotel, hotel.forget, hotel.who, hotel)


def many(count: int) -> list[str]:
    return [f"eyJhbGciOiJIUzI1NiJ9.e30.{number}" for number in range(count)]


@pytest.mark.parametrize(
    ("header", "tokens"),
    [
        (f"Bearer {ONE}", (ONE,)),
        (f"bearer {ONE}, {TWO},", (ONE, TWO)),
        ("Bearer sk-1234", ()),
        (f"Bearer {ONE},sk-1234", ()),
        (f"Basic {ONE}", ()),
        (ONE, ()),
        ("Bearer", ()),
        ("", ()),
    ],
)
def test_only_the_services_own_tokens_are_tokens(header: str, tokens: tuple[str, ...]) -> None:
    assert tokens_in(header) == tokens


async def test_a_token_is_known_by_a_mark_of_it(house: Guests, hotel: Hotel) -> None:
    async with house.inside([ONE, TWO, ONE]) as ids:
        assert len(ids) == 2
        assert {house.token(account_id) for account_id in ids} == {ONE, TWO}
        assert not any("one" in account_id or "two" in account_id for account_id in ids)
        assert sorted(hotel.seated) == sorted(ids)
    async with house.inside([ONE]) as again:
        assert again < ids
    assert len(hotel.seated) == 2
    assert house.token("acc_1") is None


async def test_the_longest_idle_makes_room(house: Guests, hotel: Hotel) -> None:
    ids: list[str] = []
    for token in many(MOST):
        async with house.inside([token]) as one:
            ids += one
    async with house.inside([many(1)[0]]):
        pass
    async with house.inside([ONE]):
        assert hotel.forgotten == [ids[1]]
        assert ids[1] not in hotel.seated
        assert len(hotel.seated) == MOST


async def test_whoever_is_served_is_never_put_away(house: Guests, hotel: Hotel) -> None:
    async with house.inside(many(MOST)):
        with pytest.raises(QueueFull):
            async with house.inside([ONE]):
                raise AssertionError
    assert hotel.forgotten == []
    async with house.inside([ONE]):
        assert len(hotel.forgotten) == 1


async def test_a_refused_crowd_leaves_nobody_inside(house: Guests) -> None:
    with pytest.raises(QueueFull):
        async with house.inside(many(MOST + 1)):
            raise AssertionError
    async with house.inside([ONE]):
        pass


async def test_a_token_lives_when_the_service_takes_it(house: Guests, hotel: Hotel) -> None:
    assert await house.token_lives(ONE)
    hotel.error = TokenRejected("gone")
    assert not await house.token_lives(ONE)
    hotel.error = Unreachable("no network")
    with pytest.raises(Unreachable):
        await house.token_lives(ONE)
    assert len(set(hotel.asked)) == 1


async def test_idle_guests_are_put_away(house: Guests, hotel: Hotel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guests, "SWEEP_EVERY_S", 0.01)
    async with house.inside([ONE]) as ids, anyio.create_task_group() as tasks:
        async with house.inside([TWO]) as others:
            pass
        hotel.time_s += guests.IDLE_S
        tasks.start_soon(house.keep_few)
        with anyio.fail_after(5):
            while not hotel.forgotten:
                await anyio.sleep(0.005)
        tasks.cancel_scope.cancel()
    assert hotel.forgotten == [*others]
    assert hotel.seated == [*ids]
