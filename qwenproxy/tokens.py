"""How many tokens a text has for Qwen's models: counted with the vocabulary in the package `dashscope`.

That is the vocabulary of Qwen 1 to 3; later models may have a larger one, so a count of ours is an estimate,
some per cent above what the service counts. It takes 0.3 s and 55 MB to load, hence at the first need and
in a thread: until it is there, and where it cannot be read, a quarter of the bytes stands in.

A text is counted in pieces, each cut where a token ends anyhow if there is such a place: one piece of a
megabyte without a space would overflow the tokenizer's stack, and take it quadratic time.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from binascii import a2b_base64
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from threading import Lock, Thread
from typing import TYPE_CHECKING, Final

from qwenproxy.limits import by_bytes

if TYPE_CHECKING:
    from tiktoken import Encoding

log = logging.getLogger(__name__)

RESOURCE: Final = ("resources", "qwen.tiktoken")
"""Where the package has it: a line a token, in base64, and its rank."""
SMALLEST: Final = 151_643
"""Tokens of Qwen's vocabulary without its special ones; a file with fewer is a part of it."""
PATTERN: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
"""How Qwen's tokenizers split a text into words."""
PIECE: Final = 2_000
"""Characters that are counted at once; also what bounds putting accents together, which can be quadratic."""
SEAM: Final = re.compile(r".*[^\W_](?=\n|[ -/:-@，。、；：？！][^\W_])", re.DOTALL)
"""Up to the last place where a word ends, whatever stands before it."""


class Tokens:
    def __init__(self, vocabulary: Path | None = None) -> None:
        """`vocabulary`: a file of `tiktoken`'s form; None: the one in `dashscope`. Nothing is read yet."""
        self._path = vocabulary
        self._lock = Lock()
        self._loading = False
        self._loaded = False
        self._encoding: Encoding | None = None

    def count(self, text: str) -> int:
        """Never waits for the vocabulary; takes 50 ms a megabyte. Marks of special tokens are plain text."""
        if not self._loaded:
            self._load_soon()
        encoding = self._encoding
        if encoding is None:
            return by_bytes(text)
        return sum(len(encoding.encode_ordinary(piece)) for piece in _pieces(text))

    def surely(self, text: str) -> int:
        """The same, with the vocabulary, waiting for it if need be. Blocks: call it in a thread."""
        self.load()
        return self.count(text)

    def load(self) -> None:
        """Returns once `count` is as good as it gets. Blocks: call it in a thread."""
        with self._lock:
            if not self._loaded:
                self._encoding = self._read()
                self._loaded = True

    def _load_soon(self) -> None:
        if not self._loading:
            self._loading = True  # twice at worst, and then the second only waits for the first
            Thread(target=self.load, name="vocabulary").start()

    def _read(self) -> Encoding | None:
        try:
            ranks = _ranks(self._path or _shipped())
            from tiktoken import Encoding

            return Encoding("qwen", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
        except (OSError, ValueError, ImportError) as exc:
            log.warning("Qwen's vocabulary cannot be used, so tokens are a quarter of the bytes: %s", exc)
            return None


def _shipped() -> Path:
    """Found without running the package, which takes seconds. Raises: ImportError."""
    spec = find_spec("dashscope")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("the package dashscope is not installed")
    return Path(spec.submodule_search_locations[0]).joinpath(*RESOURCE)


def _ranks(path: Path) -> dict[bytes, int]:
    """Raises: OSError, ValueError."""
    lines = (line.split() for line in path.read_bytes().splitlines() if line)
    ranks = {a2b_base64(token): int(rank) for token, rank in lines}
    whole = len(ranks) >= SMALLEST and all(bytes([byte]) in ranks for byte in range(256))
    if not whole or max(ranks.values()) != len(ranks) - 1:
        raise ValueError(f"{path.name} is not whole")
    return ranks


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > PIECE:
        seam = SEAM.match(text, start, start + PIECE)
        end = seam.end() if seam else start + PIECE
        yield _composed(text[start:end])
        start = end
    yield _composed(text[start:])


def _composed(piece: str) -> str:
    """As Qwen's tokenizers see it."""
    return piece if piece.isascii() else unicodedata.normalize("NFC", piece)
