"""What the stand-in's model says, as steps on a schedule."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence

from . import agent, reports
from .frames import Done, Frames, Head, Pause, Step
from .marks import Switch, split_marks
from .media import PICTURE_SIZES, picture
from .memory import PASTED, Attached, Records, Turn

SEARCH_SILENCE_S = 10.0
"""Seconds a web search keeps the stream silent (protocol §5.5)."""
LONG_SENTENCES = 60
DEFAULT_RATIO = "16:9"
"""Of a picture (protocol §10.1)."""
ANY_RATIO = ("", "auto")
WORDS = {"image": "picture", "video": "video", "audio": "recording", "document": "document"}
RECALLED_WORDS = 8
"""Of each question that `recall` tells."""
REPEATED = re.compile(r"^<<<(\w+)\n(.*)\n\1>>>$", re.DOTALL | re.MULTILINE)
"""A text between two marks that a prompt asks to say again."""
DRAWING = ("t2i", "image_edit")
"""Chats that answer in pictures."""
_PIECE = re.compile(r"\s*\S{1,7}|\s+")
_CALL = "call_9c1f0e2d4b6a48f0a1b2c3d4"

Talk = Callable[["Scene"], Iterator[Step]]


class Scene:
    """One answer being given: its turn, its frames, and the switch that chose it."""

    def __init__(self, turn: Turn, records: Records, switch: Switch) -> None:
        self.turn = turn
        self.records = records
        self.frames = Frames(turn)
        self.switch = switch
        self.gap = Pause(1.0 / switch.number("rate", records.options.pieces_per_s))

    def spoken(self, text: str) -> Iterator[Step]:
        for piece in _PIECE.findall(text):
            yield self.gap
            yield self.frames.answer(piece)

    def end(self, phase: str = "answer") -> Iterator[Step]:
        """Two empty pieces with the usage, then the frame without (protocol §5.7)."""
        if phase == "answer":
            yield self.frames.empty()
            yield self.frames.empty()
        yield Done()
        yield self.frames.terminal(phase)


def about(prompt: str) -> str:
    """Readable sentences about the prompt, so that a person sees that it arrived whole."""
    words = prompt.split()
    if not words:
        return "This is the stand-in for Qwen Chat, not a real model. Your message was empty."
    start = " ".join(words[:12])
    last = prompt.rstrip()[-1]
    kind = {"?": "That reads like a question", "!": "That sounds urgent"}.get(
        last, "That reads like a statement"
    )
    more = f' and ends with "{" ".join(words[-6:])}"' if len(words) > 18 else ""
    return (
        "This is the stand-in for Qwen Chat speaking, so no real model has read your message. "
        f"It arrived whole, though: {len(words)} words in {len(prompt)} characters. "
        f'It begins with "{start}"{more}. '
        f"{kind}; the real service would now do its best. "
        "I only show that the road works: every piece you see was streamed through a signed-in page."
    )


def came_with(files: Sequence[Attached]) -> str:
    """A sentence about what a question came with; "" where that was nothing."""
    told = []
    for kind, word in WORDS.items():
        these = [file for file in files if file.kind == kind and not file.name.startswith(PASTED)]
        if these:
            listed = ", ".join(f"{file.name}, {file.size:,} bytes" for file in these)
            told.append(f"{len(these)} {word}{'s' * (len(these) > 1)} ({listed})")
    return f" It came with {' and '.join(told)}." if told else ""


def plain(scene: Scene) -> Iterator[Step]:
    yield from _opening(scene)
    if _wants_thinking(scene.turn):
        yield from thoughts(scene)
    yield from scene.spoken(f"{about(scene.turn.prompt)}{came_with(scene.turn.files)}")
    yield from scene.end()


def say(scene: Scene) -> Iterator[Step]:
    """`say text=…`: exactly this."""
    yield from _opening(scene)
    if _wants_thinking(scene.turn):
        yield from thoughts(scene)
    yield from scene.spoken(scene.switch.word("text", "Hello from the stand-in."))
    yield from scene.end()


def repeat(scene: Scene) -> Iterator[Step]:
    """The marked text of the prompt, word for word."""
    found = REPEATED.search(scene.turn.prompt)
    yield from _opening(scene)
    yield from scene.spoken(found[2] if found else "")
    yield from scene.end()


def recall(scene: Scene) -> Iterator[Step]:
    """`recall`: what the chat knows when this is asked, so that a person sees that context is kept."""
    asked = [
        f'{number}. "{_beginning(turn.prompt)}"{came_with(turn.files)}'
        for number, turn in enumerate(scene.turn.before, 1)
    ]
    turns = "1 turn" if len(asked) == 1 else f"{len(asked)} turns"
    yield from _opening(scene)
    told = f"I remember {turns} of this chat before this one. {' '.join(asked)}".strip()
    yield from scene.spoken(f"{told}{came_with(scene.turn.files)}")
    yield from scene.end()


def think(scene: Scene) -> Iterator[Step]:
    """`think format=summary|detail`: thinks even when not asked to."""
    yield from _opening(scene)
    yield from thoughts(scene)
    yield from scene.spoken(scene.switch.word("text", about(scene.turn.prompt)))
    yield from scene.end()


def long(scene: Scene) -> Iterator[Step]:
    """`long n=…`: that many sentences."""
    yield from _opening(scene)
    for number in range(1, scene.switch.whole("n", LONG_SENTENCES) + 1):
        yield from scene.spoken(f"Sentence {number} of a long answer from the stand-in. ")
    yield from scene.end()


def count(scene: Scene) -> Iterator[Step]:
    """`count n=… rate=…`: frames `<index>:<monotonic ns> ` on an exact schedule, cheap to make."""
    total = scene.switch.whole("n", 100)
    hole = "\x00"
    before, after = scene.frames.answer(hole, tokens=0).split(b"\\u0000")
    scene.turn.said.clear()
    yield from _opening(scene)
    for index in range(total):
        yield scene.gap
        yield b"%b%d:%d %b" % (before, index, time.monotonic_ns(), after)
    scene.frames.output_tokens = total
    yield from scene.end()


def search(scene: Scene) -> Iterator[Step]:
    """`search silence_s=… results=…`: thinking, or Fast with the intermediate `finished` (protocol §5.5)."""
    frames, thinking = scene.frames, _wants_thinking(scene.turn)
    yield from _opening(scene)
    if thinking:
        yield from thoughts(scene)
    else:
        yield from scene.spoken("I will search the web for that. ")
        yield frames.phase_finished("answer")
    position = "think" if thinking else "answer"
    arguments = '{"queries": ["stand-in", "loopback"]}'
    yield from _tool_call(scene, "web_search", "web_search", arguments, {"display_position": position})
    yield from _silence(scene, SEARCH_SILENCE_S)
    documents = [_document(number) for number in range(1, scene.switch.whole("results", 3) + 1)]
    yield frames.tool_result("web_search", "web_search", _CALL, frames.sources(documents, position))
    frames.next_round()
    if thinking:
        yield from thoughts(scene)
    for piece in ("Here is ", "what I found [[", "1]], and a second page [[2", "]]", " agrees."):
        yield scene.gap
        yield frames.answer(piece, tokens=3)
    yield from scene.end()


def image(scene: Scene) -> Iterator[Step]:
    """`image tool=1`: the image mode, or the tool called inside a chat (protocol §5.5, §10.1)."""
    if scene.switch.whole("tool", 0) or scene.turn.chat.chat_type not in DRAWING:
        yield from _image_tool(scene)
    else:
        yield from _image_mode(scene)


def act(scene: Scene) -> Iterator[Step]:
    """`agent script=NAME key=value …`: what the script says next; see `agent.py`."""
    before = [(turn.told, "".join(turn.said)) for turn in scene.turn.before]
    words = agent.words(scene.switch, scene.turn.told, before)
    yield from _opening(scene)
    if _wants_thinking(scene.turn):
        yield from thoughts(scene)
    yield from scene.spoken(words)
    yield from scene.end()


def thoughts(scene: Scene) -> Iterator[Step]:
    """One thinking segment in the format asked for; ends early when told to skip (protocol §4.6)."""
    wanted = scene.turn.feature.get("thinking_format", "summary")
    if scene.switch.word("format", str(wanted)) in ("detail", "detailed", "full"):
        yield from _detail(scene)
    else:
        yield from _summary(scene)


_THOUGHTS = (
    ("Understand the request", "The user wrote something and expects a reply. I should look at it closely."),
    ("Look at the words", "I count the words and note how the message begins and how it ends."),
    ("Settle on an answer", "I will say plainly that I am the stand-in, then describe what I received."),
)


def _summary(scene: Scene) -> Iterator[Step]:
    frames = scene.frames
    for title, paragraph in _THOUGHTS:
        for frame in (frames.summary(title, paragraph), frames.same_summary()):
            yield Pause(scene.switch.number("think_s", 0.15))
            if scene.turn.skip_thinking:
                yield frames.info("skip_think")
                return
            yield frame
    yield frames.phase_finished("thinking_summary")


def _detail(scene: Scene) -> Iterator[Step]:
    for piece in _PIECE.findall(" ".join(paragraph for _, paragraph in _THOUGHTS)):
        yield scene.gap
        if scene.turn.skip_thinking:
            yield scene.frames.info("skip_think")
            return
        yield scene.frames.think(piece)
    yield scene.frames.phase_finished("think")


def _beginning(text: str) -> str:
    words = text.split()
    return " ".join(words[:RECALLED_WORDS]) + (" …" if len(words) > RECALLED_WORDS else "")


def _opening(scene: Scene) -> Iterator[Step]:
    yield Head()
    yield scene.frames.created()


def _wants_thinking(turn: Turn) -> bool:
    return bool(turn.feature.get("thinking_enabled"))


def _tool_call(
    scene: Scene, phase: str, name: str, arguments: str, extra: dict[str, object]
) -> Iterator[Step]:
    for text in ("", arguments[: len(arguments) // 2], arguments, arguments):
        yield scene.gap
        yield scene.frames.tool_call(phase, name, _CALL, text, extra)


def _silence(scene: Scene, default_s: float) -> Iterator[Step]:
    yield Pause(scene.switch.number("silence_s", default_s))


def _document(number: int) -> dict[str, str]:
    return {
        "url": f"https://example.org/{number}",
        "title": f"Result {number}",
        "snippet": f"What page {number} says about it …",
        "hostname": "",
        "hostlogo": "",
        "date": "Nov 21, 2026",
    }


def _image_mode(scene: Scene) -> Iterator[Step]:
    yield from _opening(scene)
    waits = scene.switch.number("silence_s", scene.records.options.draw_s)
    for _ in range(2):
        yield Pause(waits / 2)
        yield scene.frames.info("keep_alive")
    ratio = scene.turn.size or ""
    ratio = DEFAULT_RATIO if ratio in ANY_RATIO else ratio
    width, height = PICTURE_SIZES[ratio]
    for number in (1, 2):
        url = picture(scene.records, scene.turn, str(number), ratio)
        scene.turn.said[:] = [url]
        yield scene.frames.image(url, height, width)
        yield scene.gap
    yield from scene.end("image_gen")


def _image_tool(scene: Scene) -> Iterator[Step]:
    frames = scene.frames
    yield from _opening(scene)
    yield from thoughts(scene)
    yield from _tool_call(scene, "image_gen_tool", "image_gen", '{"prompt": "A picture"}', {})
    yield from _silence(scene, scene.records.options.draw_s / 4)
    result = {
        "tool_result": [{"image": picture(scene.records, scene.turn, "original", DEFAULT_RATIO)}],
        "image_list": [{"image": picture(scene.records, scene.turn, "shown", DEFAULT_RATIO)}],
    }
    yield frames.tool_result("image_gen_tool", "image_gen", _CALL, result)
    frames.next_round(230)
    yield from thoughts(scene)
    yield from scene.spoken("Here is your picture.")
    yield from scene.end()


TALKS: dict[str, Talk] = {
    "plain": plain,
    "say": say,
    "recall": recall,
    "repeat": repeat,
    "think": think,
    "long": long,
    "count": count,
    "search": search,
    "image": image,
    agent.MARK: act,
    reports.MARK: reports.answered,
}


def talk_for(turn: Turn, marks: list[Switch]) -> tuple[Talk, Switch]:
    """The talk the last mark asks for, else the one the chat's type calls for."""
    switch = _last_talk(marks) or _script_played(turn)
    if switch is not None:
        return TALKS[switch.name], switch
    if turn.chat.chat_type not in DRAWING and REPEATED.search(turn.prompt):
        return repeat, Switch("repeat", {})
    by_type = {"search": "search", reports.TYPE: reports.MARK, **dict.fromkeys(DRAWING, "image")}
    name = by_type.get(turn.kind, "plain")
    return TALKS[name], Switch(name, {})


def _last_talk(marks: list[Switch]) -> Switch | None:
    return next((switch for switch in reversed(marks) if switch.name in TALKS), None)


def _script_played(turn: Turn) -> Switch | None:
    """What the chat's earlier turns began: a tool's result, or the reply to a question, may come alone."""
    begun = _last_talk([mark for earlier in turn.before for mark in split_marks(earlier.told)[1]])
    return begun if begun is not None and begun.name in (agent.MARK, reports.MARK) else None
