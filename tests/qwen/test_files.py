from __future__ import annotations

import pytest

from qwenproxy.errors import ProtocolChanged
from qwenproxy.qwen.files import ticket_of

GIVEN = {
    "access_key_id": "STS.key",
    "access_key_secret": "hush",
    "security_token": "whisper",
    "file_url": "https://qwen-webui-prod.oss-accelerate.aliyuncs.com/u/f_a.pdf?x-oss-expires=300",
    "file_path": "u/f_a.pdf",
    "file_id": "f",
    "bucketname": "qwen-webui-prod",
    "region": "oss-ap-southeast-1",
    "endpoint": "oss-accelerate.aliyuncs.com",
}


def test_a_ticket_shows_no_credentials() -> None:
    ticket = ticket_of(GIVEN)
    assert (ticket.region, ticket.path, ticket.secret) == ("ap-southeast-1", "u/f_a.pdf", "hush")
    assert not any(secret in repr(ticket) for secret in ("STS.key", "hush", "whisper"))


@pytest.mark.parametrize("name", sorted(GIVEN))
@pytest.mark.parametrize("value", [None, "", 7])
def test_what_is_missing_is_named_and_nothing_else(name: str, value: object) -> None:
    with pytest.raises(ProtocolChanged, match=f"has no {name}$"):
        ticket_of({**GIVEN, name: value})


def test_no_object_is_no_ticket() -> None:
    with pytest.raises(ProtocolChanged):
        ticket_of([])
