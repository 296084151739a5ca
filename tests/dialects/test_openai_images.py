from __future__ import annotations

from typing import Any

import pytest
from openai.types import ImageEditCompletedEvent, ImageGenCompletedEvent, ImagesResponse
from openai.types.image_edit_params import ImageEditParamsBase
from openai.types.image_generate_params import ImageGenerateParamsBase

from qwenproxy.addresses import file_address
from qwenproxy.chat import (
    Attachment,
    ChatRequest,
    Drawing,
    Finished,
    Media,
    Message,
    Started,
    Text,
    fold,
)
from qwenproxy.dialects.openai_chat import OpenAIChat
from qwenproxy.dialects.openai_images import PARAMETERS, OpenAIEdits, OpenAIImages
from qwenproxy.errors import CallerError, GenerationFailed, Severed
from tests.dialects.golden import (
    NOON,
    StandingClock,
    events,
    golden_reply,
    golden_stream,
    replies,
    scenario,
    scenarios,
    streamed,
)

FOLDER = "openai_images"
FILE = "file-" + "0" * 24


DIALECT = OpenAIImages(StandingClock())
EDITS = OpenAIEdits(StandingClock())


def parse(**body: Any) -> ChatRequest:
    return DIALECT.parse({"prompt": "A cat", **body}, {})


def drawing(**body: Any) -> Drawing:
    found = parse(**body).drawing
    assert found is not None
    return found


def refused(dialect: OpenAIImages = DIALECT, **body: Any) -> tuple[str, str | None]:
    with pytest.raises(CallerError) as caught:
        dialect.parse({"prompt": "A cat", **body}, {})
    return caught.value.code, caught.value.param


SCENARIOS = scenarios(FOLDER)


def test_there_are_scenarios() -> None:
    assert set(SCENARIOS) == {"one", "two_inline"}


@pytest.mark.parametrize("name", SCENARIOS)
def test_stream_is_golden_and_has_openais_types(name: str) -> None:
    request, deltas = scenario(DIALECT, FOLDER, name)
    stream = streamed(DIALECT, request, deltas)
    assert stream == golden_stream(FOLDER, name)
    models = [ImageGenCompletedEvent.model_validate(event, strict=True) for event in events(stream)]
    assert len(models) == request.choices


@pytest.mark.parametrize("name", SCENARIOS)
def test_reply_is_golden_and_has_openais_types(name: str) -> None:
    request, deltas = scenario(DIALECT, FOLDER, name)
    reply = DIALECT.reply(request, replies(request, deltas))
    assert reply == golden_reply(FOLDER, name)
    whole = ImagesResponse.model_validate(reply, strict=True)
    assert whole.data is not None
    assert len(whole.data) == request.choices


def test_an_edits_events_have_names_of_their_own() -> None:
    encoder = EDITS.encoder(EDITS.parse({"prompt": "A cat", "image": FILE, "stream": True}, {}))
    encoder.encode(Media("http://here/1", content="Zmlyc3Q="))
    (event,) = events("".join(encoder.encode(Finished("stop"))))
    assert ImageEditCompletedEvent.model_validate(event, strict=True).b64_json == "Zmlyc3Q="


def test_an_answer_without_a_picture_is_a_failure() -> None:
    request = parse()
    with pytest.raises(GenerationFailed):
        DIALECT.reply(request, [fold([Started("c", "r", "m"), Text("No."), Finished("stop")])])
    encoder = DIALECT.encoder(request)
    sent = "".join([*encoder.encode(Text("No.")), *encoder.encode(Finished("stop"))])
    assert [event["error"]["code"] for event in events(sent)] == ["generation_failed"]


def test_failure_is_one_event() -> None:
    (event,) = events("".join(DIALECT.encoder(parse()).fail(Severed("the answer broke off"))))
    assert event == DIALECT.error(Severed("the answer broke off"))
    assert event["error"]["message"] == "the answer broke off"


def test_a_prompt_alone_is_enough() -> None:
    request = parse(quality="hd", unheard_of=1, user=None)
    assert request.messages == (Message("user", "A cat"),)
    assert request.drawing == Drawing()
    assert (request.model, request.choices, request.stream, request.remember) == ("qwen", 1, False, False)


def test_a_drawing_keeps_what_it_says() -> None:
    request = parse(model="qwen3-max", n=8, size="9:16", response_format="b64_json")
    assert (request.model, request.choices) == ("qwen3-max", 8)
    assert request.drawing == Drawing("9:16", "", inline=True)


@pytest.mark.parametrize(
    ("given", "ratio"),
    [
        ("1024x1024", "1:1"),
        ("256x256", "1:1"),
        ("1792x1024", "16:9"),
        ("1024x1792", "9:16"),
        ("1024x1536", "2:3"),
        ("1536 × 1024", "3:2"),
        ("1472*1140", "4:3"),
        ("1140x1472", "3:4"),
        ("16:9", "16:9"),
        ("2/3", "2:3"),
        ("21:9", "16:9"),
        ("auto", ""),
        ("", ""),
        (None, ""),
    ],
)
def test_sizes_mean_the_nearest_ratio(given: str | None, ratio: str) -> None:
    assert drawing(size=given).size == ratio
    assert drawing(aspect_ratio=given, size="auto").size == ratio


@pytest.mark.parametrize("size", ["large", "0x0", "1024x", "16:0", 1024, [16, 9], "1" * 9 + "x1"])
def test_other_sizes_are_refused(size: Any) -> None:
    assert refused(size=size) == ("invalid_request", "size")
    assert refused(ratio=size) == ("invalid_request", "ratio")


@pytest.mark.parametrize(
    ("name", "model", "generator"),
    [
        ("qwen-image-3.0-pro", "qwen", "qwen-image-3.0-pro"),
        ("Qwen-Image-2.0", "qwen", "qwen-image-2.0-pro"),
        ("qwen-image", "qwen-image", ""),
        ("wanxiang", "wanxiang", ""),
        ("dall-e-3", "dall-e-3", ""),
        (" ", "qwen", ""),
    ],
)
def test_a_model_says_who_reads_or_what_draws(name: str, model: str, generator: str) -> None:
    request = parse(model=name)
    assert request.drawing == Drawing("", generator)
    assert request.model == model


def test_a_stream_has_the_pictures_inside_unless_it_wants_addresses() -> None:
    assert drawing(stream=True).inline
    assert not drawing(stream=True, response_format="url").inline
    encoder = DIALECT.encoder(parse(stream=True, response_format="url"))
    encoder.encode(Media("http://here/1", 3, 4))
    (event,) = events("".join(encoder.encode(Finished("stop"))))
    assert (event["url"], event["b64_json"], event["size"]) == ("http://here/1", "", "3x4")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", ""),
        ("prompt", ["A cat"]),
        ("n", 0),
        ("n", 9),
        ("n", True),
        ("n", "many"),
        ("n", 1.5),
        ("model", 7),
        ("response_format", "png"),
        ("stream", "perhaps"),
        ("image", ""),
        ("image", {}),
        ("images", [{"image_url": ""}]),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(field: str, value: Any) -> None:
    code, param = refused(**{field: value})
    assert (code, (param or "").partition("[")[0]) == ("invalid_request", field)


@pytest.mark.parametrize("name", ["mask", "markup"])
def test_what_would_change_the_picture_is_refused(name: str) -> None:
    given: dict[str, Any] = {name: "file-1"}
    assert refused(**given) == ("unsupported_parameter", name)


@pytest.mark.parametrize(
    ("given", "urls"),
    [
        ({"image": FILE}, [file_address(FILE)]),
        ({"image": file_address(FILE)}, [file_address(FILE)]),
        ({"image": "https://example.org/cat.png"}, ["https://example.org/cat.png"]),
        ({"image": ["data:image/png;base64,AAAA", FILE]}, ["data:image/png;base64,AAAA", file_address(FILE)]),
        ({"images": [{"image_url": "https://example.org/cat.png"}]}, ["https://example.org/cat.png"]),
        ({"images": [{"file_id": FILE}]}, [file_address(FILE)]),
        ({"image_url": {"url": "https://example.org/cat.png"}}, ["https://example.org/cat.png"]),
    ],
)
def test_pictures_to_change_come_in_every_form(given: dict[str, Any], urls: list[str]) -> None:
    for dialect in (DIALECT, EDITS):
        (message,) = dialect.parse({"prompt": "Bluer", **given}, {}).messages
        assert message.attachments == tuple(Attachment("image", url) for url in urls)


def test_an_edit_needs_a_picture() -> None:
    assert refused(EDITS) == ("invalid_request", "image")
    assert refused(EDITS, images=[]) == ("invalid_request", "image")


def test_a_form_has_only_text() -> None:
    request = EDITS.parse({"prompt": "Bluer", "n": "2", "stream": "false", "image": [FILE]}, {})
    assert (request.choices, request.stream) == (2, False)


def test_every_parameter_of_openais_is_known() -> None:
    official = {*ImageGenerateParamsBase.__annotations__, *ImageEditParamsBase.__annotations__}
    vector = {"complexity", "frame_count", "frame_duration_ms", "svg"}
    assert official - set(PARAMETERS) <= vector


def test_a_prompt_instead_of_messages_draws_in_completions() -> None:
    completions = OpenAIChat(StandingClock(), drawings=DIALECT)
    request = completions.parse({"model": "wanxiang", "prompt": "A cut cat"}, {})
    assert request.drawing == Drawing()
    reply = fold([Started("c", "r", "m"), Media("http://here/1"), Finished("stop")])
    assert completions.reply(request, [reply]) == {
        "created": int(NOON.timestamp()),
        "data": [{"url": "http://here/1"}],
    }
    encoder = completions.encoder(request)
    encoder.encode(Media("http://here/1"))
    assert "image_generation.completed" in "".join(encoder.encode(Finished("stop")))
    assert (
        completions.parse({"prompt": "x", "messages": [{"role": "user", "content": "Hi"}]}, {}).drawing
        is None
    )
