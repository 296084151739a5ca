"""The proofs of `tests/proof`, small: clients that leave, and processes that are killed under streams."""

from __future__ import annotations

from collections.abc import Iterator

import psutil
import pytest

from tests.proof.kill import ENDS_S, VICTIMS, strike
from tests.proof.leave import prove
from tests.serve import Proxy, Standin, running_proxy, running_standin

pytestmark = [pytest.mark.anyio, pytest.mark.browser, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Proxy, Standin]]:
    """A proxy that outlives the tests, as it should, and the stand-in that is its own."""
    folder = tmp_path_factory.mktemp("own")
    people = ("one@example.com", "two@example.com")
    with running_standin(folder) as standin, running_proxy(folder, standin, people) as proxy:
        yield proxy, standin


async def test_an_answer_never_outlives_its_client(own: tuple[Proxy, Standin]) -> None:
    proxy, standin = own
    await prove(proxy, standin, 6)
    before = psutil.Process(proxy.pid).num_fds()
    left = await prove(proxy, standin, 12)
    assert max(one.closed_s for one in left) <= 1
    await standin.until(lambda state: not any(state["chats"].values()))
    assert psutil.Process(proxy.pid).num_fds() <= before + 2


@pytest.mark.parametrize("victim", VICTIMS)
async def test_a_killed_process_ends_streams_honestly_and_is_replaced(
    own: tuple[Proxy, Standin], victim: str
) -> None:
    for _ in range(2):
        ended = await strike(own[0], victim)
        assert set(ended.codes) == {"browser_unavailable"}
        assert ended.next_s <= ENDS_S * 2, "the machine may be loaded; the proof itself says 5 s"
