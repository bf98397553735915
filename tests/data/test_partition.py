import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goco_mpi.data.partition import partition
from goco_mpi.errors import InputError
from goco_mpi.values import PARTITIONS


@st.composite
def cases(draw):
    n_samples = draw(st.integers(1, 80))
    targets = np.random.default_rng(draw(st.integers(0, 2**32))).integers(4, size=n_samples).astype(float)
    return targets, draw(st.integers(1, n_samples)), draw(st.integers(0, 2**63 - 1))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(PARTITIONS), cases())
def test_shards_partition_the_samples_into_sizes_within_one(kind, case):
    targets, n_shards, seed = case
    shards = partition(kind, targets, n_shards, seed)
    assert len(shards) == n_shards
    assert sorted(np.concatenate(shards).tolist()) == list(range(len(targets)))
    sizes = [len(shard) for shard in shards]
    assert max(sizes) - min(sizes) <= 1


@settings(max_examples=40, deadline=None)
@given(cases())
def test_by_label_is_sorted_by_target_across_the_shards(case):
    targets, n_shards, seed = case
    order = np.concatenate(partition("by_label", targets, n_shards, seed))
    assert (np.diff(targets[order]) >= 0).all()


@settings(max_examples=30, deadline=None)
@given(cases())
def test_in_order_keeps_the_order_of_the_file(case):
    targets, n_shards, seed = case
    assert np.concatenate(partition("in_order", targets, n_shards, seed)).tolist() == list(range(len(targets)))


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(PARTITIONS), cases())
def test_partition_depends_on_the_seed_alone(kind, case):
    first, second = (partition(kind, *case) for _ in range(2))
    assert [shard.tolist() for shard in first] == [shard.tolist() for shard in second]


@pytest.mark.parametrize("kind", ["iid", "by_label"])
def test_other_seeds_cut_otherwise_even_within_a_label(kind):
    targets = np.zeros(40)
    cuts = {np.concatenate(partition(kind, targets, 4, seed)).tobytes() for seed in range(5)}
    assert len(cuts) == 5


def test_iid_does_not_follow_the_labels():
    targets = np.repeat([0.0, 1.0], 200)
    shards = partition("iid", targets, 4, seed=0)
    # 100 draws without replacement from half and half: five deviations of at most sqrt(100) / 2.
    assert all(abs(targets[shard].sum() - 50) < 25 for shard in shards)


def test_more_shards_than_samples_are_refused():
    with pytest.raises(InputError, match=r"data.shards must be at most the number of training samples, 3. Got 4"):
        partition("iid", np.zeros(3), 4, seed=0)
