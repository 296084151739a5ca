"""Speech as the service gives it, raw samples, into the formats that clients ask for. Blocking: for threads.

Nothing is held whole: samples go in as they come, and what is finished comes out.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Final, Literal, Protocol, TypeAlias, cast, get_args

import av
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.filter import Graph

RATE: Final = 24_000
"""Samples a second of what goes in: 16 bits each, low byte first, one channel (protocol §10.3)."""
SAMPLE_BYTES: Final = 2
SLOWEST: Final = 0.25
FASTEST: Final = 4.0
FILTER_SLOWEST: Final = 0.5
"""The filter goes no slower; twice half as fast is a quarter."""
UNKNOWN_BYTES: Final = 0xFFFFFFFF
"""As the length in the head of a WAV file that is still being made."""

Format: TypeAlias = Literal["mp3", "opus", "aac", "flac", "wav", "pcm"]
FORMATS: Final[tuple[Format, ...]] = get_args(Format)
MEDIA_TYPES: Final[Mapping[Format, str]] = MappingProxyType(
    {
        "mp3": "audio/mpeg",
        "opus": "audio/ogg",
        "aac": "audio/aac",
        "flac": "audio/flac",
        "wav": "audio/wav",
        "pcm": "audio/pcm",
    }
)


@dataclass(frozen=True, slots=True)
class _Coding:
    container: str
    codec: str
    rate: int
    options: Mapping[str, str]


_CODINGS: Final[Mapping[str, _Coding]] = MappingProxyType(
    {
        # A head with the length in it could only be written at the end.
        "mp3": _Coding("mp3", "libmp3lame", RATE, {"write_xing": "0", "id3v2_version": "0"}),
        "opus": _Coding("ogg", "libopus", 48_000, {}),
        "aac": _Coding("adts", "aac", RATE, {}),
        "flac": _Coding("flac", "flac", RATE, {}),
    }
)


class Encoder(Protocol):
    def push(self, pcm: bytes) -> bytes:
        """What is ready after these samples; may be nothing yet."""

    def end(self) -> bytes:
        """The rest. Frees what the encoder holds, and must be called even when nobody wants the rest."""


def encoder(kind: Format, speed: float = 1.0) -> Encoder:
    """An encoder into `kind`, `speed` times as fast (from `SLOWEST` to `FASTEST`) at the same pitch."""
    tempo = None if speed == 1.0 else _Tempo(speed)
    coding = _CODINGS.get(kind)
    return _Raw(tempo, _wav_head() if kind == "wav" else b"") if coding is None else _Coded(coding, tempo)


class _Samples:
    """Cuts bytes into whole samples."""

    def __init__(self) -> None:
        self._rest = b""

    def frame(self, pcm: bytes) -> AudioFrame | None:
        pcm = self._rest + pcm
        whole = len(pcm) - len(pcm) % SAMPLE_BYTES
        self._rest = pcm[whole:]
        if not whole:
            return None
        frame = AudioFrame(format="s16", layout="mono", samples=whole // SAMPLE_BYTES)
        frame.planes[0].update(pcm[:whole] + bytes(frame.planes[0].buffer_size - whole))
        frame.sample_rate = RATE
        return frame


class _Tempo:
    """Changes how fast is spoken and not how high."""

    def __init__(self, speed: float) -> None:
        steps = [FILTER_SLOWEST, speed / FILTER_SLOWEST] if speed < FILTER_SLOWEST else [speed]
        self._graph = Graph()
        source = self._graph.add_abuffer(format="s16", sample_rate=RATE, layout="mono")
        filters = [self._graph.add("atempo", str(step)) for step in steps]
        shape = self._graph.add("aformat", f"sample_fmts=s16:sample_rates={RATE}:channel_layouts=mono")
        chain = [source, *filters, shape, self._graph.add("abuffersink")]
        for one, next_one in pairwise(chain):
            one.link_to(next_one)
        self._graph.configure()

    def push(self, frame: AudioFrame | None) -> Iterator[AudioFrame]:
        """None is the end."""
        self._graph.push(frame)
        while True:
            try:
                yield cast(AudioFrame, self._graph.pull())
            except (av.BlockingIOError, av.EOFError):
                return


class _Input:
    """Frames at the speed that is wanted."""

    def __init__(self, tempo: _Tempo | None) -> None:
        self._tempo = tempo
        self._samples = _Samples()

    def frames(self, pcm: bytes) -> Iterator[AudioFrame]:
        frame = self._samples.frame(pcm)
        if frame is not None:
            yield from [frame] if self._tempo is None else self._tempo.push(frame)

    def rest(self) -> Iterator[AudioFrame]:
        if self._tempo is not None:
            yield from self._tempo.push(None)


class _Raw:
    """The samples themselves, after a head."""

    def __init__(self, tempo: _Tempo | None, head: bytes) -> None:
        self._input = _Input(tempo)
        self._head = head

    def push(self, pcm: bytes) -> bytes:
        return self._taken(self._input.frames(pcm))

    def end(self) -> bytes:
        return self._taken(self._input.rest())

    def _taken(self, frames: Iterator[AudioFrame]) -> bytes:
        head, self._head = self._head, b""
        return head + b"".join(bytes(frame.planes[0])[: frame.samples * SAMPLE_BYTES] for frame in frames)


class _Sink:
    """Where a container writes; it cannot be gone back in."""

    def __init__(self) -> None:
        self._written = bytearray()

    def write(self, data: bytes) -> int:
        self._written += data
        return len(data)

    def taken(self) -> bytes:
        taken, self._written = bytes(self._written), bytearray()
        return taken


class _Coded:
    def __init__(self, coding: _Coding, tempo: _Tempo | None) -> None:
        self._input = _Input(tempo)
        self._sink = _Sink()
        # PyAV's stubs know only real files; what it asks for is `write`.
        sink: Any = self._sink
        self._container = av.open(sink, "w", format=coding.container, options=dict(coding.options))
        self._stream = cast(AudioStream, self._container.add_stream(coding.codec, rate=coding.rate))
        self._stream.codec_context.layout = "mono"

    def push(self, pcm: bytes) -> bytes:
        for frame in self._input.frames(pcm):
            self._container.mux(self._stream.encode(frame))
        return self._sink.taken()

    def end(self) -> bytes:
        try:
            for frame in self._input.rest():
                self._container.mux(self._stream.encode(frame))
            self._container.mux(self._stream.encode(None))
        finally:
            self._container.close()
        return self._sink.taken()


def _wav_head() -> bytes:
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, RATE, RATE * SAMPLE_BYTES, SAMPLE_BYTES, 16)
    return (
        struct.pack("<4sI4s", b"RIFF", UNKNOWN_BYTES, b"WAVE")
        + form
        + struct.pack("<4sI", b"data", UNKNOWN_BYTES)
    )
