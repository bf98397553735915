"""How fast graphs bring their workers together: the simulator's rate against closed forms."""

import itertools

import numpy as np
import pytest
from quadratic import Quadratic

from goco_mpi.core import mixing, topology

SEEDS = range(5)


def circulant_gap(n, offsets):
    """1 - the second largest modulus of the eigenvalues of a ring with chords, equal weights."""
    row = np.zeros(n)
    row[list({0, *offsets, *(-offset % n for offset in offsets)})] = 1.0
    values = np.sort(np.abs(np.fft.fft(row / row.sum())))
    return 1.0 - values[-2]


CLOSED_FORMS = {
    # W = (I + A) / (1 + degree) on regular graphs; A of a ring: 2 cos(2 pi k / n), of a product of graphs: the sums.
    ("ring", 16): 2 / 3 * (1 - np.cos(2 * np.pi / 16)),
    ("torus", 16): 2 / 5 * (1 - np.cos(2 * np.pi / 4)),
    ("torus", 36): 2 / 5 * (1 - np.cos(2 * np.pi / 6)),
    ("hypercube", 16): 2 / 5,
    ("hypercube", 32): 2 / 6,
    ("star", 16): 1 / 16,
    ("exponential", 16): circulant_gap(16, [1, 2, 4, 8]),
    ("exponential", 20): circulant_gap(20, [1, 2, 4, 8, 16]),
}


@pytest.mark.parametrize(("kind", "n"), CLOSED_FORMS, ids=str)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_distance_to_consensus_shrinks_by_the_gap_a_round(kind, n, seed):
    problem = Quadratic(seed, n, topology={"kind": kind})
    matrix = problem.layout.mixing_matrix
    gap = CLOSED_FORMS[kind, n]
    assert mixing.spectral_gap(matrix) == pytest.approx(gap, abs=1e-12)
    # One step of different gradients, then nothing but gossip.
    rounds = int(np.ceil(12 / gap))
    distances = []

    def observe(t, x):
        distances.append(np.linalg.norm(x - x.mean(axis=0)))

    problem.run(lambda t: float(t == 0), rounds, observe)
    late = distances[rounds // 2 :]
    late = [one for one in late if one > 1e-10 * distances[1]]  # above rounding
    assert len(late) > 3
    rate = (late[-1] / late[0]) ** (1 / (len(late) - 1))
    # The slowest mode is what is left, but for a factor of its size that many rounds spread out.
    assert rate == pytest.approx(1 - gap, rel=0.02)
    assert all(after <= (1 - gap) * before * (1 + 1e-9) for before, after in itertools.pairwise(late))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_complete_graph_agrees_after_one_round(seed):
    problem = Quadratic(seed, 12, topology={"kind": "complete"})
    end = problem.run(0.1, 3, lambda t, x: None)
    assert np.abs(end).max() > 0.01
    np.testing.assert_allclose(end, np.tile(end.mean(axis=0), (12, 1)), rtol=0, atol=1e-15)


@pytest.mark.parametrize("degree", [4, 6])
@pytest.mark.parametrize("seed", SEEDS)
def test_random_regular_graphs_are_nearly_as_good_as_any_graph_of_their_degree_can_be(degree, seed):
    # Second largest eigenvalue of A: at least about 2 sqrt(d - 1) for any graph (Alon & Boppana), and no more than a
    # little above it for almost all (Friedman, 2008).
    matrix = mixing.metropolis(topology.build("random_regular", 1024, degree=degree, seed=seed))
    best = 1 - (1 + 2 * np.sqrt(degree - 1)) / (1 + degree)
    assert best - 0.02 < mixing.spectral_gap(matrix) < best + 0.02
