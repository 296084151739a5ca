"""A text file that a person writes, followed while the proxy runs.

| the file       | at the start                        | while serving                             |
|----------------|-------------------------------------|-------------------------------------------|
| is missing     | the template is written, and counts | what it said before counts                |
| cannot be used | an error, and never taken for empty | what it said before counts; it is logged  |
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, Generic, TypeVar

from qwenproxy import store
from qwenproxy.errors import SessionDamaged
from qwenproxy.settings import SettingsError

log = logging.getLogger(__name__)

LARGEST_BYTES: Final = 1024 * 1024

T = TypeVar("T")


class WatchedFile(Generic[T]):
    def __init__(
        self,
        path: Path,
        parse: Callable[[str], T],
        missing: T,
        *,
        what: str,
        template: str,
        kept: str,
        counted: Callable[[T], str],
    ) -> None:
        """Touches nothing. `parse` raises ValueError with a reason that people may read.

        `missing` is what a file that was never there says. `what` it holds, `kept` what becomes of a change
        that cannot be used, and `counted`, what it says in few words, are for messages.
        """
        self._path = path
        self._parse = parse
        self._missing = missing
        self._what = what
        self._template = template
        self._kept = kept
        self._counted = counted
        self.name = f"{path.parent.name}/{path.name}"
        self.value = missing
        """What it said when it could last be used."""
        self._taken: object = None
        """What the file was when its value was taken."""
        self._seen: object = None
        """What it was when it was last looked at."""
        self._complaint = ""

    def make(self) -> None:
        """The template where nothing is; what is there is closed to others."""
        create = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        try:
            store.make_folder(self._path.parent)
            # Never a replace: somebody may be writing it just now.
            with os.fdopen(os.open(self._path, create, store.FILE_MODE), "w", encoding="utf-8") as file:
                file.write(self._template)
        except FileExistsError:
            with suppress(OSError):
                store.make_private(self._path)
        except OSError as exc:
            log.warning("%s cannot be written: %s", self.name, exc.strerror)

    def read(self) -> None:
        """Raises: SettingsError."""
        self._taken = self._seen = self._stamp()
        self.value = self._read()
        self._complaint = ""

    def look(self) -> None:
        """Takes up what changed, once it was seen twice alike: somebody may still be writing."""
        stamp = self._stamp()
        settled, self._seen = stamp == self._seen, stamp
        if stamp == self._taken or not settled:
            return
        self._taken = stamp
        try:
            if stamp is None and self.value != self._missing:
                raise SettingsError(f"{self.name} is gone")
            before, self.value = self.value, self._read()
        except SettingsError as exc:
            if str(exc) != self._complaint:
                self._complaint = str(exc)
                log.error("%s; %s", exc, self._kept)
            return
        self._complaint = ""
        if self.value != before:
            log.info("%s was read again: %s", self.name, self._counted(self.value))

    def open_to_others(self) -> bool:
        """Whether other users of this computer may read it; on Windows that is not known."""
        if os.name == "nt":
            return False
        try:
            return bool(self._path.stat().st_mode & 0o077)
        except OSError:
            return False

    def _stamp(self) -> object:
        """Differs whenever the file changed, its rights included; None when there is none."""
        try:
            found = self._path.lstat()
        except FileNotFoundError:
            return None
        except OSError as exc:
            return exc.errno
        return found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size

    def _read(self) -> T:
        """Raises: SettingsError."""
        try:
            raw = store.read_bytes(self._path)
            if raw is None:
                return self._missing
            if len(raw) > LARGEST_BYTES:
                raise ValueError(f"it is larger than {LARGEST_BYTES >> 20} MiB")
            return self._parse(raw.decode("utf-8-sig"))
        except SessionDamaged as exc:
            cause = exc.__cause__
            why = cause.strerror if isinstance(cause, OSError) else "it is not a plain file"
        except UnicodeDecodeError:
            why = "it is not UTF-8 text"
        except ValueError as exc:
            why = str(exc)
        raise SettingsError(f"{self._what} of {self.name} cannot be used: {why}")
