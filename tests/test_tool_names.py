from __future__ import annotations

import pytest

from qwenproxy.tool_names import NoSuchName, known_by, meant

NAMES = ("read_file", "Read", "mcp__fs__write-file", "github.search", "TodoWrite")


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("read_file", "read_file"),
        (" read_file\n", "read_file"),
        ("READ_FILE", "read_file"),
        ("read-file", "read_file"),
        ("read file", "read_file"),
        ("readFile", "read_file"),
        ("read", "Read"),
        ("functions.read_file", "read_file"),
        ("functions:Read", "Read"),
        ("default_api.todo_write", "TodoWrite"),
        ("write_file", "mcp__fs__write-file"),
        ("fs__write-file", "mcp__fs__write-file"),
        ("functions.write_file", "mcp__fs__write-file"),
        ("search", "github.search"),
        ("mcp__local__read_file", "read_file"),
        ("server/read_file", "read_file"),
    ],
)
def test_a_name_is_found_as_models_write_it(written: str, name: str) -> None:
    assert meant(written, NAMES) == name


@pytest.mark.parametrize(
    ("written", "names", "why"),
    [
        ("read_fiel", NAMES, 'there is no tool "read_fiel"; the nearest are "read_file"'),
        ("zzz", ("a", "b"), 'there is no tool "zzz"; the nearest are "a", "b"'),
        ("", ("a",), 'there is no tool ""; the nearest are "a"'),
        ("file", NAMES, 'there is no tool "file"'),
        ("mcp__gitlab__search", ("github.search",), "there is no tool"),
        ("search", ("web.search", "mcp__docs__search"), 'may be any of "web.search", "mcp__docs__search"'),
        ("READ", ("Read", "read"), 'may be any of "Read", "read"'),
        ("mcp__", NAMES, "there is no tool"),
        ("x" * 100_000, NAMES, "there is no tool"),
    ],
)
def test_nothing_is_guessed(written: str, names: tuple[str, ...], why: str) -> None:
    with pytest.raises(NoSuchName) as caught:
        meant(written, names)
    assert why in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_name_in_full_wins() -> None:
    assert meant("read", ("Read", "read", "fs.read")) == "read"
    assert meant("functions.read", ("functions.read", "read")) == "functions.read"


def test_what_is_known_is_what_one_of_them_may_mean() -> None:
    knows = known_by(("read_file", "mcp__files__write"))
    for name in ("read_file", "Read-File", "functions.read_file", "write", "mcp__other__read_file"):
        assert knows(name), name
    for name in ("", "read", "file", "files", "mcp"):
        assert not knows(name), name
