import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goco_mpi.data.partition import partition, strata
from goco_mpi.errors import InputError
from goco_mpi.values import PARTITIONS

EVEN = ("iid", "by_label", "in_order")


@st.composite
def cases(draw):
    n_samples = draw(st.integers(1, 80))
    targets = np.random.default_rng(draw(st.integers(0, 2**32))).integers(4, size=n_samples).astype(float)
    return targets, draw(st.integers(1, n_samples)), draw(st.integers(0, 2**63 - 1))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(PARTITIONS), cases(), st.sampled_from([1e-3, 0.5, 1e6]))
def test_every_sample_is_in_one_shard_and_no_shard_is_empty(kind, case, alpha):
    targets, n_shards, seed = case
    groups = np.arange(len(targets)) % max(n_shards, 4)
    shards = partition(kind, targets, n_shards, seed, alpha, groups)
    assert len(shards) == n_shards
    assert sorted(np.concatenate(shards).tolist()) == list(range(len(targets)))
    assert min(len(shard) for shard in shards) > 0


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(EVEN), cases())
def test_shards_that_nothing_else_decides_are_of_sizes_within_one(kind, case):
    sizes = [len(shard) for shard in partition(kind, *case)]
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
@given(st.sampled_from([*EVEN, "dirichlet"]), cases())
def test_partition_depends_on_the_seed_alone(kind, case):
    first, second = (partition(kind, *case) for _ in range(2))
    assert [shard.tolist() for shard in first] == [shard.tolist() for shard in second]


@pytest.mark.parametrize("kind", ["iid", "by_label", "dirichlet"])
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


def label_shares(targets, shards, label):
    """The part of a label's samples that each shard has."""
    return np.array([np.count_nonzero(targets[shard] == label) for shard in shards]) / np.count_nonzero(
        targets == label
    )


def test_dirichlet_shares_have_the_variance_of_their_distribution():
    targets, n_shards, alpha = np.repeat(np.arange(5.0), 400), 8, 0.5
    shares = np.array(
        [
            label_shares(targets, partition("dirichlet", targets, n_shards, seed, alpha), label)
            for seed in range(40)
            for label in range(5)
        ]
    )
    np.testing.assert_allclose(shares.mean(axis=0), 1 / n_shards, atol=5 * 0.15 / np.sqrt(200))
    # Of a share: (1/M)(1 - 1/M) / (M alpha + 1); 1600 shares tell it to a few per cent.
    expected = (1 / n_shards) * (1 - 1 / n_shards) / (n_shards * alpha + 1)
    assert shares.var() == pytest.approx(expected, rel=0.25)


def test_a_small_alpha_gives_each_label_to_few_shards_and_a_large_one_deals_evenly():
    targets = np.repeat(np.arange(4.0), 100)
    few = label_shares(targets, partition("dirichlet", targets, 8, seed=1, alpha=1e-3), 2.0)
    even = label_shares(targets, partition("dirichlet", targets, 8, seed=1, alpha=1e6), 2.0)
    assert few.max() > 0.9
    np.testing.assert_allclose(even, 1 / 8, atol=0.02)


def test_a_shard_that_dirichlet_leaves_empty_is_given_a_sample_of_the_largest():
    sizes = sorted(len(shard) for shard in partition("dirichlet", np.zeros(30), 10, seed=0, alpha=1e-3))
    assert sizes == [1] * 9 + [21]


def test_targets_that_are_no_labels_are_dealt_by_deciles():
    targets = np.random.default_rng(0).standard_normal(1000)
    numbers = strata(targets)
    assert np.bincount(numbers).tolist() == [100] * 10
    assert (np.diff(numbers[np.argsort(targets)]) >= 0).all()
    # Thousands of whole numbers are no labels either.
    assert strata(np.arange(1000.0)).max() == 9
    assert strata(np.arange(1000.0) % 7).max() == 6


def test_as_many_groups_as_shards_are_a_shard_each_in_the_order_of_their_names():
    sites = np.array(["oslo", "bonn", "rome", "bonn", "oslo", "bonn"])
    shards = partition("by_column", np.zeros(6), 3, seed=0, groups=sites)
    assert [shard.tolist() for shard in shards] == [[1, 3, 5], [0, 4], [2]]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=80), st.data())
def test_groups_stay_whole_and_are_packed_evenly(groups, data):
    groups = np.array(groups)
    sizes = np.unique(groups, return_counts=True)[1]
    n_shards = data.draw(st.integers(1, len(sizes)))
    shards = partition("by_column", np.zeros(len(groups)), n_shards, seed=0, groups=groups)
    owners = [set(groups[shard]) for shard in shards]
    assert sum(len(owner) for owner in owners) == len(sizes)
    assert all(shard.tolist() == sorted(shard) for shard in shards)
    # Graham's bound on any list of jobs: the last one put on the fullest found it no fuller than the mean.
    assert max(len(shard) for shard in shards) <= len(groups) / n_shards + sizes.max()


def test_fewer_groups_than_shards_are_refused():
    with pytest.raises(InputError, match=r"different values of data.partition_column, 2: .* Got 3"):
        partition("by_column", np.zeros(4), 3, seed=0, groups=np.array([0, 0, 1, 1]))
