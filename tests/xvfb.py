"""A virtual screen of one's own, for tests of windows that a person would see."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.serve import DEADLINE_S


@contextmanager
def virtual_screen(size: str = "1280x800x24") -> Iterator[str]:
    """The name of its display; whoever asks for one where there is no Xvfb is skipped."""
    program = shutil.which("Xvfb")
    if program is None:
        pytest.skip("no virtual screen on this computer; on Debian: apt-get install xvfb")
    read, write = os.pipe()
    command = [program, "-displayfd", str(write), "-screen", "0", size, "-nolisten", "tcp"]
    server = subprocess.Popen(command, pass_fds=[write], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.close(write)
    try:
        with os.fdopen(read) as told:
            number = told.readline().strip()
        assert number, "the virtual screen did not start"
        yield f":{number}"
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
