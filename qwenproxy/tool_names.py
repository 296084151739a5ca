"""Which of the client's tools a model means by a name: it drops prefixes, adds others, and spells anew."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Sequence
from typing import Final

from qwenproxy.misfits import listed, quoted
from qwenproxy.schema_parts import alike

MOST_NEAREST: Final = 5
_GENERIC: Final = re.compile(r"(?:functions?|tools?|default_api|namespace)[.:/]+", re.IGNORECASE)
"""Prefixes that no server has."""
_PREFIX: Final = re.compile(r"__|[.:/]")


class NoSuchName(Exception):
    """`str(exc)` says so, and which names are near; no full stop."""


def meant(name: str, names: Sequence[str]) -> str:
    """The one name that is meant: written so; else in other case or with other separators; else with a prefix
    such as `mcp__server__`, `server.` or `functions.` more or less, if that fits one tool alone.

    Raises:
        NoSuchName: none is, or several might be.
    """
    name = name.strip()
    if name in names:
        return name
    plain = _GENERIC.sub("", name, count=1)
    ways = (
        [each for each in names if each == plain],
        [each for each in names if alike(each) == alike(plain)],
        [each for each in names if alike(plain) in endings(each) or alike(each) in endings(plain)],
    )
    found = next(filter(None, ways), [])
    if len(found) == 1:
        return found[0]
    if found:
        raise NoSuchName(f"the tool {quoted(name)} may be any of {listed(found)}")
    near = difflib.get_close_matches(name[:100], names, MOST_NEAREST, 0.5) or list(names[:MOST_NEAREST])
    raise NoSuchName(f"there is no tool {quoted(name)}; the nearest are {listed(near)}")


def endings(name: str) -> set[str]:
    """What is left of it without one or more prefixes, however it is spelt."""
    return {alike(name[found.end() :]) for found in _PREFIX.finditer(name)} - {""}


def known_by(names: Collection[str]) -> Callable[[str], bool]:
    """Whether a name may mean one of these; quicker than to tell which."""
    full = frozenset(map(alike, names))
    ends = frozenset(ending for name in names for ending in endings(name))

    def knows(name: str) -> bool:
        written = alike(name)
        return bool(written) and (written in full or written in ends or not full.isdisjoint(endings(name)))

    return knows
