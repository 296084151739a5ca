"""The proof of `tests/proof/large_files.py`, small, and that its judge finds what is wrong."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.proof.large_files import Film, judged, orphans, prove, strike
from tests.serve import Standin, running_proxy, running_proxy_of, until_async

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

SIZE = 3_000_000


def test_uploads_at_once_arrive_whole_and_leave_nothing(standin: Standin, tmp_path: Path) -> None:
    with running_proxy(tmp_path, standin, storage_endpoint=standin.site) as proxy:
        outcome = asyncio.run(prove(proxy, standin, tmp_path, 8, SIZE))
        assert outcome.holds, outcome
        assert asyncio.run(strike(proxy, tmp_path, 4, 20 * SIZE))
    with running_proxy_of(tmp_path, standin):
        asyncio.run(until_async(lambda: not orphans(tmp_path)))


def test_the_judge_finds_what_is_missing_altered_or_there_twice() -> None:
    films = [Film(number, 1000) for number in range(4)]
    lying = [{"sha256": film.sha256(), "size": 1000} for film in films[:3]]
    lying[1]["sha256"] = "0" * 64
    assert judged(films, [*lying, lying[2]]) == ["film 1", "film 2", "film 3"]
    assert sum(map(len, films[0].pieces())) == 1000
