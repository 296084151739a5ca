"""The requests of `examples.md` and `media.md`, pasted: in curl and in `openai`, against one proxy."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router

from tests.clients.node_package import Missing, node_missing, project
from tests.samples import jpeg, pdf, png
from tests.seen import seen
from tests.serve import Proxy, Standin, clean_environment, running, running_proxy, running_standin, until

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

FILES = (Path(__file__).with_name("examples.md"), Path(__file__).with_name("media.md"))
BASE = "http://localhost:3264"
WEB = "https://example.com"
AT_HOME = "/путь/к/"
"""Where the seed's examples have their files."""
KEY = "your-secret-api-key-1"
SEEDS_CHAT = "550e8400-e29b-41d4-a716-446655440000"
OLD_CHAT = "11111111-old-and-short"
EXAMPLE = re.compile(r"^## (.+?)\n+```(\w+)\n(.*?)^```\n+```json\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Example:
    name: str
    language: str
    command: str
    comes: dict[str, Any]


def examples() -> list[Example]:
    text = "".join(file.read_text("utf-8") for file in FILES)
    found = [Example(n, lang, command, json.loads(out)) for n, lang, command, out in EXAMPLE.findall(text)]
    assert len(found) == len(re.findall("^## ", text, re.MULTILINE)), "an example cannot be read"
    return found


@dataclass(frozen=True)
class Serving:
    proxy: Proxy
    standin: Standin
    session: Path
    files: Path
    web: str

    def pasted(self, command: str) -> str:
        """The command as it would be typed here."""
        command = command.replace(BASE, self.proxy.base.replace("127.0.0.1", "localhost"))
        return command.replace(AT_HOME, f"{self.files}/").replace(WEB, self.web)

    def new_chat(self) -> str:
        answer = httpx.post(f"{self.proxy.base}/api/chats", json={}, timeout=30)
        return str(answer.json()["chatId"])


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("examples")
    history = folder / "session" / "history"
    history.mkdir(parents=True)
    seeds = [("user", "Расскажи о Python"), ("assistant", "Python — это язык.")]
    write_seeds_chat(history, SEEDS_CHAT, seeds, created_s=int(time.time()))
    write_seeds_chat(history, OLD_CHAT, seeds[:1], created_s=1_600_000_000)
    files = folder / "files"
    files.mkdir()
    (files / "изображению.jpg").write_bytes(jpeg())
    (files / "файлу.pdf").write_bytes(pdf())
    with running_standin(folder) as standin, running(Router([Route("/{path:path}", on_the_web)])) as web:
        standin.options(pieces_per_s=5000, video_s=0.1, draw_s=0.1)
        allowed = web.removeprefix("http://")
        with running_proxy(folder, standin, fetch_allow=allowed, unknown_model="default") as proxy:
            yield Serving(proxy, standin, folder / "session", files, web)


async def on_the_web(request: Request) -> Response:
    """A file of the kind that is asked for; another name is another content."""
    path = request.url.path
    shade = zlib.crc32(path.encode()) % 256
    if path.endswith(".pdf"):
        return Response(pdf(path), media_type="application/pdf")
    if path.endswith(".png"):
        return Response(png(shade=shade), media_type="image/png")
    return Response(jpeg(shade=shade), media_type="image/jpeg")


def write_seeds_chat(history: Path, chat_id: str, said: list[tuple[str, str]], *, created_s: int) -> None:
    """A chat as the seed's program leaves it (peers.md §2.1)."""
    messages = [
        {"id": f"m{number}", "role": role, "content": text, "timestamp": created_s, "chat_type": "t2t"}
        for number, (role, text) in enumerate(said)
    ]
    chat = {"id": chat_id, "name": "Старый чат", "created": created_s * 1000, "messages": messages}
    file = history / f"{chat_id}.json"
    file.write_text(json.dumps(chat, ensure_ascii=False, indent=2), "utf-8")
    os.utime(file, (created_s, created_s))


@contextmanager
def key_wanted(serving: Serving) -> Iterator[None]:
    """The key of the seed's example is in the key file for a while."""
    keys = serving.session / "Authorization.txt"
    before = keys.read_text("utf-8")
    chats = f"{serving.proxy.base}/api/chats"
    keys.write_text(f"# ours\n{KEY}\n", "utf-8")
    try:
        until(lambda: httpx.get(chats).status_code == 401)
        yield
    finally:
        keys.write_text(before, "utf-8")
        until(lambda: httpx.get(chats).status_code == 200)


def run(example: Example, command: str, folder: Path) -> str:
    """What the pasted command prints."""
    if example.language == "bash":
        if shutil.which("curl") is None:
            pytest.skip("there is no curl on this computer")
        pasted = ["bash", "-c", command]
    elif example.language == "python":
        printed = io.StringIO()
        with redirect_stdout(printed):
            made: dict[str, Any] = {}
            exec(command, made)  # in this process: another one would take seconds to import the package
            for client in [each for each in made.values() if isinstance(each, OpenAI)]:
                client.close()
        return printed.getvalue()
    else:
        if why := node_missing():
            pytest.skip(why)
        try:
            project(folder, packages="from 'openai'" in command)
        except Missing as missing:
            pytest.skip(str(missing))
        (folder / "pasted.js").write_text(command, "utf-8")
        pasted = ["node", "pasted.js"]
    ran = subprocess.run(
        pasted,
        cwd=folder,
        env=clean_environment(),
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.parametrize("example", examples(), ids=lambda example: example.name)
def test_what_the_seed_promises_comes_out(example: Example, serving: Serving, tmp_path: Path) -> None:
    chat = serving.new_chat() if "CHAT_ID" in example.command else ""
    command = serving.pasted(example.command).replace("CHAT_ID", chat)
    comes = json.loads(json.dumps(example.comes).replace("CHAT_ID", chat))
    if KEY in command:
        with key_wanted(serving):
            printed = run(example, command, tmp_path)
    else:
        printed = run(example, command, tmp_path)
    if "prints" in comes:
        fits(json.loads(printed), comes["prints"])
    if "text" in comes:
        assert re.fullmatch(comes["text"], printed, re.DOTALL), printed
    if "chunks" in comes:
        *chunks, done = [line for line in printed.splitlines() if line.startswith("data: ")]
        assert done == "data: [DONE]"
        assert len(chunks) > 2
        for chunk in chunks:
            fits(json.loads(chunk.removeprefix("data: ")), comes["chunks"])
    if "told" in comes:
        turns = serving.standin.turns()
        fits([list(said) for said in seen(turns, turns[-1])], comes["told"])
    if "files" in comes:
        fits(serving.standin.turns()[-1]["files"], comes["files"])


def fits(found: Any, wanted: Any, where: str = "it") -> None:
    """Whether what was found has at least what is wanted."""
    if isinstance(wanted, dict):
        assert isinstance(found, dict), f"{where} is {found!r}"
        for name, value in wanted.items():
            assert name in found, f"{where} has no {name}: {found}"
            fits(found[name], value, f"{where}.{name}")
    elif isinstance(wanted, list):
        assert isinstance(found, list), f"{where} is {found!r}"
        assert len(found) >= len(wanted) if wanted else not found, f"{where} is {found}"
        for number, value in enumerate(wanted):
            fits(found[number], value, f"{where}[{number}]")
    elif isinstance(wanted, str) and wanted.startswith("~"):
        assert re.fullmatch(wanted[1:], str(found), re.DOTALL), f"{where} is {found!r}"
    else:
        assert found == wanted, f"{where} is {found!r}"


def test_the_examples_cover_what_the_seeds_show() -> None:
    sections = {example.name.split()[0] for example in examples()}
    assert sections >= {
        "3.1",
        "4.1",
        "4.3",
        "4.4",
        "4.7",
        "5",
        "6.1",
        "6.2",
        "8.1",
        "8.3.3",
        "8.4",
        "000",
        "003",
        "004",
    }
    assert {example.language for example in examples()} == {"bash", "javascript", "python"}
