"""What a video file says of itself: how long it runs, how large it is, its first picture. Blocking."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import av
from av.video.frame import VideoFrame

MOST_PIXELS: Final = 7680 * 4320
"""Larger pictures are not decoded: a small file can claim any size."""


@dataclass(frozen=True, slots=True)
class Film:
    seconds: float
    """0: it does not say."""
    width: int
    height: int
    cover: bytes
    """The first picture as JPEG; empty where it has none."""


def seen(path: Path) -> Film | None:
    """None where the file is no video that can be read."""
    try:
        with av.open(str(path), "r") as container:
            video = next(iter(container.streams.video), None)
            if video is None or not 0 < video.width * video.height <= MOST_PIXELS:
                return None
            seconds = (container.duration or 0) / av.time_base
            first = next(container.decode(video), None)
            cover = _jpeg(first) if first is not None else b""
            return Film(max(seconds, 0.0), video.width, video.height, cover)
    except (av.FFmpegError, OSError, ValueError):
        return None


def _jpeg(frame: VideoFrame) -> bytes:
    held = io.BytesIO()
    with av.open(held, "w", format="mjpeg") as container:
        stream = container.add_stream("mjpeg")
        stream.width, stream.height = frame.width, frame.height
        stream.pix_fmt = "yuvj420p"
        container.mux(stream.encode(frame.reformat(format="yuvj420p")))
        container.mux(stream.encode(None))
    return held.getvalue()
