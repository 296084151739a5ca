"""The stand-in as a server: its command, in this process, over HTTP/2; its lists and its records."""

from __future__ import annotations

import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import h2.connection
import h2.events
import httpx
import pytest

from qwenproxy.standin.memory import Options
from qwenproxy.standin.site import Standin as StandinApp
from qwenproxy.standin.site import listening_socket
from tests.serve import ROOT, Standin, clean_environment, running_standin, until
from tests.standin.visitor import Visitor, deltas, new_body, parsed, question, text_of

COMMAND = [sys.executable, "-m", "qwenproxy.standin"]


@pytest.mark.anyio
async def test_it_serves_in_the_loop_of_somebody_else() -> None:
    async with StandinApp(Options(era="B")).serve() as addresses, httpx.AsyncClient() as http:
        assert addresses.site != addresses.auth
        assert "stand-in" in (await http.get(addresses.site)).text
    with pytest.raises(httpx.ConnectError):
        httpx.get(addresses.site)


def test_small_pieces_do_not_wait_for_larger_ones() -> None:
    with listening_socket("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP, "asyncio looks at this before it sets TCP_NODELAY"


@pytest.mark.anyio
async def test_an_error_inside_comes_out_as_itself() -> None:
    with pytest.raises(KeyError):
        async with StandinApp().serve():
            raise KeyError


@pytest.mark.anyio
async def test_it_stops_with_an_answer_still_running() -> None:
    app = StandinApp(Options(cold_check=False))
    async with httpx.AsyncClient() as http:
        async with app.serve() as addresses:
            made = (await http.post(f"{addresses.site}/__standin__/token", json={"account": "a@b"})).json()
            headers = {
                "version": "1",
                "source": "web",
                "x-request-id": "1",
                "authorization": f"Bearer {made['token']}",
                "cookie": f"{made['cookie']['name']}={made['cookie']['value']}",
            }
            new = await http.post(f"{addresses.site}/api/v2/chats/new", json=new_body(), headers=headers)
            chat = new.json()["data"]["id"]
            request = http.build_request(
                "POST",
                f"{addresses.site}/api/v2/chat/completions",
                json=question(chat, "{{standin: long n=1000}}"),
                headers=headers,
            )
            answer = await http.send(request, stream=True)
            began_s = time.monotonic()
        assert time.monotonic() - began_s < 4
        await answer.aread()


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("http2", [False, True])
def test_the_command_ends_well_when_told(tmp_path: Path, stop: signal.Signals, http2: bool) -> None:
    with running_standin(tmp_path, http2=http2) as standin, Visitor(standin):
        standin.process.send_signal(stop)
        assert standin.process.wait(10) == 0


def test_a_taken_port_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        found = subprocess.run(
            [*COMMAND, "--port", port],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=clean_environment(),
            check=False,
            timeout=15,
        )
    assert found.returncode == 2
    assert len(found.stderr.splitlines()) == 1
    assert "Address already in use" in found.stderr


def test_one_port_can_play_both_hosts(tmp_path: Path) -> None:
    with running_standin(tmp_path, arguments=["--auth-port", "same"]) as standin:
        assert standin.site == standin.auth
        assert httpx.get(standin.site).status_code == 200
        refused = httpx.get(f"{standin.auth}/api/v2/auths/refresh")
        assert refused.json()["data"]["code"] == "Unauthorized"


def test_http2_carries_many_answers_on_one_connection(h2_standin: Standin) -> None:
    with Visitor(h2_standin) as visitor:
        answer = visitor.ask("{{standin: say text=Hi}}")
    assert answer.http_version == "HTTP/2"
    assert text_of(parsed(answer.text)) == "Hi"


@pytest.mark.parametrize("name", ["long", "hang_before_head", "hang_after_head"])
def test_a_reset_stream_counts_as_a_client_that_left(h2_standin: Standin, name: str) -> None:
    with Visitor(h2_standin) as visitor:
        chat = visitor.new_chat()
        cookies = "; ".join(f"{name}={value}" for name, value in visitor.http.cookies.items())
        headers = {**visitor.headers(), "cookie": cookies}
    body = httpx.Request("POST", h2_standin.site, json=question(chat, f"{{{{standin: {name}}}}}")).read()
    with _connection(h2_standin) as wire:
        protocol = h2.connection.H2Connection()
        protocol.initiate_connection()
        path = f"/api/v2/chat/completions?chat_id={chat}"
        first = [(":method", "POST"), (":authority", "x"), (":scheme", "https"), (":path", path)]
        protocol.send_headers(1, [*first, *((key.lower(), value) for key, value in headers.items())])
        protocol.send_data(1, body, end_stream=True)
        wire.sendall(protocol.data_to_send())
        until(lambda: h2_standin.state()["open"] == 1)
        protocol.reset_stream(1, error_code=8)
        wire.sendall(protocol.data_to_send())
        until(lambda: h2_standin.state()["aborted"] == 1)
    assert h2_standin.state()["open"] == 0


def _connection(standin: Standin) -> ssl.SSLSocket:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    address = httpx.URL(standin.site)
    assert address.port
    return context.wrap_socket(
        socket.create_connection((address.host, address.port)), server_hostname="localhost"
    )


def test_every_answer_says_its_real_status_and_its_request(standin: Standin) -> None:
    answer = httpx.get(f"{standin.site}/api/v2/nowhere", headers={"x-request-id": "mine"})
    assert answer.status_code == 200
    assert answer.headers["x-actual-status-code"] == "404"
    assert answer.headers["x-request-id"] == "mine"
    assert answer.json()["request_id"] == "mine"


def test_the_models_of_the_reference(standin: Standin) -> None:
    with Visitor(standin) as visitor:
        listed = visitor.call("GET", "/api/v2/models/").json()["data"]["data"]
    assert len(httpx.get(f"{standin.site}/api/v2/models/").json()["data"]["data"]) == 3
    assert httpx.get(f"{standin.site}/api/models").json()["data"] == listed
    ids = [model["id"] for model in listed]
    assert ids[:6] == [
        "qwen3.7-plus",
        "qwen3.8-max",
        "qwen3.7-max",
        "qwen3.6-plus",
        "qwen3.5-plus",
        "qwen3.5-omni-plus",
    ]
    metas = {model["id"]: model["info"]["meta"] for model in listed}
    assert metas["qwen3.8-max-preview"]["think_skip"] == {"enable": False}
    assert metas["qwen3.6-max-preview"]["abilities"]["thinking"] == 4
    assert metas["qwen3.5-omni-plus"]["abilities"]["thinking"] == 2
    assert metas["qwen3.7-plus"]["max_context_length"] == 1_000_000


def test_a_model_may_be_served_without_being_listed(standin: Standin) -> None:
    with Visitor(standin) as visitor:
        assert text_of(visitor.frames("{{standin: say text=Hi}}", model="qwen3-coder-plus")) == "Hi"
        refused = visitor.call("POST", "/api/v2/chats/new", new_body(models=["gpt-9"])).json()
    assert refused["data"]["code"] == "Not_Found"


def test_chats_are_listed_renamed_and_deleted(standin: Standin) -> None:
    with Visitor(standin) as visitor, Visitor(standin, "two@example.com") as other:
        first, second, theirs = visitor.new_chat(), visitor.new_chat(), other.new_chat()
        visitor.call("POST", f"/api/v2/chats/{first}", {"title": "OpenAI API Chat"})
        listed = visitor.call("GET", "/api/v2/chats/?page=1").json()["data"]
        assert [(row["id"], row["title"]) for row in listed] == [
            (second, "New chat"),
            (first, "OpenAI API Chat"),
        ]
        assert visitor.call("DELETE", f"/api/v2/chats/{first}").json()["data"] == {"status": True}
        assert visitor.call("DELETE", f"/api/v2/chats/{theirs}").json()["data"]["code"] == "Not_Found"
        visitor.call("POST", "/api/v2/chats/batch_delete", {"ids": [second, theirs]})
        assert standin.state()["chats"] == {"two@example.com": [theirs]}
        other.call("DELETE", "/api/v2/chats/")
    assert standin.chats() == []


def test_deleting_a_busy_chat_can_be_refused(standin: Standin) -> None:
    standin.options(refuse_busy_delete=True, settle_s=60)
    with Visitor(standin) as visitor:
        chat = visitor.new_chat()
        visitor.frames("{{standin: say text=Hi}}", chat)
        refused = visitor.call("DELETE", f"/api/v2/chats/{chat}").json()
    assert refused["data"]["details"] == "The chat is in progress!"


def test_what_came_in_is_remembered_without_secrets(standin: Standin) -> None:
    with Visitor(standin) as visitor:
        visitor.ask("{{standin: say text=Hi}} Hello")
        httpx.post(f"{standin.auth}/api/v2/auths/signin", json={"email": "a@b", "password": "s3cret-word"})
        (asked,) = standin.received("/api/v2/chat/completions")
        assert asked["account"] == "one@example.com"
        assert asked["bearer"] is True
        assert asked["headers"]["version"] == "0.3.12"
        assert asked["body"]["messages"][0]["content"].endswith("Hello")
        everything = str(standin.received())
        assert "s3cret-word" not in everything
        assert visitor.token not in everything


def test_a_reset_goes_back_to_the_start(standin: Standin) -> None:
    standin.options(settle_s=9)
    with Visitor(standin) as visitor:
        chat = visitor.new_chat()
        with visitor.asking("{{standin: long n=1000}}", chat) as answer:
            pieces = answer.iter_raw()
            next(pieces)
            standin.reset()
            with pytest.raises(httpx.RemoteProtocolError):
                list(pieces)
    state = standin.state()
    assert (state["opened"], state["failed"], state["sessions"], state["chats"]) == (0, 0, [], {})
    assert state["options"]["settle_s"] == 0


def test_its_marks_never_reach_the_answer(standin: Standin) -> None:
    standin.options(pieces_per_s=2000)
    with Visitor(standin) as visitor:
        said = text_of(visitor.frames("Hello {{standin: plain}} you {{standin: no_such_thing}}"))
        assert "standin:" not in said
        assert '"Hello  you"' in said or '"Hello you"' in said
        assert list(deltas(visitor.frames("{{standin: say 'broken}} x")))


def test_the_package_starts_from_anywhere(tmp_path: Path) -> None:
    assert (ROOT / "qwenproxy" / "standin" / "page.js").is_file()
    found = subprocess.run(
        [*COMMAND, "--help"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=clean_environment(),
        check=True,
    )
    assert "--access-token-s" in found.stdout
