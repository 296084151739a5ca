"""The models as Anthropic lists its own: in pages, with a date each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from qwenproxy.dialects.base import Json
from qwenproxy.errors import BadRequest
from qwenproxy.qwen.models import Model

MOST: Final = 1000
"""In one page; without a `limit` there is one page, for there are some dozens."""

LAST_S: Final = 253_402_300_799
"""The last second that a date can be."""
RFC3339: Final = "%Y-%m-%dT%H:%M:%SZ"


def page_of(models: Sequence[Model], query: Mapping[str, str]) -> Json:
    """The page that `limit`, `after_id` and `before_id` ask for.

    Raises:
        BadRequest: the limit is none, or no model has such an id.
    """
    limit = _limit(query.get("limit"))
    after, before = (_place(models, query, name) for name in ("after_id", "before_id"))
    found = list(models[0 if after is None else after + 1 : before])
    # Before a model, and not after one, the page is the last that fits.
    shown = found[-limit:] if before is not None and after is None else found[:limit]
    return {
        "data": [told(model) for model in shown],
        "has_more": len(shown) < len(found),
        "first_id": shown[0].id if shown else None,
        "last_id": shown[-1].id if shown else None,
    }


def told(model: Model) -> Json:
    """One model; a date or a limit that the service does not tell is the epoch, or null."""
    return {
        "type": "model",
        "id": model.id,
        "display_name": model.name,
        "created_at": datetime.fromtimestamp(min(model.created_at, LAST_S), UTC).strftime(RFC3339),
        "lifecycle": "active",
        "max_input_tokens": model.context_length or None,
        "max_tokens": model.output_limit or None,
        "capabilities": None,
    }


def _limit(raw: str | None) -> int:
    if raw is None:
        return MOST
    if not raw.isascii() or not raw.isdecimal() or len(raw) > 4 or not 1 <= int(raw) <= MOST:
        raise BadRequest(f"limit must be a whole number from 1 to {MOST}", param="limit")
    return int(raw)


def _place(models: Sequence[Model], query: Mapping[str, str], name: str) -> int | None:
    wanted = query.get(name)
    if not wanted:
        return None
    for place, model in enumerate(models):
        if model.id == wanted:
            return place
    raise BadRequest(f"{name} is the id of no model", param=name)
