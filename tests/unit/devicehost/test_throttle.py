from __future__ import annotations

from services.devicehost.throttle import Throttle


def test_one_per_interval_is_let_through_and_the_others_are_counted() -> None:
    now = [100.0]
    throttle = Throttle(1.0, clock=lambda: now[0])
    answers = [throttle.admit() for _ in range(4)]
    now[0] = 100.999
    answers.append(throttle.admit())
    now[0] = 101.0
    answers += [throttle.admit(), throttle.admit()]
    assert answers == [0, None, None, None, None, 4, None]
