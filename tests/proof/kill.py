"""Renderer, browser and driver killed under running streams: honest ends, and a good answer soon after.

.venv/bin/python -m tests.proof.kill [--rounds 10]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType

import httpx
import psutil

from tests.serve import Proxy, running_proxy, running_standin

STREAMS = 3
ENDS_S = 5.0
"""Within this a stream whose browser died must have ended, and the next answer must have come."""

VICTIMS: MappingProxyType[str, Callable[[list[str]], bool]] = MappingProxyType(
    {
        "renderer": lambda command: "--type=renderer" in command,
        "browser": lambda command: (
            "chrom" in command[0] and not any(c.startswith("--type=") for c in command)
        ),
        "driver": lambda command: "run-driver" in command,
    }
)


@dataclass(frozen=True)
class Ended:
    victim: str
    ended_s: float
    next_s: float
    codes: tuple[str, ...]


def victims(proxy: Proxy, name: str) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(proxy.pid).children(recursive=True):
        try:
            command = process.cmdline()
        except psutil.Error:
            continue
        if command and VICTIMS[name](command):
            found.append(process)
    return found


async def stream(http: httpx.AsyncClient, begun: asyncio.Event) -> str:
    """The code of the error event that ends the stream; whatever else ends it is a failed proof."""
    body = {
        "model": "qwen",
        "stream": True,
        "messages": [{"role": "user", "content": "{{standin: long n=3000}}"}],
    }
    last = ""
    async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200, await answer.aread()
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                last = line.removeprefix("data: ")
            if '"content":"S' in line or '"content":" ' in line:
                begun.set()
    assert last not in {"", "[DONE]"}, "a stream whose browser died ended as if it were whole"
    return str(json.loads(last)["error"]["code"])


async def ask(http: httpx.AsyncClient) -> None:
    body = {"model": "qwen", "messages": [{"role": "user", "content": "{{standin: say text=back}}"}]}
    answer = await http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == "back"


async def strike(proxy: Proxy, victim: str) -> Ended:
    async with httpx.AsyncClient(base_url=proxy.base, timeout=60) as http, asyncio.TaskGroup() as tasks:
        begun = [asyncio.Event() for _ in range(STREAMS)]
        streams = [tasks.create_task(stream(http, event)) for event in begun]
        for event in begun:
            await asyncio.wait_for(event.wait(), 30)
        for process in victims(proxy, victim):
            process.kill()
        struck_s = time.monotonic()
        codes = tuple(await asyncio.gather(*streams))
        ended_s = time.monotonic() - struck_s
        await ask(http)
        return Ended(victim, ended_s, time.monotonic() - struck_s, codes)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    worst_s = 0.0
    with (
        TemporaryDirectory() as folder,
        running_standin(Path(folder), era="C") as standin,
        running_proxy(Path(folder), standin, ("one@example.com", "two@example.com")) as proxy,
    ):
        for victim in VICTIMS:
            ends = [asyncio.run(strike(proxy, victim)) for _ in range(rounds)]
            ended, following = (sorted(e.ended_s for e in ends), sorted(e.next_s for e in ends))
            codes = sorted({code for end in ends for code in end.codes})
            middle = rounds // 2
            print(
                f"{victim}: streams ended in {ended[middle]:.2f} s, at worst {ended[-1]:.2f}; "
                f"next answer after {following[middle]:.2f} s, at worst {following[-1]:.2f}; ends: {codes}"
            )
            worst_s = max(worst_s, following[-1])
    if worst_s > ENDS_S:
        raise SystemExit(f"an answer came only {worst_s:.1f} s after the kill")


if __name__ == "__main__":
    main()
