"""A deep research as the stand-in plays it: a question first, then a long run with a report (protocol §10.5).

The order of the phases is known from public clients, their `extra` only in part: the steps of a run are told
by number, as a dictionary, and grow; the references come with the end of the report; the files come last.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from .frames import Done, Head, Pause, Step
from .media import report

if TYPE_CHECKING:
    from .answers import Scene

MARK: Final = "research"
TYPE: Final = "deep_research"
SILENCE_S: Final = 3.0
"""How long each of the two silences of a run is; the real run takes 7 to 11 minutes."""
QUESTION: Final = (
    "Before I begin: which side of it matters most, how deep should I go, and who will read the report?"
)
PAGES: Final = 3


def answered(scene: Scene) -> Iterator[Step]:
    """`research silence_s=… report=0`: the question, or to the second message the run; perhaps no report."""
    yield Head()
    yield scene.frames.created()
    yield from _run(scene) if scene.turn.sub_kind == TYPE else _question(scene)


def _question(scene: Scene) -> Iterator[Step]:
    yield from scene.spoken(QUESTION)
    yield from scene.end()


def _run(scene: Scene) -> Iterator[Step]:
    frames = scene.frames
    yield from _noted(scene, "ResearchNotice", "I have what I need. The report will take some minutes. ")
    yield from _noted(scene, "ResearchPlanning", "First I look at what there is, then I compare. ")
    yield from _searched(scene)
    if scene.switch.whole("report", 1):
        yield from scene.spoken(_report(scene))
        yield frames.empty()
        yield frames.phase_finished("answer", {"deep_research": {"references": _references()}})
        yield frames.note("KeepAlive")
        files = {"deep_research": report(scene.records, scene.turn)}
        yield frames.note("PdfMdGen", extra=files)
    else:
        files = {}
    yield Done()
    yield frames.terminal("PdfMdGen", files)


def _noted(scene: Scene, phase: str, text: str) -> Iterator[Step]:
    for word in text.split(" "):
        yield scene.gap
        yield scene.frames.note(phase, f"{word} " if word else "")
    yield scene.frames.phase_finished(phase)


def _searched(scene: Scene) -> Iterator[Step]:
    """Two threads side by side, whose queries grow while they are written."""
    queries = {"0": "the stand-in on loopback", "1": "what the stand-in is not"}
    half = {key: _step(query[: len(query) // 2], "streamingQueries") for key, query in queries.items()}
    yield _steps(scene, half)
    whole = {key: _step(query, "streamingQueries") for key, query in queries.items()}
    yield _steps(scene, whole)
    yield _steps(scene, {"0": _step(queries["0"], "streamingWebResult")})
    yield from _silent(scene)
    sites = [_page(number) for number in range(1, PAGES + 1)]
    yield _steps(scene, {key: _step(query, "WebResultFinished", sites) for key, query in queries.items()})
    yield from _silent(scene)
    yield scene.frames.phase_finished("WebResearch")


def _silent(scene: Scene) -> Iterator[Step]:
    yield Pause(scene.switch.number("silence_s", SILENCE_S) / 2)
    yield scene.frames.note("KeepAlive")
    yield Pause(scene.switch.number("silence_s", SILENCE_S) / 2)


def _steps(scene: Scene, steps: dict[str, Any]) -> bytes:
    return scene.frames.note("WebResearch", extra={"deep_research": steps})


def _step(query: str, stage: str, sites: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    goal = f"Find out about {query}"
    return {"query": query, "researchGoal": goal, "stage": stage, "status": "running", "webSites": sites}


def _page(number: int) -> dict[str, Any]:
    return {"url": f"https://example.org/{number}", "title": f"Page {number}", "description": "…"}


def _references() -> list[dict[str, Any]]:
    return [{"index_number": number, **_page(number)} for number in range(1, PAGES + 1)]


def _report(scene: Scene) -> str:
    asked = next(iter(scene.turn.before), scene.turn).prompt
    return (
        f"# Report of the stand-in\n\nIt was to be found out: {asked}\n\n"
        "## What there is\n\nThe stand-in speaks on loopback [[1]], and nowhere else [[2,3]].\n\n"
        "## What that means\n\nNo page was read, and no model wrote this: every piece of it came through "
        "the road that a real report would take."
    )
