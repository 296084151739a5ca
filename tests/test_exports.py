from __future__ import annotations

import json
import time
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenproxy.addresses import file_address
from qwenproxy.chat import UpstreamChat
from qwenproxy.errors import BadRequest, CallerError, UnsupportedParameter
from qwenproxy.exports import imported, json_of, markdown, openai, told
from qwenproxy.transcript import Content, Entry, Transcript

NOON_S = 1_795_262_400
PICTURE = "https://example.com/a_(1).jpg"


def back(value: Any, new_id: str = "new") -> Transcript:
    return imported(value, new_id=new_id, name="Imported chat", created=NOON_S * 1000, owner="key_b")


def chat_of(*entries: Entry, leaf: str) -> Transcript:
    by_id = MappingProxyType({entry.id: entry for entry in entries})
    return Transcript("c1", "Ann's\nchat", 1_700_000_000_123, by_id, leaf)


FIELDS = st.sampled_from(["id", "role", "content", "type", "text", "image", "title", "url", "number"])
ENTRIES = (
    Entry("s", "", "system", "Be kind", 1_700_000_000),
    Entry(
        "q1",
        "s",
        "user",
        [{"type": "text", "text": "What is it?"}, {"type": "image", "image": PICTURE}],
        NOON_S,
        more={"chat_type": "t2t", "mood": "good"},
    ),
    Entry(
        "a1",
        "q1",
        "assistant",
        "# A *cat*\n\n[[1]]",
        NOON_S + 1,
        model="qwen3-max",
        account="acc_1",
        reasoning="hm",
        sources=({"number": 1, "url": "https://example.org/c", "title": "Cats\n(all)"},),
        info={"input_tokens": 3},
        rebuilt="account waiting",
        upstream_chat="up-1",
        upstream_response="resp-1",
    ),
    Entry("a2", "q1", "assistant", "A do", NOON_S + 2, partial="interrupted", upstream_chat="up-1"),
    Entry("q2", "a1", "user", "And this?", NOON_S + 3, unanswered="queue_full"),
)
CHAT = replace(
    chat_of(*ENTRIES, leaf="q2"),
    owner="key_a",
    account="acc_1",
    twin=UpstreamChat("up-1", "acc_1"),
    untwinned="moved",
    more={"tags": ["x"]},
)


def test_what_leaves_says_nothing_of_keys_accounts_and_the_web() -> None:
    said = json.dumps(json_of(CHAT)) + json.dumps(openai(CHAT)) + markdown(CHAT)
    for secret in ("key_a", "acc_1", "up-1", "resp-1"):
        assert secret not in said
    shown = json.dumps(told(CHAT))
    assert "key_a" not in shown
    assert "up-1" not in shown
    assert told(CHAT)["messages"][2]["account"] == "acc_1"
    assert [message["id"] for message in told(CHAT)["branches"]] == ["a2"]


def test_what_was_exported_comes_back_the_same() -> None:
    first = json_of(CHAT)
    chat = back(json.loads(json.dumps(first)))
    assert json_of(chat) == {**first, "id": "new", "name": "Ann's chat"}
    assert (chat.owner, chat.untwinned, chat.twin, chat.account) == ("key_b", "imported", None, "")
    assert json_of(back(json_of(chat), "newer")) == {**json_of(chat), "id": "newer"}


@st.composite
def chats(draw: st.DrawFn) -> Transcript:
    entries: list[Entry] = []
    for number in range(draw(st.integers(0, 12))):
        parent = draw(st.sampled_from(["", *(entry.id for entry in entries)]))
        text = draw(st.text(max_size=20))
        parts: Content = [{"type": "text", "text": text}, {"type": "image", "image": "http://a/b"}]
        content = parts if draw(st.booleans()) else text
        role = draw(st.sampled_from(["user", "assistant", "system"]))
        entries.append(Entry(f"m{number}", parent, role, content, draw(st.integers(0, 2**33))))
    leaf = draw(st.sampled_from([entry.id for entry in entries] or [""]))
    return replace(chat_of(*entries, leaf=leaf), name="Name")


@settings(max_examples=50, deadline=None)
@given(chats())
def test_any_chat_comes_back_the_same(chat: Transcript) -> None:
    assert json_of(back(json_of(chat))) == {**json_of(chat), "id": "new"}
    assert openai(back(openai(chat))) == openai(chat)


def test_files_of_ours_are_openais_files_and_come_back() -> None:
    ours = file_address("file-" + "0" * 24)
    parts: Content = [{"type": "file", "file": url} for url in (ours, "https://a/b.pdf")]
    chat = chat_of(Entry("m", "", "user", parts, 0), leaf="m")
    (message,) = openai(chat)["messages"]
    assert message["content"] == [{"type": "file", "file": {"file_id": "file-" + "0" * 24}}, parts[1]]
    assert back(openai(chat)).branch()[0].content == parts


def test_the_seeds_file_is_read() -> None:
    seeds = {
        "id": "550e8400-e29b-41d4-a716-446655440000",
        "name": "Название чата",
        "created": 1234567890000,
        "messages": [
            {
                "id": "9b2f0c1e-0000-4000-8000-000000000001",
                "role": "user",
                "content": [{"type": "text", "text": "Текст"}, {"type": "file", "file": "https://a/b.pdf"}],
                "timestamp": 1234567890,
                "chat_type": "t2t",
            },
            {
                "id": "x",
                "role": "assistant",
                "content": "да",
                "timestamp": 1234567891,
                "chat_type": "t2t",
                "info": {"a": 1},
            },
        ],
    }
    chat = back(seeds)
    again = json_of(chat)
    for message in again["messages"]:
        message.pop("parentId")
    assert again == {**seeds, "id": "new"}
    older = back(seeds["messages"])
    assert (older.name, older.created) == ("Imported chat", 1234567890000)
    assert openai(older) == openai(chat)


def test_openais_messages_are_read() -> None:
    messages = [
        {"role": "developer", "content": "Be kind"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What?"},
                {"type": "image_url", "image_url": {"url": "https://a/b.jpg"}},
            ],
        },
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No"}]},
        {"role": "assistant", "content": None},
    ]
    chat = back({"model": "gpt-4o", "messages": messages})
    assert [entry.timestamp for entry in chat.branch()] == [NOON_S] * 4
    assert chat.created == NOON_S * 1000
    assert openai(chat)["messages"] == [
        *messages[:2],
        {"role": "assistant", "content": [{"type": "text", "text": "No"}]},
        {"role": "assistant", "content": ""},
    ]


def test_nothing_that_comes_in_says_whose_it_is_or_where_it_stands() -> None:
    file = {
        **CHAT.to_json(),
        "owner": "key_a",
        "twin": {"account": "acc_9", "chat": "somebody's"},
        "account": "acc_9",
    }
    chat = back(file)
    assert (chat.owner, chat.account, chat.twin) == ("key_b", "", None)
    assert not any(
        entry.upstream_chat or entry.upstream_response or entry.account for entry in chat.entries.values()
    )


def test_ids_that_fit_no_address_are_replaced_and_still_lead_to_each_other() -> None:
    chat = back(
        {
            "messages": [{"id": "../../etc", "role": "user", "content": "x"}],
            "branches": [
                {"id": "ä/b", "parentId": "../../etc", "role": "assistant", "content": "y"},
                {"id": "z" * 101, "parentId": "ä/b", "role": "user", "content": "z"},
            ],
        }
    )
    assert all(entry_id.replace("-", "").isalnum() for entry_id in chat.entries)
    end = list(chat.entries)[-1]
    assert [entry.text for entry in chat.branch(end)] == ["x", "y", "z"]


WRONG: list[tuple[Any, str, str]] = [
    ({}, "messages", "invalid_request"),
    ("x", "messages", "invalid_request"),
    ({"messages": {}}, "messages", "invalid_request"),
    ({"messages": ["x"]}, "messages[0]", "invalid_request"),
    ({"messages": [{"content": "x"}]}, "messages[0].role", "invalid_request"),
    ({"messages": [{"role": ["user"], "content": "x"}]}, "messages[0].role", "invalid_request"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "invalid_request"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "invalid_request"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "invalid_request"),
    (
        {"messages": [{"role": "user", "content": [{"type": "video", "video": "x"}]}]},
        "messages[0].content[0]",
        "unsupported_parameter",
    ),
    ({"messages": [], "branches": {}}, "branches", "invalid_request"),
    ({"messages": [], "branches": [5]}, "branches[0]", "invalid_request"),
    ({"messages": [], "name": 5}, "name", "invalid_request"),
    ({"messages": [], "created": 10**30}, "created", "invalid_request"),
    ({"messages": [], "created": "now"}, "created", "invalid_request"),
    ({"messages": [], "created": True}, "created", "invalid_request"),
    (
        {"messages": [{"role": "user", "content": "x", "timestamp": -1}]},
        "messages[0].timestamp",
        "invalid_request",
    ),
    ({"messages": [{"id": "a", "role": "user", "content": "x"}] * 2}, "messages", "invalid_request"),
    ([{"role": "user", "content": ""}] * 100_001, "messages", "invalid_request"),
]


@pytest.mark.parametrize(("value", "param", "code"), WRONG, ids=range(len(WRONG)))
def test_what_is_no_chat_is_refused_with_its_place(value: Any, param: str, code: str) -> None:
    with pytest.raises(CallerError) as caught:
        back(value)
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, param, code)


def test_markdown_is_for_reading() -> None:
    assert markdown(CHAT) == (
        "# Ann's chat\n\n"
        "## System · 2023-11-14 22:13 UTC\n\nBe kind\n\n"
        "## User · 2026-11-21 12:00 UTC\n\nWhat is it?\n\n"
        "![image](https://example.com/a_%281%29.jpg)\n\n"
        "## Assistant (qwen3-max) · 2026-11-21 12:00 UTC\n\n# A *cat*\n\n[[1]]\n\n"
        "1. [Cats (all)](https://example.org/c)\n\n"
        "## User · 2026-11-21 12:00 UTC\n\nAnd this?\n"
    )
    cut = markdown(replace(CHAT, leaf="a2"))
    assert cut.endswith("A do\n\n*Cut short: interrupted*\n")


def test_markdown_of_what_somebody_wrote_by_hand() -> None:
    odd = Entry("x", "", "user", [{"type": "file", "file": "http://a/b"}, {"type": "?"}], 10**40)
    assert markdown(chat_of(odd, leaf="x")) == "# Ann's chat\n\n## User\n\n[file](http://a/b)\n\n\n"
    assert markdown(chat_of(leaf="")) == "# Ann's chat\n"


@pytest.mark.parametrize("backwards", [False, True])
def test_a_long_chat_takes_no_long_time(backwards: bool) -> None:
    rows = [
        {"id": f"m{n}", "parentId": f"m{n - 1}", "role": "user", "content": "x", "timestamp": 1}
        for n in range(10_000)
    ]
    started_s = time.perf_counter()
    chat = back({"messages": [], "branches": rows[::-1] if backwards else rows})
    assert len(chat.branch("m9999")) == 10_000
    assert time.perf_counter() - started_s < 5


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=5),
    max_leaves=6,
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant"]), "content": st.just("x") | VALUES},
        optional=dict.fromkeys(
            ("id", "timestamp", "parentId", "info", "sources", "upstream", "partial"), VALUES
        ),
    ),
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(
    VALUES
    | st.fixed_dictionaries(
        {"messages": MESSAGES},
        optional={
            "branches": MESSAGES,
            **dict.fromkeys(("id", "name", "created", "twin", "owner"), VALUES),
        },
    )
)
def test_whatever_comes_is_a_chat_or_the_callers_fault(value: Any) -> None:
    try:
        chat = back(value)
    except (BadRequest, UnsupportedParameter):
        return
    assert (chat.id, chat.owner, chat.twin) == ("new", "key_b", None)
    assert markdown(chat)
    assert json_of(back(json_of(chat))) == json_of(chat)
