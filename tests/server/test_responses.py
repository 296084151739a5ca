from __future__ import annotations

import pytest

from qwenproxy.errors import AllWaiting, BadRequest, QueueFull
from qwenproxy.server.responses import error_response, json_response


def test_json_is_always_utf8() -> None:
    response = json_response({"a": "ж\ud800"}, 201, {"X-A": "1"})
    assert bytes(response.body).decode() == '{"a":"ж\ufffd"}'
    assert (response.status_code, response.headers["x-a"]) == (201, "1")
    assert response.headers["content-type"] == "application/json"


@pytest.mark.parametrize(("seconds", "said"), [(0.0, "1"), (0.2, "1"), (5.0, "5"), (12.01, "13")])
def test_retry_after_is_whole_seconds_and_never_too_early(seconds: float, said: str) -> None:
    error = AllWaiting("wait", retry_after_s=seconds)
    assert error_response(error, {}).headers["retry-after"] == said


def test_retry_after_only_where_it_is_known() -> None:
    assert "retry-after" not in error_response(BadRequest("no"), {}).headers
    response = error_response(QueueFull("full"), {"error": 1}, {"Connection": "close"})
    assert (response.status_code, response.headers["retry-after"]) == (429, "5")
    assert response.headers["connection"] == "close"
