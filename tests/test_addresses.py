"""Which addresses are ours, which are the service's, and which file they mean."""

from __future__ import annotations

import pytest

from qwenproxy.addresses import ServiceHosts, file_address, media_address, own_file, own_media

FILE = "file-" + "0123456789abcdef01234567"
MEDIA = "0123456789abcdef" * 2
STORED = "4a8c/0c6f5a1e-0000-4000-8000-000000000000_a b.pdf"


@pytest.mark.parametrize(
    "url",
    [
        file_address(FILE),
        f"http://127.0.0.1:3264/v1/files/{FILE}/content",
        f"https://proxy.example/api/v1/files/{FILE}/content?x=1",
        f"http://localhost:3264/api/files/{FILE}",
    ],
)
def test_our_files_are_known_by_their_path(url: str) -> None:
    assert own_file(url) == FILE
    assert own_media(url) == ""


@pytest.mark.parametrize(
    "url",
    [
        "",
        f"ftp://host{file_address(FILE)}",
        "data:text/plain,/v1/files/x",
        "/v1/files/file-1/content",
        "http://[",
    ],
)
def test_other_addresses_name_no_file_of_ours(url: str) -> None:
    assert own_file(url) == own_media(url) == ""


def test_what_the_service_made_is_known_by_its_path() -> None:
    assert own_media(media_address(MEDIA)) == own_media(f"http://[::1]:3264/api/v1/media/{MEDIA}") == MEDIA


@pytest.mark.parametrize(
    "url",
    [
        "https://cdn.qwenlm.ai/output/1.png?key=k",
        "https://qwen-webui-prod.oss-accelerate.aliyuncs.com/u/f_a.png",
        "https://CHAT.qwen.ai/",
        "http://127.0.0.1:5000/x",
    ],
)
def test_the_services_hosts(url: str) -> None:
    assert ServiceHosts(["http://127.0.0.1:5000", ""]).own(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://cdn.qwenlm.ai/",
        "https://cdn.qwenlm.ai:8443/",
        "https://cdn.qwenlm.ai:x/",
        "https://user@cdn.qwenlm.ai/",
        "https://qwenlm.ai.example.com/",
        "https://evilqwen.ai/",
        "https://qwen-webui-prod.aliyuncs.com.example/",
        "https://other.oss-accelerate.aliyuncs.com/",
        "http://127.0.0.1:5001/",
        "https://127.0.0.1:5000/",
        "http://[",
        "",
    ],
)
def test_others_are_not_the_services(url: str) -> None:
    assert not ServiceHosts(["http://127.0.0.1:5000"]).own(url)


def test_an_uploaded_file_is_known_by_its_path_whatever_its_signature() -> None:
    hosts = ServiceHosts()
    at = "https://qwen-webui-prod.oss-accelerate.aliyuncs.com/"
    quoted = STORED.replace(" ", "%20")
    assert hosts.file_path(f"{at}{quoted}?x-oss-expires=300&x-oss-signature=s") == STORED
    assert hosts.file_path(f"{at}{quoted}") == STORED
    assert hosts.file_path("https://cdn.qwenlm.ai/output/1.png") == ""
    assert hosts.file_path(f"https://example.com/{quoted}") == ""
    assert ServiceHosts(["http://127.0.0.1:9"]).file_path(f"http://127.0.0.1:9/bucket/{quoted}") == STORED
