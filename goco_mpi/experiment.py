"""A config for a number of workers: the topology, placement, weights, method and data of a run.

Both the engine and the simulator start from here; all of it is data and pure functions.
"""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core import codes, encoding, gossip, mixing, objectives, placement, schedules, topology
from goco_mpi.core.batches import Batch
from goco_mpi.core.codes import Code
from goco_mpi.core.compression import Compression
from goco_mpi.core.gossip import Mixing
from goco_mpi.core.methods import PRECONDITIONED, SOLVERS, Method, Place, method_of
from goco_mpi.core.methods.allreduce_nesterov import momentum as best_momentum
from goco_mpi.core.methods.central import Central
from goco_mpi.core.methods.chebyshev import Chebyshev
from goco_mpi.core.methods.compressed import CompressedGossip
from goco_mpi.core.methods.master_cg import MASTER_CG
from goco_mpi.core.methods.momentum import QuasiGlobalMomentum
from goco_mpi.core.methods.rated import Rated
from goco_mpi.core.methods.running_sums import RUNNING_SUMS
from goco_mpi.core.methods.table_newton import TABLE_NEWTON
from goco_mpi.core.methods.table_newton_rook import TABLE_NEWTON_ROOK
from goco_mpi.core.placement import Placement
from goco_mpi.core.schedules import StepSchedule
from goco_mpi.core.shares import Share
from goco_mpi.core.stragglers import StragglerModel
from goco_mpi.core.survivors import Survivors, survivors
from goco_mpi.core.topology import Topology
from goco_mpi.errors import InputError
from goco_mpi.pairings import has_own_steps
from goco_mpi.schema import RunConfig

if TYPE_CHECKING:
    import scipy.sparse as sp

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Layout:
    """Who talks to whom and holds what: everything of a run but its data.

    Attributes
    ----------
    config : RunConfig
    n_workers : int
    topology : Topology
    placement : Placement
    encoding_weights : ndarray of shape (n_workers, n_shards)
    stragglers : StragglerModel
    method : Method
    completion_rates : ndarray of shape (n_workers,)
        What the encoding weights make up for.
    code : Code or None
        What the encoding weights are of, for methods that are exact.
    """

    config: RunConfig
    n_workers: int
    topology: Topology
    placement: Placement
    encoding_weights: Array
    stragglers: StragglerModel
    method: Method[Any]
    completion_rates: Array
    code: Code | None = None

    def without(self, dead: Collection[int]) -> Survivors:
        """Return what is left of the layout when these workers are dead."""
        return survivors(
            self.config.method.weights,
            self.placement,
            self.completion_rates,
            self.encoding_weights,
            self.topology,
            dead,
        )

    def place(self, worker: int, share: Share, momentum: float | None = None) -> Place:
        """Return where a worker stands, for its method; ``momentum`` as the step schedule has it."""
        weight = float(self.encoding_weights[worker].sum()) * self.n_workers / self.placement.n_shards
        held = self.placement.held[:, self.placement.shards_of(worker)]
        return Place(
            worker,
            self.n_workers,
            self.topology.neighbors(worker),
            share,
            weight,
            held,
            self.placement.n_shards,
            self.all_weights,
            momentum,
            self.code,
        )

    @functools.cached_property
    def all_weights(self) -> Array | None:
        """(N/M) a_ik of all workers, shape (n_workers, n_shards), for methods that change them."""
        if self.config.method.kind != TABLE_NEWTON.name:
            return None
        return self.encoding_weights * (self.n_workers / self.placement.n_shards)

    @functools.cached_property
    def mixing_matrix(self) -> sp.csr_array:
        """The whole mixing matrix, shape (n_workers, n_workers), which no rank needs."""
        return mixing.build(self.config.topology.mixing_matrix, self.topology)

    def mixing(self, worker: int) -> Mixing:
        """Return a worker's weights of its neighbours, under the rule of the config."""
        weights = mixing.weights_of(self.config.topology.mixing_matrix, self.topology, worker)
        return Mixing(weights, gossip.age_limit(str(self.config.method.mixing), self.config.method.max_age))

    def decoded(self, worker: int, share: Share) -> Share:
        """Return a worker's share under weights of which those of all workers add up to the same for each shard.

        Their mean is what a master's gradient is once it is decoded; its own where nothing is decoded.
        """
        if self.code is None:
            return share
        held = self.placement.shards_of(worker)
        weights = encoding.plain(self.placement, np.ones(self.n_workers))[worker, held]
        return share.reweighted(weights * self.n_workers / self.placement.n_shards)

    def fingerprint(self) -> int:
        """Return a checksum that two processes share only if they agree on all of this.

        The weights but for rounding: those of a code may differ in it between processors.
        """
        weights = np.round(self.encoding_weights, 9) + 0.0
        parts = (repr(self.config).encode(), repr(self.topology.edges).encode(), weights.tobytes())
        return zlib.crc32(b"".join(parts))


def lay_out(config: RunConfig, n_workers: int) -> Layout:
    """Build the layout of ``config`` on ``n_workers`` workers.

    Raises
    ------
    InputError
        If the config does not fit that number of workers.
    """
    graph = _topology(config, n_workers)
    replication = min(2, n_workers) if config.placement.replication is None else config.placement.replication
    holders = placement.build(config.placement.kind, n_workers, config.data.shards, replication, config.seed)
    exact = method_of(config.method.kind).exact
    code = codes.build(config.placement.kind, holders, config.seed) if exact else None
    straggler_config = config.stragglers
    stragglers = StragglerModel(
        kind=straggler_config.kind,
        n_workers=n_workers,
        seed=config.seed,
        p=straggler_config.p,
        ranks=straggler_config.ranks,
        factor=straggler_config.factor,
        work_s=straggler_config.work_s,
        delay_p=straggler_config.delay_p,
        delay_s=straggler_config.delay_s,
        distribution=straggler_config.distribution,
        link_p=straggler_config.link_p,
        paired_links=config.method.mixing == "symmetric",
        abandons=_abandons(config, code, n_workers),
    )
    late = config.method.late
    completion_rates = stragglers.completion_rates(holders.load if late == "partial" else None)
    if late == "wait" or config.method.rates != "stated":  # they are to be seen
        completion_rates = np.ones(n_workers)
    elif late == "memory" or method_of(config.method.kind).remembers:
        # Whoever goes on using its last gradient loses none: only what a dead worker holds is to be made up for.
        completion_rates = (completion_rates > 0.0).astype(np.float64)
    return Layout(
        config=config,
        n_workers=n_workers,
        topology=graph,
        placement=holders,
        encoding_weights=code.encoding if code else encoding.build(config.method.weights, holders, completion_rates),
        stragglers=stragglers,
        method=_method(config, graph),
        completion_rates=completion_rates,
        code=code,
    )


def _abandons(config: RunConfig, code: Code | None, n_workers: int) -> bool:
    """Return whether those of ``stragglers.kind = 'slow'`` never finish a gradient before a master goes on."""
    deadline, slow = config.deadline, config.stragglers
    if method_of(config.method.kind).exchange != "central":
        return False
    if code is not None:  # nor does it go on where it needs them
        return code.decodable(~np.isin(np.arange(n_workers), slow.ranks))
    if deadline.compute_s == "auto":
        return slow.factor > deadline.compute_factor
    return slow.work_s * slow.factor > float(deadline.compute_s)


def _method(config: RunConfig, graph: Topology) -> Method[Any]:
    section = config.method
    method, solver, local = method_of(section.kind), section.solver, section.preconditioner == "local"
    if isinstance(method, Central):
        return method.using(MASTER_CG if local else SOLVERS[str(solver)])
    if solver is not None:
        return (PRECONDITIONED if local else SOLVERS)[solver]
    if method is TABLE_NEWTON and (graph.degrees < graph.n_workers - 1).any():
        return TABLE_NEWTON_ROOK
    compressed = compression(config)
    if compressed is not None:
        method = CompressedGossip(compressed, mixing.laplacian_norm(mixing.build(config.topology.mixing_matrix, graph)))
    elif section.gossip_rounds > 1:
        matrix = mixing.build(config.topology.mixing_matrix, graph)
        method = Chebyshev(section.gossip_rounds, 1.0 - mixing.spectral_gap(matrix))
    elif section.momentum:
        method = QuasiGlobalMomentum(section.momentum)
    elif section.mixing == "running":
        method = RUNNING_SUMS
    if section.rates == "stated":
        return method
    return Rated(method, section.weights, str(section.rates), graph.n_workers, _most_growth(config))


def _most_growth(config: RunConfig) -> float:
    """Return by how much a worker's weights may grow: an automatic step is chosen for those of who always finishes."""
    return max(schedules.STABLE / config.step.scale, 1.0) if config.step.kind == "auto" else math.inf


def compression(config: RunConfig) -> Compression | None:
    """Return how the messages of ``config`` are compressed; None: not at all."""
    section = config.method
    if section.compression == "none":
        return None
    return Compression(
        kind=section.compression,
        ratio=section.compression_ratio,
        bits=section.compression_bits,
        seed=config.seed,
        consensus_step=section.consensus_step,
    )


def batch(config: RunConfig) -> Batch | None:
    """Return what rows a gradient is taken of; None: all."""
    size = config.data.batch_size
    return None if size is None else Batch(size, config.seed)


def _topology(config: RunConfig, n_workers: int) -> Topology:
    section = config.topology
    options: dict[str, dict[str, object]] = {
        "grid": {"rows": section.rows},
        "torus": {"rows": section.rows},
        "rook": {"rows": section.rows},
        "random_regular": {"degree": section.degree, "seed": config.seed},
        "erdos_renyi": {"p": section.p, "seed": config.seed},
        "edges": {"edges": section.edges},
    }
    return topology.build(section.kind, n_workers, **options.get(section.kind, {}))


def synchronous_curvature(
    config: RunConfig, hessian_product: Callable[[Array], Array], n_params: int, quadratic: bool
) -> tuple[float, float | None]:
    """Return the curvature whose inverse is the best step of ``method.solver``, and the best momentum.

    Where the loss is quadratic both follow from its extreme curvatures mu and L: descent goes best with 2 / (L + mu),
    and here with no mu below L / 10, lest the steepest component takes for ever to die out.

    Parameters
    ----------
    config : RunConfig
    hessian_product : callable (ndarray of shape (n_params,)) -> ndarray of shape (n_params,)
        The Hessian of F at the start.
    n_params : int
    quadratic : bool
        Whether it is the same everywhere.

    References
    ----------
    Nesterov, "Lectures on convex optimization", 2018, theorems 2.1.15 and 2.2.3.
    """
    solver = config.method.solver
    # With sgc's noise the shorter steps, and momentum that begins anew, are the better ones.
    if not quadratic or config.method.kind == "sgc" or solver not in ("descent", "nesterov"):
        return objectives.curvature(hessian_product, n_params), None
    smallest, largest = objectives.extreme_curvatures(hessian_product, n_params)
    if solver == "descent":
        return (largest + max(smallest, 0.1 * largest)) / 2.0, None
    plain = config.step.scale == 1.0 and config.step.tau is None and smallest > 0.0
    return largest, best_momentum(largest / smallest) if plain else None


def step_schedule(config: RunConfig, curvature: float, momentum: float | None = None) -> StepSchedule:
    """Return the step sizes of ``config``; ``curvature`` and ``momentum`` serve ``step.kind = 'auto'``."""
    step = config.step
    if step.kind == "auto":
        if has_own_steps(config) and curvature == 0.0:
            curvature = 1.0  # they will find out
        if not curvature > 0.0:
            raise InputError("step.kind = 'auto' needs a loss with curvature, and this has none: give step.size.")
        return StepSchedule(schedules.from_curvature(curvature, step.scale), step.tau, momentum)
    assert step.size is not None  # the config refuses the other kinds without it
    return StepSchedule(step.size, step.tau if step.kind == "decreasing" else None)
