"""The whole network in one process on stacked arrays: the oracle for ``engine``.

Written from the equations, not from the engine nor from its methods: parameters are a matrix X of
shape (n_workers, n_params), gossip is a sparse matrix product, lateness is a mask. Time does not
pass here; who is late is scripted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from goco_mpi.core.shares import Share
from goco_mpi.core.stragglers import StragglerModel
from goco_mpi.errors import divergence

Array = NDArray[np.float64]
Observe = Callable[[int, Array], bool]
Finished = NDArray[np.bool_]


def simulate(
    shares: Sequence[Share],
    step_size: Callable[[int], float],
    stragglers: StragglerModel,
    n_rounds: int,
    *,
    mixing_matrix: sp.csr_array | None,
    method: str = "goco",
    rule: str = "stale",
    max_age: int = 0,
    late: str = "discard",
    observe: Observe = lambda round_, stacked_params: True,
) -> Array:
    """Run ``n_rounds`` rounds from zero and return all workers' parameters.

    Parameters
    ----------
    shares : sequence of Share, length n_workers
    step_size : callable round -> float
    stragglers : StragglerModel
        A scripted model; see `StragglerModel.scripted`.
    n_rounds : int
    mixing_matrix : csr_array of shape (n_workers, n_workers) or None
        W; None stands for the synchronous allreduce of gradients.
    method : str
        A key of ``STEPS``, or ``table_newton``; without a matrix it is ``allreduce``.
    rule : {'stale', 'fold', 'symmetric', 'running'}
        What is done about lost messages.
    max_age : int
        stale: largest age in rounds at which a neighbour's vector is mixed.
    late : {'discard', 'partial', 'memory', 'wait'}
        What a straggler's step is taken with: nothing, the shards it finished, its last whole
        gradient; or everyone waits and there are no stragglers.
    observe : callable (round, X) -> bool
        Called before every round and once after the last; a False ends the run. X must not be kept.

    Returns
    -------
    ndarray of shape (n_workers, n_params)

    Raises
    ------
    RunError
        If the parameters grow without bound.

    References
    ----------
    Each method's own, in `goco_mpi.core.methods`.
    """
    n_workers = len(shares)
    x = np.zeros((n_workers, shares[0].n_params))
    g = np.zeros_like(x)
    if mixing_matrix is None:
        step: Step = _Allreduce(x)
    else:
        links = Links(mixing_matrix, stragglers, rule, max_age)
        if rule == "running":
            step = _RunningSums(x, links)
        elif method == "table_newton":
            from goco_mpi.core.stacked_newton import StackedNewton  # which builds on this module

            step = StackedNewton(x, links, shares)
        else:
            step = STEPS[method](x, links)
    for t in range(n_rounds):
        if not observe(t, step.x):
            return step.x
        finished = np.ones(n_workers, dtype=bool)
        for i, share in enumerate(shares):
            if late == "wait" or stragglers.finishes(i, t):
                g[i] = share.gradient(step.x[i])
            elif late == "partial":
                n_finished = stragglers.shards_finished(i, t, share.n_shards)
                shards = stragglers.shard_order(i, t, share.n_shards)[:n_finished]
                g[i] = sum((share.gradient(step.x[i], k) for k in shards), start=np.zeros(share.n_params))
                finished[i] = n_finished > 0
            else:
                finished[i] = False
                if late == "discard":
                    g[i] = 0.0
        eta = step_size(t)
        step.advance(g, finished, eta, t)
        # Far below overflow, so that nothing computed from it warns or becomes NaN unseen.
        if not np.abs(step.x).max() < 1e100:
            raise divergence(t, eta)
    observe(n_rounds, step.x)
    return step.x


class Links:
    """The messages of all edges: which arrived, and what each worker last had of each neighbour.

    Parameters
    ----------
    mixing_matrix : csr_array of shape (n_workers, n_workers)
    stragglers : StragglerModel
        Says which messages are lost.
    rule : str
    max_age : int
    """

    def __init__(self, mixing_matrix: sp.csr_array, stragglers: StragglerModel, rule: str, max_age: int) -> None:
        self.matrix = mixing_matrix
        self.stragglers = stragglers
        self.max_age = max_age if rule == "stale" else 0
        entries = mixing_matrix.tocoo()
        off = (entries.row != entries.col) & (entries.data != 0.0)
        self.dest, self.source, self.weight = entries.row[off], entries.col[off], entries.data[off]
        self.last_round = np.full(len(self.dest), -(2**62), dtype=np.int64)
        self.last: Array | None = None
        self.perfect = stragglers.link_p == 0.0

    @property
    def degrees(self) -> NDArray[np.int64]:
        """Neighbours of each worker."""
        return np.bincount(self.dest, minlength=self.matrix.shape[0])

    def deliver(self, messages: Array, t: int) -> None:
        """Let this round's messages, shape (n_workers, anything), arrive or be lost."""
        if self.perfect:
            self.last = messages[self.source]
            self.last_round[:] = t
            return
        if self.last is None:
            self.last = np.zeros((len(self.dest), messages.shape[1]))
        pairs = zip(self.dest.tolist(), self.source.tolist(), strict=True)
        arrived = np.array([self.stragglers.arrives(j, i, t) for i, j in pairs], dtype=bool)
        self.last[arrived] = messages[self.source[arrived]]
        self.last_round[arrived] = t

    def mix(self, v: Array, t: int) -> Array:
        """Return each worker's own v averaged with what it has of its neighbours (their first columns)."""
        if self.perfect:
            return np.asarray(self.matrix @ v)
        assert self.last is not None
        usable = t - self.last_round <= self.max_age
        dest, weight = self.dest[usable], self.weight[usable]
        x = v.copy()
        np.add.at(x, dest, weight[:, None] * (self.last[usable, : v.shape[1]] - v[dest]))
        return x

    def newest(self) -> tuple[NDArray[np.bool_], Array]:
        """Return for each edge whether anything has ever come, and what."""
        assert self.last is not None
        return self.last_round >= 0, self.last


class Step:
    """One method on stacked arrays; ``x`` has the shape (n_workers, n_params)."""

    x: Array

    def advance(self, g: Array, finished: Finished, eta: float, t: int) -> None:
        """Go on by one round: gradients ``g``, of which only some were finished."""
        raise AssertionError


class _Allreduce(Step):
    def __init__(self, x: Array) -> None:
        self.x = x

    def advance(self, g: Array, finished: Finished, eta: float, t: int) -> None:
        self.x = self.x - eta * g.mean(axis=0)


class _Gossip(Step):
    """X <- W (X - eta G)."""

    def __init__(self, x: Array, links: Links) -> None:
        self.x = x
        self.links = links

    def advance(self, g: Array, finished: Finished, eta: float, t: int) -> None:
        v = self.x - eta * g
        if not self.links.perfect:
            self.links.deliver(v, t)
        self.x = self.links.mix(v, t)


class _PushPull(Step):
    """Y tracks the mean of the memories M; running sums Sigma carry it over the edges."""

    def __init__(self, x: Array, links: Links) -> None:
        self.x = x
        self.links = links
        self.share = 1.0 / (1.0 + links.degrees)[:, None]
        self.m, self.y, self.sigma, self.inflow = (np.zeros_like(x) for _ in range(4))
        self.rho = np.zeros((len(links.dest), x.shape[1]))

    def advance(self, g: Array, finished: Finished, eta: float, t: int) -> None:
        m = np.where(finished[:, None], g, self.m)
        flow = self.share * (self.y + m - self.m)
        self.m = m
        self.sigma = self.sigma + flow
        self.y = flow + self.inflow
        v = self.x - eta * self.y
        self.links.deliver(np.hstack([v, self.sigma]), t)
        self.x = self.links.mix(v, t)
        heard, newest = self.links.newest()
        sigma = np.where(heard[:, None], newest[:, v.shape[1] :], 0.0)
        self.inflow = np.zeros_like(v)
        np.add.at(self.inflow, self.links.dest, sigma - self.rho)
        self.rho = sigma

    def in_flight(self) -> Array:
        """Return the tracked mass that is on edges, or not yet taken in, shape (n_params,)."""
        return np.asarray((self.sigma[self.links.source] - self.rho).sum(axis=0) + self.inflow.sum(axis=0))


class _ExactDiffusion(Step):
    """X <- (I + W)/2 (Psi + X - Psi_before)."""

    def __init__(self, x: Array, links: Links) -> None:
        self.x = x
        self.links = links
        self.m = np.zeros_like(x)
        self.psi: Array | None = None

    def advance(self, g: Array, finished: Finished, eta: float, t: int) -> None:
        self.m = np.where(finished[:, None], g, self.m)
        psi = self.x - eta * self.m
        phi = psi if self.psi is None else psi + self.x - self.psi
        self.psi = psi
        if not self.links.perfect:
            self.links.deliver(phi, t)
        self.x = 0.5 * (phi + self.links.mix(phi, t))


class _RunningSums(Step):
    """Mass (z, omega) that splits into equal parts and is never lost; x = z / omega."""

    def __init__(self, x: Array, links: Links) -> None:
        self.links = links
        self.share = 1.0 / (1.0 + links.degrees)[:, None]
        self.mass = np.hstack([x, np.ones((len(x), 1))])
        self.sigma = np.zeros_like(self.mass)
        self.rho = np.zeros((len(links.dest), self.mass.shape[1]))
        self.x = x

    def advance(self, g: Array, finished: Finished, eta: float, t: int) -> None:
        mass = self.mass.copy()
        mass[:, :-1] -= eta * mass[:, -1:] * g
        part = self.share * mass
        self.sigma = self.sigma + part
        self.links.deliver(self.sigma, t)
        heard, newest = self.links.newest()
        sigma = np.where(heard[:, None], newest, 0.0)
        self.mass = part.copy()
        np.add.at(self.mass, self.links.dest, sigma - self.rho)
        self.rho = sigma
        self.x = self.mass[:, :-1] / self.mass[:, -1:]

    def total(self) -> Array:
        """Return all mass, that on edges included, shape (n_params + 1,)."""
        return np.asarray(self.mass.sum(axis=0) + (self.sigma[self.links.source] - self.rho).sum(axis=0))


STEPS: dict[str, Callable[[Array, Links], Step]] = {
    "goco": _Gossip,
    "dgd": _Gossip,
    "push_pull": _PushPull,
    "exact_diffusion": _ExactDiffusion,
}
