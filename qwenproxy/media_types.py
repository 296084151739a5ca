"""What a file is, by what it holds. Its name decides only where the content leaves a choice.

Names lie, by mistake or on purpose: a page called `cat.png` is a page. Text says nothing of its language, and
the older Office files share one form, so there the name may choose among what the content allows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import puremagic

from qwenproxy.chat import FileKind

HEAD_BYTES: Final = 65_536
"""So much of a file's start is enough."""
UNKNOWN: Final = "application/octet-stream"
PLAIN: Final = "text/plain"
SURE: Final = 0.3
"""Of puremagic's confidence: below it two odd bytes are enough for a match."""

_OFFICE: Final = "application/vnd.openxmlformats-officedocument."
_OPEN: Final = "application/vnd.oasis.opendocument."

_STARTS: Final = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "image/png"),
    (re.compile(rb"\xff\xd8\xff"), "image/jpeg"),
    (re.compile(rb"GIF8[79]a"), "image/gif"),
    (re.compile(rb"RIFF.{4}WEBP", re.DOTALL), "image/webp"),
    (re.compile(rb"BM.{4}\0{4}", re.DOTALL), "image/bmp"),
    (re.compile(rb"II\*\0|MM\0\*"), "image/tiff"),
    (re.compile(rb"\x00\x00\x01\x00[^\x00]\x00"), "image/x-icon"),
    (re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"), "image/jp2"),
    (re.compile(rb"\x00.{3}ftyp(?:hei[cfmsx]|hev[cmsx]|mif1|msf1)", re.DOTALL), "image/heic"),
    (re.compile(rb"\x00.{3}ftypavi[fs]", re.DOTALL), "image/avif"),
    (re.compile(rb"\x00.{3}ftypM4[ABP] ", re.DOTALL), "audio/mp4"),
    (re.compile(rb"\x00.{3}ftypqt  |[\x00-\x08].{3}(?:moov|wide|mdat)", re.DOTALL), "video/quicktime"),
    (re.compile(rb"\x00.{3}ftyp3g", re.DOTALL), "video/3gpp"),
    (re.compile(rb"\x00.{3}ftyp", re.DOTALL), "video/mp4"),
    (re.compile(rb"\x1aE\xdf\xa3.{0,60}webm", re.DOTALL), "video/webm"),
    (re.compile(rb"\x1aE\xdf\xa3"), "video/x-matroska"),
    (re.compile(rb"RIFF.{4}AVI ", re.DOTALL), "video/x-msvideo"),
    (re.compile(rb"FLV\x01"), "video/x-flv"),
    (re.compile(rb"\0\0\x01[\xb3\xba]"), "video/mpeg"),
    (re.compile(rb"RIFF.{4}WAVE", re.DOTALL), "audio/wav"),
    (re.compile(rb"fLaC"), "audio/flac"),
    (re.compile(rb"OggS.{24,}?\x80theora", re.DOTALL), "video/ogg"),
    (re.compile(rb"OggS"), "audio/ogg"),
    (re.compile(rb"#!AMR"), "audio/amr"),
    (re.compile(rb"ID3[\x02-\x04]"), "audio/mpeg"),
    (re.compile(rb"\s*%PDF-\d"), "application/pdf"),
    (re.compile(rb"\{\\rtf\d"), "application/rtf"),
    (re.compile(rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"), "application/x-ole-storage"),
    (re.compile(rb"PK\x03\x04|PK\x05\x06"), "application/zip"),
    (re.compile(rb"\x7fELF"), "application/x-executable"),
    (re.compile(rb"MZ.{0,60}\x00", re.DOTALL), "application/vnd.microsoft.portable-executable"),
)
"""What the service takes (protocol §9.5), and what is often sent in its place. The first that fits counts."""
_FRAMES: Final = (
    (re.compile(rb"\xff[\xf2\xf3\xfa\xfb]"), "audio/mpeg"),
    (re.compile(rb"\xff[\xf0\xf1\xf8\xf9]"), "audio/aac"),
)
"""Sound without a header; asked last, for text in old encodings may begin so."""

_ENTRY: Final = re.compile(rb"PK\x03\x04.{26}(word|xl|ppt)/", re.DOTALL)
_DECLARED: Final = re.compile(rb"PK\x03\x04.{26}mimetype(application/[a-z0-9.+-]+)", re.DOTALL)
_PARTS: Final[Mapping[bytes, str]] = MappingProxyType(
    {
        b"word": _OFFICE + "wordprocessingml.document",
        b"xl": _OFFICE + "spreadsheetml.sheet",
        b"ppt": _OFFICE + "presentationml.presentation",
    }
)
_OLE: Final[Mapping[str, str]] = MappingProxyType(
    {
        "doc": "application/msword",
        "xls": "application/vnd.ms-excel",
        "ppt": "application/vnd.ms-powerpoint",
        "msg": "application/vnd.ms-outlook",
    }
)
_TEXTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "txt": PLAIN,
        "md": "text/markdown",
        "markdown": "text/markdown",
        "csv": "text/csv",
        "tsv": "text/tab-separated-values",
        "html": "text/html",
        "htm": "text/html",
        "css": "text/css",
        "js": "text/javascript",
        "mjs": "text/javascript",
        "json": "application/json",
        "jsonl": "application/jsonl",
        "xml": "application/xml",
        "yaml": "application/yaml",
        "yml": "application/yaml",
        "toml": "application/toml",
        "sql": "application/sql",
        "tex": "application/x-tex",
        "srt": "application/x-subrip",
        "vtt": "text/vtt",
        "ics": "text/calendar",
        "svg": "image/svg+xml",
        "py": "text/x-python",
        "ipynb": "application/x-ipynb+json",
        "ts": "text/x-typescript",
        "tsx": "text/x-typescript",
        "jsx": "text/javascript",
        "java": "text/x-java",
        "kt": "text/x-kotlin",
        "c": "text/x-c",
        "h": "text/x-c",
        "cpp": "text/x-c++",
        "cc": "text/x-c++",
        "hpp": "text/x-c++",
        "cs": "text/x-csharp",
        "go": "text/x-go",
        "rs": "text/x-rust",
        "rb": "text/x-ruby",
        "php": "application/x-php",
        "swift": "text/x-swift",
        "lua": "text/x-lua",
        "sh": "application/x-sh",
        "bat": "application/x-bat",
        "ps1": "application/x-powershell",
        "vue": "text/x-vue",
        "diff": "text/x-diff",
        "patch": "text/x-diff",
    }
)
"""By a name's ending. Every other text is plain."""
_ENDINGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "image/jpeg": "jpg",
        "image/tiff": "tiff",
        "image/x-icon": "ico",
        "audio/mpeg": "mp3",
        "audio/mp4": "m4a",
        "video/quicktime": "mov",
        "video/x-matroska": "mkv",
        "video/x-msvideo": "avi",
        "video/x-flv": "flv",
        "video/ogg": "ogv",
        "video/3gpp": "3gp",
        "application/epub+zip": "epub",
        _OPEN + "text": "odt",
        _OPEN + "spreadsheet": "ods",
        _OPEN + "presentation": "odp",
        _PARTS[b"word"]: "docx",
        _PARTS[b"xl"]: "xlsx",
        _PARTS[b"ppt"]: "pptx",
        **{type_: ending for ending, type_ in _OLE.items()},
        **{type_: ending for ending, type_ in reversed(list(_TEXTS.items()))},
    }
)
"""Where it is not the last word of the type."""
_SIMPLE: Final = re.compile(r"(?:image|audio|video|application|font)/([a-z0-9]{2,5})")
_TYPE: Final = re.compile(r"[a-z]+/[a-z0-9][a-z0-9.+-]{0,120}")
_BOMS: Final = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
_CONTROL: Final = re.compile(rb"[\x00-\x07\x0e-\x1a\x1c-\x1f\x7f]")
_BEFORE: Final = rb"(?>\s+|<!--.*?-->|<\?xml.*?\?>|<!doctype\s+svg.*?>)*+"
"""What may stand before the first element; atomic, for a file could be made to match it in many ways."""
_PAGE: Final = re.compile(_BEFORE + rb"<(?:!doctype\s+html|html|head|body)\b", re.DOTALL | re.IGNORECASE)
_DRAWING: Final = re.compile(_BEFORE + rb"<svg\b", re.DOTALL | re.IGNORECASE)


def media_type(head: bytes, name: str = "") -> str:
    """The media type of a file that begins with `head`, `HEAD_BYTES` of it or all.

    Text, and Office files that do not show what they are, follow the ending of `name`.
    """
    ending = name.rpartition(".")[2].lower() if "." in name else ""
    found = _first(_STARTS, head)
    if found == "application/zip":
        return _archive(head, ending)
    if found == "application/x-ole-storage":
        return _OLE.get(ending, found)
    if found:
        return found
    if _is_text(head):
        return _text(head, ending)
    return _first(_FRAMES, head) or _guessed(head)


def kind_of(media_type: str) -> FileKind:
    """How the service takes a file of that type in (protocol §9.4); a drawing in SVG it reads as text."""
    if media_type == PLAIN:
        return "text"
    if media_type.startswith("image/") and media_type != _TEXTS["svg"]:
        return "image"
    if media_type.startswith("video/"):
        return "video"
    if media_type.startswith("audio/"):
        return "audio"
    return "document"


def extension_of(media_type: str) -> str:
    """What the name of such a file ends with, such as `.png`; "" when that is not known."""
    simple = _SIMPLE.fullmatch(media_type)
    ending = _ENDINGS.get(media_type) or (simple[1] if simple else "")
    return f".{ending}" if ending else ""


def _first(forms: tuple[tuple[re.Pattern[bytes], str], ...], head: bytes) -> str:
    return next((type_ for form, type_ in forms if form.match(head)), "")


def _archive(head: bytes, ending: str) -> str:
    declared = _DECLARED.match(head)
    if declared:
        return declared[1].decode()
    part = _ENTRY.search(head)
    if part:
        return _PARTS[part[1]]
    # A large first entry can hide what the others are called.
    by_name = {known: type_ for type_, known in _ENDINGS.items() if type_.startswith(_OFFICE)}
    return by_name.get(ending, "application/zip")


def _is_text(head: bytes) -> bool:
    """Also in an encoding of 8 bits, where all that speaks against it is control characters."""
    return head.startswith(_BOMS) or not _CONTROL.search(head)


def _text(head: bytes, ending: str) -> str:
    if _DRAWING.match(head):
        return _TEXTS["svg"]
    if _PAGE.match(head):
        return "text/html"
    return _TEXTS.get(ending, PLAIN) if ending != "svg" else PLAIN


def _guessed(head: bytes) -> str:
    try:
        found = puremagic.magic_string(head)
    except (puremagic.PureError, ValueError):
        return UNKNOWN
    sure = (match.mime_type.lower() for match in found if match.confidence >= SURE)
    # One that is told by where the bytes stand can be text only when it is: that was asked before.
    return next(
        (type_ for type_ in sure if _TYPE.fullmatch(type_) and not type_.startswith("text/")), UNKNOWN
    )
