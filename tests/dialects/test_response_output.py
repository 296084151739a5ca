"""The items of an answer, while they grow."""

from __future__ import annotations

import pytest

from qwenproxy.chat import Media, Source
from qwenproxy.dialects.response_output import Item, Reasoning, Saying, Searching, citations

ONE, TWO = Source(1, "https://example.org/1", "One"), Source(2, "https://example.org/2", "Two")


def places(text: str, told: set[int] | None = None) -> list[tuple[str, int, int]]:
    found = citations(text, [TWO, ONE], set() if told is None else told)
    return [(each["title"], each["start_index"], each["end_index"]) for each in found]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [("One", 0, 0), ("Two", 0, 0)]),
        ("So [[2]].", [("One", 0, 0), ("Two", 3, 8)]),
        ("[[1]] [[2]] [[1]]", [("One", 0, 5), ("Two", 6, 11)]),
        ("[[12]]", [("One", 0, 0), ("Two", 0, 0)]),
    ],
)
def test_citations_stand_in_the_order_numbered(text: str, expected: list[tuple[str, int, int]]) -> None:
    assert places(text) == expected


def test_only_what_is_cited_is_told_again() -> None:
    told: set[int] = set()
    assert len(places("none", told)) == 2
    assert places("again [[2]]", told) == [("Two", 6, 11)]


def test_pictures_stand_apart() -> None:
    message = Saying()
    pieces = [
        message.grow("Here"),
        message.show(Media("http://a b")),
        message.show(Media("http://c")),
        message.grow("There"),
        message.grow("."),
    ]
    assert pieces == ["Here", "\n\n![image](http://a%20b)", "\n\n![image](http://c)", "\n\nThere", "."]
    assert message.text == "".join(pieces)


def test_a_picture_alone() -> None:
    assert Saying().show(Media("http://c")) == "![image](http://c)"


def test_items_whole() -> None:
    reasoning = Reasoning()
    reasoning.grow("a")
    reasoning.grow("b")
    assert reasoning.whole("rs_1", "completed") == {
        "id": "rs_1",
        "type": "reasoning",
        "status": "completed",
        "summary": [{"type": "summary_text", "text": "ab"}],
    }
    search = Searching()
    search.sources.append(ONE)
    assert search.whole("ws_1", "completed")["action"]["sources"] == [{"type": "url", "url": ONE.url}]


@pytest.mark.parametrize(
    ("item", "opening", "closing"),
    [
        (
            Reasoning(),
            ["response.reasoning_summary_part.added"],
            ["response.reasoning_summary_text.done", "response.reasoning_summary_part.done"],
        ),
        (
            Saying(),
            ["response.content_part.added"],
            ["response.output_text.done", "response.content_part.done"],
        ),
        (
            Searching(),
            ["response.web_search_call.in_progress", "response.web_search_call.searching"],
            ["response.web_search_call.completed"],
        ),
    ],
)
def test_how_items_begin_and_end(item: Item, opening: list[str], closing: list[str]) -> None:
    begun = item.begun("x_1")
    assert (begun["id"], begun["status"]) == ("x_1", "in_progress")
    assert [name for name, _ in item.opening()] == opening
    assert [name for name, _ in item.closing()] == closing


def test_a_message_ends_with_its_citations() -> None:
    message = Saying()
    message.grow("So [[1]].")
    message.annotations = citations(message.text, [ONE], set())
    (name, fields), *_, (_, part) = message.closing()
    assert (name, fields["annotation"]["url"]) == ("response.output_text.annotation.added", ONE.url)
    whole = message.whole("msg_1", "completed")
    assert whole["content"] == [part["part"]]
    assert part["part"]["annotations"] == message.annotations
