"""Programs of one version each, installed once into a folder of their own outside the repository.

That folder is `QWENPROXY_CLIENTS_DIR`, else `~/.cache/qwenproxy-clients`; delete it to have all made anew.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from filelock import FileLock

from tests.clients.node_package import PACKAGE

NODE = "22.23.3"
"""Comes as an npm package: newer than what this computer may have, and what the newest programs want."""
INSTALL_S = 900
DONE = "installed"
"""The file that tells that an installation is whole."""


def clients_folder() -> Path:
    return Path(os.environ.get("QWENPROXY_CLIENTS_DIR") or Path.home() / ".cache" / "qwenproxy-clients")


def node_folder() -> Path:
    """The folder with `node`; it goes first in `PATH`."""
    return npm_package("node", NODE) / "node_modules" / "node" / "bin"


def npm_package(name: str, version: str, path: str = "") -> Path:
    """The folder whose `node_modules` has the package; `path` is the `PATH` it is installed under."""

    def install(folder: Path) -> None:
        (folder / "package.json").write_text(PACKAGE)
        command = ["npm", "install", "--silent", "--no-fund", "--no-audit", f"{name}@{version}"]
        _run(command, folder, path or os.environ["PATH"])

    return _once(f"{name.rpartition('/')[2]}-{version}", install)


def pip_packages(name: str, *requirements: str) -> Path:
    """A virtual environment with them: the folder of its programs."""

    def install(folder: Path) -> None:
        _run([sys.executable, "-m", "venv", "--clear", "."], folder)
        pip = ["bin/python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        _run([*pip, *requirements], folder)

    return _once(name, install) / "bin"


def _once(name: str, install: Callable[[Path], None]) -> Path:
    folder = clients_folder() / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / ".lock"):
        if not (folder / DONE).exists():
            print(f"installing {name} into {folder.parent}", flush=True)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            install(folder)
            (folder / DONE).touch()
    return folder


def _run(command: Sequence[str], folder: Path, path: str | None = None) -> None:
    env = {**os.environ, "PATH": path or os.environ["PATH"]}
    ran = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=INSTALL_S)
    if ran.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {ran.stderr.strip()[-1000:]}")
