"""A small site of the shape the road needs; granian runs it over HTTP/2 and TLS for this folder's tests."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

PAGE = """<!doctype html><html><head><script src="/g/qwenweb/qwen-chat-fe/0.3.99/app.js"></script></head>
<body>small site</body></html>"""
APP = 'fetch("/api/v2/chats/?page=1&exclude_project=true");'
counts: Counter[str] = Counter()


async def home(request: Request) -> Response:
    if request.cookies.get("token") is None:
        return RedirectResponse("/auth")
    return HTMLResponse(PAGE)


async def sign_in_page(_: Request) -> Response:
    return HTMLResponse("<!doctype html><form>sign in</form>")


async def app_script(_: Request) -> Response:
    return Response(APP, media_type="text/javascript")


async def own_list(_: Request) -> Response:
    counts["lists"] += 1
    return JSONResponse({"success": True, "data": []}, headers={"x-actual-status-code": "200"})


async def echo(request: Request) -> Response:
    body = (await request.body()).decode()
    headers = {name: "; ".join(request.headers.getlist(name)) for name in request.headers}
    return JSONResponse({"headers": headers, "body": body, "method": request.method})


async def piece_bytes(request: Request) -> Response:
    """Pieces of odd sizes, made from the seed: the test makes the same ones."""
    dice = random.Random(int(request.query_params["seed"]))
    number = int(request.query_params["pieces"])

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(number):
            yield dice.randbytes(dice.choice([1, 2, 3, 5, 100, 1000, 3000]))
            if dice.random() < 0.3:
                await asyncio.sleep(0.001)

    return StreamingResponse(pieces(), media_type="application/octet-stream")


async def stamped(request: Request) -> Response:
    """`rate` frames a second, each with its number and the time it was made."""
    rate, frames = float(request.query_params["rate"]), int(request.query_params["frames"])

    async def pieces() -> AsyncIterator[bytes]:
        start = time.monotonic()
        for number in range(frames):
            pause = start + number / rate - time.monotonic()
            if pause > 0:
                await asyncio.sleep(pause)
            text = f'{{"choices":[{{"delta":{{"content":"word {number}","phase":"answer"}}}}]}}'
            yield f"data: {time.monotonic()} {number} {text}\n\n".encode()

    return StreamingResponse(pieces(), media_type="text/event-stream")


async def endless(request: Request) -> Response:
    counts["open"] += 1

    async def pieces() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"data: tick\n\n"
                await asyncio.sleep(0.02)
        finally:
            counts["open"] -= 1

    return StreamingResponse(pieces(), media_type="text/event-stream")


async def broken(_: Request) -> Response:
    """Breaks off in its body."""

    async def pieces() -> AsyncIterator[bytes]:
        yield b"the first half"
        await asyncio.sleep(0.05)
        raise ConnectionResetError

    return StreamingResponse(pieces(), media_type="text/event-stream")


async def silent(request: Request) -> Response:
    """Never answers."""
    counts["open"] += 1
    try:
        while (await request.receive())["type"] != "http.disconnect":
            pass
    finally:
        counts["open"] -= 1
    return Response()


async def told(request: Request) -> Response:
    return JSONResponse(counts)


app = Starlette(
    routes=[
        Route("/", home),
        Route("/auth", sign_in_page),
        Route("/g/qwenweb/qwen-chat-fe/0.3.99/app.js", app_script),
        Route("/api/v2/chats/", own_list),
        Route("/echo", echo, methods=["GET", "POST", "DELETE"]),
        Route("/bytes", piece_bytes),
        Route("/stamped", stamped, methods=["GET", "POST"]),
        Route("/endless", endless, methods=["GET", "POST"]),
        Route("/broken", broken),
        Route("/silent", silent),
        Route("/counts", told),
    ]
)
