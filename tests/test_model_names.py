from __future__ import annotations

import logging
import re
import time
from itertools import takewhile
from pathlib import Path

import pytest

from qwenproxy.model_names import DEFAULTS, NAME, TEMPLATE, Asked, ModelNames, counted, parse
from qwenproxy.qwen.models import BUILT_IN, Model, is_known, resolve

LIVE = BUILT_IN[:6]
README = Path(__file__).parent.parent / "README.md"


def names(folder: Path, text: str | bytes | None = None) -> ModelNames:
    """Opened, over a session folder with such a file."""
    if text is not None:
        (folder / NAME).write_bytes(text if isinstance(text, bytes) else text.encode())
    found = ModelNames(folder)
    found.open()
    return found


def asked(name: str, live: tuple[Model, ...] = LIVE, text: str | None = None) -> Asked:
    found = ModelNames(Path("/nowhere"))
    if text is not None:
        found._file.value = parse(text)
    return found.asked(name, live)


def serves(name: str, live: tuple[Model, ...] = LIVE) -> str:
    return resolve(asked(name, live).name, live, default="qwen3.7-plus", unknown="refuse").id


# ---- names of other services ----


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpt-4o", Asked("qwen")),
        ("gpt-5.1", Asked("qwen")),
        ("openai/gpt-4.1", Asked("qwen")),
        ("GPT-4o", Asked("qwen")),
        ("gpt-4o-mini", Asked("qwen-flash")),
        ("gpt-5-nano-2025-08-07", Asked("qwen-flash")),
        ("gpt-4o-mini-search-preview", Asked("qwen", search=True)),
        ("gpt-5-codex", Asked("qwen")),
        ("codex-mini-latest", Asked("qwen-flash")),
        ("chatgpt-4o-latest", Asked("qwen")),
        ("o1", Asked("qwen", thinking=True)),
        ("o3", Asked("qwen", thinking=True)),
        ("o4-mini", Asked("qwen-flash", thinking=True)),
        ("o3-deep-research", Asked("qwen", research=True)),
        ("o4-mini-deep-research-2025-06-26", Asked("qwen", research=True)),
        ("claude-sonnet-4-5-20250929", Asked("qwen")),
        ("claude-opus-4-1[1m]", Asked("qwen")),
        ("claude-3-5-haiku-20241022", Asked("qwen-flash")),
        ("us.anthropic.claude-haiku-4-5-v1:0", Asked("qwen-flash")),
        ("claude-3-7-sonnet-thinking", Asked("qwen", thinking=True)),
        ("gemini-2.5-pro", Asked("qwen")),
        ("models/gemini-2.5-flash-lite", Asked("qwen-flash")),
        ("deepseek-chat", Asked("qwen")),
        ("deepseek-reasoner", Asked("qwen", thinking=True)),
        ("DeepSeek-R1-0528", Asked("qwen", thinking=True)),
        ("  gpt-4o  ", Asked("qwen")),
    ],
)
def test_the_template_knows_what_programs_ask_for(name: str, expected: Asked) -> None:
    assert asked(name) == expected
    assert is_known(expected.name, LIVE)


def test_what_the_template_names_is_served_whatever_is_live() -> None:
    for live in (LIVE, BUILT_IN, BUILT_IN[:1]):
        for line in DEFAULTS:
            name = line.pattern.replace("*", "").replace("?", "3")
            assert serves(name, live).startswith("qwen")


# ---- suffixes ----


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("qwen3.7-plus", Asked("qwen3.7-plus")),
        ("qwen3.7-plus-thinking", Asked("qwen3.7-plus", thinking=True)),
        ("qwen3.7-plus-no-thinking", Asked("qwen3.7-plus", thinking=False)),
        ("qwen3.7-plus-fast", Asked("qwen3.7-plus", thinking=False)),
        ("Qwen3.7-Plus-Search", Asked("Qwen3.7-Plus", search=True)),
        ("qwen3.7-plus-deep-research", Asked("qwen3.7-plus", research=True)),
        ("qwen3.7-plus-search-thinking", Asked("qwen3.7-plus", thinking=True, search=True)),
        ("qwen3.7-plus-thinking-search", Asked("qwen3.7-plus", thinking=True, search=True)),
        ("qwen3.7-plus-thinking-fast", Asked("qwen3.7-plus", thinking=False)),
        ("qwen3.7-plus-fast-thinking", Asked("qwen3.7-plus", thinking=True)),
        ("qwen-max-thinking", Asked("qwen-max", thinking=True)),
        ("qwen-thinking[1m]", Asked("qwen", thinking=True)),
        ("qwen3.7-plus[1m]", Asked("qwen3.7-plus")),
        ("qwen3.7-plus[1m]-thinking", Asked("qwen3.7-plus", thinking=True)),
        ("", Asked("")),
        ("-thinking", Asked("-thinking")),
        ("[1m]", Asked("[1m]")),
        ("unheard-of-search", Asked("unheard-of", search=True)),
        ("unheard-of", Asked("unheard-of")),
    ],
)
def test_suffixes_say_how_and_not_who(name: str, expected: Asked) -> None:
    assert asked(name) == expected


def test_a_model_that_is_called_so_is_no_model_with_a_suffix() -> None:
    own = Model("qwen9-max-thinking", "Qwen9")
    assert asked("qwen9-max-thinking", (*LIVE, own)) == Asked("qwen9-max-thinking")
    assert asked("qwen9-max-thinking-search", (*LIVE, own)) == Asked("qwen9-max-thinking", search=True)
    assert asked("qwen3-max-thinking", LIVE) == Asked("qwen3-max", thinking=True)


def test_what_the_service_knows_is_never_looked_up() -> None:
    table = "* = qwen3.8-max\n"
    assert asked("gpt-4", text=table) == Asked("qwen3.8-max")
    for name in ("qwen3.7-plus", "qwen-max", "qwen", "", "QWEN3-CODER"):
        assert asked(name, text=table) == Asked(name)
    assert asked("qwen3.7-plus-search", text=table) == Asked("qwen3.7-plus", search=True)


def test_a_target_may_have_suffixes_and_those_of_the_name_count_more() -> None:
    table = "mine* = qwen3.8-max-thinking-search\nyours = qwen-fast\nexact-thinking = qwen-max\n"
    assert asked("mine", text=table) == Asked("qwen3.8-max", thinking=True, search=True)
    assert asked("mine-fast", text=table) == Asked("qwen3.8-max", thinking=False, search=True)
    assert asked("yours", text=table) == Asked("qwen", thinking=False)
    assert asked("yours-thinking-deep-research", text=table) == Asked("qwen", thinking=True, research=True)
    assert asked("exact-thinking", text=table) == Asked("qwen-max", thinking=True)
    assert asked("exact", text=table) == Asked("exact")


def test_the_first_line_that_fits_counts_and_brackets_are_plain() -> None:
    table = "a*[1m] = qwen-max\na? = qwen-flash\na* = qwen-plus\n"
    assert asked("a-b[1m]", text=table).name == "qwen-max"
    assert asked("ab", text=table).name == "qwen-flash"
    assert asked("abm", text=table).name == "qwen-plus"
    assert asked("ba", text=table).name == "ba"


def test_no_pattern_takes_long() -> None:
    table = f"{'*a' * 45}*b = qwen\n"
    started = time.perf_counter()
    assert asked("a" * 100, text=table) == Asked("a" * 100)
    assert asked("a" * 100_000 + "-thinking" * 10_000, text=table).thinking is None
    assert time.perf_counter() - started < 5


# ---- the file ----


def test_a_template_is_written_and_counts(tmp_path: Path) -> None:
    found = names(tmp_path / "session")
    path = tmp_path / "session" / NAME
    assert path.read_text("utf-8") == TEMPLATE
    assert found.asked("gpt-4o", LIVE) == Asked("qwen")


def test_the_file_is_the_whole_table(tmp_path: Path) -> None:
    found = names(tmp_path, "\ufeff# mine\r\n\r\ngpt-* = qwen3.8-max  # the best\r\n")
    assert found.asked("gpt-4o", LIVE) == Asked("qwen3.8-max")
    assert found.asked("claude-sonnet-4-5", LIVE) == Asked("claude-sonnet-4-5")
    assert names(tmp_path, "# nothing\n").asked("gpt-4o", LIVE) == Asked("gpt-4o")


def test_a_change_is_taken_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = names(tmp_path)
    (tmp_path / NAME).write_text("gpt-4o = qwen-max\n")
    with caplog.at_level(logging.INFO):
        found.look()
        found.look()
    assert found.asked("gpt-4o", LIVE) == Asked("qwen-max")
    assert caplog.messages == [f"{tmp_path.name}/{NAME} was read again: 1 name of models"]


BROKEN = "gpt-4o = qwen-max\nno table at all\n"


def test_a_broken_line_leaves_the_table_as_it_was(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = names(tmp_path, "gpt-4o = qwen-plus\n")
    for text in (BROKEN, BROKEN + "\n"):
        (tmp_path / NAME).write_text(text)
        found.look()
        found.look()
    assert found.asked("gpt-4o", LIVE) == Asked("qwen-plus")
    (message,) = caplog.messages
    assert "line 2 is not of the form NAME = MODEL; the names it had still count" in message


@pytest.mark.parametrize("content", [BROKEN, b"\xff", None], ids=["line", "bytes", "folder"])
def test_at_the_start_the_template_counts_instead(
    content: str | bytes | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if content is None:
        (tmp_path / NAME).mkdir()
    found = names(tmp_path, content)
    assert found.asked("gpt-4o", LIVE) == Asked("qwen")
    (message,) = caplog.messages
    assert "the names of the template count until it can" in message
    found.look()
    assert len(caplog.messages) == 1


@pytest.mark.parametrize(
    "line",
    [
        "gpt-4o",
        "= qwen",
        "gpt-4o =",
        "gpt 4o = qwen",
        "gpt-4o = qwen max",
        "=",
        "x" * 101 + " = qwen",
        "a = " + "q" * 101,
    ],
)
def test_what_is_no_line(line: str) -> None:
    with pytest.raises(ValueError, match=r"^line 3"):
        parse(f"# one\na = b\n{line}\n")


def test_how_many_names_there_may_be() -> None:
    assert len(parse("a = b\n" * 1000)) == 1000
    with pytest.raises(ValueError, match="more than 1000"):
        parse("a = b\n" * 1001)
    assert [counted(parse("a = b\n" * n)) for n in (0, 1, 2)] == [
        "no names of models",
        "1 name of models",
        "2 names of models",
    ]


def test_the_readme_tells_the_template() -> None:
    lines = README.read_text("utf-8").partition("<!-- model-names: ")[2].splitlines()[3:]
    rows = [re.findall(r"`([^`]+)`", row) for row in takewhile(lambda line: line.startswith("|"), lines)]
    told = [(pattern, cells[-1]) for cells in rows for pattern in cells[:-1]]
    assert told == [(line.pattern, line.target) for line in DEFAULTS]
