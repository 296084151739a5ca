"""The keys of the terminal as they are pressed, on every system; prompt_toolkit reads them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import MappingProxyType
from typing import Final

from prompt_toolkit.application.current import get_app_session
from prompt_toolkit.key_binding import KeyPress
from prompt_toolkit.keys import Keys

GONE: tuple[type[Exception], ...]
"""What a terminal raises that is not there any more."""
if sys.platform == "win32":
    GONE = (OSError,)
else:
    import termios

    GONE = (OSError, termios.error)

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
def pressed(hear: Callable[[str], object]) -> Iterator[Callable[[], None]]:
    """Tells `hear` each key while inside: letters, digits and signs as they are, of others those of `NAMES`.

    The terminal is raw, so Ctrl-C comes as a key. It is itself again afterwards, whatever happened. What is
    given makes it raw again where another program has undone that.
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

    def raw_again() -> None:
        with suppress(*GONE):
            source.raw_mode().__enter__()

    with source.raw_mode(), source.attach(ready):
        try:
            yield raw_again
        finally:
            if pending is not None:
                pending.cancel()


@contextmanager
def kept() -> Iterator[None]:
    """The terminal is afterwards what it was before, whatever other programs did to it meanwhile.

    Playwright's driver inherits it, and its Node sets it back at its own end to what it was at its start: to
    raw, when a view was shown by then.
    """
    if sys.platform == "win32" or sys.stdin is None or not sys.stdin.isatty():
        yield
        return
    terminal = sys.stdin.fileno()
    modes = termios.tcgetattr(terminal)
    try:
        yield
    finally:
        with suppress(*GONE):
            termios.tcsetattr(terminal, termios.TCSADRAIN, modes)
