"""Real small videos, made here."""

from __future__ import annotations

import io
from pathlib import Path

import av
import pytest
from av.video.frame import VideoFrame

from qwenproxy import film

RED = (250, 10, 10)


def write_film(path: Path, seconds: int = 2, size: tuple[int, int] = (160, 90)) -> Path:
    """A red video with ten pictures a second."""
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        picture = VideoFrame(*size, "rgb24")
        line = bytes(RED) * size[0]
        picture.planes[0].update(line.ljust(picture.planes[0].line_size, b"\0") * size[1])
        for _ in range(seconds * 10):
            container.mux(stream.encode(picture.reformat(format="yuv420p")))
        container.mux(stream.encode(None))
    return path


def test_a_video_says_how_long_and_how_large_it_is(tmp_path: Path) -> None:
    found = film.seen(write_film(tmp_path / "a.mp4"))
    assert found is not None
    assert (round(found.seconds), found.width, found.height) == (2, 160, 90)


def test_the_cover_is_its_first_picture_as_jpeg(tmp_path: Path) -> None:
    found = film.seen(write_film(tmp_path / "a.mp4"))
    assert found is not None
    assert found.cover.startswith(b"\xff\xd8\xff")
    with av.open(io.BytesIO(found.cover), "r", format="mjpeg") as container:
        picture = next(container.decode(video=0)).reformat(format="rgb24")
        seen = bytes(picture.planes[0])[:3]
    assert (picture.width, picture.height) == (160, 90)
    assert all(abs(one - other) < 40 for one, other in zip(seen, RED, strict=True))


@pytest.mark.parametrize("content", [b"", b"no video at all", b"\0\0\0\x18ftypmp42" + bytes(64)])
def test_what_is_no_video_says_nothing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    assert film.seen(path) is None
    assert film.seen(tmp_path / "missing.mp4") is None


def test_a_video_that_was_cut_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    path = write_film(tmp_path / "a.mp4")
    path.write_bytes(path.read_bytes()[:200])
    assert film.seen(path) is None


def test_pictures_larger_than_any_screen_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(film, "MOST_PIXELS", 160 * 90 - 1)
    assert film.seen(write_film(tmp_path / "a.mp4")) is None
