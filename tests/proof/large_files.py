"""Many large uploads at once: the proxy's memory stays flat, every byte arrives, and nothing is left behind.

Also when the proxy is killed in the middle of them and started again.

.venv/bin/python -m tests.proof.large_files [--count 50] [--size 50]
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import signal
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import httpx
import psutil

from tests.serve import Proxy, Standin, running_proxy, running_proxy_of, running_standin, until_async

BLOCK = os.urandom(1 << 16)
FILM = b"\x00\x00\x00\x18ftypisom\x00\x00\x02\x00isommp42"
"""A film's beginning: the service takes films of this size, and reads nothing in them (protocol §9.3)."""
HEAD = b'--x\r\nContent-Disposition: form-data; name="file"; filename="film.mp4"\r\n\r\n'
END = b"\r\n--x--\r\n"
FLAT_BYTES = 96 << 20
"""How much larger the proxy may become: buffers of uploads that run, however many wait."""
LOOK_S = 0.1


@dataclass(frozen=True)
class Film:
    """A file that is nowhere whole."""

    number: int
    size: int

    def pieces(self) -> Iterator[bytes]:
        head = FILM + b"%012d" % self.number
        yield head
        left = self.size - len(head)
        while left > 0:
            yield BLOCK[:left]
            left -= len(BLOCK)

    def sha256(self) -> str:
        digest = hashlib.sha256()
        for piece in self.pieces():
            digest.update(piece)
        return digest.hexdigest()


@dataclass
class Outcome:
    before_bytes: int = 0
    most_bytes: int = 0
    """Resident memory of the proxy before, and at its largest."""
    refused: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    """Files whose content did not arrive as it was sent."""
    single: list[str] = field(default_factory=list)
    """Objects that came in one piece, though large."""
    left: list[str] = field(default_factory=list)
    """Temporary files."""

    @property
    def grown_bytes(self) -> int:
        return self.most_bytes - self.before_bytes

    @property
    def holds(self) -> bool:
        found = (self.refused, self.wrong, self.single, self.left)
        return not any(found) and self.grown_bytes < FLAT_BYTES


async def _form(film: Film) -> AsyncGenerator[bytes]:
    yield HEAD
    for piece in film.pieces():
        yield piece
    yield END


async def upload(client: httpx.AsyncClient, film: Film) -> httpx.Response:
    headers = {
        "Content-Type": "multipart/form-data; boundary=x",
        "Content-Length": str(len(HEAD) + film.size + len(END)),
    }
    return await client.post("/api/files/upload", content=_form(film), headers=headers)


def _client(proxy: Proxy, count: int) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=count)
    return httpx.AsyncClient(base_url=proxy.base, timeout=600, trust_env=False, limits=limits)


def temporary(folder: Path) -> list[str]:
    """What is half there in the session folder."""
    files = folder / "session" / "files"
    return [path.name for path in (*(files / "incoming").glob("*"), *files.glob(".*.tmp"))]


async def _watch(proxy: Proxy, outcome: Outcome) -> None:
    process = psutil.Process(proxy.pid)
    while True:
        outcome.most_bytes = max(outcome.most_bytes, process.memory_info().rss)
        await asyncio.sleep(LOOK_S)


async def prove(proxy: Proxy, standin: Standin, folder: Path, count: int, size: int) -> Outcome:
    """Uploads `count` films of `size` bytes at once, and looks at what became of them."""
    films = [Film(number, size) for number in range(count)]
    async with _client(proxy, count) as client:
        warm = await upload(client, Film(count, size))
        outcome = Outcome(psutil.Process(proxy.pid).memory_info().rss)
        if warm.status_code != 200:
            outcome.refused.append(warm.text)
        async with anyio.create_task_group() as watching:
            watching.start_soon(_watch, proxy, outcome)
            answers = await asyncio.gather(*(upload(client, film) for film in films))
            watching.cancel_scope.cancel()
    outcome.refused += [answer.text for answer in answers if answer.status_code != 200]
    objects = await asyncio.to_thread(standin.objects)
    outcome.wrong += judged(films, objects)
    outcome.single += [each["path"] for each in objects if size >= 2 << 20 and each["parts"] < 2]
    outcome.left += temporary(folder)
    return outcome


def judged(films: list[Film], objects: list[dict[str, Any]]) -> list[str]:
    """The films that do not lie in the storage as they were sent, each once."""
    found = [(each["sha256"], each["size"]) for each in objects]
    return [f"film {film.number}" for film in films if found.count((film.sha256(), film.size)) != 1]


async def strike(proxy: Proxy, folder: Path, count: int, size: int) -> bool:
    """Kills the proxy while films come in; whether any were half there then."""
    films = [Film(1000 + number, size) for number in range(count)]
    async with _client(proxy, count) as client:
        uploads = asyncio.gather(*(upload(client, film) for film in films), return_exceptions=True)
        await until_async(lambda: temporary(folder))
        os.kill(proxy.pid, signal.SIGKILL)
        await uploads
    return bool(temporary(folder))


def orphans(folder: Path) -> list[str]:
    """Content without a record, and what is half there."""
    files = folder / "session" / "files"
    records = "".join(path.read_text() for path in files.glob("file-*.json"))
    lost = [path.name for path in (files / "content").glob("*") if path.name not in records]
    return [*lost, *temporary(folder)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--size", type=int, default=50, help="MB")
    told = parser.parse_args()
    count, size = told.count, told.size * 1_000_000
    with TemporaryDirectory() as name, running_standin(Path(name)) as standin:
        folder = Path(name)
        with running_proxy(folder, standin, storage_endpoint=standin.site, queue_timeout_s=3600) as proxy:
            outcome = asyncio.run(prove(proxy, standin, folder, count, size))
            half = asyncio.run(strike(proxy, folder, min(count, 10), size))
        with running_proxy_of(folder, standin):
            asyncio.run(until_async(lambda: not orphans(folder)))
        print(
            f"{count} uploads of {told.size} MB at once: {outcome.before_bytes >> 20} MiB resident before, "
            f"{outcome.most_bytes >> 20} MiB at most; {len(outcome.refused)} refused, "
            f"{len(outcome.wrong)} wrong, {len(outcome.single)} in one piece, {len(outcome.left)} temporary "
            f"files left; killed with files {'half there' if half else 'whole'}, and none left after a start"
        )
        raise SystemExit(0 if outcome.holds and half else 1)


if __name__ == "__main__":
    main()
