"""OpenAI's Images: pictures from words, and changed ones.

A drawing is a question like any other, whose answer is a picture. What is done with each request parameter
stands in `PARAMETERS`; the README's table is held equal to it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Final

from qwenproxy.chat import (
    Attachment,
    ChatRequest,
    Delta,
    Drawing,
    Finished,
    Media,
    Message,
    Reply,
)
from qwenproxy.clock import Clock, SystemClock
from qwenproxy.dialects.base import Json, frame
from qwenproxy.dialects.chat_parameters import MOST_CHOICES, Treatment
from qwenproxy.dialects.fields import DEFAULT_MODEL, nearest_ratio
from qwenproxy.dialects.openai_chat import envelope
from qwenproxy.dialects.parts import address_of, attachment_of
from qwenproxy.errors import BadRequest, GenerationFailed, QwenProxyError, UnsupportedParameter

RATIOS: Final = ("1:1", "2:3", "3:2", "3:4", "4:3", "16:9", "9:16")
"""What the service draws (protocol §10.1)."""
GENERATORS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "qwen-image-3.0": "qwen-image-3.0-pro",
        "qwen-image-3.0-pro": "qwen-image-3.0-pro",
        "qwen-image-2.0": "qwen-image-2.0-pro",
        "qwen-image-2.0-pro": "qwen-image-2.0-pro",
    }
)
"""The service's ids of what draws, by model name (protocol §10.1)."""
SIZE: Final = re.compile(r"(\d{1,5})\s*[:/xX×*]\s*(\d{1,5})")
PLACES: Final = ("size", "aspect_ratio", "ratio")
"""Where a request says its size; the first that does counts."""
IMAGES: Final = ("image", "images", "image_url")

PARAMETERS: Final[Mapping[str, tuple[Treatment, str]]] = MappingProxyType(
    {
        "prompt": ("honoured", ""),
        "model": (
            "honoured",
            "`qwen-image-3.0-pro` and `qwen-image-2.0-pro` say what draws; a chat model reads the prompt; "
            "any other name: the default",
        ),
        "n": ("honoured", f"1 to {MOST_CHOICES}; each picture is an answer of its own"),
        "size": (
            "honoured",
            f"a ratio or pixels: the nearest of {', '.join(RATIOS)}; none or `auto`: the service's choice",
        ),
        "aspect_ratio": ("honoured", "the same"),
        "ratio": ("honoured", "the same"),
        "response_format": ("honoured", "`url`, the default, or `b64_json`, the default of a stream"),
        "stream": ("honoured", "one event a picture, when it is done"),
        "image": (
            "honoured",
            "what is to be changed: a file, an address, a data URL or the id of a file, or a list of those",
        ),
        "images": ("honoured", "the same"),
        "image_url": ("honoured", "the same"),
        "quality": ("ignored", "the web service has no such knob"),
        "style": ("ignored", "the web service has no such knob"),
        "background": ("ignored", "the web service has no such knob"),
        "input_fidelity": ("ignored", "the web service has no such knob"),
        "output_format": ("ignored", "the service gives PNG"),
        "output_compression": ("ignored", "the service gives PNG"),
        "partial_images": ("ignored", "only whole pictures are sent"),
        "moderation": ("ignored", "the service moderates by itself"),
        "user": ("ignored", ""),
        "safety_identifier": ("ignored", ""),
        "mask": ("refused", "say in the prompt what is to be changed"),
        "markup": ("refused", "say in the prompt what is to be changed"),
    }
)
"""Every parameter with a meaning. One that is not listed is ignored; `null` is the same as absent."""


class OpenAIImages:
    paths: ClassVar[tuple[str, ...]] = ("/images/generations",)
    events: ClassVar[str] = "image_generation"
    changes: ClassVar[bool] = False
    """Whether there must be a picture to begin from."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()

    def parse(self, body: Mapping[str, Any], params: Mapping[str, str]) -> ChatRequest:
        given = {name: value for name, value in body.items() if value is not None}
        for name in given:
            treatment, why = PARAMETERS.get(name, ("ignored", ""))
            if treatment == "refused":
                raise UnsupportedParameter(f"{name} is not supported here: {why}", param=name)
        images = _images(given)
        if self.changes and not images:
            raise BadRequest("image must be the picture that is to be changed", param="image")
        model, generator = _model(given)
        stream = _flag(given, "stream")
        return ChatRequest(
            model=model,
            messages=(Message("user", _prompt(given), images),),
            stream=stream,
            choices=_count(given),
            remember=False,
            drawing=Drawing(_size(given), generator, _inline(given, stream)),
        )

    def encoder(self, request: ChatRequest) -> ImageEncoder:
        return ImageEncoder(self.events, self._created(), request)

    def reply(self, request: ChatRequest, replies: Sequence[Reply]) -> Json:
        """Raises: GenerationFailed."""
        return {"created": self._created(), "data": [_row(request, _last(reply.media)) for reply in replies]}

    def error(self, error: QwenProxyError) -> Json:
        return envelope(error)

    def _created(self) -> int:
        return int(self._clock.now().timestamp())


class OpenAIEdits(OpenAIImages):
    paths: ClassVar[tuple[str, ...]] = ("/images/edits",)
    events: ClassVar[str] = "image_edit"
    changes: ClassVar[bool] = True


class ImageEncoder:
    """An event for each picture once it is done; the words around it are not told."""

    def __init__(self, events: str, created: int, request: ChatRequest) -> None:
        self._events = events
        self._created = created
        self._request = request
        self._media: dict[int, list[Media]] = {}

    def encode(self, delta: Delta, choice: int = 0) -> list[str]:
        match delta:
            case Media():
                self._media.setdefault(choice, []).append(delta)
            case Finished():
                return self._completed(delta, self._media.pop(choice, []))
            case _:
                pass
        return []

    def end(self) -> list[str]:
        return []

    def fail(self, error: QwenProxyError) -> list[str]:
        return [frame(envelope(error))]

    def _completed(self, finished: Finished, media: Sequence[Media]) -> list[str]:
        try:
            last = _last(media)
        except GenerationFailed as exc:
            return self.fail(exc)
        asked, drawn = finished.usage.input_tokens, finished.usage.output_tokens
        event = {
            "type": f"{self._events}.completed",
            "b64_json": last.content,
            **({} if self._inline else {"url": last.url}),
            "created_at": self._created,
            "size": f"{last.width}x{last.height}" if last.width and last.height else "auto",
            "quality": "auto",
            "background": "auto",
            "output_format": "png",
            "usage": {
                "input_tokens": asked,
                "input_tokens_details": {"image_tokens": 0, "text_tokens": asked},
                "output_tokens": drawn,
                "total_tokens": asked + drawn,
            },
        }
        return [frame(event, event=f"{self._events}.completed")]

    @property
    def _inline(self) -> bool:
        return self._request.drawing is not None and self._request.drawing.inline


def _last(media: Sequence[Media]) -> Media:
    """The picture: what comes before is a draft of it (protocol §10.1). Raises: GenerationFailed."""
    if not media:
        raise GenerationFailed("the service answered without a picture")
    return media[-1]


def _row(request: ChatRequest, media: Media) -> Json:
    inline = request.drawing is not None and request.drawing.inline
    return {"b64_json": media.content} if inline else {"url": media.url}


def _prompt(given: Mapping[str, Any]) -> str:
    prompt = given.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise BadRequest("prompt must say what is to be drawn", param="prompt")
    return prompt


def _model(given: Mapping[str, Any]) -> tuple[str, str]:
    """The chat model, and what draws."""
    model = given.get("model", DEFAULT_MODEL)
    if not isinstance(model, str):
        raise BadRequest("model must be a model's name", param="model")
    name = model.strip()
    generator = GENERATORS.get(name.lower(), "")
    return DEFAULT_MODEL if generator or not name else name, generator


def _inline(given: Mapping[str, Any], stream: bool) -> bool:
    form = given.get("response_format", "b64_json" if stream else "url")
    if form not in ("url", "b64_json"):
        raise BadRequest("response_format must be url or b64_json", param="response_format")
    return bool(form == "b64_json")


def _flag(given: Mapping[str, Any], name: str) -> bool:
    """A form has only text."""
    value = {"true": True, "false": False}.get(str(given.get(name, False)).lower())
    if value is None:
        raise BadRequest(f"{name} must be true or false", param=name)
    return value


def _count(given: Mapping[str, Any]) -> int:
    value = given.get("n", 1)
    if isinstance(value, str) and re.fullmatch(r"\d{1,3}", value, re.ASCII):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MOST_CHOICES:
        raise BadRequest(f"n must be a whole number from 1 to {MOST_CHOICES}", param="n")
    return value


def _size(given: Mapping[str, Any]) -> str:
    """The nearest ratio that the service draws; "" for its own choice."""
    name = next((name for name in PLACES if given.get(name) not in (None, "", "auto")), "")
    if not name:
        return ""
    found = SIZE.fullmatch(given[name].strip()) if isinstance(given[name], str) else None
    width, height = (int(found[1]), int(found[2])) if found else (0, 0)
    if not width or not height:
        raise BadRequest(f"{name} must be a ratio such as 16:9 or pixels such as 1024x1024", param=name)
    return nearest_ratio(width, height, RATIOS)


def _images(given: Mapping[str, Any]) -> tuple[Attachment, ...]:
    found: list[Attachment] = []
    for name in IMAGES:
        value = given.get(name, [])
        rows = value if isinstance(value, list) else [value]
        for index, row in enumerate(rows):
            found.append(_image(row, f"{name}[{index}]" if rows is value else name))
    return tuple(found)


def _image(raw: Any, place: str) -> Attachment:
    """Raises: BadRequest, UnsupportedParameter, UnknownFile."""
    if not isinstance(raw, dict):
        return Attachment("image", address_of(raw, place), place=place)
    part = attachment_of({**raw, "type": "input_image"}, place)
    if part is None:
        raise BadRequest(f"{place} must hold an address", param=place)
    return part
