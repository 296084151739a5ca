from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenproxy.data_url import decoded, is_data_url


@given(st.binary(max_size=200), st.sampled_from(["", "image/png", "text/plain;charset=utf-8"]))
def test_what_was_put_in_comes_out(data: bytes, media_type: str) -> None:
    packed = base64.b64encode(data).decode()
    assert decoded(f"data:{media_type};base64,{packed}") == data
    assert decoded(f"DATA:{media_type};BASE64,{packed.replace('+', '%2B').replace('=', '%3D')}") == data
    assert decoded(f"data:{media_type};base64,{packed[:7]}\r\n {packed[7:]}") == data
    percent = "".join(f"%{byte:02x}" for byte in data)
    assert decoded(f"data:{media_type},{percent}") == data


def test_text_may_stand_as_it_is() -> None:
    assert decoded("data:,Hello%2C+World") == b"Hello,+World"
    assert decoded("data:text/plain; base64,SGk=") == b"Hi"


@pytest.mark.parametrize(
    "url",
    [
        "data:",
        "data:image/png;base64",
        "data:image/png;base64,AA",
        "data:image/png;base64,AA=A",
        "data:image/png;base64,AA_-",
        "data:image/png;base64,\u0430AAA",
        "https://example.com/,AAAA",
    ],
)
def test_what_is_damaged_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"it is no data URL|its base64 is damaged"):
        decoded(url)


def test_what_is_one() -> None:
    assert is_data_url("Data:,")
    assert not is_data_url("dat:a,")
