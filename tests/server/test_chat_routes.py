"""The kept chats over a real socket, real files and real keys."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import pytest

from qwenproxy.api_keys import KeyRing
from qwenproxy.chat import ChatRequest, ConversationRef, Finished, Started, Text, UpstreamChat
from qwenproxy.clock import SystemClock
from qwenproxy.errors import AllWaiting
from qwenproxy.history import History
from qwenproxy.library import Library
from qwenproxy.server.access import Gate
from qwenproxy.server.admission import INTERNAL
from qwenproxy.server.relay import Bounds
from qwenproxy.transcript import Entry, Transcript
from qwenproxy.turn_order import TurnOrder
from tests.attaching import elsewhere
from tests.server.serving import Running, ScriptedGateway, Step, running

pytestmark = pytest.mark.anyio

ANN, BEN, OPS = "ann-0123456789abcdef", "ben-0123456789abcdef", "ops-0123456789abcdef"


@dataclass
class Shelf:
    proxy: Running
    history: History
    turns: TurnOrder
    client: httpx.AsyncClient
    discarded: list[UpstreamChat]

    def keep(self, chat_id: str, *texts: str, owner: str = "") -> Transcript:
        entries: dict[str, Entry] = {}
        before = ""
        for number, text in enumerate(texts):
            role = ("user", "assistant")[number % 2]
            upstream = ("up-1", f"r{number}") if role == "assistant" else ("", "")
            entries[f"m{number}"] = Entry(
                f"m{number}",
                before,
                role,
                text,
                1_795_262_400 + number,
                account="acc_1" if upstream[0] else "",
                upstream_chat=upstream[0],
                upstream_response=upstream[1],
            )
            before = f"m{number}"
        chat = Transcript(chat_id, "Talk", 1_795_262_400_000, MappingProxyType(entries), before, owner)
        chat = replace(chat, twin=UpstreamChat("up-1", "acc_1"))
        self.history.add(chat)
        return chat

    async def ask(self, method: str, path: str, body: Any = None, **more: Any) -> tuple[int, Any]:
        answer = await self.client.request(method, path, json=body, **more)
        return answer.status_code, answer.json()


@asynccontextmanager
async def shelf(tmp_path: Path, keys: str = "", bounds: Bounds | None = None) -> AsyncGenerator[Shelf]:
    history = History(tmp_path, SystemClock())
    turns = TurnOrder(0.05)
    discarded: list[UpstreamChat] = []
    library = Library(
        history,
        turns,
        discarded.append,
        {"acc_1", "acc_2"}.__contains__,
        SystemClock(),
        elsewhere(tmp_path).attachments(),
    )
    keys_path = tmp_path / "Authorization.txt"
    keys_path.write_text(keys, encoding="utf-8")
    ring = KeyRing([keys_path])
    ring.open()
    async with (
        running(ScriptedGateway(library=library), bounds, Gate(ring)) as proxy,
        httpx.AsyncClient(base_url=proxy.url, timeout=15, trust_env=False) as client,
    ):
        yield Shelf(proxy, history, turns, client, discarded)
    history.close()


async def test_a_chats_life_in_the_seeds_shapes(tmp_path: Path) -> None:
    async with shelf(tmp_path) as s:
        status, made = await s.ask("POST", "/api/chats", {"name": "Мой новый чат"})
        assert status == 200
        assert made["success"] is True
        first = made["chatId"]
        second = (await s.client.post("/api/v2//chats")).json()["chatId"]  # without a body
        status, listed = await s.ask("GET", "/api/v1/chats")
        assert {row["id"]: row["name"] for row in listed["chats"]} == {
            first: "Мой новый чат",
            second: "New chat",
        }
        (row,) = [row for row in listed["chats"] if row["id"] == first]
        created = row["created"]
        assert row == {
            "id": first,
            "name": "Мой новый чат",
            "created": created,
            "updated": row["updated"],
            "messageCount": 0,
            "userMessageCount": 0,
        }
        assert await s.ask("GET", f"/api/chats/{first}") == (
            200,
            {
                "chatId": first,
                "history": {"id": first, "name": "Мой новый чат", "created": created, "messages": []},
            },
        )
        renamed = {"success": True, "chatId": first, "name": "Other"}
        assert await s.ask("PUT", f"/api/v1/chats/{first}/rename", {"name": " Other"}) == (200, renamed)
        assert await s.ask("DELETE", f"/api/chats/{first}") == (200, {"success": True})
        assert (await s.ask("DELETE", f"/api/chats/{first}"))[0] == 404
        assert [row["id"] for row in (await s.ask("GET", "/api/chats"))[1]["chats"]] == [second]


async def test_reading_tells_all_but_keys_and_places_upstream(tmp_path: Path) -> None:
    async with shelf(tmp_path) as s:
        kept = s.keep("c1", "Hello", "Hi")
        status, said = await s.ask("GET", "/api/chats/c1")
    assert status == 200
    file = kept.to_json()
    for message in file["messages"]:
        message.pop("upstream", None)
    file.pop("twin")
    assert said == {"chatId": "c1", "history": file}
    assert said["history"]["messages"][1]["account"] == "acc_1"


async def test_a_cleanup(tmp_path: Path) -> None:
    async with shelf(tmp_path) as s:
        s.keep("c1", "Hello", "Hi")
        s.keep("c2", "Hello", "Hi", "How?", "So")
        seeds = {
            "olderThan": 7 * 24 * 60 * 60 * 1000,
            "userMessageCountLessThan": 3,
            "messageCountLessThan": 5,
            "maxChats": 50,
        }
        none = {"success": True, "deletedCount": 0, "deletedChats": []}
        assert await s.ask("POST", "/api/chats/cleanup", seeds) == (200, none)
        some = {"success": True, "deletedCount": 1, "deletedChats": ["c1"]}
        few = {"messageCountLessThan": 3}
        assert await s.ask("POST", "/api/chats/cleanup", {**few, "dryRun": True}) == (
            200,
            {**some, "dryRun": True},
        )
        assert await s.ask("POST", "/api/chats/cleanup", few) == (200, some)
        assert [row["id"] for row in (await s.ask("GET", "/api/chats"))[1]["chats"]] == ["c2"]
        assert s.discarded == [UpstreamChat("up-1", "acc_1")]


async def test_fork_edit_move_search(tmp_path: Path) -> None:
    async with shelf(tmp_path) as s:
        s.keep("c1", "Hello there", "Hi you")
        status, forked = await s.ask("POST", "/api/chats/c1/fork", {"messageId": "m0"})
        assert status == 200
        assert len((await s.ask("GET", f"/api/chats/{forked['chatId']}"))[1]["history"]["messages"]) == 1
        edited = {"success": True, "chatId": "c1", "messageId": "m1"}
        assert await s.ask("PUT", "/api/chats/c1/messages/m1", {"content": "Goodbye"}) == (200, edited)
        status, found = await s.ask("GET", "/api/chats/search", params={"q": "goodbye"})
        (hit,) = found["results"]
        assert hit == {
            "chatId": "c1",
            "name": "Talk",
            "messageId": "m1",
            "role": "assistant",
            "timestamp": 1_795_262_401,
            "snippet": hit["snippet"],
        }
        assert "Goodbye" in hit["snippet"]
        both = {"q": "hello", "limit": "1"}
        pages = [
            (await s.ask("GET", "/api/chats/search", params={**both, "offset": n}))[1]
            for n in ("0", "1", "2")
        ]
        assert {hit["chatId"] for page in pages for hit in page["results"]} == {"c1", forked["chatId"]}
        assert [len(page["results"]) for page in pages] == [1, 1, 0]
        moved = {"success": True, "chatId": "c1", "account": "acc_2"}
        assert await s.ask("POST", "/api/chats/c1/move", {"account": "acc_2"}) == (200, moved)
        assert s.discarded == [UpstreamChat("up-1", "acc_1")]
        async with s.turns.alone("c1"):
            status, busy = await s.ask("PUT", "/api/chats/c1/messages/m1", {"content": "x"})
        assert (status, busy["code"]) == (409, "chat_busy")


async def test_export_and_import(tmp_path: Path) -> None:
    async with shelf(tmp_path) as s:
        s.keep("c1", "Hello", "Привет")
        text = await s.client.get("/api/chats/c1/export")
        assert text.headers["content-type"] == "text/markdown; charset=utf-8"
        assert text.headers["content-disposition"] == 'attachment; filename="chat-c1.md"'
        assert text.text.startswith("# Talk\n\n## User")
        assert "Привет" in text.text
        exported: dict[str, Any] = {}
        for name in ("json", "openai"):
            answer = await s.client.get("/api/chats/c1/export", params={"format": name})
            assert answer.headers["content-type"] == "application/json"
            assert answer.headers["content-disposition"] == 'attachment; filename="chat-c1.json"'
            exported[name] = answer.json()
        bodies = [exported["json"], exported["openai"], exported["openai"]["messages"]]
        for body, name in zip(bodies, ("json", "openai", "openai"), strict=True):
            status, made = await s.ask("POST", "/api/chats/import", body)
            assert status == 200
            again = await s.client.get(f"/api/chats/{made['chatId']}/export", params={"format": name})
            assert again.json() == {**exported[name]} | ({"id": made["chatId"]} if name == "json" else {})


WRONG: list[tuple[str, str, Any, int, str, str | None]] = [
    ("POST", "/api/chats", {"name": 5}, 400, "invalid_request", "name"),
    ("POST", "/api/chats", {"name": "x" * 201}, 400, "invalid_request", "name"),
    ("POST", "/api/chats", [], 400, "invalid_request", None),
    ("PUT", "/api/chats/c1/rename", None, 400, "invalid_request", "name"),
    ("PUT", "/api/chats/c1/rename", {"name": " \n"}, 400, "invalid_request", "name"),
    ("PUT", "/api/chats/c1/rename", {"name": ["x"]}, 400, "invalid_request", "name"),
    ("PUT", "/api/chats/c9/rename", {"name": "x"}, 404, "chat_not_found", None),
    ("POST", "/api/chats/cleanup", None, 400, "invalid_request", None),
    ("POST", "/api/chats/cleanup", {}, 400, "invalid_request", None),
    ("POST", "/api/chats/cleanup", {"dryRun": True, "maxChats": None}, 400, "invalid_request", None),
    ("POST", "/api/chats/cleanup", {"olderThan": 0}, 400, "invalid_request", "olderThan"),
    ("POST", "/api/chats/cleanup", {"olderThan": "7d"}, 400, "invalid_request", "olderThan"),
    ("POST", "/api/chats/cleanup", {"olderThan": True}, 400, "invalid_request", "olderThan"),
    ("POST", "/api/chats/cleanup", {"maxChats": 0}, 400, "invalid_request", "maxChats"),
    ("POST", "/api/chats/cleanup", {"maxChats": 1.5}, 400, "invalid_request", "maxChats"),
    ("POST", "/api/chats/cleanup", {"maxChats": 1, "dryRun": 1}, 400, "invalid_request", "dryRun"),
    (
        "POST",
        "/api/chats/cleanup",
        {"messageCountLessThan": -1},
        400,
        "invalid_request",
        "messageCountLessThan",
    ),
    (
        "POST",
        "/api/chats/cleanup",
        {"userMessageCountLessThan": "3"},
        400,
        "invalid_request",
        "userMessageCountLessThan",
    ),
    ("GET", "/api/chats/c9", None, 404, "chat_not_found", None),
    ("GET", "/api/chats/..c1", None, 404, "chat_not_found", None),
    ("GET", "/api/chats/%2e%2e%2ftokens", None, 400, "invalid_request", None),
    ("GET", "/api/chats/con", None, 404, "chat_not_found", None),
    ("DELETE", "/api/chats/" + "x" * 300, None, 404, "chat_not_found", None),
    ("GET", "/api/chats/search", None, 400, "invalid_request", "q"),
    ("GET", "/api/chats/search?q=%20", None, 400, "invalid_request", "q"),
    ("GET", "/api/chats/search?q=" + "x" * 1001, None, 400, "invalid_request", "q"),
    ("GET", "/api/chats/search?q=x&limit=0", None, 400, "invalid_request", "limit"),
    ("GET", "/api/chats/search?q=x&limit=101", None, 400, "invalid_request", "limit"),
    ("GET", "/api/chats/search?q=x&limit=%D9%A1", None, 400, "invalid_request", "limit"),
    ("GET", "/api/chats/search?q=x&offset=-1", None, 400, "invalid_request", "offset"),
    ("GET", "/api/chats/search?q=x&offset=" + "9" * 5000, None, 400, "invalid_request", "offset"),
    ("POST", "/api/chats/c1/fork", {}, 400, "invalid_request", "messageId"),
    ("POST", "/api/chats/c1/fork", {"messageId": 5}, 400, "invalid_request", "messageId"),
    ("POST", "/api/chats/c1/fork", {"messageId": "m9"}, 404, "chat_not_found", "messageId"),
    ("PUT", "/api/chats/c1/messages/m0", {}, 400, "invalid_request", "content"),
    ("PUT", "/api/chats/c1/messages/m0", {"content": " "}, 400, "invalid_request", "content"),
    ("PUT", "/api/chats/c1/messages/m0", {"content": []}, 400, "invalid_request", "content"),
    (
        "PUT",
        "/api/chats/c1/messages/m0",
        {"content": [{"type": "image", "image": "data:x"}]},
        400,
        "invalid_request",
        "content[0]",
    ),
    ("PUT", "/api/chats/c1/messages/m9", {"content": "x"}, 404, "chat_not_found", None),
    ("POST", "/api/chats/c1/move", {}, 400, "invalid_request", "account"),
    ("POST", "/api/chats/c1/move", {"account": "acc_9"}, 400, "invalid_request", "account"),
    ("POST", "/api/chats/c9/move", {"account": "acc_9"}, 404, "chat_not_found", None),
    ("GET", "/api/chats/c1/export?format=pdf", None, 400, "invalid_request", "format"),
    ("GET", "/api/chats/c9/export", None, 404, "chat_not_found", None),
    ("POST", "/api/chats/import", None, 400, "invalid_request", "messages"),
    (
        "POST",
        "/api/chats/import",
        {"messages": [{"role": "user"}]},
        400,
        "invalid_request",
        "messages[0].content",
    ),
    ("POST", "/api/chats/import", [5], 400, "invalid_request", "messages[0]"),
]


async def test_bad_requests_get_a_clear_answer_and_change_nothing(tmp_path: Path) -> None:
    async with shelf(tmp_path) as s:
        s.keep("c1", "Hello", "Hi")
        before = (tmp_path / "history" / "c1.json").read_bytes()
        for method, path, body, *expected in WRONG:
            status, said = await s.ask(method, path, body)
            assert [status, said.get("code"), said.get("param")] == expected, (method, path, body)
            assert isinstance(said["error"], str)
            assert str(tmp_path) not in json.dumps(said)
        assert (tmp_path / "history" / "c1.json").read_bytes() == before
        assert [path.name for path in (tmp_path / "history").iterdir()] == ["c1.json"]
        assert s.discarded == []


async def test_a_damaged_chat_is_an_error_of_its_own(tmp_path: Path) -> None:
    async with shelf(tmp_path) as s:
        s.keep("c1", "Hello")
        path = tmp_path / "history" / "c2.json"
        path.write_text('{"messages": [', encoding="utf-8")
        for method in ("GET", "DELETE"):
            status, said = await s.ask(method, "/api/chats/c2")
            assert (status, said["code"]) == (409, "chat_damaged")
            assert str(tmp_path) not in said["error"]
        assert len((await s.ask("GET", "/api/chats"))[1]["chats"]) == 1
        assert path.read_text("utf-8") == '{"messages": ['


async def test_each_key_has_its_own_chats(tmp_path: Path) -> None:
    keys = f"{ANN} scopes=chat\n{BEN} scopes=chat\n{OPS} scopes=accounts\n"
    async with shelf(tmp_path, keys) as s:

        def by(key: str) -> dict[str, Any]:
            return {"headers": {"Authorization": f"Bearer {key}"}}

        chat = {"messages": [{"id": "m0", "role": "user", "content": "secret"}]}
        status, made = await s.ask("POST", "/api/chats/import", chat, **by(ANN))
        assert status == 200
        path = f"/api/chats/{made['chatId']}"
        rest: list[tuple[str, str, Any]] = [
            ("GET", path, None),
            ("DELETE", path, None),
            ("PUT", f"{path}/rename", {"name": "x"}),
            ("POST", f"{path}/fork", {"messageId": "m0"}),
            ("POST", f"{path}/move", {"account": "acc_2"}),
            ("PUT", f"{path}/messages/m0", {"content": "x"}),
            ("GET", f"{path}/export", None),
        ]
        for method, each, body in rest:
            assert (await s.ask(method, each, body, **by(BEN)))[0] == 404
            status, said = await s.ask(method, each, body, **by(OPS))
            assert (status, said["code"]) == (403, "not_allowed")
            assert (await s.ask(method, each, body))[0] == 401
        assert (await s.ask("GET", "/api/chats", **by(BEN)))[1] == {"chats": []}
        assert (await s.ask("GET", "/api/chats/search?q=secret", **by(BEN)))[1] == {"results": []}
        cleanup = {"userMessageCountLessThan": 9}
        assert (await s.ask("POST", "/api/chats/cleanup", cleanup, **by(BEN)))[1]["deletedChats"] == []
        status, said = await s.ask("GET", path, **by(ANN))
        assert said["history"]["messages"][0]["content"] == "secret"
        assert "owner" not in said["history"]


STARTED = Started("up-1", "r1", "qwen3-max", "acc_1", "twin_gone", conversation_id="c1", message_id="m1")


def _play(steps: Sequence[Step], request: ChatRequest) -> Sequence[Step]:
    return steps


async def test_talking_in_chats_has_the_seeds_shapes_and_the_roads_statuses() -> None:
    gateway = ScriptedGateway(lambda request: [STARTED, Text("Hi"), Finished("stop")])
    async with (
        running(gateway) as proxy,
        httpx.AsyncClient(base_url=proxy.url, timeout=15, trust_env=False) as client,
    ):
        whole = (await client.post("/api/v1/chat", json={"message": "Hello", "chatId": "c1"})).json()
        assert whole["choices"][0]["message"]["content"] == "Hi"
        kept = {"chatId": "c1", "parentId": "m1", "account": "acc_1", "rebuilt": "twin_gone"}
        assert {name: whole[name] for name in kept} == kept
        again = await client.post("/api/chats/c1/regenerate")
        assert again.status_code == 200
        assert [request.conversation for request in gateway.asked] == [
            ConversationRef("c1"),
            ConversationRef("c1", regenerate=True),
        ]
        waiting = AllWaiting("all accounts wait", retry_after_s=30)
        waiting.conversation_id = "c1"
        scripts: list[list[Step]] = [[waiting], [STARTED, Text("H"), waiting]]
        for steps in scripts:
            gateway.script = partial(_play, steps)
            refused = await client.post("/api/chat", json={"message": "Hello"})
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "30")
            assert refused.json() == {
                "error": "all accounts wait",
                "code": "all_accounts_waiting",
                "chatId": "c1",
            }
        broken = await client.post("/api/chat", json={"message": "Hello", "stream": True})
        assert broken.status_code == 200
        *_, last = broken.text.strip().split("\n\n")
        assert json.loads(last.removeprefix("data: ")) == refused.json()
        assert "[DONE]" not in broken.text
        assert (await client.post("/api/chat")).json()["param"] == "message"


async def test_while_the_proxy_stops_and_when_it_is_full(tmp_path: Path) -> None:
    async with shelf(tmp_path, bounds=Bounds(body_bytes=1000)) as s:
        status, said = await s.ask("POST", "/api/chats", {"name": "x" * 2000})
        assert (status, said["code"]) == (413, "too_large")
        s.proxy.admission.draining = True
        status, said = await s.ask("POST", "/api/chats", {})
        assert (status, said["code"]) == (503, "shutting_down")
        assert (await s.client.get("/api/chats")).headers["retry-after"] == "5"


async def test_a_folder_that_cannot_be_used_is_our_fault_and_said_so(tmp_path: Path) -> None:
    (tmp_path / "history").write_text("a file in its place", encoding="utf-8")
    async with shelf(tmp_path) as s:
        for method, path in (("GET", "/api/chats"), ("POST", "/api/chats")):
            status, said = await s.ask(method, path)
            assert (status, said["code"]) == (500, "internal_error")
            assert str(tmp_path) not in json.dumps(said)


async def test_a_bug_is_told_as_one_and_in_the_seeds_shape(tmp_path: Path) -> None:
    async with shelf(tmp_path) as s:
        await s.ask("GET", "/api/chats")  # it has started
        s.proxy.app.state.library = None
        status, said = await s.ask("GET", "/api/chats")
        assert (status, said) == (500, {"error": INTERNAL, "code": "internal_error"})


async def test_a_client_that_leaves_while_it_sends_changes_nothing(tmp_path: Path) -> None:
    async with shelf(tmp_path) as s:
        async with await s.proxy.connect() as connection:
            await connection.send(s.proxy.post({"name": "x"}, "/api/chats")[:-3])
        await s.proxy.empty()
        assert (await s.ask("GET", "/api/chats"))[1] == {"chats": []}
