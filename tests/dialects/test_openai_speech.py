"""What a body asks for."""

from __future__ import annotations

from typing import Any

import pytest

from qwenproxy.dialects.openai_speech import MOST_INPUT, SpeechRequest, parse, voices_body
from qwenproxy.errors import BadRequest

FORMATS = ("mp3", "wav")


def parsed(**given: Any) -> SpeechRequest:
    return parse({"input": "Hello", **given}, FORMATS, 0.25, 4.0)


def test_a_text_is_enough() -> None:
    assert parsed(model="tts-1") == SpeechRequest("Hello", "", "mp3", 1.0, False)


def test_everything_at_once() -> None:
    wanted = parsed(
        input=" Hello\n", voice="alloy", response_format="wav", speed=2, stream_format="sse", instructions="!"
    )
    assert wanted == SpeechRequest("Hello", "alloy", "wav", 2.0, True)
    assert parsed(voice={"id": "Cherry"}).voice == "Cherry"


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"input": None}, "input"),
        ({"input": "  "}, "input"),
        ({"input": ["a"]}, "input"),
        ({"input": "a" * (MOST_INPUT + 1)}, "input"),
        ({"voice": 5}, "voice"),
        ({"response_format": "midi"}, "response_format"),
        ({"response_format": ["mp3"]}, "response_format"),
        ({"stream_format": "tape"}, "stream_format"),
        ({"speed": 0.2}, "speed"),
        ({"speed": 4.1}, "speed"),
        ({"speed": "1"}, "speed"),
        ({"speed": True}, "speed"),
        ({"speed": float("nan")}, "speed"),
    ],
)
def test_what_cannot_be_understood_is_refused_by_its_name(given: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        parsed(**given)
    assert refusal.value.param == param


def test_the_longest_text() -> None:
    assert len(parsed(input="a" * MOST_INPUT).text) == MOST_INPUT


def test_voices_stand_under_both_names_that_clients_look_for() -> None:
    body = voices_body([{"id": "Cherry"}])
    assert body["data"] == body["voices"] == [{"id": "Cherry"}]
