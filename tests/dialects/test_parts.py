from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenproxy.chat import Attachment, Message
from qwenproxy.dialects import parts
from qwenproxy.dialects.native import NativeChat
from qwenproxy.dialects.openai_chat import OpenAIChat
from qwenproxy.dialects.parts import address_of, attachment_of, text_and_attachments
from qwenproxy.errors import BadRequest, CallerError, UnknownFile, UnsupportedParameter

PICTURE = "https://example.com/cat.png"
DATA = "data:image/png;base64,iVBORw0KGgo="
PLAIN = "iVBORw0KGgo" + "A" * 60
FILE_ID = "file-0123456789abcdef01234567"
FILE = f"/v1/files/{FILE_ID}/content"

FORMS: list[tuple[dict[str, Any], Attachment]] = [
    ({"type": "image_url", "image_url": {"url": PICTURE, "detail": "low"}}, Attachment("image", PICTURE)),
    ({"type": "image_url", "image_url": PICTURE}, Attachment("image", PICTURE)),
    ({"type": "image_url", "image_url": {"url": DATA}}, Attachment("image", DATA)),
    ({"type": "image_url", "image_url": {"url": PLAIN}}, Attachment("image", f"data:;base64,{PLAIN}")),
    ({"type": "image_url", "image_url": {"url": FILE_ID}}, Attachment("image", FILE)),
    ({"type": "image_url", "image_url": {"url": FILE}}, Attachment("image", FILE)),
    ({"type": "input_image", "image_url": PICTURE, "detail": "auto"}, Attachment("image", PICTURE)),
    ({"type": "input_image", "file_id": FILE_ID, "image_url": None}, Attachment("image", FILE)),
    ({"type": "file", "file": {"file_id": FILE_ID}}, Attachment("file", FILE)),
    ({"type": "file", "file": {"file_data": DATA, "filename": "a.pdf"}}, Attachment("file", DATA, "a.pdf")),
    (
        {"type": "file", "file": {"file_data": PLAIN, "filename": "a.pdf"}},
        Attachment("file", f"data:;base64,{PLAIN}", "a.pdf"),
    ),
    ({"type": "image", "image": PICTURE}, Attachment("image", PICTURE)),
    ({"type": "file", "file": PICTURE}, Attachment("file", PICTURE)),
    ({"type": "file", "file_url": {"url": PICTURE}}, Attachment("file", PICTURE)),
    ({"type": "file", "file_url": {"url": DATA}}, Attachment("file", DATA)),
    ({"type": "file", "file_url": PICTURE}, Attachment("file", PICTURE)),
    ({"type": "input_file", "file_id": FILE_ID}, Attachment("file", FILE)),
    ({"type": "input_file", "file_url": PICTURE}, Attachment("file", PICTURE)),
    ({"type": "input_file", "file_data": DATA, "filename": "a.csv"}, Attachment("file", DATA, "a.csv")),
    (
        {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
        Attachment("file", "data:audio/wav;base64,UklGRg==", "audio.wav"),
    ),
    (
        {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "a/b\n"}},
        Attachment("file", "data:;base64,UklGRg=="),
    ),
    ({"type": "input_audio", "input_audio": {"data": DATA}}, Attachment("file", DATA)),
    ({"type": "video_url", "video_url": {"url": PICTURE}}, Attachment("file", PICTURE)),
    ({"type": "video", "video": PICTURE}, Attachment("file", PICTURE)),
    (
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}},
        Attachment("image", DATA),
    ),
    ({"type": "image", "source": {"type": "url", "url": PICTURE}}, Attachment("image", PICTURE)),
    ({"type": "image", "source": {"type": "file", "file_id": FILE_ID}}, Attachment("image", FILE)),
    (
        {
            "type": "document",
            "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="},
            "title": "a.pdf",
            "citations": {"enabled": True},
        },
        Attachment("file", "data:application/pdf;base64,JVBERi0=", "a.pdf"),
    ),
    ({"type": "document", "source": {"type": "url", "url": PICTURE}}, Attachment("file", PICTURE)),
    ({"type": "document", "source": {"type": "file", "file_id": FILE_ID}}, Attachment("file", FILE)),
]


@pytest.mark.parametrize(("part", "expected"), FORMS)
def test_every_form_means_the_same_in_each_dialect(part: dict[str, Any], expected: Attachment) -> None:
    assert attachment_of(part, "x") == expected
    content = [{"type": "text", "text": "What is it?"}, part]
    message = Message("user", "What is it?", (expected,))
    (asked,) = NativeChat().parse({"message": content}, {}).messages
    assert asked == message
    assert asked.attachments[0].place == "message[1]"
    for role in ("user", "assistant", "system"):
        told = [{"role": role, "content": content}, {"role": "user", "content": [part]}]
        first, last = OpenAIChat().parse({"messages": told}, {}).messages
        assert (first.text, first.attachments, last.text) == (message.text, message.attachments, "")
        assert [each.attachments[0].place for each in (first, last)] == [
            "messages[0].content[1]",
            "messages[1].content[0]",
        ]


def test_every_type_is_tried_above() -> None:
    tried = {part["type"] for part, _ in FORMS}
    assert set(parts.KINDS) - tried == {"audio", "audio_url"}


WRONG: list[tuple[dict[str, Any], type[CallerError]]] = [
    ({"type": "image_url"}, BadRequest),
    ({"type": "image_url", "image_url": {"url": ""}}, BadRequest),
    ({"type": "image_url", "image_url": {"url": 5}}, BadRequest),
    ({"type": "image_url", "image_url": {"url": {"url": {}}}}, BadRequest),
    ({"type": "image", "image": "https://"}, BadRequest),
    ({"type": "image", "image": "https://[::1"}, BadRequest),
    ({"type": "image", "image": "https://a/ b"}, BadRequest),
    ({"type": "image", "image": "https://a/\u202ex"}, BadRequest),
    ({"type": "image", "image": "https://a/" + "x-" * 5000}, BadRequest),
    ({"type": "image", "image": "ftp://example.com/cat.png"}, UnsupportedParameter),
    ({"type": "image", "image": "//example.com/cat.png"}, UnsupportedParameter),
    ({"type": "image", "image": "blob:https://example.com/1"}, UnsupportedParameter),
    ({"type": "file", "file": "/home/ann/a.pdf"}, UnsupportedParameter),
    ({"type": "file", "file": {"file_id": "file-abc"}}, UnknownFile),
    ({"type": "input_file", "file_id": "../../../etc/passwd"}, UnknownFile),
    ({"type": "input_audio", "input_audio": {"format": "wav"}}, BadRequest),
    ({"type": "input_audio", "input_audio": {"data": ["UklGRg=="]}}, BadRequest),
    ({"type": "image", "source": {}}, BadRequest),
    ({"type": "image", "source": "x"}, BadRequest),
    ({"type": "image", "source": {"type": "base64", "data": "iVBORw0KGgo="}}, BadRequest),
    ({"type": "image", "source": {"type": "base64", "media_type": "image/png"}}, BadRequest),
    ({"type": "image", "source": {"type": "base64", "media_type": "a;b/c,d", "data": "x"}}, BadRequest),
    ({"type": "image", "source": {"type": "url", "url": "file:///etc/passwd"}}, UnsupportedParameter),
    ({"type": "document", "source": {"type": "text", "data": "x"}}, BadRequest),
    ({"type": "document", "source": {"type": "file", "file_id": "file_011"}}, UnknownFile),
    ({"type": "document"}, BadRequest),
]


@pytest.mark.parametrize(("part", "kind"), WRONG)
def test_what_is_wrong_is_named(part: dict[str, Any], kind: type[CallerError]) -> None:
    with pytest.raises(kind) as caught:
        text_and_attachments([{"type": "text", "text": "x"}, part], "content")
    assert caught.value.param == "content[1]"
    assert len(str(caught.value)) < 200


def test_what_carries_nothing_is_no_attachment() -> None:
    assert attachment_of({"type": "text", "text": "x"}, "x") is None
    assert attachment_of({"type": ["image"]}, "x") is None


def test_an_address_may_stand_between_spaces() -> None:
    assert address_of(f" {PICTURE}\n", "x") == PICTURE


@given(st.text(max_size=80) | st.text(max_size=20).map(lambda end: f"http://{end}"))
def test_whatever_text_comes_is_an_address_or_the_callers_fault(text: str) -> None:
    try:
        found = address_of(text, "x")
    except CallerError:
        return
    assert found.startswith(("http:", "https:", "/")) or found[:5].lower() == "data:"
