from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from qwenproxy.api_keys import KeyRing
from qwenproxy.server.access import Gate
from tests.server.serving import HELLO, Running, ScriptedGateway, running

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
APP = "https://app.example"


def raw(
    proxy: Running, *headers: str, method: str = "GET", path: str = "/v1/models", body: bytes = b""
) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", *(header.replace("PORT", str(proxy.port)) for header in headers)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def code(answer: bytes) -> str:
    found: str = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"]
    return found


def header(answer: bytes, name: str) -> str | None:
    lines = answer.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")[1:]
    found = [line.partition(":")[2].strip() for line in lines if line.lower().startswith(name.lower() + ":")]
    return found[0] if found else None


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1:PORT",
        "localhost:PORT",
        "LocalHost:PORT",
        "[::1]:PORT",
        "host.docker.internal:PORT",
        "proxy.lan",
        "proxy.lan:PORT",
        "PROXY.LAN",
        "front.lan:8443",
    ],
)
async def test_hosts_that_may(host: str) -> None:
    async with running(ScriptedGateway(), allowed_hosts=("proxy.lan", "front.lan:8443")) as proxy:
        assert status(await proxy.say(raw(proxy, f"Host: {host}"))) == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:PORT",
        "127.0.0.1",
        "localhost",
        "127.0.0.1:1",
        "localhost.:PORT",
        "127.0.0.1.evil.example:PORT",
        "localhost.evil.example:PORT",
        "evil.example@127.0.0.1:PORT",
        "127.0.0.1:PORT@evil.example",
        "127.0.0.1:PORT:PORT",
        "127.0.0.2:PORT",
        "2130706433:PORT",
        "0x7f.1:PORT",
        "0.0.0.0:PORT",
        "[::]:PORT",
        "[0:0:0:0:0:0:0:1]:PORT",
        "::1:PORT",
        "127.0.0.1:PORT, evil.example",
        "front.lan",
        "front.lan:PORT",
        "sub.proxy.lan",
        ":PORT",
        "*",
        "null",
        "löcalhost:PORT",
    ],
)
async def test_hosts_that_may_not(host: str) -> None:
    async with running(ScriptedGateway(), allowed_hosts=("proxy.lan", "front.lan:8443")) as proxy:
        for path in ("/", "/v1/models", CHAT, "/nothing/here"):
            answer = await proxy.say(raw(proxy, f"Host: {host}", path=path))
            assert (status(answer), code(answer)) == (403, "origin_refused")
            assert b"QWENPROXY_ALLOWED_HOSTS" in answer


@pytest.mark.parametrize(
    "headers",
    [
        (),
        ("Host:",),
        ("Host: 127.0.0.1:PORT", "Host: evil.example"),
        ("Host: 127.0.0.1:PORT", "Host: 127.0.0.1:PORT"),
    ],
    ids=["none", "empty", "two", "the same twice"],
)
async def test_exactly_one_host(headers: tuple[str, ...]) -> None:
    async with running(ScriptedGateway()) as proxy:
        answer = await proxy.say(raw(proxy, *headers))
        assert (status(answer), code(answer)) == (400, "invalid_request")


async def test_refused_before_the_body_is_read() -> None:
    gateway = ScriptedGateway()
    async with running(gateway) as proxy:
        answer = await proxy.say(
            raw(
                proxy,
                "Host: evil.example",
                "Content-Type: application/json",
                "Content-Length: 999",
                method="POST",
                path=CHAT,
            )
        )
        assert status(answer) == 403
        assert not proxy.admission.inside
    assert not gateway.opened


OWN = "Host: 127.0.0.1:PORT"


@pytest.mark.parametrize(
    "headers",
    [
        ("Origin: http://127.0.0.1:PORT",),
        ("Origin: http://localhost:PORT", "Sec-Fetch-Site: same-site"),
        ("Origin: http://[::1]:PORT", "Sec-Fetch-Site: cross-site"),
        (f"Origin: {APP}", "Sec-Fetch-Site: cross-site"),
        ("Sec-Fetch-Site: none",),
        ("Sec-Fetch-Site: same-origin",),
        ("Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate"),
    ],
)
async def test_pages_that_may(headers: tuple[str, ...]) -> None:
    async with running(ScriptedGateway(), allowed_origins=(APP,)) as proxy:
        assert status(await proxy.say(raw(proxy, OWN, *headers))) == 200


@pytest.mark.parametrize(
    "headers",
    [
        ("Origin: null",),
        ("Origin:",),
        ("Origin: http://evil.example",),
        ("Origin: http://evil.example", "Sec-Fetch-Site: same-origin"),
        ("Origin: https://127.0.0.1:PORT",),
        ("Origin: http://127.0.0.1",),
        ("Origin: http://127.0.0.1:1",),
        ("Origin: http://127.0.0.1:PORT.evil.example",),
        ("Origin: http://host.docker.internal:PORT",),
        ("Origin: https://app.example.evil.example",),
        ("Origin: https://APP.example",),
        ("Origin: https://app.example/",),
        ("Origin: https://app.example:8443",),
        (f"Origin: {APP}", "Origin: http://evil.example"),
        (f"Origin: {APP}, http://evil.example",),
        ("Origin: http://evil.example", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate"),
        ("Sec-Fetch-Site: cross-site",),
        ("Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors"),
        ("Sec-Fetch-Site: same-site", "Sec-Fetch-Mode: cors"),
        ("Sec-Fetch-Site: something-new",),
        ("Sec-Fetch-Site: none", "Sec-Fetch-Site: cross-site"),
    ],
)
async def test_pages_that_may_not(headers: tuple[str, ...]) -> None:
    async with running(ScriptedGateway(), allowed_origins=(APP,)) as proxy:
        answer = await proxy.say(raw(proxy, OWN, *headers))
        assert (status(answer), code(answer)) == (403, "origin_refused")
        assert b"QWENPROXY_ALLOWED_ORIGINS" in answer
        assert header(answer, "Access-Control-Allow-Origin") is None


async def test_following_a_link_is_for_reading_only() -> None:
    gateway = ScriptedGateway()
    body = json.dumps(HELLO).encode()
    async with running(gateway) as proxy:
        answer = await proxy.say(
            raw(
                proxy,
                OWN,
                "Sec-Fetch-Site: cross-site",
                "Sec-Fetch-Mode: navigate",
                "Content-Type: application/json",
                f"Content-Length: {len(body)}",
                method="POST",
                path=CHAT,
                body=body,
            )
        )
        assert status(answer) == 403
    assert not gateway.opened


async def test_preflight_of_a_listed_origin() -> None:
    async with running(ScriptedGateway(), allowed_origins=(APP,)) as proxy:
        answer = await proxy.say(
            raw(
                proxy,
                OWN,
                f"Origin: {APP}",
                "Sec-Fetch-Site: cross-site",
                "Access-Control-Request-Method: POST",
                "Access-Control-Request-Headers: authorization,content-type,x-stainless-os",
                "Access-Control-Request-Private-Network: true",
                "Connection: close",
                method="OPTIONS",
                path=CHAT,
            )
        )
    assert status(answer) == 204
    assert header(answer, "Access-Control-Allow-Origin") == APP
    assert header(answer, "Access-Control-Allow-Headers") == "authorization,content-type,x-stainless-os"
    assert "POST" in (header(answer, "Access-Control-Allow-Methods") or "")
    assert header(answer, "Access-Control-Allow-Private-Network") == "true"
    assert header(answer, "Access-Control-Allow-Credentials") is None
    assert header(answer, "Vary") == "Origin"


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:PORT"])
async def test_preflight_of_others_allows_nothing(origin: str) -> None:
    async with running(ScriptedGateway(), allowed_origins=(APP,)) as proxy:
        answer = await proxy.say(
            raw(
                proxy,
                OWN,
                f"Origin: {origin}",
                "Access-Control-Request-Method: POST",
                method="OPTIONS",
                path=CHAT,
            )
        )
    assert status(answer) in {403, 405}
    assert b"access-control-allow" not in answer.lower()


@pytest.mark.parametrize(
    ("path", "expected"), [("/v1/models", 200), ("/v1/nothing", 404), ("/v1/chat/completions", 415)]
)
async def test_a_listed_origin_may_read_errors_too(path: str, expected: int) -> None:
    more = ("Content-Length: 2",) if expected == 415 else ()
    async with running(ScriptedGateway(), allowed_origins=(APP,)) as proxy:
        answer = await proxy.say(
            raw(
                proxy,
                OWN,
                f"Origin: {APP}",
                *more,
                method="POST" if more else "GET",
                path=path,
                body=b"{}" if more else b"",
            )
        )
    assert status(answer) == expected
    assert header(answer, "Access-Control-Allow-Origin") == APP


async def test_without_listed_origins_there_is_no_cors_header() -> None:
    async with running(ScriptedGateway()) as proxy:
        answer = await proxy.say(raw(proxy, OWN, "Origin: http://127.0.0.1:PORT"))
    assert status(answer) == 200
    assert b"access-control" not in answer.lower()


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        (["application/json"], 200),
        (["Application/JSON; charset=utf-8"], 200),
        ([], 415),
        (["text/plain"], 415),
        (["application/x-www-form-urlencoded"], 415),
        (["multipart/form-data; boundary=x"], 415),
        (["application/json-seq"], 415),
        (["text/plain; application/json"], 415),
        (["application/json", "text/plain"], 415),
    ],
)
async def test_body_types(types: list[str], expected: int) -> None:
    body = json.dumps(HELLO).encode()
    async with running(ScriptedGateway()) as proxy:
        answer = await proxy.say(
            raw(
                proxy,
                OWN,
                *(f"Content-Type: {kind}" for kind in types),
                f"Content-Length: {len(body)}",
                method="POST",
                path=CHAT,
                body=body,
            )
        )
        assert status(answer) == expected
        if expected == 415:
            assert code(answer) == "unsupported_media_type"


async def test_a_chunked_body_needs_its_type_too() -> None:
    async with running(ScriptedGateway()) as proxy:
        answer = await proxy.say(
            raw(
                proxy,
                OWN,
                "Transfer-Encoding: chunked",
                method="POST",
                path=CHAT,
                body=b"2\r\n{}\r\n0\r\n\r\n",
            )
        )
        assert status(answer) == 415


@pytest.mark.parametrize(
    "path",
    [
        "/v1/../models",
        "/v1/%2e%2e/models",
        "/v1/./models",
        "/v1/models%00",
        "/v1\\models",
        "/v1/%5cmodels",
        "/v1/models%0d%0aX-Evil:1",
    ],
)
async def test_paths_that_cannot_be(path: str) -> None:
    async with running(ScriptedGateway()) as proxy:
        answer = await proxy.say(raw(proxy, OWN, path=path))
        assert (status(answer), code(answer)) == (400, "invalid_request")


async def test_a_version_below_api_and_more_slashes_change_nothing() -> None:
    same = ["/api/models", "/api/v1/models", "/api/v2/models/", "/api/models/v1", "//v1//models"]
    async with running(ScriptedGateway()) as proxy:
        for path in (*same, "/api/v2/v1/models/qwen3-max/v2", "//api///v1//models"):
            assert status(await proxy.say(raw(proxy, OWN, path=path))) == 200, path


@pytest.mark.parametrize(
    "path", ["/V1/models", "/v1%2fmodel", "/v1/models.json", "/v1", "/v1/v1/models", "/api/v3/models"]
)
async def test_paths_that_are_not_ours(path: str) -> None:
    async with running(ScriptedGateway()) as proxy:
        answer = await proxy.say(raw(proxy, OWN, path=path))
        assert (status(answer), code(answer)) == (404, "not_found")


ODD_HEADERS: dict[str, list[str]] = {
    "10 000 headers": [f"X-{n}: 1" for n in range(10_000)],
    "300 headers": [f"X-{n}: 1" for n in range(300)],
    "a header of 2 MB": ["X-Big: " + "x" * 2_000_000],
    "a header of 70 kB": ["X-Big: " + "x" * 70_000],
}


@pytest.mark.parametrize("more", ODD_HEADERS.values(), ids=ODD_HEADERS.keys())
async def test_too_many_headers(more: list[str]) -> None:
    async with running(ScriptedGateway()) as proxy:
        try:
            answer = await proxy.say(raw(proxy, OWN, *more))
        except OSError:
            answer = b"HTTP/1.1 400 closed while it was still being sent"
        assert status(answer) in {400, 413}
        assert status(await proxy.say(raw(proxy, OWN))) == 200


async def test_the_page_of_another_own_name() -> None:
    async with running(ScriptedGateway(), host="127.0.0.3") as proxy:
        good = await proxy.say(raw(proxy, "Host: 127.0.0.3:PORT", "Origin: http://127.0.0.3:PORT"))
        assert status(good) == 200


# ---- where other computers may call ----

KEY = "a-key-for-the-test"


@asynccontextmanager
async def public(folder: Path) -> AsyncGenerator[Running]:
    """Listens on every address of this computer, which takes a key."""
    (folder / "keys").write_text(KEY)
    ring = KeyRing([folder / "keys"])
    ring.open()
    async with running(ScriptedGateway(), gate=Gate(ring), host="0.0.0.0") as proxy:
        yield Running(proxy.port, proxy.app)


async def test_an_address_cannot_be_rebound(tmp_path: Path) -> None:
    good = ["127.0.0.1:PORT", "localhost:PORT", "192.168.1.5:PORT", "[fe80::1]:PORT", "[FE80::1]:PORT"]
    bad = [
        "192.168.1.5",
        "192.168.1.5:1",
        "evil.example:PORT",
        "192.168.1.5.evil.example:PORT",
        "3232235781:PORT",
        "0xc0a80105:PORT",
        "192.168.261:PORT",
        "192.168.01.5:PORT",
        "[fe80::1%25eth0]:PORT",
        "[fe80:0::1]:PORT",
        "[192.168.1.5]:PORT",
        "[evil]:PORT",
        "[]:PORT",
        "[:PORT",
        "fe80::1:PORT",
    ]
    async with public(tmp_path) as proxy:
        for host in good:
            assert status(await proxy.say(raw(proxy, f"Host: {host}", f"x-api-key: {KEY}"))) == 200, host
        for host in bad:
            answer = await proxy.say(raw(proxy, f"Host: {host}", f"x-api-key: {KEY}"))
            assert (status(answer), code(answer)) == (403, "origin_refused"), host


async def test_of_addresses_only_a_page_of_the_same_may_call(tmp_path: Path) -> None:
    host = "Host: 192.168.1.5:PORT"
    async with public(tmp_path) as proxy:
        for origin, expected in (
            ("http://192.168.1.5:PORT", 200),
            ("http://192.168.1.6:PORT", 403),
            ("http://192.168.1.5", 403),
            ("https://192.168.1.5:PORT", 403),
            ("http://evil.example:PORT", 403),
            ("null", 403),
        ):
            answer = await proxy.say(raw(proxy, host, f"Origin: {origin}", f"x-api-key: {KEY}"))
            assert status(answer) == expected, origin
