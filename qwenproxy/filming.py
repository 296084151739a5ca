"""Videos: asked for once, then looked after until they are there, whoever waits for them.

A video stays with the account that makes it: only that account can say what has become of it. It goes on when
the client leaves and when the proxy restarts (`video_tasks.py`); its upstream chat stays until it has ended.
Asking costs nothing and takes no slot, but is not done more often than the site's own page does it
(protocol §10.2).
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

import anyio
from anyio.to_thread import run_sync

from qwenproxy.caller import Caller
from qwenproxy.chat import Attachment, Filming, UpstreamChat
from qwenproxy.clock import Clock
from qwenproxy.errands import Errands
from qwenproxy.errors import FileGone, QwenProxyError, StoreError, UnknownTask, UnsupportedFile
from qwenproxy.janitor import Janitor
from qwenproxy.qwen.files import HostedFile
from qwenproxy.qwen.models import Model, resolve
from qwenproxy.qwen.video_service import VideoState
from qwenproxy.video_tasks import VideoTask, VideoTasks

log = logging.getLogger(__name__)

KIND: Final = "t2v"
"""In the pool, where a model stands for words: one limit for both kinds of video (protocol §10.2)."""
LONGEST_S: Final = 24 * 3600
"""A video that the service has not finished by then will not come; 343 s was the longest seen."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How often is asked; tests turn it."""

    ask_s: float = 3.0
    """At least, between two questions about one video."""
    video_s: float = 10.0
    framed_s: float = 3.0
    """While somebody waits; the second with a first picture, as the site's own page (protocol §10.2)."""
    unwatched_s: float = 30.0
    """While nobody does."""
    failures: int = 10
    framed_failures: int = 5
    """So many in a row end a wait; the task goes on."""


class Accounts(Protocol):
    def knows(self, account_id: str) -> bool: ...

    def why_away(self, account_id: str, model: str = "") -> str: ...


class Service(Protocol):
    async def new_chat(self, account_id: str, model: Model) -> str: ...

    async def submit(
        self,
        account_id: str,
        chat_id: str,
        model: Model,
        prompt: str,
        size: str,
        frames: Sequence[HostedFile | Attachment] = (),
    ) -> str: ...

    async def ask(self, account_id: str, task_id: str) -> VideoState: ...


class Attachments(Protocol):
    async def file(self, url: str, caller: Caller, param: str) -> Attachment:
        """What an address in a request names, taken in."""


class Hosting(Protocol):
    async def hosted(
        self, account_id: str, attachments: Sequence[HostedFile | Attachment]
    ) -> tuple[HostedFile | Attachment, ...]: ...

    async def forget(self, account_id: str, attachments: Sequence[HostedFile | Attachment]) -> bool: ...


class Studio(Protocol):
    async def finished(self, task: VideoTask, url: str) -> VideoTask:
        """The task with its video on the shelf, and what the video says of itself."""


@dataclass(slots=True, eq=False)
class _Watch:
    """What is known of a video beside its row, while the proxy runs."""

    task: VideoTask
    lock: anyio.Lock = field(default_factory=anyio.Lock)
    asked_s: float = float("-inf")
    failures: int = 0


class Videos:
    def __init__(
        self,
        tasks: VideoTasks,
        accounts: Accounts,
        errands: Errands,
        service: Service,
        janitor: Janitor,
        attachments: Attachments,
        hosting: Hosting,
        studio: Studio,
        models: Callable[[], Awaitable[Sequence[Model]]],
        clock: Clock,
        *,
        model: str,
        pace: Pace | None = None,
    ) -> None:
        """`model` stands in the requests; the service itself chooses what films."""
        self._tasks = tasks
        self._accounts = accounts
        self._errands = errands
        self._service = service
        self._janitor = janitor
        self._attachments = attachments
        self._hosting = hosting
        self._studio = studio
        self._models = models
        self._clock = clock
        self._model = model
        self._pace = pace or Pace()
        self._watched: dict[str, _Watch] = {}
        """Those that run."""

    async def start(self, filming: Filming, caller: Caller) -> VideoTask:
        """Has some account make the video; comes back as soon as the service has taken it.

        Raises:
            UnsupportedFile: the first picture is none.
            AllWaiting: every account has made its videos of the day; or what else the accounts raise.
        """
        frames: tuple[Attachment, ...] = ()
        if filming.frame:
            frames = (await self._attachments.file(filming.frame, caller, "image_url"),)
        model = resolve(self._model, await self._models(), default=self._model, unknown="default")

        def make(account_id: str) -> AsyncGenerator[VideoTask]:
            return self._make(account_id, model, filming, frames, caller)

        async with aclosing(self._errands.run(KIND, make)) as made:
            (task,) = [task async for task in made]
        return task

    async def status(self, task_id: str, caller: Caller) -> VideoTask:
        """What has become of it, as far as its account can be asked.

        Raises:
            UnknownTask: there is none, or it is another key's.
        """
        watch = self._watched.get(task_id)
        task = watch.task if watch is not None else await run_sync(self._tasks.get, task_id)
        if task is None or not caller.sees(task.owner):
            raise UnknownTask("there is no such video task", param="id")
        return task if task.ended else await self._looked_after(self._watch(task))

    async def wait(self, task: VideoTask, longest_s: float) -> VideoTask:
        """The task once it has ended; as it is, when it has not by then or cannot be asked about."""
        watch = self._watch(task)
        every_s = self._pace.framed_s if task.frame else self._pace.video_s
        most = self._pace.framed_failures if task.frame else self._pace.failures
        with anyio.move_on_after(longest_s):
            while not watch.task.ended:
                await anyio.sleep(every_s)
                await self._looked_after(watch)
                if watch.failures >= most:
                    break
        return watch.task

    async def follow(self) -> None:
        """Looks after the videos that nobody waits for, also those of an earlier run, until cancelled."""
        while True:
            try:
                for task in await run_sync(self._tasks.open_ones):
                    await self._looked_after(self._watch(task), self._pace.unwatched_s)
            except StoreError as exc:
                log.warning("the videos under way cannot be looked up: %s", exc)
            except Exception:  # a bug here must not end the answers under way
                log.exception("looking after the videos failed")
            await anyio.sleep(self._pace.unwatched_s)

    def chats(self) -> frozenset[UpstreamChat]:
        """The upstream chats of videos under way. Blocks. Raises: StoreError."""
        return frozenset(UpstreamChat(task.chat_id, task.account_id) for task in self._tasks.open_ones())

    async def _make(
        self,
        account_id: str,
        model: Model,
        filming: Filming,
        frames: Sequence[Attachment],
        caller: Caller,
    ) -> AsyncGenerator[VideoTask]:
        hosted = await self._hosted(account_id, frames)
        chat = await self._janitor.fresh(account_id, lambda: self._service.new_chat(account_id, model))
        # Held, for deleting the chat might end the video.
        self._janitor.hold(chat)
        try:
            # A video that was paid for must not be lost because the client leaves in this moment.
            with anyio.CancelScope(shield=True):
                try:
                    upstream_id = await self._submitted(chat, model, filming, hosted)
                except FileGone:
                    # It was thought to be there: it is brought there again, once.
                    if not await self._hosting.forget(account_id, frames):
                        raise
                    hosted = await self._hosted(account_id, frames)
                    upstream_id = await self._submitted(chat, model, filming, hosted)
                task = self._new(chat, upstream_id, frames, caller)
                await self._keep(self._watch(task), task)
        except BaseException:
            self._janitor.done(chat)
            raise
        yield task

    async def _hosted(
        self, account_id: str, frames: Sequence[Attachment]
    ) -> tuple[HostedFile | Attachment, ...]:
        """Raises: UnsupportedFile."""
        hosted = await self._hosting.hosted(account_id, frames)
        if any(isinstance(frame, HostedFile) and frame.kind != "image" for frame in hosted):
            raise UnsupportedFile("a video can only begin with a picture", param="image_url")
        return hosted

    async def _submitted(
        self,
        chat: UpstreamChat,
        model: Model,
        filming: Filming,
        hosted: Sequence[HostedFile | Attachment],
    ) -> str:
        return await self._service.submit(
            chat.account_id, chat.id, model, filming.prompt, filming.size, hosted
        )

    def _new(
        self, chat: UpstreamChat, upstream_id: str, frames: Sequence[Attachment], caller: Caller
    ) -> VideoTask:
        return VideoTask(
            f"video_{secrets.token_hex(12)}",
            caller.mark,
            int(self._clock.now().timestamp()),
            account_id=chat.account_id,
            chat_id=chat.id,
            upstream_id=upstream_id,
            frame=frames[0].url if frames else "",
        )

    def _watch(self, task: VideoTask) -> _Watch:
        return self._watched.setdefault(task.id, _Watch(task))

    async def _looked_after(self, watch: _Watch, least_s: float | None = None) -> VideoTask:
        """The task as it is now; its account is asked when the last time is `least_s` ago."""
        least_s = self._pace.ask_s if least_s is None else least_s
        async with watch.lock:
            due = self._clock.monotonic_s() - watch.asked_s >= least_s
            if watch.task.ended or not due:
                return watch.task
            watch.asked_s = self._clock.monotonic_s()
            task = await self._asked(watch)
            if task.ended:
                with anyio.CancelScope(shield=True):
                    await self._keep(watch, task)
                self._watched.pop(task.id, None)
                self._janitor.done(UpstreamChat(task.chat_id, task.account_id))
            return task

    async def _asked(self, watch: _Watch) -> VideoTask:
        task = watch.task
        if not self._accounts.knows(task.account_id):
            return replace(task, state="failed", why="the account that made it has been deleted")
        if self._clock.now().timestamp() - task.created > LONGEST_S:
            return replace(task, state="failed", why="the service has not finished it in a day")
        if self._accounts.why_away(task.account_id) in ("account_invalid", "account_paused"):
            return task
        try:
            said = await self._service.ask(task.account_id, task.upstream_id)
            watch.failures = 0
            if said.state == "done":
                return await self._studio.finished(task, said.url)
        except QwenProxyError as exc:
            watch.failures += 1
            log.info("account %s could not be asked about its video: %s", task.account_id, exc)
            return task
        return task if said.state == "running" else replace(task, state="failed", why=_reason(said))

    async def _keep(self, watch: _Watch, task: VideoTask) -> None:
        """A disk that fails costs what a restart would find, not the video."""
        watch.task = task
        try:
            await run_sync(self._tasks.put, task)
        except StoreError as exc:
            log.error("a video cannot be written down, a restart would forget it: %s", exc)


def _reason(said: VideoState) -> str:
    words = " ".join(said.why.split())[:200]
    return f"the service made no video: {words}" if words else "the service made no video"
