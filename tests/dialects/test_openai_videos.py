"""What a body asks for, and what a task is to a client."""

from __future__ import annotations

from typing import Any

import pytest

from qwenproxy.addresses import file_address
from qwenproxy.dialects.openai_videos import (
    MOST_PROMPT,
    MOST_WISH,
    parse,
    ratio_of,
    task_body,
    video_body,
    video_of,
)
from qwenproxy.errors import BadRequest, CallerError, UnsupportedParameter

FILE_ID = "file-" + "0a" * 12


def test_a_prompt_is_enough_and_is_waited_for() -> None:
    wanted = parse({"model": "cogvideox-pro", "prompt": " A cat. "})
    assert (wanted.filming.prompt, wanted.filming.size, wanted.filming.frame) == ("A cat.", "", "")
    assert wanted.wait


def test_wishes_without_a_place_of_their_own_go_into_the_prompt_in_their_own_words() -> None:
    body = {
        "prompt": "一只可爱的猫走在花丛中",
        "video_style": "油画",
        "emotional_atmosphere": "生动活泼",
        "mirror_mode": "slow pan\nto the left.",
    }
    assert parse(body).filming.prompt == (
        "一只可爱的猫走在花丛中\n\nVideo style: 油画. Mood: 生动活泼. Camera movement: slow pan to the left."
    )
    assert parse({"prompt": "A cat", "mirror_mode": ""}).filming.prompt == "A cat"


@pytest.mark.parametrize(
    ("given", "frame"),
    [
        ({"image_url": "https://example.com/a.png"}, "https://example.com/a.png"),
        ({"image_url": {"url": "data:image/png;base64,AAAA"}}, "data:image/png;base64,AAAA"),
        ({"image": FILE_ID}, file_address(FILE_ID)),
        ({"image_url": None}, ""),
    ],
)
def test_the_first_picture(given: dict[str, Any], frame: str) -> None:
    assert parse({"prompt": "A cat", **given}).filming.frame == frame


@pytest.mark.parametrize(
    ("size", "ratio"),
    [
        ("16:9", "16:9"),
        ("9:16", "9:16"),
        ("1920x1080", "16:9"),
        ("1080 × 1920", "9:16"),
        ("1024*1024", "1:1"),
        ("640x480", "4:3"),
        ("3:2", "4:3"),
        ("99999x1", "16:9"),
        ("auto", ""),
        ("", ""),
        (None, ""),
    ],
)
def test_a_size_is_the_nearest_ratio(size: object, ratio: str) -> None:
    assert ratio_of(size, "size") == ratio


@pytest.mark.parametrize(
    "size", ["big", "16", "0x5", "1x2x3", "-1:2", "1e3x2", "²:1", "999999x1", 16, ["1:1"]]
)
def test_a_size_that_is_none_is_refused(size: object) -> None:
    with pytest.raises(BadRequest) as refusal:
        parse({"prompt": "A cat", "aspect_ratio": size})
    assert refusal.value.param == "aspect_ratio"


@pytest.mark.parametrize(
    ("given", "waits"),
    [
        ({}, True),
        ({"wait": False}, False),
        ({"waitForCompletion": False}, False),
        ({"async": True}, False),
        ({"async": False}, True),
        ({"wait": True, "async": True}, True),
    ],
)
def test_who_waits(given: dict[str, Any], waits: bool) -> None:
    assert parse({"prompt": "A cat", **given}).wait is waits


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": " "}, "prompt"),
        ({"prompt": ["A cat"]}, "prompt"),
        ({"prompt": "a" * (MOST_PROMPT + 1)}, "prompt"),
        ({"video_style": 5}, "video_style"),
        ({"mirror_mode": "a" * (MOST_WISH + 1)}, "mirror_mode"),
        ({"image_url": 5}, "image_url"),
        ({"image": {"url": 5}}, "image"),
        ({"wait": "no"}, "wait"),
        ({"async": 1}, "async"),
        ({"n": 2}, "n"),
        ({"n": True}, "n"),
    ],
)
def test_what_cannot_be_understood_is_refused_by_its_name(given: dict[str, Any], param: str) -> None:
    with pytest.raises(CallerError) as refusal:
        parse({"prompt": "A cat", **given})
    assert refusal.value.param == param
    assert refusal.value.status == 400


def test_one_video_a_request() -> None:
    assert parse({"prompt": "A cat", "n": 1}).wait
    with pytest.raises(UnsupportedParameter):
        parse({"prompt": "A cat", "n": 3})


def test_the_answers_have_the_seeds_form() -> None:
    video = video_of("video_1", "http://x/v", "http://x/c", 5.04, 1920, 1080)
    assert video_body(1722103836, video, "video_1") == {
        "created": 1722103836,
        "data": [
            {
                "conversation_id": "video_1",
                "cover_url": "http://x/c",
                "video_url": "http://x/v",
                "video_duration": "5s",
                "resolution": "1920 × 1080",
            }
        ],
        "task_id": "video_1",
    }
    unseen = video_of("video_1", "http://x/v", "", 0, 0, 0)
    assert (unseen["video_duration"], unseen["resolution"]) == ("", "")


def test_a_task_is_told_in_each_state() -> None:
    running = task_body("video_1", "running", 5)
    assert running == {
        "id": "video_1",
        "task_id": "video_1",
        "status": "running",
        "created": 5,
        "success": True,
        "task_status": "running",
    }
    video = video_of("video_1", "http://x/v", "", 0, 0, 0)
    done = task_body("video_1", "done", 5, video)
    assert (done["status"], done["data"], done["content"]) == ("success", [video], "http://x/v")
    failed = task_body("video_1", "failed", 5, why="no luck")
    assert failed["error"] == {"message": "no luck", "code": "generation_failed"}
    assert failed["success"] is False
