"""Clients that leave: the upstream must be closed within a second, every time, and nothing stays open.

.venv/bin/python -m tests.proof.leave [--count 300]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, get_args

import psutil

from tests.serve import Proxy, Standin, running_proxy, running_standin, until

When = Literal["mid-stream", "before the first byte", "unstreamed"]

PROMPTS: dict[When, str] = {
    "mid-stream": "{{standin: long n=2000}} Tell me all.",
    "before the first byte": "{{standin: hang_head}} Tell me all.",
    "unstreamed": "{{standin: long n=2000}} Tell me all.",
}


@dataclass(frozen=True)
class Left:
    when: When
    closed_s: float


async def leave(proxy: Proxy, standin: Standin, when: When, wait_s: float) -> Left:
    """One client that asks, waits until the answer runs, goes; how long the answer outlives it."""
    asked = await asyncio.to_thread(standin.state)
    body = {
        "model": "qwen3.7-plus",
        "stream": when != "unstreamed",
        "messages": [{"role": "user", "content": PROMPTS[when]}],
    }
    text = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (proxy.port, len(text), text)
    )
    if when == "mid-stream":
        await asyncio.wait_for(reader.readuntil(b"content"), 30)
    else:
        await standin.until(lambda state: state["opened"] > asked["opened"])
    await asyncio.sleep(wait_s)
    writer.transport.abort()
    gone_s = time.monotonic()
    await standin.until(lambda state: state["open"] == 0, 10)
    return Left(when, time.monotonic() - gone_s)


async def prove(proxy: Proxy, standin: Standin, count: int) -> list[Left]:
    kinds = itertools.cycle(get_args(When))
    return [
        await leave(proxy, standin, kind, random.uniform(0, 0.15)) for kind in itertools.islice(kinds, count)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=300)
    count = parser.parse_args().count
    with (
        TemporaryDirectory() as folder,
        running_standin(Path(folder), era="C") as standin,
        running_proxy(Path(folder), standin) as proxy,
    ):
        asyncio.run(prove(proxy, standin, 3))
        before = psutil.Process(proxy.pid).num_fds()
        left = asyncio.run(prove(proxy, standin, count))
        until(lambda: not standin.chats())
        for kind in get_args(When):
            times = sorted(one.closed_s for one in left if one.when == kind)
            print(f"{kind}: closed in {times[len(times) // 2]:.2f} s, at worst {times[-1]:.2f} s")
        state = standin.state()
        print(f"stand-in: {state['open']} open, {len(standin.chats())} chats left")
        print(f"proxy: {psutil.Process(proxy.pid).num_fds() - before:+} file descriptors")
        if max(one.closed_s for one in left) > 1:
            raise SystemExit("an answer outlived its client by more than a second")


if __name__ == "__main__":
    main()
