"""Whom a rank waits for."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from goco_mpi.core.pace.suspicion import MOST_PATIENCE, TRUSTED_AFTER, Suspicion

IN_TIME, LATE = False, True


def suspected() -> Suspicion:
    """Return the suspicion of a neighbour that has missed one deadline, heard up to round 0."""
    suspicion = Suspicion()
    suspicion.judge(heard_round=0, late=LATE, missed=True)
    return suspicion


def rounds_out_of_step(suspicion: Suspicion, heard: int) -> int:
    """Return after how many rounds in pace, but late, a suspect is trusted again."""
    for count in range(1, 10 * MOST_PATIENCE):
        suspicion.judge(heard + count, LATE, missed=False)
        if not suspicion.suspect:
            return count
    raise AssertionError("never trusted again")


def test_a_neighbour_is_trusted_at_first_and_as_long_as_it_is_in_time() -> None:
    suspicion = Suspicion()
    for round_ in range(20):
        assert not suspicion.suspect
        suspicion.judge(round_, IN_TIME, missed=False)
    assert not suspicion.suspect


def test_one_miss_makes_a_suspect() -> None:
    assert suspected().suspect


def test_who_catches_up_is_trusted_after_exactly_the_named_number_of_rounds() -> None:
    suspicion = suspected()
    for round_ in range(1, TRUSTED_AFTER + 1):
        assert suspicion.suspect
        suspicion.judge(round_, IN_TIME, missed=False)
    assert not suspicion.suspect


def test_the_missed_round_itself_is_not_one_in_pace() -> None:
    # It may bring something newer than the round before, and still came too late.
    suspicion = Suspicion()
    for round_ in range(10):
        suspicion.judge(round_, LATE, missed=True)
        assert suspicion.suspect


def test_out_of_step_is_in_pace() -> None:
    # Equally fast but rounds behind: every round brings something newer, whatever its number.
    assert rounds_out_of_step(suspected(), heard=100) == TRUSTED_AFTER


def test_waiting_in_vain_for_one_out_of_step_is_tried_ever_more_rarely() -> None:
    suspicion, heard, attempts = suspected(), 1000, []
    for _ in range(8):
        attempts.append(rounds_out_of_step(suspicion, heard))
        heard += 1000
        suspicion.judge(heard, LATE, missed=True)
    assert attempts == [3, 6, 12, 24, 48, 48, 48, 48]


def test_one_that_was_out_of_step_and_caught_up_is_judged_anew() -> None:
    suspicion, heard = suspected(), 1000
    for _ in range(5):
        rounds_out_of_step(suspicion, heard)
        heard += 1000
        suspicion.judge(heard, LATE, missed=True)
    for _ in range(2 * TRUSTED_AFTER):
        heard += 1
        suspicion.judge(heard, IN_TIME, missed=False)
    assert not suspicion.suspect
    heard += 1000
    suspicion.judge(heard, LATE, missed=True)
    assert rounds_out_of_step(suspicion, heard) == TRUSTED_AFTER


def test_a_gap_starts_the_count_anew() -> None:
    suspicion, heard = suspected(), 0
    for _ in range(10):
        for _ in range(TRUSTED_AFTER - 1):
            heard += 1
            suspicion.judge(heard, LATE, missed=False)
        suspicion.judge(heard, LATE, missed=False)  # nothing newer
        assert suspicion.suspect


def test_a_rank_that_is_slow_for_good_costs_one_wait() -> None:
    suspicion = Suspicion()
    waits = 0
    for round_ in range(200):
        heard = 10 * (round_ // 10)  # ten times slower, and it jumps to the newest round
        missed = not suspicion.suspect and heard < round_
        waits += missed
        suspicion.judge(heard, round_ - heard, missed)
    assert waits == 1


def test_a_recovered_rank_is_waited_for_within_five_rounds() -> None:
    suspicion = suspected()
    for _ in range(50):  # frozen
        suspicion.judge(0, 50, missed=False)
    rounds = 0
    while suspicion.suspect:
        rounds += 1
        suspicion.judge(100 + rounds, IN_TIME, missed=False)
    assert rounds <= 5


SPELLS = st.lists(
    st.tuples(
        st.sampled_from(["in time", "late", "late in pace", "gone silent"]), st.integers(1, 2 * TRUSTED_AFTER + 1)
    ),
    max_size=14,
)
"""What a neighbour does, and for how many rounds."""


@settings(max_examples=400, deadline=None)
@given(spells=SPELLS, start=st.integers(0, 3))
@example(spells=[("late", 1), ("in time", 4), ("late", 1), ("late in pace", 7)], start=0)
@example(
    spells=[("late", 1), ("late in pace", 3), ("late", 1), ("in time", 4), ("late", 1), ("late in pace", 7)], start=0
)
@example(spells=[("in time", 7), ("gone silent", 1), ("in time", 7), ("late", 2), ("in time", 3)], start=0)
def test_not_judging_a_settled_neighbour_that_is_in_time_changes_no_later_answer(
    spells: list[tuple[str, int]], start: int
) -> None:
    always, skipping = Suspicion(), Suspicion()
    round_, heard, n_skipped = 0, start - 1, 0
    for spell, n_rounds in spells:
        for _ in range(n_rounds):
            if spell == "in time":
                heard = max(heard + 1, round_)
            elif spell == "late in pace":
                heard = max(heard, min(heard + 1, round_ - 1))
            elif spell == "late":  # something newer, now and then
                heard = max(heard, min(heard + round_ % 2, round_ - 1))
            late = heard < round_
            # The exchange waits for whom it does not suspect.
            always.judge(heard, late, missed=late and not always.suspect)
            if late or not skipping.settled:
                skipping.judge(heard, late, missed=late and not skipping.suspect)
            else:
                n_skipped += 1
            assert skipping.suspect == always.suspect
            round_ += 1
    if [spell for spell, _ in spells] == ["in time"] and spells[0][1] > TRUSTED_AFTER:
        assert n_skipped == spells[0][1] - TRUSTED_AFTER  # it does spare something
