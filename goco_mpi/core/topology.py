"""Graphs of workers and who is whose neighbour."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.rng import Purpose, stream
from goco_mpi.errors import InputError, check_one_of, check_range

if TYPE_CHECKING:
    import networkx as nx


@dataclass(frozen=True)
class Topology:
    """An undirected graph of workers without loops.

    Attributes
    ----------
    n_workers : int
        Number of nodes, numbered from 0.
    edges : tuple of (int, int)
        Each edge once, smaller end first, sorted.

    Examples
    --------
    >>> Topology(3, ((0, 1), (1, 2))).neighbors(1)
    (0, 2)
    """

    n_workers: int
    edges: tuple[tuple[int, int], ...]

    @cached_property
    def _adjacency(self) -> tuple[tuple[int, ...], ...]:
        adjacency: list[list[int]] = [[] for _ in range(self.n_workers)]
        for a, b in self.edges:
            adjacency[a].append(b)
            adjacency[b].append(a)
        return tuple(tuple(sorted(row)) for row in adjacency)

    def neighbors(self, worker: int) -> tuple[int, ...]:
        """Return the sorted neighbours of ``worker``, itself excluded."""
        return self._adjacency[worker]

    @cached_property
    def degrees(self) -> NDArray[np.int64]:
        """Number of neighbours of each worker, ndarray of shape (n_workers,)."""
        return np.array([len(row) for row in self._adjacency], dtype=np.int64)

    def reachable_from(self, worker: int) -> set[int]:
        """Return the workers that ``worker`` can reach over edges, itself included."""
        return set().union(*self._layers(worker))

    def _layers(self, worker: int) -> Iterator[set[int]]:
        """Yield the workers at distance 0, 1, 2, ... from ``worker``: a breadth-first search."""
        seen, layer = {worker}, {worker}
        while layer:
            yield layer
            if len(seen) == self.n_workers:  # a last look around would be the most of the work on a dense graph
                return
            layer = {j for i in layer for j in self._adjacency[i]} - seen
            seen |= layer

    def without(self, workers: Collection[int]) -> Topology:
        """Return the graph in which these ``workers`` have no edges.

        Examples
        --------
        >>> Topology(3, ((0, 1), (1, 2))).without([2]).edges
        ((0, 1),)
        """
        gone = set(workers)
        return Topology(self.n_workers, tuple(edge for edge in self.edges if gone.isdisjoint(edge)))

    @cached_property
    def diameter(self) -> int:
        """Number of edges between the two workers that are furthest apart, in a connected graph.

        Examples
        --------
        >>> Topology(4, ((0, 1), (1, 2), (2, 3))).diameter, Topology(1, ()).diameter
        (3, 0)
        """
        return max(sum(1 for _ in self._layers(worker)) for worker in range(self.n_workers)) - 1

    def check_connected(self) -> None:
        """Refuse a graph in which some worker can never hear of another.

        Raises
        ------
        InputError
            If the graph is not connected; names a worker that is cut off.
        """
        reached = self.reachable_from(0)
        if len(reached) < self.n_workers:
            lost = min(set(range(self.n_workers)) - reached)
            raise InputError(
                f"topology must be a connected graph. Worker {lost} cannot be reached from worker 0 "
                f"({len(reached)} of {self.n_workers} workers can). Add edges, raise topology.p or "
                "topology.degree, or change the seed."
            )


def from_edges(n_workers: int, edges: Iterable[tuple[int, int]]) -> Topology:
    """Build a topology from an edge list in any order; repeated edges count once.

    Raises
    ------
    InputError
        If an end is not a worker, or an edge joins a worker to itself.

    Examples
    --------
    >>> from_edges(3, [(1, 0), (0, 1), (2, 1)]).edges
    ((0, 1), (1, 2))
    """
    unique: set[tuple[int, int]] = set()
    for a, b in edges:
        if not (0 <= a < n_workers and 0 <= b < n_workers) or a == b:
            raise InputError(f"topology.edges must join two different workers in 0..{n_workers - 1}. Got [{a}, {b}].")
        unique.add((min(a, b), max(a, b)))
    return Topology(n_workers, tuple(sorted(unique)))


def ring(n_workers: int) -> Topology:
    """Each worker beside the next; two workers share one edge, a single one has none."""
    return from_edges(n_workers, ((i, (i + 1) % n_workers) for i in range(n_workers) if n_workers > 1))


def complete(n_workers: int) -> Topology:
    """Everyone is everyone's neighbour."""
    return from_edges(n_workers, ((i, j) for i in range(n_workers) for j in range(i)))


def star(n_workers: int) -> Topology:
    """Worker 0 in the centre, the others its only neighbours."""
    return from_edges(n_workers, ((0, i) for i in range(1, n_workers)))


def exponential(n_workers: int) -> Topology:
    """Neighbours at distance 1, 2, 4, ... along the ring, in both directions.

    References
    ----------
    Ying et al., "Exponential graph is provably efficient for decentralized deep training",
    NeurIPS 2021 (there directed; here undirected, so that the mixing matrix is symmetric).

    Examples
    --------
    >>> exponential(8).neighbors(0)
    (1, 2, 4, 6, 7)
    """
    offsets = [1 << k for k in range(n_workers.bit_length()) if 1 << k < n_workers]
    return from_edges(n_workers, ((i, (i + o) % n_workers) for i in range(n_workers) for o in offsets))


def hypercube(n_workers: int) -> Topology:
    """Neighbours differ in one bit of their number.

    Raises
    ------
    InputError
        If ``n_workers`` is not a power of two.
    """
    if n_workers & (n_workers - 1):
        raise InputError(
            f"topology.kind = 'hypercube' needs a power of two workers. Got {n_workers}. "
            "Use 'exponential', which takes any number."
        )
    bits = range(n_workers.bit_length() - 1)
    return from_edges(n_workers, ((i, i ^ (1 << b)) for i in range(n_workers) for b in bits))


def grid_columns(n_workers: int, rows: int | None = None) -> int:
    """Return the columns of a grid of so many rows, by default as square as the number of workers allows.

    Raises
    ------
    InputError
        If ``rows`` does not divide ``n_workers``.
    """
    if rows is None:
        rows = max(r for r in range(1, int(n_workers**0.5) + 1) if n_workers % r == 0)
    if rows < 1 or n_workers % rows:
        raise InputError(f"topology.rows must divide n_workers = {n_workers}. Got {rows}.")
    return n_workers // rows


def grid(n_workers: int, *, rows: int | None = None, periodic: bool = False) -> Topology:
    """Build a grid as square as the number of workers allows; ``periodic`` makes it a torus.

    Parameters
    ----------
    n_workers : int
        Number of workers.
    rows : int, optional
        Number of rows; must divide ``n_workers``. Default: the largest divisor up to its root.
    periodic : bool
        Join opposite sides.

    Raises
    ------
    InputError
        If ``rows`` does not divide ``n_workers``.
    """
    cols = grid_columns(n_workers, rows)
    rows = n_workers // cols
    edges = []
    for r in range(rows):
        for c in range(cols):
            if c + 1 < cols or (periodic and cols > 2):
                edges.append((r * cols + c, r * cols + (c + 1) % cols))
            if r + 1 < rows or (periodic and rows > 2):
                edges.append((r * cols + c, (r + 1) % rows * cols + c))
    return from_edges(n_workers, edges)


def rook(n_workers: int, *, rows: int | None = None) -> Topology:
    """Rows and columns of workers, numbered row by row, where all of a row and all of a column are neighbours.

    Two hops lead from any worker to any other. Parameters and errors as for `grid`.

    Examples
    --------
    >>> rook(6).neighbors(1)
    (0, 2, 4)
    """
    columns = grid_columns(n_workers, rows)
    pairs = ((i, j) for j in range(n_workers) for i in range(j))
    return from_edges(n_workers, ((i, j) for i, j in pairs if i // columns == j // columns or (j - i) % columns == 0))


def rook_columns(n_workers: int, worker: int, neighbors: Iterable[int]) -> int:
    """Return the columns of the `rook` graph in which a worker has these neighbours.

    Raises
    ------
    ValueError
        If there is none.

    Examples
    --------
    >>> [rook_columns(6, 1, (0, 2, 4)), rook_columns(6, 1, (0, 3, 5)), rook_columns(6, 1, (0, 2, 3, 4, 5))]
    [3, 2, 6]
    """
    mates = {*neighbors, worker}
    for columns in range(n_workers, 0, -1):
        first = worker - worker % columns
        if n_workers % columns == 0 and mates == {
            *range(first, first + columns),
            *range(worker % columns, n_workers, columns),
        }:
            return columns
    raise ValueError("not a rook's graph")


def _from_networkx(graph: nx.Graph[int]) -> Topology:
    return from_edges(graph.number_of_nodes(), ((int(a), int(b)) for a, b in graph.edges))


def random_regular(n_workers: int, *, degree: int, seed: int) -> Topology:
    """Draw a uniformly random graph in which every worker has ``degree`` neighbours.

    Raises
    ------
    InputError
        If no such graph exists: 0 <= degree < n_workers and n_workers * degree even.
    """
    import networkx as nx

    check_range("topology.degree", degree, 0, n_workers - 1, f"There are {n_workers} workers.")
    if n_workers * degree % 2:
        raise InputError(
            f"topology.degree times n_workers must be even. Got {degree} x {n_workers}. Use degree {degree + 1}."
        )
    rng = stream(seed, Purpose.TOPOLOGY)
    return _from_networkx(nx.random_regular_graph(degree, n_workers, seed=rng))


def erdos_renyi(n_workers: int, *, p: float, seed: int) -> Topology:
    """Each pair of workers is joined with probability ``p``, independently."""
    import networkx as nx

    check_range("topology.p", p, 0.0, 1.0)
    return _from_networkx(nx.gnp_random_graph(n_workers, p, seed=stream(seed, Purpose.TOPOLOGY)))


KINDS: dict[str, Callable[..., Topology]] = {
    "ring": ring,
    "grid": grid,
    "torus": lambda n_workers, **options: grid(n_workers, periodic=True, **options),
    "rook": rook,
    "hypercube": hypercube,
    "complete": complete,
    "star": star,
    "exponential": exponential,
    "random_regular": random_regular,
    "erdos_renyi": erdos_renyi,
    "edges": lambda n_workers, *, edges: from_edges(n_workers, edges),
}


def build(kind: str, n_workers: int, **options: Any) -> Topology:
    """Build a connected topology by name.

    Parameters
    ----------
    kind : str
        A key of ``KINDS``.
    n_workers : int
        Number of workers, at least 1.
    **options
        What that kind takes: ``rows``, ``degree``, ``p``, ``seed``, ``edges``.

    Raises
    ------
    InputError
        For an unknown kind, options that admit no such graph, or a graph that is not connected.

    Examples
    --------
    >>> build("torus", 9).degrees.tolist()
    [4, 4, 4, 4, 4, 4, 4, 4, 4]
    """
    check_one_of("topology.kind", kind, KINDS)
    topology = KINDS[kind](n_workers, **options)
    topology.check_connected()
    return topology
