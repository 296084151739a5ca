from __future__ import annotations

import inspect
import re

import pytest

from qwenproxy import errors
from qwenproxy.errors import QwenProxyError

DRAWN = re.findall(r"^[│├└─ ]*(\w+) +(?:(\d{3}) (\w+)|no account)?", str(errors.__doc__), re.MULTILINE)
CLASSES: dict[str, type[QwenProxyError]] = dict(inspect.getmembers(errors, inspect.isclass))


def test_the_drawing_shows_every_class() -> None:
    assert {name for name, *_ in DRAWN if name in CLASSES} == set(CLASSES)


@pytest.mark.parametrize(("name", "status", "code"), [row for row in DRAWN if row[1]])
def test_the_drawing_tells_the_status_and_code(name: str, status: str, code: str) -> None:
    assert (str(CLASSES[name].status), CLASSES[name].code) == (status, code)


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_every_error_has_a_place_in_the_tree(name: str) -> None:
    assert issubclass(CLASSES[name], QwenProxyError)
    assert 400 <= CLASSES[name].status <= 599


def test_errors_carry_what_their_handlers_need() -> None:
    assert errors.BadRequest("no", param="model").param == "model"
    assert errors.AllWaiting("wait", retry_after_s=7).retry_after_s == 7
    limit = errors.LimitReached("wait", wait_s=9)
    assert (limit.wait_s, limit.retry_after_s) == (9, 9)
    assert errors.ProtocolChanged("odd", seen="x" * 200).seen == "x" * 80
