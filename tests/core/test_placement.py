import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goco_mpi.core import placement
from goco_mpi.core.placement import Placement
from goco_mpi.errors import InputError

SEEDS = st.integers(0, 2**63 - 1)


@st.composite
def sizes(draw, min_workers=1):
    n_workers = draw(st.integers(min_workers, 16))
    return n_workers, draw(st.integers(1, 40)), draw(st.integers(1, n_workers))


@st.composite
def placements(draw):
    """A placement of any kind, with exact or random replication."""
    kind = draw(st.sampled_from(sorted(placement.KINDS)))
    n_workers, n_shards, replication = draw(sizes())
    if kind == "fractional_repetition":
        replication = draw(st.sampled_from([d for d in range(1, n_workers + 1) if n_workers % d == 0]))
    if kind == "bernoulli":
        replication = n_workers  # the only probability at which no shard can be lost
    if kind == "uncoded":
        replication = 1
    return placement.build(kind, n_workers, n_shards, replication, draw(SEEDS)), replication


@settings(max_examples=50, deadline=None)
@given(placements())
def test_every_shard_has_exactly_the_replication_asked_for(case):
    placed, replication = case
    assert placed.replication.tolist() == [replication] * placed.n_shards


@settings(max_examples=40, deadline=None)
@given(sizes(), SEEDS)
def test_pairwise_balanced_loads_differ_by_at_most_one(size, seed):
    placed = placement.pairwise_balanced(*size, seed)
    assert placed.load.max() - placed.load.min() <= 1
    assert placed.load.sum() == size[1] * size[2]


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 12), st.lists(st.integers(1, 12), min_size=1, max_size=30), SEEDS)
def test_pairwise_balanced_takes_a_replication_for_each_shard(n_workers, copies, seed):
    copies = np.minimum(copies, n_workers)
    placed = placement.pairwise_balanced(n_workers, len(copies), copies, seed)
    assert placed.replication.tolist() == copies.tolist()
    assert placed.load.max() - placed.load.min() <= 1


@settings(max_examples=40, deadline=None)
@given(sizes(min_workers=2), SEEDS)
def test_mean_overlap_of_pairwise_balanced_is_the_one_its_balanced_loads_imply(size, seed):
    n_workers, n_shards, replication = size
    placed = placement.pairwise_balanced(*size, seed)
    # A worker with load L lets L (L - 1) / 2 pairs meet, and balanced loads are known beforehand.
    low, extra = divmod(n_shards * replication, n_workers)
    pairs = (n_workers - extra) * low * (low - 1) // 2 + extra * (low + 1) * low // 2
    overlap = placed.overlap()
    assert np.triu(overlap, 1).sum() == pairs
    assert overlap.diagonal().tolist() == [replication] * n_shards
    # No layout of the same copies lets fewer pairs meet: it is convex in the loads.
    uneven = placement.cyclic(*size, seed)
    assert pairs <= np.triu(uneven.overlap(), 1).sum()


@settings(max_examples=40, deadline=None)
@given(placements())
def test_overlap_counts_the_common_holders(case):
    placed, _ = case
    overlap = placed.overlap()
    for k in range(0, placed.n_shards, 5):
        for other in range(placed.n_shards):
            assert overlap[k, other] == len(set(placed.holders(k)) & set(placed.holders(other)))


def _spread(overlap):
    return overlap[np.triu_indices_from(overlap, 1)].std()


@pytest.mark.parametrize(("n_workers", "n_shards", "replication"), [(12, 24, 4), (8, 16, 2), (10, 15, 3)])
def test_overlaps_spread_less_than_those_of_independent_random_placement(n_workers, n_shards, replication):
    rng = np.random.default_rng(0)
    balanced, independent = [], []
    for seed in range(30):
        balanced.append(_spread(placement.pairwise_balanced(n_workers, n_shards, replication, seed).overlap()))
        held = np.zeros((n_workers, n_shards), dtype=bool)
        for shard in range(n_shards):
            held[rng.choice(n_workers, replication, replace=False), shard] = True
        independent.append(_spread(Placement(held).overlap()))
    # Choosing the least overlap must pay for itself: a tenth is well beyond the noise of 30 draws.
    assert np.mean(balanced) < 0.9 * np.mean(independent)


@settings(max_examples=40, deadline=None)
@given(sizes(), SEEDS, st.sampled_from(["pairwise_balanced", "cyclic", "uncoded"]))
def test_placement_depends_on_the_seed_alone(size, seed, kind):
    first, second = (placement.build(kind, *size, seed) for _ in range(2))
    np.testing.assert_array_equal(first.held, second.held)


@pytest.mark.parametrize("kind", sorted(placement.KINDS))
def test_other_seeds_give_other_placements(kind):
    # 12 workers: even the least random kind coincides with probability 1 / 11 only, five never.
    held = [placement.build(kind, 12, 24, 6, seed).held.tobytes() for seed in range(5)]
    assert len(set(held)) == 5


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 20), SEEDS)
def test_fractional_repetition_splits_workers_into_groups_with_identical_shards(replication, n_groups, more, seed):
    n_workers, n_shards = replication * n_groups, n_groups + more
    placed = placement.fractional_repetition(n_workers, n_shards, replication, seed)
    groups = {}
    for worker in range(n_workers):
        groups.setdefault(tuple(placed.shards_of(worker)), []).append(worker)
    assert sorted(map(len, groups.values())) == [replication] * n_groups
    assert sorted(k for shards in groups for k in shards) == list(range(n_shards))
    assert placed.load.max() - placed.load.min() <= 1


@settings(max_examples=40, deadline=None)
@given(sizes(), SEEDS)
def test_cyclic_blocks_sit_on_consecutive_workers_of_one_hidden_order(size, seed):
    n_workers, n_shards, replication = size
    placed = placement.cyclic(*size, seed)
    blocks = [b for b in np.array_split(np.arange(n_shards), n_workers) if b.size]
    holders = []
    for block in blocks:
        sets = {tuple(placed.holders(int(k))) for k in block}
        assert len(sets) == 1  # a block moves as one
        holders.append(set(sets.pop()))
    # Consecutive windows of length d on a circle of n share max(d - 1, 2 d - n) workers or, with
    # d = n, all of them.
    for here, there in itertools.pairwise(holders):
        shared = replication if replication == n_workers else replication - 1
        assert len(here & there) == max(shared, 2 * replication - n_workers)


def test_bernoulli_holds_each_pair_with_probability_d_over_n():
    n_workers, n_shards, replication, seeds = 10, 8, 7, 100
    draws, held = 0, 0
    for seed in range(seeds):
        placed = placement.bernoulli(n_workers, n_shards, replication, seed)
        draws += n_workers * n_shards
        held += int(placed.load.sum())
    # Five standard deviations; a shard without holder (0.3 ** 10) does not occur among 800.
    assert abs(held - 0.7 * draws) < 5 * np.sqrt(draws * 0.7 * 0.3)


def test_bernoulli_is_refused_when_a_shard_has_no_holder():
    # 200 shards at replication 1 of 4: each is lost with probability (3/4)^4, so some surely are.
    with pytest.raises(InputError, match=r"\d+ of 200 shards have none \(shard \d+ first\)"):
        placement.build("bernoulli", 4, 200, 1, seed=0)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 16), st.integers(1, 40), SEEDS, st.integers(1, 99))
def test_uncoded_gives_every_shard_one_holder_whatever_the_replication_says(n_workers, n_shards, seed, replication):
    placed = placement.build("uncoded", n_workers, n_shards, replication, seed)
    assert placed.replication.tolist() == [1] * n_shards
    assert placed.load.max() - placed.load.min() <= 1


@settings(max_examples=40, deadline=None)
@given(placements())
def test_owned_shards_partition_the_shards_and_are_held_by_their_owner(case):
    placed, _ = case
    owned = [placed.owned_by(worker) for worker in range(placed.n_workers)]
    assert sorted(k for shards in owned for k in shards) == list(range(placed.n_shards))
    assert all(set(shards) <= set(placed.shards_of(worker)) for worker, shards in enumerate(owned))


def test_holders_and_shards_read_the_matrix_by_column_and_row():
    placed = Placement(np.array([[True, False, True], [False, True, True]]))
    assert (placed.n_workers, placed.n_shards) == (2, 3)
    assert [placed.holders(k) for k in range(3)] == [[0], [1], [0, 1]]
    assert [placed.shards_of(i) for i in range(2)] == [[0, 2], [1, 2]]
    assert [placed.owned_by(i) for i in range(2)] == [[0, 2], [1]]
    assert placed.load.tolist() == [2, 2]
    assert placed.replication.tolist() == [1, 1, 2]


def test_a_placement_cannot_be_changed_afterwards():
    placed = placement.uncoded(2, 4)
    with pytest.raises(ValueError, match="read-only"):
        placed.held[0, 0] = True


@pytest.mark.parametrize("kind", ["pairwise_balanced", "fractional_repetition", "cyclic", "bernoulli"])
@pytest.mark.parametrize("replication", [-1, 0, 5])
def test_replication_beyond_the_workers_is_refused(kind, replication):
    message = rf"placement.replication must be between 1 and 4. Got {replication}\..*There are 4 workers"
    with pytest.raises(InputError, match=message):
        placement.build(kind, 4, 8, replication, seed=0)


def test_one_bad_replication_among_many_is_refused():
    with pytest.raises(InputError, match="Got 5"):
        placement.pairwise_balanced(4, 3, np.array([1, 5, 2]), seed=0)


def test_fractional_repetition_refuses_groups_that_do_not_come_out():
    with pytest.raises(InputError, match=r"must divide n_workers = 6 .*Got 4"):
        placement.build("fractional_repetition", 6, 12, 4, seed=0)


def test_fractional_repetition_with_fewer_shards_than_groups_leaves_some_idle_and_loses_none():
    placed = placement.build("fractional_repetition", 6, 2, 2, seed=0)
    assert sorted(placed.load.tolist()) == [0, 0, 1, 1, 1, 1]


def test_unknown_kind_is_refused():
    with pytest.raises(InputError, match=r"placement.kind must be one of pairwise_balanced"):
        placement.build("striped", 4, 8, 2, seed=0)
