"""A client's JSON Schema: what a model wrote is made to fit where that is harmless, then checked.

The schema is a stranger's. Where it is broken, refers to elsewhere (nothing is ever fetched) or asks for too
much work, values pass as they are: more cannot be known. Every keyword counts against a budget, because
references may branch without end, and patterns have a time limit, because a regular expression may.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from itertools import islice
from typing import Any, Final

import regex  # type: ignore[import-untyped]
from jsonschema import Draft7Validator, Draft201909Validator, Draft202012Validator, validators
from jsonschema.exceptions import ValidationError
from jsonschema.protocols import Validator
from referencing import Registry

from qwenproxy.coercion import Coercion
from qwenproxy.json_text import NotJson, read, several
from qwenproxy.misfits import told
from qwenproxy.schema_parts import kind_of, kinds, target

MOST_STEPS: Final = 150_000
"""Keywords looked at for one value, some 0.5 s; a list of 10,000 small objects takes 60,000."""
REFERENCE_STEPS: Final = 15
"""What a reference counts as: it takes as long."""
PATTERN_S: Final = 0.05
"""Longest time for one pattern; after the first that took longer none is tried any more."""
MOST_COMPARED: Final = 300
"""Items of a list that must differ: each is compared with each. Longer lists are taken to."""
MOST_PROBLEMS: Final = 8
_LEAN: Final = (Draft201909Validator, Draft202012Validator)
"""Drafts whose own schema takes four times as long as draft 7's, which says the same of what matters here."""

_Keyword = Callable[[Any, Any, Any, Any], Any]


class Misfit(Exception):
    """`str(exc)` says in a sentence what does not fit; no full stop."""


class _Spent(Exception):
    """The schema asks for more than anybody waits for."""


class Schema:
    def __init__(self, schema: Mapping[str, Any], subject: str) -> None:
        """`subject`: what a whole value is called, such as "the arguments"."""
        self._schema = schema
        self._subject = subject
        self._steps = 0
        self._slow = False
        """Whether a pattern took too long."""

    @cached_property
    def names(self) -> frozenset[str]:
        """The names of fields that the schema itself lists."""
        return frozenset(self._properties)

    @cached_property
    def kinds(self) -> frozenset[str]:
        """The types that a value may have; none where it may have any."""
        return kinds(self._schema, self._schema)

    def fitted(self, value: Any) -> Any:
        """The value as it is if it fits, or the one that means the same and does.

        Raises:
            Misfit: there is none.
        """
        if self._checks is None:
            return value
        strict, exact = self._checks
        self._steps = 0
        try:
            if exact.is_valid(value):
                return value
            fits = lambda each, part: exact.evolve(schema=part).is_valid(each)  # noqa: E731
            made = Coercion(self._schema, fits).made(value, self._schema)
            if strict.is_valid(made):
                return made
            if strict.is_valid(value):
                return value
            problems = list(islice(strict.iter_errors(made), MOST_PROBLEMS))
            problem = told(problems, self._subject)
        except Exception:  # noqa: BLE001 - what stumbles over a stranger's schema is not the value's fault
            return value
        raise Misfit(problem)

    def from_text(self, name: str, text: str) -> Any:
        """What a text means as the field of that name, where texts are written bare and the rest as JSON."""
        wanted = kinds(self._properties.get(name), self._schema)
        if wanted == {"string"}:
            return text
        value = _bare(text, mends="string" not in wanted and bool(wanted & {"object", "array"}))
        if wanted and "string" not in wanted:
            return value
        # Where it may be a text, a number is one; null, a list or an object is hardly meant as a text.
        return (
            value if kind_of(value) in (wanted or {"object", "array"}) & {"null", "object", "array"} else text
        )

    @property
    def _properties(self) -> Mapping[str, Any]:
        found = target(self._schema, self._schema).get("properties")
        return found if isinstance(found, Mapping) else {}

    # ---- checking ----

    @cached_property
    def _checks(self) -> tuple[Validator, Validator] | None:
        """One as the standard has it, one for which 5.0 is no whole number; None: none can be had."""
        try:
            schema = _prepared(self._schema)
            kind = validators.validator_for(self._schema, default=Draft202012Validator)
            meta = Draft7Validator if kind in _LEAN else kind
            if not meta(meta.META_SCHEMA).is_valid(schema):
                return None
            counted = {name: self._counted(name, check) for name, check in kind.VALIDATORS.items()}
            strict = validators.extend(kind, counted)  # type: ignore[no-untyped-call]
            whole = strict.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)
            exact = validators.extend(strict, type_checker=whole)  # type: ignore[no-untyped-call]
            registry: Registry[Any] = Registry()
            return strict(schema, registry=registry), exact(schema, registry=registry)
        except Exception:  # noqa: BLE001 - as above
            return None

    def _counted(self, name: str, check: _Keyword) -> _Keyword:
        """The keyword, within the budget."""

        def counted(validator: Any, wanted: Any, value: Any, schema: Any) -> Any:
            self._steps += REFERENCE_STEPS if name.endswith("Ref") or name == "$ref" else 1
            if self._steps > MOST_STEPS:
                raise _Spent
            if name == "pattern":
                return self._pattern(wanted, value)
            if name == "uniqueItems" and isinstance(value, list) and len(value) > MOST_COMPARED:
                return ()
            return check(validator, wanted, value, schema)

        return counted

    def _pattern(self, pattern: str, value: Any) -> list[ValidationError]:
        if not isinstance(value, str) or self._slow:
            return []
        try:
            found = regex.search(pattern, value, timeout=PATTERN_S)
        except TimeoutError:
            self._slow = True
            return []
        except regex.error:  # Another language's, perhaps.
            return []
        return [] if found else [ValidationError("pattern")]


def _prepared(part: Any) -> Any:
    """The schema without what would change its reader midway. Raises: ValueError, of names by patterns
    that may take for ever."""
    if isinstance(part, list):
        return [_prepared(each) for each in part]
    if not isinstance(part, Mapping):
        return part
    patterns = part.get("patternProperties")
    if isinstance(patterns, Mapping) and not all(map(_is_plain, patterns)):
        raise ValueError
    # An empty `required` is an error in draft 4, and often written all the same.
    needless = (isinstance(part.get("$schema"), str) and "$schema", part.get("required") == [] and "required")
    return {name: _prepared(each) for name, each in part.items() if name not in needless}


def _is_plain(pattern: str) -> bool:
    """Whether a pattern takes time in proportion to what it is tried on."""
    return regex.search(r"\)[*+{?]|\\\d", pattern) is None and len(regex.findall(r"[*+{]", pattern)) <= 1


def _bare(text: str, *, mends: bool) -> Any:
    try:
        values = several(text)[0] if mends else [read(text)]
    except NotJson:
        values = [{"True": True, "False": False, "None": None}.get(text.strip(), text)]
    return values[0] if len(values) == 1 else text
