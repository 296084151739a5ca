"""The keys of the terminal as they are pressed, on every system; prompt_toolkit reads them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import MappingProxyType
from typing import Final

from prompt_toolkit.application.current import get_app_session
from prompt_toolkit.key_binding import KeyPress
from prompt_toolkit.keys import Keys

ESC_S: Final = 0.1
"""After an escape character that long without another, it was the Esc key and not the start of an arrow."""
NAMES: Final = MappingProxyType(
    {
        Keys.Escape: "esc",
        Keys.ControlC: "ctrl-c",
        Keys.ControlM: "enter",
        Keys.ControlJ: "enter",
        Keys.Backspace: "backspace",
        Keys.Delete: "backspace",
    }
)


RUSSIAN: Final = str.maketrans("йцукенгшщзфывапролдячсмить", "qwertyuiopasdfghjklzxcvbnm")
"""The letter that stands on the same key: nobody changes the layout for one press."""


@contextmanager
def pressed(hear: Callable[[str], object]) -> Iterator[None]:
    """Tells `hear` each key while inside: letters, digits and signs as they are, of others those of `NAMES`.

    The terminal is raw, so Ctrl-C comes as a key. It is itself again afterwards, whatever happened.
    """
    source = get_app_session().input
    loop = asyncio.get_running_loop()
    pending: asyncio.TimerHandle | None = None

    def tell(presses: Iterable[KeyPress]) -> None:
        for press in presses:
            known = NAMES.get(press.key) if isinstance(press.key, Keys) else press.key.translate(RUSSIAN)
            if known is not None and (len(known) > 1 or known.isprintable()):
                hear(known)

    def ready() -> None:
        nonlocal pending
        tell(source.read_keys())
        if pending is not None:
            pending.cancel()
        pending = loop.call_later(ESC_S, lambda: tell(source.flush_keys()))

    with source.raw_mode(), source.attach(ready):
        try:
            yield
        finally:
            if pending is not None:
                pending.cancel()
