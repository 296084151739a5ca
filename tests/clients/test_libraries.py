"""What the README says of the libraries that are tried is what the trials do."""

from __future__ import annotations

import ast
import os
import re
from itertools import takewhile

import pytest

from qwenproxy.standin import agent
from tests.clients.libraries import ADDRESS, LIBRARIES
from tests.serve import ROOT

README = (ROOT / "README.md").read_text("utf-8")
TOLD = README.partition("\n### Libraries\n")[2].partition("\n## ")[0]


def test_the_readme_tells_every_library_and_its_version() -> None:
    lines = TOLD.partition("<!-- libraries: ")[2].splitlines()[3:]
    rows = [row.split("|")[2] for row in takewhile(lambda line: line.startswith("|"), lines)]
    assert [tuple(re.findall(r"`(.+?)`", row)) for row in rows] == [
        library.packages for library in LIBRARIES.values()
    ]


@pytest.mark.parametrize("name", LIBRARIES)
def test_every_library_has_its_trial_and_its_setup_in_the_readme(name: str) -> None:
    trial = ROOT / "tests" / "clients" / f"{name}.sh"
    assert trial.read_text("utf-8").endswith(f'library.sh" {name}\n')
    assert os.access(trial, os.X_OK)
    blocks = re.findall(r"```\w+\n(.*?)\n```", TOLD, re.DOTALL)
    for setup in LIBRARIES[name].setup:
        assert setup in blocks
        assert ADDRESS in setup


@pytest.mark.parametrize("name", LIBRARIES)
def test_every_trial_changes_a_file_by_a_script_of_the_stand_in(name: str) -> None:
    task = LIBRARIES[name].task
    assert "{{file}}" in task
    scripts = set(re.findall(r"agent script=(\w+)", task))
    assert {"parallel_calls", "json_corrected"} == scripts <= set(agent.names())


@pytest.mark.parametrize("name", ["langchain", "litellm"])
def test_what_python_runs_is_python(name: str) -> None:
    ast.parse("\n".join([*LIBRARIES[name].setup, LIBRARIES[name].task]))


def test_anthropics_package_is_set_up_as_the_suite_does_it() -> None:
    suite = (ROOT / "tests" / "e2e" / "test_sdks.py").read_text("utf-8")
    assert f'Anthropic(base_url="{ADDRESS}", api_key="any")' in TOLD
    assert 'anthropic.Anthropic(base_url=demo[0], api_key="any", max_retries=0)' in suite
