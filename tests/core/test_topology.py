import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goco_mpi.core import topology
from goco_mpi.errors import InputError

SIZES = st.integers(1, 40)
REGULAR_SIZED = ("ring", "grid", "torus", "rook", "complete", "star", "exponential")


@st.composite
def built(draw):
    """A graph of any kind that `build` accepts, with the arguments that made it."""
    kind = draw(st.sampled_from([*REGULAR_SIZED, "hypercube", "random_regular", "erdos_renyi", "edges"]))
    options = {}
    n = draw(SIZES)
    if kind in ("grid", "torus"):
        options["rows"] = draw(st.sampled_from([None, *(r for r in range(1, n + 1) if n % r == 0)]))
    elif kind == "hypercube":
        n = 1 << draw(st.integers(0, 5))
    elif kind == "random_regular":
        # Degree n - 1 admits only the complete graph, so the draw cannot come out disconnected.
        options = {"degree": n - 1, "seed": draw(st.integers(0, 99))}
    elif kind == "erdos_renyi":
        options = {"p": 1.0, "seed": draw(st.integers(0, 99))}
    elif kind == "edges":
        # A random tree is connected; repeated and reversed edges change nothing of that.
        rng = np.random.default_rng(draw(st.integers(0, 2**32)))
        tree = [(i, int(rng.integers(i))) for i in range(1, n)]
        options["edges"] = tree + [(b, a) for a, b in tree[::2]]
    return kind, n, options, topology.build(kind, n, **options)


@settings(max_examples=60, deadline=None)
@given(built())
def test_neighbors_are_mutual_sorted_distinct_and_never_oneself(case):
    _, n, _, graph = case
    assert graph.n_workers == n
    for worker in range(n):
        neighbors = graph.neighbors(worker)
        assert list(neighbors) == sorted(set(neighbors))
        assert worker not in neighbors
        assert all(worker in graph.neighbors(other) for other in neighbors)
        assert graph.degrees[worker] == len(neighbors)


@settings(max_examples=60, deadline=None)
@given(built())
def test_every_built_graph_is_connected_in_the_eyes_of_networkx(case):
    _, n, _, graph = case
    peer = nx.Graph(graph.edges)
    peer.add_nodes_from(range(n))
    assert nx.is_connected(peer)


@settings(max_examples=40, deadline=None)
@given(built())
def test_each_edge_is_listed_once_with_its_smaller_end_first(case):
    edges = case[3].edges
    assert list(edges) == sorted(set(edges))
    assert all(a < b for a, b in edges)


def _along(length, periodic):
    """Neighbours of each place along one side of a grid."""
    if periodic:
        return np.full(length, min(length - 1, 2))
    places = np.arange(length)
    return (places > 0).astype(int) + (places < length - 1)


@settings(max_examples=60, deadline=None)
@given(built())
def test_degrees_are_those_the_kind_promises(case):
    kind, n, options, graph = case
    degrees = graph.degrees
    if kind == "ring":
        expected = np.full(n, min(n - 1, 2))
    elif kind in ("complete", "random_regular", "erdos_renyi"):
        expected = np.full(n, n - 1)
    elif kind == "star":
        expected = np.array([n - 1] + [min(n - 1, 1)] * (n - 1))
    elif kind == "hypercube":
        expected = np.full(n, n.bit_length() - 1)
    elif kind == "exponential":
        distances = {o for k in range(6) if 1 << k < n for o in ((1 << k) % n, -(1 << k) % n)}
        expected = np.full(n, len(distances))
    elif kind == "rook":
        rows = max(r for r in range(1, n + 1) if n % r == 0 and r * r <= n)
        expected = np.full(n, rows + n // rows - 2)
    elif kind in ("grid", "torus"):
        rows = options["rows"] or max(r for r in range(1, n + 1) if n % r == 0 and r * r <= n)
        periodic = kind == "torus"
        expected = (_along(rows, periodic)[:, None] + _along(n // rows, periodic)[None, :]).ravel()
    else:
        pairs = {frozenset(edge) for edge in options["edges"]}
        expected = np.array([sum(i in pair for pair in pairs) for i in range(n)])
    assert degrees.tolist() == expected.tolist()


@pytest.mark.parametrize("kind", REGULAR_SIZED)
def test_tiny_networks_are_what_remains_of_the_kind(kind):
    assert topology.build(kind, 1).edges == ()
    assert topology.build(kind, 2).edges == ((0, 1),)
    three = topology.build(kind, 3).edges
    # Three workers in a row of a grid, or around a centre, lack one edge of the triangle.
    assert three == {"grid": ((0, 1), (1, 2)), "star": ((0, 1), (0, 2))}.get(kind, ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize("n", [1, 2])
def test_hypercube_of_one_and_two_workers(n):
    assert topology.build("hypercube", n).edges == ((0, 1),) * (n - 1)


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
@pytest.mark.parametrize("cols", [1, 2, 3, 5])
@pytest.mark.parametrize("kind", ["grid", "torus"])
def test_grid_neighbors_are_a_step_away_along_a_row_or_a_column(kind, rows, cols):
    graph = topology.build(kind, rows * cols, rows=rows)

    def steps(place, length):
        around = [(place + 1) % length, (place - 1) % length] if kind == "torus" else [place + 1, place - 1]
        return {there for there in around if 0 <= there < length and there != place}

    for r in range(rows):
        for c in range(cols):
            expected = {other * cols + c for other in steps(r, rows)} | {r * cols + other for other in steps(c, cols)}
            assert set(graph.neighbors(r * cols + c)) == expected


def test_hypercube_neighbors_differ_in_one_bit():
    graph = topology.build("hypercube", 16)
    assert all((a ^ b).bit_count() == 1 for a, b in graph.edges)
    assert len(graph.edges) == 16 * 4 // 2


def test_default_grid_is_as_square_as_possible():
    # 3 x 4: 3 * 3 edges along the rows and 2 * 4 across them; 2 x 6 or 1 x 12 have others.
    assert len(topology.build("grid", 12).edges) == 3 * 3 + 2 * 4


@settings(max_examples=20, deadline=None)
@given(st.integers(5, 40), st.integers(3, 4), st.integers(0, 2**63 - 1))
def test_random_regular_gives_every_worker_the_degree_and_depends_on_the_seed_alone(n, degree, seed):
    n += n * degree % 2
    graph = topology.random_regular(n, degree=degree, seed=seed)
    assert set(graph.degrees.tolist()) == {degree}
    assert graph == topology.random_regular(n, degree=degree, seed=seed)


def test_random_graphs_of_different_seeds_differ():
    assert topology.random_regular(30, degree=4, seed=0) != topology.random_regular(30, degree=4, seed=1)
    assert topology.erdos_renyi(30, p=0.5, seed=0) != topology.erdos_renyi(30, p=0.5, seed=1)


def test_erdos_renyi_joins_pairs_with_the_probability_given():
    p, n, draws = 0.3, 30, 40
    pairs = draws * n * (n - 1) // 2
    joined = sum(len(topology.erdos_renyi(n, p=p, seed=seed).edges) for seed in range(draws))
    # Five standard deviations of the binomial count.
    assert abs(joined - p * pairs) < 5 * np.sqrt(pairs * p * (1 - p))


def test_a_disconnected_graph_is_refused_and_a_lost_worker_named():
    with pytest.raises(InputError, match=r"Worker 2 cannot be reached from worker 0 \(2 of 5 workers can\)"):
        topology.build("edges", 5, edges=[(0, 1), (2, 3), (3, 4)])
    with pytest.raises(InputError, match="Worker 1 cannot be reached"):
        topology.build("erdos_renyi", 4, p=0.0, seed=0)
    with pytest.raises(InputError, match="Worker 1 cannot be reached"):
        topology.build("random_regular", 4, degree=0, seed=0)


def test_reachable_from_is_the_component_of_the_worker():
    graph = topology.from_edges(6, [(0, 1), (1, 2), (4, 5)])
    assert graph.reachable_from(2) == {0, 1, 2}
    assert graph.reachable_from(3) == {3}
    assert graph.reachable_from(5) == {4, 5}


class _CountingRows(tuple):
    reads = 0

    def __getitem__(self, index):
        _CountingRows.reads += 1
        return super().__getitem__(index)


def test_the_search_for_the_unreachable_reads_each_neighbourhood_once():
    # A grid has exponentially many shortest paths from corner to corner: a search that walks
    # each of them never ends on 256 workers.
    graph = topology.grid(64)
    graph.__dict__["_adjacency"] = _CountingRows(graph._adjacency)
    _CountingRows.reads = 0
    assert graph.reachable_from(0) == set(range(64))
    assert _CountingRows.reads <= 64


@pytest.mark.parametrize(
    ("kind", "n", "options", "message"),
    [
        ("hypercube", 6, {}, "power of two workers. Got 6"),
        ("random_regular", 5, {"degree": 3, "seed": 0}, "topology.degree times n_workers must be even. Got 3 x 5"),
        ("random_regular", 4, {"degree": 4, "seed": 0}, "topology.degree must be between 0 and 3. Got 4"),
        ("random_regular", 4, {"degree": -1, "seed": 0}, "topology.degree must be between 0 and 3. Got -1"),
        ("grid", 6, {"rows": 4}, "topology.rows must divide n_workers = 6. Got 4"),
        ("torus", 6, {"rows": 0}, "topology.rows must divide n_workers = 6. Got 0"),
        ("torus", 6, {"rows": -2}, "topology.rows must divide n_workers = 6. Got -2"),
        ("erdos_renyi", 4, {"p": 1.5, "seed": 0}, "topology.p must be between 0 and 1. Got 1.5"),
        ("erdos_renyi", 4, {"p": float("nan"), "seed": 0}, "topology.p must be between 0 and 1. Got nan"),
        ("edges", 3, {"edges": [(0, 1), (1, 1)]}, r"two different workers in 0..2. Got \[1, 1\]"),
        ("edges", 3, {"edges": [(0, 3)]}, r"two different workers in 0..2. Got \[0, 3\]"),
        ("edges", 3, {"edges": [(-1, 0)]}, r"two different workers in 0..2. Got \[-1, 0\]"),
        ("moebius", 3, {}, "topology.kind must be one of ring, .*. Got 'moebius'"),
    ],
)
def test_options_that_admit_no_graph_are_refused_with_rule_and_value(kind, n, options, message):
    with pytest.raises(InputError, match=message) as refused:
        topology.build(kind, n, **options)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("n_workers", [1, 2, 3, 4, 6, 12, 16])
def test_a_rook_graph_joins_all_of_a_row_and_all_of_a_column(n_workers):
    for rows in (r for r in range(1, n_workers + 1) if n_workers % r == 0):
        graph, columns = topology.build("rook", n_workers, rows=rows), n_workers // rows
        for i in range(n_workers):
            mates = {j for j in range(n_workers) if j // columns == i // columns or j % columns == i % columns}
            assert set(graph.neighbors(i)) == mates - {i}
            assert len(graph.neighbors(i)) == rows + columns - 2
            # And from its neighbours a worker knows the columns; one row and one column are the same graph.
            found = topology.rook_columns(n_workers, i, graph.neighbors(i))
            assert found == (n_workers if rows in (1, n_workers) else columns)


def test_a_graph_without_rows_and_columns_has_none():
    with pytest.raises(ValueError, match="not a rook's graph"):
        topology.rook_columns(6, 0, (1, 5))
