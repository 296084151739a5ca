"""Who asks: an API key, or, where there are none, whoever reaches the loopback address.

Everything that is stored carries the mark of who had it made; what another key made does not exist for a key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

Scope = Literal["chat", "files", "accounts"]
SCOPES: Final[frozenset[Scope]] = frozenset(get_args(Scope))


@dataclass(frozen=True, slots=True)
class Caller:
    mark: str = ""
    """What its chats and answers carry; never the key. "" while there are no keys."""
    name: str = ""
    """What its owner calls the key."""
    scopes: frozenset[Scope] = SCOPES

    def sees(self, mark: str) -> bool:
        """Whether what carries that mark exists for this caller.

        Without keys everything is the one person's. What was made before there were keys belongs to who may
        manage the accounts.
        """
        if not self.mark or self.mark == mark:
            return True
        return not mark and "accounts" in self.scopes


ANYBODY: Final = Caller()
"""Of every request while there are no keys."""
