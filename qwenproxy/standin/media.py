"""What the stand-in draws and films, and where it is looked at: real files, made when first asked for."""

from __future__ import annotations

import hashlib
import io
import re
import secrets
import struct
import zlib
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from urllib.parse import parse_qs, quote

from anyio.to_thread import run_sync
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from .memory import Made, Records, Turn
from .replies import EDGE
from .signins import SignIns

PREFIX = "/output/"
PICTURE_SIZES = {
    "1:1": (2048, 2048),
    "2:3": (1664, 2496),
    "3:2": (2496, 1664),
    "3:4": (1728, 2304),
    "4:3": (2304, 1728),
    "16:9": (2688, 1536),
    "9:16": (1536, 2688),
}
"""Pixels of each ratio; 16:9 was measured (protocol §10.1)."""
VIDEO_SIZES = {
    "16:9": (1920, 1080),
    "9:16": (1080, 1920),
    "1:1": (1440, 1440),
    "4:3": (1664, 1248),
    "3:4": (1248, 1664),
}
"""Pixels of each ratio; 16:9 and 1:1 were measured (protocol §10.2)."""
VIDEO_FRAMES, FRAME_MS = 6, 1000
"""5.04 s in all with the last frame of 40 ms, as long as the service's videos are."""
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


class Media:
    """The addresses of what was made: the key must be right, and the caller one of the site's own."""

    def __init__(self, records: Records, sign_ins: SignIns) -> None:
        self._records = records
        self._sign_ins = sign_ins

    def routes(self) -> list[BaseRoute]:
        return [Route(PREFIX + "{name:path}", self.answer)]

    async def answer(self, request: Request) -> Response:
        request.scope[EDGE] = True
        made = self._records.made.get(request.scope["path"])
        if made is None:
            return Response("Not Found", 404)
        if not opened(made, request.url.query) or not self._from_the_site(request, made):
            return Response("Forbidden", 403)
        return _ranged(request, await run_sync(made.content), made.media_type)

    def _from_the_site(self, request: Request, made: Made) -> bool:
        if not self._records.options.media_referer:
            return True
        session = self._sign_ins.session(request)
        by_cookie = session is not None and session.account == made.account
        return by_cookie or request.headers.get("referer", "").startswith(f"{self._records.site}/")


def opened(made: Made, query: str) -> bool:
    return parse_qs(query).get("key") == [made.key]


def picture(records: Records, turn: Turn, name: str, ratio: str) -> str:
    """Draws one; gives its address."""
    width, height = PICTURE_SIZES[ratio]
    seed = f"{turn.response_id}/{name}"
    place = f"t2i/{turn.response_id}/{name}.png"
    return _shelved(records, turn.chat.account, place, "image/png", lambda: png(width, height, seed))


def video(records: Records, account: str, name: str, ratio: str) -> str:
    """Films one; gives its address."""
    return _shelved(records, account, f"t2v/{name}.mp4", "video/mp4", lambda: mp4(*VIDEO_SIZES[ratio]))


def report(records: Records, turn: Turn) -> dict[str, dict[str, object]]:
    """A research's report as files, as the service tells of them (protocol §10.5)."""

    def text() -> bytes:
        return "".join(turn.said).encode()

    def told(kind: str, media_type: str, content: Callable[[], bytes]) -> dict[str, object]:
        place = f"deep_research/{turn.response_id}/report.{kind}"
        link = _shelved(records, turn.chat.account, place, media_type, content)
        return {"name": "Stand-in report", "size": len(content()), "link": link}

    return {"md": told("md", "text/markdown", text), "pdf": told("pdf", "application/pdf", _pdf)}


def _pdf() -> bytes:
    """One empty page."""
    objects = (
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] >>",
    )
    told = b"%PDF-1.4\n" + b"".join(b"%d 0 obj\n%b\nendobj\n" % each for each in enumerate(objects, 1))
    return told + b"trailer << /Root 1 0 R /Size 4 >>\n%%EOF\n"


def _shelved(
    records: Records, account: str, place: str, media_type: str, content: Callable[[], bytes]
) -> str:
    path = f"{PREFIX}{records.user_id(account)}/{place}"
    made = records.made.setdefault(path, Made(account, media_type, secrets.token_urlsafe(24), content))
    return f"{records.site}{quote(path)}?key={made.key}"


def png(width: int, height: int, seed: str) -> bytes:
    """Stripes of two colours that the seed chooses."""
    colours = hashlib.sha256(seed.encode()).digest()[:6]
    row = b"\x00" + (b"\xff\x00" * width)[: (width + 7) // 8]
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 3, 0, 0, 0)),
            _chunk(b"PLTE", colours),
            _chunk(b"IDAT", zlib.compress(row * height, 1)),
            _chunk(b"IEND", b""),
        )
    )


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@cache
def mp4(width: int, height: int) -> bytes:
    """A few grey frames, each lighter than the one before."""
    # Half of the stand-in's time to start would go into this import.
    import av

    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(VIDEO_FRAMES):
            frame = av.VideoFrame(width, height, "yuv420p")
            for plane, shade in zip(frame.planes, (40 + 30 * number, 128, 128), strict=True):
                plane.update(bytes([shade]) * plane.buffer_size)
            frame.pts, frame.duration, frame.time_base = number * FRAME_MS, FRAME_MS, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return target.getvalue()


def _ranged(request: Request, content: bytes, media_type: str) -> Response:
    headers = {"accept-ranges": "bytes"}
    asked = _RANGE.fullmatch(request.headers.get("range", ""))
    if asked is None:
        return Response(content, media_type=media_type, headers=headers)
    first, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
    if first > last:
        return Response(status_code=416, headers={"content-range": f"bytes */{len(content)}"})
    headers["content-range"] = f"bytes {first}-{last}/{len(content)}"
    return Response(content[first : last + 1], 206, media_type=media_type, headers=headers)
