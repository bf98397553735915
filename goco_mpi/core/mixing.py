"""Mixing matrices: how much of a neighbour's vector a worker takes in one gossip step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.topology import Topology
from goco_mpi.errors import check_one_of

if TYPE_CHECKING:  # a rank computes its own weights alone, and without
    import scipy.sparse as sp

KINDS = ("metropolis", "lazy_metropolis")
MOST_DENSE = 1024
"""Workers up to which all eigenvalues of the dense matrix are computed; beyond, one of the sparse matrix."""


def metropolis(topology: Topology) -> sp.csr_array:
    """Return the Metropolis mixing matrix W: w_ij = 1 / (1 + max(deg i, deg j)).

    Returns
    -------
    scipy.sparse.csr_array of shape (n_workers, n_workers)
        Symmetric, doubly stochastic, with the graph's support and a positive diagonal.

    References
    ----------
    Xiao, Boyd & Kim, "Distributed average consensus with least-mean-square deviation",
    JPDC 67 (2007), eq. (5).

    Examples
    --------
    >>> from goco_mpi.core.topology import ring
    >>> metropolis(ring(4)).toarray()[0].round(3).tolist()
    [0.333, 0.333, 0.0, 0.333]
    """
    import scipy.sparse as sp

    n = topology.n_workers
    edges = np.array(topology.edges, dtype=np.int64).reshape(-1, 2)
    a, b = edges[:, 0], edges[:, 1]
    weight = 1.0 / (1.0 + np.maximum(topology.degrees[a], topology.degrees[b]))
    off = sp.coo_array((np.r_[weight, weight], (np.r_[a, b], np.r_[b, a])), shape=(n, n)).tocsr()
    diagonal = 1.0 - np.asarray(off.sum(axis=1)).ravel()
    return sp.csr_array(off + sp.diags_array(diagonal))


def lazy(matrix: sp.csr_array) -> sp.csr_array:
    """Return (I + W) / 2, whose eigenvalues are all non-negative."""
    import scipy.sparse as sp

    return sp.csr_array((sp.eye_array(matrix.shape[0]) + matrix) / 2.0)


def build(kind: str, topology: Topology) -> sp.csr_array:
    """Build the mixing matrix named ``kind`` (one of ``KINDS``) on ``topology``.

    Raises
    ------
    InputError
        For an unknown kind.
    """
    check_one_of("topology.mixing_matrix", kind, KINDS)
    matrix = metropolis(topology)
    return lazy(matrix) if kind == "lazy_metropolis" else matrix


def neighbor_weights(matrix: sp.csr_array, topology: Topology, worker: int) -> NDArray[np.float64]:
    """Return w_ij for the neighbours j of ``worker`` in sorted order, shape (degree,)."""
    row = matrix[[worker], :].toarray()[0]
    return np.asarray(row[list(topology.neighbors(worker))], dtype=np.float64)


def weights_of(kind: str, topology: Topology, worker: int) -> NDArray[np.float64]:
    """Return `neighbor_weights` of the matrix named ``kind`` without building the matrix.

    Examples
    --------
    >>> from goco_mpi.core.topology import ring
    >>> weights_of("lazy_metropolis", ring(4), 0)
    array([0.16666667, 0.16666667])
    """
    degrees = topology.degrees
    weights: NDArray[np.float64] = 1.0 / (1.0 + np.maximum(degrees[worker], degrees[list(topology.neighbors(worker))]))
    return weights / 2.0 if kind == "lazy_metropolis" else weights


def spectral_gap(matrix: sp.csr_array) -> float:
    """Return 1 - max(abs lambda_2, abs lambda_n): 1 mixes at once, 0 never.

    Parameters
    ----------
    matrix : scipy.sparse.csr_array of shape (n_workers, n_workers)
        Symmetric and doubly stochastic.

    Notes
    -----
    The consensus distance shrinks by the factor ``1 - spectral_gap`` a round.

    Examples
    --------
    >>> from goco_mpi.core.topology import complete
    >>> round(spectral_gap(metropolis(complete(5))), 12)
    1.0
    """
    n = matrix.shape[0]
    if n == 1:
        return 1.0
    # Deflating the known eigenvector (ones, eigenvalue 1) leaves the second modulus on top.
    if n <= MOST_DENSE:
        values = np.linalg.eigvalsh(matrix.toarray() - 1.0 / n)
        return float(1.0 - np.abs(values).max())
    from scipy.sparse.linalg import LinearOperator, eigsh

    deflated = LinearOperator((n, n), matvec=lambda v: matrix @ v - v.mean(), dtype=np.float64)
    value = eigsh(deflated, k=1, which="LM", return_eigenvectors=False, v0=_start(n))
    return float(1.0 - abs(value[0]))


def laplacian_norm(matrix: sp.csr_array) -> float:
    """Return ||I - W||, the largest eigenvalue of I - W: between 0 and 2.

    Parameters
    ----------
    matrix : scipy.sparse.csr_array of shape (n_workers, n_workers)
        Symmetric and doubly stochastic.

    Examples
    --------
    >>> from goco_mpi.core.topology import complete, ring
    >>> round(laplacian_norm(metropolis(complete(5))), 12), round(laplacian_norm(metropolis(ring(4))), 12)
    (1.0, 1.333333333333)
    """
    n = matrix.shape[0]
    if n <= MOST_DENSE:
        return float(1.0 - np.linalg.eigvalsh(matrix.toarray())[0])
    from scipy.sparse.linalg import eigsh

    return float(1.0 - eigsh(matrix, k=1, which="SA", return_eigenvectors=False, v0=_start(n))[0])


def _start(n: int) -> NDArray[np.float64]:
    """Return where the search for an eigenvector begins: fixed, so that every process finds the same value."""
    return np.asarray(np.cos(np.arange(n) + 1.0))
