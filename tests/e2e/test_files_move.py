"""Conversations with pictures and documents that move to another account; prompts that go as documents."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.seen import answering, seen
from tests.serve import Proxy, Standin, running_proxy

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

PEOPLE = ("one@example.com", "two@example.com", "three@example.com", "four@example.com")
"""Two of them meet a limit; the tests come in any order."""
PNG = base64.b64decode(
    b"iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
QUICKLY = '{{standin: say text="Seen"}} '
"""Answered at once: nobody waits for words here."""
NOTES = b"# Notes\n\nRemember the milk.\n"
Json = dict[str, Any]


@pytest.fixture(scope="module")
def proxy(
    _standins: Callable[[str, bool], Standin], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    standin = _standins("C", False)
    folder = tmp_path_factory.mktemp("moving")
    with running_proxy(folder, standin, PEOPLE, stay_up=1, keep_chats=1) as proxy:
        yield proxy


@pytest.fixture
def site(_standins: Callable[[str, bool], Standin]) -> Standin:
    """The stand-in of the module's proxy, with the sign-ins that it has."""
    standin = _standins("C", False)
    standin.reset(sessions=False)
    return standin


def post(proxy: Proxy, path: str, body: Json) -> Json:
    """Without certificates, whose reading takes longer than the call."""
    answer = httpx.post(f"{proxy.base}{path}", json=body, timeout=90, trust_env=False, verify=False)
    assert answer.status_code == 200, answer.text
    found: Json = answer.json()
    return found


def data_url(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def question(text: str, number: int) -> list[Json]:
    """With a picture and a document, which no other test has."""
    picture, notes = PNG + bytes([number]), NOTES + bytes([48 + number])
    file = {"filename": "notes.md", "file_data": data_url("text/markdown", notes)}
    return [
        {"type": "text", "text": QUICKLY + text},
        {"type": "image_url", "image_url": {"url": data_url("image/png", picture)}},
        {"type": "file", "file": file},
    ]


def hashes(number: int) -> list[str]:
    contents = (PNG + bytes([number]), NOTES + bytes([48 + number]))
    return [hashlib.sha256(each).hexdigest() for each in contents]


def known(turn: Json) -> list[str]:
    return [file["sha256"] for file in turn["files"]]


def copies(site: Standin, number: int) -> Counter[str]:
    """How many of the two files each account was given."""
    wanted = hashes(number)
    return Counter(each["account"] for each in site.objects() if each["sha256"] in wanted)


def test_a_kept_chat_goes_on_with_its_files_on_another_account(proxy: Proxy, site: Standin) -> None:
    first = post(proxy, "/api/chat", {"message": question("Look at these", 1)})
    chat = first["chatId"]
    (begun,) = site.turns()
    assert known(begun) == hashes(1)
    post(proxy, "/api/chat", {"message": QUICKLY + "And now?", "chatId": chat})
    assert known(site.turns()[-1]) == []
    site.fault("rate_limited", on="completions", account=begun["account"])
    moved = post(proxy, "/api/chat", {"message": QUICKLY + "And there?", "chatId": chat})
    *_, last = site.turns()
    assert last["account"] != begun["account"]
    assert moved["rebuilt"] == "account_waiting"
    assert known(last) == hashes(1)
    told = seen(site.turns(), answering(site.turns(), last["said"]))
    asked = [text.removeprefix(QUICKLY) for role, text in told if role == "user"]
    assert asked == ["Look at these", "And now?", "And there?"]
    assert "user, attached: " in last["content"]
    assert any("Remember the milk" in text for text in last["documents"])
    assert copies(site, 1) == {begun["account"]: 2, last["account"]: 2}


def test_a_chat_that_is_moved_takes_its_files_along(proxy: Proxy, site: Standin) -> None:
    first = post(proxy, "/api/chat", {"message": question("Look", 2)})
    (begun,) = site.turns()
    rows = httpx.get(f"{proxy.base}/api/status", trust_env=False, verify=False).json()["accounts"]
    usable = [row["id"] for row in rows if row["status"] == "OK"]
    other = next(each for each in usable if PEOPLE[int(each[-1]) - 1] != begun["account"])
    post(proxy, f"/api/chats/{first['chatId']}/move", {"account": other})
    moved = post(proxy, "/api/chat", {"message": QUICKLY + "Go on", "chatId": first["chatId"]})
    last = site.turns()[-1]
    assert (moved["rebuilt"], last["account"]) == ("moved", PEOPLE[int(other[-1]) - 1])
    assert known(last) == hashes(2)


def test_a_completion_that_is_continued_elsewhere_has_its_files(proxy: Proxy, site: Standin) -> None:
    messages = [{"role": "user", "content": question("Look", 3)}]
    first = post(proxy, "/v1/chat/completions", {"model": "qwen", "messages": messages})
    (begun,) = site.turns()
    assert known(begun) == hashes(3)
    site.fault("rate_limited", on="completions", account=begun["account"])
    body = {
        "model": "qwen",
        "messages": [{"role": "user", "content": QUICKLY + "Again"}],
        "conversation_id": first["id"],
    }
    post(proxy, "/v1/chat/completions", body)
    last = site.turns()[-1]
    assert last["account"] != begun["account"]
    assert known(last) == hashes(3)
    assert set(copies(site, 3).values()) == {2}


def test_a_picture_sent_again_is_uploaded_once(proxy: Proxy, site: Standin) -> None:
    messages = [{"role": "user", "content": question("Look", 4)}]
    for _ in range(3):
        post(proxy, "/v1/chat/completions", {"model": "qwen", "messages": messages})
    assert [known(turn) for turn in site.turns()] == [hashes(4)] * 3
    assert len({turn["account"] for turn in site.turns()}) == 1
    assert sum(copies(site, 4).values()) == 2


def test_a_file_that_the_account_lost_is_brought_again(proxy: Proxy, site: Standin) -> None:
    messages = [{"role": "user", "content": question("Look", 5)}]
    post(proxy, "/v1/chat/completions", {"model": "qwen", "messages": messages})
    account = site.turns()[0]["account"]
    site.fault("file_gone", on="completions")
    post(proxy, "/v1/chat/completions", {"model": "qwen", "messages": messages})
    assert known(site.turns()[-1]) == hashes(5)
    assert copies(site, 5)[account] == 4


def test_a_prompt_too_long_for_a_message_is_seen_whole(proxy: Proxy, site: Standin) -> None:
    text = QUICKLY + "жизнь " * 20_000
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": text},
        {"role": "assistant", "content": "Long."},
        {"role": "user", "content": "And shorter?"},
    ]
    post(proxy, "/v1/chat/completions", {"model": "qwen", "messages": messages})
    turn = site.turns()[-1]
    assert turn["content"].startswith("[attached prompt]\n")
    assert len(turn["content"]) < 1000
    assert seen(site.turns(), turn) == (
        ("system", "Be brief."),
        ("user", text),
        ("assistant", "Long."),
        ("user", "And shorter?"),
    )
    post(proxy, "/v1/chat/completions", {"model": "qwen", "messages": [{"role": "user", "content": text}]})
    turn = site.turns()[-1]
    assert seen(site.turns(), turn) == (("user", text),)
