"""Counting with Qwen's vocabulary; the package's own tokenizer is the oracle."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenproxy import tokens as tokens_module
from qwenproxy.limits import by_bytes
from qwenproxy.tokens import Tokens

KNOWN = {
    "": 0,
    "Hello, world!": 4,
    "Hello world": 2,
    "你好，世界": 3,
    "Привет, мир": 5,
    "2025": 4,
    "<|im_start|>": 6,
}
"""What Qwen's tokenizer gives; the marks of special tokens as plain text."""


@cache
def loaded() -> Tokens:
    """One for all: the table is the same, and 55 MB large."""
    tokens = Tokens()
    tokens.load()
    return tokens


@cache
def oracle() -> Any:
    from dashscope.tokenizers.qwen_tokenizer import QwenTokenizer

    made: Any = QwenTokenizer
    return made(str(tokens_module._shipped()))


def expected(text: str) -> int:
    return len(oracle().encode(text, allowed_special=set()))


@pytest.mark.parametrize("text", KNOWN)
def test_texts_whose_count_is_known(text: str) -> None:
    assert loaded().count(text) == KNOWN[text]


@pytest.mark.parametrize(
    "text",
    [
        "The quick brown fox jumps over the lazy dog; it didn't, in fact, jump at all.\n\n" * 40,
        "def f(x: int) -> int:\n    return x * 2  # doubled\n\n\n" * 80,
        "Съешь же ещё этих мягких французских булок, да выпей чаю. " * 60,
        "天地玄黄，宇宙洪荒。日月盈昃，辰宿列张。" * 200,
        "e\u0301a\u0300 ni\u0303o, o\u0308l " * 300,
        "😀👩‍👩‍👧 and 1,234.56 € — naïve?\r\n\t\r\n" * 100,
        '{"name": "read_file", "arguments": {"path": "/tmp/a.txt"}}\n' * 80,
        "<|im_start|>user\n<|endoftext|><|extra_0|>",
    ],
    ids=["english", "code", "russian", "chinese", "accents", "signs", "json", "specials"],
)
def test_texts_of_any_kind_are_counted_as_the_packages_own_tokenizer_counts_them(text: str) -> None:
    assert loaded().count(text) == expected(text)


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=300))
def test_any_short_text(text: str) -> None:
    assert loaded().count(text) == expected(text)


@settings(deadline=None)
@given(st.lists(st.sampled_from(["word", " ", "\n", "  ", ". ", "don't", "8", "语", "，", "_", "-"])))
def test_where_a_long_text_is_cut_changes_nothing_while_there_are_words(parts: list[str]) -> None:
    text = "".join(parts) * 60
    longest = max(map(len, text.replace("\n", " ").split(" ")), default=0)
    slack = 2 + len(text) // tokens_module.PIECE * 2 if longest > 500 or "  " in text else 0
    assert abs(loaded().count(text) - expected(text)) <= slack


@pytest.mark.parametrize("sign", ["a", " ", "\n", "語", "!", "😀", "\u0301", "\x00", "7"])
def test_a_megabyte_of_one_sign_takes_no_time_and_no_stack(sign: str) -> None:
    count = loaded().count(sign * (1_000_000 // len(sign.encode())))
    assert 1 <= count <= 1_000_000


def test_accents_in_disorder_take_no_time_either() -> None:
    assert loaded().count("a" + "\u0315" * 50_000 + "\u0327" * 50_000) > 0


def test_half_a_surrogate_pair_is_counted_too() -> None:
    assert loaded().count("a\ud83d b") > 0
    assert by_bytes("\ud83d") == 1


def test_until_the_vocabulary_is_there_a_quarter_of_the_bytes_is() -> None:
    tokens = Tokens()
    text = "Hello world, " * 100
    assert tokens.count(text) == by_bytes(text), "it waited for the vocabulary"
    for thread in threading.enumerate():
        if thread.name == "vocabulary":
            thread.join()
    assert tokens.count(text) == expected(text)


def test_who_can_wait_gets_the_count_with_the_vocabulary() -> None:
    assert Tokens().surely("Hello, world! " * 20) == expected("Hello, world! " * 20)


def test_many_threads_read_the_vocabulary_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, times = Tokens(), []
    read = Tokens._read

    def counted(self: Tokens) -> Any:
        times.append(1)
        return read(self)

    monkeypatch.setattr(Tokens, "_read", counted)
    threads = [threading.Thread(target=tokens.load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(times) == 1
    assert tokens.count("Hello world") == 2


LINE = b"IQ== 0\n"


@pytest.mark.parametrize(
    "content",
    [None, b"", b"not a vocabulary", b"IQ== x\n", LINE, LINE * 200_000, b"\xff\xfe\n", b"IQ==\n"],
    ids=["missing", "empty", "text", "no rank", "one", "the same", "bytes", "no second word"],
)
def test_a_vocabulary_that_cannot_be_used_is_told_once(
    content: bytes | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "qwen.tiktoken"
    if content is not None:
        path.write_bytes(content)
    tokens = Tokens(path)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            tokens.load()
            assert tokens.count("x" * 9) == 3
    assert len(caplog.messages) == 1
    assert "vocabulary cannot be used" in caplog.messages[0]


def test_a_part_of_the_vocabulary_is_no_vocabulary(tmp_path: Path) -> None:
    whole = tokens_module._shipped().read_bytes()
    (tmp_path / "part").write_bytes(whole[: len(whole) // 2].rpartition(b"\n")[0])
    tokens = Tokens(tmp_path / "part")
    tokens.load()
    assert tokens.count("Hello world") == by_bytes("Hello world")


def test_a_package_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens_module, "find_spec", lambda name: None)
    tokens = Tokens()
    tokens.load()
    assert tokens.count("x" * 9) == 3


def test_importing_it_loads_neither_table_nor_package() -> None:
    code = "import sys, qwenproxy.tokens; print({'tiktoken', 'dashscope'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "set()"
    code = (
        "import sys; from qwenproxy.tokens import Tokens; t = Tokens(); t.load();"
        "print(t.count('Hello world'), 'dashscope' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == ["2", "False"]
