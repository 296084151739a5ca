"""The models the stand-in serves: the list of protocol §7, with the metadata that decides about thinking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

LISTED_AT = 1_732_711_466
"""`created_at` of every entry, wall seconds (protocol §7)."""
CHAT_TYPES = (
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


@dataclass(frozen=True, slots=True)
class Model:
    id: str
    name: str
    thinking: int = 3
    """1 optional, 2 none, 3 on unless asked, 4 always on (protocol §4.2)."""
    auto_thinking: bool = True
    skip: bool | None = True
    """`think_skip.enable`; None: the entry has no such key."""
    vision: bool = True
    context: int = 1_000_000
    output: int = 65_536
    chat_types: tuple[str, ...] = CHAT_TYPES

    @property
    def can_think(self) -> bool:
        return self.thinking != 2

    @property
    def locked(self) -> bool:
        return self.skip is False or self.thinking == 4


LISTED = (
    Model("qwen3.7-plus", "Qwen3.7-Plus"),
    Model("qwen3.8-max", "Qwen3.8-Max", output=131_072),
    Model("qwen3.7-max", "Qwen3.7-Max", thinking=1, auto_thinking=False, vision=False),
    Model("qwen3.6-plus", "Qwen3.6-Plus"),
    Model("qwen3.5-plus", "Qwen3.5-Plus", thinking=1),
    Model(
        "qwen3.5-omni-plus",
        "Qwen3.5-Omni-Plus",
        thinking=2,
        auto_thinking=False,
        skip=None,
        context=262_144,
        chat_types=("t2t", "t2i", "search"),
    ),
    Model(
        "qwen3.8-omni-flash", "Qwen3.8-Omni-Flash", thinking=1, chat_types=(*CHAT_TYPES, "vqa", "translate")
    ),
    Model("qwen3.8-max-preview", "Qwen3.8-Max-Preview", thinking=3, auto_thinking=False, skip=False),
    Model("qwen3.6-max-preview", "Qwen3.6-Max-Preview", 4, auto_thinking=False, skip=None, vision=False),
)
UNLISTED = (
    Model("qwen3-coder-plus", "Qwen3-Coder-Plus", thinking=2, auto_thinking=False, skip=None),
    Model("qwen3-max-2026-01-23", "Qwen3-Max", thinking=1, context=262_144, output=32_768),
    Model("qwen3.5-flash", "Qwen3.5-Flash", thinking=1),
    Model("qwen3-vl-plus", "Qwen3-VL-Plus", thinking=1, context=262_144, output=32_768),
)
"""Gone from the list but still answered (protocol §7, §13)."""


def find_model(model_id: str) -> Model | None:
    return next((model for model in (*LISTED, *UNLISTED) if model.id == model_id), None)


def entry(model: Model) -> dict[str, Any]:
    """One model as `GET /api/v2/models/` tells it (protocol §7)."""
    info = {
        "id": model.id,
        "user_id": "4a8c0000-0000-4000-8000-000000000000",
        "base_model_id": None,
        "name": model.name,
        "meta": _meta(model),
        "access_control": None,
        "is_active": True,
        "is_visitor_active": model.thinking != 2,
        "updated_at": LISTED_AT,
        "created_at": LISTED_AT,
    }
    return {
        "id": model.id,
        "name": model.name,
        "object": "model",
        "owned_by": "qwen",
        "info": info,
        "preset": True,
        "action_ids": [],
    }


def _meta(model: Model) -> dict[str, Any]:
    media = {"vision": True, "video": True, "audio": True} if model.vision else {}
    abilities: dict[str, int] = dict.fromkeys(media, 1)
    limit = "max_summary_generation_length" if model.can_think else "max_generation_length"
    meta: dict[str, Any] = {
        "profile_image_url": "/static/favicon.png",
        "description": f"{model.name}, as the stand-in plays it.",
        "short_description": "Played by the stand-in.",
        "capabilities": {
            "document": True,
            **media,
            **({"thinking": True} if model.can_think else {}),
            "search": True,
        },
        "max_context_length": model.context,
        limit: model.output,
        "abilities": {"document": 1, **abilities, "mcp": 1, "thinking": model.thinking, "parse_url": 2},
        "auto_thinking": model.auto_thinking,
        "auto_search": True,
        "chat_type": list(model.chat_types),
        "mcp": ["image-generation", "code-interpreter", "amap", "fire-crawl"],
        "modality": ["text", "image", "video"] if model.vision else ["text"],
    }
    if model.can_think:
        meta["thinking_format"] = "summary"
    if model.skip is not None:
        meta["think_skip"] = {"enable": model.skip}
    return meta
