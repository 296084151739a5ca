"""The public conformance suite `llm-comply` against the demo: Responses, completions, Anthropic's Messages.

    tests/clients/llm_comply.sh

It is installed the first time, of one version, into a folder outside the repository, and runs unmodified but
for one thing: where it wants a tool called, its question also tells the stand-in's model to call it. Its
checks are against the vendors' own OpenAPI documents, which it carries.

What is known to fail stands with its reason in `llm_comply.txt`. Whatever else fails is an error here, and so
is a line there that is no longer true.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from tests.clients.coding import demo
from tests.clients.installed import pip_packages

VERSION: Final = "0.5.0"
KNOWN: Final = Path(__file__).with_name("llm_comply.txt")
LONGEST_S: Final = 600
MODELS: Final = {"open-responses": "gpt-5", "openai-chat": "gpt-5", "anthropic": "claude-opus-4"}
"""Names of which the suite knows that they can think, else it leaves tests out."""
PROGRAM: Final = """
import dataclasses, json, sys
from pathlib import Path

import llm_comply
from llm_comply.cli import _SPEC_FILES
from llm_comply.config import ComplianceConfig
from llm_comply.runner import TestRunner
from llm_comply.schema import SpecLoader
from llm_comply.tests import get_tests

MARK = " {{standin: agent script=conformance}}"
base, models = sys.argv[1], json.loads(sys.argv[2])


def marked(build):
    def request(config):
        body = build(config)
        message = (body.get("input") or body["messages"])[-1]
        message["content"] += MARK
        return body

    return request


def found(name, model):
    tests = [
        dataclasses.replace(test, build_request=marked(test.build_request))
        if test.id.endswith("tool-calling")
        else test
        for test in get_tests(name)
    ]
    spec = SpecLoader(str(Path(llm_comply.__file__).parent / "specs" / _SPEC_FILES[name]))
    config = ComplianceConfig(base_url=base + "/v1", api_key="any", model=model)
    return [result.to_dict() for result in TestRunner(config, tests, spec).run_all().results]


print(json.dumps({name: found(name, model) for name, model in models.items()}))
"""


def main() -> None:
    """Raises: SystemExit: something fails that is not known to, or no longer fails."""
    python = pip_packages(f"llm-comply-{VERSION}", f"llm-comply=={VERSION}") / "python"
    with TemporaryDirectory(prefix="qwenproxy-client-") as folder, demo(Path(folder)) as (base, _):
        command = [str(python), "-c", PROGRAM, base, json.dumps(MODELS)]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST_S, check=False)
    if ran.returncode:
        raise SystemExit(f"llm-comply {VERSION} broke: {ran.stderr[-2000:]}")
    print(f"llm-comply {VERSION}")
    judge(json.loads(ran.stdout), known(KNOWN.read_text("utf-8")))


def judge(found: Mapping[str, list[dict[str, Any]]], expected: Mapping[tuple[str, str], str]) -> None:
    """Prints what came about. Raises: SystemExit: it is not what is expected."""
    failed: dict[tuple[str, str], list[str]] = {}
    for api, results in found.items():
        for result in results:
            test = api, str(result["id"])
            print(f"{api}: {result['id']}: {result['status']}")
            if result["status"] == "failed":
                failed[test] = result.get("errors", [])
            for warning in result.get("warnings", []):
                print(f"    warning: {warning}")
            for error in failed.get(test, []):
                print(f"    {error[:300]}")
            if test in failed and test in expected:
                print(f"    known: {expected[test]}")
    wrong = [f"{api}: {name} fails" for api, name in failed if (api, name) not in expected]
    wrong += [f"{api}: {name} does not fail any more" for api, name in expected if (api, name) not in failed]
    if wrong:
        raise SystemExit("\n".join(wrong))
    print(f"{len(failed)} failures, each with its reason; all else is as it should be")


def known(text: str) -> dict[tuple[str, str], str]:
    """The failures that are expected, each with its reason."""
    rows = (line.split(None, 2) for line in text.splitlines() if line.strip() and not line.startswith("#"))
    return {(api.rstrip(":"), name.rstrip(":")): why for api, name, why in rows}


if __name__ == "__main__":
    main()
