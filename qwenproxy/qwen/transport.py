"""The road as the protocol client needs it: one call said to the service from an account's own page."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True, slots=True)
class Fetch:
    """One HTTP call. The road adds the headers of protocol §2 and the page's current token."""

    method: Literal["GET", "POST", "DELETE"]
    path: str
    """With its query, e.g. `/api/v2/chats/new`."""
    body: str | None = None
    """JSON text."""
    host: Literal["site", "auth"] = "site"
    """`UPSTREAM` or `AUTH_UPSTREAM` (protocol §1.3)."""
    stream: bool = False
    """A completion: adds `X-Accel-Buffering: no`."""


class Fetched(Protocol):
    """An answer whose head has come. Its body is read once."""

    @property
    def status(self) -> int:
        """The wire status, which says little: see `x-actual-status-code` (protocol §0.2)."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Names in lower case."""

    @property
    def credential(self) -> str:
        """Tells one token from another without telling the token: "" when the page had none."""

    def pieces(self) -> AsyncGenerator[bytes]:
        """The body's bytes as they come, undecoded.

        Raises:
            Severed: the connection broke before the body's end.
            BrowserLost: page, browser or driver died.
        """


class Transport(Protocol):
    def fetch(self, account_id: str, call: Fetch) -> AbstractAsyncContextManager[Fetched]:
        """Entered when the head has come; leaving it early aborts the call in the page.

        Raises:
            TokenRejected: the account's page shows the site's sign-in.
            Unreachable: the page could not reach the service.
            BrowserMissing: there is no Chromium on this computer.
            NeedsHuman: the site shows a verification dialog over the hanging call (protocol §6.3).
            BrowserLost: page, browser or driver died, or did not answer in time.
        """

    async def renew(self, account_id: str, rejected: str) -> bool:
        """Lets the site's own page write a new token (protocol §1.3, era C); one at a time per account.

        `rejected` is the `credential` of the refused call. True when the page now holds another token.
        """
