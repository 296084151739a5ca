"""Pictures and videos of the stand-in: what is asked for is what comes, and only to whom it belongs."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import av
import httpx
import pytest

from tests.serve import Standin, until
from tests.standin.uploading import file_object, uploaded
from tests.standin.visitor import Visitor, deltas, question


@pytest.fixture
def visitor(standin: Standin) -> Iterator[Visitor]:
    standin.options(draw_s=0, video_s=0)
    with Visitor(standin) as found:
        yield found


def drawn(visitor: Visitor, prompt: str = "A cat", **wish: Any) -> list[dict[str, Any]]:
    """The pieces that carry a picture."""
    kind = wish.setdefault("chat_type", "t2i")
    chat = visitor.new_chat(kind)
    return [each for each in deltas(visitor.frames(prompt, chat, **wish)) if each["content"]]


def wish(visitor: Visitor, kind: str = "t2v", **changes: Any) -> httpx.Response:
    chat = visitor.new_chat("t2v")
    asked = {"chat_type": kind, "size": "16:9", "stream": False, **changes}
    return visitor.ask(asked.pop("prompt", "A cat"), chat, **asked)


def submitted(visitor: Visitor, kind: str = "t2v", **changes: Any) -> str:
    (message,) = wish(visitor, kind, **changes).json()["data"]["messages"]
    return str(message["extra"]["wanx"]["task_id"])


def status(visitor: Visitor, task: str) -> dict[str, Any]:
    found: dict[str, Any] = visitor.call("GET", f"/api/v2/task/status/{task}").json()["data"]
    return found


@pytest.mark.parametrize(
    ("size", "pixels"), [(None, (2688, 1536)), ("9:16", (1536, 2688)), ("1:1", (2048, 2048))]
)
def test_a_picture_has_the_ratio_that_was_asked_for(
    visitor: Visitor, size: str | None, pixels: tuple[int, int]
) -> None:
    one, two = drawn(visitor, size=size, generator="qwen-image-3.0-pro")
    assert (one["phase"], one["content"] != two["content"]) == ("image_gen", True)
    assert one["extra"]["output_image_hw"] == [[pixels[1], pixels[0]]]
    answer = httpx.get(two["content"])
    assert answer.headers["content-type"] == "image/png"
    with av.open(io.BytesIO(answer.content), "r") as container:
        frame = next(container.decode(video=0))
    assert (frame.width, frame.height) == pixels
    (turn,) = visitor.standin.turns()
    assert (turn["chat_type"], turn["size"], turn["generator"]) == ("t2i", size or "", "qwen-image-3.0-pro")


def test_a_picture_is_shown_only_with_its_key_and_to_the_site_if_so_wished(visitor: Visitor) -> None:
    url = drawn(visitor)[-1]["content"]
    bare = url.partition("?")[0]
    assert [httpx.get(bare).status_code, httpx.get(f"{bare}?key=x").status_code] == [403, 403]
    assert httpx.get(bare.replace("2.png", "9.png")).status_code == 404
    visitor.standin.options(media_referer=True)
    assert httpx.get(url).status_code == 403
    assert httpx.get(url, headers={"referer": f"{visitor.standin.site}/"}).status_code == 200
    assert visitor.http.get(url).status_code == 200
    with Visitor(visitor.standin, "two@example.com") as other:
        assert other.http.get(url).status_code == 403
    assert "key" not in visitor.standin.received("/output/")[-1]["path"]


def test_a_size_is_said_twice_and_known(visitor: Visitor) -> None:
    chat = visitor.new_chat("t2i")
    body = question(chat, "A cat", chat_type="t2i", size="16:9")
    path = f"/api/v2/chat/completions?chat_id={chat}"
    once = {name: value for name, value in body.items() if name != "size"}
    assert visitor.call("POST", path, once).json()["data"]["code"] == "internal_error"
    absurd = question(chat, "A cat", chat_type="t2i", size="1000:1")
    assert visitor.call("POST", path, absurd).json()["data"]["code"] == "internal_error"
    assert visitor.call("POST", path, body).status_code == 200


def test_a_picture_is_changed(visitor: Visitor) -> None:
    picture = uploaded(visitor, b"PNG", "cat.png", "image")
    made = drawn(visitor, chat_type="image_edit", files=[file_object(picture, "vision")])[-1]["content"]
    hosted = {"type": "image", "file_class": "vision", "status": "uploaded", "url": made}
    assert drawn(visitor, files=[hosted])
    files = [turn["files"][0] for turn in visitor.standin.turns()]
    assert [file["name"] for file in files] == ["cat.png", "2.png"]
    assert files[1]["size"] == len(httpx.get(made).content)


def test_the_tool_in_a_chat_draws_too(visitor: Visitor) -> None:
    frames = visitor.frames("{{standin: image tool=1}}")
    extra = next(delta["extra"] for delta in deltas(frames) if "image_list" in delta.get("extra", {}))
    assert httpx.get(extra["image_list"][0]["image"]).status_code == 200


def test_a_video_is_made_in_a_while(visitor: Visitor) -> None:
    visitor.standin.options(video_s=1000)
    task = submitted(visitor)
    assert status(visitor, task)["task_status"] == "running"
    visitor.standin.options(video_s=0)
    done = status(visitor, submitted(visitor, size="1:1"))
    assert (done["task_status"], done["message"]) == ("success", "")
    whole = httpx.get(done["content"])
    assert whole.headers["content-type"] == "video/mp4"
    with av.open(io.BytesIO(whole.content), "r") as container:
        video = container.streams.video[0]
        assert (video.width, video.height, container.duration) == (1440, 1440, 5_040_000)
    part = httpx.get(done["content"], headers={"range": "bytes=4-7"})
    assert (part.status_code, part.content) == (206, whole.content[4:8])
    assert part.headers["content-range"] == f"bytes 4-7/{len(whole.content)}"
    assert httpx.get(done["content"], headers={"range": "bytes=99999999-"}).status_code == 416


def test_a_task_is_told_where_it_is_and_to_whom_it_belongs(visitor: Visitor) -> None:
    task = submitted(visitor)
    bare = f"/api/v1/tasks/status/{task}"
    assert visitor.call("GET", bare).status_code == 404
    visitor.standin.options(tasks_at="v1")
    assert visitor.call("GET", bare).json()["task_status"] == "success"
    assert visitor.call("GET", "/api/v1/tasks/status/x").json() == {"detail": "Task not found"}
    assert status(visitor, task) == {"code": "Not_Found", "details": "Not Found"}
    visitor.standin.options(tasks_at="both")
    assert status(visitor, task)["task_status"] == "success"
    with Visitor(visitor.standin, "two@example.com") as other:
        assert status(other, task) == {"code": "Not_Found", "details": "Task not found"}


def test_a_first_frame_makes_another_kind_of_video(visitor: Visitor) -> None:
    file = file_object(uploaded(visitor, b"PNG", "cat.png", "image"), "vision")
    assert status(visitor, submitted(visitor, "i2v", files=[file]))["chat_type"] == "i2v"
    for kind, files in (("i2v", []), ("t2v", [file])):
        assert wish(visitor, kind, files=files).json()["data"]["code"] == "internal_error"
    for changes in ({"size": None}, {"size": "5:1"}, {"stream": True}):
        assert wish(visitor, **changes).json()["data"]["code"] == "internal_error"


def test_videos_fail_when_told(visitor: Visitor) -> None:
    failed = submitted(visitor, prompt="{{standin: video_failed error=No}} A cat")
    assert [status(visitor, failed)[key] for key in ("task_status", "message")] == ["failed", "No"]
    hangs = submitted(visitor)
    visitor.standin.fault("video_hangs", on="task")
    assert status(visitor, hangs)["task_status"] == "running"
    assert status(visitor, hangs)["task_status"] == "running"
    visitor.standin.fault("video_failed", on="task")
    assert status(visitor, hangs)["task_status"] == "failed"
    visitor.standin.fault("credits_exhausted")
    assert wish(visitor).json()["data"]["code"] == "quota_exhausted"
    until(lambda: visitor.standin.state()["open"] == 0)
