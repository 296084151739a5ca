"""What a client learns about the accounts, and what never."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import httpx
import openai
import pytest

from qwenproxy.accounts.account import Account
from qwenproxy.accounts.pool import SeatView
from qwenproxy.errors import BrowserMissing, Unreachable
from tests.server.serving import HELLO, Running, ScriptedCheckup, ScriptedGateway, ScriptedGuests, running

pytestmark = pytest.mark.anyio

NOW = datetime.now(UTC).replace(microsecond=0)
LATER = NOW + timedelta(hours=3)
ONE, TWO = "eyJhbGciOiJIUzI1NiJ9.e30.one", "eyJhbGciOiJIUzI1NiJ9.e30.two"
SEATS = (
    SeatView(Account("acc_1", label="work", email="jane@example.com", signed_in_at=NOW), 1, 2, None),
    SeatView(
        Account("acc_2", wait_until=LATER, why="limit", model_waits=(("qwen3-max", LATER),)), 0, 1, LATER
    ),
    SeatView(Account("acc_3", invalid=True), 0, 2, None),
    SeatView(Account("acc_4", why="human"), 0, 2, None),
    SeatView(Account("acc_5", paused=True, wait_until=NOW - timedelta(hours=1), why="limit"), 0, 2, None),
)


def client_of(proxy: Running) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=proxy.url, timeout=15, trust_env=False)


@pytest.mark.parametrize("path", ["/api/status", "/api/v1/status", "/api/v2/status"])
async def test_the_status_is_the_seeds(path: str) -> None:
    checkup = ScriptedCheckup(SEATS, queue=4, served={"acc_1": 17})
    async with running(ScriptedGateway(checkup=checkup)) as proxy, client_of(proxy) as client:
        told = (await client.get(path)).json()
    rows = {row["id"]: row for row in told["accounts"]}
    assert list(rows) == ["acc_1", "acc_2", "acc_3", "acc_4", "acc_5"]
    assert [row["status"] for row in rows.values()] == ["OK", "WAIT", "INVALID", "WAIT", "OK"]
    until = LATER.isoformat().replace("+00:00", "Z")
    assert [row["resetAt"] for row in rows.values()] == [None, until, None, None, None]
    assert [row["waitsFor"] for row in rows.values()] == ["", "limit", "", "human", ""]
    assert [row["paused"] for row in rows.values()] == [False, False, False, False, True]
    assert rows["acc_2"]["modelResetAt"] == {"qwen3-max": until}
    assert rows["acc_1"]["servedToday"] == 17
    assert (rows["acc_1"]["inUse"], rows["acc_1"]["slots"], told["queue"]) == (1, 2, 4)
    assert told["authenticated"] is True
    assert checkup.runs == 0


async def test_an_email_is_masked() -> None:
    checkup = ScriptedCheckup(SEATS)
    async with running(ScriptedGateway(checkup=checkup)) as proxy, client_of(proxy) as client:
        answer = await client.get("/api/status")
    assert "jane" not in answer.text
    assert answer.json()["accounts"][0]["email"] == "j…@example.com"


async def test_nobody_signed_in_is_said() -> None:
    checkup = ScriptedCheckup(SEATS[2:3])
    gateway = ScriptedGateway(checkup=checkup, not_ready="no account is usable")
    async with running(gateway) as proxy, client_of(proxy) as client:
        told = (await client.get("/api/status")).json()
    assert told["authenticated"] is False
    assert told["message"] == "no account is usable"


async def test_a_post_asks_the_service_first() -> None:
    checkup = ScriptedCheckup(SEATS, found={"acc_1": "live", "acc_3": "signed out"})
    async with running(ScriptedGateway(checkup=checkup)) as proxy, client_of(proxy) as client:
        told = (await client.post("/api/status")).json()
        assert checkup.runs == 1
        assert [row.get("check") for row in told["accounts"]] == ["live", None, "signed out", None, None]
        checkup.found = BrowserMissing("no Chromium")
        refused = await client.post("/api/status")
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "browser_unavailable"


@pytest.mark.parametrize("path", ["/token/check", "/api/token/check", "/api/v1/token/check"])
@pytest.mark.parametrize("live", [True, False])
async def test_a_token_is_checked(path: str, live: bool) -> None:
    guests = ScriptedGuests(live)
    async with running(ScriptedGateway(guests=guests)) as proxy, client_of(proxy) as client:
        assert (await client.post(path, json={"token": f" {ONE} "})).json() == {"live": live}
    assert guests.tokens == [(ONE,)]


@pytest.mark.parametrize("body", [{}, {"token": ""}, {"token": 7}, {"token": "a\nb"}, {"token": "é"}, []])
async def test_what_is_no_token_is_the_callers_fault(body: object) -> None:
    guests = ScriptedGuests()
    async with running(ScriptedGateway(guests=guests)) as proxy, client_of(proxy) as client:
        assert (await client.post("/token/check", json=body)).status_code == 400
        assert (await client.post("/token/check", json={"token": "e" * 5000})).status_code == 400
    assert guests.tokens == []


async def test_a_token_that_cannot_be_checked_is_neither_alive_nor_dead() -> None:
    guests = ScriptedGuests(Unreachable("the browser could not reach the site"))
    async with running(ScriptedGateway(guests=guests)) as proxy, client_of(proxy) as client:
        answer = await client.post("/token/check", json={"token": ONE})
        assert answer.status_code == 502
        assert "live" not in answer.json()


async def test_while_the_proxy_stops_nothing_is_checked() -> None:
    gateway = ScriptedGateway()
    async with running(gateway) as proxy, client_of(proxy) as client:
        proxy.admission.draining = True
        assert (await client.post("/token/check", json={"token": ONE})).status_code == 503
        assert (await client.post("/api/status")).status_code == 503
    assert gateway.guests.tokens == []
    assert gateway.checkup.runs == 0


async def test_a_requests_own_tokens_serve_it_alone_where_the_setting_says_so() -> None:
    gateway = ScriptedGateway()
    async with running(gateway, passthrough_tokens=True) as proxy, client_of(proxy) as client:
        for bearer in (f"{ONE},{TWO}", "sk-any", f"{ONE},sk-any"):
            headers = {"Authorization": f"Bearer {bearer}"}
            assert (await client.post("/v1/chat/completions", json=HELLO, headers=headers)).status_code == 200
    assert gateway.guests.tokens == [(ONE, TWO)]
    assert gateway.guests.answering == [frozenset({"guest_0", "guest_1"}), None, None]


async def test_without_the_setting_tokens_are_keys_like_any_other() -> None:
    gateway = ScriptedGateway()
    async with running(gateway) as proxy:
        client = openai.AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key=ONE, max_retries=0)
        await client.chat.completions.create(model="qwen", messages=[{"role": "user", "content": "Hello"}])
        await client.close()
    assert gateway.guests.tokens == []
    assert gateway.guests.answering == [None]
