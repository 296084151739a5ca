"""Chats as trees, and the seed's files read and written."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenproxy.chat import Attachment, Message, UpstreamChat
from qwenproxy.errors import BadRequest, UnknownChat
from qwenproxy.transcript import PENDING, Entry, Transcript, transcript_of, window

NEW = Transcript("c", "Talk", 1_000)
SEED_FILE = {
    "id": "c",
    "name": "Разговор",
    "created": 1_234_567_890_000,
    "messages": [
        {"id": "u1", "role": "user", "content": "Привет", "timestamp": 1_234_567_890, "chat_type": "t2t"},
        {
            "id": "a1",
            "role": "assistant",
            "content": "Здравствуйте",
            "timestamp": 1_234_567_891,
            "chat_type": "t2t",
            "info": {"total_tokens": 3},
        },
    ],
}


def ask(chat: Transcript, text: str, parent_id: str = "") -> tuple[Transcript, str]:
    """Questions are named q1, q2, … in the order they come."""
    new_id = f"q{1 + sum(entry.role == 'user' for entry in chat.entries.values())}"
    chat, question = chat.asked(text, parent_id=parent_id, new_id=new_id, timestamp=5)
    return chat, question.id


def answer(chat: Transcript, answer_id: str, **more: Any) -> Transcript:
    return chat.answered(Entry(answer_id, chat.leaf, "assistant", f"answer {answer_id}", 6, **more))


def talk(chat: Transcript, *texts: str) -> Transcript:
    for text in texts:
        chat, question = ask(chat, text)
        chat = answer(chat, f"a{question[1:]}", upstream_chat="up", upstream_response=f"r{question[1:]}")
    return chat


def ids(chat: Transcript) -> list[str]:
    return [entry.id for entry in chat.branch()]


# ---- turns ----


def test_a_talk_is_a_chain() -> None:
    chat = talk(NEW, "one", "two")
    assert ids(chat) == ["q1", "a1", "q2", "a2"]
    assert not any(entry.unanswered for entry in chat.branch())
    assert NEW.branch() == ()


def test_a_question_that_is_sent_again_is_the_same_question() -> None:
    chat, first = ask(talk(NEW, "one"), "two")
    assert chat.entries[first].unanswered == PENDING
    again, second = ask(chat.failed(first, "queue_full"), "two")
    assert second == first
    assert ids(again) == ["q1", "a1", "q2"]
    assert again.entries[first].unanswered == PENDING


def test_a_question_without_an_answer_gives_its_place_to_the_next() -> None:
    chat, first = ask(talk(NEW, "one"), "two")
    chat, _ = ask(chat.failed(first, "queue_full"), "three")
    assert ids(chat) == ["q1", "a1", "q3"]
    assert [entry.unanswered for entry in chat.others()] == ["queue_full"]


def test_a_partial_answer_stays_unless_its_question_comes_again() -> None:
    chat, question = ask(NEW, "one")
    chat = answer(chat, "a1", partial="interrupted")
    assert ids(ask(chat, "two")[0]) == ["q1", "a1", "q2"]
    again, same = ask(chat, "one")
    assert same == question
    assert ids(answer(again, "a2")) == ["q1", "a2"]
    assert ids(talk(NEW, "one", "one")) == ["q1", "a1", "q2", "a2"]


def test_the_same_question_after_the_same_answer_is_the_same_question() -> None:
    chat = talk(NEW, "one", "two", "three")
    again, question = ask(chat, "two", parent_id="a1")
    assert question == "q2"
    assert ids(answer(again, "a4")) == ["q1", "a1", "q2", "a4"]
    other, _ = ask(chat, "else", parent_id="a1")
    assert ids(other) == ["q1", "a1", "q4"]
    assert {entry.id for entry in other.others()} == {"q2", "a2", "q3", "a3"}


def test_a_parent_has_to_be_an_answer_of_the_chat() -> None:
    with pytest.raises(UnknownChat) as caught:
        ask(NEW, "one", parent_id="nowhere")
    assert caught.value.param == "parentId"
    with pytest.raises(BadRequest):
        ask(talk(NEW, "one"), "two", parent_id="q1")


def test_an_answer_made_anew_is_a_sibling() -> None:
    chat, question = talk(NEW, "one", "two").asked_again()
    assert question.id == "q2"
    assert ids(answer(chat, "b2")) == ["q1", "a1", "q2", "b2"]
    first, question = talk(NEW, "one", "two").asked_again("a1")
    assert question.id == "q1"
    assert ids(answer(first, "b1")) == ["q1", "b1"]
    assert talk(NEW, "one").asked_again("q1")[1].id == "q1"


def test_an_answer_that_could_not_be_made_anew_leaves_the_old_ones() -> None:
    chat, question = talk(NEW, "one", "two").asked_again("a1")
    failed = chat.failed(question.id, "queue_full")
    assert ids(failed) == ["q1", "a1", "q2", "a2"]
    assert not failed.entries["q1"].unanswered


def test_nothing_can_be_answered_again_where_nothing_was_asked() -> None:
    with pytest.raises(BadRequest):
        NEW.asked_again()
    with pytest.raises(UnknownChat):
        talk(NEW, "one").asked_again("nowhere")
    system = NEW.preceded(Entry("s", "", "system", "Be brief", 1))
    with pytest.raises(BadRequest):
        system.asked_again("s")


# ---- what people change ----


def test_an_edit_ends_the_likeness_of_all_that_follows() -> None:
    chat = talk(NEW, "one", "two")
    edited = chat.edited("q2", "zwei")
    assert edited.entries["q2"].content == "zwei"
    assert [entry.upstream_response for entry in edited.branch()] == ["", "r1", "", ""]
    assert ids(edited) == ids(chat)
    assert chat.edited("q2", "two") is chat


def test_a_fork_holds_what_led_to_the_message() -> None:
    chat = replace(talk(NEW, "one", "two"), owner="key_1", twin=UpstreamChat("up", "acc"))
    fork = chat.forked("a1", new_id="d", created=9)
    assert (fork.id, fork.created, ids(fork), fork.owner) == ("d", 9, ["q1", "a1"], "key_1")
    assert (fork.twin, fork.untwinned) == (None, "forked")
    assert not any(entry.upstream_response for entry in fork.branch())


def test_a_move_ends_the_twin_unless_it_is_there_already() -> None:
    chat = replace(NEW, twin=UpstreamChat("up", "acc_1"))
    assert chat.moved("acc_1") is chat
    moved = chat.moved("acc_2")
    assert (moved.account, moved.twin, moved.untwinned) == ("acc_2", None, "moved")


def test_the_model_of_a_question_is_the_one_that_answered_it_or_the_one_before() -> None:
    chat, _ = ask(answer(ask(NEW, "one")[0], "a1", model="m1"), "two")
    assert chat.model_of("q2") == "m1"
    assert answer(chat, "a2", model="m2").model_of("q2") == "m2"
    assert NEW.model_of("q1") == ""


# ---- what the model is told ----


def test_parts_are_told_as_text_and_attachments() -> None:
    content = [
        {"type": "text", "text": "What is this?"},
        {"type": "image", "image": "https://x/a.png"},
        {"type": "file", "file": "https://x/a.pdf"},
    ]
    entry = Entry("m", "", "user", content, 0)
    assert entry.message == Message(
        "user",
        "What is this?",
        (Attachment("image", "https://x/a.png"), Attachment("file", "https://x/a.pdf")),
    )


def test_other_addresses_of_the_same_change_nothing_else() -> None:
    picture = {"type": "image", "image": "https://x/a.png", "detail": "low"}
    odd: list[dict[str, Any]] = [
        {"type": "text", "text": "https://x/a.png"},
        {"type": "image"},
        {"type": "file", "file": 5},
    ]
    chat, asked = NEW.asked([picture, *odd], parent_id="", new_id="q1", timestamp=1)
    chat = answer(replace(chat, twin=UpstreamChat("up", "a")), "a1", upstream_response="r1")
    chat, _ = ask(chat, "https://x/a.png")
    moved = chat.readdressed({"https://x/a.png": "/v1/files/1"})
    assert moved.entries["q1"].content == [{**picture, "image": "/v1/files/1"}, *odd]
    back = replace(moved.entries["q1"], content=asked.content)
    assert replace(moved, entries={**moved.entries, "q1": back}) == replace(chat, entries=dict(chat.entries))


@given(st.integers(0, 3), st.integers(0, 9), st.integers(1, 12))
def test_the_window_keeps_the_system_the_newest_and_whole_pairs(system: int, pairs: int, most: int) -> None:
    told = [Entry(f"s{n}", "", "system", "", 0) for n in range(system)]
    turns = [
        [Entry(f"q{n}", "", "user", "", 0), Entry(f"a{n}", "", "assistant", "", 0)] for n in range(pairs)
    ]
    path = [*told, *itertools.chain(*turns), Entry("last", "", "user", "", 0)]
    kept = window(path, most)
    assert len(kept) <= most
    assert kept[-1].id == "last"
    assert [entry for entry in path if entry in kept] == list(kept)
    rest = [entry for entry in kept if entry.role != "system"]
    assert rest == path[len(path) - len(rest) :]
    assert rest[0].role == "user"
    if most > system:
        assert [entry for entry in kept if entry.role == "system"] == told
    if len(path) <= most:
        assert list(kept) == path
    elif most > system + 2:
        assert len(kept) >= most - 1


# ---- files ----


def test_the_seeds_file_is_read_and_still_is_one_when_written() -> None:
    chat = transcript_of(SEED_FILE, "c")
    assert (chat.name, chat.created, chat.leaf) == ("Разговор", 1_234_567_890_000, "a1")
    written = chat.to_json()
    for before, after in zip(SEED_FILE["messages"], written["messages"], strict=True):  # type: ignore[call-overload]
        assert before.items() <= after.items()
    assert "branches" not in written


def test_the_older_form_is_a_bare_list() -> None:
    chat = transcript_of(SEED_FILE["messages"], "c")
    assert ids(chat) == ["u1", "a1"]
    assert (chat.id, chat.name, chat.created) == ("c", "New chat", 1_234_567_890_000)


def test_what_is_written_is_read_back() -> None:
    chat = talk(NEW, "one", "two", "three")
    chat = answer(chat.asked_again("a2")[0], "b2", partial="severed", reasoning="hm", rebuilt="edited")
    chat, _ = ask(chat, "four")
    chat = replace(
        chat,
        owner="key_1",
        account="acc",
        twin=UpstreamChat("up", "acc"),
        untwinned="x",
        more={"folder": "work"},
    )
    back = transcript_of(json.loads(json.dumps(chat.to_json())), "c")
    assert back.to_json() == chat.to_json()
    assert replace(back, entries=chat.entries) == chat
    assert set(back.entries) == set(chat.entries)
    assert list(back.entries)[: len(chat.branch())] == ids(chat)


def test_what_others_wrote_is_kept() -> None:
    raw = {**SEED_FILE, "starred": True, "messages": [{**SEED_FILE["messages"][0], "mood": "good"}]}  # type: ignore[index]
    written = transcript_of(raw, "c").to_json()
    assert written["starred"] is True
    assert written["messages"][0]["mood"] == "good"


def test_messages_without_an_id_get_one_that_stays() -> None:
    raw = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert ids(transcript_of(raw, "c")) == ids(transcript_of(raw, "c"))
    assert len(set(ids(transcript_of(raw, "c")))) == 2
    twice = [{**message, "id": "same"} for message in raw]
    assert len(set(ids(transcript_of(twice, "c")))) == 2


@pytest.mark.parametrize(
    "odd",
    [
        7,
        "x",
        {"messages": 3},
        {"messages": ["x"]},
        {"messages": [{"content": "no role"}]},
        {"messages": [{"role": "user", "content": 5}]},
    ],
)
def test_what_is_no_chat_is_told_and_not_taken_for_an_empty_one(odd: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        transcript_of(odd, "c")


@pytest.mark.parametrize("parents", [{"b1": "b2", "b2": "b1"}, {"b1": "nowhere", "b2": "b1"}])
def test_branches_that_somebody_broke_lose_no_message(parents: dict[str, str]) -> None:
    branches = [
        {"id": name, "role": "user", "content": name, "parentId": parent} for name, parent in parents.items()
    ]
    chat = transcript_of({**SEED_FILE, "branches": branches}, "c")
    assert set(chat.entries) == {"u1", "a1", "b1", "b2"}
    assert ids(chat) == ["u1", "a1"]
    assert set(transcript_of(chat.to_json(), "c").entries) == set(chat.entries)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "id",
                        "role",
                        "content",
                        "messages",
                        "created",
                        "twin",
                        "branches",
                        "parentId",
                        "timestamp",
                        "upstream",
                        "sources",
                        "info",
                    ]
                ),
                inner,
            )
        ),
        max_leaves=12,
    )
)
def test_no_file_is_too_strange(value: Any) -> None:
    try:
        chat = transcript_of(value, "c")
    except ValueError:
        return
    assert transcript_of(chat.to_json(), "c").to_json() == chat.to_json()
