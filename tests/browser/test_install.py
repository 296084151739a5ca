from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from qwenproxy.browser.install import (
    LINUX,
    MACOS,
    WINDOWS,
    Executable,
    Places,
    find,
    installed,
    present,
    ways_to_get_one,
)
from qwenproxy.errors import BrowserMissing

NOWHERE = Places("linux", ())


def program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o755)
    return path


@pytest.mark.parametrize(("platform", "names"), [("linux", LINUX), ("darwin", MACOS), ("win32", WINDOWS)])
def test_browsers_are_found_in_the_known_places_of_each_system(
    platform: str, names: tuple[str, ...], tmp_path: Path
) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    programs = [program((first, second)[number % 2] / name) for number, name in enumerate(names)]
    assert list(installed(Places(platform, (first, second)))) == programs


def test_playwrights_own_goes_before_the_systems(tmp_path: Path) -> None:
    system = program(tmp_path / "usr/bin/chromium")
    places = Places("linux", (tmp_path,))
    own = tmp_path / "own" / "chrome"
    assert present("", own, places) == Executable(system)
    program(own)
    assert present("", own, places) == Executable(own)


def test_the_setting_goes_first(tmp_path: Path) -> None:
    own, wanted = program(tmp_path / "own"), program(tmp_path / "my browser")
    assert present(str(wanted), own, NOWHERE) == Executable(wanted)
    assert present("chrome", own, NOWHERE) == Executable(channel="chrome")
    assert present("msedge", own, NOWHERE) == Executable(channel="msedge")
    assert present("chromium", own, NOWHERE) == Executable(own)


def test_the_channel_chromium_is_never_another_browser(tmp_path: Path) -> None:
    program(tmp_path / "usr/bin/google-chrome")
    places = Places("linux", (tmp_path,))
    assert present("chromium", tmp_path / "own", places) is None
    chromium = program(tmp_path / "usr/bin/chromium")
    assert present("chromium", tmp_path / "own", places) == Executable(chromium)


@pytest.mark.parametrize("setting", ["/nowhere/chrome", "firefox", "."])
def test_a_setting_that_is_no_program_is_named(setting: str, tmp_path: Path) -> None:
    with pytest.raises(BrowserMissing, match=f"QWENPROXY_BROWSER={setting}"):
        present(setting, program(tmp_path / "own"), NOWHERE)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows knows no executable bit")
def test_a_file_that_may_not_be_run_is_no_browser(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.touch(mode=0o644)
    with pytest.raises(BrowserMissing):
        present(str(text), tmp_path, NOWHERE)


@pytest.mark.anyio
async def test_one_is_got_when_there_is_none_and_progress_is_shown(tmp_path: Path) -> None:
    own, said = tmp_path / "own", list[str]()
    makes_one = f"import pathlib; print('10%', end='\\r'); print('100%'); pathlib.Path({str(own)!r}).touch()"
    ways = [(sys.executable, "-c", "raise SystemExit(1)"), (sys.executable, "-c", makes_one)]
    assert await find("", own, said.append, NOWHERE, ways) == Executable(own)
    assert said[-2:] == ["10%", "100%"]


@pytest.mark.anyio
async def test_when_all_fails_one_line_says_how_to_get_one(tmp_path: Path) -> None:
    ways = [("/no/such/program",), (sys.executable, "-c", "raise SystemExit(1)")]
    with pytest.raises(BrowserMissing, match="install Chrome") as caught:
        await find("", tmp_path / "own", lambda _line: None, NOWHERE, ways)
    assert "\n" not in str(caught.value)


def test_the_first_way_is_playwrights_download() -> None:
    for platform in ("linux", "darwin", "win32"):
        _, *words = next(iter(ways_to_get_one(platform)))
        assert [word for word in words if word != "--with-deps"] == [
            "-m",
            "playwright",
            "install",
            "chromium",
        ]
        may = platform == "linux" and shutil.which("apt-get") and os.geteuid() == 0
        assert ("--with-deps" in words) == bool(may)
