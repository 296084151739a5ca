"""The stand-in reads its answers aloud, and keeps each account's settings."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest

from tests.serve import Standin
from tests.standin.visitor import Visitor, deltas, parsed, text_of

SETTINGS = "/api/v2/users/user/settings"


@pytest.fixture
def visitor(standin: Standin) -> Iterator[Visitor]:
    standin.options(pieces_per_s=1000)
    with Visitor(standin) as found:
        yield found


def said(visitor: Visitor, prompt: str) -> tuple[str, str, str]:
    """The chat, the answer's id and its text."""
    chat = visitor.new_chat()
    frames = visitor.frames(prompt, chat)
    return chat, frames[0]["response.created"]["response_id"], text_of(frames)


def read(visitor: Visitor, chat: str, message: str, **changes: Any) -> Any:
    wanted = {"id": message, "role": "assistant", "sub_chat_type": "tts"}
    body = {"chat_id": chat, "timestamp": 1, "messages": [wanted], **changes}
    return visitor.call("POST", f"/api/v2/tts/completions?chat_id={chat}", body)


def samples(visitor: Visitor, chat: str, message: str) -> list[bytes]:
    frames = parsed(read(visitor, chat, message).text)
    assert [delta["status"] for delta in deltas(frames)][-1] == "finished"
    return [base64.b64decode(delta["tts"]) for delta in deltas(frames) if delta["tts"]]


def test_a_marked_text_is_said_word_for_word(visitor: Visitor) -> None:
    text = "Hello,  you —\n<<<x\n\nsecond `part`  "
    assert said(visitor, f"Say this again.\n<<<n0nce\n{text}\nn0nce>>>")[2] == text
    assert said(visitor, "<<<a\nHello\nb>>>")[2].startswith("This is the stand-in")
    assert said(visitor, "{{standin: say text=No}}<<<a\nHello\na>>>")[2] == "No"


def test_an_answer_is_read_aloud_as_long_as_it_is(visitor: Visitor) -> None:
    chat, message, text = said(visitor, "<<<a\nThis is a text of forty letters, or nearly.\na>>>")
    heard = samples(visitor, chat, message)
    assert len(heard) > 2
    assert len(b"".join(heard)) == 2 * 960 * len(text)


def test_only_answers_of_ones_own_are_read(standin: Standin, visitor: Visitor) -> None:
    chat, message, _ = said(visitor, "Hello")
    assert read(visitor, chat, "no-such-message").json()["data"]["code"] == "Bad_Request"
    assert read(visitor, chat, message, chat_id="x").json()["data"]["code"] == "CHAT_NOT_FOUND"
    assert read(visitor, chat, message, messages=[]).json()["data"]["code"] == "RequestValidationError"
    with Visitor(standin, "two@example.com") as other:
        assert read(other, chat, message).json()["data"]["code"] == "CHAT_NOT_FOUND"


def test_speech_fails_when_told(standin: Standin, visitor: Visitor) -> None:
    chat, message, _ = said(visitor, "Hello")
    for name, code in {"tts_limited": "RateLimited", "tts_language": "UnsupportedLanguage"}.items():
        standin.fault(name, on="tts")
        assert read(visitor, chat, message).json()["data"]["code"] == code


def test_the_voice_is_a_setting_of_the_account(standin: Standin, visitor: Visitor) -> None:
    voices = visitor.call("GET", "/api/v2/tts/config").json()["data"]
    names = [voice["speaker"] for voice in voices["audio_tts_speakers"]]
    assert len(names) > 2
    assert voices["omni_speakers"]
    chat, message, _ = said(visitor, "Hello")
    first = samples(visitor, chat, message)
    changed = visitor.call("POST", f"{SETTINGS}/update", {"tts_speaker_v2": {"speaker": names[1]}}).json()
    assert changed["data"]["tts_speaker_v2"] == {"speaker": names[1]}
    assert samples(visitor, chat, message) != first
    with Visitor(standin, "two@example.com") as other:
        assert other.call("GET", SETTINGS).json()["data"]["tts_speaker_v2"] == {"speaker": names[0]}
    standin.reset(sessions=False)
    assert visitor.call("GET", SETTINGS).json()["data"]["tts_speaker_v2"] == {"speaker": names[0]}


def test_settings_are_changed_one_section_at_a_time(visitor: Visitor) -> None:
    whole = visitor.call("GET", SETTINGS).json()["data"]
    wrong: list[object] = [
        whole,
        {},
        {"weather": {}},
        {"memory": True},
        {"tts_speaker_v2": {"speaker": "Nobody"}},
    ]
    for body in wrong:
        answer = visitor.call("POST", f"{SETTINGS}/update", body).json()
        assert answer["data"]["code"] == "RequestValidationError"
    kept = visitor.call("POST", f"{SETTINGS}/update", {"tools_enabled": {"web_search": False}}).json()["data"]
    assert kept == {**whole, "tools_enabled": {"web_search": False, "image_gen_tool": True}}
