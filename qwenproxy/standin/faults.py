"""The bank of faults: every known way in which the service fails (protocol §6, Appendix A.5).

Two kinds, by name: a *refusal* answers instead of the endpoint; a *spoiler* changes the steps of an answer.
Either is asked for by a mark in the prompt, or queued through `POST /__standin__/faults`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import anyio
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from .frames import Cut, Done, Frames, Head, Hold, Pause, Step, line
from .marks import Switch
from .memory import Session
from .replies import EdgeHTML, EdgeJSON, busy, gateway_page, punished, refused, waf_page

Refusal = Callable[[Request, Switch], Response]
Spoiler = Callable[[Iterator[Step], Frames, Switch], Iterator[Step]]

DAILY_LIMIT = "You've reached the upper limit for today's usage."
DAILY_TEMPLATE = "You have reached the daily usage limit. Please wait {{num}} hours before trying again."
ALLOCATED = "Allocated quota exceeded, please increase your quota limit. See the page on #token-limit"
INSPECTED = "Content security warning: {stage} data may contain inappropriate content!"
QUEUE_FULL = "Currently, there are too many requests in the queue. Please try again later."
GATEWAY_TITLES = {
    500: "Internal Server Error",
    502: "Bad Gateway",
    503: "Service Temporarily Unavailable",
    504: "Gateway Time-out",
}


def _coded(code: str, details: str, actual: int = 400, **more: Any) -> Refusal:
    def refusal(request: Request, switch: Switch) -> Response:
        return refused(request, code, switch.word("details", details), actual, **more)

    return refusal


def _rate_limited(request: Request, switch: Switch) -> Response:
    """`num` is hours; `num=0` leaves it out."""
    num = switch.number("num", 4)
    hours = {"num": int(num) if num.is_integer() else num} if num else {}
    return refused(request, "RateLimited", DAILY_LIMIT, 429, template=DAILY_TEMPLATE, **hours)


def _rate_limited_legacy(request: Request, switch: Switch) -> Response:
    return JSONResponse({"code": "RateLimited", "detail": DAILY_LIMIT, "num": switch.whole("num", 7)})


def _unauthorized_on_the_wire(request: Request, switch: Switch) -> Response:
    answer = refused(request, "Unauthorized", "Invalid token", 401)
    answer.status_code = 401
    return answer


def _detail_401(request: Request, switch: Switch) -> Response:
    return JSONResponse({"detail": "401 Unauthorized: invalid token"}, status_code=401)


def _chat_gone_text(request: Request, switch: Switch) -> Response:
    chat_id = request.query_params.get("chat_id", "unknown")
    return refused(request, "Bad_Request", f"Invalid input the chat {chat_id} is not exist.")


def _busy_code(request: Request, switch: Switch) -> Response:
    return JSONResponse({"code": "CHAT_IN_PROGRESS", "message": "The chat is in progress!"})


def _inspected(request: Request, switch: Switch) -> Response:
    stage = switch.word("stage", "input")
    details = INSPECTED.format(stage=stage)
    return refused(request, "data_inspection_failed", details, stage=stage, modality=["text"])


def _forbidden(request: Request, switch: Switch) -> Response:
    answer = refused(request, "access_prohibited", "Your account is disabled.", 403)
    answer.status_code = 403
    return answer


def _punish(request: Request, switch: Switch) -> Response:
    return punished(request)


def _punish_busy(request: Request, switch: Switch) -> Response:
    return punished(request, captcha=False)


def _waf(request: Request, switch: Switch) -> Response:
    return waf_page(switch.whole("status", 200))


def _too_many(request: Request, switch: Switch) -> Response:
    headers = {"retry-after": switch.word("retry_after", "7")}
    return EdgeJSON({"message": "Too Many Requests"}, status_code=429, headers=headers)


def _gateway(request: Request, switch: Switch) -> Response:
    status = switch.whole("status", 503)
    return gateway_page(status, GATEWAY_TITLES.get(status, "Error"))


def _login_redirect(request: Request, switch: Switch) -> Response:
    return RedirectResponse("/auth?action=signin", status_code=302)


def _html(request: Request, switch: Switch) -> Response:
    return EdgeHTML("<!doctype html><html><body>An unexpected page.</body></html>")


def _not_json(request: Request, switch: Switch) -> Response:
    return Response('{"success": tru', media_type="application/json")


def _raw_json(request: Request, switch: Switch) -> Response:
    """`raw_json body=…`: any JSON body, for shapes nobody has seen yet."""
    body = switch.params.get("body", "{}")
    text = body if isinstance(body, str) else json.dumps(body)
    return Response(text, switch.whole("status", 200), media_type="application/json")


REFUSALS: dict[str, Refusal] = {
    "rate_limited": _rate_limited,
    "rate_limited_legacy": _rate_limited_legacy,
    "parallel_limited": _coded("ParallelLimited", "Too many generations at the same time.", 429),
    "quota_limited": _coded("quotaLimited", "Quota for this model has been used up.", 429),
    "too_many_requests": _coded("Too_Many_Requests", QUEUE_FULL, 429),
    "unauthorized": _coded("Unauthorized", "401 Unauthorized", 401),
    "unauthorized_401": _unauthorized_on_the_wire,
    "detail_401": _detail_401,
    "token_expired": _coded("unauthorized", "Token has expired, please log in again.", 401),
    "invalid_token": _coded("Invalid token", "Invalid token", 401),
    "busy": lambda request, switch: busy(request),
    "busy_code": _busy_code,
    "chat_gone": _coded(
        "CHAT_NOT_FOUND", "This chat has been deleted. Please start a new chat to continue.", 404
    ),
    "chat_gone_text": _chat_gone_text,
    "parent_gone": _coded("PARENT_NOT_FOUND", "Parent message not found", 404),
    "parent_gone_text": _coded("Bad_Request", "Invalid input chat parent_id 00000000 is not exist."),
    "model_gone": _coded("Not_Found", "Model not found", 404),
    "credits_exhausted": _coded("quota_exhausted", "You do not have enough credits for this."),
    "tts_limited": _coded("RateLimited", "Too many requests, please try again in a minute."),
    "tts_language": _coded("UnsupportedLanguage", "This language cannot be read aloud yet."),
    "sts_refused": _coded("Bad_Request", "No upload now.", message="Upload is not available."),
    "file_gone": _coded("Bad_Request", "Invalid input the file 00000000 is not exist."),
    "bad_request": _coded("Bad_Request", "Internal error, please contact the service provider."),
    "validation": _coded("RequestValidationError", "Field 'chat_id': Field required"),
    "validation_list": lambda request, switch: refused(
        request, "RequestValidationError", ["Field '': Input should be a valid dictionary"]
    ),
    "invalid_header": _coded("Invalid request header", "Invalid request header"),
    "invalid_input_json": _coded("invalid_input", "Invalid input or attachment. Please check and try again."),
    "too_many_messages": _coded("Bad_Request", "Invalid input too many messages"),
    "context_too_long": _coded("context_length_exceeded", "The input is too long for this model."),
    "internal_error_json": _coded("internal_error", "Internal Error"),
    "account_pending": _coded("ACCOUNT_PENDING", "Your account is not activated.", 403, account_info={}),
    "access_prohibited": _forbidden,
    "no_permission": _coded("Forbidden", "You do not have permission to access this resource.", 403),
    "inspected": _inspected,
    "unknown_code": _coded("Something_New", "A refusal nobody has seen yet."),
    "punish": _punish,
    "punish_busy": _punish_busy,
    "waf": _waf,
    "http_429": _too_many,
    "gateway": _gateway,
    "login_redirect": _login_redirect,
    "html": _html,
    "not_json": _not_json,
    "raw_json": _raw_json,
}


# Spoilers. `after=N` is the number of content frames that pass first; -1 leaves out `response.created` too.


def _until(steps: Iterator[Step], after: int) -> Iterator[Step]:
    """The steps up to the head, the created frame and `after` frames more."""
    passed = -1
    for step in steps:
        if isinstance(step, Done):
            return
        if isinstance(step, bytes):
            passed += 1
            if passed > after:
                return
        yield step


def _broken(steps: Iterator[Step], switch: Switch, then: Iterable[Step], after: int = 0) -> Iterator[Step]:
    yield from _until(steps, switch.whole("after", after))
    yield from then


def _error(code: str, details: str, after: int = 0, **more: Any) -> Spoiler:
    def spoiler(steps: Iterator[Step], frames: Frames, switch: Switch) -> Iterator[Step]:
        frame = frames.error(switch.word("code", code), switch.word("details", details), **more)
        return _broken(steps, switch, [frame], after)

    return spoiler


def _line(value: Any, after: int = 0) -> Spoiler:
    def spoiler(steps: Iterator[Step], frames: Frames, switch: Switch) -> Iterator[Step]:
        return _broken(steps, switch, [line(value)], after)

    return spoiler


def _ending(*then: Step, after: int = 3) -> Spoiler:
    def spoiler(steps: Iterator[Step], frames: Frames, switch: Switch) -> Iterator[Step]:
        return _broken(steps, switch, then, after)

    return spoiler


def _severed(steps: Iterator[Step], frames: Frames, switch: Switch) -> Iterator[Step]:
    """`wait_s=…`: after such a silence, so that what was said before is sure to have arrived."""
    return _broken(steps, switch, [Pause(switch.number("wait_s", 0.0)), Cut()], 3)


def _rate_limited_line(steps: Iterator[Step], frames: Frames, switch: Switch) -> Iterator[Step]:
    value = {"code": "RateLimited", "detail": DAILY_LIMIT, "num": switch.whole("num", 7)}
    return _broken(steps, switch, [line(value)], -1)


def _rate_limited_stream(steps: Iterator[Step], frames: Frames, switch: Switch) -> Iterator[Step]:
    more = {"template": DAILY_TEMPLATE, "num": switch.whole("num", 4)}
    return _broken(steps, switch, [frames.error("RateLimited", DAILY_LIMIT, **more)])


def _status_error(steps: Iterator[Step], frames: Frames, switch: Switch) -> Iterator[Step]:
    """A piece whose `status` is `error` (protocol §5.3)."""
    text = {"error": "The model failed while it answered."}
    delta = {"role": "assistant", "content": "", "phase": "answer", "status": "error", "extra": text}
    return _broken(steps, switch, [frames.delta(delta)], 2)


def _hold_head(steps: Iterator[Step], frames: Frames, switch: Switch) -> Iterator[Step]:
    yield from _wait(switch)
    yield from steps


def _hold_body(steps: Iterator[Step], frames: Frames, switch: Switch) -> Iterator[Step]:
    yield Head()
    yield from _wait(switch)
    yield from (step for step in steps if not isinstance(step, Head))


def _hold_middle(steps: Iterator[Step], frames: Frames, switch: Switch) -> Iterator[Step]:
    yield from _between(steps, switch.whole("after", 3), lambda: _wait(switch))


def _wait(switch: Switch) -> Iterator[Step]:
    """`s=…` seconds, or for ever."""
    seconds = switch.number("s", 0.0)
    yield Pause(seconds) if seconds else Hold()


def _between(steps: Iterator[Step], after: int, extra: Callable[[], Iterable[Step]]) -> Iterator[Step]:
    """All steps, with something more after the created frame and `after` frames."""
    passed = -1
    for step in steps:
        yield step
        if isinstance(step, bytes):
            passed += 1
            if passed == after:
                yield from extra()


def _keep_open(steps: Iterator[Step], frames: Frames, switch: Switch) -> Iterator[Step]:
    yield from steps
    yield Hold()


def _no_terminal(steps: Iterator[Step], frames: Frames, switch: Switch) -> Iterator[Step]:
    """All the text, then EOF without the terminal frame."""
    for step in steps:
        if isinstance(step, Done):
            return
        yield step


def _done_marker(value: bytes) -> Spoiler:
    """The answer's end told by another marker than the terminal frame (protocol §5.6)."""

    def spoiler(steps: Iterator[Step], frames: Frames, switch: Switch) -> Iterator[Step]:
        yield from _no_terminal(steps, frames, switch)
        yield Done()
        yield value

    return spoiler


def _keep_alive(steps: Iterator[Step], frames: Frames, switch: Switch) -> Iterator[Step]:
    """`form=info|phase|comment n=… silence_s=…`: heartbeats, that far apart, before the first piece."""
    delta = {"role": "assistant", "content": "", "phase": "KeepAlive", "status": "typing"}
    beats = {"info": frames.info("keep_alive"), "phase": frames.delta(delta), "comment": b": keep-alive\n\n"}
    beat = beats[switch.word("form", "info")]
    silence = Pause(switch.number("silence_s", 0.1))

    def heartbeats() -> Iterator[Step]:
        for _ in range(switch.whole("n", 3)):
            yield silence
            yield beat

    return _between(steps, switch.whole("after", 0), heartbeats)


def _second_response(steps: Iterator[Step], frames: Frames, switch: Switch) -> Iterator[Step]:
    """Frames of another response between ours; it ends first (protocol §5.2)."""
    other = Frames(frames.turn, response_id="f" * 8 + frames.response_id[8:])
    created = False
    for step in steps:
        if isinstance(step, Done):
            yield other.terminal()
            yield step
            yield from steps
            return
        yield step
        if isinstance(step, bytes):
            yield _foreign(other) if created else other.created(1)
            created = True


def _foreign(other: Frames) -> bytes:
    said = len(other.turn.said)
    frame = other.answer("OTHER ")
    del other.turn.said[said:]
    return frame


def _two_created(steps: Iterator[Step], frames: Frames, switch: Switch) -> Iterator[Step]:
    yield from _between(steps, 0, lambda: [frames.created()])


def _cumulative(steps: Iterator[Step], frames: Frames, switch: Switch) -> Iterator[Step]:
    """Every piece carries the whole text so far (protocol §5.3)."""
    text = ""
    for step in steps:
        delta = _delta_of(step)
        if delta is not None and delta[1].get("phase") == "answer" and delta[1].get("status") == "typing":
            frame, inner = delta
            text += inner["content"]
            inner["content"] = text
            yield line(frame)
        else:
            yield step


def _delta_of(step: Step) -> tuple[dict[str, Any], dict[str, Any]] | None:
    if not isinstance(step, bytes) or not step.startswith(b"data: {"):
        return None
    frame = json.loads(step.removeprefix(b"data: "))
    return (frame, frame["choices"][0]["delta"]) if "choices" in frame else None


def _novelties(steps: Iterator[Step], frames: Frames, switch: Switch) -> Iterator[Step]:
    """Phases, keys and frames nobody knows (protocol §5.3, §5.5)."""

    def news() -> Iterator[Step]:
        yield frames.delta(
            {"role": "assistant", "content": "noise", "phase": "telepathy", "status": "typing"}
        )
        yield frames.delta({"role": "assistant", "content": "", "phase": "telepathy", "status": "finished"})
        yield line({"sources": [{"url": "https://example.org/"}]})
        yield line({"selected_model_id": "qwen3.7-plus"})
        yield line({"response.weather": {"sunny": True}})
        yield line({"choices": [], "response_id": frames.response_id})
        yield b"event: note\nid: 7\nretry: 10\n\n"
        yield b": a comment\n\n"

    return _between(steps, switch.whole("after", 1), news)


def _broken_frame(steps: Iterator[Step], frames: Frames, switch: Switch) -> Iterator[Step]:
    """One line that is not JSON; `go_on=0` ends there."""
    broken: list[Step] = [b'data: {"choices": [{"delta": {"role": "assist\n\n']
    if switch.whole("go_on", 1):
        return _between(steps, switch.whole("after", 2), lambda: broken)
    return _broken(steps, switch, broken, 2)


def _giant_line(steps: Iterator[Step], frames: Frames, switch: Switch) -> Iterator[Step]:
    """`bytes=…` in one piece of the answer."""
    size = switch.whole("bytes", 1_000_000)
    return _between(steps, switch.whole("after", 1), lambda: [frames.answer("x" * size)])


def _odd_cuts(steps: Iterator[Step], frames: Frames, switch: Switch) -> Iterator[Step]:
    """Network pieces of `size` bytes, whatever they split: frames, JSON, letters."""
    size, rest = switch.whole("size", 7), b""
    for step in steps:
        if not isinstance(step, bytes):
            yield step
            continue
        rest += step
        while len(rest) >= size:
            yield rest[:size]
            yield Pause(0.0005)
            rest = rest[size:]
    if rest:
        yield rest


def _line_ends(steps: Iterator[Step], frames: Frames, switch: Switch) -> Iterator[Step]:
    """`form=crlf|cr|single`: other line ends, or no blank line between frames (protocol §5.1)."""
    form = switch.word("form", "crlf")
    ends = {"crlf": b"\r\n\r\n", "cr": b"\r\r", "single": b"\n"}[form]
    for step in steps:
        yield step.replace(b"\n\n", ends) if isinstance(step, bytes) else step


def _two_intermediate(steps: Iterator[Step], frames: Frames, switch: Switch) -> Iterator[Step]:
    """An `answer/finished` frame with a timestamp in the middle (protocol §5.7); then `silence_s`."""

    def middle() -> Iterator[Step]:
        yield frames.phase_finished("answer")
        yield Pause(switch.number("silence_s", 0.3))

    return _between(steps, switch.whole("after", 3), middle)


SPOILERS: dict[str, Spoiler] = {
    "rate_limited_stream": _rate_limited_stream,
    "rate_limited_line": _rate_limited_line,
    "rate_limited_text": _line({"error": "RateLimited: Guest limit exceeded"}, -1),
    "parallel_limited_stream": _error("ParallelLimited", "Too many generations at the same time."),
    "quota_limited_stream": _error("quotaLimited", "Quota for this model has been used up."),
    "quota_limit": _error(
        "quota_limit", "The service is currently in high demand. Please try again later.", -1
    ),
    "too_many_requests_stream": _error("Too_Many_Requests", QUEUE_FULL),
    "internal_error": _error("internal_error", "An unexpected error occurred. Please try again."),
    "allocated_quota": _error("internal_error", ALLOCATED),
    "rate_increased": _error("internal_error", "Request rate increased too quickly. Please slow down."),
    "error_text": _line({"error": "Internal error!"}),
    "error_status": _status_error,
    "inspected_input": _error(
        "data_inspection_failed", INSPECTED.format(stage="input"), stage="input", modality=["text"]
    ),
    "inspected_output": _error(
        "data_inspection_failed", INSPECTED.format(stage="output"), 3, stage="output", modality=["text"]
    ),
    "inspected_image": _error(
        "data_inspection_failed",
        INSPECTED.format(stage="input image"),
        stage="input",
        modality=["image"],
        image_idx=[0],
        video_idx=[],
        file_idx=[],
    ),
    "invalid_input": _error("invalid_input", "Invalid input or attachment. Please check and try again.", -1),
    "token_expired_stream": _error("unauthorized", "Token has expired, please log in again.", -1),
    "unauthorized_stream": _error("Unauthorized", "401 Unauthorized", 3),
    "unknown_error_stream": _error("something_new", "An error nobody has seen yet."),
    "empty": _ending(after=-1),
    "only_created": _ending(after=0),
    "severed": _severed,
    "eof": _ending(),
    "no_terminal": _no_terminal,
    "keep_open": _keep_open,
    "done_marker": _done_marker(b'data: {"done": true}\n\n'),
    "done_text": _done_marker(b"data: [DONE]\n\n"),
    "keep_alive": _keep_alive,
    "second_response": _second_response,
    "two_created": _two_created,
    "cumulative": _cumulative,
    "novelties": _novelties,
    "broken_frame": _broken_frame,
    "giant_line": _giant_line,
    "odd_cuts": _odd_cuts,
    "line_ends": _line_ends,
    "intermediate": _two_intermediate,
    "hang_before_head": _hold_head,
    "hang_after_head": _hold_body,
    "hang_mid_stream": _hold_middle,
}
DIALOG = "dialog"
"""The page shows a verification and the call hangs until somebody solves it (protocol §6.3.3)."""
STALL = "hang_before_head"
"""The one spoiler that calls without a stream know too."""
FILES = ("oss_error", "oss_slow", "oss_severed", "oss_wrong_crc", "parse_failed", "parse_hangs")
"""What strikes uploads: `on` is `storage` for the first four, else `parse`; `sts` takes the refusals."""
VIDEOS = ("video_failed", "video_hangs")
"""What becomes of a video: by a mark in its prompt, or `on` is `task`."""
NAMES = frozenset((*REFUSALS, *SPOILERS, DIALOG, *FILES, *VIDEOS))


def challenged(request: Request, session: Session) -> Response:
    """The verification: the page's script shows its dialog, and asks again once it is solved."""
    session.challenged = True
    return punished(request, header=True)


async def stalled(request: Request, switch: Switch) -> None:
    """Leaves a call without an answer for `s=…` seconds, or until the client has gone."""
    await request.body()
    with anyio.move_on_after(switch.number("s", 0.0) or math.inf):
        while (await request.receive())["type"] != "http.disconnect":
            pass


def spoiled(steps: Iterator[Step], frames: Frames, switches: Iterable[Switch]) -> Iterator[Step]:
    """The steps as every spoiler among the switches leaves them, the first innermost."""
    for switch in switches:
        if switch.name in SPOILERS:
            steps = SPOILERS[switch.name](steps, frames, switch)
    return steps
