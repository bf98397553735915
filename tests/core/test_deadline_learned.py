"""A deadline that is set, or learned from what was usual."""

from __future__ import annotations

import math

import pytest

from goco_mpi.core.pace.deadline import WINDOW, Deadline


@pytest.mark.parametrize("setting", [0.0, 0.25, math.inf])
def test_a_set_deadline_stays(setting: float) -> None:
    deadline = Deadline(setting, factor=3.0, first_s=9.0)
    for seconds in (0.0, 1.0, 100.0):
        assert deadline.seconds == setting
        deadline.observe(seconds)
    assert deadline.seconds == setting


def test_automatic_starts_as_told_and_becomes_a_multiple_of_the_median() -> None:
    deadline = Deadline("auto", factor=2.0, first_s=0.05)
    assert deadline.seconds == 0.05
    for seconds, expected in ((1.0, 2.0), (3.0, 4.0), (2.0, 4.0), (100.0, 5.0)):
        deadline.observe(seconds)
        assert deadline.seconds == expected


def test_automatic_waits_for_ever_before_anything_was_seen() -> None:
    assert Deadline("auto", factor=2.0).seconds == math.inf


def test_one_hiccup_does_not_move_the_deadline() -> None:
    deadline = Deadline("auto", factor=2.0)
    for _ in range(10):
        deadline.observe(0.1)
    deadline.observe(1000.0)
    assert deadline.seconds == pytest.approx(0.2)


def test_a_lasting_slow_down_moves_the_deadline_although_everything_is_cut_at_it() -> None:
    deadline = Deadline("auto", factor=2.0)
    for _ in range(WINDOW):
        deadline.observe(0.1)
    slow = 5.0
    rounds = 0
    while deadline.seconds < slow:
        deadline.observe(min(slow, deadline.seconds))  # work that was cut lasted until the deadline
        rounds += 1
        assert rounds < WINDOW * 10, "the deadline never reaches the new pace"
    # And back, when the slow-down is over.
    for _ in range(WINDOW):
        deadline.observe(0.1)
    assert deadline.seconds == pytest.approx(0.2)


def test_the_window_forgets() -> None:
    deadline = Deadline("auto", factor=1.0)
    for seconds in [9.0] * WINDOW + [1.0] * (WINDOW // 2):
        deadline.observe(seconds)
    assert deadline.seconds == 9.0
    deadline.observe(1.0)
    assert deadline.seconds == 1.0
