"""Which of the service's models a name means that it does not know: gpt-…, claude-…, and suffixes.

A name is looked up in this order; case does not matter:

1. what the service, or an alias of ours, is called so (`qwen/models.py`): that is meant;
2. without its suffixes the same;
3. the first line of `session/model_names.txt` whose pattern is the name, else the name without its suffixes.
   What stands after the = may have suffixes too; those of the name itself count more.

The suffixes, several in any order: `-thinking`, `-no-thinking` or `-fast`, `-search`, `-deep-research`.
A tail in brackets, as in Claude Code's `claude-sonnet-4-5[1m]`, says nothing here and is taken off as well.

The file is followed as the keys are (`watched_file.py`). One that cannot be used at the start is
logged, and the lines of the template count until it can.
"""

from __future__ import annotations

import fnmatch
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from qwenproxy.qwen.models import NAME_CHARACTERS, Model, is_known
from qwenproxy.settings import SettingsError
from qwenproxy.watched_file import WatchedFile

log = logging.getLogger(__name__)

NAME: Final = "model_names.txt"
MOST_LINES: Final = 1000
LINE_END: Final = re.compile(r"\r\n|\r|\n")
REMARK: Final = re.compile(r"(?:^|\s)#.*")
BRACKETS: Final = re.compile(r"\[[^\[\]]*\]$")
SUFFIXES: Final = MappingProxyType(
    {
        "-no-thinking": {"thinking": False},
        "-thinking": {"thinking": True},
        "-fast": {"thinking": False},
        "-search": {"search": True},
        "-deep-research": {"research": True},
    }
)
"""The longer of two that end alike first."""
TEMPLATE: Final = """\
# Names of models that programs ask for, and what answers instead. This file is read again when it changes.
#
#   NAME = MODEL
#
# In a name * stands for anything and ? for one character; case does not matter; the first line that fits
# counts. A name that the service itself knows, such as qwen3.8-max, is never looked up here.
#
# MODEL is one of GET /v1/models, or a name for a kind of them: qwen (QWENPROXY_DEFAULT_MODEL), or the newest
# qwen-max, qwen-plus, qwen-flash or qwen3-coder. After it there may be -thinking, -fast, -search or
# -deep-research.

*deep-research*     = qwen-deep-research
*gpt-*search*       = qwen-search

*gpt-*mini*         = qwen-flash
*gpt-*nano*         = qwen-flash
*codex*mini*        = qwen-flash
o?-mini*            = qwen-flash-thinking
*gpt-*              = qwen
*codex*             = qwen
o1*                 = qwen-thinking
o3*                 = qwen-thinking
o4*                 = qwen-thinking

*claude*haiku*      = qwen-flash
*claude*            = qwen

*gemini*flash*      = qwen-flash
*gemini*lite*       = qwen-flash
*gemini*            = qwen

*deepseek*reasoner* = qwen-thinking
*deepseek*r1*       = qwen-thinking
*deepseek*          = qwen
"""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a client wants by the name of its model."""

    name: str
    """To be looked up among the service's models."""
    thinking: bool | None = None
    """None: the name does not say."""
    search: bool = False
    research: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    pattern: str
    target: str
    regex: re.Pattern[str]

    def fits(self, name: str) -> bool:
        return self.regex.match(name) is not None


def parse(text: str) -> tuple[Line, ...]:
    """Raises: ValueError, which names the line by its number."""
    lines: list[Line] = []
    for number, line in enumerate(LINE_END.split(text), 1):
        told = REMARK.sub("", line).strip()
        if not told:
            continue
        pattern, equals, target = (part.strip() for part in told.partition("="))
        if not (pattern and equals and target) or len((pattern + target).split()) > 1:
            raise ValueError(f"line {number} is not of the form NAME = MODEL")
        if max(len(pattern), len(target)) > NAME_CHARACTERS:
            raise ValueError(f"line {number}: a name has {NAME_CHARACTERS} characters at most")
        # `translate` never backtracks out of a star; a bracket is an ordinary sign in names.
        regex = re.compile(fnmatch.translate(pattern.replace("[", "[[]")), re.IGNORECASE)
        lines.append(Line(pattern, target, regex))
    if len(lines) > MOST_LINES:
        raise ValueError(f"it has more than {MOST_LINES} names")
    return tuple(lines)


DEFAULTS: Final = parse(TEMPLATE)


class ModelNames:
    """The table of clients' names; follows its file while somebody calls `look` now and then."""

    def __init__(self, session_dir: Path) -> None:
        """Touches nothing; until `open` the lines of the template count."""
        self._file = WatchedFile(
            session_dir.absolute() / NAME,
            parse,
            DEFAULTS,
            what="the names",
            template=TEMPLATE,
            kept="the names it had still count",
            counted=counted,
        )

    def open(self) -> None:
        """Writes the template where there is no file, and reads. Blocks."""
        self._file.make()
        try:
            self._file.read()
        except SettingsError as exc:
            log.error("%s; the names of the template count until it can", exc)

    def look(self) -> None:
        """Takes up what changed. Blocks: a `stat`, seldom more."""
        self._file.look()

    def asked(self, name: str, live: Sequence[Model]) -> Asked:
        """What `name` means where `live` are the service's models; a name nobody knows means itself."""
        name = name.strip()
        if len(name) > NAME_CHARACTERS:
            return Asked(name)
        said = _without_suffixes(name, live)
        if is_known(said.name, live):
            return said
        target = self._target(name) or self._target(said.name)
        if target is None:
            return said
        meant = _without_suffixes(target, live)
        return Asked(
            meant.name,
            meant.thinking if said.thinking is None else said.thinking,
            meant.search or said.search,
            meant.research or said.research,
        )

    def _target(self, name: str) -> str | None:
        return next((line.target for line in self._file.value if line.fits(name)), None)


def _without_suffixes(name: str, live: Sequence[Model]) -> Asked:
    """The name as far as it is no suffix. Of two that contradict each other the last one counts."""
    rest, wishes = name, dict[str, Any]()
    while not is_known(rest, live):
        found = next((each for each in SUFFIXES if rest.lower().endswith(each) and rest.lower() != each), "")
        bracketed = BRACKETS.search(rest)
        if found:
            rest, wishes = rest[: -len(found)], SUFFIXES[found] | wishes
        elif bracketed and bracketed.start():
            rest = rest[: bracketed.start()]
        else:
            break
    return replace(Asked(rest), **wishes)


def counted(lines: Sequence[Line]) -> str:
    """So many names, in words."""
    return f"{len(lines) or 'no'} name{'' if len(lines) == 1 else 's'} of models"
