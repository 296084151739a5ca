"""A person at a terminal: a command in a pseudo-terminal, keys pressed, what then stands on the screen."""

from __future__ import annotations

import contextlib
import signal
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pexpect
import psutil
import pyte

from tests.serve import DEADLINE_S, clean_environment

ENTER, ESC, UP, DOWN, CTRL_C, CTRL_D = "\r", "\x1b", "\x1b[A", "\x1b[B", "\x03", "\x04"
LOOK_S = 0.02
ALTERNATE_ON, ALTERNATE_OFF = b"\x1b[?1049h", b"\x1b[?1049l"


class Terminal:
    """What a command writes is read only while something is waited for, as a slow terminal would."""

    def __init__(self, child: pexpect.spawn[bytes], width: int, height: int) -> None:
        self.child = child
        self.written = b""
        """All of it, escape sequences too."""
        self._screen = pyte.Screen(width, height)
        self._stream = pyte.ByteStream(self._screen)
        self._processes: set[int] = set()

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self._screen.display]

    def dump(self) -> str:
        return "\n".join(self.lines).rstrip()

    def press(self, *keys: str) -> None:
        for key in keys:
            self.child.send(key)

    def resize(self, width: int, height: int) -> None:
        self._screen.resize(height, width)
        self.child.setwinsize(height, width)

    def read(self) -> None:
        """Takes what has been written by now."""
        with contextlib.suppress(pexpect.TIMEOUT, pexpect.EOF, OSError):
            while True:
                written = self.child.read_nonblocking(65536, LOOK_S)
                self.written += written
                self._stream.feed(written)

    def until(self, *texts: str, without: str = "", deadline_s: float = DEADLINE_S) -> str:
        """The screen as soon as all of this stands on it, and `without` does not."""
        end_s = time.monotonic() + deadline_s
        while True:
            self.read()
            shown = self.dump()
            if all(text in shown for text in texts) and not (without and without in shown):
                return shown
            if time.monotonic() > end_s:
                raise AssertionError(f"not on the screen: {texts}, without {without!r}\n{shown}")
            if not self.child.isalive():
                self.read()
                shown = self.dump()
                assert all(text in shown for text in texts), f"ended without {texts}:\n{shown}"

    def line_of(self, text: str) -> str:
        """The line of the screen that has it."""
        return next(line for line in self.lines if text in line)

    def running(self) -> set[int]:
        """The command's process and all it has started so far, by id."""
        with contextlib.suppress(psutil.NoSuchProcess):
            own = psutil.Process(self.child.pid)
            self._processes |= {own.pid, *(child.pid for child in own.children(recursive=True))}
        return self._processes

    def ended(self, deadline_s: float = DEADLINE_S) -> int:
        """The exit code, once it has ended by itself; the signal's number below zero."""
        end_s = time.monotonic() + deadline_s
        while self.child.isalive():
            self.read()
            assert time.monotonic() < end_s, f"it goes on:\n{self.dump()}"
        self.read()
        code: Any = self.child.exitstatus
        return int(code) if code is not None else -int(self.child.signalstatus or 0)

    def modes(self) -> tuple[int, int]:
        """The terminal's input and local flags: echo, lines, signals."""
        found = termios.tcgetattr(self.child.child_fd)
        return int(found[0]), int(found[3])

    def hang_up(self) -> None:
        """Closes the window, as it were."""
        self.child.ptyproc.fileobj.close()  # type: ignore[attr-defined]

    def set_modes(self, modes: tuple[int, int]) -> None:
        """What another program may do to the terminal."""
        found = termios.tcgetattr(self.child.child_fd)
        found[0], found[3] = modes
        termios.tcsetattr(self.child.child_fd, termios.TCSANOW, found)


@contextmanager
def terminal(
    command: Sequence[str],
    folder: Path,
    env: Mapping[str, str] | None = None,
    *,
    width: int = 100,
    height: int = 30,
) -> Iterator[Terminal]:
    """The command in a terminal of that size; made to end at the end."""
    plain = {"TERM": "xterm-256color", "LANG": "C.UTF-8", "PYTHONIOENCODING": "utf-8"}
    kept = {k: v for k, v in clean_environment().items() if k not in {"COLUMNS", "LINES", "NO_COLOR"}}
    child: pexpect.spawn[bytes] = pexpect.spawn(
        command[0],
        list(command[1:]),
        cwd=str(folder),
        env={**kept, **plain, **(env or {})},
        dimensions=(height, width),
        timeout=DEADLINE_S,
    )
    shown = Terminal(child, width, height)
    try:
        yield shown
    finally:
        shown.running()
        if child.isalive():
            child.kill(signal.SIGTERM)
            with contextlib.suppress(AssertionError):
                shown.ended(10)
        child.close(force=True)
