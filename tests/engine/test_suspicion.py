"""Whom a rank waits for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from goco_mpi.engine.suspicion import TRUSTED_AFTER, Suspicion


def test_a_neighbour_is_trusted_at_first_and_as_long_as_it_keeps_pace() -> None:
    suspicion = Suspicion()
    for round_ in range(20):
        assert not suspicion.suspect
        suspicion.judge(round_, missed=False)
    assert not suspicion.suspect


def test_one_miss_makes_a_suspect() -> None:
    suspicion = Suspicion()
    suspicion.judge(heard_round=0, missed=True)
    assert suspicion.suspect


def test_trust_returns_after_exactly_the_named_number_of_rounds_in_pace() -> None:
    suspicion = Suspicion()
    suspicion.judge(heard_round=0, missed=True)
    for round_ in range(1, TRUSTED_AFTER + 1):
        assert suspicion.suspect
        suspicion.judge(round_, missed=False)
    assert not suspicion.suspect


def test_the_missed_round_itself_is_not_one_in_pace() -> None:
    # It may bring something newer than the round before, and still came too late.
    suspicion = Suspicion()
    for round_ in range(10):
        suspicion.judge(round_, missed=True)
        assert suspicion.suspect


def test_out_of_step_is_in_pace() -> None:
    # Equally fast but rounds behind: every round brings something newer, whatever its number.
    suspicion = Suspicion()
    suspicion.judge(heard_round=-1, missed=True)
    for round_ in range(TRUSTED_AFTER):
        suspicion.judge(heard_round=100 + 7 * round_, missed=False)
    assert not suspicion.suspect


def test_a_gap_starts_the_count_anew() -> None:
    suspicion = Suspicion()
    suspicion.judge(heard_round=0, missed=True)
    heard = 0
    for _ in range(10):
        for _ in range(TRUSTED_AFTER - 1):
            heard += 1
            suspicion.judge(heard, missed=False)
        suspicion.judge(heard, missed=False)  # nothing newer
        assert suspicion.suspect


def test_a_rank_that_is_slow_for_good_costs_one_wait() -> None:
    suspicion = Suspicion()
    waits = 0
    for round_ in range(200):
        heard = round_ // 10  # ten times slower
        waited = not suspicion.suspect
        waits += waited and heard < round_
        suspicion.judge(heard, missed=waited and heard < round_)
    assert waits == 1


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=60))
def test_suspect_means_a_miss_since_the_last_rounds_in_pace(history: list[tuple[int, bool]]) -> None:
    suspicion = Suspicion()
    heard, newer, expected = -1, [], False
    for step, missed in history:
        heard += step
        newer.append(step > 0 and not missed)
        suspicion.judge(heard, missed)
        if missed:
            expected = True
        elif len(newer) >= TRUSTED_AFTER and all(newer[-TRUSTED_AFTER:]):
            expected = False
        assert suspicion.suspect == expected
