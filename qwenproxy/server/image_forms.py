"""OpenAI's form for pictures to change: its files are kept, and the rest is what JSON would have said."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from anyio.to_thread import run_sync
from starlette.types import Receive, Scope

from qwenproxy.addresses import file_address
from qwenproxy.caller import Caller
from qwenproxy.dialects.base import Json
from qwenproxy.errors import BadRequest, UnsupportedParameter
from qwenproxy.file_store import MESSAGE, FileStore
from qwenproxy.server.access import caller_of
from qwenproxy.server.forms import FormBounds, Part, read_form
from qwenproxy.server.guard import FORM_TYPE
from qwenproxy.server.relay import Bounds, read_object

IMAGE = "image"
LIST_MARK = "[]"
"""How forms name a list's fields."""


class ImageForm:
    """Reads a request's body, a form or JSON."""

    def __init__(self, forms: FormBounds) -> None:
        self._forms = forms

    async def __call__(self, scope: Scope, receive: Receive, bounds: Bounds) -> Json:
        """What the body says, each file by its address here.

        Raises:
            BadRequest, UnsupportedParameter: a file is not of a picture to change.
            …: what `read_form` and `read_object` raise.
        """
        if not _is_form(scope):
            return await read_object(scope, receive, bounds)
        store: FileStore = scope["app"].state.files
        async with read_form(scope, receive, self._forms, store) as form:
            body: Json = {}
            for name, values in form.fields.items():
                body[name.removesuffix(LIST_MARK)] = _value(name, values)
            pictures = await _kept(store, form.files, caller_of(scope))
        return {**body, "images": [*_listed(body.pop("images", [])), *pictures]}


def _is_form(scope: Scope) -> bool:
    types = [value for name, value in scope["headers"] if name == b"content-type"]
    return bool(types) and types[0].decode("latin-1").partition(";")[0].strip().lower() == FORM_TYPE


def _value(name: str, values: Sequence[str]) -> str | list[str]:
    """Raises: BadRequest."""
    if name.endswith(LIST_MARK):
        return list(values)
    if len(values) > 1 and name != IMAGE:
        raise BadRequest(f"{name} must be given once", param=name)
    return values[0] if len(values) == 1 else list(values)


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


async def _kept(store: FileStore, files: Sequence[Part], caller: Caller) -> list[str]:
    """The files' addresses; nothing is kept where one is not wanted."""
    for part in files:
        name = part.field.removesuffix(LIST_MARK)
        if name != IMAGE:
            raise UnsupportedParameter(f"{name} is not supported here as a file", param=name)
        if not part.incoming.size:
            raise BadRequest(f"{name} is an empty file", param=name)
    addresses = []
    for part in files:
        keep = partial(store.keep, part.incoming, name=part.name, purpose=MESSAGE, caller=caller)
        addresses.append(file_address((await run_sync(keep)).id))
    return addresses
