"""Qwen Chat's models: what each can do, which one serves a name.

A name is looked up without regard to case (`resolve`): an id of the live list, else an alias whose target
is live, else the newest live model of the alias's family, else an id of the built-in list, sent as it is
because models leave the list while they still answer (protocol §13), else nothing. What a family takes, in
this order:

    max     newest *-max, newest *-plus
    plus    newest *-plus, newest *-max
    flash   newest *-flash or *-turbo, newest *-plus, newest *-max
    coder   newest *-coder*, newest *-plus, newest *-max
    vision  newest *-vl*, newest that sees pictures (omni models last)
    omni    newest *-omni*, newest that sees pictures

Omni, vl and coder models are never taken for max, plus or flash. Newest: the highest version number in the
id; a finished model before its preview, then the later date, then the order of the list.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias

from qwenproxy.errors import ProtocolChanged, UnknownModel

Thinking: TypeAlias = Literal["never", "optional", "always"]
Family: TypeAlias = Literal["max", "plus", "flash", "coder", "vision", "omni"]

DEFAULT_NAME = "qwen"
"""The name that means the default model."""

NAME_CHARACTERS = 100
"""How much of an unknown name is compared and repeated; the longest known id has 34 characters."""


@dataclass(frozen=True, slots=True)
class Model:
    id: str
    name: str
    context_length: int = 0
    """Tokens; 0: not known."""
    output_limit: int = 0
    """Tokens without reasoning; 0: not known."""
    thinking: Thinking = "optional"
    """`always`: the service refuses Fast (protocol §4.2)."""
    thinking_format: str = "summary"
    thinking_limit: int = 0
    """Tokens of reasoning; 0: not known."""
    takes_budget: bool = False
    """Whether a `thinking_budget` may be sent."""
    vision: bool = False
    audio: bool = False
    video: bool = False
    document: bool = False
    search: bool = False
    chat_types: tuple[str, ...] = ("t2t",)
    created_at: int = 0
    """Seconds since 1970; 0: not known."""


def read_list(data: object) -> tuple[Model, ...]:
    """The models of either list form, in the service's order (protocol §7). Unusable entries are left out.

    Raises:
        ProtocolChanged: this is no model list.
    """
    listed = data
    while isinstance(listed, dict):
        listed = listed.get("data")
    if not isinstance(listed, list):
        raise ProtocolChanged("the service's model list has a shape we do not know", seen=type(data).__name__)
    models: dict[str, Model] = {}
    for model in map(_read, listed):
        if model is not None:
            models.setdefault(model.id.lower(), model)
    if listed and not models:
        raise ProtocolChanged("no entry of the service's model list has a shape we know")
    return tuple(models.values())


def _read(entry: object) -> Model | None:
    row = _mapping(entry)
    info = _mapping(row.get("info"))
    model_id = _text(row.get("id")) or _text(info.get("id"))
    if not model_id or info.get("is_active") is False:
        return None
    meta = _mapping(info.get("meta"))
    can = _mapping(meta.get("capabilities"))
    abilities = _mapping(meta.get("abilities"))
    return Model(
        id=model_id,
        name=_text(row.get("name")) or _text(info.get("name")) or model_id,
        context_length=_count(meta.get("max_context_length")),
        output_limit=_count(meta.get("max_summary_generation_length"))
        or _count(meta.get("max_generation_length")),
        thinking=_thinking(meta, can, abilities),
        thinking_format=_text(meta.get("thinking_format")) or "summary",
        thinking_limit=_count(meta.get("max_thinking_generation_length")),
        takes_budget=_count(abilities.get("thinking_budget")) == 1,
        vision=can.get("vision") is True,
        audio=can.get("audio") is True,
        video=can.get("video") is True,
        document=can.get("document") is True,
        search=can.get("search") is True,
        chat_types=_texts(meta.get("chat_type")) or ("t2t",),
        created_at=_count(info.get("created_at")),
    )


def _thinking(
    meta: Mapping[str, object], can: Mapping[str, object], abilities: Mapping[str, object]
) -> Thinking:
    """From metadata, never from the name (protocol §4.2): ability 1 and 3 are optional, 2 fixed, 4 locked."""
    if "capabilities" in meta and can.get("thinking") is not True:
        return "never"
    ability = abilities.get("thinking")
    if ability == 4 or _mapping(meta.get("think_skip")).get("enable") is False:
        return "always"
    return "never" if ability == 2 else "optional"


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    return value.strip() if isinstance(value, str) else ""


def _texts(value: object) -> tuple[str, ...]:
    return tuple(t for t in value if isinstance(t, str)) if isinstance(value, list) else ()


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def resolve(
    name: str, live: Sequence[Model], *, default: str, unknown: Literal["refuse", "default"]
) -> Model:
    """The model that serves `name`.

    Raises:
        UnknownModel: nothing does; the message names the nearest that would.
    """
    wanted = name.strip().lower()
    fallback = default.strip().lower()
    if wanted in {"", DEFAULT_NAME}:
        wanted = fallback
    found = _find(wanted, live)
    if found is None and unknown == "default":
        found = _find(fallback, live)
    if found is None:
        raise UnknownModel(_unknown(name, live, default), param="model")
    return found


def is_known(name: str, live: Sequence[Model]) -> bool:
    """Whether `resolve` finds what serves `name`, without the default standing in."""
    wanted = name.strip().lower()
    return wanted in {"", DEFAULT_NAME} or _find(wanted, live) is not None


def _find(wanted: str, live: Sequence[Model]) -> Model | None:
    by_id = {model.id.lower(): model for model in live}
    target = ALIASES.get(wanted)
    if wanted in by_id or target is None:
        return by_id.get(wanted) or _BUILT_IN_BY_ID.get(wanted)
    return by_id.get(target) or _of_family(FAMILIES[target], live) or _BUILT_IN_BY_ID.get(target)


def _of_family(family: Family, live: Sequence[Model]) -> Model | None:
    return next((found for kind in _KINDS[family] if (found := _newest(filter(kind, live)))), None)


def _unknown(name: str, live: Sequence[Model], default: str) -> str:
    said = "".join(c for c in name[:NAME_CHARACTERS] if c.isprintable())
    known = [*(model.id for model in live), *ALIASES]
    nearest = difflib.get_close_matches(said.lower(), known, n=1, cutoff=0.5)
    return f"there is no model {said!r}; the nearest is {(nearest or [default])[0]!r}"


def _parts(model: Model) -> list[str]:
    return model.id.lower().split("-")


def _is(*words: str) -> Callable[[Model], bool]:
    return lambda model: any(word in _parts(model) for word in words)


def _is_general(*words: str) -> Callable[[Model], bool]:
    special = _is("omni", "vl", "coder")
    wanted = _is(*words)
    return lambda model: wanted(model) and not special(model)


def _sees(model: Model) -> bool:
    return model.vision


def _sees_only(model: Model) -> bool:
    return model.vision and "omni" not in _parts(model)


_MAX = _is_general("max")
_PLUS = _is_general("plus")
_FLASH = _is_general("flash", "turbo")
_KINDS: Mapping[Family, tuple[Callable[[Model], bool], ...]] = MappingProxyType(
    {
        "max": (_MAX, _PLUS),
        "plus": (_PLUS, _MAX),
        "flash": (_FLASH, _PLUS, _MAX),
        "coder": (_is("coder"), _PLUS, _MAX),
        "vision": (_is("vl"), _sees_only, _sees),
        "omni": (_is("omni"), _sees),
    }
)


def _newest(models: Iterable[Model]) -> Model | None:
    return max(models, key=_age, default=None)  # of equals, max keeps the first of the list


def _age(model: Model) -> tuple[tuple[int, ...], bool, str]:
    version = re.match(r"[a-z]+-?(\d{1,3}(?:\.\d{1,3})?)(?![\db])", model.id.lower())
    dated = re.search(r"\d{4}-\d{2}-\d{2}", model.id)
    return (
        tuple(int(n) for n in version[1].split(".")) if version else (),
        "preview" not in _parts(model),
        dated[0] if dated else "",
    )


_ALL_TYPES = (
    "t2t",
    "t2v",
    "t2i",
    "image_edit",
    "search",
    "artifacts",
    "web_dev",
    "deep_research",
    "travel",
    "learn",
    "slides",
)


def _known(
    model_id: str,
    context_length: int,
    output_limit: int,
    thinking: Thinking,
    *,
    sees: bool = True,
    hears: bool = False,
    thinking_limit: int = 0,
) -> Model:
    omni = "omni" in model_id
    return Model(
        id=model_id,
        name=model_id.replace("qwen", "Qwen", 1),
        context_length=context_length,
        output_limit=output_limit,
        thinking=thinking,
        thinking_limit=thinking_limit,
        vision=sees,
        audio=hears,
        video=hears,
        document=True,
        search=sees and not omni,
        chat_types=("t2t", "t2i", "search") if omni else _ALL_TYPES,
    )


BUILT_IN: tuple[Model, ...] = (
    _known("qwen3.7-plus", 1_000_000, 65_536, "optional", hears=True),
    _known("qwen3.8-max", 1_000_000, 131_072, "optional", hears=True),
    _known("qwen3.7-max", 1_000_000, 65_536, "optional", sees=False, thinking_limit=81_920),
    _known("qwen3.6-plus", 1_000_000, 65_536, "optional"),
    _known("qwen3.5-plus", 1_000_000, 65_536, "optional"),
    _known("qwen3.5-omni-plus", 262_144, 65_536, "never", hears=True),
    _known("qwen3.8-omni-flash", 1_000_000, 0, "never", hears=True),
    _known("qwen3.8-max-preview", 1_000_000, 65_536, "always", thinking_limit=81_920),
    _known("qwen3.8-27b", 0, 0, "optional"),
    _known("qwen3.6-max-preview", 262_144, 65_536, "always", sees=False),
    _known("qwen3.6-27b", 262_144, 65_536, "optional"),
    _known("qwen3.6-35b-a3b", 262_144, 65_536, "optional"),
    _known("qwen3.5-flash", 1_000_000, 65_536, "optional"),
    _known("qwen3.5-397b-a17b", 262_144, 65_536, "optional"),
    _known("qwen3.5-122b-a10b", 262_144, 65_536, "optional"),
    _known("qwen3.5-27b", 262_144, 65_536, "optional"),
    _known("qwen3.5-35b-a3b", 262_144, 65_536, "optional"),
    _known("qwen3.5-omni-flash", 262_144, 65_536, "never", hears=True),
    _known("qwen3-max-2026-01-23", 262_144, 32_768, "optional"),
    _known("qwen3-coder-plus", 1_048_576, 65_536, "never"),
    _known("qwen3-vl-plus", 262_144, 32_768, "optional"),
    _known("qwen3-omni-flash-2025-12-01", 65_536, 13_684, "optional", hears=True, thinking_limit=24_576),
    _known("qwen-plus-2025-07-28", 131_072, 8_192, "optional"),
)
"""What is offered when the service cannot be asked: protocol §7, the live list of 2026-09-13 first."""

_BUILT_IN_BY_ID: Mapping[str, Model] = MappingProxyType({model.id: model for model in BUILT_IN})

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "qwen3-max": "max",
        "qwen-max-latest": "max",
        "qwen3-235b-a22b": "plus",
        "qwen3-30b-a3b": "plus",
        "qwen-plus-2025-09-11": "plus",
        "qwen-plus-2025-01-25": "plus",
        "qwen2.5-14b-instruct-1m": "plus",
        "qwen2.5-72b-instruct": "plus",
        "qwq-32b": "plus",
        "qwen-turbo-2025-02-11": "flash",
        "qwen3-coder-plus": "coder",
        "qwen3-coder-30b-a3b-instruct": "coder",
        "qwen2.5-coder-32b-instruct": "coder",
        "qwen3-vl-plus": "vision",
        "qvq-72b-preview-0310": "vision",
        "qwen2.5-vl-32b-instruct": "vision",
        "qwen3-omni-flash": "omni",
        "qwen2.5-omni-7b": "omni",
    }
)
"""The family of each of the older proxy's 18 models (peers §2.1), most of which have left the service."""

_OTHER_NAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "qwen3-max": ("qwen-max", "qwen3-max-preview"),
        "qwen3-vl-plus": (
            *("qwen-vl", "qwen-vl-latest", "qwen-vl-plus", "qwen-vl-plus-latest"),
            *("qwen-vl-max", "qwen-vl-max-latest"),
        ),
        "qwen3-coder-plus": (
            *("qwen3-coder", "qwen-coder", "qwen-coder-plus", "qwen-coder-plus-latest"),
            *("qwen2.5-coder-0.5b-instruct", "qwen2.5-coder-1.5b-instruct", "qwen2.5-coder-3b-instruct"),
            *("qwen2.5-coder-7b-instruct", "qwen2.5-coder-14b-instruct"),
        ),
        "qwen3-omni-flash": ("qwen3-omni", "qwen3-omni-latest"),
        "qwen-plus-2025-09-11": ("qwen-plus", "qwen-plus-latest", "qwen3-next", "qwen3-next-80b-a3b"),
        "qwen3-235b-a22b": ("qwen3", "qwen-3"),
        "qwen3-30b-a3b": ("qwen3-plus",),
        "qwen3-coder-30b-a3b-instruct": ("qwen3-coder-flash",),
        "qwen-max-latest": ("qwen2.5-max",),
        "qwen-plus-2025-01-25": ("qwen2.5-plus",),
        "qwq-32b": ("qwq",),
        "qwen-turbo-2025-02-11": ("qwen-turbo", "qwen-turbo-latest", "qwen-flash"),
        "qwen2.5-omni-7b": ("qwen2.5-omni",),
        "qvq-72b-preview-0310": ("qvq",),
        "qwen2.5-vl-32b-instruct": ("qwen2.5-vl",),
        "qwen2.5-coder-32b-instruct": ("qwen2.5-coder",),
    }
)

ALIASES: Mapping[str, str] = MappingProxyType(
    {name: target for target, names in _OTHER_NAMES.items() for name in names}
    | {target: target for target in FAMILIES if target not in _BUILT_IN_BY_ID}
)
"""Other names in lower case → the id they meant (peers §2.1); a model that is gone stands for its family."""
