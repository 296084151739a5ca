"""Questions in the terminal. Esc and Ctrl-C answer each of them with None: one step back."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import questionary
from prompt_toolkit import PromptSession
from prompt_toolkit.application import Application, create_app_session
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent, merge_key_bindings
from prompt_toolkit.keys import Keys
from prompt_toolkit.output.plain_text import PlainTextOutput
from prompt_toolkit.renderer import CPR_Support
from questionary.prompts.common import InquirerControl

from qwenproxy.keys import ESC_S

STYLE: Final = questionary.Style(
    [("question", "bold"), ("pointer", "bold ansicyan"), ("highlighted", "bold ansicyan"), ("answer", "bold")]
)
POINTER: Final = ">"
"""In every code page, unlike questionary's own."""
HOW: Final = "(its key or the arrows, then Enter; Esc {esc})"
MOST_KEYS: Final = len(InquirerControl.SHORTCUT_KEYS)
"""A longer list is for the arrows alone."""


@dataclass(frozen=True, slots=True)
class Option:
    key: str
    """One character; "" where only the arrows reach it."""
    title: str
    value: str


async def pick(
    question: str, options: Sequence[Option], default: str = "", *, esc: str = "goes back", drawn: bool = True
) -> str | None:
    """The value of the option chosen; not `drawn`, by a line: some terminals move no cursor."""
    if not drawn:
        return await _pick_by_line(question, options, default)
    choices = [_choice(option) for option in options]
    asked = questionary.select(
        question,
        choices,
        default=default or None,
        qmark="",
        pointer=POINTER,
        style=STYLE,
        instruction=HOW.format(esc=esc),
        use_shortcuts=len(options) <= MOST_KEYS,
        use_jk_keys=False,
        use_emacs_keys=False,
        erase_when_done=True,
    )
    for control in asked.application.layout.find_all_controls():
        if isinstance(control, InquirerControl):
            # Or the default would stay marked wherever the arrows go.
            control.selected_options.clear()
    answer: str | None = await _ask(asked.application)
    return answer


def _choice(option: Option) -> questionary.Choice:
    choice = questionary.Choice(option.title, option.value, shortcut_key=option.key or False)
    if not option.key:
        choice.shortcut_key = None
        choice.auto_shortcut = False
    return choice


async def yes(question: str, *, drawn: bool = True) -> bool:
    """Whether the answer is yes; Enter alone is no."""
    if not drawn:
        return (await line(f"{question} (y/N)", drawn=False) or "").strip().lower() in {"y", "yes"}
    # With Enter, or that of "y, Enter" would be the answer to what is asked next.
    asked = questionary.confirm(
        question, default=False, qmark="", style=STYLE, auto_enter=False, erase_when_done=True
    )
    return await _ask(asked.application) is True


async def line(question: str, default: str = "", *, drawn: bool = True) -> str | None:
    """What is written until Enter."""
    if not drawn:
        try:
            # Plain, or even this would be told to hide and show its cursor.
            with create_app_session(output=PlainTextOutput(sys.stdout)):
                session: PromptSession[str] = PromptSession()
                return await session.prompt_async(f"{question} ", default=default, handle_sigint=False)
        except (EOFError, KeyboardInterrupt):
            return None
    asked = questionary.text(question, default=default, qmark="", style=STYLE, erase_when_done=True)
    answer: str | None = await _ask(asked.application)
    return answer


async def _ask(app: Application[Any]) -> Any:
    back = KeyBindings()

    @back.add(Keys.Escape, eager=True)
    @back.add(Keys.ControlC, eager=True)
    @back.add(Keys.ControlD, eager=True)
    def _(event: KeyPressEvent) -> None:
        event.app.exit(result=None)

    app.key_bindings = merge_key_bindings([app.key_bindings or KeyBindings(), back])
    app.ttimeoutlen = ESC_S
    # Where the cursor stands need not be asked for, and a slow line would show the terminal's late answer.
    app.renderer.cpr_support = CPR_Support.NOT_SUPPORTED
    try:
        # A signal means what it means everywhere: the command line turns it into an end of the whole program.
        return await app.run_async(set_exception_handler=False, handle_sigint=False)
    except EOFError:
        return None


async def _pick_by_line(question: str, options: Sequence[Option], default: str) -> str | None:
    by_key = {option.key or str(number): option for number, option in enumerate(options, 1)}
    listed = "".join(f"\n {key} - {option.title}" for key, option in by_key.items())
    usual = next((key for key, option in by_key.items() if option.value == default), "")
    while True:
        asked = f"{question}{listed}\n{f'[{usual}] ' if usual else ''}>"
        answer = await line(asked, drawn=False)
        if answer is None:
            return None
        key = answer.strip().lower() or usual
        if key in by_key:
            return by_key[key].value
