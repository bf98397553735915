"""Ages of mixed vectors, on events made by hand."""

from __future__ import annotations

import numpy as np

from goco_mpi.core.events import NONE, Events
from goco_mpi.reporting.ages import UNKNOWN, ages, shares


def events(*rows: tuple[int, int, int]) -> Events:
    """Return the events of a rank with one neighbour: round, point, used."""
    return Events(np.array(rows, dtype=np.int32), 1)


def test_an_age_is_rounds_between_the_step_and_the_vector_and_never_negative() -> None:
    ahead = events((0, 0, 0), (5, 1, 0), (6, NONE, NONE))
    behind = events((0, 0, 0), (1, 1, 1), (6, NONE, NONE))
    found = ages([ahead, behind], [[1], [0]], [2, 2])
    assert found[0].ravel().tolist() == [0, 5]
    assert found[1].ravel().tolist() == [0, 0]  # of round 5 in round 1


def test_a_vector_that_came_with_the_goodbye_has_its_round() -> None:
    done = events((0, 0, NONE), (1, NONE, NONE))
    goes_on = events((0, 0, NONE), (4, 1, 1), (5, NONE, NONE))
    assert ages([done, goes_on], [[1], [0]], [1, 2])[1].ravel().tolist() == [UNKNOWN, 3]


def test_after_a_resumption_steps_are_counted_from_the_beginning() -> None:
    # Both went on in step 10; what was used of step 9 was in the part before.
    one = events((10, 10, 9), (11, 11, 10), (12, NONE, NONE))
    two = events((10, 10, 10), (13, 11, 11), (14, NONE, NONE))
    found = ages([one, two], [[1], [0]], [12, 12])
    assert found[0].ravel().tolist() == [UNKNOWN, 1]
    assert found[1].ravel().tolist() == [0, 2]


def test_shares_add_up_to_one_with_those_too_old() -> None:
    values = [np.array([[0, 1], [2, 7], [UNKNOWN, 0]], dtype=np.int32), np.zeros((0, 3), dtype=np.int32)]
    of_age, unused = shares(values, limit=2)
    np.testing.assert_allclose(of_age, [2 / 6, 1 / 6, 1 / 6])
    np.testing.assert_allclose(unused, 2 / 6)
    of_age, unused = shares([np.zeros((4, 0), dtype=np.int32)], limit=0)
    assert (of_age.tolist(), unused) == ([0.0], 0.0)
