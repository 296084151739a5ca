"""`python -m qwenproxy.browser` gets what the road needs, where it is missing, and starts it once."""

from __future__ import annotations

import asyncio
import logging
import sys

from qwenproxy import logs
from qwenproxy.browser.chromium import Chromium
from qwenproxy.errors import BrowserError
from qwenproxy.settings import SettingsError, load


async def _try() -> None:
    """Raises: SettingsError, BrowserMissing, BrowserLost."""
    async with Chromium(load()) as chromium:
        running = await chromium.first()
        logging.getLogger(__name__).info("Chromium %s starts", running.browser.version)


def main() -> int:
    """The exit code."""
    logs.set_up()
    try:
        asyncio.run(_try())
    except (BrowserError, SettingsError) as exc:
        sys.stderr.write(logs.redact(f"qwenproxy: {exc}") + "\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
