"""The start scripts, with a stand-in of Python that only writes down what it was asked to do."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
LOCKS = ("requirements.lock", "requirements-test.lock")
TOOLS = ("bash", "env", "dirname", "cmp", "sed", "cp", "cat", "mkdir", "chmod")
FAKE_PYTHON = """\
#!/usr/bin/env bash
echo "$(basename "$PWD"): $*" >> "$CALLS"
case "$*" in
  "-c "*version_info*) exit "${OLD:-0}" ;;
  "-c "*) exit "${NO_VENV:-0}" ;;
  "-m venv"*) mkdir -p .venv/bin && cp "$FAKE" .venv/bin/python ;;
  *--require-hashes*) echo "Collecting anyio==4.9 (from nowhere)"; echo noise; exit "${PIP:-0}" ;;
esac
"""

needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash on this computer")


class Checkout:
    """A folder whose path has spaces, with the start script and nothing that could really be installed."""

    def __init__(self, base: Path) -> None:
        self.folder = base / "my things" / "qwen proxy"
        self.tools = base / "bin"
        self.calls = base / "calls"
        self.folder.mkdir(parents=True)
        self.tools.mkdir()
        shutil.copy(ROOT / "start.sh", self.folder)
        for lock in LOCKS:
            (self.folder / lock).write_text(f"{lock} one\n")
        (self.folder / "tests").mkdir()
        check = self.folder / "tests" / "check.sh"
        check.write_text('#!/usr/bin/env bash\necho "check: $*" >> "$CALLS"\n')
        check.chmod(0o755)
        for tool in TOOLS:
            (self.tools / tool).symlink_to(shutil.which(tool) or tool)
        (self.tools / "basename").symlink_to(shutil.which("basename") or "basename")
        self.python = self.tools / "python3"
        self.python.write_text(FAKE_PYTHON)
        self.python.chmod(0o755)

    def start(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        self.calls.write_text("")
        known = {"PATH": str(self.tools), "CALLS": str(self.calls), "FAKE": str(self.python), "CDPATH": "/"}
        return subprocess.run(
            [str(self.folder / "start.sh"), *arguments],
            cwd=self.folder.parent,
            env=known | environment,
            capture_output=True,
            text=True,
            timeout=15,
            check=False,
        )

    def asked(self) -> list[str]:
        """What Python was asked to do, without the looks at its version."""
        lines = self.calls.read_text().splitlines()
        assert all(line.startswith(("qwen proxy: ", "check: ")) for line in lines), "run in another folder"
        return [line.removeprefix("qwen proxy: ") for line in lines if ": -c " not in line]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@needs_bash
def test_the_first_start_makes_the_environment_installs_and_starts(checkout: Checkout) -> None:
    done = checkout.start("serve", "--port", "4 5")
    assert done.returncode == 0, done.stderr
    assert checkout.asked() == [
        "-m venv --clear .venv",
        "-m pip --disable-pip-version-check install --require-hashes -r requirements.lock",
        "-m pip --disable-pip-version-check install --quiet --no-deps --no-build-isolation --editable .",
        "-m qwenproxy serve --port 4 5",
    ]
    assert done.stdout == ""
    assert "Installing the packages" in done.stderr
    assert "anyio==4.9" in done.stderr
    assert "noise" not in done.stderr


@needs_bash
def test_the_second_start_installs_nothing_and_is_fast(checkout: Checkout) -> None:
    checkout.start()
    took = []
    for _ in range(5):
        begun = time.monotonic()
        done = checkout.start("demo")
        took.append(time.monotonic() - begun)
        assert (done.stdout, done.stderr) == ("", "")
        assert checkout.asked() == ["-m qwenproxy demo"]
    assert min(took) < 0.3


@needs_bash
def test_a_changed_lock_is_installed(checkout: Checkout) -> None:
    checkout.start()
    (checkout.folder / "requirements.lock").write_text("requirements.lock two\n")
    checkout.start()
    assert checkout.asked()[0] == "-m venv --clear .venv"
    checkout.start()
    assert checkout.asked() == ["-m qwenproxy"]


@needs_bash
def test_an_interrupted_installation_is_begun_afresh(checkout: Checkout) -> None:
    broken = checkout.start(PIP="1")
    assert broken.returncode == 1
    assert broken.stderr.splitlines()[-1] == "qwenproxy: the packages could not be installed"
    assert checkout.asked()[-1].endswith("-r requirements.lock")
    checkout.start()
    assert checkout.asked()[0] == "-m venv --clear .venv"


@needs_bash
def test_an_environment_whose_python_is_gone_is_made_anew(checkout: Checkout) -> None:
    checkout.start()
    python = checkout.folder / ".venv" / "bin" / "python"
    python.unlink()
    python.symlink_to(checkout.folder / "gone")
    checkout.start()
    assert checkout.asked()[0] == "-m venv --clear .venv"


@needs_bash
def test_the_checks_install_their_own_lock_and_serve_both_starts(checkout: Checkout) -> None:
    done = checkout.start("test", "-k", "some thing")
    assert done.returncode == 0, done.stderr
    assert checkout.asked()[1].endswith("--require-hashes -r requirements-test.lock")
    assert checkout.asked()[-1] == "check: -k some thing"
    checkout.start("test")
    assert checkout.asked() == ["check: "]
    checkout.start("demo")
    assert checkout.asked() == ["-m qwenproxy demo"]


@needs_bash
@pytest.mark.parametrize(
    ("environment", "missing"),
    [({"OLD": "1"}, "Python 3.11 or newer is missing"), ({"NO_VENV": "1"}, "Python's venv is missing")],
)
def test_what_is_missing_is_told_in_one_line(
    environment: dict[str, str], missing: str, checkout: Checkout
) -> None:
    done = checkout.start(**environment)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert missing in done.stderr
    assert not (checkout.folder / ".venv").exists()


@needs_bash
def test_no_python_at_all_is_one_line(checkout: Checkout) -> None:
    checkout.python.unlink()
    done = checkout.start()
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "Python 3.11 or newer is missing" in done.stderr


@needs_bash
def test_the_exit_code_is_the_programs(checkout: Checkout) -> None:
    checkout.start()
    python = checkout.folder / ".venv" / "bin" / "python"
    python.write_text("#!/usr/bin/env bash\nexit 2\n")
    assert checkout.start("serve").returncode == 2


@needs_bash
@pytest.mark.parametrize("script", ["start.sh", "tests/check.sh", ".ci/run"])
def test_the_scripts_are_executable_and_parse(script: str) -> None:
    assert os.access(ROOT / script, os.X_OK)
    subprocess.run(["bash", "-n", ROOT / script], check=True)


def test_the_windows_script_is_short_ascii_and_ends_its_lines_as_windows_does() -> None:
    script = (ROOT / "start.bat").read_bytes()
    assert script.isascii()
    assert script.endswith(b"\r\n")
    assert script.count(b"\n") == script.count(b"\r\n") <= 25
    assert (ROOT / ".gitattributes").read_text().count("*.bat text eol=crlf") == 1


def test_the_windows_script_does_the_same_three_steps() -> None:
    windows, unix = (ROOT / "start.bat").read_text(), (ROOT / "start.sh").read_text()
    steps = [
        "-m venv --clear .venv",
        "-m pip --disable-pip-version-check install",
        "--require-hashes -r",
        "--quiet --no-deps --no-build-isolation --editable .",
        "-m qwenproxy",
    ]
    for step in steps:
        assert step in windows
        assert step.removesuffix(" install") in unix
    assert 'cd /d "%~dp0"' in windows
    assert windows.splitlines()[-1] == "exit /b %CODE%"


def test_the_windows_script_waits_for_a_key_only_after_an_error_of_a_double_click() -> None:
    pauses = [line for line in (ROOT / "start.bat").read_text().splitlines() if "pause" in line]
    assert len(pauses) == 1
    assert pauses[0].startswith('if not "%CODE%"=="0" if "%~1"==""')


def test_every_label_of_the_windows_script_exists() -> None:
    script = (ROOT / "start.bat").read_text()
    assert set(re.findall(r"goto (\w+)", script)) == set(re.findall(r"^:(\w+)", script, re.MULTILINE))


def _pins(lock: str) -> dict[str, str]:
    text = (ROOT / lock).read_text()
    pins = re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE)
    return {canonicalize_name(name): version for name, version in pins}


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_pins_by_hash_and_names_no_host(lock: str) -> None:
    text = (ROOT / lock).read_text()
    blocks = re.split(r"^(?=[\w.-]+==)", text, flags=re.MULTILINE)[1:]
    assert len(blocks) == len(_pins(lock))
    assert all("--hash=sha256:" in block for block in blocks)
    assert not re.search(r"https?:|file:|--index|--extra-index|--find-links|--trusted|@ ", text)


def test_the_lock_of_the_checks_holds_the_other_whole() -> None:
    assert _pins("requirements.lock").items() <= _pins("requirements-test.lock").items()


def test_the_locks_satisfy_the_project_file() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    named = {
        "requirements.lock": [*project["project"]["dependencies"], *project["build-system"]["requires"]],
        "requirements-test.lock": project["project"]["optional-dependencies"]["test"],
    }
    assert project["dependency-groups"]["build"] == project["build-system"]["requires"]
    for lock, requirements in named.items():
        pins = _pins(lock)
        for requirement in map(Requirement, requirements):
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement
