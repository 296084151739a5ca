"""The official `openai` package for Node, of one version, installed from npm once for each `.venv`."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

VERSION = "6.49.0"
"""The last major version that runs on Node 20; 7 wants 22."""
LEAST_NODE = 20
INSTALL_S = 180
PACKAGE = '{"type": "module", "private": true}'


class Missing(Exception):
    """The package cannot be had here; the message says why."""


def node_missing() -> str:
    """Why JavaScript cannot be run here; "" where it can."""
    if shutil.which("node") is None:
        return "there is no node on this computer"
    told = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout
    major = re.match(r"v(\d+)", told)
    known = major is not None and int(major[1]) >= LEAST_NODE
    return "" if known else f"node {told.strip()} is older than {LEAST_NODE}"


def node_modules() -> Path:
    """The folder `node_modules` with the package.

    Raises:
        Missing: node or npm is not there or too old, or npm cannot install it.
    """
    if why := node_missing():
        raise Missing(why)
    npm = shutil.which("npm")
    if npm is None:
        raise Missing("there is no npm on this computer")
    kept = Path(sys.prefix) / "node" / f"openai-{VERSION}"
    if not kept.exists():
        _install(npm, kept)
    return kept / "node_modules"


def _install(npm: str, kept: Path) -> None:
    kept.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=kept.parent) as name:
        made = Path(name) / "made"
        made.mkdir()
        (made / "package.json").write_text(PACKAGE)
        command = [npm, "install", "--silent", "--no-fund", "--no-audit", f"openai@{VERSION}"]
        ran = subprocess.run(command, cwd=made, capture_output=True, text=True, timeout=INSTALL_S)
        if ran.returncode:
            raise Missing(f"npm could not install openai: {ran.stderr.strip()[-200:]}")
        try:
            made.rename(kept)
        except OSError:
            if not kept.exists():  # nobody else was quicker
                raise


def project(folder: Path, *, packages: bool = True) -> Path:
    """The folder, made one in which JavaScript modules run; with the package where that is wanted."""
    (folder / "package.json").write_text(PACKAGE)
    if packages:
        (folder / "node_modules").symlink_to(node_modules(), target_is_directory=True)
    return folder
