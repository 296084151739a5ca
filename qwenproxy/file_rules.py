"""What a model takes of files, and how large, by the site's own rules (protocol §7, §9.5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final, Protocol

from qwenproxy.chat import FileKind
from qwenproxy.errors import UnsupportedFile
from qwenproxy.qwen.models import Model
from qwenproxy.settings import variable_of

MIB: Final = 1024 * 1024
MOST_MIB: Final[Mapping[FileKind, int]] = MappingProxyType(
    {"image": 20, "document": 20, "text": 20, "audio": 100, "video": 500}
)
"""The largest file of each kind (protocol §9.5)."""

WORDS: Final[Mapping[FileKind, str]] = MappingProxyType(
    {
        "image": "pictures",
        "document": "documents",
        "text": "documents",
        "audio": "sound",
        "video": "videos",
    }
)


class Known(Protocol):
    """What is known of a file."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> FileKind: ...

    @property
    def size(self) -> int: ...


def check_number(number: int, most: int, place: str | None = "messages") -> None:
    """Raises: UnsupportedFile. Of the files in one message, which stands at that place."""
    if number > most:
        allowed = f"{variable_of('max_files')} allows {most}"
        raise UnsupportedFile(f"a message has {number} files; {allowed}", param=place)


def check_kinds(kinds: Sequence[FileKind], model: Model, models: Sequence[Model]) -> None:
    """Raises: UnsupportedFile, naming one of `models` that takes what this model does not."""
    for kind in kinds:
        if takes(model, kind):
            continue
        other = next((each.id for each in models if all(takes(each, wanted) for wanted in kinds)), "")
        hint = f"; {other} does" if other else ""
        raise UnsupportedFile(f"the model {model.id} takes no {WORDS[kind]}{hint}", param="model")


def check_drawing(kinds: Sequence[FileKind]) -> None:
    """Raises: UnsupportedFile."""
    if any(kind != "image" for kind in kinds):
        raise UnsupportedFile("a drawing can only begin from pictures", param="messages")


def check_size(file: Known) -> None:
    """Raises: UnsupportedFile."""
    most = MOST_MIB[file.kind]
    if file.size > most * MIB:
        raise UnsupportedFile(
            f"{file.name} has {file.size} bytes; the service takes {WORDS[file.kind]} of {most} MiB at most",
            param="messages",
        )


def takes(model: Model, kind: FileKind) -> bool:
    """Whether the model reads files of this kind (protocol §7)."""
    match kind:
        case "image":
            return model.vision
        case "audio":
            return model.audio
        case "video":
            return model.video
        case _:
            return model.document
