"""The stand-in's model as an agent: what it says is written by hand, in `scripts/NAME.txt`.

`{{standin: agent script=NAME file=/tmp/hello.py}}` in a prompt plays a script. A script is what a model
wrote, to the letter, mistakes included:

    What the script shows; such lines say nothing.
    needs: write_file
    === 0 results
    <tool_call>
    {"name": "write_file", "arguments": {"path": "{{file}}"}}
    </tool_call>
    === 0 results
    The second try, for whoever shows the model that the first cannot be used.
    === 0 results, if <tool_call>
    A try that counts only where the prompt has these words.
    === 1 results
    Done.

How many results of tools stand behind the last mark says where the play is; behind the last heading it stays
at that. Of several tries for one number the first comes that has not been said yet: a try has been said when
its longest line stands behind the last result. `{{file}}` is the mark's own `file=…`. Where one of the words
of `needs` is missing from what the model was told, somebody asks for something else, a title perhaps, and
gets a short answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from .marks import Switch, behind_last

MARK: Final = "agent"
SCRIPTS: Final = Path(__file__).with_name("scripts")
BESIDE: Final = "A short answer from the stand-in"
"""What whoever asks beside the script gets."""
_HEADING: Final = re.compile(r"^=== (\d+) results?(?:, if (.+))?$\n?", re.MULTILINE)
_RESULT: Final = re.compile(r"^<tool_response>", re.MULTILINE)
_HOLE: Final = re.compile(r"\{\{(\w+)\}\}")
_NEEDS: Final = "needs:"


@dataclass(frozen=True, slots=True)
class Try:
    """What the model says when so many results are there."""

    results: int
    only_if: str
    """Words that the prompt must have."""
    text: str


@dataclass(frozen=True, slots=True)
class Script:
    needs: tuple[str, ...]
    tries: tuple[Try, ...]


def words(switch: Switch, prompt: str, before: Sequence[tuple[str, str]]) -> str:
    """What the model says to `prompt`; `before` are the chat's earlier prompts, each with its answer."""
    name = switch.word("script", "")
    scripts = names()
    if name not in scripts:
        return f"There is no script {name!r}; there are {', '.join(scripts)}."
    script = parsed((SCRIPTS / f"{name}.txt").read_text("utf-8"))
    # A result that the model only imagined is none.
    chat = [text for told, said in before for text in (told, _RESULT.sub("", said))]
    conversation = "\n".join([*chat, prompt])
    if any(needed not in conversation for needed in script.needs):
        return BESIDE
    return said_next(script, prompt, behind_last(conversation, MARK), switch.params)


def names() -> list[str]:
    return sorted(path.stem for path in SCRIPTS.glob("*.txt"))


def parsed(text: str) -> Script:
    head, *rest = _HEADING.split(text)
    needs = [line.removeprefix(_NEEDS).split() for line in head.splitlines() if line.startswith(_NEEDS)]
    tries = zip(rest[::3], rest[1::3], rest[2::3], strict=True)
    return Script(
        tuple(word for line in needs for word in line),
        tuple(Try(int(results), only_if or "", said.strip("\n")) for results, only_if, said in tries),
    )


def said_next(script: Script, prompt: str, since: str, holes: Mapping[str, Any]) -> str:
    """`since` is what was said after the mark; "" where the script has nothing for so few results."""
    *_, rest = _RESULT.split(since)
    results = len(_RESULT.findall(since))
    reached = max((each.results for each in script.tries if each.results <= results), default=None)
    tries = [each for each in script.tries if each.results == reached and each.only_if in prompt]
    return _first_unsaid([_filled(each.text, holes) for each in tries], rest)


def _first_unsaid(texts: Sequence[str], rest: str) -> str:
    """The last one where all were said."""
    lines = [max(text.splitlines(), key=len, default="") for text in texts]
    for number, line in enumerate(lines):
        if rest.count(line) <= lines[:number].count(line):
            return texts[number]
    return texts[-1] if texts else ""


def _filled(text: str, holes: Mapping[str, Any]) -> str:
    return _HOLE.sub(lambda hole: str(holes.get(hole[1], hole[0])), text)
