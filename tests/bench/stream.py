"""The same streamed answers straight from the stand-in and through the whole proxy, in one run.

    .venv/bin/python -m tests.bench.stream [--streams 1 4 16 64] [--frames 500] [--rate 100]

Straight: a plain HTTP/2 client (httpx) that makes a chat and reads the answer, as the proxy does. Through: a
plain HTTP/1.1 client of the proxy, one account, `SLOTS_PER_ACCOUNT=80`. Every frame carries its number and
the moment it was made (the system's monotonic clock), so that loss and order are checked and the delay is the
frame's own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from tests.serve import Proxy, Standin, running_proxy, running_standin

STAMP = re.compile(rb"(\d+):(\d{6,}) ")
ACCOUNT = "bench@example.com"
HEADERS = {"Version": "0.3.12", "source": "web", "Accept": "application/json", "Timezone": "bench"}


@dataclass
class Stream:
    """What one client saw of one answer."""

    first_s: float = 0.0
    delays_s: list[float] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    tail: bytes = b""

    def take(self, piece: bytes, began_s: float) -> None:
        now_s = time.monotonic()
        text = self.tail + piece
        end = 0
        for found in STAMP.finditer(text):
            end = found.end()
            self.first_s = self.first_s or now_s - began_s
            self.numbers.append(int(found[1]))
            self.delays_s.append(now_s - int(found[2]) / 1e9)
        self.tail = text[end:][-200:]


@dataclass(frozen=True)
class Row:
    road: str
    streams: int
    first_ms: float
    p50_ms: float
    p99_ms: float
    frames_per_s: float
    lost: int
    cpu: str


def prompt(frames: int, rate: float) -> str:
    return f"{{{{standin: count n={frames} rate={rate:g}}}}}"


class Direct:
    """The plain client: the account's own token, one connection, HTTP/2."""

    def __init__(self, standin: Standin) -> None:
        standin.options(cold_check=False)
        token, cookie = standin.sign_in(ACCOUNT)
        self._http = httpx.AsyncClient(
            http2=True,
            verify=False,
            base_url=standin.site,
            timeout=120,
            limits=httpx.Limits(max_connections=1),
        )
        self._http.cookies.set(cookie["name"], cookie["value"])
        self._http.headers["Authorization"] = f"Bearer {token}"

    async def _post(self, path: str, body: dict[str, object]) -> httpx.Response:
        return await self._http.post(
            path, json=body, headers={**HEADERS, "X-Request-Id": os.urandom(8).hex()}
        )

    async def pieces(self, text: str) -> AsyncIterator[bytes]:
        made = await self._post(
            "/api/v2/chats/new",
            {
                "chatId": "",
                "models": ["qwen3.7-plus"],
                "timestamp": 1,
                "chat_type": "t2t",
                "chat_mode": "normal",
            },
        )
        chat = made.json()["data"]["id"]
        features = {
            "thinking_enabled": False,
            "output_schema": "phase",
            "thinking_mode": "Fast",
            "auto_search": False,
        }
        message = {
            "id": None, "fid": "f", "parentId": None, "parent_id": None, "childrenIds": [], "role": "user",
            "content": text, "user_action": "chat", "files": [], "timestamp": 1, "models": ["qwen3.7-plus"],
            "model": "", "chat_type": "t2t", "sub_chat_type": "t2t", "feature_config": features,
            "extra": {"meta": {"subChatType": "t2t"}},
        }  # fmt: skip
        body = {
            "stream": True, "version": "2.1", "incremental_output": True, "chat_id": chat,
            "chat_mode": "normal",
            "model": "qwen3.7-plus", "parent_id": None, "messages": [message], "timestamp": 1,
        }  # fmt: skip
        request = self._http.stream(
            "POST",
            f"/api/v2/chat/completions?chat_id={chat}",
            json=body,
            headers={**HEADERS, "X-Request-Id": os.urandom(8).hex(), "X-Accel-Buffering": "no"},
        )
        async with request as answer:
            async for piece in answer.aiter_raw():
                yield piece

    async def close(self) -> None:
        await self._http.aclose()


class Through:
    """The plain client of the proxy: a socket and nothing else."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def pieces(self, text: str) -> AsyncIterator[bytes]:
        body = json.dumps(
            {"model": "qwen3.7-plus", "stream": True, "messages": [{"role": "user", "content": text}]}
        ).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\n"
            b"Connection: close\r\nContent-Length: %d\r\n\r\n%b" % (self._port, len(body), body)
        )
        try:
            while piece := await reader.read(65536):
                yield piece
        finally:
            writer.close()


async def read(road: Direct | Through, text: str) -> Stream:
    stream = Stream()
    began_s = time.monotonic()
    async for piece in road.pieces(text):
        stream.take(piece, began_s)
    return stream


async def measure(
    name: str, road: Direct | Through, watched: dict[str, int], streams: int, args: argparse.Namespace
) -> Row:
    # Untimed, on both roads: the first burst of a size warms connections and compiled code.
    await asyncio.gather(*(read(road, prompt(20, args.rate)) for _ in range(streams)))
    await asyncio.sleep(2)
    before, began_s = cpu(watched), time.monotonic()
    seen = await asyncio.gather(*(read(road, prompt(args.frames, args.rate)) for _ in range(streams)))
    took_s = time.monotonic() - began_s
    used = {label: seconds - before.get(label, 0.0) for label, seconds in cpu(watched).items()}
    wrong = sum(stream.numbers != list(range(args.frames)) for stream in seen)
    if wrong:
        print(f"{name}: {wrong} of {streams} streams lost, doubled or reordered frames", file=sys.stderr)
    delays = sorted(delay for stream in seen for delay in stream.delays_s)
    return Row(
        name,
        streams,
        statistics.median(stream.first_s for stream in seen) * 1000,
        delays[len(delays) // 2] * 1000,
        delays[int(len(delays) * 0.99)] * 1000,
        len(delays) / took_s,
        wrong,
        " ".join(f"{label} {100 * seconds / took_s:.0f} %" for label, seconds in used.items()),
    )


def cpu(watched: dict[str, int]) -> dict[str, float]:
    """CPU seconds so far: this client, the stand-in, and the proxy's Python, driver and Chromium apart."""
    found = {"client": sum(psutil.Process().cpu_times()[:2])}
    for name, pid in watched.items():
        for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
            try:
                program = process.name()
                label = (
                    name
                    if process.pid == pid or name != "proxy"
                    else "driver"
                    if "node" in program
                    else "chromium"
                )
                found[label] = found.get(label, 0.0) + sum(process.cpu_times()[:2])
            except psutil.Error:
                continue
    return found


def memory(pid: int) -> dict[str, float]:
    """Proportional memory (PSS), MiB: a sum of RSS counts Chromium's shared pages many times."""
    found: dict[str, float] = {}
    for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
        label = "proxy" if process.pid == pid else "driver" if "node" in process.name() else "chromium"
        text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        pss = next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
        found[label] = found.get(label, 0.0) + pss / 1024
    return found


def run(args: argparse.Namespace, folder: Path) -> None:
    with running_standin(folder, era="B", http2=True) as standin:
        began_s = time.monotonic()
        with running_proxy(folder, standin, (ACCOUNT,), slots_per_account=80) as proxy:
            ready_s = time.monotonic() - began_s
            asyncio.run(compare(args, standin, proxy, ready_s))
            print("memory (PSS, MiB): " + ", ".join(f"{k} {v:.0f}" for k, v in memory(proxy.pid).items()))


async def compare(args: argparse.Namespace, standin: Standin, proxy: Proxy, ready_s: float) -> None:
    direct, through = Direct(standin), Through(proxy.port)
    first = await read(through, prompt(1, 100))
    print(f"from command to ready {ready_s:.1f} s, first answer {first.first_s:.2f} s later")
    watched = {"stand-in": standin.process.pid, "proxy": proxy.pid}
    rows: list[Row] = []
    for streams in args.streams:
        for name, road in (("direct", direct), ("proxy", through)):
            rows.append(await measure(name, road, watched, streams, args))
            await asyncio.sleep(2)
    await direct.close()
    report(rows)


def report(rows: list[Row]) -> None:
    print(
        "| streams | road | first piece ms | delay p50 ms | p99 ms | added p50 | added p99 | frames/s | CPU |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    base: dict[int, Row] = {row.streams: row for row in rows if row.road == "direct"}
    for row in rows:
        plain = base[row.streams]
        added = (
            ("", "")
            if row is plain
            else (f"{row.p50_ms - plain.p50_ms:.1f}", f"{row.p99_ms - plain.p99_ms:.1f}")
        )
        share = "" if row is plain else f" ({100 * row.frames_per_s / plain.frames_per_s:.0f} %)"
        print(
            f"| {row.streams} | {row.road} | {row.first_ms:.0f} | {row.p50_ms:.1f} | {row.p99_ms:.1f} "
            f"| {added[0]} | {added[1]} | {row.frames_per_s:.0f}{share} | {row.cpu} |"
        )
    lost = sum(row.lost for row in rows)
    print(f"streams with lost, doubled or reordered frames: {lost}")
    if lost:
        raise SystemExit(1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--frames", type=int, default=500)
    parser.add_argument("--rate", type=float, default=100)
    with tempfile.TemporaryDirectory() as folder:
        run(parser.parse_args(), Path(folder))


if __name__ == "__main__":
    main()
