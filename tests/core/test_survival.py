"""How many workers may die before a shard is lost."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goco_mpi.core import survival
from goco_mpi.core.placement import Placement, pairwise_balanced, uncoded


def lost(placement, dead):
    alive = np.ones(placement.n_workers, dtype=bool)
    alive[list(dead)] = False
    return not placement.held[alive].any(axis=0).all()


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 6), n_shards=st.integers(1, 8), seed=st.integers(0, 1000), rho=st.floats(0.0, 1.0))
def test_both_figures_are_what_going_through_all_sets_of_dead_workers_gives(n, n_shards, seed, rho):
    rng = np.random.default_rng(seed)
    held = rng.random((n, n_shards)) < 0.5
    held[rng.integers(n, size=n_shards), np.arange(n_shards)] = True
    placement = Placement(held)
    sets = [dead for size in range(n + 1) for dead in itertools.combinations(range(n), size)]
    assert survival.survives(placement) == min(len(dead) for dead in sets if lost(placement, dead)) - 1
    expected = sum(rho ** len(dead) * (1 - rho) ** (n - len(dead)) for dead in sets if lost(placement, dead))
    assert survival.loss_probability(placement, rho) == pytest.approx(expected, abs=1e-12)


def test_beyond_what_can_be_enumerated_it_is_a_bound_from_above():
    placement = pairwise_balanced(20, 40, 2, seed=0)
    rng = np.random.default_rng(0)
    rho = 0.02
    frequency = np.mean([lost(placement, np.flatnonzero(rng.random(20) < rho)) for _ in range(4000)])
    bound = survival.loss_probability(placement, rho)
    # Within the sampling error of 4000 draws, and not far above where losses are rare.
    deviation = np.sqrt(bound / 4000)
    assert frequency - 3 * deviation <= bound <= 2 * frequency + 3 * deviation


def test_the_bound_of_one_holder_each_counts_every_worker_once():
    assert survival.loss_probability(uncoded(20, 60), 0.01) == pytest.approx(0.2)
