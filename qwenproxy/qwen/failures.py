"""Every known way in which Qwen Chat says no, as one of our errors (protocol §6).

The wire status says little: the service's own status is in `x-actual-status-code`, and most refusals are JSON
with `success: false` at 200 (protocol §0.2). So the body is judged first, by its `code`, then by its text,
which comes in the language of the account; then the status. What a client gets to read is ours: the service's
words follow only where they tell the caller what to change.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import MappingProxyType
from typing import Any, TypeAlias

from qwenproxy.errors import (
    BadRequest,
    ChatBusy,
    ChatGone,
    ContentBlocked,
    ContextTooLong,
    EmptyAnswer,
    FileGone,
    LimitReached,
    NeedsHuman,
    NotFound,
    ParallelLimited,
    ProtocolChanged,
    QwenProxyError,
    Severed,
    TokenRejected,
    UnknownModel,
    UpstreamError,
)

MIN_WAIT_S = 60.0
MAX_WAIT_S = 48 * 3600.0
"""Bounds of what a usage limit names, in hours or as `Retry-After`; 3 to 10 hours were seen (protocol §13),
the rest is mistrust. A short throttle may name seconds and is believed."""

DAILY_WAIT_S = 24 * 3600.0
"""After a daily limit that names no hours (protocol §13)."""

THROTTLE_WAIT_S = 120.0
"""After "high demand", a full queue or a rate that rose too quickly (protocol §6.2, §13)."""

PARALLEL_WAIT_S = 10.0
"""After too many answers at once; about as long as a short answer takes. Ours, the service names no time."""

STATUS_WAIT_S = 60.0
"""After a bare 429 without `Retry-After` (protocol §13)."""

READ_CHARACTERS = 1000
"""How much of the service's own words is searched."""

QUOTED_CHARACTERS = 200
"""How much of the service's own words a client gets to read."""


@dataclass(frozen=True, slots=True)
class _Refusal:
    code: str = ""
    text: str = ""
    num: object = None
    """Hours."""
    stage: str = ""
    status: int = 200
    retry_after_s: float | None = None

    def says(self, phrases: re.Pattern[str]) -> bool:
        return phrases.search(self.text) is not None

    @property
    def key(self) -> str:
        return re.sub(r"[^a-z0-9]", "", self.code.lower())


def expects_stream(headers: Mapping[str, str]) -> bool:
    """Whether the answer is a stream of events; the content type alone decides (protocol §5.1)."""
    return headers.get("content-type", "").strip().lower().startswith("text/event-stream")


def judge(
    status: int, headers: Mapping[str, str], body: str, now: datetime | None = None
) -> QwenProxyError | None:
    """What is wrong with an answer that is no stream; None when it is a success.

    `now` is only needed to understand a `Retry-After` that is a date.
    """
    actual = headers.get("x-actual-status-code", "").strip()
    known = _Refusal(
        status=int(actual) if re.fullmatch(r"[1-5]\d\d", actual, re.ASCII) else status,
        retry_after_s=_retry_after_s(headers.get("retry-after", ""), now),
    )
    error = _judge(body.strip(), known)
    if error is not None and ("bxpunish" in headers or "x5secdata" in headers):
        return _human(known)
    return error


def unwrap(body: str) -> Any:
    """The `data` of an enveloped answer, or the whole of a bare one (protocol §0.2).

    Raises:
        ProtocolChanged: it is not JSON.
    """
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        raise ProtocolChanged("the service's answer is not JSON", seen=_seen(body)) from None
    return answer.get("data") if isinstance(answer, dict) and "success" in answer else answer


def in_stream(error: object) -> QwenProxyError:
    """The error in a frame of a stream: the value of its `error`, or the whole frame (protocol §5.6)."""
    if isinstance(error, str) and error.strip():
        return _explain(_of_text(error, _Refusal()))
    refusal = _refusal_in(error, _Refusal()) if isinstance(error, dict) else None
    if refusal is None and isinstance(error, dict):
        refusal = _of_row(error, {}, _Refusal())
    if refusal is None or not (refusal.code or refusal.text):
        return ProtocolChanged("the service failed in a way we do not know", seen=_seen(_dumped(error)))
    return _explain(refusal)


def _judge(body: str, known: _Refusal) -> QwenProxyError | None:
    if not body:
        return EmptyAnswer("the service sent an empty answer") if known.status < 300 else _of_no_json(known)
    if body.startswith("<"):
        return _of_page(body[:50_000].lower(), known) or ProtocolChanged(
            "the service sent a page instead of an answer", seen=_seen(body)
        )
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        if known.status >= 300:
            return _of_no_json(known)
        return ProtocolChanged("the service's answer is not JSON", seen=_seen(body))
    refusal = _refusal_in(answer, known) if isinstance(answer, dict) else None
    if refusal is not None:
        if refusal.code or refusal.text or refusal.status >= 300:
            return _explain(refusal)
        return ProtocolChanged("the service refused in a way we do not know", seen=_seen(body))
    if known.status >= 300:
        return _of_status(known)
    if not isinstance(answer, dict | list):
        return ProtocolChanged("the service's answer has a shape we do not know", seen=_seen(body))
    return None


def _refusal_in(answer: dict[str, Any], known: _Refusal) -> _Refusal | None:
    """What an answer says against the request; None when it says nothing against it."""
    if "ret" in answer and (challenge := _challenge_in(answer)):
        return replace(known, code=challenge)
    if "success" in answer:
        return None if answer["success"] is True else _of_row(answer.get("data"), answer, known)
    if answer.get("error"):
        return _of_row(answer["error"], answer, known)
    # A bare answer fails by the app's own rule (protocol §0.2), or by a code that only failures have.
    texts = (answer.get("detail"), answer.get("message"))
    if any(isinstance(text, str) and text for text in texts) or _Refusal(_code_in(answer)).key in _CODES:
        return _of_row(answer, {}, known)
    return None


def _challenge_in(answer: dict[str, Any]) -> str:
    """The risk control's JSON (protocol §6.3): a code of ours for it, "" when it is something else."""
    ret = answer["ret"] if isinstance(answer["ret"], list) else [answer["ret"]]
    said = " ".join(str(part) for part in ret)
    if "FAIL_SYS_USER_VALIDATE" in said or "/punish" in _dumped(answer.get("data")):
        return "FAIL_SYS_USER_VALIDATE"
    return "RGV587_ERROR" if "RGV587" in said else ""


def _of_row(row: object, outer: dict[str, Any], known: _Refusal) -> _Refusal:
    if isinstance(row, str):
        return _of_text(row, known)
    inner = row if isinstance(row, dict) else {}
    if isinstance(inner.get("error"), dict):
        inner = inner["error"]
    number = next((c for c in (inner.get("code"), outer.get("code")) if type(c) is int), 0)
    stage = inner.get("stage")
    return replace(
        known,
        code=_code_in(inner) or _code_in(outer),
        text=_text_in(inner) or _text_in(outer),
        num=inner.get("num", outer.get("num")),
        stage=stage if isinstance(stage, str) else "",
        status=number if 400 <= number <= 599 else known.status,
    )


def _of_text(text: str, known: _Refusal) -> _Refusal:
    """An error that is a bare text, perhaps with its code in front: `RateLimited: …` (protocol §6.2)."""
    code, colon, rest = text.strip().partition(":")
    if (colon or _Refusal(code).key in _CODES) and re.fullmatch(r"\w+", code, re.ASCII):
        return replace(known, code=code, text=rest.strip()[:READ_CHARACTERS])
    return replace(known, text=text.strip()[:READ_CHARACTERS])


def _code_in(row: Mapping[str, Any]) -> str:
    return next((c for c in (row.get("code"), row.get("errorCode")) if isinstance(c, str) and c), "")


def _text_in(row: Mapping[str, Any]) -> str:
    for name in ("details", "detail", "message", "info", "error"):
        value = row.get(name)
        lines = value if isinstance(value, list) else [value]
        text = "; ".join(line for line in lines if isinstance(line, str) and line)
        if text:
            return text[:READ_CHARACTERS]
    return ""


def _dumped(value: object) -> str:
    try:
        return value if isinstance(value, str) else json.dumps(value)
    except RecursionError:
        return ""


def _seen(body: str) -> str:
    """For the log: what the answer began with, without tokens."""
    return re.sub(r"eyJ[\w.-]*|[\w-]{80,}", "…", body[:400])


# ---- what a refusal means ----


def _explain(refusal: _Refusal) -> QwenProxyError:
    by_code = _CODES.get(refusal.key)
    if by_code is not None:
        return by_code(refusal)
    for phrases, meaning in _TEXTS:
        if refusal.says(phrases):
            return meaning(refusal)
    if any(part in refusal.key for part in _CONTEXT_CODES):
        return _too_long(refusal)
    if refusal.key == "notfound":
        return _gone(refusal)
    if refusal.status >= 300:
        return _of_status(refusal)
    if re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,39}", refusal.code):
        return UpstreamError(f"the service refused the request with the code {refusal.code}")
    return UpstreamError("the service refused the request for a reason we do not know")


def _of_status(known: _Refusal) -> QwenProxyError:
    """The meaning of a status whose body says nothing more."""
    status = known.status
    if status < 400 or status in {401, 403}:  # a redirect can only lead to the sign-in page
        return _signed_out(known)
    if status == 404:
        return ProtocolChanged("the service does not know this call")
    if status == 413:
        return _too_long(known)
    if status == 422:
        return _invalid(known)
    if status == 429:
        return LimitReached(
            "the service asks this account to slow down", wait_s=known.retry_after_s or STATUS_WAIT_S
        )
    return UpstreamError(f"the service answered with status {status}")


def _of_no_json(known: _Refusal) -> QwenProxyError:
    """403 and 405 without JSON come from the firewall before the service (protocol §6.3)."""
    return _human(known) if known.status in {403, 405} else _of_status(known)


def _of_page(page: str, known: _Refusal) -> QwenProxyError | None:
    if any(mark in page for mark in _FIREWALL_MARKS):
        return _human(known)
    if known.status < 400 and any(mark in page for mark in _OWN_PAGE_MARKS):
        return _signed_out(known)
    if any(mark in page for mark in _CHALLENGE_MARKS):
        return _human(known)
    if known.status >= 300:
        return _of_no_json(known)
    return _signed_out(known) if any(mark in page for mark in _SIGN_IN_MARKS) else None


_FIREWALL_MARKS = ("aliyun_waf", "access verification", "_____tmd_____", "/punish", "waf_nc_")
_OWN_PAGE_MARKS = ("__prerendered_data", "qwen-chat-fe/", "qwenchat-auth")
"""The service's own pages, which load the challenge's script too: an API answer was redirected to them."""
_CHALLENGE_MARKS = ("captcha", "baxia", "x5sec")
_SIGN_IN_MARKS = ('type="password"', "/auth?", "<title>sign in", "<title>log in", "login-container")


def _daily(refusal: _Refusal) -> QwenProxyError:
    """The account's daily cap, as the older proxies take it, unless the words name a model.

    Caps are counted per account and per model (protocol §13), but this code says not which (§6.2).
    """
    return _limit(refusal, model_only=refusal.says(_MODEL_NAMED))


def _quota(refusal: _Refusal) -> QwenProxyError:
    """The quota of a model or a feature, by its code (protocol §6.2): the account's other models go on."""
    return _limit(refusal, model_only=True)


def _limit(refusal: _Refusal, *, model_only: bool) -> QwenProxyError:
    what = "the usage limit of this model" if model_only else "a usage limit"
    message = f"this account has reached {what} on Qwen Chat"
    return LimitReached(message, wait_s=_limit_s(refusal), model_only=model_only)


def _throttled(refusal: _Refusal) -> QwenProxyError:
    """Minutes for the whole account: nothing is used up (protocol §6.2, §13)."""
    wait_s = refusal.retry_after_s or THROTTLE_WAIT_S
    return LimitReached("Qwen Chat is in high demand and refuses this account for now", wait_s=wait_s)


def _parallel(refusal: _Refusal) -> QwenProxyError:
    wait_s = refusal.retry_after_s or PARALLEL_WAIT_S
    return ParallelLimited("this account is writing as many answers at once as it may", wait_s=wait_s)


def _busy(_: _Refusal) -> QwenProxyError:
    return ChatBusy("the chat's last answer is not settled yet")


def _gone(_: _Refusal) -> QwenProxyError:
    return ChatGone("the chat, or the message to go on from, does not exist on the service")


def _signed_out(_: _Refusal) -> QwenProxyError:
    return TokenRejected("the service does not accept this account's sign-in")


def _not_activated(_: _Refusal) -> QwenProxyError:
    return TokenRejected("this account is not activated, or has been closed, on the service")


def _human(_: _Refusal) -> QwenProxyError:
    return NeedsHuman("the site asks for a human verification")


def _challenged(refusal: _Refusal) -> QwenProxyError:
    # Without a challenge to solve it says only that the service is busy, for any account (protocol §6.3).
    return UpstreamError("the service is busy and refused the request")


def _blocked(refusal: _Refusal) -> QwenProxyError:
    what = {"input": "the question", "output": "the answer"}.get(refusal.stage, "this content")
    return ContentBlocked(f"the service's moderation refused {what}" + _quoted(refusal.text))


def _invalid(refusal: _Refusal) -> QwenProxyError:
    if refusal.says(_CONTEXT):
        return _too_long(refusal)
    if refusal.says(_FILE):
        return _no_file(refusal)
    return BadRequest("the service found the request invalid" + _quoted(refusal.text))


def _no_file(_: _Refusal) -> QwenProxyError:
    return FileGone("the account that answers does not have an attached file", param="messages")


def _too_long(_: _Refusal) -> QwenProxyError:
    return ContextTooLong("the conversation is too long for this model or for the service", param="messages")


def _no_model(_: _Refusal) -> QwenProxyError:
    return UnknownModel("the service does not offer this model to this account", param="model")


def _no_voice(_: _Refusal) -> QwenProxyError:
    return BadRequest("the service has no voice for the language of this text", param="input")


def _no_task(_: _Refusal) -> QwenProxyError:
    return NotFound("the service does not know this task")


def _ended(_: _Refusal) -> QwenProxyError:
    return Severed("the answer to go on with has already ended")


def _denied(_: _Refusal) -> QwenProxyError:
    return UpstreamError("the service does not permit this to the account")


def _internal(_: _Refusal) -> QwenProxyError:
    return UpstreamError("the service reports an internal error")


def _any_of(*phrases: str) -> re.Pattern[str]:
    return re.compile("|".join(phrases), re.IGNORECASE)


_CONTEXT = _any_of(
    *(r"context (length|window)", r"maximum context", r"(input|prompt|message)\w* (is|are) too long"),
    *(r"prompt cannot exceed", r"exceeds? the (maximum|context)", r"maximum input length"),
    *(
        r"上下文",
        r"(输入|内容).{0,12}(过长|太长)",
        r"слишком длинн",
        r"контекст",
        r"muito long",
        r"demasiado larg",
    ),
)

_FILE = _any_of(
    *(r"\bfile\b.{0,80}\bnot exist", r"文件.{0,80}不存在"),
    *(r"файл.{0,80}не (существует|найден)", r"arquivo.{0,80}não existe"),
)
"""An attached file that the account does not have (protocol §6.2)."""

_MODEL_NAMED = _any_of(
    *(r"\bmodels?\b", r"\bmodelos?\b", r"模型", r"модел", r"\b(qwen|qwq|qvq)[a-z-]*\d"),
)
"""A limit whose words name a model is that model's (protocol §13)."""

_CONTEXT_CODES = ("context", "maxinput", "toolong", "lengthexceeded", "tokenlimit")
"""Parts of the names that a context overflow may have; the exact code is not known (protocol §6.2)."""

_Meaning: TypeAlias = Callable[[_Refusal], QwenProxyError]

_CODES: Mapping[str, _Meaning] = MappingProxyType(
    {
        "ratelimited": _daily,
        "quotalimited": _quota,
        "quotaexhausted": _quota,
        "exceedlimit": _quota,
        "parallellimited": _parallel,
        "quotalimit": _throttled,
        "toomanyrequests": _throttled,
        "chatinprogress": _busy,
        "chatnotfound": _gone,
        "parentnotfound": _gone,
        "modelnotfound": _no_model,
        "requestvalidationerror": _invalid,
        "invalidinput": _invalid,
        "unauthorized": _signed_out,
        "invalidtoken": _signed_out,
        "tokenexpired": _signed_out,
        "invalidcred": _signed_out,
        "accountpending": _not_activated,
        "accessprohibited": _not_activated,
        "datainspectionfailed": _blocked,
        "unsupportedlanguage": _no_voice,
        "failsysuservalidate": _human,
        "rgv587error": _challenged,
    }
)
"""By `code`, in lower case and without what is no letter or digit; protocol §6.2, §6.3, in its order."""

_TEXTS: tuple[tuple[re.Pattern[str], _Meaning], ...] = (
    (
        _any_of(
            *(r"chat is in progress", r"(andamento|en curso|en cours)\b", r"正在进行", r"进行中", r"進行中"),
            *(r"чат .{0,20}(в процессе|выполняется|занят)",),
        ),
        _busy,
    ),
    (
        _any_of(
            *(r"chat\b.{0,60}\bnot exist", r"chat has been deleted", r"chat not found"),
            *(r"(对话|会话|聊天).{0,60}(不存在|已被?删除)", r"чат.{0,60}(не существует|удал[её]н|не найден)"),
            *(r"(chat|conversa)\w*\b.{0,60}(não existe|no existe|exclu[ií]d|eliminad)",),
            *(r"\bparent_id\b", r"parent message", r"first message must not"),
        ),
        _gone,
    ),
    (
        _any_of(
            *(r"\bmodel\b.{0,60}\bnot (found|exist)", r"模型.{0,40}(不存在|未找到)"),
            *(r"модель.{0,60}не (найден|существует)", r"modelo.{0,60}(não|no) (foi )?(encontrad|existe)"),
        ),
        _no_model,
    ),
    (_any_of(r"\btask not found"), _no_task),
    (_any_of(r"request is (ended|finished)"), _ended),
    (
        _any_of(
            *(
                r"allocated quota exceeded",
                r"rate increased too quickly",
                r"high demand",
                r"too many requests",
            ),
            *(r"alta demanda", r"(muitas|demasiadas) (solicita|requisi|solicitu)", r"слишком много запросов"),
            *(
                r"высок\w+ (нагрузк|спрос)",
                r"请求(过多|过于频繁|太多)",
                r"排队",
                r"繁忙",
                r"需求.{0,4}(高|大)",
            ),
        ),
        _throttled,
    ),
    (_any_of(r"credits?\b.{0,60}(insufficient|not enough|exhausted|used up|run out)"), _quota),
    (_any_of(r"(insufficient|not enough|no more|out of) (\w+ ){0,2}credits?", r"积分(不足|已用完)"), _quota),
    (
        _any_of(
            *(r"(upper|usage|daily) limit", r"limite (diári|diari|de uso)", r"(дневн|суточн)\w+ лимит"),
            *(r"лимит\w* использования", r"(今日|今天|每日|使用).{0,12}上限"),
        ),
        _daily,
    ),
    (
        _any_of(
            *(r"content security", r"inappropriate content", r"内容安全", r"segurança d[eo] conteúdo"),
            *(r"conte(údo|nido) (impróprio|inadequado|inapropiado)", r"неприемлем\w+ (контент|содерж)"),
            *(r"безопасност\w+ (контент|содерж)",),
        ),
        _blocked,
    ),
    (
        _any_of(
            *(r"token (has |is )?(expired|invalid)", r"invalid token", r"unauthori[sz]ed", r"authenticat"),
            *(r"log ?in again", r"not authori[sz]ed", r"token expirou", r"não autorizado", r"no autorizado"),
            *(r"未授权", r"未登录", r"重新登录", r"令牌", r"авториз", r"войдите", r"токен"),
        ),
        _signed_out,
    ),
    (_CONTEXT, _too_long),
    (_FILE, _no_file),
    (_any_of(r"invalid input", r"too many messages"), _invalid),
    (
        _any_of(
            r"permission", r"permiss[ãi]o", r"permiso", r"没有权限", r"无权", r"нет (прав|доступ|разреш)"
        ),
        _denied,
    ),
    (_any_of(r"internal (server )?error", r"err?or? interno", r"внутренн\w+ ошибк", r"内部错误"), _internal),
)
"""By the service's words, which `Accept-Language` chooses; where the code says nothing, in this order."""


def _limit_s(refusal: _Refusal) -> float:
    """The wait that `num` (protocol §6.2) or `Retry-After` names, within bounds; else a daily limit's."""
    num = refusal.num
    try:
        hours = float(num) if isinstance(num, int | float | str) and not isinstance(num, bool) else math.nan
    except ValueError:
        hours = math.nan
    except OverflowError:
        hours = math.inf
    wait_s = (refusal.retry_after_s or DAILY_WAIT_S) if math.isnan(hours) else hours * 3600
    return min(max(wait_s, MIN_WAIT_S), MAX_WAIT_S)


def _retry_after_s(value: str, now: datetime | None) -> float | None:
    """Seconds from either form of `Retry-After`; None when there is none that can be understood."""
    value = value.strip()
    if re.fullmatch(r"\d{1,12}(\.\d*)?", value, re.ASCII):
        seconds = float(value)
    else:
        try:
            until = parsedate_to_datetime(value)
        except ValueError:
            return None
        if now is None:
            return None
        seconds = ((until if until.tzinfo else until.replace(tzinfo=UTC)) - now).total_seconds()
    return min(max(seconds, 1.0), MAX_WAIT_S)


def _quoted(text: str) -> str:
    if not text or "<" in text:
        return ""
    printable = "".join(c if c.isprintable() else " " for c in _seen(text))
    return ": " + printable[:QUOTED_CHARACTERS].strip()
