"""Finds a Chromium on this computer, or gets one.

The order: the setting, Playwright's own, one installed on the system, Playwright's download,
Debian's package.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import STDOUT

import anyio
from anyio.streams.text import TextReceiveStream

from qwenproxy.errors import BrowserMissing

Say = Callable[[str], None]

CHANNELS = ("chrome", "msedge")
"""Browsers that Playwright itself finds by name."""
DOWNLOAD_LIMIT_S = 900
"""Seconds for one download; about 180 MB."""
DRIVER_LIBRARY, DRIVER_PACKAGE = "libatomic.so.1", "libatomic1"
"""What Playwright's Node is linked to and a bare Debian lacks. Seen: 1.65 on Debian 12, 2026-11-21."""
HINT = "install Chrome, Edge or Chromium, or set QWENPROXY_BROWSER to the path of one"

LINUX = (
    "opt/google/chrome/chrome",
    "usr/bin/google-chrome-stable",
    "usr/bin/google-chrome",
    "opt/microsoft/msedge/msedge",
    "usr/bin/microsoft-edge-stable",
    "usr/bin/microsoft-edge",
    "usr/bin/chromium",
    "usr/bin/chromium-browser",
    "usr/local/bin/chromium",
    "snap/bin/chromium",
)
MACOS = (
    "Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
    "Applications/Chromium.app/Contents/MacOS/Chromium",
)
WINDOWS = (
    "Google/Chrome/Application/chrome.exe",
    "Microsoft/Edge/Application/msedge.exe",
    "Chromium/Application/chrome.exe",
)


@dataclass(frozen=True, slots=True)
class Executable:
    """What to launch: a file, or a name that Playwright knows the place of."""

    path: Path | None = None
    channel: str | None = None


@dataclass(frozen=True, slots=True)
class Places:
    """The folders of a system under which installed browsers are looked for."""

    platform: str
    """As `sys.platform` says it."""
    roots: tuple[Path, ...]

    @classmethod
    def of_this_computer(cls) -> Places:
        if sys.platform == "win32":
            known = ("%ProgramFiles%", "%ProgramFiles(x86)%", "%LocalAppData%")
            return cls("win32", tuple(Path(os.path.expandvars(name)) for name in known))
        if sys.platform == "darwin":
            return cls("darwin", (Path("/"), Path.home()))
        return cls("linux", (Path("/"),))

    def names(self) -> tuple[str, ...]:
        return {"win32": WINDOWS, "darwin": MACOS}.get(self.platform, LINUX)


def installed(places: Places) -> Iterator[Path]:
    """Every browser in a known place, Chrome first."""
    for name in places.names():
        yield from (root / name for root in places.roots if (root / name).is_file())


def present(setting: str, own: Path, places: Places) -> Executable | None:
    """What can be launched without getting anything; `own` is where Playwright keeps its Chromium.

    Raises:
        BrowserMissing: the setting names something that is not there.
    """
    if setting in CHANNELS:
        return Executable(channel=setting)
    if setting and setting != "chromium":
        return Executable(_set_path(setting))
    if own.is_file():
        return Executable(own)
    found = next((path for path in installed(places) if not setting or _is_chromium(path)), None)
    return Executable(found) if found else None


def _is_chromium(path: Path) -> bool:
    return "chromium" in (path.stem.lower().removesuffix("-browser"), path.parts[-3].lower())


def _set_path(setting: str) -> Path:
    path = Path(setting).expanduser()
    if not path.is_file() or not os.access(path, os.X_OK):
        raise BrowserMissing(
            f"QWENPROXY_BROWSER={setting} cannot be used: a program, chrome, msedge or chromium"
        )
    return path


async def find(
    setting: str,
    own: Path,
    say: Say,
    places: Places | None = None,
    ways: Iterable[Sequence[str]] | None = None,
) -> Executable:
    """The Chromium to launch; gets one by `ways`, the commands that can, when there is none.

    Raises:
        BrowserMissing: there is none and none could be got.
    """
    places = places or Places.of_this_computer()
    here = present(setting, own, places)
    if here:
        return here
    for command in ways if ways is not None else ways_to_get_one(places.platform):
        say(f"No Chromium found; running {' '.join(command[-3:])}")
        if await _run(command, say):
            here = present(setting, own, places)
        if here:
            return here
    raise BrowserMissing(f"no Chromium on this computer and none could be downloaded; {HINT}")


def ways_to_get_one(platform: str) -> Iterator[Sequence[str]]:
    """The download lacks the libraries that a bare Debian lacks: where we may, they are got with it."""
    libraries = ("--with-deps",) if _apt(platform) else ()
    yield (sys.executable, "-m", "playwright", "install", *libraries, "chromium")
    yield from _by_apt(platform, "chromium")


def _apt(platform: str) -> str | None:
    """Debian's package manager, where we may use it."""
    return shutil.which("apt-get") if platform == "linux" and os.geteuid() == 0 else None


def _by_apt(platform: str, package: str) -> Iterator[Sequence[str]]:
    apt = _apt(platform)
    if apt:
        yield (apt, "-q", "update")
        install = ("-qy", "--no-install-recommends", "install", package)
        yield ("/usr/bin/env", "DEBIAN_FRONTEND=noninteractive", apt, *install)


async def get_driver_library(say: Say) -> None:
    """Gets the library that Playwright's driver wants beside a bare Debian's, where we may."""
    if driver_hint():
        for command in _by_apt(sys.platform, DRIVER_PACKAGE):
            say(f"Playwright lacks {DRIVER_LIBRARY}; running {' '.join(command[-3:])}")
            await _run(command, say)


def driver_hint() -> str:
    """What may keep Playwright's driver from starting, as the end of a message; "" when nothing is known."""
    if sys.platform != "linux":
        return ""
    try:
        ctypes.CDLL(DRIVER_LIBRARY)
    except OSError:
        return f"; it wants {DRIVER_LIBRARY}, hint: apt install {DRIVER_PACKAGE}"
    return ""


async def _run(command: Sequence[str], say: Say) -> bool:
    """True when the command ended well; what it prints goes to `say`."""
    with anyio.move_on_after(DOWNLOAD_LIMIT_S):
        try:
            async with await anyio.open_process(command, stderr=STDOUT) as process:
                if process.stdout:
                    await _tell(TextReceiveStream(process.stdout, errors="replace"), say)
                return await process.wait() == 0
        except OSError:
            return False
    return False


async def _tell(output: AsyncIterable[str], say: Say) -> None:
    rest = ""
    async for text in output:
        *lines, rest = (rest + text).replace("\r", "\n").split("\n")
        for line in filter(str.strip, lines):
            say(line.rstrip())
    if rest.strip():
        say(rest.rstrip())
