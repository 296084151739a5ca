"""Responses beyond the request that asked for them: kept, fetched, listed, deleted, made in the background.

| route | answer |
|---|---|
| `POST /responses` | `begin` stands in the relay's way: an answer is kept before its end is told |
| `GET /responses/{id}` | the body that was answered, word for word |
| `DELETE /responses/{id}` | it is kept no longer, nor what was said |
| `GET /responses/{id}/input_items` | what was asked, newest first |
| `POST /responses/{id}/cancel` | ends one in the background |

An answer is kept with its request's caller, for whom alone it exists. One that was under way when the proxy
ended is `failed`: nothing that runs knows it any more.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any, Final

from anyio.to_thread import run_sync
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope

from qwenproxy.caller import Caller
from qwenproxy.chat import ChatRequest, Delta, Finished, fold
from qwenproxy.dialects.base import Json
from qwenproxy.dialects.openai_chat import envelope
from qwenproxy.dialects.openai_responses import ID_PREFIX, OpenAIResponses, ended_early
from qwenproxy.errors import (
    BadRequest,
    Cancelled,
    QwenProxyError,
    ShuttingDown,
    StoreError,
    UnknownResponse,
    UnsupportedParameter,
)
from qwenproxy.response_store import ResponseStore, StoredResponse
from qwenproxy.server.access import KeyRoute, caller_of
from qwenproxy.server.admission import INTERNAL, Admission
from qwenproxy.server.background import STOPPED, Background, Run
from qwenproxy.server.relay import Bounds, Conversations, Stream, read_object
from qwenproxy.server.responses import error_response, json_response

log = logging.getLogger(__name__)

PATH: Final = f"/responses/{ID_PREFIX}{{response_id}}"
"""With the prefix, so that what is not here of OpenAI's, such as /responses/compact, is a clear 404."""
MOST_LISTED: Final = 100
LISTED: Final = 20
"""Items in a list where its client does not say how many."""
ID_BYTES: Final = 16


class ResponseRoutes:
    def __init__(self, dialect: OpenAIResponses, admission: Admission, background: Background) -> None:
        self._dialect = dialect
        self._admission = admission
        self._background = background

    def routes(self, prefixes: Sequence[str]) -> list[KeyRoute]:
        return [
            KeyRoute(prefix + path, partial(self._answer, work), methods=[method], needs="chat")
            for prefix in prefixes
            for method, path, work in (
                ("GET", PATH, self._get),
                ("DELETE", PATH, self._delete),
                ("GET", f"{PATH}/input_items", self._list),
                ("POST", f"{PATH}/cancel", self._cancel),
            )
        ]

    # ---- in the relay's way ----

    async def read(self, scope: Scope, receive: Receive, bounds: Bounds) -> Json:
        """The request's object, with the stored items in it that it only refers to."""
        body = await read_object(scope, receive, bounds)
        items = body.get("input")
        if isinstance(items, list) and any(_reference(item) for item in items):
            found = [await self._referred(item, scope) for item in items]
            body = {**body, "input": [item for item in found if item is not None]}
        return body

    async def begin(
        self, scope: Scope, request: ChatRequest, stream: Stream, passing: bool
    ) -> tuple[ChatRequest, Stream] | Json:
        """`passing`: the request's sign-ins are gone with it, so nothing of it can go on without it."""
        if not request.remember:
            return request, stream
        store, caller = _store(scope), caller_of(scope)
        if not request.echo["settled"]["background"]:
            return request, partial(self._kept, stream=stream, store=store, caller=caller)
        if not store.keeps:
            raise BadRequest(
                "background needs answers to be kept: QWENPROXY_REMEMBER_ANSWERS is 0", param="background"
            )
        if passing:
            raise BadRequest("background needs an account of the proxy's own", param="background")
        request = replace(request, answer_id=secrets.token_hex(ID_BYTES))
        body = self._dialect.without_answer(request, "queued")
        items = self._dialect.items(request, request.answer_id)
        await run_sync(store.put, StoredResponse(body, items), caller)
        ended = partial(self._keep_run, request, store, caller)
        try:
            run = self._background.start(request.answer_id, stream(request), ended)
        except QwenProxyError:
            await run_sync(store.delete, body["id"], caller)
            raise
        return (request, lambda _: run.follow()) if request.stream else body

    async def _kept(
        self, request: ChatRequest, *, stream: Stream, store: ResponseStore, caller: Caller
    ) -> AsyncGenerator[Delta]:
        """The stream; its answer is kept before its end is told, a failed one where its id was told."""
        deltas: list[Delta] = []
        try:
            async with aclosing(stream(request)) as given:
                async for delta in given:
                    deltas.append(delta)
                    if isinstance(delta, Finished):
                        body = self._dialect.reply(request, [fold(deltas)])
                        await self._keep(request, body, store, caller)
                    yield delta
        except QwenProxyError as exc:
            if deltas and request.stream:
                await self._keep(request, self._dialect.failed(request, deltas, exc), store, caller)
            raise

    async def _keep_run(
        self,
        request: ChatRequest,
        store: ResponseStore,
        caller: Caller,
        deltas: Sequence[Delta],
        error: QwenProxyError | None,
    ) -> None:
        if error is None:
            body = self._dialect.reply(request, [fold(deltas)])
        elif isinstance(error, Cancelled):
            body = self._dialect.without_answer(request, "cancelled")
        else:
            body = self._dialect.failed(request, deltas, error)
        await self._keep(request, body, store, caller)

    async def _keep(self, request: ChatRequest, body: Json, store: ResponseStore, caller: Caller) -> None:
        """Best effort: an answer is not worth less because it cannot be fetched again."""
        items = self._dialect.items(request, str(body["id"]).removeprefix(ID_PREFIX))
        try:
            await run_sync(store.put, StoredResponse(body, items), caller)
        except StoreError as exc:
            log.warning("a response cannot be kept: %s", exc)

    async def _referred(self, item: Any, scope: Scope) -> Any:
        """The item that is meant; as it is where it is none of ours, None where nobody misses it."""
        reference = _reference(item)
        if not reference:
            return item
        kind, _, rest = reference.partition("_")
        stored = await run_sync(_store(scope).get, ID_PREFIX + rest.partition("_")[0], caller_of(scope))
        items = [*stored.body["output"], *stored.items] if stored is not None else []
        found = next((each for each in items if each.get("id") == reference), None)
        return None if found is None and kind == "rs" else found or item

    # ---- the other routes ----

    async def _answer(self, work: Callable[[Request], Awaitable[Json]], request: Request) -> Response:
        try:
            with self._admission.enter():
                return json_response(await work(request))
        except QwenProxyError as exc:
            return error_response(exc, envelope(exc))
        except Exception:
            log.exception("a request about responses broke")
            error = QwenProxyError(INTERNAL)
            return error_response(error, envelope(error))

    async def _get(self, request: Request) -> Json:
        if request.query_params.get("stream", "false").lower() not in {"false", "0"}:
            raise UnsupportedParameter(
                "a stream cannot be taken up again; fetch the response without stream", param="stream"
            )
        return (await self._found(request)).body

    async def _delete(self, request: Request) -> Json:
        response_id, run = self._named(request)
        store, caller = _store(request.scope), caller_of(request.scope)
        if await run_sync(store.get, response_id, caller) is None:
            raise _unknown(response_id)
        if run is not None:
            await run.stop(Cancelled("the response was deleted"))
        conversations: Conversations = request.app.state.conversations
        await conversations.forget(response_id.removeprefix(ID_PREFIX), caller)
        await run_sync(store.delete, response_id, caller)
        return {"id": response_id, "object": "response", "deleted": True}

    async def _list(self, request: Request) -> Json:
        query = request.query_params
        order = query.get("order", "desc")
        if order not in {"asc", "desc"}:
            raise BadRequest("order must be asc or desc", param="order")
        limit = query.get("limit", str(LISTED))
        if not (limit.isascii() and limit.isdecimal() and 0 < int(limit[:9]) <= MOST_LISTED):
            raise BadRequest(f"limit must be a whole number from 1 to {MOST_LISTED}", param="limit")
        items = list((await self._found(request)).items)
        if order == "desc":
            items.reverse()
        ids = [item["id"] for item in items]
        after = query.get("after")
        if after is not None and after not in ids:
            raise BadRequest("after must be the id of one of these items", param="after")
        first = ids.index(after) + 1 if after is not None else 0
        page = items[first : first + int(limit)]
        return {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else "",
            "last_id": page[-1]["id"] if page else "",
            "has_more": first + len(page) < len(items),
        }

    async def _cancel(self, request: Request) -> Json:
        response = await self._found(request)
        if not response.body["background"]:
            raise BadRequest("only a response in the background can be cancelled", param="response_id")
        _, run = self._named(request)
        if run is None or response.ended:
            return response.body
        await run.stop(Cancelled("the response was cancelled"))
        return (await self._found(request)).body

    def _named(self, request: Request) -> tuple[str, Run | None]:
        answer_id: str = request.path_params["response_id"]
        return ID_PREFIX + answer_id, self._background.find(answer_id)

    async def _found(self, request: Request) -> StoredResponse:
        """Raises: UnknownResponse, StoreError."""
        # Looked for first: whoever ends meanwhile has been kept by the time the store is read.
        response_id, run = self._named(request)
        store, caller = _store(request.scope), caller_of(request.scope)
        response = await run_sync(store.get, response_id, caller)
        if response is None:
            raise _unknown(response_id)
        if response.ended:
            return response
        if run is None:
            error = ShuttingDown(STOPPED)
            return replace(response, body=ended_early(response.body, error))
        status = "in_progress" if run.started else "queued"
        return replace(response, body={**response.body, "status": status})


def _store(scope: Scope) -> ResponseStore:
    store: ResponseStore = scope["app"].state.responses
    return store


def _reference(item: Any) -> str:
    """The id that an item refers to; "" where it is no reference."""
    if not isinstance(item, dict) or item.get("type") not in {"item_reference", None} or "role" in item:
        return ""
    return item["id"] if isinstance(item.get("id"), str) else ""


def _unknown(response_id: str) -> UnknownResponse:
    return UnknownResponse(f"there is no response with the id {response_id[:80]} here", param="response_id")
