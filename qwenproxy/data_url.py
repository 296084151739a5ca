"""What a data URL holds (RFC 2397). Pure."""

from __future__ import annotations

import binascii
from typing import Final
from urllib.parse import unquote_to_bytes

WHITE: Final = b" \t\r\n\f"
"""What clients break long base64 with."""


def is_data_url(url: str) -> bool:
    return url[:5].lower() == "data:"


def decoded(url: str) -> bytes:
    """The bytes. The media type it names is not believed, so it is not told.

    Raises:
        ValueError: it is no data URL, or its base64 is damaged.
    """
    head, comma, data = url[5:].partition(",")
    if not is_data_url(url) or not comma or not data.isascii():
        raise ValueError("it is no data URL")
    raw = unquote_to_bytes(data) if "%" in data else data.encode()
    if not head.lower().replace(" ", "").endswith(";base64"):
        return raw
    try:
        return binascii.a2b_base64(raw.translate(None, WHITE), strict_mode=True)
    except binascii.Error:
        raise ValueError("its base64 is damaged") from None
