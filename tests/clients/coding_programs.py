"""The coding programs that are tried: their versions, and how each is pointed at the proxy and told its task.

What stands here is what the README says under "Clients", plus what keeps a program from asking anybody else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.clients.installed import node_folder, npm_package, pip_packages


@dataclass(frozen=True)
class Asked:
    """One task for a program."""

    base: str
    """Of the proxy, without a path."""
    home: Path
    """The program's own, empty before."""
    file: Path
    """What it is to change."""
    prompt: str


@dataclass(frozen=True)
class Run:
    """What to start."""

    command: list[str]
    env: Mapping[str, str]


@dataclass(frozen=True)
class CodingProgram:
    version: str
    install: Callable[[], Path]
    """Gives the program."""
    run: Callable[[str, Asked], Run]
    turns: int
    """How often the model is asked for the task; requests beside it, for a title or so, apart."""
    streamed: str = ""
    """What the program prints if pieces of a call came to it one by one; "": it does not tell."""


def _from_npm(package: str, version: str, program: str) -> Callable[[], Path]:
    def install() -> Path:
        folder = npm_package(package, version, path=f"{node_folder()}:/usr/local/bin:/usr/bin:/bin")
        return folder / "node_modules" / ".bin" / program

    return install


def _claude_code(program: str, asked: Asked) -> Run:
    env = {
        "ANTHROPIC_BASE_URL": asked.base,
        "ANTHROPIC_AUTH_TOKEN": "any",
        "ANTHROPIC_MODEL": "qwen",
        "ANTHROPIC_SMALL_FAST_MODEL": "qwen",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    }
    told = ["--output-format", "stream-json", "--include-partial-messages", "--verbose"]
    return Run([program, "-p", asked.prompt, "--allowedTools", "Write,Edit,Read", *told], env)


CODEX_CONFIG: Final = """
model = "qwen"
model_provider = "qwenproxy"
web_search = "disabled"
check_for_update_on_startup = false

[analytics]
enabled = false

[model_providers.qwenproxy]
name = "qwenproxy"
base_url = "{base}/v1"
wire_api = "responses"
"""


def _codex(program: str, asked: Asked) -> Run:
    settings = asked.home / ".codex" / "config.toml"
    settings.parent.mkdir()
    settings.write_text(CODEX_CONFIG.format(base=asked.base))
    how = ["--skip-git-repo-check", "--sandbox", "workspace-write"]
    return Run([program, "exec", *how, asked.prompt], {})


def _opencode(program: str, asked: Asked) -> Run:
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "qwenproxy",
        "options": {"baseURL": f"{asked.base}/v1", "apiKey": "any"},
        "models": {"qwen": {"name": "Qwen"}},
    }
    settings = {
        "$schema": "https://opencode.ai/config.json",
        "model": "qwenproxy/qwen",
        "provider": {"qwenproxy": provider},
        "autoupdate": False,
        "share": "disabled",
    }
    (asked.file.parent / "opencode.json").write_text(json.dumps(settings))
    quiet = ("AUTOUPDATE", "MODELS_FETCH", "LSP_DOWNLOAD")
    return Run([program, "run", asked.prompt], {f"OPENCODE_DISABLE_{name}": "1" for name in quiet})


def _qwen_code(program: str, asked: Asked) -> Run:
    settings = asked.home / ".qwen" / "settings.json"
    settings.parent.mkdir()
    quiet = {
        "privacy": {"usageStatisticsEnabled": False},
        "general": {"disableAutoUpdate": True, "disableUpdateNag": True},
        "telemetry": {"enabled": False},
        # Else it may go on after its answer, with the same words and tools.
        "memory": {"enableManagedAutoMemory": False},
    }
    settings.write_text(json.dumps(quiet))
    env = {"OPENAI_BASE_URL": f"{asked.base}/v1", "OPENAI_API_KEY": "any", "OPENAI_MODEL": "qwen"}
    how = ["--auth-type", "openai", "--approval-mode", "auto-edit"]
    return Run([program, *how, "-p", asked.prompt], env)


def _aider(program: str, asked: Asked) -> Run:
    env = {"OPENAI_API_BASE": f"{asked.base}/v1", "OPENAI_API_KEY": "any"}
    env["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    quiet = ["--no-check-update", "--analytics-disable", "--no-show-release-notes", "--no-detect-urls"]
    how = ["--model", "openai/qwen", "--edit-format", "whole", "--no-show-model-warnings"]
    alone = ["--no-git", "--yes-always", "--no-pretty", "--no-fancy-input", *quiet]
    return Run([program, *how, *alone, "--message", asked.prompt, asked.file.name], env)


PROGRAMS: Final[Mapping[str, CodingProgram]] = {
    "claude_code": CodingProgram(
        "2.1.329",
        _from_npm("@anthropic-ai/claude-code", "2.1.329", "claude"),
        _claude_code,
        3,
        streamed='"input_json_delta"',
    ),
    "codex": CodingProgram("0.169.0", _from_npm("@openai/codex", "0.169.0", "codex"), _codex, 3),
    "opencode": CodingProgram("1.18.33", _from_npm("opencode-ai", "1.18.33", "opencode"), _opencode, 3),
    "qwen_code": CodingProgram("0.24.4", _from_npm("@qwen-code/qwen-code", "0.24.4", "qwen"), _qwen_code, 4),
    "aider": CodingProgram(
        "0.86.2", lambda: pip_packages("aider-0.86.2", "aider-chat==0.86.2") / "aider", _aider, 1
    ),
}
