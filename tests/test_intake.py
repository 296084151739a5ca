"""Over a real store. What is fetched, made or uploaded elsewhere plays a script."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest

from qwenproxy.addresses import file_address, media_address
from qwenproxy.caller import ANYBODY, Caller
from qwenproxy.chat import Attachment, ChatRequest, Message
from qwenproxy.errors import (
    BadRequest,
    CallerError,
    NotFetched,
    StoreError,
    TooLarge,
    UnknownFile,
    UnsupportedFile,
)
from qwenproxy.intake import MOST_FETCHED
from tests.attaching import PNG, Elsewhere, elsewhere, stored

pytestmark = pytest.mark.anyio

WEB = "https://x.example/cat.png"
DATA = f"data:image/webp;base64,{b64encode(PNG).decode()}"
MEDIA = "0123456789abcdef" * 2
SITE = "https://qwen-webui-prod.oss-accelerate.aliyuncs.com"
PATH = "user-1/00000000-0000-4000-8000-000000000001_cat.png"
ANN = Caller("key_ann", "ann", frozenset({"chat"}))
BOB = Caller("key_bob", "bob", frozenset({"chat"}))


@pytest.fixture
def other(tmp_path: Path) -> Elsewhere:
    return elsewhere(tmp_path, most_bytes=10_000)


def request(*addresses: str, name: str = "") -> ChatRequest:
    places = (f"messages[0].content[{number}]" for number in range(len(addresses)))
    carried = tuple(
        Attachment("image", url, name, place) for url, place in zip(addresses, places, strict=True)
    )
    return ChatRequest("qwen", (Message("user", "What?", carried),))


async def taken(other: Elsewhere, *addresses: str, caller: Caller = ANN, name: str = "") -> list[Attachment]:
    asked = await other.attachments().taken(request(*addresses, name=name), caller)
    assert asked.messages[0].text == "What?"
    return list(asked.messages[0].attachments)


async def test_all_becomes_files_of_ours(other: Elsewhere) -> None:
    other.web[WEB] = PNG
    other.shelf[MEDIA] = PNG + b"drawn"
    mine = stored(other.store, PNG + b"mine", "mine.png", ANN)
    other.uploaded[PATH] = stored(other.store, PNG + b"uploaded", "up.png", ANN)
    addresses = [
        *(WEB, DATA, f"http://localhost:3264{media_address(MEDIA)}", file_address(mine.id)),
        *(f"https://any.example/api/files/{mine.id}?x=1", f"{SITE}/{PATH}?x-oss-signature=old"),
    ]
    found = await taken(other, *addresses)
    files = {file_address(file.id): file for file in other.store.rows(ANN)}
    assert [files[each.url].name for each in found] == [each.name for each in found]
    assert [each.name for each in found] == [
        *("cat.png", "cat.png", f"{MEDIA}.png", "mine.png", "mine.png", "up.png")
    ]
    assert [each.place for each in found] == [f"messages[0].content[{n}]" for n in range(6)]
    assert {each.kind for each in found} == {"image"}
    assert other.fetched == [WEB]


async def test_the_content_of_a_data_url_says_what_it_is(other: Elsewhere) -> None:
    (picture,) = await taken(other, DATA)
    (named,) = await taken(other, "data:,Hello", name="notes.md")
    (text,) = await taken(other, "data:image/png,Hi")
    kinds = {file.name: (file.type, file.kind) for file in other.store.rows(ANN)}
    assert [picture.name, named.name, text.name] == ["image.png", "notes.md", "image.txt"]
    assert kinds["image.png"] == ("image/png", "image")
    assert kinds["notes.md"] == ("text/markdown", "document")
    assert kinds["image.txt"] == ("text/plain", "text")


async def test_what_is_named_twice_is_fetched_and_kept_once(other: Elsewhere) -> None:
    other.web[WEB] = PNG
    message = request(WEB, WEB, DATA).messages[0]
    asked = await other.attachments().taken(ChatRequest("qwen", (message, message)), ANN)
    assert other.fetched == [WEB]
    assert len({each.url for told in asked.messages for each in told.attachments}) == 1
    assert [file.purpose for file in other.store.rows(ANN)] == ["message"]


async def test_what_only_the_service_has_stays_as_it_is(other: Elsewhere) -> None:
    for url in (f"{SITE}/{PATH}?x=1", "https://cdn.qwenlm.ai/output/u/t2i/r/1.png?key=k"):
        assert await taken(other, url) == [Attachment("image", url)]
    assert other.fetched == []


async def test_another_keys_files_do_not_exist(other: Elsewhere) -> None:
    file = stored(other.store, PNG, "cat.png", BOB)
    other.uploaded[PATH] = file
    for url in (file_address(file.id), f"{SITE}/{PATH}", file_address("file-" + "0" * 24)):
        with pytest.raises(UnknownFile) as caught:
            await taken(other, url)
        assert (caught.value.status, caught.value.param) == (404, "messages[0].content[0]")
    assert (await taken(other, f"{SITE}/{PATH}", caller=BOB))[0].url == file_address(file.id)


async def test_a_file_whose_content_is_gone_is_none(other: Elsewhere) -> None:
    file = stored(other.store, PNG, "cat.png", ANN)
    other.store.path(file).unlink()
    with pytest.raises(UnknownFile):
        await taken(other, file_address(file.id))


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("data:image/png;base64,AA", BadRequest),
        ("data:image/png", BadRequest),
        ("data:,", BadRequest),
        (f"data:;base64,{b64encode(bytes(10_001)).decode()}", TooLarge),
        ("https://x.example/none.png", NotFetched),
    ],
)
async def test_what_cannot_be_taken_is_named(other: Elsewhere, url: str, kind: type[CallerError]) -> None:
    with pytest.raises(kind) as caught:
        await taken(other, DATA, url)
    assert caught.value.param == "messages[0].content[1]"
    assert len(str(caught.value)) < 100


async def test_too_many_are_refused_before_anything_is_fetched(other: Elsewhere) -> None:
    with pytest.raises(UnsupportedFile, match=r"11 files; QWENPROXY_MAX_FILES allows 10") as caught:
        await taken(other, *(f"{WEB}?{number}" for number in range(11)))
    assert caught.value.param == "messages[0].content"
    messages = [request(*(f"{WEB}?{n}.{m}" for n in range(10))).messages[0] for m in range(6)]
    with pytest.raises(NotFetched, match=f"at most {MOST_FETCHED}"):
        await other.attachments().taken(ChatRequest("qwen", tuple(messages)), ANN)
    assert len(other.fetched) <= MOST_FETCHED
    assert f"{WEB}?0.0" not in other.fetched


async def test_a_request_without_any_is_left_alone(other: Elsewhere) -> None:
    asked = ChatRequest("qwen", (Message("user", "Hello"),))
    assert await other.attachments().taken(asked, ANN) == asked


async def test_what_is_recalled_says_what_is_gone(other: Elsewhere) -> None:
    other.web[WEB] = PNG
    message = request("https://x.example/none.png", WEB, file_address("file-" + "0" * 24)).messages[0]
    told = await other.attachments().recalled([Message("system", "Be kind"), message], ANN)
    (file,) = other.store.rows(ANN)
    assert told.messages[0] == Message("system", "Be kind")
    gone = "[A picture that stood here is no longer to be had.]"
    assert told.messages[1].text == f"What?\n{gone}\n{gone}"
    assert told.messages[1].attachments == (Attachment("image", file_address(file.id), "cat.png"),)
    assert told.addresses == {WEB: file_address(file.id)}


async def test_what_is_here_is_recalled_without_the_web(other: Elsewhere) -> None:
    other.web[WEB] = PNG
    file = Message("assistant", "", (Attachment("file", WEB), Attachment("image", DATA)))
    told = await other.attachments().recalled([file], ANN, fetch=False)
    assert told.messages[0].text == "[A file that stood here is no longer to be had.]"
    assert (len(told.messages[0].attachments), list(told.addresses), other.fetched) == (1, [DATA], [])


async def test_a_disk_that_fails_is_no_picture_that_is_gone(other: Elsewhere, tmp_path: Path) -> None:
    (tmp_path / "files").write_text("in the way")
    with pytest.raises(StoreError):
        await other.attachments().recalled(request(DATA).messages, ANN)


async def test_what_a_message_holds_itself_is_not_kept_in_it(other: Elsewhere) -> None:
    taking = other.attachments()
    assert await taking.without_data("data:,x", ANN, "content") == "data:,x"
    parts: list[dict[str, Any]] = [{"type": "text", "text": DATA}, {"type": "file", "file": DATA, "more": 1}]
    kept = await taking.without_data(parts, ANN, "content")
    (row,) = other.store.rows(ANN)
    assert kept == [parts[0], {"type": "file", "file": file_address(row.id), "more": 1}]
    with pytest.raises(BadRequest) as caught:
        await taking.without_data([parts[0], {"type": "image", "image": "data:x"}], ANN, "content")
    assert caught.value.param == "content[1]"


async def test_one_field_of_a_request(other: Elsewhere) -> None:
    other.web[WEB] = PNG
    found = await other.attachments().file(WEB, ANYBODY, "image_url")
    assert (found.place, found.name) == ("image_url", "cat.png")
    for wrong in ("", "ftp://x/", "data:image/png;base64,A"):
        with pytest.raises(CallerError) as caught:
            await other.attachments().file(wrong, ANYBODY, "image_url")
        assert caught.value.param == "image_url"
