"""Numbers that spread with the gossip: the newest wins, whatever way it came."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from goco_mpi.core.bulletin import Bulletin

N_RANKS = 4


def value_of(rank: int, round_: int) -> float:
    """Return what a rank says in a round: it says one thing only."""
    return 1000.0 * rank + 0.5 * round_


def bulletin_of(rounds: list[int]) -> Bulletin:
    """Return a bulletin that holds each rank's number of the given round; -1 for none."""
    bulletin = Bulletin(len(rounds))
    for rank, round_ in enumerate(rounds):
        if round_ >= 0:
            bulletin.post(rank, round_, value_of(rank, round_))
    return bulletin


ROUNDS = st.lists(st.integers(-1, 6), min_size=N_RANKS, max_size=N_RANKS)


@given(many=st.lists(ROUNDS, min_size=1, max_size=6), data=st.data())
def test_the_newest_wins_in_whatever_order_merges_come(many: list[list[int]], data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(many))))
    merged = Bulletin(N_RANKS)
    for place in order:
        merged.merge(bulletin_of(many[place]).entries.ravel())
    newest = np.max(many, axis=0).tolist()
    np.testing.assert_array_equal(merged.entries, bulletin_of(newest).entries)


@given(first=ROUNDS, second=ROUNDS)
def test_merging_is_commutative_and_idempotent(first: list[int], second: list[int]) -> None:
    one, other = bulletin_of(first), bulletin_of(second)
    one.merge(bulletin_of(second).entries.ravel())
    other.merge(bulletin_of(first).entries.ravel())
    np.testing.assert_array_equal(one.entries, other.entries)
    before = one.entries.copy()
    for again in (bulletin_of(first), bulletin_of(second), other):
        one.merge(again.entries.ravel())
        np.testing.assert_array_equal(one.entries, before)


@given(rounds=ROUNDS)
def test_the_total_is_there_once_everybody_has_spoken(rounds: list[int]) -> None:
    total = bulletin_of(rounds).total()
    if min(rounds) < 0:
        assert math.isnan(total)
    else:
        assert total == sum(value_of(rank, round_) for rank, round_ in enumerate(rounds))


def test_merging_leaves_what_came_as_it_was_and_shares_no_memory_with_it() -> None:
    # What came lies in a buffer that the next message overwrites.
    theirs = bulletin_of([3, -1, 2, 5]).entries.ravel()
    kept = theirs.copy()
    mine = bulletin_of([1, 4, 2, -1])
    mine.merge(theirs)
    np.testing.assert_array_equal(theirs, kept)
    theirs[:] = 99.0
    np.testing.assert_array_equal(mine.entries, bulletin_of([3, 4, 2, 5]).entries)


def test_one_says_something_new_of_itself() -> None:
    bulletin = bulletin_of([0, 0])
    bulletin.post(1, 7, -2.5)
    bulletin.merge(bulletin_of([0, 3]).entries.ravel())  # what it said before comes back from a neighbour
    assert bulletin.total() == value_of(0, 0) - 2.5


@given(n_ranks=st.integers(2, 9), data=st.data())
def test_on_a_line_a_number_is_known_to_all_after_as_many_rounds_as_the_line_is_long(
    n_ranks: int, data: st.DataObject
) -> None:
    speaker = data.draw(st.integers(0, n_ranks - 1))
    bulletins = [bulletin_of([0] * n_ranks) for _ in range(n_ranks)]
    bulletins[speaker].post(speaker, 1, 0.25)
    for round_ in range(1, n_ranks):
        sent = [bulletin.entries.ravel().copy() for bulletin in bulletins]
        for rank, bulletin in enumerate(bulletins):
            for neighbor in (rank - 1, rank + 1):
                if 0 <= neighbor < n_ranks:
                    bulletin.merge(sent[neighbor])
        for rank, bulletin in enumerate(bulletins):
            assert (bulletin.entries[0, speaker] == 1.0) == (abs(rank - speaker) <= round_)
    assert len({bulletin.total() for bulletin in bulletins}) == 1


def test_after_a_restart_only_what_is_said_anew_counts_and_the_absent_say_nothing():
    board = Bulletin(3)
    for rank in range(3):
        board.post(rank, 5, 1.0)
    assert board.total() == 3.0
    board.restart([1])
    assert np.isnan(board.total())
    board.post(0, 6, 0.5)
    board.post(2, 6, 0.25)
    assert board.total() == 0.75
