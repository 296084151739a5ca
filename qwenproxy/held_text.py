"""Text that has come and is not decided yet, for readers that are generators: they yield None for more."""

from __future__ import annotations

import re
from collections.abc import Generator


class HeldText:
    """Only `more` brings new text in, and drops what is before `at`: the places of a reader hold until then,
    its distances from `at` for longer."""

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        """Everything before is decided."""
        self.ended = False
        self._new: list[str] = []
        self._taken: list[str] = []
        self.taken_length = 0

    def add(self, text: str) -> None:
        self._new.append(text)

    def more(self) -> Generator[None, None, bool]:
        """Waits for more; False: there is none."""
        if self.ended:
            return False
        yield
        self.text = "".join((self.text[self.at :], *self._new))
        self.at = 0
        self._new.clear()
        return True

    def ahead(self, pattern: re.Pattern[str], offset: int = 0) -> str:
        """What of the text so far after `at` is of that pattern; "" if nothing is."""
        found = pattern.match(self.text, self.at + offset)
        return found[0] if found else ""

    def take(self, until: int) -> None:
        """Decides that the text up to there belongs to the call that is being read."""
        self._taken.append(self.text[self.at : until])
        self.taken_length += until - self.at
        self.at = until

    def taken(self) -> str:
        """All of it; from here on another call is read."""
        text = "".join(self._taken)
        self._taken.clear()
        self.taken_length = 0
        return text

    def untake(self, length: int) -> None:
        """Takes back the decision on all but so much of it."""
        text = self.taken()
        self.text = text[length:] + self.text[self.at :]
        self.at = 0
        if length:
            self._taken.append(text[:length])
            self.taken_length = length
