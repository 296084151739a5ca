"""A deep research as one answer: both of its turns in one chat (protocol §10.5).

The service answers the first message with a question, within seconds, and only the second with the report,
within some ten minutes. Nobody is there to be asked: the question is shown as a thought, and answered here.

`Started` is the second turn's, for who continues the conversation follows the report. Until then nothing has
been given out, so that all of it may be tried again elsewhere.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Final

import anyio

from qwenproxy.chat import Delta, Finished, Started, Text, Thinking, Usage
from qwenproxy.errors import ChatBusy, EmptyAnswer
from qwenproxy.qwen.client import Turn
from qwenproxy.qwen.payload import CLARIFYING, RESEARCH
from qwenproxy.words import Upstream

REPLY: Final = (
    "I have no preferences beyond what I wrote: choose scope, focus and depth by your own best judgement, "
    "ask nothing more, and do the research now. Write the report in the language of my first message."
)
BUSY_PAUSES_S: Final = (2.0, 4.0, 8.0)
"""A chat is busy for 2 to 6 s after an answer (protocol §13)."""


async def research(upstream: Upstream, account_id: str, chat_id: str, turn: Turn) -> AsyncGenerator[Delta]:
    """The question and the progress as `Thinking`, the report as `Text`, the pages it cites as `Source`.

    `turn` says what is to be found out; the chat is of type `RESEARCH`, and fresh. Links to the report's
    files end the text. The usage is that of both turns.

    Raises:
        EmptyAnswer: the research ended without a report.
    """
    opening = replace(turn, chat_type=RESEARCH, sub_chat_type=CLARIFYING)
    asked, response_id, usage = await _question(upstream, account_id, chat_id, opening)
    following = replace(opening, sub_chat_type=RESEARCH, prompt=REPLY, parent_id=response_id, attachments=())
    reported = False
    async with aclosing(_when_settled(upstream, account_id, chat_id, following)) as deltas:
        async for delta in deltas:
            if isinstance(delta, Finished):
                if not reported:
                    raise EmptyAnswer("the research ended without a report")
                yield replace(delta, usage=_both(usage, delta.usage))
                return
            yield delta
            reported = reported or isinstance(delta, Text)
            if isinstance(delta, Started) and asked:
                yield Thinking(f"{asked}\n\n(Answered: {REPLY})\n\n")


async def _question(upstream: Upstream, account_id: str, chat_id: str, turn: Turn) -> tuple[str, str, Usage]:
    """What the service asks, the id of that answer, and its usage."""
    thought: list[str] = []
    asked: list[str] = []
    response_id, usage = "", Usage()
    async with aclosing(upstream.stream(account_id, chat_id, turn)) as deltas:
        async for delta in deltas:
            match delta:
                case Started():
                    response_id = delta.response_id
                case Thinking():
                    thought.append(delta.text)
                case Text():
                    asked.append(delta.text)
                case Finished():
                    usage = delta.usage
                case _:
                    pass
    return "\n\n".join(filter(None, ("".join(thought), "".join(asked).strip()))), response_id, usage


async def _when_settled(
    upstream: Upstream, account_id: str, chat_id: str, turn: Turn
) -> AsyncGenerator[Delta]:
    """The answer, asked for again while the chat is still busy with the one before."""
    given = False
    for pause_s in (*BUSY_PAUSES_S, None):
        try:
            async with aclosing(upstream.stream(account_id, chat_id, turn)) as deltas:
                async for delta in deltas:
                    given = True
                    yield delta
            return
        except ChatBusy:
            if given or pause_s is None:
                raise
        await anyio.sleep(pause_s)


def _both(one: Usage, other: Usage) -> Usage:
    """Nothing where one of the two was not told: then all of it is to be estimated."""
    if not (one.input_tokens and other.input_tokens):
        return Usage()
    return Usage(
        one.input_tokens + other.input_tokens,
        one.output_tokens + other.output_tokens,
        one.reasoning_tokens + other.reasoning_tokens,
    )
