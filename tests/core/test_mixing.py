import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goco_mpi.core import mixing, topology
from goco_mpi.errors import InputError

EPS = np.finfo(float).eps


@st.composite
def connected_graphs(draw):
    """A random tree and some more edges."""
    n = draw(st.integers(1, 25))
    extra = draw(st.integers(0, 2 * n))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    edges = [(i, int(rng.integers(i))) for i in range(1, n)]
    edges += [(int(a), int(b)) for a, b in rng.integers(n, size=(extra, 2)) if a != b]
    return topology.from_edges(n, edges)


@settings(max_examples=40, deadline=None)
@given(connected_graphs(), st.sampled_from(mixing.KINDS))
def test_matrix_is_symmetric_doubly_stochastic_with_the_support_of_the_graph(graph, kind):
    matrix = mixing.build(kind, graph).toarray()
    n = graph.n_workers
    np.testing.assert_array_equal(matrix, matrix.T)
    # Rounding of a sum of n terms of at most 1.
    np.testing.assert_allclose(matrix.sum(axis=1), 1.0, rtol=0, atol=n * EPS)
    support = np.eye(n, dtype=bool)
    for a, b in graph.edges:
        support[a, b] = support[b, a] = True
    np.testing.assert_array_equal(matrix > 0.0, support)
    assert (matrix >= 0.0).all()


@settings(max_examples=40, deadline=None)
@given(connected_graphs())
def test_metropolis_weights_are_the_defining_formula(graph):
    matrix = mixing.metropolis(graph).toarray()
    for a, b in graph.edges:
        assert matrix[a, b] == pytest.approx(1.0 / (1 + max(graph.degrees[a], graph.degrees[b])), rel=4 * EPS)


@settings(max_examples=40, deadline=None)
@given(connected_graphs())
def test_lazy_matrix_is_halfway_to_the_identity(graph):
    plain, lazy = (mixing.build(kind, graph).toarray() for kind in mixing.KINDS)
    np.testing.assert_allclose(lazy, (np.eye(graph.n_workers) + plain) / 2, rtol=0, atol=EPS)


@settings(max_examples=40, deadline=None)
@given(connected_graphs())
def test_eigenvalues_lie_above_minus_one_and_those_of_the_lazy_matrix_above_zero(graph):
    plain, lazy = (mixing.build(kind, graph).toarray() for kind in mixing.KINDS)
    slack = 100 * EPS
    values = np.linalg.eigvalsh(plain)
    # Gershgorin: a positive diagonal keeps every eigenvalue this far from -1.
    assert values[0] >= 2 * plain.diagonal().min() - 1 - slack
    assert values[0] > -1.0
    assert values[-1] <= 1 + slack
    # Connected: the eigenvalue 1 is simple.
    assert graph.n_workers == 1 or values[-2] < 1 - 1e-6
    assert np.linalg.eigvalsh(lazy)[0] >= -slack


@settings(max_examples=40, deadline=None)
@given(connected_graphs(), st.sampled_from(mixing.KINDS))
def test_spectral_gap_is_one_minus_the_second_largest_modulus(graph, kind):
    matrix = mixing.build(kind, graph)
    moduli = np.sort(np.abs(np.linalg.eigvalsh(matrix.toarray())))
    expected = 1.0 if graph.n_workers == 1 else 1.0 - moduli[-2]
    assert mixing.spectral_gap(matrix) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(connected_graphs(), st.sampled_from(mixing.KINDS), st.integers(0, 2**32))
def test_one_round_shrinks_the_distance_to_consensus_by_at_least_the_gap(graph, kind, seed):
    matrix = mixing.build(kind, graph)
    x = np.random.default_rng(seed).standard_normal((graph.n_workers, 3))
    before = np.linalg.norm(x - x.mean(axis=0))
    mixed = matrix @ x
    after = np.linalg.norm(mixed - mixed.mean(axis=0))
    np.testing.assert_allclose(mixed.mean(axis=0), x.mean(axis=0), rtol=0, atol=1e-13)
    assert after <= (1 - mixing.spectral_gap(matrix)) * before + 1e-12


@pytest.mark.parametrize("n", [1, 2, 5, 30])
def test_complete_graph_mixes_at_once(n):
    matrix = mixing.metropolis(topology.complete(n))
    np.testing.assert_allclose(matrix.toarray(), 1.0 / n, rtol=0, atol=n * EPS)
    assert mixing.spectral_gap(matrix) == pytest.approx(1.0, abs=1e-13)


@pytest.mark.parametrize("n", [3, 4, 7, 16, 33])
def test_ring_has_its_known_spectrum(n):
    # Weights 1/3 to oneself and both neighbours: a circulant matrix.
    expected = (1 + 2 * np.cos(2 * np.pi * np.arange(n) / n)) / 3
    values = np.linalg.eigvalsh(mixing.metropolis(topology.ring(n)).toarray())
    np.testing.assert_allclose(values, np.sort(expected), rtol=0, atol=1e-13)


@pytest.mark.parametrize("n", [2, 3, 10])
def test_star_has_its_known_gap(n):
    # Weights 1/n along every spoke: the eigenvalues are 1, 1 - 1/n (n - 2 times) and 0.
    expected = 1.0 if n == 2 else 1.0 / n
    assert mixing.spectral_gap(mixing.metropolis(topology.star(n))) == pytest.approx(expected, abs=1e-13)


@settings(max_examples=40, deadline=None)
@given(connected_graphs(), st.sampled_from(mixing.KINDS))
def test_norm_of_the_laplacian_is_its_largest_singular_value(graph, kind):
    matrix = mixing.build(kind, graph)
    expected = np.linalg.norm(np.eye(graph.n_workers) - matrix.toarray(), 2)
    assert mixing.laplacian_norm(matrix) == pytest.approx(expected, abs=1e-12)


def test_norm_of_a_large_laplacian_is_its_closed_form():
    # Weights 1/3 around a ring of even length: the eigenvector (1, -1, 1, ...) has 4/3.
    assert mixing.laplacian_norm(mixing.metropolis(topology.ring(1030))) == pytest.approx(4 / 3, abs=1e-10)


LARGE = {
    # Products and sums of cosines: circulant (ring), Kronecker sum (torus), cosine basis (path).
    "ring": (lambda: topology.ring(1030), 2 / 3 * (1 - np.cos(2 * np.pi / 1030))),
    "path": (lambda: topology.grid(1030, rows=1), 2 / 3 * (1 - np.cos(np.pi / 1030))),
    "torus": (lambda: topology.grid(1600, periodic=True), 2 / 5 * (1 - np.cos(2 * np.pi / 40))),
    "hypercube": (lambda: topology.hypercube(2048), 2 / 12),
}


@pytest.mark.parametrize("name", LARGE)
def test_gap_of_a_large_sparse_graph_is_its_closed_form(name):
    make, expected = LARGE[name]
    matrix = mixing.metropolis(make())
    gap = mixing.spectral_gap(matrix)
    # The Lanczos process finds an eigenvalue near 1 to about its residual, far below the gaps here.
    assert gap == pytest.approx(expected, abs=1e-10)
    # A fixed start vector makes the number repeatable to the last bit.
    assert gap == mixing.spectral_gap(matrix)


def test_neighbor_weights_follow_the_sorted_neighbors():
    graph = topology.from_edges(5, [(3, 0), (3, 4), (3, 1), (1, 2)])
    matrix = mixing.metropolis(graph)
    dense = matrix.toarray()
    for worker in range(5):
        expected = [dense[worker, j] for j in graph.neighbors(worker)]
        assert mixing.neighbor_weights(matrix, graph, worker).tolist() == expected
    # 1/(1 + 3) towards the hub's leaves, and to worker 1 as well, whose degree is smaller.
    assert mixing.neighbor_weights(matrix, graph, 3).tolist() == [0.25, 0.25, 0.25]


@pytest.mark.parametrize("kind", mixing.KINDS)
def test_a_worker_s_own_weights_are_those_of_the_matrix_to_the_last_bit(kind):
    for graph in (topology.from_edges(6, [(3, 0), (3, 4), (3, 1), (1, 2), (4, 5)]), topology.ring(3), topology.ring(1)):
        matrix = mixing.build(kind, graph)
        for worker in range(graph.n_workers):
            found = mixing.weights_of(kind, graph, worker)
            np.testing.assert_array_equal(found, mixing.neighbor_weights(matrix, graph, worker))


def test_a_lone_worker_keeps_all_and_has_no_neighbor_weights():
    graph = topology.ring(1)
    matrix = mixing.metropolis(graph)
    assert matrix.toarray().tolist() == [[1.0]]
    assert mixing.neighbor_weights(matrix, graph, 0).shape == (0,)


def test_unknown_matrix_is_refused():
    with pytest.raises(InputError, match=r"topology.mixing_matrix must be one of metropolis, lazy_metropolis"):
        mixing.build("maximum_degree", topology.ring(3))
