from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenproxy.chat import Source
from qwenproxy.qwen.research_notes import ResearchNotes


def noted(*tellings: object) -> list[str | Source]:
    notes = ResearchNotes()
    found = [note for told in tellings for note in notes.push(told)]
    return [*found, *notes.close()]


def step(query: object, stage: str = "streamingWebResult", **more: Any) -> dict[str, Any]:
    return {"query": query, "stage": stage, "webSites": None, **more}


@pytest.mark.parametrize("as_list", [True, False])
def test_each_query_is_told_once(*, as_list: bool) -> None:
    def steps(*rows: dict[str, Any]) -> object:
        return list(rows) if as_list else {str(number): row for number, row in enumerate(rows)}

    one, two = step("  wind\n power "), step("heat")
    assert noted(steps(one), steps(one, two), steps(one, two), steps(two, one)) == ["wind power", "heat"]


def test_a_query_that_still_grows_is_waited_for() -> None:
    def growing(query: str) -> dict[str, Any]:
        return {"0": step(query, "streamingQueries")}

    assert noted(growing("wi"), growing("wind"), growing("wind po"), {"0": step("wind power")}) == [
        "wind power"
    ]
    # Where nothing says that it is whole, the same again does, or the end.
    assert noted({"0": {"query": "wind"}}, {"0": {"query": "wind"}}) == ["wind"]
    assert noted(growing("wi"), growing("wind")) == ["wind"]
    notes = ResearchNotes()
    assert list(notes.push(growing("wind"))) == []
    assert list(notes.push(growing("wind"))) == ["wind"]
    assert list(notes.push(growing("wind"))) == []
    assert list(notes.close()) == []


def test_a_long_query_is_cut() -> None:
    assert noted([step("x" * 1000)]) == ["x" * 300]


PAGE = {"index_number": 7, "title": "Seven", "url": "https://example.org/7"}


@pytest.mark.parametrize("references", [[PAGE, PAGE], {"first": PAGE, "again": PAGE}])
def test_pages_are_numbered_as_the_report_cites_them(references: object) -> None:
    assert noted({"references": references}, {"references": references}) == [
        Source(7, "https://example.org/7", "Seven")
    ]


@pytest.mark.parametrize(
    "page",
    [
        {**PAGE, "index_number": "7"},
        {**PAGE, "index_number": 0},
        {**PAGE, "index_number": True},
        {**PAGE, "url": "javascript:alert(1)"},
        {**PAGE, "url": None},
        "https://example.org",
    ],
)
def test_a_page_without_number_or_address_is_none(page: object) -> None:
    assert noted({"references": [page]}) == []
    assert noted({"references": [{**PAGE, "title": 5}]}) == [Source(7, "https://example.org/7", "")]


def test_files_become_links() -> None:
    notes = ResearchNotes()
    assert notes.links == ""
    told = {
        "pdf": {"name": "My [first]\nreport", "size": 5, "link": "https://cdn.example.org/a (1).pdf?key=k"},
        "md": {"name": "report.md", "size": 5, "link": "https://cdn.example.org/a.md"},
        "odd": {"name": "x", "link": "ftp://example.org"},
    }
    for _ in range(2):
        assert list(notes.push(told)) == []
    assert notes.links == (
        "[My (first) report.pdf](https://cdn.example.org/a%20%281%29.pdf?key=k)\n"
        "[report.md](https://cdn.example.org/a.md)"
    )


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["query", "stage", "references", "index_number", "url", "link", "name", "0", "md"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.lists(ANYTHING, max_size=4))
def test_nothing_that_it_may_hold_is_fatal(tellings: list[object]) -> None:
    for note in noted(*tellings):
        assert isinstance(note, str | Source)
