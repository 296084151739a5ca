"""OpenAI's speech from text.

What is done with each parameter stands in `PARAMETERS`; the README's table is held equal to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from qwenproxy.dialects.base import Json
from qwenproxy.errors import BadRequest

MOST_INPUT: Final = 4096
"""Characters, as OpenAI's."""
DEFAULT_FORMAT: Final = "mp3"
STREAM_FORMATS: Final = ("audio", "sse")

PARAMETERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "input": f"needed; at most {MOST_INPUT} characters",
        "model": "any: there is one",
        "voice": "one of `GET /v1/audio/voices`, or OpenAI's: each stands for one; none: the account's own",
        "response_format": "`mp3`, `opus`, `aac`, `flac`, `wav` or `pcm`; none: `mp3`",
        "speed": "from 0.25 to 4; done by the proxy, at the same pitch",
        "stream_format": "`audio` or `sse`",
        "instructions": "ignored",
    }
)


@dataclass(frozen=True, slots=True)
class SpeechRequest:
    text: str
    voice: str
    """As the client names it; "": the account's own."""
    form: str
    speed: float
    events: bool
    """Whether the sound goes out as events instead of bytes."""


def parse(given: Mapping[str, Any], formats: Sequence[str], slowest: float, fastest: float) -> SpeechRequest:
    """What a body asks for.

    Raises:
        BadRequest: with the field in `param`.
    """
    form = _one_of(given, "response_format", DEFAULT_FORMAT, formats)
    events = _one_of(given, "stream_format", "audio", STREAM_FORMATS) == "sse"
    return SpeechRequest(_input(given), _voice(given), form, _speed(given, slowest, fastest), events)


def voices_body(voices: Sequence[Json]) -> Json:
    """The list of voices, as the clients that know such a route expect it."""
    return {"object": "list", "data": list(voices), "voices": list(voices)}


def _input(given: Mapping[str, Any]) -> str:
    text = given.get("input")
    if not isinstance(text, str) or not text.strip():
        raise BadRequest("input must be the text to speak", param="input")
    if len(text) > MOST_INPUT:
        raise BadRequest(f"input must be at most {MOST_INPUT} characters", param="input")
    return text.strip()


def _voice(given: Mapping[str, Any]) -> str:
    voice = given.get("voice")
    if isinstance(voice, dict):
        voice = voice.get("id")
    if voice is not None and not isinstance(voice, str):
        raise BadRequest("voice must be the name of a voice", param="voice")
    return (voice or "").strip()


def _one_of(given: Mapping[str, Any], name: str, default: str, known: Sequence[str]) -> str:
    value = given.get(name)
    if value is None:
        return default
    if not isinstance(value, str) or value not in known:
        raise BadRequest(f"{name} must be one of {', '.join(known)}", param=name)
    return value


def _speed(given: Mapping[str, Any], slowest: float, fastest: float) -> float:
    speed = given.get("speed")
    if speed is None:
        return 1.0
    sound = isinstance(speed, int | float) and not isinstance(speed, bool)
    if not sound or not slowest <= speed <= fastest:
        raise BadRequest(f"speed must be a number from {slowest:g} to {fastest:g}", param="speed")
    return float(speed)
