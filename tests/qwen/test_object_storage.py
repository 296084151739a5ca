"""Where the service's credentials may go. What the storage takes is tested with `test_file_uploads.py`."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qwenproxy.errors import ProtocolChanged, UploadFailed
from qwenproxy.qwen.files import Ticket
from qwenproxy.qwen.object_storage import MIB, Storage, part_size
from qwenproxy.settings import Settings


def ticket(endpoint: str = "oss-accelerate.aliyuncs.com") -> Ticket:
    url = "https://storage.example/u/f_a.txt"
    return Ticket("f", "u/f_a.txt", url, "qwen-webui-prod", "r", endpoint, "STS.key", "hush", "whisper")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "a.txt").write_bytes(b"abc")
    return tmp_path / "a.txt"


@pytest.mark.parametrize(
    "endpoint",
    [
        "127.0.0.1",
        "aliyuncs.com.evil.example",
        "evil.example/.aliyuncs.com",
        "evil.example#.aliyuncs.com",
        "user@aliyuncs.com",
        "oss.aliyuncs.com:8443",
        "evilaliyuncs.com",
        "https://oss-accelerate.aliyuncs.com",
    ],
)
def test_credentials_go_to_the_storages_maker_alone(path: Path, endpoint: str) -> None:
    with pytest.raises(ProtocolChanged, match="a storage that we do not know"):
        Storage(Settings()).put(ticket(endpoint), path, "text/plain", threading.Event())


@contextmanager
def proxy_server(heard: list[bytes]) -> Iterator[str]:
    """Hears what a proxy is asked first, and refuses it."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    heard.append(connection.recv(1000).partition(b"\r\n")[0])
                    connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_the_proxy_of_the_settings_is_used_and_no_other(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    heard: list[bytes] = []
    with proxy_server(heard) as proxy, pytest.raises(UploadFailed) as caught:
        Storage(Settings(proxy=proxy)).put(ticket(), path, "text/plain", threading.Event())
    assert heard
    wanted = b"CONNECT qwen-webui-prod.oss-accelerate.aliyuncs.com:443 "
    assert all(line.startswith(wanted) for line in heard)
    assert str(caught.value) == "the service's storage cannot be reached"


def test_nothing_goes_around_a_socks_proxy(path: Path) -> None:
    with pytest.raises(UploadFailed, match=r"SOCKS proxy need|cannot be reached"):
        Storage(Settings(proxy="socks5://127.0.0.1:1")).put(ticket(), path, "text/plain", threading.Event())


def test_who_has_left_sends_nothing(path: Path) -> None:
    left = threading.Event()
    left.set()
    heard: list[bytes] = []
    with proxy_server(heard) as server, pytest.raises(UploadFailed, match="nobody waits"):
        Storage(Settings(storage_endpoint=server)).put(ticket(), path, "text/plain", left)


@pytest.mark.parametrize(
    ("size", "part"), [(1, 2 * MIB), (20 * MIB, 2 * MIB), (50 * MIB, 5 * MIB), (500 * MIB, 10 * MIB)]
)
def test_parts_are_from_two_to_ten_mebibytes(size: int, part: int) -> None:
    assert part_size(size) == part
