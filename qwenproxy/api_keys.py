"""The API keys of the people and programs that may call: one a line of `session/Authorization.txt`.

| the file                                     | at the start             | while serving                |
|----------------------------------------------|--------------------------|------------------------------|
| is missing                                   | off; ours gets a template| the keys it had still count  |
| is empty, or holds comments alone            | off                      | off                          |
| cannot be read, is a link or a folder, has a | refused, and never taken | the keys it had still count, |
| line that is no key                          | for "off"                | and the log says so once     |

Who calls is found by SHA-256 digests, all of them compared in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qwenproxy.caller import SCOPES, Caller, Scope
from qwenproxy.watched_file import WatchedFile

NAME: Final = "Authorization.txt"
LONGEST_KEY: Final = 1024
GOOD_CHARACTERS: Final = 16
"""A shorter key can be guessed."""
NAME_CHARACTERS: Final = 60
MOST_A_MINUTE: Final = 100_000
MOST_AT_ONCE: Final = 10_000
MARK_DIGITS: Final = 16
"""Of a digest, in what is stored: no key can be made out of them."""
HASHED: Final = "sha256:"
DIGEST: Final = re.compile(r"[0-9a-f]{64}")
OPTIONS: Final = ("name", "scopes", "rpm", "concurrency")
LINE_END: Final = re.compile(r"\r\n|\r|\n")
REMARK: Final = re.compile(r"(?:^|\s)#.*")
EMPTY: Final = hashlib.sha256(b"").digest()
TEMPLATE: Final = """\
# Who may call this proxy: one API key a line. This file is read again whenever it changes.
#
# While there is no key here, every program of this computer may call, and nobody else: to listen on
# another address than 127.0.0.1 a key is needed.
#
# A good key is long and random. Each of these makes one:
#
#   openssl rand -hex 32
#   python3 -c "import secrets; print('sk-' + secrets.token_urlsafe(32))"
#
# A line is the key, or sha256: and its digest (printf %s KEY | sha256sum), so that the key itself is
# nowhere on this computer. Then there may be
#
#   name=phone              what you call it
#   scopes=chat,files       what it may do: chat, files, accounts; all three when none is named
#   rpm=60                  requests a minute
#   concurrency=4           requests at once
#
# For instance, without the # in front:
#
#   <your long random key>  name=phone  scopes=chat  rpm=60
#
# Clients send it as "Authorization: Bearer KEY", or as "x-api-key: KEY" or "x-goog-api-key: KEY".
# What one key made, its chats for instance, does not exist for another.
"""


@dataclass(frozen=True, slots=True)
class ApiKey:
    digest: bytes
    """SHA-256 of the key."""
    caller: Caller
    rpm: int | None = None
    concurrency: int | None = None
    short: bool = False
    """So short that it can be guessed; of a digest nobody knows."""


def digest_of(key: str) -> bytes:
    """Header values are Latin-1."""
    return hashlib.sha256(key.encode("latin-1", "replace")).digest()


def parse(text: str) -> tuple[ApiKey, ...]:
    """The keys of a file, each once.

    Raises:
        ValueError: a line is no key; the message names its number and never what it holds.
    """
    found: dict[bytes, ApiKey] = {}
    for number, line in enumerate(LINE_END.split(text), 1):
        words = REMARK.sub("", line).split()
        if words:
            try:
                key = _key(words[0], words[1:])
            except ValueError as exc:
                raise ValueError(f"line {number}: {exc}") from None
            found.setdefault(key.digest, key)
    return tuple(found.values())


def _key(word: str, more: Sequence[str]) -> ApiKey:
    """Raises: ValueError."""
    if word.partition("=")[0] in OPTIONS:
        raise ValueError("the key comes first, then its options")
    options = _options(more)
    digest = _digest(word)
    caller = Caller(
        mark="key_" + digest.hex()[:MARK_DIGITS],
        name=_name(options.get("name", "")),
        scopes=_scopes(options["scopes"]) if "scopes" in options else SCOPES,
    )
    return ApiKey(
        digest,
        caller,
        rpm=_count("rpm", options, MOST_A_MINUTE),
        concurrency=_count("concurrency", options, MOST_AT_ONCE),
        short=not _is_hashed(word) and len(word) < GOOD_CHARACTERS,
    )


def _is_hashed(word: str) -> bool:
    return word.lower().startswith(HASHED)


def _digest(word: str) -> bytes:
    if _is_hashed(word):
        text = word[len(HASHED) :].lower()
        if not DIGEST.fullmatch(text):
            raise ValueError(f"{HASHED} is followed by the 64 hexadecimal digits of a SHA-256 digest")
        digest = bytes.fromhex(text)
        if digest == EMPTY:
            raise ValueError("this is the digest of nothing; use printf %s KEY | sha256sum")
        return digest
    if not word.isascii() or not word.isprintable():
        raise ValueError("a key has letters, digits and signs of plain ASCII only")
    if len(word) > LONGEST_KEY:
        raise ValueError(f"a key has {LONGEST_KEY} characters at most")
    return digest_of(word)


def _options(words: Sequence[str]) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        # What was meant as a part of the key must not be repeated here.
        if name not in OPTIONS or not equals:
            raise ValueError(f"after the key there may only be {', '.join(f'{each}=' for each in OPTIONS)}")
        if not value:
            raise ValueError(f"{name}= has no value")
        if name in found:
            raise ValueError(f"{name}= is there twice")
        found[name] = value
    return found


def _name(text: str) -> str:
    if len(text) > NAME_CHARACTERS or not text.isprintable():
        raise ValueError(f"name= has {NAME_CHARACTERS} characters at most")
    return text


def _scopes(text: str) -> frozenset[Scope]:
    named = [word.strip() for word in text.split(",")]
    if not set(named) <= SCOPES:
        raise ValueError("scopes= takes chat, files and accounts, with commas and no spaces between them")
    return frozenset(scope for scope in SCOPES if scope in named)


def _count(name: str, options: Mapping[str, str], most: int) -> int | None:
    if name not in options:
        return None
    text = options[name]
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= most):
        raise ValueError(f"{name}= takes a number from 1 to {most}")
    return int(text)


def key_files(session_dir: Path) -> tuple[Path, ...]:
    """Where keys may stand: our file, and the older proxy's beside the session folder or the start script."""
    older = (place / "src" / NAME for place in (session_dir.absolute().parent, Path.cwd()))
    return tuple(dict.fromkeys([session_dir.absolute() / NAME, *older]))


class KeyRing:
    """The keys of several files together; the same key in two of them counts once, as the first has it."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Touches nothing. The first of `paths` is ours: it gets the template, and is kept private."""
        self._files = [
            WatchedFile[tuple[ApiKey, ...]](
                path,
                parse,
                (),
                what="the API keys",
                template=TEMPLATE,
                kept="the keys it had still count",
                counted=lambda keys: counted(len(keys)),
            )
            for path in paths
        ]
        self.run_key: Final = secrets.token_urlsafe(32)
        """Of this run, for this computer's own commands: whoever may read the session folder."""
        self._own = ApiKey(digest_of(self.run_key), Caller(name="this computer"))
        self._keys: tuple[ApiKey, ...] = ()

    @property
    def on(self) -> bool:
        return bool(self._keys)

    @property
    def keys(self) -> tuple[ApiKey, ...]:
        return self._keys

    def open(self) -> None:
        """Writes the template where our file is missing, and reads.

        Raises:
            SettingsError: a file cannot be read, or a line of it is no key.
        """
        if self._files:
            self._files[0].make()
        self.read()

    def read(self) -> None:
        """Raises: SettingsError, as `open`."""
        for file in self._files:
            file.read()
        self._unite()

    def look(self) -> None:
        """Takes up what changed, once it was seen twice alike: somebody may still be writing."""
        for file in self._files:
            file.look()
        self._unite()

    def find(self, candidates: Iterable[str]) -> ApiKey | None:
        """The key that one of `candidates` is. Takes as long for a wrong one as for any."""
        found: ApiKey | None = None
        for candidate in candidates:
            digest = digest_of(candidate)
            for key in (*self._keys, self._own):
                if hmac.compare_digest(digest, key.digest) and found is None:
                    found = key
        return found

    def open_to_others(self) -> Iterator[str]:
        """The names of the files that other users of this computer may read."""
        for file in self._files:
            if file.value and file.open_to_others():
                yield file.name

    def _unite(self) -> None:
        united: dict[bytes, ApiKey] = {}
        for key in (key for file in self._files for key in file.value):
            united.setdefault(key.digest, key)
        self._keys = tuple(united.values())


def counted(number: int) -> str:
    """So many keys, in words."""
    return "no API key" if not number else f"{number} API key{'' if number == 1 else 's'}"
