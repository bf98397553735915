import numpy as np
import pytest
from crews import on_all
from hypothesis import given, settings
from hypothesis import strategies as st

from goco_mpi.data import labels
from goco_mpi.data.crew import Crew
from goco_mpi.errors import InputError


def find(targets, kind="softmax", crew=None):
    return labels.find(np.asarray(targets, dtype=float), len(targets), kind, Crew() if crew is None else crew)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-4, 5), min_size=1, max_size=30))
def test_labels_become_their_places_in_ascending_order(targets):
    found = find(targets)
    order = sorted(set(targets))
    assert found.values.tolist() == order
    classes = found.encode(np.array(targets, dtype=float))
    assert classes.tolist() == [float(order.index(label)) for label in targets]
    assert classes.dtype == np.float64


def test_two_classes_of_a_logistic_model_are_minus_one_and_one():
    assert find([3, 7, 3], "logistic").encode(np.array([7.0, 3.0])).tolist() == [1.0, -1.0]


@pytest.mark.parametrize("size", [1, 2, 5])
def test_who_has_read_some_targets_knows_the_labels_of_all(size):
    targets = np.array([4.0, 1.0, 9.0])

    def mine(crew):
        return labels.find(targets[crew.piece(3)], 3, "softmax", crew).values.tolist()

    assert on_all(size, mine) == [[1.0, 4.0, 9.0]] * size


def test_real_numbers_anywhere_are_no_labels_to_anybody():
    targets = np.array([0.0, 1.0, 1.5, 1.0])
    assert on_all(2, lambda crew: labels.find(targets[crew.piece(4)], 4, "softmax", crew)) == [None, None]


def test_targets_that_are_nearly_all_different_are_no_classes():
    with pytest.raises(InputError, match=r"Got 13 different values in 20 samples\. Use 'least_squares'"):
        find(np.arange(20) * 2 // 3)
    assert len(find(np.arange(10)).values) == 10


@pytest.mark.parametrize("strange", [5.0, -1.0, 99.0])
def test_a_label_that_is_none_is_refused(strange):
    with pytest.raises(InputError, match=rf"one of the labels 0, 4, 9\. Got {strange:g}"):
        find([0, 4, 9]).encode(np.array([4.0, strange]))
