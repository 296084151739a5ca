from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from qwenproxy.browser.chromium import Chromium
from qwenproxy.browser.contexts import BrowserTransport
from qwenproxy.browser.login import sign_in
from qwenproxy.errors import TokenRejected
from qwenproxy.qwen.transport import Fetch
from qwenproxy.settings import Settings
from tests.serve import Standin, running_standin

pytestmark = [pytest.mark.anyio, pytest.mark.browser, pytest.mark.timeout(90)]


@contextmanager
def demo_standin(folder: Path, era: str) -> Iterator[Standin]:
    """Its sign-in page fills and sends its own form."""
    with running_standin(folder, era=era, arguments=["--demo"]) as standin:
        yield standin


@pytest.mark.parametrize("era", ["B", "C"])
async def test_what_a_sign_in_leaves_is_enough_for_the_road(
    era: str, chromium: Chromium, tmp_path: Path
) -> None:
    with demo_standin(tmp_path, era) as standin:
        settings = Settings(upstream=standin.site, auth_upstream=standin.auth)
        state: dict[str, Any] = await sign_in(chromium, standin.site, deadline_s=40)
        assert (await chromium.current()).browser.contexts == []
        async with (
            BrowserTransport(settings, lambda _: state, chromium=chromium) as transport,
            transport.fetch("demo", Fetch("GET", "/api/v2/chats/?page=1")) as fetched,
        ):
            assert fetched.headers["x-actual-status-code"] == "200"
            assert fetched.credential


async def test_when_nobody_signs_in_nothing_is_left_open(standin: Standin, chromium: Chromium) -> None:
    await chromium.current()
    with pytest.raises(TokenRejected):
        await sign_in(chromium, standin.site, deadline_s=2)
    assert (await chromium.current()).browser.contexts == []
