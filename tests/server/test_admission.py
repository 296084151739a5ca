from __future__ import annotations

import pytest

from qwenproxy.errors import QueueFull, ShuttingDown
from qwenproxy.server.admission import Admission


def test_no_more_come_in_than_there_is_room_for() -> None:
    admission = Admission(2)
    with admission.enter(), admission.enter():
        assert admission.inside == 2
        with pytest.raises(QueueFull, match="2 requests are inside already"), admission.enter():
            pass
    with admission.enter():
        assert admission.inside == 1
    assert admission.inside == 0


def test_nobody_comes_in_while_it_drains() -> None:
    admission = Admission(2)
    with admission.enter():
        admission.draining = True
        with pytest.raises(ShuttingDown), admission.enter():
            pass
        assert admission.inside == 1


def test_who_fails_inside_is_out_again() -> None:
    admission = Admission(1)
    with pytest.raises(ValueError, match="odd"), admission.enter():
        raise ValueError("odd")
    assert admission.inside == 0
