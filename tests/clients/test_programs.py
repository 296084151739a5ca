"""What the README says of the programs that are tried is what the trials do."""

from __future__ import annotations

import json
import os
import re
import tomllib
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest

from qwenproxy.standin import agent
from tests.clients.coding_programs import PROGRAMS, Asked, Run
from tests.serve import ROOT

BASE = "http://127.0.0.1:3264"
README = (ROOT / "README.md").read_text("utf-8")
TOLD = README.partition("\n## Clients\n")[2].partition("\n## ")[0]
QUIET = re.compile(r"OPENCODE_DISABLE_\w+|LITELLM_LOCAL_MODEL_COST_MAP")
"""Set so that a trial asks nobody else; no matter to a user."""


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    for name in ("home", "work"):
        (tmp_path / name).mkdir()
    return Asked(BASE, tmp_path / "home", tmp_path / "work" / "greet.py", "Greet the world in greet.py")


def run(name: str, asked: Asked) -> Run:
    return PROGRAMS[name].run("program", asked)


def block(language: str, holding: str) -> str:
    found = re.findall(rf"```{language}\n(.*?)```", TOLD, re.DOTALL)
    return next(str(each) for each in found if holding in each)


def test_the_readme_tells_every_program_and_its_version() -> None:
    lines = TOLD.partition("<!-- clients: ")[2].splitlines()[3:]
    rows = [row.split("|")[1:3] for row in takewhile(lambda line: line.startswith("|"), lines)]
    names = {"Claude Code": "claude_code", "Codex CLI": "codex", "Qwen Code": "qwen_code"}
    told = [(names.get(name.strip(), name.strip()), version.strip()) for name, version in rows]
    assert told == [(name, program.version) for name, program in PROGRAMS.items()]


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_has_its_trial_and_its_script(name: str) -> None:
    trial = ROOT / "tests" / "clients" / f"{name}.sh"
    assert trial.read_text("utf-8").endswith(f'coding.sh" {name}\n')
    assert os.access(trial, os.X_OK)
    assert name in agent.names()


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_readme_tells_the_variables_that_are_tried(name: str, asked: Asked) -> None:
    for variable, value in run(name, asked).env.items():
        assert QUIET.fullmatch(variable) or f"{variable}={value}" in TOLD.replace('"', "")


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_readme_tells_the_switches_that_are_tried(name: str, asked: Asked) -> None:
    program = {"claude_code": "claude", "qwen_code": "qwen"}.get(name, name)
    told = [line for line in TOLD.splitlines() if re.match(rf"{program} .*Greet the world", line)]
    assert len(told) == 1
    switches = set(re.findall(r"(?<=\s)-{1,2}[a-z][-a-zA-Z]*", told[0]))
    assert switches <= set(run(name, asked).command), "the README names a switch that was not tried"


def test_the_readme_tells_the_settings_of_codex(asked: Asked) -> None:
    run("codex", asked)
    tried: dict[str, Any] = tomllib.loads((asked.home / ".codex" / "config.toml").read_text())
    told = tomllib.loads(block("toml", "wire_api"))
    assert told == {name: tried[name] for name in told}
    assert set(tried) - set(told) == {"check_for_update_on_startup", "analytics"}


def test_the_readme_tells_the_settings_of_opencode(asked: Asked) -> None:
    run("opencode", asked)
    tried = json.loads((asked.file.parent / "opencode.json").read_text())
    told = json.loads(block("json", "opencode.ai"))
    assert told == {name: tried[name] for name in told}
    assert set(tried) - set(told) == {"autoupdate", "share"}
