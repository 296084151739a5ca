"""The proofs of `tests/proof`, small: clients that leave, and processes that are killed under streams."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from tests.proof.kill import ENDS_S, VICTIMS, strike
from tests.proof.leave import prove
from tests.serve import Standin, running_proxy

pytestmark = [pytest.mark.anyio, pytest.mark.browser, pytest.mark.timeout(120)]


async def test_an_answer_never_outlives_its_client(tmp_path: Path, standin: Standin) -> None:
    with running_proxy(tmp_path, standin) as proxy:
        await prove(proxy, standin, 3)
        before = psutil.Process(proxy.pid).num_fds()
        left = await prove(proxy, standin, 12)
        assert max(one.closed_s for one in left) <= 1
        await standin.until(lambda state: not any(state["chats"].values()))
        assert psutil.Process(proxy.pid).num_fds() <= before + 2


@pytest.mark.parametrize("victim", VICTIMS)
async def test_a_killed_process_ends_streams_honestly_and_is_replaced(
    tmp_path: Path, standin: Standin, victim: str
) -> None:
    with running_proxy(tmp_path, standin, ("one@example.com", "two@example.com")) as proxy:
        for _ in range(2):
            ended = await strike(proxy, victim)
            assert set(ended.codes) == {"browser_unavailable"}
            assert ended.next_s <= ENDS_S * 2, "the machine may be loaded; the proof itself says 5 s"
