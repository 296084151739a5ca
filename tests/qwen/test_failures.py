from __future__ import annotations

import json
import random
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

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
from qwenproxy.qwen.failures import expects_stream, in_stream, judge, unwrap

HOUR = 3600.0
NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJpZCI6IjEifQ.c2lnbmF0dXJl"
WAF = '<!doctypehtml><html><meta name="aliyun_waf_aa"><title>Access Verification</title></html>'
NGINX = "<html>\n<head><title>504 Gateway Time-out</title></head>\n<body>nginx</body></html>"
APP = '<!DOCTYPE html><script src="//x/qwen-chat-fe/0.3.12/main.js"></script><i>captcha baxia</i>'


def of(code: object, details: object = "", **more: object) -> QwenProxyError | None:
    """What an enveloped refusal means."""
    body = {"success": False, "request_id": "q", "data": {"code": code, "details": details, **more}}
    return judge(200, {}, json.dumps(body))


CASES = [
    ("RateLimited", "You've reached the upper limit for today's usage.", LimitReached),
    ("ParallelLimited", "…", ParallelLimited),
    ("quotaLimited", "…", LimitReached),
    ("quota_exhausted", "…", LimitReached),
    ("ExceedLimit", "…", LimitReached),
    ("quota_limit", "O serviço está com alta demanda.", LimitReached),
    ("Too_Many_Requests", "Currently, there are too many requests in the queue.", LimitReached),
    (
        "internal_error",
        "Allocated quota exceeded, please increase your quota limit. #token-limit",
        LimitReached,
    ),
    ("internal_error", "Request rate increased too quickly", LimitReached),
    ("internal_error", "An unexpected error occurred.", UpstreamError),
    ("internal_error", "Internal Error", UpstreamError),
    ("Bad_Request", "The chat is in progress!", ChatBusy),
    ("CHAT_IN_PROGRESS", "", ChatBusy),
    ("Bad_Request", "O chat está em andamento!", ChatBusy),
    ("Bad_Request", "对话正在进行中！", ChatBusy),
    ("Bad_Request", "Чат уже выполняется!", ChatBusy),
    ("Bad_Request", "Internal error, please contact the service provider.", UpstreamError),
    ("Bad_Request", "Erro interno, contate o provedor.", UpstreamError),
    ("Bad_Request", "Внутренняя ошибка.", UpstreamError),
    ("Bad_Request", "内部错误，请联系服务商。", UpstreamError),
    ("Bad_Request", "Something wrong with request!", UpstreamError),
    ("Bad_Request", "", UpstreamError),
    ("RequestValidationError", "Field 'chat_id': Field required", BadRequest),
    ("RequestValidationError", ["Field '': Input should be a valid dictionary", 7, ""], BadRequest),
    ("invalid_input", "Invalid input or attachment. Please check and try again.", BadRequest),
    ("invalid_input", "The input is too long: maximum context length is 1000 tokens", ContextTooLong),
    ("Bad_Request", "Invalid input too many messages", BadRequest),
    ("Bad_Request", "Invalid input the file 12345678-90ab-4def-8000-000000000001 is not exist", FileGone),
    ("CHAT_NOT_FOUND", "This chat has been deleted. Please start a new chat to continue.", ChatGone),
    ("Bad_Request", "Invalid input the chat 12345678-90ab-4def-8000-000000000001 is not exist.", ChatGone),
    ("Bad_Request", "对话 c1 不存在", ChatGone),
    ("Bad_Request", "Чат c1 не существует", ChatGone),
    ("Not_Found", "", ChatGone),
    ("PARENT_NOT_FOUND", "…", ChatGone),
    ("Bad_Request", "Invalid input chat parent_id r1", ChatGone),
    ("Bad_Request", "first message must not be an assistant message", ChatGone),
    ("Not_Found", "Model not found", UnknownModel),
    ("Not_Found", "模型不存在", UnknownModel),
    ("Not_Found", "Модель не найдена", UnknownModel),
    ("Not_Found", "Task not found", NotFound),
    ("Unauthorized", "401 Unauthorized", TokenRejected),
    ("unauthorized", "Token has expired, please log in again.", TokenRejected),
    ("Invalid token", "", TokenRejected),
    ("INVALID_CRED", "The email or password is incorrect.", TokenRejected),
    ("Bad_Request", "Token has expired", TokenRejected),
    ("Bad_Request", "请重新登录", TokenRejected),
    ("ACCOUNT_PENDING", "", TokenRejected),
    ("access_prohibited", "", TokenRejected),
    (None, "You do not have permission to access this resource.", UpstreamError),
    ("data_inspection_failed", "Content security warning: …", ContentBlocked),
    ("Bad_Request", "内容安全警告：输入数据可能包含不当内容！", ContentBlocked),
    ("Internal_Server_Error", "text", UpstreamError),
    ("context_length_exceeded", "", ContextTooLong),
    ("InputTooLong", "", ContextTooLong),
    ("MaxInput", "", ContextTooLong),
    ("TokenLimitExceeded", "", ContextTooLong),
    ("Bad_Request", "Prompt cannot exceed 131072 characters.", ContextTooLong),
    ("Bad_Request", "Você atingiu o limite de uso de hoje.", LimitReached),
    ("Bad_Request", "Слишком много запросов", LimitReached),
    ("Bad_Request", "The request is finished!", Severed),
    ("Bad_Request", "The request is ended!", Severed),
    ("Brand_New", "who knows", UpstreamError),
    (None, "who knows", UpstreamError),
]


@pytest.mark.parametrize(("code", "details", "error"), CASES)
def test_every_code_and_text(code: str | None, details: object, error: type[QwenProxyError]) -> None:
    assert type(of(code, details)) is error
    assert type(in_stream({"code": code, "details": details})) is error
    assert type(in_stream({"error": {"code": code, "details": details}})) is error
    assert type(
        judge(200, {"x-actual-status-code": "200"}, json.dumps({"code": code, "message": details}))
    ) in {
        error,
        type(None),  # a bare answer with neither text nor a code that is known is no failure
        ProtocolChanged,
    }


def test_the_code_counts_before_the_text() -> None:
    assert isinstance(of("RateLimited", "The chat is in progress!"), LimitReached)
    assert isinstance(of("Brand_New", "The chat is in progress!"), ChatBusy)
    answer = {"success": True, "data": {"title": "RateLimited: the chat is in progress! Unauthorized"}}
    assert judge(200, {}, json.dumps(answer)) is None


def test_unknown_codes_are_named_if_they_are_names() -> None:
    assert str(of("Brand_New-2", "x")).endswith("with the code Brand_New-2")
    for odd in (TOKEN, "<b>", "two words", "x" * 41):
        assert str(of(odd, "x")) == "the service refused the request for a reason we do not know"


# ---- waits ----


def wait(error: QwenProxyError | None) -> float:
    assert isinstance(error, LimitReached)
    assert error.retry_after_s == error.wait_s
    return error.wait_s


@pytest.mark.parametrize(
    ("num", "hours"),
    [
        *((1, 1), (4, 4), (24, 24), (47.5, 47.5), ("3", 3), (" 3.5 ", 3.5), (0.5, 0.5)),
        *(
            (0, 1 / 60),
            (-1, 1 / 60),
            (0.001, 1 / 60),
            (1e9, 48),
            (10**400, 48),
            (float("inf"), 48),
            ("1e999", 48),
        ),
        *(
            (None, 24),
            (float("nan"), 24),
            ("nan", 24),
            ("soon", 24),
            ("", 24),
            ([4], 24),
            ({}, 24),
            (True, 24),
        ),
    ],
)
def test_hours_of_a_daily_limit(num: object, hours: float) -> None:
    assert wait(of("RateLimited", num=num)) == hours * HOUR
    assert wait(in_stream({"code": "RateLimited", "detail": "…", "num": num})) == hours * HOUR
    assert wait(judge(200, {}, json.dumps({"code": "RateLimited", "num": num}))) == hours * HOUR
    assert wait(
        judge(200, {}, json.dumps({"success": False, "data": {"code": "RateLimited"}, "num": num}))
    ) == (hours * HOUR)


def test_other_waits() -> None:
    assert wait(of("quotaLimited")) == 24 * HOUR
    assert wait(of("ParallelLimited")) == 10
    for code in ("quota_limit", "Too_Many_Requests"):
        assert wait(of(code)) == 120
    assert wait(of("internal_error", "Request rate increased too quickly")) == 120
    assert wait(in_stream("RateLimited: Guest limit exceeded")) == 24 * HOUR


@pytest.mark.parametrize("code", ["quotaLimited", "quota_exhausted", "ExceedLimit"])
def test_a_quota_is_that_of_the_model(code: str) -> None:
    for error in (of(code, num=3), in_stream({"error": {"code": code, "details": "…", "num": 3}})):
        assert wait(error) == 3 * HOUR
        assert isinstance(error, LimitReached)
        assert error.model_only


@pytest.mark.parametrize(
    ("details", "model_only"),
    [
        ("You've reached the upper limit for today's usage.", False),
        ("Guest limit exceeded", False),
        ("Qwen Chat: usage limit", False),
        ("您今日的使用已达上限", False),
        ("You have reached today's limit for this model.", True),
        ("Qwen3.7-Max has reached its daily limit", True),
        ("qwen-max-2 is used up for today", True),
        ("该模型今日使用次数已达上限", True),
        ("Вы исчерпали дневной лимит этой модели", True),
        ("Você atingiu o limite diário deste modelo", True),
    ],
)
def test_a_daily_limit_is_the_accounts_unless_it_names_a_model(details: str, model_only: bool) -> None:
    for error in (of("RateLimited", details, num=4), in_stream(f"RateLimited: {details}")):
        assert isinstance(error, LimitReached)
        assert error.model_only is model_only
        assert ("this model" in str(error)) is model_only


def test_throttles_are_the_accounts_and_last_minutes() -> None:
    for code in ("quota_limit", "Too_Many_Requests", "ParallelLimited"):
        error = of(code, "Too many requests for this model", num=4)
        assert isinstance(error, LimitReached)
        assert not error.model_only
        assert error.wait_s <= 120


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        *(("30", 30), (" 7 ", 7), ("1.5", 1.5), ("0", 1), ("999999999", 48 * HOUR), ("-5", 60), ("", 60)),
        *(("Sat, 21 Nov 2026 12:01:30 GMT", 90), ("Sat, 21 Nov 2026 12:01:30 -0000", 90)),
        *(("Sat, 21 Nov 2026 15:01:30 +0300", 90), ("Sat, 21 Nov 2026 11:00:00 GMT", 1)),
        *(("Sat, 21 Nov 2099 11:00:00 GMT", 48 * HOUR), ("soon", 60), ("٣", 60), ("Sat, 99 Nov 2026", 60)),
    ],
)
def test_retry_after(value: str, seconds: float) -> None:
    for now in (NOW, NOW.astimezone(timezone(timedelta(hours=-8)))):
        assert wait(judge(429, {"retry-after": value}, "{}", now)) == seconds


def test_retry_after_is_believed_where_a_body_names_no_time() -> None:
    headers = {"retry-after": "5"}
    for code, expected in {"RateLimited": 60, "Too_Many_Requests": 5, "ParallelLimited": 5}.items():
        body = json.dumps({"success": False, "data": {"code": code}})
        assert wait(judge(429, headers, body)) == expected
    body = json.dumps({"success": False, "data": {"code": "RateLimited"}})
    assert wait(judge(429, {"retry-after": "7200"}, body)) == 2 * HOUR
    assert wait(judge(429, {"retry-after": "999999"}, body)) == 48 * HOUR
    body = json.dumps({"success": False, "data": {"code": "RateLimited", "num": 2}})
    assert wait(judge(429, headers, body)) == 2 * HOUR
    assert wait(judge(429, {"retry-after": "Sat, 21 Nov 2026 12:01:30 GMT"}, "{}")) == 60


# ---- shapes ----


def test_successes() -> None:
    bodies: list[object] = [
        {"success": True, "data": {"id": "c1"}},
        {"success": True, "data": [], "message": "fine"},
        {"id": "u", "email": "x@example.com", "role": "user"},
        {"data": []},
        {"task_status": "running", "message": "", "detail": "", "error": None, "code": "0"},
        {"detail": ["x"]},
        {"ret": ["SUCCESS"]},
        [],
        {},
    ]
    for body in bodies:
        assert judge(200, {"x-actual-status-code": "200"}, json.dumps(body)) is None, body
    assert judge(200, {"bxpunish": "1"}, '{"success":true}') is None


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"detail": "401 Unauthorized"}, TokenRejected),
        ({"detail": "who knows"}, UpstreamError),
        ({"error": "Internal error!"}, UpstreamError),
        ({"error": "RateLimited: no"}, LimitReached),
        ({"error": "RateLimited"}, LimitReached),
        ({"error": {"message": "The chat is in progress!"}}, ChatBusy),
        ({"error": True}, ProtocolChanged),
        ({"message": "The chat is in progress!"}, ChatBusy),
        ({"code": "CHAT_IN_PROGRESS"}, ChatBusy),
        ({"success": False}, ProtocolChanged),
        ({"success": None, "data": 7}, ProtocolChanged),
        ({"success": False, "data": "The chat is in progress!"}, ChatBusy),
        ({"success": False, "code": "RateLimited"}, LimitReached),
        ({"success": False, "message": "The chat is in progress!"}, ChatBusy),
        ({"success": False, "data": {"errorCode": "RateLimited"}}, LimitReached),
        ({"success": False, "data": {"error": {"code": "RateLimited"}}}, LimitReached),
        ({"success": False, "data": {"code": 401, "details": "x"}}, TokenRejected),
        ({"success": False, "data": {"code": 7, "details": "x"}}, UpstreamError),
        (
            {"ret": ["FAIL_SYS_USER_VALIDATE", "RGV587_ERROR::SM::busy"], "data": {"url": "/punish?x"}},
            NeedsHuman,
        ),
        ({"ret": ["FAIL_SYS_USER_VALIDATE"]}, NeedsHuman),
        ({"ret": "RGV587_ERROR::SM::busy", "data": {"url": "//x/_____tmd_____/punish"}}, NeedsHuman),
        ({"ret": ["RGV587_ERROR::SM::busy"], "data": {}}, UpstreamError),
        ("text", ProtocolChanged),
        (7, ProtocolChanged),
        (None, ProtocolChanged),
    ],
)
def test_bodies_at_200(body: object, error: type[QwenProxyError]) -> None:
    assert type(judge(200, {}, json.dumps(body))) is error


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (200, "", EmptyAnswer),
        (204, " \n", EmptyAnswer),
        (302, "", TokenRejected),
        (401, "", TokenRejected),
        (401, "{}", TokenRejected),
        (401, '{"detail": "bad token"}', TokenRejected),
        (403, "{}", TokenRejected),
        (403, '{"detail": "Not authenticated"}', TokenRejected),
        (403, "", NeedsHuman),
        (405, "Not allowed", NeedsHuman),
        (404, '{"detail": "Not Found"}', ProtocolChanged),
        (413, "too large", ContextTooLong),
        (422, '{"detail": [{"loc": ["body"]}]}', BadRequest),
        (429, "slow down", LimitReached),
        (429, '{"detail": "slow down"}', LimitReached),
        (400, "{}", UpstreamError),
        (500, "oops", UpstreamError),
        (503, '{"success": true}', UpstreamError),
        (200, "oops", ProtocolChanged),
        (200, "{" * 20_000, ProtocolChanged),
        (200, "[" * 200_000, ProtocolChanged),
        (200, WAF, NeedsHuman),
        (403, WAF, NeedsHuman),
        (405, "<html>blocked</html>", NeedsHuman),
        (504, NGINX, UpstreamError),
        (502, "<html>captcha</html>", NeedsHuman),
        (200, "<html><div class='baxia-dialog'></div></html>", NeedsHuman),
        (200, APP, TokenRejected),
        (503, NGINX + "qwen-chat-fe/", UpstreamError),
        (200, '<html><input type="password"></html>', TokenRejected),
        (200, "<html>hello</html>", ProtocolChanged),
        (429, "<html>slow</html>", LimitReached),
    ],
)
def test_statuses_and_pages(status: int, body: str, error: type[QwenProxyError]) -> None:
    assert type(judge(status, {}, body)) is error
    assert type(judge(200, {"x-actual-status-code": str(status)}, body)) is error


def test_the_actual_status_is_in_a_header() -> None:
    assert isinstance(judge(200, {"x-actual-status-code": "401"}, '{"success": true}'), TokenRejected)
    assert judge(500, {"x-actual-status-code": "200"}, '{"success": true}') is None
    for odd in ("", "x", "2000", "٢٠٠", "-1", "999"):
        assert judge(200, {"x-actual-status-code": odd}, '{"success": true}') is None


@pytest.mark.parametrize("header", ["bxpunish", "x5secdata"])
def test_risk_control_in_the_headers(header: str) -> None:
    assert isinstance(judge(200, {header: "1"}, "oops"), NeedsHuman)


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        ("text/event-stream; charset=utf-8", True),
        (" Text/Event-Stream", True),
        ("application/json", False),
        ("text/html", False),
    ],
)
def test_only_the_content_type_makes_a_stream(content_type: str, expected: bool) -> None:
    assert expects_stream({"content-type": content_type}) is expected
    assert expects_stream({}) is False


def test_unwraps() -> None:
    assert unwrap('{"success": true, "data": {"id": 1}}') == {"id": 1}
    assert unwrap('{"success": true}') is None
    assert unwrap('{"data": [1]}') == {"data": [1]}
    assert unwrap("[1]") == [1]
    for body in ("", "<html>", "[" * 200_000):
        with pytest.raises(ProtocolChanged):
            unwrap(body)


# ---- what is said ----


def test_moderation_says_what_and_why() -> None:
    error = in_stream(
        {"code": "data_inspection_failed", "details": "No\n good\u202e!" + "x " * 500, "stage": "output"}
    )
    assert str(error).startswith("the service's moderation refused the answer: No  good !x x")
    assert len(str(error)) < 300
    assert "the question" in str(of("data_inspection_failed", "x", stage="input"))
    assert str(of("data_inspection_failed", stage=7)) == "the service's moderation refused this content"


def test_the_services_words_are_quoted_nowhere_else() -> None:
    for code, details, error in CASES:
        said = str(of(code, details))
        if error not in {BadRequest, ContentBlocked}:
            assert not str(details) or str(details) not in said or len(str(details)) < 5, said


@pytest.mark.parametrize(
    "body", [TOKEN, f'{{"t": "{TOKEN}"}}', f"<html>{TOKEN}", f'{{"success": false, "x": "{TOKEN}"}}']
)
def test_tokens_and_pages_stay_out_of_errors(body: str) -> None:
    error = judge(200, {}, body) or in_stream(json.loads(body))
    assert "eyJ" not in str(error) + getattr(error, "seen", "")
    assert "<" not in str(error)
    for code in ("invalid_input", "data_inspection_failed"):
        assert "eyJ" not in str(of(code, f"Invalid token {TOKEN}!"))
        assert "<" not in str(of(code, "see <b>this</b>"))


def test_what_was_seen_is_short() -> None:
    error = judge(200, {}, "oops " * 100)
    assert isinstance(error, ProtocolChanged)
    assert error.seen == "oops " * 16


# ---- anything at all ----

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["code", "details", "detail", "message", "num", "data"]), inner)
    ),
    max_leaves=6,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(["success", "error", "ret", "code", "num", "data", "detail"]), JSON))
@example({"error": {"code": "data_inspection_failed", "details": "\ud800"}})
def test_no_answer_is_too_strange(body: dict[str, object]) -> None:
    error = judge(200, {}, json.dumps(body))
    assert error is None or isinstance(error, QwenProxyError)
    assert isinstance(in_stream(body), QwenProxyError)


@settings(deadline=None)
@given(st.text(max_size=40))
def test_no_header_is_too_strange(value: str) -> None:
    headers = {"retry-after": value, "x-actual-status-code": value, "content-type": value}
    assert 1 <= wait(judge(429, headers | {"x-actual-status-code": ""}, "{}", NOW)) <= 48 * HOUR
    judge(200, headers, value)


def test_a_long_text_takes_no_longer() -> None:
    dice = random.Random(1)
    for _ in range(5):
        details = "".join(
            dice.choice(["chat", "model", "file ", "чат ", "не ", "limit "]) for _ in range(200_000)
        )
        assert isinstance(of("Bad_Request", details), QwenProxyError)


def test_errors_about_errors_of_any_depth() -> None:
    deep: object = []
    for _ in range(20_000):
        deep = [deep]
    assert isinstance(in_stream(deep), ProtocolChanged)
    assert isinstance(in_stream(""), ProtocolChanged)
    assert isinstance(in_stream({"success": True}), ProtocolChanged)
