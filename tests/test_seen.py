"""The reader by which the proofs judge: a reader that reads anything as right would prove nothing."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from qwenproxy.chat import Attachment, Message, Role
from qwenproxy.qwen.payload import fold, pointer
from tests.seen import answering, seen, told, unfolded

LINES = st.sampled_from(
    ["", "\n", "[0badc0de answer]", "[0badc0de user]", "[f00d answer]", "[f00d system]", "Hi\n", "\n\n", " "]
)
TEXTS = st.lists(LINES | st.text(max_size=8), max_size=6).map("".join)
ROLES: st.SearchStrategy[Role] = st.sampled_from(["user", "assistant"])


def turn(response: str, content: str, said: str, parent: str = "", chat: str = "c1") -> dict[str, Any]:
    return {"response": response, "content": content, "said": said, "parent": parent, "chat": chat}


@given(st.lists(TEXTS, max_size=2), st.lists(st.tuples(ROLES, TEXTS), min_size=1, max_size=6))
def test_what_was_folded_is_read_back_word_for_word(system: list[str], talk: list[tuple[Role, str]]) -> None:
    said: list[tuple[Role, str]] = [*(("system", text) for text in system), *talk]
    messages = [Message(role, text) for role, text in said]
    assert list(unfolded(fold(messages, "f00d5eed0000"))) == [(role, text) for role, text in said]


def test_marks_that_name_files_are_marks_too() -> None:
    cat = Attachment("image", "/v1/files/file-0/content", "cat [1].png")
    lost = Attachment("file", "", "old, and gone.txt")
    said = [Message("user", "one", (cat, lost)), Message("assistant", "1"), Message("user", "two", (cat,))]
    content = fold(said, "f00d5eed0000")
    assert "cat 1 .png" in content
    assert unfolded(content) == (("user", "one"), ("assistant", "1"), ("user", "two"))


def test_a_pointer_stands_for_its_document() -> None:
    whole = fold([Message("user", "one"), Message("assistant", "1"), Message("user", "two")], "f00d5eed0000")
    files = [
        {"kind": "image", "name": "cat.png"},
        {"kind": "document", "name": "notes.txt"},
        {"kind": "document", "name": "Pasted_Text_17.txt"},
    ]
    first = turn("a", pointer("Pasted_Text_17.txt", folded=True), "2")
    turns = [{**first, "files": files, "documents": ["Notes", whole]}]
    assert told(turns[0]) == whole
    assert seen(turns, turns[0]) == (("user", "one"), ("assistant", "1"), ("user", "two"))


def test_turns_are_followed_inside_their_own_chat() -> None:
    turns = [
        turn("a", "one", "1"),
        turn("b", "other", "2", "a"),
        turn("c", "two", "3", "a"),
        turn("a2", "foreign", "4", chat="c2"),
        turn("d", "three", "5", "c"),
    ]
    expected = [("user", "one"), ("assistant", "1"), ("user", "two"), ("assistant", "3"), ("user", "three")]
    assert list(seen(turns, answering(turns, "5"))) == expected
    assert list(seen(turns, answering(turns, "4"))) == [("user", "foreign")]


def test_a_chat_that_begins_with_a_whole_conversation_goes_on_from_it() -> None:
    told = [
        Message("system", "Be kind."),
        Message("user", "one"),
        Message("assistant", "1"),
        Message("user", "2"),
    ]
    turns = [turn("a", fold(told, "f00d5eed0000"), "two"), turn("b", "three", "end", "a")]
    expected = [(message.role, message.text) for message in told]
    assert list(seen(turns, turns[1])) == [*expected, ("assistant", "two"), ("user", "three")]
