"""Every format, read back with the decoder of another program's make (FFmpeg's)."""

from __future__ import annotations

import io
import math
import struct
from functools import cache
from itertools import pairwise

import av
import pytest

from qwenproxy.audio import FORMATS, MEDIA_TYPES, RATE, Format, encoder

SECONDS = 1


@cache
def tone(seconds: float = SECONDS) -> bytes:
    """440 Hz."""
    return b"".join(
        struct.pack("<h", int(12_000 * math.sin(2 * math.pi * 440 * n / RATE)))
        for n in range(int(seconds * RATE))
    )


def made(kind: Format, pcm: bytes, *, piece: int = 4801, speed: float = 1.0) -> list[bytes]:
    """What comes out after each piece, and at the end."""
    coder = encoder(kind, speed)
    return [*(coder.push(pcm[at : at + piece]) for at in range(0, len(pcm), piece)), coder.end()]


def read(data: bytes) -> tuple[float, float]:
    """Seconds and the frequency of a tone, by its passes through zero."""
    samples: list[int] = []
    with av.open(io.BytesIO(data), "r") as container:
        resampler = av.AudioResampler("s16", "mono", RATE)
        for decoded in [*container.decode(audio=0), None]:
            for frame in resampler.resample(decoded):
                samples += struct.unpack(f"<{frame.samples}h", bytes(frame.planes[0])[: frame.samples * 2])
    seconds = len(samples) / RATE
    # Its edges, where a codec swings in and out, are left out.
    middle = samples[len(samples) // 4 : len(samples) * 3 // 4]
    ups = sum(one < 0 <= other for one, other in pairwise(middle))
    return seconds, ups / (len(middle) / RATE)


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind != "pcm"])
def test_each_format_says_the_same_tone_for_the_same_time(kind: Format) -> None:
    seconds, hertz = read(b"".join(made(kind, tone())))
    assert seconds == pytest.approx(SECONDS, abs=0.1)
    assert hertz == pytest.approx(440, abs=15)


@pytest.mark.parametrize("kind", FORMATS)
def test_sound_leaves_before_the_end_is_there(kind: Format) -> None:
    pieces = made(kind, tone(3))
    assert sum(map(len, pieces[: len(pieces) // 2])) > 0


def test_raw_samples_are_the_services_own_however_they_are_cut() -> None:
    pcm = tone(0.1)
    for piece in (1, 7, 4096):
        assert b"".join(made("pcm", pcm, piece=piece)) == pcm


@pytest.mark.parametrize("speed", [0.25, 0.5, 1.5, 4.0])
@pytest.mark.parametrize("kind", ["pcm", "wav", "mp3"])
def test_speed_changes_the_time_and_not_the_pitch(kind: Format, speed: float) -> None:
    data = b"".join(made(kind, tone(), speed=speed))
    if kind == "pcm":
        data = b"".join(made("wav", data))
    seconds, hertz = read(data)
    assert seconds == pytest.approx(SECONDS / speed, abs=0.1)
    assert hertz == pytest.approx(440, abs=25)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("speed", [1.0, 2.0])
def test_an_encoder_that_never_got_a_sample_can_be_ended(kind: Format, speed: float) -> None:
    assert len(encoder(kind, speed).end()) < 10_000


def test_every_format_has_a_media_type() -> None:
    assert set(MEDIA_TYPES) == set(FORMATS)
