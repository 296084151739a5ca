"""One request's life: the model that serves, an account, a chat, the answer, and what is tried again.

A request with a `home` goes to the account and the chat that know its conversation, with its last message
alone; where that cannot be, it is told whole to a fresh chat like any other. Its chats are not tidied away.

What is attached is brought to the account that answers before it is asked (`hosting.py`). What is too large
for one message goes there as a text document, and a pointer to it is said instead (protocol §13).

Where the client has tools or wants JSON, what the model writes is read (`answering.py`), and the model may be
asked once more; each such round is a request of its own here, to a fresh chat.

Retries, at most three a round, happen only while it has given out nothing, and repeat it whole:

| failure | what follows |
|---|---|
| chat busy | the same chat again |
| chat or parent missing, the service unreachable | one fresh chat |
| empty answer, internal error, 5xx, broken off, browser lost | one fresh chat, then one other account |
| a file that could not be uploaded | once more, then one other account |
| the account has lost an attached file | it is uploaded there again, once |
| limit, human check, sign-in gone | another account; this one is out of turn |
| the account was deleted meanwhile | another account |
| anything the caller did, a time-out, an unknown protocol | none |
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from typing import Protocol

import anyio
from anyio.to_thread import run_sync

from qwenproxy.accounts.pool import OUT_OF_TURN, AllTried, Pool
from qwenproxy.activity import Activity, InFlight
from qwenproxy.answering import Answering
from qwenproxy.chat import ChatRequest, Delta, UpstreamChat
from qwenproxy.clock import Clock
from qwenproxy.errors import (
    AccountGone,
    BrowserLost,
    ChatBusy,
    ChatGone,
    ContextTooLong,
    EmptyAnswer,
    FileGone,
    LimitReached,
    NeedsHuman,
    NoAccount,
    ParallelLimited,
    QwenProxyError,
    Severed,
    Unreachable,
    UploadFailed,
    UpstreamError,
)
from qwenproxy.file_store import StoredFile
from qwenproxy.janitor import Janitor
from qwenproxy.limits import Cutter, Meter
from qwenproxy.model_names import Asked
from qwenproxy.qwen.client import Turn
from qwenproxy.qwen.models import BUILT_IN, Model, resolve
from qwenproxy.qwen.payload import RESEARCH
from qwenproxy.research import research
from qwenproxy.settings import Settings
from qwenproxy.words import Drawn, Hosting, Upstream, Words, model_of

log = logging.getLogger(__name__)

RETRY_PAUSES_S = (1.0, 2.0, 4.0)
MODELS_LIVE_S = 3600.0
MODELS_BUILT_IN_S = 60.0
"""How long the built-in list stands in before the service is asked again."""

ANOTHER_S = 1.0
"""After a refusal of one account while others may still answer."""

TWIN_GONE = "twin_gone"
RETRIED = "retried"
"""Why a conversation is told anew in a fresh chat, beside what `Pool.why_away` says."""

HEADLESS_HINT = "a visible window is asked less often: QWENPROXY_HEADLESS=0 gives one"


class Names(Protocol):
    def asked(self, name: str, live: Sequence[Model]) -> Asked:
        """What a client's name of a model asks for."""


class Counting(Protocol):
    def count(self, text: str) -> int:
        """The tokens of a text, at once."""

    def surely(self, text: str) -> int:
        """The same, as well as can be. Blocks."""


class Gateway:
    def __init__(
        self,
        pool: Pool,
        upstream: Upstream,
        hosting: Hosting,
        janitor: Janitor,
        settings: Settings,
        clock: Clock,
        *,
        activity: Activity,
        not_ready: Callable[[tuple[str, ...]], str | None],
        jitter: Callable[[], float],
        names: Names,
        tokens: Counting,
    ) -> None:
        self._names = names
        self._tokens = tokens
        self._pool = pool
        self._activity = activity
        self._upstream = upstream
        self._hosting = hosting
        self._janitor = janitor
        self._settings = settings
        self._clock = clock
        self._not_ready = not_ready
        self._jitter = jitter
        self._models: tuple[Model, ...] = ()
        self._models_until_s = 0.0
        self._models_lock = anyio.Lock()

    @property
    def pool(self) -> Pool:
        return self._pool

    @property
    def activity(self) -> Activity:
        return self._activity

    async def models(self) -> tuple[Model, ...]:
        """The live list, an hour old at most; the built-in one while the service cannot be asked."""
        async with self._models_lock:
            if self._clock.monotonic_s() >= self._models_until_s:
                self._models, lasts_s = await self._ask_models()
                self._models_until_s = self._clock.monotonic_s() + lasts_s
            return self._models

    async def model(self, name: str) -> Model:
        """The model that serves a client's name. Raises: UnknownModel."""
        live = await self.models()
        asked = self._names.asked(name, live)
        return resolve(asked.name, live, default=self._settings.default_model, unknown="refuse")

    def readiness(self) -> str | None:
        """None when a request can be answered now, else why not."""
        return self._not_ready(self._pool.usable())

    def ended(self) -> NoAccount | None:
        """Why no request can be answered again until somebody signs in; None while there is hope."""
        return self._pool.ended()

    async def stream(
        self, request: ChatRequest, *, only: frozenset[str] | None = None
    ) -> AsyncGenerator[Delta]:
        """The deltas that answer `request`. Closing it ends the answer on the service too.

        `only` are the guests that may answer it, instead of the accounts.
        """
        with self._activity.begin(request.model) as inside:
            words = await self._words(request, await self._hosting.files(request.messages))
            inside.model = words.model.id
            if request.counts_input:
                words.input_tokens = await run_sync(self._tokens.surely, words.turn.prompt)
            cutter = Cutter(request.stop, request.max_tokens)
            meter = Meter(words.turn.prompt, self._tokens.count)
            answers = self._rounds if Answering.wanted(request) else self._round
            async with aclosing(answers(words, inside, only)) as deltas:
                async for delta in deltas:
                    for piece in cutter.push(delta):
                        yield meter.read(piece)
                    if cutter.done:
                        break
            if only is None:
                self._activity.serve(inside.account_id)

    async def count_tokens(self, request: ChatRequest) -> int:
        """The tokens of what `request` would say, without its files; an estimate.

        Raises:
            UnknownModel, UnsupportedParameter: as `stream` does.
        """
        bare = tuple(replace(message, attachments=()) for message in request.messages)
        words = await self._words(replace(request, messages=bare), {})
        return await run_sync(self._tokens.surely, words.turn.prompt)

    async def _words(self, request: ChatRequest, files: Mapping[str, StoredFile]) -> Words:
        """What the request says, to the model that serves it. Raises: as `Words` and `model_of` do."""
        live = await self.models()
        asked = self._names.asked(request.model, live)
        request = replace(
            request,
            model=asked.name,
            thinking=asked.thinking if request.thinking is None else request.thinking,
            search=request.search or asked.search,
            research=request.research or asked.research,
        )
        settings = self._settings
        return Words(
            request,
            model_of(request, live, settings),
            live,
            files,
            _nonce(),
            most=settings.max_files,
            most_tools_bytes=settings.max_tools_bytes,
        )

    async def _rounds(
        self, words: Words, inside: InFlight, only: frozenset[str] | None
    ) -> AsyncGenerator[Delta]:
        """An answer that is read, in as many rounds as it takes."""
        answering = Answering(words.request, _call_id)
        more = True
        while more:
            async with aclosing(self._round(words, inside, only)) as deltas:
                async for delta in deltas:
                    for piece in answering.push(delta):
                        yield piece
            more = answering.again is not None
            if answering.again is not None:
                words = words.again(answering.again, inside.account_id, _nonce())

    async def _round(
        self, words: Words, inside: InFlight, only: frozenset[str] | None
    ) -> AsyncGenerator[Delta]:
        async with (
            AsyncExitStack() as documents,
            aclosing(self._on_accounts(words, documents, inside, only)) as deltas,
        ):
            async for delta in deltas:
                yield delta

    async def _on_accounts(
        self,
        words: Words,
        documents: AsyncExitStack,
        inside: InFlight,
        only: frozenset[str] | None,
    ) -> AsyncGenerator[Delta]:
        await self._fit(words, documents)
        attempts = _Attempts(self._jitter)
        model = words.limited_as
        prefer = words.account_id or await self._hosting.holder(words.turn.attachments)
        tried: frozenset[str] = frozenset()
        last: QwenProxyError | None = None
        before = inside.pieces
        while True:
            try:
                async with self._pool.lease(
                    tried, model=model, request=inside, only=only, prefer=prefer
                ) as account_id:
                    inside.account_id = account_id
                    async with aclosing(self._on_account(inside, words, documents, attempts)) as deltas:
                        async for delta in deltas:
                            self._note(inside)
                            yield delta
                    return
            except AllTried:
                if last is None:
                    raise
                raise last from None
            except QwenProxyError as exc:
                last = self._told(exc, inside.account_id)
                again = inside.pieces == before and inside.account_id and attempts.elsewhere(last)
                others = self._pool.has_other_than(tried | {inside.account_id}, model, only)
                if not again:
                    if others and isinstance(last, OUT_OF_TURN):
                        last.retry_after_s = ANOTHER_S
                    raise last from None
            if not isinstance(last, OUT_OF_TURN):
                tried |= {inside.account_id}
            inside.account_id = ""
            if others:
                await attempts.pause()

    def _note(self, inside: InFlight) -> None:
        inside.pieces += 1
        if inside.started_s is None:
            inside.started_s = self._clock.monotonic_s()

    def _told(self, exc: QwenProxyError, account_id: str) -> QwenProxyError:
        """A failure as a person can use it, kept for the owner to see."""
        if account_id and isinstance(exc, BrowserLost) and not self._pool.knows(account_id):
            exc = AccountGone("the account that answered was deleted")
        if isinstance(exc, NeedsHuman):
            exc = self._needs_human(exc, account_id)
        self._activity.fail(exc, account_id)
        return exc

    def _needs_human(self, exc: NeedsHuman, account_id: str) -> NeedsHuman:
        message = str(exc)
        if account_id:
            message = (
                f"{message}: open the window of account {account_id} from the menu or with "
                f"`accounts pass-check {account_id}`"
            )
        if not self._settings.headless:
            return NeedsHuman(message)
        if account_id:
            log.warning("account %s was asked for a human check; %s", account_id, HEADLESS_HINT)
        return NeedsHuman(f"{message}; {HEADLESS_HINT}")

    async def _on_account(
        self, inside: InFlight, words: Words, documents: AsyncExitStack, attempts: _Attempts
    ) -> AsyncGenerator[Delta]:
        account_id = inside.account_id
        if words.twin is not None and words.twin.account_id != account_id:
            why = self._pool.why_away(words.twin.account_id, words.limited_as) or RETRIED
            await self._leave(words, documents, why)
        chat = words.twin
        given = False
        try:
            while True:
                try:
                    turn = await self._hosted(inside, words)
                    if chat is None:
                        chat = await self._fresh(account_id, turn)
                    async with aclosing(self._said(account_id, chat, turn)) as deltas:
                        async for delta in deltas:
                            given = True
                            yield words.placed(delta, account_id)
                    return
                except QwenProxyError as exc:
                    if given or not self._pool.knows(account_id) or not attempts.here(exc):
                        raise
                    if isinstance(exc, FileGone):
                        await self._forget(exc, account_id, words)
                    elif not isinstance(exc, ChatBusy | UploadFailed):
                        left, chat = chat, None
                        await self._give_up(left, exc, words, documents)
                await attempts.pause()
        finally:
            if chat is not None and not (given and words.stays):
                self._let_go(chat, words)

    async def _hosted(self, inside: InFlight, words: Words) -> Turn:
        """What is to be said, with its files as the account has them.

        Raises:
            UploadFailed: also for what passes, for it is no reason to leave the chat.
        """
        turn = words.turn
        if not turn.attachments:
            return turn

        def show(step: str) -> None:
            inside.step = step

        try:
            files = await self._hosting.hosted(inside.account_id, turn.attachments, show)
            return replace(turn, attachments=files)
        except UploadFailed:
            raise
        except UpstreamError as exc:
            if _passing(exc) or isinstance(exc, Unreachable):
                raise UploadFailed(f"a file could not be uploaded: {exc}") from exc
            raise
        finally:
            show("")

    async def _fresh(self, account_id: str, turn: Turn) -> UpstreamChat:
        return await self._janitor.fresh(
            account_id, lambda: self._upstream.new_chat(account_id, turn.model, turn.chat_type)
        )

    async def _said(self, account_id: str, chat: UpstreamChat, turn: Turn) -> AsyncGenerator[Delta]:
        drawn = Drawn(due=turn.draws)
        try:
            async with aclosing(self._asked(account_id, chat.id, turn)) as deltas:
                async for delta in deltas:
                    drawn.check(delta)
                    yield delta
        except LimitReached as exc:
            if (turn.draws or turn.chat_type == RESEARCH) and not isinstance(exc, ParallelLimited):
                exc.model_only = True  # they are counted apart (protocol §13): the account talks on
            raise

    def _asked(self, account_id: str, chat_id: str, turn: Turn) -> AsyncGenerator[Delta]:
        if turn.chat_type == RESEARCH:
            return research(self._upstream, account_id, chat_id, turn)
        return self._upstream.stream(account_id, chat_id, turn)

    async def _forget(self, exc: FileGone, account_id: str, words: Words) -> None:
        """The account does not have a file that we thought it has: it is uploaded there again."""
        if not await self._hosting.forget(account_id, words.turn.attachments):
            raise exc

    async def _give_up(
        self, chat: UpstreamChat | None, exc: QwenProxyError, words: Words, documents: AsyncExitStack
    ) -> None:
        """The next try is in a fresh chat."""
        if chat is not None:
            self._let_go(chat, words)
            await self._leave(words, documents, TWIN_GONE if isinstance(exc, ChatGone) else RETRIED)

    async def _leave(self, words: Words, documents: AsyncExitStack, why: str) -> None:
        """Raises: ContextTooLong, UnsupportedFile. What is told at once may be more than a message."""
        if words.leave(why):
            await self._fit(words, documents)

    async def _fit(self, words: Words, documents: AsyncExitStack) -> None:
        """What is too large for a message is said as a document from here on. Raises: ContextTooLong."""
        if self._upstream.fits(words.turn):
            return
        if words.draws or not words.model.document:
            raise ContextTooLong(
                f"the prompt is too long: {words.model.id} gets "
                f"{self._settings.max_prompt_bytes} bytes at most (QWENPROXY_MAX_PROMPT_BYTES)",
                param="messages",
            )
        words.point_to(await documents.enter_async_context(self._hosting.document(words.turn.prompt)))

    def _let_go(self, chat: UpstreamChat, words: Words) -> None:
        """A conversation's twin is its owner's affair."""
        if chat != words.twin:
            self._janitor.done(chat)

    async def _ask_models(self) -> tuple[tuple[Model, ...], float]:
        for account_id in self._pool.usable()[:1]:
            try:
                return await self._upstream.models(account_id), MODELS_LIVE_S
            except QwenProxyError as exc:
                log.warning("the model list could not be read, the built-in one stands in: %s", exc)
        return BUILT_IN, MODELS_BUILT_IN_S


class _Attempts:
    """What one request may still try."""

    def __init__(self, jitter: Callable[[], float]) -> None:
        self._jitter = jitter
        self._pauses_s = list(RETRY_PAUSES_S)
        self._fresh_chat = True
        self._other_account = True
        self._upload_again = True

    def here(self, exc: QwenProxyError) -> bool:
        """Whether to try again on the same account."""
        if not self._pauses_s:
            return False
        if isinstance(exc, ChatBusy):
            return True
        if self._upload_again and isinstance(exc, FileGone):
            self._upload_again = False
            return True
        if self._fresh_chat and (_passing(exc) or isinstance(exc, ChatGone | Unreachable)):
            self._fresh_chat = False
            return True
        return False

    def elsewhere(self, exc: QwenProxyError) -> bool:
        """Whether to try again on another account."""
        if not self._pauses_s:
            return False
        if isinstance(exc, OUT_OF_TURN):
            return True
        if self._other_account and _passing(exc):
            self._other_account = False
            return True
        return False

    async def pause(self) -> None:
        """Waits before the next try, longer each time, a quarter either way at random."""
        await anyio.sleep(self._pauses_s.pop(0) * (0.75 + self._jitter() / 2))


def _nonce() -> str:
    return secrets.token_hex(6)


def _call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def _passing(exc: QwenProxyError) -> bool:
    """Failures that the next chat may not have."""
    return isinstance(exc, EmptyAnswer | Severed | BrowserLost | UploadFailed) or type(exc) is UpstreamError
