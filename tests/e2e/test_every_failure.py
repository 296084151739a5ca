"""Every way the stand-in can fail, through the signed-in page: each is its own error, and no text is lost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest

from qwenproxy.browser.chromium import Chromium
from qwenproxy.browser.contexts import BrowserTransport
from qwenproxy.chat import Delta, Finished, Media, Source, Started, Text, Thinking
from qwenproxy.clock import SystemClock
from qwenproxy.errors import (
    BadRequest,
    ChatBusy,
    ChatGone,
    ContentBlocked,
    ContextTooLong,
    EmptyAnswer,
    LimitReached,
    NeedsHuman,
    ParallelLimited,
    ProtocolChanged,
    QwenProxyError,
    Severed,
    TokenRejected,
    UnknownModel,
    UpstreamError,
)
from qwenproxy.qwen.client import QwenClient, Turn
from qwenproxy.qwen.models import BUILT_IN
from qwenproxy.settings import Settings
from tests.serve import Standin

pytestmark = [pytest.mark.anyio, pytest.mark.browser, pytest.mark.timeout(120)]

SENTENCE = "Every piece of this sentence arrives, in order: äöü 漢字 🙂 and done."
SAY = f'{{{{standin: say text="{SENTENCE}" rate=1000}}}}'

REFUSED: dict[str, tuple[type[QwenProxyError], float | None]] = {
    "rate_limited num=3": (LimitReached, 3 * 3600),
    "rate_limited num=1000": (LimitReached, 48 * 3600),
    "rate_limited_legacy num=7": (LimitReached, 7 * 3600),
    "rate_limited_stream num=4": (LimitReached, 4 * 3600),
    "rate_limited_line num=7": (LimitReached, 7 * 3600),
    "rate_limited_text": (LimitReached, None),
    "parallel_limited": (ParallelLimited, 10),
    "parallel_limited_stream": (ParallelLimited, 10),
    "quota_limited": (LimitReached, None),
    "quota_limited_stream": (LimitReached, None),
    "quota_limit": (LimitReached, 120),
    "too_many_requests": (LimitReached, 120),
    "too_many_requests_stream": (LimitReached, 120),
    "allocated_quota": (LimitReached, 120),
    "rate_increased": (LimitReached, 120),
    "http_429 retry_after=7": (LimitReached, 7),
    "busy": (ChatBusy, None),
    "busy_code": (ChatBusy, None),
    "chat_gone": (ChatGone, None),
    "chat_gone_text": (ChatGone, None),
    "parent_gone": (ChatGone, None),
    "parent_gone_text": (ChatGone, None),
    "model_gone": (UnknownModel, None),
    "bad_request": (UpstreamError, None),
    "internal_error_json": (UpstreamError, None),
    "internal_error": (UpstreamError, None),
    "error_text": (UpstreamError, None),
    "error_status": (UpstreamError, None),
    "unknown_code": (UpstreamError, None),
    "unknown_error_stream": (UpstreamError, None),
    "gateway status=500": (UpstreamError, None),
    "gateway status=503": (UpstreamError, None),
    "gateway status=504": (UpstreamError, None),
    "validation": (BadRequest, None),
    "validation_list": (BadRequest, None),
    "invalid_input": (BadRequest, None),
    "invalid_input_json": (BadRequest, None),
    "too_many_messages": (BadRequest, None),
    "context_too_long": (ContextTooLong, None),
    "inspected": (ContentBlocked, None),
    "inspected_input": (ContentBlocked, None),
    "inspected_output": (ContentBlocked, None),
    "inspected_image": (ContentBlocked, None),
    "punish": (NeedsHuman, None),
    "waf": (NeedsHuman, None),
    "waf status=403": (NeedsHuman, None),
    "waf status=405": (NeedsHuman, None),
    "html": (ProtocolChanged, None),
    "not_json": (ProtocolChanged, None),
    "giant_line bytes=2000000": (ProtocolChanged, None),
    "empty": (EmptyAnswer, None),
    "only_created": (EmptyAnswer, None),
    "severed": (Severed, None),
    "eof": (Severed, None),
}

WHOLE = (
    "keep_open",
    "done_marker",
    "done_text",
    "keep_alive form=info silence_s=0.2",
    "keep_alive form=phase silence_s=0.2",
    "keep_alive form=comment silence_s=0.2",
    "second_response",
    "two_created",
    "cumulative",
    "novelties",
    "broken_frame",
    "odd_cuts",
    "line_ends form=crlf",
    "line_ends form=cr",
    "line_ends form=single",
    "intermediate silence_s=0.3",
)


@asynccontextmanager
async def road(standin: Standin, chromium: Chromium) -> AsyncIterator[QwenClient]:
    settings = Settings(upstream=standin.site, auth_upstream=standin.auth)
    state = standin.storage_state("one@example.com")
    async with BrowserTransport(settings, lambda account_id: state, chromium=chromium) as transport:
        yield QwenClient(transport, settings, SystemClock())


async def answer(client: QwenClient, prompt: str, *, thinking: bool | None = None) -> list[Delta]:
    model = BUILT_IN[0]
    chat_id = await client.new_chat("a", model)
    async with aclosing(client.stream("a", chat_id, Turn(model, prompt, thinking))) as deltas:
        return [delta async for delta in deltas]


def said(deltas: list[Delta]) -> str:
    assert isinstance(deltas[0], Started)
    assert isinstance(deltas[-1], Finished)
    return "".join(delta.text for delta in deltas if isinstance(delta, Text))


async def failure(client: QwenClient, prompt: str) -> QwenProxyError | None:
    try:
        await answer(client, prompt)
    except QwenProxyError as exc:
        return exc
    return None


async def test_every_refusal_is_its_own_error(standin: Standin, chromium: Chromium) -> None:
    async with road(standin, chromium) as client:
        wrong = []
        for mark, (kind, wait_s) in REFUSED.items():
            error = await failure(client, f"{SAY} {{{{standin: {mark}}}}}")
            if (
                type(error) is not kind
                or (wait_s and getattr(error, "wait_s", 0) != wait_s)
                or "<" in str(error)
            ):
                wrong.append((mark, repr(error), getattr(error, "wait_s", None)))
        assert wrong == []


async def test_a_verification_over_a_hanging_call_is_told(standin: Standin, chromium: Chromium) -> None:
    async with road(standin, chromium) as client:
        assert isinstance(await failure(client, f"{SAY} {{{{standin: dialog}}}}"), NeedsHuman)
        await standin.until(lambda state: state["open"] == 0)


async def test_every_odd_stream_gives_its_whole_text(standin: Standin, chromium: Chromium) -> None:
    async with road(standin, chromium) as client:
        wrong = []
        for mark in WHOLE:
            text = said(await answer(client, f"{SAY} {{{{standin: {mark}}}}}"))
            if text != SENTENCE:
                wrong.append((mark, text))
        assert wrong == []


async def test_a_session_that_cannot_be_renewed_is_gone(standin: Standin, chromium: Chromium) -> None:
    async with road(standin, chromium) as client:
        assert said(await answer(client, SAY)) == SENTENCE
        standin.expire()
        assert said(await answer(client, SAY)) == SENTENCE
        standin.revoke()
        with pytest.raises(TokenRejected):
            await answer(client, SAY)


@pytest.mark.parametrize("standin", ["B"], indirect=True)
async def test_the_older_era_works_by_its_cookie(standin: Standin, chromium: Chromium) -> None:
    async with road(standin, chromium) as client:
        assert said(await answer(client, SAY)) == SENTENCE
        assert (await client.who("a"))["email"] == "one@example.com"
        standin.revoke()
        with pytest.raises(TokenRejected):
            await answer(client, SAY)


async def test_thinking_searching_and_drawing_come_as_what_they_are(
    standin: Standin, chromium: Chromium
) -> None:
    async with road(standin, chromium) as client:
        thought = await answer(client, SAY, thinking=True)
        assert said(thought) == SENTENCE
        assert any(isinstance(delta, Thinking) for delta in thought)
        searched = await answer(client, "{{standin: search silence_s=0.2}}")
        assert [source.number for source in searched if isinstance(source, Source)]
        assert said(searched)
        drawn = await answer(client, "{{standin: image silence_s=0.2}}")
        assert [media for media in drawn if isinstance(media, Media)]
