"""Files are known by what they hold."""

from __future__ import annotations

import io
import zipfile

import pytest

from qwenproxy.chat import FileKind
from qwenproxy.media_types import extension_of, kind_of, media_type

OFFICE = "application/vnd.openxmlformats-officedocument."
WORD = OFFICE + "wordprocessingml.document"
OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(60)
ZEROS = bytes(60)


def _zip(*entries: tuple[str, str]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        for name, text in entries:
            file.writestr(name, text)
    return made.getvalue()


BINARY: list[tuple[bytes, str, FileKind, str]] = [
    (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + ZEROS, "image/png", "image", ".png"),
    (b"\xff\xd8\xff\xe0\0\x10JFIF\0" + ZEROS, "image/jpeg", "image", ".jpg"),
    (b"\xff\xd8\xff\xdb\0\x43" + ZEROS, "image/jpeg", "image", ".jpg"),
    (b"GIF89a" + ZEROS, "image/gif", "image", ".gif"),
    (b"RIFF\x10\0\0\0WEBPVP8 " + ZEROS, "image/webp", "image", ".webp"),
    (b"BM" + ZEROS, "image/bmp", "image", ".bmp"),
    (b"II*\0" + ZEROS, "image/tiff", "image", ".tiff"),
    (b"\0\0\1\0\1\0" + ZEROS, "image/x-icon", "image", ".ico"),
    (b"\0\0\0\x0cjP  \r\n" + ZEROS, "image/jp2", "image", ".jp2"),
    (b"\0\0\0\x18ftypheic" + ZEROS, "image/heic", "image", ".heic"),
    (b"\0\0\0\x18ftypavif" + ZEROS, "image/avif", "image", ".avif"),
    (b"8BPS\0\1" + ZEROS, "image/vnd.adobe.photoshop", "image", ""),
    (b"\0\0\0\x18ftypisom" + ZEROS, "video/mp4", "video", ".mp4"),
    (b"\0\0\0\x14ftypqt  " + ZEROS, "video/quicktime", "video", ".mov"),
    (b"\0\0\0\x08wide" + ZEROS, "video/quicktime", "video", ".mov"),
    (b"\x1aE\xdf\xa3\x9fB\x86\x81\x01B\x82\x84webm" + ZEROS, "video/webm", "video", ".webm"),
    (b"\x1aE\xdf\xa3\x9fB\x86\x81\x01B\x82\x88matroska" + ZEROS, "video/x-matroska", "video", ".mkv"),
    (b"RIFF\x10\0\0\0AVI LIST" + ZEROS, "video/x-msvideo", "video", ".avi"),
    (b"OggS\0\2" + bytes(22) + b"\x80theora" + ZEROS, "video/ogg", "video", ".ogv"),
    (b"OggS\0\2" + bytes(22) + b"OpusHead" + ZEROS, "audio/ogg", "audio", ".ogg"),
    (b"RIFF\x10\0\0\0WAVEfmt " + ZEROS, "audio/wav", "audio", ".wav"),
    (b"ID3\x04" + ZEROS, "audio/mpeg", "audio", ".mp3"),
    (b"\xff\xfb\x90\x64" + ZEROS, "audio/mpeg", "audio", ".mp3"),
    (b"\xff\xf1\x50\x80" + ZEROS, "audio/aac", "audio", ".aac"),
    (b"\0\0\0\x18ftypM4A " + ZEROS, "audio/mp4", "audio", ".m4a"),
    (b"#!AMR\n" + ZEROS, "audio/amr", "audio", ".amr"),
    (b"%PDF-1.4\nwords", "application/pdf", "document", ".pdf"),
    (b"{\\rtf1\\ansi words}", "application/rtf", "document", ".rtf"),
    (b"7z\xbc\xaf\x27\x1c" + ZEROS, "application/x-7z-compressed", "document", ""),
    (b"MZ\x90\0" + ZEROS, "application/vnd.microsoft.portable-executable", "document", ""),
    (_zip(("[Content_Types].xml", "x"), ("word/document.xml", "x")), WORD, "document", ".docx"),
    (_zip(("xl/workbook.xml", "x")), OFFICE + "spreadsheetml.sheet", "document", ".xlsx"),
    (_zip(("ppt/presentation.xml", "x")), OFFICE + "presentationml.presentation", "document", ".pptx"),
    (_zip(("mimetype", "application/epub+zip"), ("a", "b")), "application/epub+zip", "document", ".epub"),
    (_zip(("notes.txt", "x")), "application/zip", "document", ".zip"),
    (bytes(100), "application/octet-stream", "document", ""),
    (b"\x07\x01\x05\x06\x0e\x0f" * 9, "application/octet-stream", "document", ""),
]


@pytest.mark.parametrize(("head", "told", "kind", "ending"), BINARY)
@pytest.mark.parametrize("name", ["", "cat.png", "report.txt", "page.html"])
def test_the_content_says_what_a_file_is_whatever_its_name(
    head: bytes, told: str, kind: FileKind, ending: str, name: str
) -> None:
    assert media_type(head, name) == told
    assert kind_of(told) == kind
    assert extension_of(told) == ending


@pytest.mark.parametrize(
    ("name", "told", "kind"),
    [
        ("", "text/plain", "text"),
        ("notes.txt", "text/plain", "text"),
        ("README", "text/plain", "text"),
        ("cat.png", "text/plain", "text"),
        ("drawing.svg", "text/plain", "text"),
        ("README.MD", "text/markdown", "document"),
        ("table.csv", "text/csv", "document"),
        ("data.json", "application/json", "document"),
        ("main.py", "text/x-python", "document"),
        ("strange.ending", "text/plain", "text"),
    ],
)
def test_a_name_chooses_among_the_kinds_of_text(name: str, told: str, kind: FileKind) -> None:
    assert media_type(b"some words, nothing else\n", name) == told
    assert kind_of(told) == kind


@pytest.mark.parametrize(
    "head",
    [
        "Привет, мир".encode(),
        "Привет, мир".encode("cp1251"),
        "Привет, мир".encode("utf-16"),
        b"\xef\xbb\xbfwords",
        b"\x1b[31mred\x1b[0m",
        # What looks like the start of something else.
        b"The ftyp box, and the rest",
        b"The wide road",
        b"BMW and others",
        b"MZ is how they begin",
        b"%PDF is how they begin",
        "яы, начало".encode("cp1251"),
    ],
)
def test_text_is_text_in_any_encoding(head: bytes) -> None:
    assert media_type(head) == "text/plain"


@pytest.mark.parametrize(
    ("head", "told"),
    [
        (b"<!DOCTYPE html><html>", "text/html"),
        (b"\n<!-- one --> <!-- two -->\n<HTML lang=en>", "text/html"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"),
        (b"<?xml version='1.0'?>\n<!-- made -->\n<svg/>", "image/svg+xml"),
    ],
)
def test_a_page_and_a_drawing_are_known_under_any_name(head: bytes, told: str) -> None:
    assert media_type(head, "notes.txt") == told
    assert kind_of(told) == "document"


def test_older_office_files_share_a_form_so_that_the_name_decides() -> None:
    assert media_type(OLE, "a.doc") == "application/msword"
    assert media_type(OLE, "a.xls") == "application/vnd.ms-excel"
    assert media_type(OLE, "a.png") == "application/x-ole-storage"


def test_an_archive_that_hides_its_entries_may_be_what_its_name_says() -> None:
    hidden = b"PK\x03\x04" + bytes(26) + b"[Content_Types].xml"
    assert media_type(hidden, "a.docx") == WORD
    assert media_type(hidden, "a.png") == "application/zip"


def test_a_file_that_is_made_to_be_hard_to_read_is_read_at_once() -> None:
    # With a rule that can match in many ways it never ends.
    for piece in (b"<!---->", b"<?xml?>", b" ", b"<!--", b"PK\x03\x04", b"OggS"):
        assert media_type((piece * 65_536)[:65_536] + b"<x>")


@pytest.mark.parametrize("type_", ["text/plain", "text/markdown", "text/x-python", "application/json"])
def test_the_ending_of_a_text_leads_back_to_its_type(type_: str) -> None:
    assert media_type(b"words", "a" + extension_of(type_)) == type_
