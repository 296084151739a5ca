from __future__ import annotations

from dataclasses import dataclass

import pytest

from qwenproxy.chat import FileKind
from qwenproxy.errors import UnsupportedFile
from qwenproxy.file_rules import MIB, check_drawing, check_kinds, check_number, check_size
from qwenproxy.qwen.models import Model

BLIND = Model("blind", "Blind", document=True)
SEEING = Model("seeing", "Seeing", vision=True)
ALL = Model("all", "All", vision=True, audio=True, video=True, document=True)


@dataclass(frozen=True)
class File:
    name: str
    kind: FileKind
    size: int


@pytest.mark.parametrize(
    ("model", "kind", "said"),
    [
        (BLIND, "image", "the model blind takes no pictures; seeing does"),
        (BLIND, "video", "the model blind takes no videos; all does"),
        (BLIND, "audio", "the model blind takes no sound; all does"),
        (SEEING, "document", "the model seeing takes no documents; blind does"),
        (SEEING, "text", "the model seeing takes no documents; blind does"),
    ],
)
def test_what_a_model_does_not_take_another_does(model: Model, kind: FileKind, said: str) -> None:
    with pytest.raises(UnsupportedFile) as caught:
        check_kinds([kind], model, [BLIND, SEEING, ALL])
    assert (str(caught.value), caught.value.param) == (said, "model")


def test_the_other_takes_all_of_it_or_none_is_named() -> None:
    with pytest.raises(UnsupportedFile, match=r"no documents; all does$"):
        check_kinds(["image", "document"], SEEING, [BLIND, SEEING, ALL])
    with pytest.raises(UnsupportedFile, match=r"no documents$"):
        check_kinds(["image", "document"], SEEING, [BLIND, SEEING])


def test_what_a_model_takes_is_taken() -> None:
    check_kinds(["image", "video", "audio", "document", "text"], ALL, [])
    check_kinds([], BLIND, [])


def test_the_number_of_files_names_its_limit() -> None:
    check_number(3, 3)
    for place in ((), ("messages[0].content",)):
        with pytest.raises(UnsupportedFile) as caught:
            check_number(4, 3, *place)
        assert str(caught.value) == "a message has 4 files; QWENPROXY_MAX_FILES allows 3"
        assert caught.value.param == (place[0] if place else "messages")


@pytest.mark.parametrize(
    ("kind", "most"), [("image", 20), ("document", 20), ("text", 20), ("audio", 100), ("video", 500)]
)
def test_the_largest_of_each_kind(kind: FileKind, most: int) -> None:
    check_size(File("a", kind, most * MIB))
    with pytest.raises(UnsupportedFile, match=f"a has {most * MIB + 1} bytes; .* of {most} MiB at most"):
        check_size(File("a", kind, most * MIB + 1))


def test_only_pictures_can_be_drawn_anew() -> None:
    check_drawing(["image", "image"])
    with pytest.raises(UnsupportedFile, match="only begin from pictures"):
        check_drawing(["image", "document"])
