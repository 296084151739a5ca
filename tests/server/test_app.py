from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio
import httpx
import pytest

from qwenproxy.addresses import file_address
from qwenproxy.api_keys import KeyRing
from qwenproxy.chat import ChatRequest, Media, Text
from qwenproxy.errors import NoAccount
from qwenproxy.server.access import Gate
from qwenproxy.server.app import DIALECTS, PortTaken, bind, create_app, serve
from qwenproxy.settings import SettingsError
from tests.server.serving import (
    END,
    FOREVER,
    HELLO,
    START,
    Running,
    ScriptedGateway,
    Step,
    heard,
    hello,
    running,
    settings_for,
)

ROOT = Path(__file__).parent.parent.parent
STREAM = {**HELLO, "stream": True}
CHAT = "/v1/chat/completions"


def client_of(proxy: Running) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=proxy.url, timeout=15, trust_env=False)


DRAWING = {"prompt": "a cat", "images": [file_address("file-" + "0" * 24)]}


def drawn_or_told(request: ChatRequest) -> Sequence[Step]:
    drawn: list[Step] = [START, Media("http://127.0.0.1/api/media/x"), END]
    return drawn if request.drawing is not None else hello(request)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("prefix", "asked"),
    [("/v1", "/v1"), ("/api", "/api"), ("/api", "/api/v1"), ("/api", "/api/v2"), ("/api", "/api//v1")],
)
async def test_every_route_under_every_prefix_with_or_without_a_slash(prefix: str, asked: str) -> None:
    async with running(ScriptedGateway(drawn_or_told)) as proxy, client_of(proxy) as client:
        for slash in ("", "/"):
            for dialect in (dialect for prefixes, dialect in DIALECTS if prefix in prefixes):
                for path in dialect.paths:
                    body = DRAWING if path.startswith("/images/") else {**HELLO, "input": "Hello"}
                    answer = await client.post(asked + path.format(chat_id="x") + slash, json=body)
                    assert answer.status_code == 200, path
            assert (await client.get(f"{asked}/models{slash}")).status_code == 200


@pytest.mark.anyio
async def test_what_is_not_there_is_told_in_openais_envelope() -> None:
    async with running(ScriptedGateway()) as proxy, client_of(proxy) as client:
        for path in ("/v1/nothing", "/api/nothing/at/all", "/v1", "/favicon.ico", "/docs", "/openapi.json"):
            answer = await client.get(path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found"), path
        assert (await client.post("/v1/embeddings", json={})).json()["error"]["code"] == "not_found"
        batches = (await client.get("/v1/messages/batches")).json()
        assert (batches["type"], batches["error"]["type"]) == ("error", "not_found_error")
        for method, path in (
            ("GET", CHAT),
            ("DELETE", CHAT),
            ("HEAD", CHAT),
            ("OPTIONS", CHAT),
            ("POST", "/v1/models"),
            ("PUT", "/"),
            ("TRACE", "/"),
        ):
            answer = await client.request(method, path)
            assert answer.status_code == 405, (method, path)
            assert "allow" in answer.headers
            if method != "HEAD":
                assert answer.json()["error"]["code"] == "method_not_allowed"
        assert (await client.head("/v1/models")).status_code == 200


@pytest.mark.anyio
async def test_a_bug_outside_the_relay_is_an_internal_error() -> None:
    gateway = ScriptedGateway(listed=(None,))  # type: ignore[arg-type]
    async with running(gateway) as proxy, client_of(proxy) as client:
        answer = await client.get("/v1/models")
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
        assert "NoneType" not in answer.text


@pytest.mark.anyio
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "[::1]", "127.0.0.2"])
async def test_loopback_addresses(host: str) -> None:
    try:
        async with running(ScriptedGateway(), host=host) as proxy, client_of(proxy) as client:
            assert (await client.get("/ping")).text == "pong"
    except SettingsError:
        if host in {"127.0.0.1", "localhost"} or socket.has_ipv6 is False:
            raise
        pytest.skip(f"this computer has no {host}")


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.168.1.5", "example.org", "", "127.0.0.1.evil.example"]
)
def test_other_addresses_are_refused(host: str) -> None:
    with pytest.raises(SettingsError, match="loopback") as caught:
        bind(settings_for(host=host))
    assert "\n" not in str(caught.value)


@pytest.mark.anyio
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "[::]"])
async def test_with_keys_other_computers_may_call(host: str, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("a-key-for-the-test")
    ring = KeyRing([tmp_path / "keys"])
    ring.open()
    try:
        async with running(ScriptedGateway(), gate=Gate(ring), host=host) as proxy:
            name = "[::1]" if ":" in host else "127.0.0.1"
            async with httpx.AsyncClient(base_url=f"http://{name}:{proxy.port}", trust_env=False) as client:
                assert (await client.get("/ping")).status_code == 401
                answer = await client.get("/ping", headers={"x-api-key": "a-key-for-the-test"})
                assert answer.text == "pong"
    except SettingsError:
        if ":" not in host:
            raise
        pytest.skip("this computer has no IPv6")


@pytest.mark.parametrize("host", ["example.org", "", "0", "1.2.3", "127.0.0.1.evil.example"])
def test_with_keys_too_an_address_is_needed(host: str) -> None:
    with pytest.raises(SettingsError, match="an IP address is needed"):
        bind(settings_for(host=host), keyed=True)


def test_small_pieces_are_sent_at_once() -> None:
    """Else each waits for the client to say that it has the one before, which takes clients 40 ms."""
    with bind(settings_for()) as listener:
        assert listener.proto == socket.IPPROTO_TCP, "asyncio looks at this before it sets TCP_NODELAY"


def test_a_taken_port_is_one_line() -> None:
    with bind(settings_for()) as first:
        port = first.getsockname()[1]
        with pytest.raises(PortTaken, match=f"QWENPROXY_PORT={port} ") as caught:
            bind(settings_for(port=port))
    assert "\n" not in str(caught.value)
    bind(settings_for(port=port)).close()


@pytest.mark.anyio
async def test_an_engine_that_does_not_start_ends_serving() -> None:
    @asynccontextmanager
    async def engine() -> AsyncGenerator[ScriptedGateway]:
        raise NoAccount("no account is usable")
        yield

    settings = settings_for()
    with anyio.fail_after(10), pytest.raises(NoAccount, match="usable"):
        await serve(create_app(settings, engine), settings, bind(settings))


@pytest.mark.anyio
async def test_an_engine_that_breaks_ends_serving() -> None:
    break_now = anyio.Event()

    async def fail() -> None:
        await break_now.wait()
        raise RuntimeError("the engine broke")

    @asynccontextmanager
    async def engine() -> AsyncGenerator[ScriptedGateway]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fail)
            yield ScriptedGateway()
            tasks.cancel_scope.cancel()

    settings = settings_for()
    listener = bind(settings)
    port = listener.getsockname()[1]
    with anyio.fail_after(10), pytest.raises(ExceptionGroup) as caught:  # noqa: PT012
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(serve, create_app(settings, engine), settings, listener)
            async with httpx.AsyncClient(trust_env=False) as client:
                assert (await client.get(f"http://127.0.0.1:{port}/ping")).text == "pong"
            break_now.set()
    assert caught.group_contains(RuntimeError, match="the engine broke")


@pytest.mark.anyio
async def test_when_every_sign_in_is_gone_running_answers_end_well_and_then_the_server() -> None:
    go_on = anyio.Event()
    gateway = ScriptedGateway(lambda request: [START, Text("x"), go_on, END])
    settings = settings_for()
    app = create_app(settings, lambda: _only(gateway))
    listener = bind(settings)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012
        async with (
            anyio.create_task_group() as tasks,
            httpx.AsyncClient(base_url=url, trust_env=False) as client,
        ):
            tasks.start_soon(serve, app, settings, listener)
            async with client.stream("POST", "/v1/chat/completions", json=HELLO | {"stream": True}) as answer:
                lines = answer.aiter_lines()
                await anext(lines)
                gateway.hopeless = NoAccount("every account's sign-in is gone")
                with anyio.fail_after(10):
                    while not app.state.admission.draining:
                        await anyio.sleep(0.02)
                assert (await client.post("/v1/chat/completions", json=HELLO)).status_code == 503
                go_on.set()
                assert [line async for line in lines if line][-1] == "data: [DONE]"
    assert caught.group_contains(NoAccount, match="every account's sign-in is gone")
    assert gateway.completed == 1


@pytest.mark.anyio
@pytest.mark.parametrize("setting", ["stay_up", "passthrough_tokens"])
async def test_who_is_to_stay_up_stays(setting: str) -> None:
    gateway = ScriptedGateway(hopeless=NoAccount("every account's sign-in is gone"))
    async with running(gateway, None, None, **{setting: True}) as proxy, client_of(proxy) as client:
        await anyio.sleep(0.5)
        assert (await client.post("/v1/chat/completions", json=HELLO)).status_code == 200


@asynccontextmanager
async def _only(gateway: ScriptedGateway) -> AsyncGenerator[ScriptedGateway]:
    yield gateway


@pytest.mark.anyio
@pytest.mark.parametrize("start_s", [0, 60], ids=["serving", "starting"])
async def test_cancelling_serve_ends_the_engine_first(start_s: float) -> None:
    order: list[str] = []
    started = anyio.Event()

    @asynccontextmanager
    async def engine() -> AsyncGenerator[ScriptedGateway]:
        started.set()
        try:
            await anyio.sleep(start_s)
            yield ScriptedGateway()
        finally:
            order.append("engine")

    settings = settings_for()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve, create_app(settings, engine), settings, bind(settings))
        await started.wait()
        await anyio.sleep(0.1)
        tasks.cancel_scope.cancel()
    order.append("left")
    assert order == ["engine", "left"]


@pytest.mark.anyio
async def test_while_draining_nothing_new_comes_in_and_the_rest_ends_with_an_error() -> None:
    gateway = ScriptedGateway(lambda request: [START, Text("x"), FOREVER], cleanup_s=0.05)
    async with running(gateway) as proxy, client_of(proxy) as client:
        async with await proxy.connect() as streamed, await proxy.connect() as whole:
            await streamed.send(proxy.post(STREAM))
            await heard(streamed, b"data: ")
            await whole.send(proxy.post(HELLO))
            with anyio.fail_after(5):
                while gateway.opened < 2:
                    await anyio.sleep(0.005)
            proxy.admission.draining = True
            refused = await client.post(CHAT, json=HELLO)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
            assert "retry-after" in refused.headers
            proxy.admission.stopped.set()
            last = await heard(streamed, b"shutting_down")
            assert b"[DONE]" not in last
            answer = await heard(whole)
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b'"shutting_down"' in answer
        await gateway.all_closed(2, within_s=1)


SERVER = """
import sys
from contextlib import asynccontextmanager
import anyio
from tests.server.serving import *
from qwenproxy.server.app import bind, create_app, serve

drain_s, answer_s, start_s, flood = map(float, sys.argv[1:])
flooding = [Text("y" * 60_000)] * int(flood)
gateway = ScriptedGateway(lambda request: [START, Text("x"), *flooding, answer_s, END], cleanup_s=0.05)

@asynccontextmanager
async def engine():
    print("opening", flush=True)
    try:
        await anyio.sleep(start_s)
    except BaseException:
        print("start ended", flush=True)
        raise
    yield gateway
    print("engine closed", gateway.opened, gateway.closed, gateway.completed, flush=True)

settings = settings_for(drain_s=drain_s)
listener = bind(settings)
print(listener.getsockname()[1], flush=True)
anyio.run(serve, create_app(settings, engine), settings, listener)
"""


@contextmanager
def process(
    drain_s: float, answer_s: float, start_s: float = 0, flood: int = 0
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    arguments = [sys.executable, "-c", SERVER, str(drain_s), str(answer_s), str(start_s), str(flood)]
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            port = int(child.stdout.readline())
            assert child.stdout.readline() == "opening\n"
            yield child, port
        finally:
            child.kill()


def start_stream(port: int) -> socket.socket:
    body = json.dumps(STREAM)
    connection = socket.create_connection(("127.0.0.1", port), timeout=15)
    connection.sendall(
        f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
    )
    while b'"x"' not in connection.recv(65_536):
        pass
    return connection


def rest(connection: socket.socket) -> str:
    data = b""
    while piece := connection.recv(65_536):
        data += piece
    return data.decode()


unix = pytest.mark.skipif(sys.platform == "win32", reason="signals are sent to a process only on Unix")


@unix
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_running_answers_end(number: signal.Signals) -> None:
    with process(drain_s=15, answer_s=1.5) as (child, port), start_stream(port) as connection:
        child.send_signal(number)
        time.sleep(0.5)
        refused = httpx.post(f"http://127.0.0.1:{port}{CHAT}", json=HELLO, trust_env=False)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        assert rest(connection).rstrip().endswith("[DONE]\n\n\r\n0")
        assert child.wait(10) == 0
        assert child.stdout is not None
        assert child.stdout.read() == "engine closed 1 1 1\n"


@unix
def test_after_the_drain_answers_end_with_an_error() -> None:
    with process(drain_s=0.5, answer_s=FOREVER) as (child, port), start_stream(port) as connection:
        began = time.monotonic()
        child.send_signal(signal.SIGTERM)
        last = rest(connection)
        assert '"shutting_down"' in last
        assert "[DONE]" not in last
        assert child.wait(10) == 0
        assert time.monotonic() - began < 9
        assert child.stdout is not None
        assert child.stdout.read() == "engine closed 1 1 0\n"


@unix
def test_a_second_signal_ends_at_once() -> None:
    with process(drain_s=60, answer_s=FOREVER) as (child, port), start_stream(port) as connection:
        child.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        began = time.monotonic()
        child.send_signal(signal.SIGTERM)
        assert child.wait(10) == 0
        assert time.monotonic() - began < 9
        assert "[DONE]" not in rest(connection)
        assert child.stdout is not None
        assert child.stdout.read() == "engine closed 1 1 0\n"


@unix
def test_a_client_that_does_not_read_does_not_hold_up_the_end() -> None:
    with process(drain_s=0.2, answer_s=FOREVER, flood=2000) as (child, port):
        connections = [start_stream(port), socket.create_connection(("127.0.0.1", port))]
        child.send_signal(signal.SIGTERM)
        assert child.wait(10) == 0
        for connection in connections:
            connection.close()


@unix
def test_a_signal_during_the_start_ends_it() -> None:
    with process(drain_s=60, answer_s=FOREVER, start_s=60) as (child, _):
        child.send_signal(signal.SIGTERM)
        assert child.wait(10) == 0
        assert child.stdout is not None
        assert child.stdout.read() == "start ended\n"
