import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goco_mpi.data.readers.memory import InMemory
from goco_mpi.data.source import Cut
from goco_mpi.data.split import count, split, train_test
from goco_mpi.errors import InputError
from goco_mpi.schema import DataConfig


def numbers(rows):
    return np.r_[rows].astype(int).tolist()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.floats(0.0, 0.99), st.integers(0, 2**63 - 1))
def test_every_row_is_once_in_one_of_both_parts_in_order(n, fraction, seed):
    if round(n * fraction) == n:
        with pytest.raises(InputError, match=rf"data.test_fraction = .* leaves none of {n} samples"):
            train_test(n, fraction, seed)
        return
    train, test = train_test(n, fraction, seed)
    assert count(test) == round(n * fraction)
    assert sorted([*numbers(train), *numbers(test)]) == list(range(n))
    for part in (train, test):
        assert numbers(part) == sorted(numbers(part))


def test_the_split_depends_on_the_seed_alone():
    first, again, other = (numbers(train_test(40, 0.3, seed)[1]) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("fraction", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["iid", "by_label", "in_order", "dirichlet", "by_column"])
def test_shards_hold_every_training_row_of_the_source_once(kind, fraction):
    n = 53
    targets, groups = np.arange(n) % 3.0, np.arange(n) % 7
    source = InMemory("here", np.ones((n, 1)), targets)
    config = DataConfig(partition=kind, shards=4, test_fraction=fraction, alpha=1.0)
    found = split(config, source, 0, targets, groups)
    rows = [numbers(found.rows(shard)) for shard in range(4)]
    tested = numbers(found.test_part(slice(0, found.n_test)))
    trained = [row for shard in rows for row in shard]
    assert sorted([*trained, *tested]) == list(range(n))
    assert found.sizes == [len(one) for one in rows]
    assert found.n_train == n - found.n_test == sum(found.sizes)
    assert tested[:2] == numbers(found.test_part(slice(0, min(2, found.n_test))))
    if kind == "by_label":
        assert [targets[row] for row in trained] == sorted(np.delete(targets, tested))
    if kind == "by_column":
        assert all(
            {groups[a] for a in rows[i]}.isdisjoint({groups[b] for b in rows[j]}) for i in range(4) for j in range(i)
        )


def test_rows_that_follow_each_other_are_a_slice():
    source = InMemory("here", np.ones((9, 1)), np.arange(9.0))
    found = split(DataConfig(partition="in_order", shards=2, test_fraction=0.0), source, 0, None, None)
    assert (found.shards, found.rows(1)) == ((slice(0, 5), slice(5, 9)), slice(5, 9))


def test_the_cut_of_a_source_is_taken_as_it_is():
    source = InMemory("here", np.ones((9, 1)), np.arange(9.0))
    source.cut = Cut((slice(0, 2), slice(2, 7)), slice(7, 9))
    found = split(DataConfig(shards=2, test_fraction=0.5), source, 0, None, None)
    assert [numbers(found.rows(shard)) for shard in (0, 1)] == [[0, 1], [2, 3, 4, 5, 6]]
    assert (found.sizes, found.n_train, numbers(found.test_part(slice(1, 2)))) == ([2, 5], 7, [8])
