"""What coding does to the variance and heterogeneity of the update, averaged over stragglers and placements.

Derivation. At consensus the mean over workers of the coded gradients is u = (1/N) sum_i z_i c_i, with z_i = 1 where
worker i finishes (probability q = 1 - p) and c_i = (N/M) sum_{k on i} g_k / (d_k q). The z_i are independent, so that

    E u = (1/M) sum_k g_k ,     Var u = p q / N^2 sum_i |c_i|^2 = p / (q N^2) sum_i |h_i|^2 ,  h_i = q c_i .

The sum of squares sees how many workers m_kl hold both shards of a pair, with m_kk = d_k:
sum_i |h_i|^2 = (N/M)^2 sum_kl m_kl g_k.g_l / (d_k d_l). Where each shard's holders are drawn apart from all others,
E m_kl = d_k d_l / N, and thus

    E Var u  = (N/M)^2 p / (q N^2) [ |sum g_k|^2 / N + sum_k (1/d_k - 1/N) |g_k|^2 ]
    E zeta^2 = (N/M)^2 (1/N) sum_k (1/d_k - 1/N) |g_k|^2 ,        zeta^2 = (1/N) sum_i |h_i - mean h|^2 .

The factor (N/M)^2 is ours: papers leave N/M out of the coded gradient. Equal loads of d M / N shards make pairs meet
a little more seldom, E m_kl = d (d M / N - 1) / (M - 1).
"""

import numpy as np
import pytest

from goco_mpi.core import encoding, placement
from goco_mpi.core.placement import Placement
from goco_mpi.core.stragglers import StragglerModel

SEEDS = range(5)
N, M, P = 12, 24, 0.4
DRAWS = 1500


def drawn_apart(copies, seed):
    """Every shard on d_k workers, whatever the others are on."""
    rng = np.random.default_rng(seed)
    held = np.zeros((N, M), dtype=bool)
    for shard, d in enumerate(copies):
        held[rng.permutation(N)[:d], shard] = True
    return Placement(held)


def balanced(copies, seed):
    return placement.pairwise_balanced(N, M, copies, seed)


def shards(seed):
    """Gradients with a common part, and a number of copies of each."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((M, 4)) + 0.5, rng.integers(1, 6, M)


def update(placed, gradients, rate, finished):
    """Return the mean over workers of the coded gradients of those that finished, and each worker's, lateness apart."""
    coded = N / M * encoding.build("paper", placed, np.full(N, rate)) @ gradients
    return (finished[:, None] * coded).mean(axis=0), rate * coded


def within(values, expected, standard_errors=4):
    values = np.asarray(values)
    error = values.std(axis=0, ddof=1) / np.sqrt(len(values))
    return (np.abs(values.mean(axis=0) - expected) < standard_errors * error).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_variance_of_the_update_over_stragglers_and_placements(seed):
    gradients, copies = shards(seed)
    late = StragglerModel("bernoulli", N, seed, p=P)
    total, each = np.sum(gradients.sum(axis=0) ** 2), np.sum(gradients**2, axis=1)
    expected = (N / M) ** 2 * P / (1 - P) / N**2 * (total / N + np.sum((1 / copies - 1 / N) * each))
    updates = [
        update(drawn_apart(copies, 10_000 * seed + t), gradients, 1 - P, late.finishing(t))[0] for t in range(DRAWS)
    ]
    mean = gradients.mean(axis=0)
    assert within(updates, mean)
    squares = np.sum((np.array(updates) - mean) ** 2, axis=1)
    assert within(squares, expected)
    # It would be seen if p / (1 - p) were p, or the copies were not counted.
    assert not within(squares, expected * (1 - P))
    assert not within(squares, (N / M) ** 2 * P / (1 - P) / N**2 * (total / N + np.sum((1 - 1 / N) * each)))


@pytest.mark.parametrize("seed", SEEDS)
def test_heterogeneity_of_the_coded_gradients_over_placements(seed):
    gradients, copies = shards(seed)
    expected = (N / M) ** 2 / N * np.sum((1 / copies - 1 / N) * np.sum(gradients**2, axis=1))
    found = []
    for t in range(DRAWS):
        coded = update(drawn_apart(copies, 10_000 * seed + t), gradients, 1.0, np.ones(N))[1]
        found.append(np.mean(np.sum((coded - coded.mean(axis=0)) ** 2, axis=1)))
    assert within(found, expected)
    assert not within(found, expected * 1.1)


@pytest.mark.parametrize("seed", SEEDS)
def test_balanced_loads_make_pairs_meet_a_little_more_seldom(seed):
    gradients, d = shards(seed)[0], 3
    met = d * (d * M / N - 1) / (M - 1)
    total, own = np.sum(gradients.sum(axis=0) ** 2), np.sum(gradients**2)
    expected = (N / M) ** 2 / d**2 * (met * (total - own) + d * own)
    found = []
    for t in range(300):
        coded = update(balanced(d, 10_000 * seed + t), gradients, 1.0, np.ones(N))[1]
        found.append(np.sum(coded**2))
    assert within(found, expected)
    published = (N / M) ** 2 * (total / N + (1 / d - 1 / N) * own)
    assert not within(found, published)
    assert published == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("seed", SEEDS)
def test_replication_makes_local_gradients_alike_and_full_replication_equal(seed):
    gradients, _ = shards(seed)
    spread = {}
    for d in (1, 2, 4, N):
        coded = update(balanced(d, seed), gradients, 1.0, np.ones(N))[1]
        spread[d] = np.mean(np.sum((coded - coded.mean(axis=0)) ** 2, axis=1))
    assert spread[1] > spread[2] > spread[4]
    assert spread[N] < 1e-28
