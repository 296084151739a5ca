"""The proof of the rotation, small; `tests/proof/rotation.py` says what must be true and runs it long."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.proof.rotation import PEOPLE, prove
from tests.serve import Standin, running_proxy

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]


def test_many_requests_on_accounts_that_come_and_go_are_never_mixed_up(
    tmp_path: Path, standin: Standin
) -> None:
    with running_proxy(tmp_path, standin, PEOPLE, stay_up=1) as proxy:
        proof = prove(proxy, standin, tmp_path / "session", count=12 * len(PEOPLE), seed=3)
    assert proof.wrong == []
    assert len(proof.history.asked) == 36
    assert sum(not asked.code for asked in proof.history.asked) >= 12
    assert any(record["struck"] for record in proof.history.records.values())
