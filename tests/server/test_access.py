"""What every route says to no key, to a wrong one, and to a key of each scope."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from qwenproxy.api_keys import ApiKey, KeyRing, digest_of, parse
from qwenproxy.caller import ANYBODY, SCOPES, Caller
from qwenproxy.chat import Text
from qwenproxy.errors import InvalidKey, KeyLimit
from qwenproxy.server.access import CALLER, Gate, KeyRoute, caller_of
from tests.serve import until_async
from tests.server.serving import END, FOREVER, HELLO, START, Running, ScriptedGateway, heard, running

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
ANY, WRONG = "a-key-with-every-scope", "a-key-that-nobody-has"
KEYS = {scope: f"a-key-for-{scope}-alone" for scope in sorted(SCOPES)}
FILE = "\n".join([ANY, *(f"{key} scopes={scope} name={scope}" for scope, key in KEYS.items())])
ANTHROPIC = re.compile(r"/(v1|api)/messages")
NATIVE = re.compile(r"/api(/v[12])?/(chat(?!/completions)|files/(upload|getstsToken))")


def ring_of(folder: Path, text: str = FILE) -> KeyRing:
    (folder / "Authorization.txt").write_text(text)
    ring = KeyRing([folder / "Authorization.txt"])
    ring.open()
    return ring


@asynccontextmanager
async def keyed(
    folder: Path,
    gateway: ScriptedGateway | None = None,
    text: str = FILE,
    slowest_s: float = 0,
    **values: Any,
) -> AsyncGenerator[tuple[Running, httpx.AsyncClient]]:
    gate = Gate(ring_of(folder, text), slowest_s=slowest_s)
    async with (
        running(gateway or ScriptedGateway(), gate=gate, **values) as proxy,
        httpx.AsyncClient(base_url=proxy.url, timeout=15, trust_env=False) as client,
    ):
        yield proxy, client


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def calls(app: Starlette) -> Iterator[tuple[str, str, str | None]]:
    """Every method and path that the server has, and what its route says it needs."""
    for route in app.routes:
        assert isinstance(route, Route)
        needs = route.needs if isinstance(route, KeyRoute) else None
        for method in sorted(route.methods or ()):
            yield method, re.sub(r"{.*?}", "x", route.path), needs


async def ask(client: httpx.AsyncClient, method: str, path: str, headers: dict[str, str]) -> httpx.Response:
    body: Any = None if method in {"GET", "HEAD"} else {}
    return await client.request(method, path, json=body, headers=headers)


def refused(answer: httpx.Response, method: str, path: str) -> tuple[int, str]:
    """The status, and the code as callers of that path expect it."""
    if method == "HEAD":
        return answer.status_code, ""
    error = answer.json()["error"]
    if NATIVE.match(path):
        assert isinstance(error, str)
        return answer.status_code, answer.json()["code"]
    if ANTHROPIC.match(path):
        assert answer.json()["type"] == "error"
        return answer.status_code, error["details"]["error_code"]
    assert error.keys() == {"message", "type", "param", "code"}
    return answer.status_code, error["code"]


# ---- every route ----


async def test_the_walk(tmp_path: Path) -> None:
    async with keyed(tmp_path) as (proxy, client):
        walked = list(calls(proxy.app))
        assert len(walked) > 20
        # The id of a picture or video is its own leave: nobody guesses it.
        assert {path for _, path, needs in walked if needs == "nothing"} == {"/health", "/api/media/x"}
        for method, path, needs in walked:
            where = f"{method} {path}"
            assert needs is not None, f"{where} declares no scope"
            if needs == "nothing":
                assert (await ask(client, method, path, {})).status_code == (
                    200 if path == "/health" else 404
                )
                continue
            code = "" if method == "HEAD" else "invalid_api_key"
            for headers in ({}, bearer(WRONG)):
                answer = await ask(client, method, path, headers)
                assert refused(answer, method, path) == (401, code), where
                assert answer.headers["WWW-Authenticate"] == "Bearer"
                assert WRONG not in answer.text
            for scope, key in KEYS.items():
                answer = await ask(client, method, path, bearer(key))
                if needs in {"any key", scope}:
                    assert answer.status_code not in {401, 403, 404, 405} or "x" in path, f"{where} {scope}"
                    assert answer.status_code not in {401, 403}, f"{where} {scope}"
                else:
                    code = "" if method == "HEAD" else "not_allowed"
                    assert refused(answer, method, path) == (403, code), f"{where} {scope}"


async def test_what_is_not_there_is_told_only_to_who_has_a_key(tmp_path: Path) -> None:
    async with keyed(tmp_path) as (_, client):
        for method, path, status in (
            ("GET", "/nothing", 404),
            ("GET", "/api/chats/x/nothing", 404),
            ("GET", CHAT, 405),
            ("POST", "/health", 405),
            ("OPTIONS", "/v1/models", 405),
        ):
            assert refused(await ask(client, method, path, {}), method, path)[0] == 401
            answer = await ask(client, method, path, bearer(KEYS["files"]))
            assert refused(answer, method, path)[0] == status, path


async def test_a_route_that_declares_no_scope_is_refused_to_every_key(tmp_path: Path) -> None:
    async def bare(request: Request) -> Response:
        raise AssertionError

    async with keyed(tmp_path) as (proxy, client):
        proxy.app.router.routes.append(Route("/bare", bare))
        for key in (ANY, *KEYS.values()):
            answer = await client.get("/bare", headers=bearer(key))
            assert refused(answer, "GET", "/bare") == (403, "not_allowed")
        assert (await client.get("/bare")).status_code == 401


# ---- how a key comes ----


async def test_where_a_key_may_stand(tmp_path: Path) -> None:
    good = [
        {"Authorization": f"Bearer {ANY}"},
        {"authorization": f"bearer   {ANY}"},
        {"x-api-key": ANY},
        {"X-Goog-Api-Key": ANY},
        {"x-api-key": ANY, "Authorization": f"Bearer {WRONG}"},
        {"x-goog-api-key": ANY, "x-api-key": "", "Authorization": "Basic eDp5"},
    ]
    bad: list[Any] = [
        {"Authorization": ANY},
        {"Authorization": "Bearer"},
        {"Authorization": f"Basic {ANY}"},
        {"Authorization": f"Bearer {ANY}, {ANY}"},
        {"x-api-key": f"Bearer {ANY}"},
        {"api-key": ANY},
        {"Cookie": f"key={ANY}"},
        {"x-api-key": ANY.upper()},
        {"x-api-key": "ü".encode("latin-1")},
        [("x-api-key", ANY), ("x-api-key", WRONG)],
        [("Authorization", f"Bearer {ANY}"), ("Authorization", f"Bearer {ANY}")],
    ]
    async with keyed(tmp_path) as (_, client):
        for headers in good:
            assert (await client.get("/ping", headers=headers)).status_code == 200, headers
        for headers in bad:
            assert (await client.get("/ping", headers=headers)).status_code == 401, headers
        assert (await client.get(f"/ping?key={ANY}&api_key={ANY}")).status_code == 401


async def test_a_request_is_refused_before_its_body_is_read(tmp_path: Path) -> None:
    gateway = ScriptedGateway()
    async with keyed(tmp_path, gateway) as (proxy, _):
        head = proxy.head("POST", CHAT, "Content-Type: application/json\r\nContent-Length: 999")
        assert (await proxy.say(head)).startswith(b"HTTP/1.1 401 ")
        assert not proxy.admission.inside
    assert not gateway.opened


async def test_tokens_of_a_request_stay_where_they_are(tmp_path: Path) -> None:
    gateway = ScriptedGateway()
    async with keyed(tmp_path, gateway, passthrough_tokens=True) as (_, client):
        tokens = {"Authorization": "Bearer eyJone,eyJtwo"}
        assert (await client.post(CHAT, json=HELLO, headers=tokens)).status_code == 401
        answer = await client.post(CHAT, json=HELLO, headers=tokens | {"x-api-key": KEYS["chat"]})
        assert answer.status_code == 200
        assert (await client.post(CHAT, json=HELLO, headers=bearer(ANY))).status_code == 200
    assert gateway.guests.tokens == [("eyJone", "eyJtwo")]


async def test_a_listed_page_may_ask_first_and_read_why_it_is_refused(tmp_path: Path) -> None:
    page = {"Origin": "https://app.example"}
    async with keyed(tmp_path, allowed_origins=(page["Origin"],)) as (_, client):
        asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        assert (await client.options(CHAT, headers=page | asks)).status_code == 204
        answer = await client.post(CHAT, json=HELLO, headers=page)
        assert answer.status_code == 401
        assert answer.headers["Access-Control-Allow-Origin"] == page["Origin"]


async def test_a_request_goes_on_as_its_caller(tmp_path: Path) -> None:
    async def name(request: Request) -> Response:
        caller = caller_of(request.scope)
        return PlainTextResponse(f"{caller.name} {caller.mark}")

    def add(proxy: Running) -> None:
        proxy.app.router.routes.append(KeyRoute("/name", name, needs="any key"))

    async with keyed(tmp_path) as (proxy, client):
        add(proxy)
        answer = await client.get("/name", headers=bearer(KEYS["files"]))
        assert answer.text == f"files {parse(KEYS['files'])[0].caller.mark}"
        forged = bearer(KEYS["files"]) | {CALLER: "chat"}
        assert (await client.get("/name", headers=forged)).text == answer.text
    async with running(ScriptedGateway()) as proxy, httpx.AsyncClient(trust_env=False) as client:
        add(proxy)
        assert (await client.get(f"{proxy.url}/name", headers=bearer(WRONG))).text == " "
    assert caller_of({}) is ANYBODY


# ---- wrong keys, and many ----


async def test_wrong_keys_are_slowed_the_more_the_later_and_told_once_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gate = Gate(slowest_s=0.15)
    took: list[float] = []
    for _ in range(4):
        began = time.monotonic()
        with pytest.raises(InvalidKey):
            await gate.key_of([WRONG])
        took.append(time.monotonic() - began)
    assert [least <= each for least, each in zip((0.05, 0.1, 0.15, 0.15), took, strict=True)] == [True] * 4
    with anyio.move_on_after(0) as at_once, pytest.raises(InvalidKey):
        await gate.key_of([])
    assert not at_once.cancelled_caught, "who brings no key guesses none"
    assert [record.getMessage() for record in caplog.records] == [
        "a request with an unknown API key was refused"
    ]


async def test_few_wrong_keys_wait_at_once_and_right_ones_never(tmp_path: Path) -> None:
    gate, answers = Gate(ring_of(tmp_path), slowest_s=60), list[httpx.Response]()
    gate._failed_s.extend([time.monotonic()] * 16)  # many came before
    async with (
        running(ScriptedGateway(), gate=gate) as proxy,
        httpx.AsyncClient(base_url=proxy.url, timeout=60, trust_env=False) as client,
        anyio.create_task_group() as tasks,
    ):

        async def guess() -> None:
            answers.append(await client.get("/ping", headers=bearer(WRONG)))

        for _ in range(12):
            tasks.start_soon(guess)
        await until_async(lambda: len(answers) == 4, 10)
        assert (await client.get("/ping", headers=bearer(ANY))).status_code == 200
        assert (await client.get("/ping")).status_code == 401
        assert [refused(answer, "GET", "/ping") for answer in answers] == [(429, "key_limit")] * 4
        assert answers[0].headers["Retry-After"] == "60"
        tasks.cancel_scope.cancel()


def test_a_key_has_so_many_requests_in_any_minute() -> None:
    now_s = 1000.0
    gate = Gate(clock=lambda: now_s)
    key, other = (ApiKey(digest_of(name), Caller(name), rpm=3) for name in ("one", "two"))

    def enter(key: ApiKey) -> float | None:
        """Seconds to wait; 0 when it may."""
        try:
            with gate.entered(key):
                return 0
        except KeyLimit as exc:
            return exc.retry_after_s

    assert [enter(key), enter(key)] == [0, 0]
    now_s += 20
    assert [enter(key), enter(key), enter(key), enter(other)] == [0, 40, 40, 0]
    now_s += 40
    assert [enter(key), enter(key), enter(key)] == [0, 0, 20]
    now_s += 1
    lowered = ApiKey(key.digest, key.caller, rpm=1)
    assert enter(lowered) == 59
    assert [enter(ApiKey(key.digest, key.caller)) for _ in range(100)] == [0] * 100


async def test_a_key_has_so_many_requests_at_once(tmp_path: Path) -> None:
    gateway = ScriptedGateway(lambda request: [START, Text("x"), FOREVER, END])
    async with keyed(tmp_path, gateway, text=f"{ANY} concurrency=2\n{WRONG} rpm=1") as (proxy, client):
        body = HELLO | {"stream": True}
        with_key = proxy.post(body).replace(b"\r\n", f"\r\nx-api-key: {ANY}\r\n".encode(), 1)
        async with await proxy.connect() as one, await proxy.connect() as two:
            for connection in (one, two):
                await connection.send(with_key)
                await heard(connection, b"data: ")
            answer = await client.post("/api/chat", json={}, headers=bearer(ANY))
            assert refused(answer, "POST", "/api/chat") == (429, "key_limit")
            assert answer.headers["Retry-After"] == "1"
            assert (await client.get("/ping", headers=bearer(WRONG))).status_code == 200
            assert (await client.get("/ping", headers=bearer(WRONG))).status_code == 429
        await proxy.empty()
        assert (await client.get("/ping", headers=bearer(ANY))).status_code == 200


# ---- keys that change while serving ----


async def status_of(client: httpx.AsyncClient, headers: dict[str, str]) -> int:
    return (await client.get("/ping", headers=headers)).status_code


async def test_keys_are_followed_while_serving(tmp_path: Path) -> None:
    path = tmp_path / "Authorization.txt"
    async with keyed(tmp_path) as (_, client):
        path.write_text(f"{WRONG} name=new")
        with anyio.fail_after(5):
            while await status_of(client, bearer(ANY)) != 401:
                await anyio.sleep(0.02)
        assert await status_of(client, bearer(WRONG)) == 200
        path.write_text("# off\n")
        with anyio.fail_after(5):
            while await status_of(client, {}) != 200:
                await anyio.sleep(0.02)


async def test_where_others_may_call_an_emptied_file_opens_nothing(tmp_path: Path) -> None:
    ring = ring_of(tmp_path)
    async with running(ScriptedGateway(), gate=Gate(ring, slowest_s=0), host="0.0.0.0") as proxy:
        base = f"http://127.0.0.1:{proxy.port}"
        async with httpx.AsyncClient(base_url=base, trust_env=False) as client:
            assert await status_of(client, bearer(ANY)) == 200
            (tmp_path / "Authorization.txt").write_text("")
            await until_async(lambda: not ring.on, 5)
            assert [await status_of(client, headers) for headers in ({}, bearer(ANY))] == [401, 401]
            assert (await client.get("/health")).status_code == 200
            assert await status_of(client, {"x-api-key": ring.run_key}) == 200


@pytest.mark.parametrize("slots", [1, 3])
def test_a_request_that_fails_leaves_its_place(slots: int) -> None:
    gate, key = Gate(), ApiKey(digest_of("one"), Caller(), concurrency=slots)
    for _ in range(5):
        with pytest.raises(RuntimeError), gate.entered(key):
            raise RuntimeError
    with ExitStack() as inside:
        for _ in range(slots):
            inside.enter_context(gate.entered(key))
        with pytest.raises(KeyLimit):
            inside.enter_context(gate.entered(key))
