"""Small real files for the tests: a picture of each kind, a document."""

from __future__ import annotations

import io
import struct
import zlib

import av


def png(width: int = 8, height: int = 8, *, shade: int = 128) -> bytes:
    """A grey picture; another shade is another content."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = (b"\0" + bytes([shade]) * width) * height
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def jpeg(*, shade: int = 128) -> bytes:
    target = io.BytesIO()
    with av.open(target, "w", format="mjpeg") as made:
        stream = made.add_stream("mjpeg", rate=1)
        stream.width = stream.height = 16
        stream.pix_fmt = "yuvj420p"
        frame = av.VideoFrame(16, 16, "yuvj420p")
        for plane in frame.planes:
            plane.update(bytes([shade]) * plane.buffer_size)
        for packet in (*stream.encode(frame), *stream.encode(None)):
            made.mux(packet)
    return target.getvalue()


def pdf(text: str = "This is a doc about the magic of love.") -> bytes:
    body = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode()
    objects = (
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R >>",
        b"<< /Length %d >>\nstream\n%b\nendstream" % (len(body), body),
    )
    told = b"%PDF-1.4\n" + b"".join(b"%d 0 obj\n%b\nendobj\n" % each for each in enumerate(objects, 1))
    return told + b"trailer << /Root 1 0 R /Size 5 >>\n%%EOF\n"
