from __future__ import annotations

from dataclasses import replace

import pytest

from qwenproxy.addresses import file_address
from qwenproxy.answering import Again
from qwenproxy.chat import (
    AnswerFormat,
    Attachment,
    ChatRequest,
    Delta,
    Drawing,
    FileKind,
    Finished,
    Home,
    Media,
    Message,
    Started,
    Text,
    Tool,
    ToolCall,
)
from qwenproxy.errors import (
    GenerationFailed,
    UnknownFile,
    UnknownModel,
    UnsupportedFile,
    UnsupportedParameter,
)
from qwenproxy.file_store import StoredFile
from qwenproxy.qwen.models import BUILT_IN, Model
from qwenproxy.settings import Settings
from qwenproxy.words import Drawn, Words, model_of

NONCE = "7f3a9c21d0b4"
ALL = BUILT_IN[0]
BLIND = Model("blind", "Blind", document=True, chat_types=("t2t", "t2i"))


def stored(number: int, name: str, kind: FileKind = "image", size: int = 9) -> StoredFile:
    return StoredFile(f"file-{number:024x}", "0" * 64, name, "x/y", kind, size, 1, "message", "")


CAT, REPORT = stored(1, "cat.png"), stored(2, "report.pdf", "document")
FILES = {file_address(file.id): file for file in (CAT, REPORT)}


def with_files(text: str, *files: StoredFile) -> Message:
    return Message("user", text, tuple(Attachment("file", file_address(file.id)) for file in files))


def words(request: ChatRequest, model: Model = ALL, *, most: int = 3) -> Words:
    return Words(request, model, BUILT_IN, FILES, NONCE, most=most, most_tools_bytes=40_000)


def test_a_conversation_says_which_turn_had_which_file() -> None:
    talk = (with_files("See", CAT), Message("assistant", "Nice"), with_files("And this?", REPORT, CAT))
    turn = words(ChatRequest("qwen", talk)).turn
    assert f"[{NONCE} user, attached: cat.png]\nSee\n" in turn.prompt
    assert f"[{NONCE} user, attached: report.pdf, cat.png]\nAnd this?\n" in turn.prompt
    assert [each.name for each in turn.attachments] == ["cat.png", "report.pdf"]


def test_one_message_is_said_as_it_is() -> None:
    turn = words(ChatRequest("qwen", (with_files("See", CAT),))).turn
    assert (turn.prompt, len(turn.attachments)) == ("See", 1)


def test_the_clients_name_goes_before_ours() -> None:
    mine = Attachment("image", file_address(CAT.id), "mine.png")
    turn = words(ChatRequest("qwen", (Message("user", "See", (mine,)),))).turn
    assert [each.name for each in turn.attachments] == ["mine.png"]


def test_a_file_that_is_gone_is_told_except_from_the_question() -> None:
    gone = with_files("Once", stored(9, "old.txt", "text"))
    turn = words(ChatRequest("qwen", (gone, with_files("Now", CAT)))).turn
    assert f"[{NONCE} user, gone: file]\nOnce\n" in turn.prompt
    with pytest.raises(UnknownFile) as caught:
        words(ChatRequest("qwen", (gone,)))
    assert caught.value.param == "messages"


def test_the_twin_is_told_the_question_alone_until_it_is_left() -> None:
    talk = (with_files("See", CAT), Message("assistant", "Nice"), with_files("And?", REPORT))
    asked = words(ChatRequest("qwen", talk, home=Home("a1", "twin", "r0")))
    assert (asked.turn.prompt, asked.turn.parent_id, len(asked.turn.attachments)) == ("And?", "r0", 1)
    assert asked.leave("twin_gone")
    assert (asked.turn.parent_id, len(asked.turn.attachments)) == (None, 2)
    assert not asked.leave("retried")
    started = asked.placed(Started("c", "r", "m"), "a2")
    assert (getattr(started, "account_id", ""), getattr(started, "rebuilt", "")) == ("a2", "twin_gone")
    assert asked.placed(Text("x"), "a2") == Text("x")


def test_a_model_that_does_not_see_is_told_from_the_twin_only_when_it_is_left() -> None:
    talk = (with_files("See", CAT), Message("assistant", "Nice"), with_files("And?", REPORT))
    asked = words(ChatRequest("blind", talk, home=Home("a1", "twin", "r0")), BLIND)
    with pytest.raises(UnsupportedFile, match=r"blind takes no pictures; qwen3\.7-plus does"):
        asked.leave("twin_gone")


def test_what_a_message_may_not_have() -> None:
    with pytest.raises(UnsupportedFile, match="QWENPROXY_MAX_FILES allows 2"):
        words(ChatRequest("qwen", (with_files("x", CAT, REPORT, CAT),)), most=2)
    talk = (with_files("x", CAT, REPORT), Message("assistant", "y"), with_files("z", CAT))
    assert len(words(ChatRequest("qwen", talk), most=1).turn.attachments) == 2
    large = stored(1, "cat.png", size=20 * 1024 * 1024 + 1)
    with pytest.raises(UnsupportedFile, match="20 MiB at most"):
        Words(
            ChatRequest("qwen", (with_files("x", large),)),
            ALL,
            BUILT_IN,
            {file_address(large.id): large},
            NONCE,
            most=3,
            most_tools_bytes=40_000,
        )


def test_a_file_of_the_services_is_taken_at_its_clients_word() -> None:
    theirs = Attachment("image", "https://qwen-webui-prod.oss-accelerate.aliyuncs.com/u/f_a.png")
    request = ChatRequest("qwen", (Message("user", "See", (theirs,)),))
    assert words(request).turn.attachments == (theirs,)
    with pytest.raises(UnsupportedFile, match="takes no pictures"):
        words(request, BLIND)


def test_a_document_takes_the_place_of_what_was_to_be_said() -> None:
    asked = words(ChatRequest("qwen", (with_files("x" * 9, CAT),)))
    document = Attachment("file", file_address("file-" + "e" * 24), "Pasted_Text_1.txt")
    asked.point_to(document)
    assert asked.turn.prompt.startswith("[attached prompt]\n")
    assert "Pasted_Text_1.txt" in asked.turn.prompt
    assert "marks" not in asked.turn.prompt
    assert [each.name for each in asked.turn.attachments] == ["cat.png", "Pasted_Text_1.txt"]
    talk = words(ChatRequest("qwen", (Message("system", "Obey."), Message("user", "Hi"))))
    talk.point_to(document)
    assert "marks" in talk.turn.prompt


# ---- drawings ----


@pytest.mark.parametrize(
    ("model", "files", "chat_type"),
    [
        (ALL, (), "t2i"),
        (ALL, (CAT,), "image_edit"),
        (replace(ALL, chat_types=("t2t", "t2i")), (CAT,), "t2i"),
        (BLIND, (CAT,), "t2i"),
    ],
)
def test_how_a_picture_is_asked_for(model: Model, files: tuple[StoredFile, ...], chat_type: str) -> None:
    request = ChatRequest("qwen", (with_files("A cat", *files),), thinking=True, drawing=Drawing("1:1", "g"))
    asked = words(request, model)
    turn = asked.turn
    assert (turn.chat_type, turn.size, turn.generator, turn.thinking) == (chat_type, "1:1", "g", False)
    assert (asked.draws, asked.limited_as) == (True, "t2i")


def test_a_picture_cannot_begin_from_a_document() -> None:
    with pytest.raises(UnsupportedFile, match="only begin from pictures"):
        words(ChatRequest("qwen", (with_files("x", REPORT),), drawing=Drawing()))


def test_which_model_draws() -> None:
    live = (*BUILT_IN, Model("mute", "Mute"))
    settings = Settings(default_model="qwen3.8-max")

    def chosen(name: str, drawing: Drawing | None) -> str:
        return model_of(ChatRequest(name, (), drawing=drawing), live, settings).id

    assert chosen("qwen3.6-plus", Drawing()) == "qwen3.6-plus"
    assert chosen("dall-e-3", Drawing()) == "qwen3.8-max"
    assert chosen("mute", Drawing()) == "qwen3.8-max"
    assert chosen("mute", None) == "mute"
    with pytest.raises(UnknownModel):
        chosen("dall-e-3", None)


def test_words_instead_of_a_picture_are_told_in_short() -> None:
    said: list[Delta] = [Text("I cannot\n"), Text("draw " * 100)]
    drawn = Drawn(due=True)
    for delta in said:
        drawn.check(delta)
    with pytest.raises(GenerationFailed) as caught:
        drawn.check(Finished("stop"))
    assert str(caught.value).startswith("the service drew nothing; it said: I cannot draw draw")
    assert len(str(caught.value)) < 250
    with pytest.raises(GenerationFailed, match=r"drew nothing$"):
        Drawn(due=True).check(Finished("stop"))


def test_a_picture_is_a_picture_and_words_are_words() -> None:
    drawn = Drawn(due=True)
    drawn.check(Media("https://cdn.qwenlm.ai/a.png"))
    drawn.check(Finished("stop"))
    Drawn(due=False).check(Finished("stop"))


ZOOM = Tool("zoom_in", "Makes it larger.", {"type": "object", "properties": {"factor": {"type": "number"}}})


def test_tools_and_formats_are_told_after_the_clients_own_system_text() -> None:
    talk = (Message("system", "Be brief"), Message("user", "Hello"))
    form = AnswerFormat({"type": "object", "properties": {"age": {"type": "integer"}}})
    prompt = words(ChatRequest("qwen", talk, tools=(ZOOM,), answer_format=form)).turn.prompt
    order = ("Be brief", "zoom_in", '"age"', f"[{NONCE} user]\nHello", f"[{NONCE} answer]")
    places = [prompt.index(told) for told in order]
    assert places == sorted(places)
    assert f"[{NONCE} user]" in words(ChatRequest("qwen", talk[1:], tools=(ZOOM,))).turn.prompt


def test_the_next_round_is_told_all_of_it_in_a_chat_of_its_own() -> None:
    talk = (with_files("See", CAT), Message("assistant", "Nice"), with_files("And?", REPORT))
    asked = words(ChatRequest("qwen", talk, tools=(ZOOM,), home=Home("a1", "twin", "r0")))
    more = (Message("assistant", "<tool_call>oops"), Message("user", "Once more"))
    after = asked.again(Again(more, fenced=True), "a2", "0123456789ab")
    assert (after.twin, after.stays, after.account_id, after.turn.parent_id) == (None, False, "a2", None)
    assert len(after.turn.attachments) == 2
    told = ("zoom_in", "See", "Nice", "And?", "<tool_call>oops", "Once more", "```json")
    assert all(each in after.turn.prompt for each in told)
    assert NONCE not in after.turn.prompt


def test_what_was_called_and_what_came_of_it_is_told_as_text() -> None:
    call = ToolCall("c1", "zoom_in", '{"factor":2}')
    talk = (
        Message("user", "Zoom"),
        Message("assistant", "", calls=(call,)),
        Message("tool", "ok", call_id="c1"),
    )
    prompt = words(ChatRequest("qwen", talk)).turn.prompt
    assert f"[{NONCE} assistant]\n<tool_call>" in prompt
    assert f"[{NONCE} tool]\n<tool_response>" in prompt


def test_kinds_of_chats_and_models_that_have_them() -> None:
    hello = ChatRequest("qwen", (Message("user", "Hello"),))
    assert words(hello).turn.chat_type == "t2t"
    assert words(replace(hello, search=True)).turn.chat_type == "search"
    assert words(replace(hello, search=True, research=True)).turn.chat_type == "deep_research"
    research = words(replace(hello, research=True, home=Home("a1", "twin", "r0")))
    assert (research.twin, research.account_id, research.limited_as) == (None, "a1", "deep_research")
    for wish in ({"search": True}, {"research": True}):
        with pytest.raises(UnsupportedParameter, match=r"blind does not .* does$") as caught:
            words(replace(hello, **wish), BLIND)  # type: ignore[arg-type]
        assert caught.value.param == "model"
