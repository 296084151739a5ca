"""The stand-in's model as an agent: which words of a script it says, and when."""

from __future__ import annotations

import re

import pytest

from qwenproxy.standin import agent
from qwenproxy.standin.marks import Switch, split_marks
from tests.serve import Standin
from tests.standin.visitor import Visitor, parsed, text_of

SCRIPT = agent.parsed(
    """What it shows.
needs: write_file read_file
needs: list_files
=== 0 results
I will write.
<tool_call>{"name": "first", "path": "{{file}}"}</tool_call>
=== 0 results, if <tool_call>
<tool_call>{"name": "second", "path": "{{file}}"}</tool_call>
=== 0 results
<tool_call>{"name": "third", "other": "{{unknown}}"}</tool_call>
=== 2 results

Done: {{file}}

"""
)
ASKS = "You have <tool_call>."
HOLES = {"file": "/tmp/a.py"}
MARK = "{{standin: agent script=trained_form file=/tmp/a.py rate=2000}}"
TOOLS = "You have the tool write_file."


def said(since: str, prompt: str = ASKS) -> str:
    return agent.said_next(SCRIPT, prompt, since, HOLES)


def test_a_script_is_words_and_when_they_come() -> None:
    assert SCRIPT.needs == ("write_file", "read_file", "list_files")
    assert [(each.results, each.only_if) for each in SCRIPT.tries] == [
        (0, ""),
        (0, "<tool_call>"),
        (0, ""),
        (2, ""),
    ]


def test_holes_are_filled_from_the_mark_and_stay_where_it_has_nothing() -> None:
    assert said("Do it") == 'I will write.\n<tool_call>{"name": "first", "path": "/tmp/a.py"}</tool_call>'
    third = agent.said_next(SCRIPT, "no markup", f"Do it\n{said('')}", HOLES)
    assert third == '<tool_call>{"name": "third", "other": "{{unknown}}"}</tool_call>'


def test_tries_come_one_after_the_other_once_the_model_has_seen_them() -> None:
    first = said("Do it")
    call = first.splitlines()[1]
    second = said(f"Do it\n{call}\nThat cannot be used.")
    third = said(f"Do it\n{first}\n{second}\nThat cannot be used.")
    assert ['"second"' in second, '"third"' in third] == [True, True]
    assert said(f"{first}\n{second}\n{third}") == third


def test_a_try_may_count_only_where_the_prompt_has_its_words() -> None:
    assert '"third"' in said(f"Do it\n{said('')}", prompt="write ```json")


def test_results_move_the_play_on_and_what_came_before_them_counts_no_more() -> None:
    first = said("Do it")
    assert said(f"{first}\n<tool_response>\none\n</tool_response>") == first
    both = f"{first}\n<tool_response>\none\n</tool_response>\n<tool_response>\ntwo\n</tool_response>"
    assert said(both) == "Done: /tmp/a.py"
    assert said(f"{both}\n<tool_response>\nthree\n</tool_response>") == "Done: /tmp/a.py"
    assert said("I read of <tool_response> in a book") == first


def test_the_same_words_twice_are_two_tries() -> None:
    script = agent.parsed("=== 0 results\nsame\n=== 0 results\nsame\n=== 0 results\nlast\n")
    told = [agent.said_next(script, "", "same " * times, {}) for times in range(4)]
    assert told == ["same", "same", "last", "last"]


def test_a_script_may_begin_only_after_results() -> None:
    script = agent.parsed("=== 1 result\nlate\n")
    assert agent.said_next(script, "", "nothing yet", {}) == ""
    assert agent.said_next(script, "", "<tool_response>", {}) == "late"


@pytest.mark.parametrize("name", agent.names())
def test_every_script_can_be_played(name: str) -> None:
    text = (agent.SCRIPTS / f"{name}.txt").read_text("utf-8")
    script = agent.parsed(text)
    assert script.tries
    assert all(each.text for each in script.tries)
    assert "=== " not in "".join(each.text for each in script.tries), "a heading that is none"
    assert min(each.results for each in script.tries) == 0
    asked = f"{' '.join(script.needs)} {{{{standin: agent script={name} file=/tmp/a.py}}}} Do it"
    switch = split_marks(asked)[1][0]
    told = agent.words(switch, asked, [])
    assert told
    assert not re.search(r"\{\{file\}\}", told)


def test_an_unknown_script_is_told_with_the_known_ones() -> None:
    told = agent.words(Switch("agent", {"script": "../agent"}), "Hello", [])
    assert "no script '../agent'" in told
    assert "trained_form" in told


def test_the_model_acts(standin: Standin) -> None:
    with Visitor(standin) as visitor:
        answer = text_of(visitor.frames(f"{TOOLS} {MARK} Write it."))
        assert answer.startswith('I will write the file.\n<tool_call>\n{"name": "write_file", "arguments": ')
        assert '"/tmp/a.py"' in answer
        told = f"{TOOLS} {MARK} Write it.\n{answer}\n<tool_response>\nok\n</tool_response>\nGo on."
        assert text_of(visitor.frames(told)) == "The file is written."


def test_it_thinks_before_it_acts_when_it_is_asked_to(standin: Standin) -> None:
    standin.options(pieces_per_s=2000)
    with Visitor(standin) as visitor:
        frames = visitor.frames(f"{TOOLS} {MARK} Write it.", thinking_enabled=True)
    assert "thinking_summary" in str(frames)
    assert text_of(frames).startswith("I will write the file.")


def test_only_the_last_mark_counts(standin: Standin) -> None:
    with Visitor(standin) as visitor:
        old = f"{TOOLS} {MARK} Write it.\n<tool_response>\nok\n</tool_response>\nWritten."
        assert text_of(visitor.frames(f"{old}\n{MARK} Again.")).startswith("I will write the file.")
        assert text_of(visitor.frames(f"{old}\n{{{{standin: say text=No}}}}")) == "No"


def test_who_asks_for_a_title_gets_a_short_answer(standin: Standin) -> None:
    with Visitor(standin) as visitor:
        assert text_of(visitor.frames(f'Make a title of "{MARK} Write it."')) == agent.BESIDE


def test_a_result_may_come_alone_into_the_chat_where_it_was_asked_for(standin: Standin) -> None:
    with Visitor(standin) as visitor:
        chat = visitor.new_chat()
        frames = visitor.frames(f"{TOOLS} {MARK.replace('trained_form', 'imagined_response')} Do it.", chat)
        assert "<tool_response>" in text_of(frames)
        standin.options(settle_s=0)
        parent = frames[0]["response.created"]["response_id"]
        alone = "<tool_response>\nok\n</tool_response>"
        answer = visitor.ask(alone, chat, parent=parent)
        assert text_of(parsed(answer.text)) == "The file is written."


def test_a_chat_that_said_something_else_since_is_no_play_any_more(standin: Standin) -> None:
    with Visitor(standin) as visitor:
        chat, parent, frames = visitor.new_chat(), None, []
        standin.options(settle_s=0)
        for prompt in (f"{TOOLS} {MARK} Write it.", "{{standin: say text=No rate=2000}}", "Hello you."):
            frames = parsed(visitor.ask(prompt, chat, parent=parent).text)
            parent = frames[0]["response.created"]["response_id"]
        assert '"Hello you."' in text_of(frames)
