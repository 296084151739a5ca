"""Every upstream chat we made, until it is gone. Chats that are not in here are never touched.

`chats.jsonl`: one line an event, `{"chat", "account", "event": "made" | "held" | "kept" | "gone"}`, only ever
appended to while running and compacted at start. A line is a single small write, so a crash leaves at most a
torn last line.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, get_args

from qwenproxy import store
from qwenproxy.chat import UpstreamChat

Event = Literal["made", "held", "kept", "gone"]
"""`made` is to be deleted, `held` belongs to a conversation that goes on, `kept` is left to the account."""


class Ledger:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._live = _read(path)
        lines = [_line(chat, event) for chat, event in self._live.items()]
        store.write_text(path, "".join(lines))

    def record(self, chat: UpstreamChat, event: Event) -> None:
        """Blocks for one unsynced append, some microseconds."""
        if event == "gone":
            self._live.pop(chat, None)
        else:
            self._live[chat] = event
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(chat, event))

    def event(self, chat: UpstreamChat) -> Event | None:
        """What was last told of it; None when we did not make it, or it is gone."""
        return self._live.get(chat)

    def held(self) -> tuple[UpstreamChat, ...]:
        """Chats that a conversation lives in."""
        return tuple(chat for chat, event in self._live.items() if event == "held")

    def left_over(self) -> tuple[UpstreamChat, ...]:
        """Chats that were to be deleted and, as far as we know, still exist."""
        return tuple(chat for chat, event in self._live.items() if event == "made")


def _line(chat: UpstreamChat, event: Event) -> str:
    return json.dumps({"chat": chat.id, "account": chat.account_id, "event": event}) + "\n"


def _read(path: Path) -> dict[UpstreamChat, Event]:
    live: dict[UpstreamChat, Event] = {}
    try:
        lines = path.read_text("utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return live
    for line in lines:
        try:
            row = json.loads(line)
            chat, event = UpstreamChat(str(row["chat"]), str(row["account"])), row["event"]
        except (ValueError, TypeError, KeyError):
            continue  # the torn last line of a crash
        if event == "gone":
            live.pop(chat, None)
        elif event in get_args(Event):
            live[chat] = event
    return live
