"""Videos as the seed's clients ask for them (README 003, "Video Generation"; peers.md §2), and their tasks.

What is done with each parameter stands in `PARAMETERS`; the README's table is held equal to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal

from qwenproxy.chat import Filming
from qwenproxy.dialects.base import Json
from qwenproxy.dialects.fields import nearest_ratio
from qwenproxy.dialects.parts import address_of
from qwenproxy.errors import BadRequest, GenerationFailed, UnsupportedParameter

RATIOS: Final = ("1:1", "3:4", "4:3", "16:9", "9:16")
"""What the service makes (protocol §10.2)."""
MOST_PROMPT: Final = 20_000
"""Characters."""
MOST_WISH: Final = 100
"""Characters of each wish that is folded into the prompt."""
MOST_SIDE: Final = 100_000
"""Of a size in pixels."""
WISHES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "video_style": "Video style",
        "emotional_atmosphere": "Mood",
        "mirror_mode": "Camera movement",
    }
)
"""What has no place of its own on the service, and the words that go before it in the prompt."""

TaskState = Literal["running", "done", "failed"]
STATUS: Final[Mapping[str, str]] = MappingProxyType(
    {"running": "running", "done": "success", "failed": "failed"}
)
"""In the service's own words, which the older proxies passed on."""

PARAMETERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "prompt": f"needed; at most {MOST_PROMPT} characters",
        "model": "any: there is one; an unknown name means it too",
        "image_url": "the first picture: an address, a data URL or a file id; also as `image`",
        "size": f"a ratio of {', '.join(RATIOS)}, or pixels such as 1920x1080: the nearest ratio",
        "aspect_ratio": "the same, where there is no `size`; also as `ratio`",
        "video_style": f"goes into the prompt, in its own words, at most {MOST_WISH} characters",
        "emotional_atmosphere": "the same",
        "mirror_mode": "the same: how the camera moves",
        "wait": "`false` answers the task at once; also as `waitForCompletion`; none: waits for the video",
        "async": "`true` is `wait: false`",
        "n": "only 1",
    }
)


@dataclass(frozen=True, slots=True)
class VideoRequest:
    filming: Filming
    wait: bool
    """Whether the answer is the video, and not the task that makes it."""


def parse(given: Mapping[str, Any]) -> VideoRequest:
    """What a body asks for.

    Raises:
        BadRequest, UnsupportedParameter: with the field in `param`.
    """
    if given.get("n") not in (None, 1) or isinstance(given.get("n"), bool):
        raise UnsupportedParameter("a request makes one video: n can only be 1", param="n")
    size = next((name for name in ("size", "aspect_ratio", "ratio") if given.get(name)), "size")
    filming = Filming(_prompt(given), ratio_of(given.get(size), size), _frame(given))
    return VideoRequest(filming, _waits(given))


def ratio_of(value: object, param: str) -> str:
    """The ratio of the service that is nearest to a ratio or a size in pixels; "" for none or `auto`.

    Raises: BadRequest.
    """
    if value is None or value in ("", "auto"):
        return ""
    text = value if isinstance(value, str) else ""
    sides = text.lower().replace("×", "x").replace("*", "x").replace(":", "x").split("x")
    numbers = [int(side) for side in map(str.strip, sides) if side.isascii() and side.isdecimal()]
    if len(sides) != 2 or len(numbers) != 2 or not all(0 < number <= MOST_SIDE for number in numbers):
        raise BadRequest(f"{param} must be a ratio such as 16:9, or pixels such as 1920x1080", param=param)
    return nearest_ratio(numbers[0], numbers[1], RATIOS)


def task_body(task_id: str, state: TaskState, created: int, video: Json | None = None, why: str = "") -> Json:
    """What a task is to a client: under its id in the words of each of the older proxies.

    `video` is there once it is done, `why` when it failed.
    """
    status = STATUS[state]
    said: Json = {"id": task_id, "task_id": task_id, "status": status, "created": created}
    said |= {"success": state != "failed", "task_status": status}
    if video is not None:
        said |= {"data": [video], "content": video["video_url"]}
    if state == "failed":
        said["error"] = {"message": why, "code": GenerationFailed.code}
    return said


def video_of(task_id: str, video_url: str, cover_url: str, seconds: float, width: int, height: int) -> Json:
    """A finished video, as the seed has it; what is not known is an empty text."""
    return {
        "conversation_id": task_id,
        "cover_url": cover_url,
        "video_url": video_url,
        "video_duration": f"{round(seconds)}s" if seconds else "",
        "resolution": f"{width} × {height}" if width and height else "",
    }


def video_body(created: int, video: Json, task_id: str) -> Json:
    """The whole answer to who waited for the video."""
    return {"created": created, "data": [video], "task_id": task_id}


def _prompt(given: Mapping[str, Any]) -> str:
    prompt = given.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise BadRequest("prompt must say what the video is to show", param="prompt")
    if len(prompt) > MOST_PROMPT:
        raise BadRequest(f"prompt must be at most {MOST_PROMPT} characters", param="prompt")
    wishes = [f"{words}: {wish}." for name, words in WISHES.items() if (wish := _wish(given, name))]
    return "\n\n".join([prompt.strip(), *([" ".join(wishes)] if wishes else [])])


def _wish(given: Mapping[str, Any], name: str) -> str:
    value = given.get(name)
    if value is not None and (not isinstance(value, str) or len(value) > MOST_WISH):
        raise BadRequest(f"{name} must be a text of at most {MOST_WISH} characters", param=name)
    return " ".join((value or "").split()).rstrip(".")


def _frame(given: Mapping[str, Any]) -> str:
    name = "image_url" if given.get("image_url") else "image"
    value = given.get(name)
    if isinstance(value, dict):
        value = value.get("url")
    return address_of(value, name) if value else ""


def _waits(given: Mapping[str, Any]) -> bool:
    for name in ("wait", "waitForCompletion", "async"):
        value = given.get(name)
        if value is None:
            continue
        if not isinstance(value, bool):
            raise BadRequest(f"{name} must be true or false", param=name)
        return value if name != "async" else not value
    return True
