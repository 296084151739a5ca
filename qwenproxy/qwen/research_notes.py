"""What a deep research tells beside its report: what it looks for, which pages it cites, its files.

All of it stands in `extra.deep_research` (protocol §10.5), whose shape depends on the phase:

| phase       | shape                                                                                     |
|-------------|-------------------------------------------------------------------------------------------|
| WebResearch | steps, as a list or by number: `{"query", "researchGoal", "stage", "status", "webSites"}` |
| answer      | `{"references": [{"index_number", "title", "url"}]}`, as a list or by name                |
| PdfMdGen    | `{"pdf": {"name", "size", "link"}, "md": {…}}`                                            |

Seen in public clients and saved chats of August and September 2026; no whole recording is known, so every
shape is looked for in every phase. The report cites `[[7]]`, several as `[[29,181]]`, by `index_number`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from qwenproxy.chat import Source

WRITING: Final = "streamingQueries"
"""The stage in which a step's query may still grow."""
QUERY_CHARACTERS: Final = 300
"""How much of a query is told."""


class ResearchNotes:
    def __init__(self) -> None:
        self._told: set[str] = set()
        self._growing: dict[str, str] = {}
        """By step, a query that may not be whole."""
        self._sources: set[int] = set()
        self._files: dict[str, str] = {}
        """Names by address."""

    def push(self, research: object) -> Iterator[str | Source]:
        """What is new: queries, each once, and sources."""
        for key, row in _rows(research):
            if isinstance(row.get("query"), str):
                yield from self._query(key, row)
            self._note_file(key, row)
        if isinstance(research, Mapping):
            for _, row in _rows(research.get("references")):
                yield from self._source(row)

    def close(self) -> Iterator[str]:
        """The queries that grew till now: their phase is over."""
        growing, self._growing = self._growing, {}
        for query in growing.values():
            yield from self._new(query)

    @property
    def links(self) -> str:
        """The files in Markdown; "" where there are none."""
        return "\n".join(f"[{name}]({url})" for url, name in self._files.items())

    def _query(self, key: str, row: Mapping[str, Any]) -> Iterator[str]:
        query = " ".join(row["query"].split())[:QUERY_CHARACTERS]
        same = self._growing.get(key) == query
        if same or row.get("stage", WRITING) != WRITING:
            self._growing.pop(key, None)
            yield from self._new(query)
        elif query not in self._told:
            self._growing[key] = query

    def _new(self, query: str) -> Iterator[str]:
        if query and query not in self._told:
            self._told.add(query)
            yield query

    def _source(self, row: Mapping[str, Any]) -> Iterator[Source]:
        number, url, title = row.get("index_number"), row.get("url"), row.get("title")
        if type(number) is int and number > 0 and number not in self._sources and _is_address(url):
            self._sources.add(number)
            yield Source(number, str(url), title if isinstance(title, str) else "")

    def _note_file(self, kind: str, row: Mapping[str, Any]) -> None:
        link, name = row.get("link"), row.get("name")
        if not _is_address(link):
            return
        name = " ".join(name.split()) if isinstance(name, str) else ""
        name = name.replace("[", "(").replace("]", ")") or "report"
        name = name if name.lower().endswith(f".{kind}") else f"{name}.{kind}"
        escaped = str(link).replace(" ", "%20").replace("(", "%28").replace(")", "%29")
        self._files[escaped] = name


def _rows(value: object) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The objects in a list or in an object, each with its key."""
    pairs: Any = ()
    if isinstance(value, Mapping):
        pairs = value.items()
    elif isinstance(value, list):
        pairs = enumerate(value)
    yield from ((str(key), row) for key, row in pairs if isinstance(row, Mapping))


def _is_address(value: object) -> bool:
    return isinstance(value, str) and value.startswith(("https://", "http://"))
