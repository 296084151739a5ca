"""What messages bring to the stand-in: which files it takes, and what its model makes of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import pytest

from tests.serve import Standin
from tests.standin.uploading import Uploaded, file_object, put, ticket, uploaded
from tests.standin.visitor import Visitor, parsed, text_of

PICTURE = b"\x89PNG never looked at"


@pytest.fixture
def visitor(standin: Standin) -> Iterator[Visitor]:
    with Visitor(standin) as found:
        yield found


def error(visitor: Visitor, *files: dict[str, Any], **features: Any) -> Any:
    """What the stream says instead of an answer."""
    return visitor.frames("Look", files=list(files), **features)[-1]["error"]


def test_the_model_has_what_a_message_brings(standin: Standin, visitor: Visitor) -> None:
    picture = uploaded(visitor, PICTURE, "cat.png", "image")
    document = uploaded(visitor, b"Cats sleep.", "cats.txt")
    files = [file_object(picture, "vision"), file_object(document, "default", url="")]
    chat = visitor.new_chat()
    frames = visitor.frames("What is this?", chat, files=files)
    assert text_of(frames).endswith(
        " It came with 1 picture (cat.png, 20 bytes) and 1 document (cats.txt, 11 bytes)."
    )
    (turn,) = standin.turns()
    assert turn["files"] == [
        {"kind": "image", "name": "cat.png", "sha256": hashlib.sha256(PICTURE).hexdigest(), "size": 20},
        {
            "kind": "document",
            "name": "cats.txt",
            "sha256": hashlib.sha256(b"Cats sleep.").hexdigest(),
            "size": 11,
        },
    ]
    assert turn["documents"] == ["Cats sleep."]
    first = frames[0]["response.created"]["response_id"]
    again = parsed(visitor.ask("{{standin: recall}}", chat, parent=first).text)
    assert "1 picture (cat.png, 20 bytes)" in text_of(again)


def test_a_document_says_what_a_prompt_says(standin: Standin, visitor: Visitor) -> None:
    prompt = b"{{standin: recall}} A long letter"
    pasted = file_object(uploaded(visitor, prompt, "Pasted_Text_17.txt"))
    frames = visitor.frames("[attached prompt] It is Pasted_Text_17.txt", files=[pasted])
    assert text_of(frames) == "I remember 0 turns of this chat before this one."
    assert standin.turns()[0]["prompt"] == "A long letter"
    refused = file_object(uploaded(visitor, b"{{standin: rate_limited}}", "notes.txt"))
    assert visitor.ask("Hello", files=[refused]).json()["data"]["code"] == "RateLimited"


def test_what_is_no_text_is_not_read(standin: Standin, visitor: Visitor) -> None:
    visitor.frames("Hi", files=[file_object(uploaded(visitor, b"%PDF \xff\xfe", "a.pdf"))])
    assert standin.turns()[0]["documents"] == [""]


def test_an_address_without_its_signature_does(visitor: Visitor) -> None:
    picture = uploaded(visitor, PICTURE, "cat.png", "image")
    bare = file_object(picture, "vision", url=picture.url.partition("?")[0], id="")
    assert "1 picture" in text_of(visitor.frames("Hi", files=[bare]))


def test_what_lies_elsewhere_is_an_error_in_the_stream(visitor: Visitor) -> None:
    foreign = Uploaded("", "https://example.com/a.pdf", "a.pdf", 3)
    assert error(visitor, file_object(foreign)) == "Internal error!"
    for kind in ("vision", "audio", "video"):
        assert error(visitor, file_object(foreign, kind))["code"] == "invalid_input"


def test_a_file_of_another_account_does_not_exist(standin: Standin, visitor: Visitor) -> None:
    with Visitor(standin, "two@example.com") as other:
        theirs = uploaded(other, PICTURE, "cat.png", "image")
    never_put = ticket(visitor)
    unknown = Uploaded(never_put["file_id"], never_put["file_url"], "a.txt", 3)
    for file, kind in ((theirs, "vision"), (unknown, "document")):
        for changes in ({}, {"url": ""}):
            answer = visitor.ask("Hi", files=[file_object(file, kind, **changes)]).json()["data"]
            assert answer == {
                "code": "Bad_Request",
                "details": f"Invalid input the file {file.id} is not exist.",
            }
    assert standin.turns() == []


def test_what_the_model_cannot_use_is_refused_in_the_stream(visitor: Visitor) -> None:
    picture = uploaded(visitor, PICTURE, "cat.png", "image")
    assert error(visitor, file_object(picture, "vision"), model="qwen3.7-max")["code"] == "invalid_input"
    assert error(visitor, file_object(picture, "painting"))["code"] == "invalid_input"
    unread = ticket(visitor)
    put(visitor, unread, b"abc")
    file = Uploaded(unread["file_id"], unread["file_url"], "a.txt", 3)
    assert error(visitor, file_object(file))["code"] == "invalid_input"
    visitor.standin.options(link_s=-1)
    late = uploaded(visitor, b"abc", "b.txt")
    assert error(visitor, file_object(late))["code"] == "invalid_input"
