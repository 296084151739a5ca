"""A message's content: text, or parts that also carry pictures, documents, sounds and videos. Pure.

Every form that a client may write such a part in is read here, and means the same in each dialect:

| part | whose |
|---|---|
| `{"type": "image_url", "image_url": {"url"}}`, also a bare address | OpenAI's Chat Completions |
| `{"type": "file", "file": {"file_id"}}`, `{"file_data", "filename"}` | the same |
| `{"type": "input_audio", "input_audio": {"data", "format"}}` | the same |
| `{"type": "input_image", "image_url" or "file_id"}` | OpenAI's Responses |
| `{"type": "input_file", "file_id", "file_url" or "file_data", "filename"}` | the same |
| `{"type": "image", "image": url}`, `{"type": "file", "file": url}` | FreeQwenApi (seed 004) |
| `{"type": "file", "file_url": {"url"}}` | qwen-free-api, glm-free-api (seeds 000 and 003) |
| `{"type": "video_url", "video_url": {"url"}}`, `{"type": "video", "video": url}` | Qwen's own API |
| `{"type": "image", "source": {"type": "base64", "media_type", "data"}}` | Anthropic's Messages |
| the same with the source `{"type": "url", "url"}` or `{"type": "file", "file_id"}` | the same |
| `{"type": "document", "source", "title"}`, with those sources | the same |
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import urlsplit

from qwenproxy.addresses import FILE_ID, file_address, own_file, own_media
from qwenproxy.chat import Attachment, AttachmentKind
from qwenproxy.errors import BadRequest, UnknownFile, UnsupportedParameter

KINDS: Final[Mapping[str, AttachmentKind]] = MappingProxyType(
    {
        "image_url": "image",
        "image": "image",
        "input_image": "image",
        "document": "file",
        "file": "file",
        "input_file": "file",
        "input_audio": "file",
        "audio": "file",
        "audio_url": "file",
        "video_url": "file",
        "video": "file",
    }
)
"""The parts that are no text."""
ADDRESSES: Final = ("url", "image_url", "file_url", "file_data", "data")
"""Where such a part has its address, or the content itself; first come, first read."""
URL_CHARACTERS: Final = 8192
MEDIA_TYPE: Final = re.compile(r"[\w.+-]{1,60}/[\w.+-]{1,100}", re.ASCII)
BASE64: Final = re.compile(r"[A-Za-z0-9+/\s]{64}")
"""How content without `data:` begins; no path of a file is that long without a dot."""


def text_and_attachments(
    raw: Any, place: str, texts: tuple[str, ...] = ("text",)
) -> tuple[str, tuple[Attachment, ...]]:
    """What a message's content says, a line a part, and what it carries.

    `place` is where the request has it; `texts` are the types of parts whose text stands under their type.

    Raises:
        BadRequest: it is neither a string nor such parts.
        UnsupportedParameter: an address of a kind that cannot be sent.
        UnknownFile: an id that is none of ours.
    """
    if isinstance(raw, str):
        return raw, ()
    if not isinstance(raw, list):
        raise BadRequest(f"{place} must be a string or a list of parts", param=place)
    lines: list[str] = []
    attachments: list[Attachment] = []
    for index, part in enumerate(raw):
        found = part_of(part, f"{place}[{index}]", texts)
        if isinstance(found, str):
            lines.append(found)
        else:
            attachments.append(found)
    return "\n".join(lines), tuple(attachments)


def part_of(raw: Any, place: str, texts: tuple[str, ...] = ("text",)) -> str | Attachment:
    """A part's text, or what it carries. Raises: as above."""
    kind = raw.get("type") if isinstance(raw, dict) else None
    if not isinstance(kind, str):
        raise BadRequest(f"{place} must be a part with its type", param=place)
    attachment = attachment_of(raw, place)
    if attachment is not None:
        return attachment
    if kind not in texts:
        raise BadRequest(f"{place} is of type {kind[:40]}, which is no part that can be sent", param=place)
    if not isinstance(raw.get(kind), str):
        raise BadRequest(f"{place} must be a part of type {kind}, with its text", param=place)
    return str(raw[kind])


def attachment_of(part: Mapping[str, Any], place: str) -> Attachment | None:
    """What a part carries; None: it is of a type that carries nothing. Raises: as above."""
    kind = part.get("type")
    if not isinstance(kind, str) or kind not in KINDS:
        return None
    if isinstance(part.get("source"), dict):
        return Attachment(KINDS[kind], _sourced(part["source"], place), _text(part, "title"), place)
    held = part.get(kind)
    if isinstance(held, str):
        return Attachment(KINDS[kind], address_of(held, place), place=place)
    holder = held if isinstance(held, dict) else part
    name = _text(holder, "filename") or _text(part, "filename")
    if _text(holder, "file_id"):
        return Attachment(KINDS[kind], _file(holder["file_id"], place), name, place)
    if kind == "input_audio":
        return _sound(holder, place)
    return Attachment(KINDS[kind], address_of(_address(holder), place), name, place)


def address_of(raw: Any, place: str) -> str:
    """A web address, a data URL, or an address of ours; content in plain base64 becomes a data URL.

    Raises:
        BadRequest: nothing is there, or nothing that can be read.
        UnsupportedParameter: an address of another kind, such as `file:`.
    """
    if not isinstance(raw, str) or not raw.strip():
        raise BadRequest(f"{place} must hold an address", param=place)
    if raw[:5].lower() == "data:":
        return raw
    if BASE64.match(raw):
        return f"data:;base64,{raw}"
    url = raw.strip()
    if re.fullmatch(FILE_ID, url):
        return file_address(url)
    if len(url) > URL_CHARACTERS or not url.isprintable() or " " in url:
        raise BadRequest(f"{place} holds an address that cannot be used", param=place)
    if own_file(url) or own_media(url):
        return url
    return _web_address(url, place)


def _web_address(url: str, place: str) -> str:
    try:
        split = urlsplit(url)
    except ValueError:
        raise BadRequest(f"{place} holds an address that cannot be used", param=place) from None
    if split.scheme not in {"http", "https"}:
        told = "only http and https addresses, data URLs and ids of files can be sent"
        raise UnsupportedParameter(f"{place}: {told}", param=place)
    if not split.netloc:
        raise BadRequest(f"{place} holds an address that cannot be used", param=place)
    return url


def _address(holder: Mapping[str, Any]) -> Any:
    """The first address there is, in an object of its own or not."""
    for name in ADDRESSES:
        value = holder.get(name)
        if value is not None:
            return value.get("url") if isinstance(value, dict) else value
    return None


def _sourced(source: Mapping[str, Any], place: str) -> str:
    """Anthropic's `source`: an address, a file's id, or the content in base64."""
    kind = source.get("type")
    if kind == "url":
        return address_of(source.get("url"), place)
    if kind == "file":
        return _file(_text(source, "file_id"), place)
    if kind != "base64":
        raise BadRequest(f"{place} has a source that is none of base64, url and file", param=place)
    data, media_type = _text(source, "data"), _text(source, "media_type")
    if not data or not MEDIA_TYPE.fullmatch(media_type):
        raise BadRequest(f"{place} must have a media_type and data in base64 as its source", param=place)
    return f"data:{media_type};base64,{data}"


def _file(file_id: str, place: str) -> str:
    address = file_address(file_id)
    if not own_file(address):
        raise UnknownFile("there is no such file", param=place)
    return address


def _sound(holder: Mapping[str, Any], place: str) -> Attachment:
    """OpenAI's `input_audio`: base64, and its format in a word."""
    data, form = holder.get("data"), holder.get("format")
    if not isinstance(data, str) or not data:
        raise BadRequest(f"{place} must hold the sound's data in base64", param=place)
    known = isinstance(form, str) and form.isascii() and form.isalnum()
    word = str(form).lower()[:10] if known else ""
    url = data if data[:5].lower() == "data:" else f"data:{f'audio/{word}' if word else ''};base64,{data}"
    return Attachment("file", url, f"audio.{word}" if word else "", place)


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    return value if isinstance(value, str) else ""
