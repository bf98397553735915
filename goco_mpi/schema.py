"""The keys of an experiment file, each with its default and what it means.

The key names are a contract with users. Reading and checking them is `goco_mpi.config`. The types of numbers say
their units; from those and the texts below, docs/hooks.py makes the reference of the experiment file.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec


def _unit(name: str) -> msgspec.Meta:
    return msgspec.Meta(extra={"unit": name})


Seconds = Annotated[float, _unit("s")]
BytesPerSecond = Annotated[float, _unit("bytes/s")]
Rounds = Annotated[int, _unit("rounds")]
Rows = Annotated[int, _unit("rows")]
Columns = Annotated[int, _unit("columns")]
Shards = Annotated[int, _unit("shards")]
Workers = Annotated[int, _unit("workers")]
Bits = Annotated[int, _unit("bits")]
Probability = Annotated[float, _unit("probability")]
Count = Annotated[int, _unit("")]
Number = Annotated[float, _unit("")]


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One table of the experiment file."""


_S = TypeVar("_S", bound=Section)


def replace(section: _S, **changes: Any) -> _S:
    """Return a copy of a config section with some fields changed."""
    return msgspec.structs.replace(section, **changes)


class DataConfig(Section, frozen=True):
    """Where the samples come from and how they are cut into shards."""

    source: str = "digits"
    """digits | breast_cancer | diabetes | synthetic (in one piece) | synthetic_regression | synthetic_classification
    | synthetic_sparse (of any size, made shard by shard) | a path: a file, or a directory made by goco shard."""
    format: str = "auto"
    """auto (by suffix) | svmlight | npz | npy | hdf5 | parquet | csv."""
    dtype: str = "float64"
    """float64 | float32: of the features; parameters, messages and sums are always float64."""
    targets: str | None = None
    """For .npy features: the .npy file with the targets."""
    features: str | None = None
    """HDF5: the dataset with the features, or the group of a CSR matrix (default: features)."""
    target_column: str | None = None
    """Parquet, CSV: the column with the targets (default: target); HDF5: the dataset (default: targets)."""
    partition: str = "iid"
    """iid | by_label (sorted by target) | in_order (as the file has them) | dirichlet (the samples of each label in
    shares drawn from a Dirichlet distribution) | by_column (groups of samples, such as sites or users, stay whole)."""
    alpha: Number = 0.5
    """dirichlet: concentration; the smaller, the fewer shards have most of a label."""
    partition_column: str | None = None
    """by_column: the column that names each sample's group."""
    shards: Shards = 16
    """M: how many parts the training samples are cut into; the unit that is placed, replicated and coded."""
    batch_size: Rows | None = None
    """Rows of each shard that a gradient is taken of, drawn anew for every gradient (default: all)."""
    standardize: bool = False
    """Centre and scale every feature by its training mean and deviation (CSR: scale only)."""
    intercept: bool = True
    """Append a column of ones."""
    test_fraction: Number = 0.2
    """Share of the samples kept for testing, in [0, 1)."""
    n_samples: Rows = 4000
    """Synthetic only: rows."""
    n_features: Columns = 50
    """Synthetic only: columns."""
    n_classes: Count = 2
    """synthetic_classification, synthetic_sparse: labels 0, 1, ..."""
    density: Number = 0.1
    """synthetic_sparse: part of a row's features that are 1 and not 0, in (0, 1]."""
    condition_number: Number = 1.0
    """synthetic_regression, synthetic_classification: of the features' covariance."""
    noise: Number = 0.5
    """Synthetic only: standard deviation of the label noise."""
    heterogeneity: Number = 0.0
    """Synthetic only: how far each shard's own solution lies from the common one."""


class ObjectiveConfig(Section, frozen=True):
    """What is minimised."""

    kind: str = "softmax"
    """least_squares | logistic | softmax."""
    l2: Number = 1e-3
    """Strength of the regulariser (l2 / 2) ||x||^2 in every shard's loss; the intercept is in it."""


class TopologyConfig(Section, frozen=True):
    """Who gossips with whom."""

    kind: str = "exponential"
    """ring | grid | torus | rook | hypercube | complete | star | exponential | random_regular | erdos_renyi | edges."""
    mixing_matrix: str = "metropolis"
    """metropolis | lazy_metropolis."""
    rows: Count | None = None
    """grid, torus, rook: number of rows (default: as square as possible)."""
    degree: Workers = 4
    """random_regular: neighbours of each worker."""
    p: Probability = 0.5
    """erdos_renyi: probability of an edge."""
    edges: tuple[tuple[int, int], ...] = ()
    """edges: pairs of workers."""


class PlacementConfig(Section, frozen=True):
    """Which worker holds which shard."""

    kind: str = "pairwise_balanced"
    """pairwise_balanced | fractional_repetition | cyclic | bernoulli | uncoded."""
    replication: Workers | None = None
    """Workers that hold each shard (default: 2, where there are as many); always 1 for uncoded."""


class MethodConfig(Section, frozen=True):
    """What a round does."""

    kind: str = "goco"
    """goco | push_pull | exact_diffusion | table_newton (needs topology.kind complete or rook) | dgd | allreduce
    | gradient_coding (needs placement.kind cyclic or fractional_repetition) | sgc | module:NAME (one of yours)."""
    late: str = "auto"
    """What a gradient is worth that misses its deadline: discard (nothing) | partial (the shards done
    so far count, in random order) | memory (it is carried on with and used when ready, until then the last
    one is) | wait (there is no deadline: both are inf) | auto (memory for table_newton, discard for others)."""
    weights: str = "coverage"
    """The encoding weights: paper (by the mean completion rate) | own (by the rank's own) | coverage (by those
    of all holders of a shard) | plain (lateness is ignored)."""
    rates: str | None = None
    """goco: where the completion rates in the weights come from: stated (by [stragglers]), or the ranks tell
    each other: ema (an average over recent rounds) | counted (over all rounds) | live (1 for ranks that are heard of,
    0 for silent ones). Default: stated if [stragglers] states any; else live with late = memory, and ema without."""
    mixing: str | None = None
    """What is done about late neighbours: stale (their older vector is mixed) | fold (they are left out) | symmetric
    (a pair mixes both or neither; needs gossip_s = inf) | running (sums, of which nothing is lost). Default: as the
    method has it."""
    solver: str | None = None
    """allreduce, gradient_coding, sgc (the first two): what is made of the mean gradient: descent (the default)
    | nesterov | cg | lbfgs. cg and lbfgs find their steps themselves: [step] does not apply."""
    preconditioner: str | None = None
    """solver = "cg" on least squares: none (allreduce's default) | local (the mean of the ranks' own inverse Hessians,
    factored once; with a master, the default, of rank 0's alone)."""
    max_age: Rounds = 30
    """stale: rounds after which a neighbour's vector is no longer used."""
    gossip_rounds: Rounds = 1
    """goco, dgd: rounds of gossip to one gradient, by Chebyshev polynomials; needs deadline.gossip_s = inf."""
    momentum: Number = 0.0
    """goco, dgd: beta of the quasi-global momentum, in [0, 1)."""
    compression: str = "none"
    """goco, dgd: what a message holds: none (the whole vector) | top_k (the coordinates that changed most) | random_k
    (some at random) | quantize (all, in few bits)."""
    compression_ratio: Number = 0.1
    """top_k, random_k: part of the coordinates in a message, in (0, 1]."""
    compression_bits: Bits = 8
    """quantize: bits a coordinate: 2, 4, 8 or 16."""
    consensus_step: Number | None = None
    """With compression: how much of the mixing step is taken, in (0, 1] (default: by the compression and the graph)."""


class StepConfig(Section, frozen=True):
    """The step size."""

    kind: str = "auto"
    """constant | decreasing (size / (1 + t / tau)) | auto (scale / curvature at the start)."""
    size: Number | None = None
    """constant, decreasing: the step size, at the start."""
    tau: Annotated[float, _unit("rounds")] | None = None
    """decreasing: rounds after which the step has halved; auto: decreasing if given."""
    scale: Number = 1.0
    """auto: multiple of the inverse curvature."""


class DeadlineConfig(Section, frozen=True):
    """How long a rank waits: a number of seconds, inf, or "auto"."""

    compute_s: Seconds | str = "auto"
    """For the rank's own gradient."""
    gossip_s: Seconds | str = "auto"
    """For its neighbours' messages."""
    compute_factor: Number = 2.0
    """auto: multiple of the running median of the rank's own gradient time."""
    gossip_factor: Number = 0.1
    """auto: multiple of the running median of a round's work and, weighted more, its time in the network."""
    poll_s: Seconds | str = "auto"
    """Sleep between two looks at the messages: seconds, or auto (0 where ranks have cores of their own)."""
    shutdown_s: Seconds = 60.0
    """How long the end waits for a silent rank before the job is aborted."""
    progress_thread: bool = False
    """Let a thread receive messages while a gradient without blocks is computed, such as one from another library."""


class StopConfig(Section, frozen=True):
    """When to end before the last round: one rank decides, the word spreads with the gossip."""

    target_loss: Number | None = None
    """Training loss F; estimated in the run from each rank's own parameters and shards."""
    gradient_norm: Number | None = None
    """Norm of grad F; estimated from how far a rank's parameters moved, divided by the steps of these rounds."""
    time_limit_s: Seconds | None = None
    """Wall-clock seconds in the round loop."""
    margin_s: Seconds = 120.0
    """How many seconds before the end of the batch job the run stops, where the scheduler tells that end; at most half
    of those that are left at the start."""
    every: Rounds = 10
    """Rounds between two looks at the loss and at the gradient's norm."""
    on_lost_shard: str = "stop"
    """What to do when ranks die that held the only copies of a shard: stop (with an error) | continue (without it)."""


class StragglerConfig(Section, frozen=True):
    """Injected lateness, for experiments."""

    kind: str = "none"
    """none | bernoulli (p, logical) | persistent (ranks, factor: logical) | slow (ranks, factor: real)
    | delays (delay_p, delay_s: real)."""
    p: Probability | tuple[Probability, ...] = 0.0
    """bernoulli, persistent: probability that a rank misses a round: one number, or a list with one for each rank
    (1: it never finishes)."""
    ranks: tuple[int, ...] = ()
    """slow, persistent: who they are, counted from 0."""
    factor: Number = 10.0
    """slow: how many times as long their gradients last; persistent: they finish every factor-th round only."""
    work_s: Seconds = 0.0
    """Every rank's gradient takes at least this long: it sleeps the rest."""
    delay_p: Probability = 0.0
    """slow, delays: probability that another rank is delayed in a round."""
    delay_s: Seconds = 0.0
    """slow, delays: mean delay in seconds."""
    distribution: str = "exponential"
    """exponential | pareto | constant: of the delays."""
    link_p: Probability | tuple[Probability, ...] = 0.0
    """Probability that a message is lost on arrival (logical; goes with any kind): one number, or a list with one
    for each rank that sends."""


class CostConfig(Section, frozen=True):
    """What time things take where it is simulated: goco simulate --time, goco plan. Slow ranks are in [stragglers]."""

    compute: str = "constant"
    """constant | shifted_exponential | pareto | bimodal | trace: how long gradients take."""
    compute_s: Seconds = 0.01
    """Seconds of an undisturbed gradient over ``rows`` rows; over others in proportion."""
    rows: Rows | None = None
    """Default: an equal part of the training rows, so that replication d makes it d times as long."""
    spread: Number = 0.5
    """shifted_exponential, pareto: mean of what comes on top at random, as a multiple of compute_s."""
    slow_p: Probability = 0.05
    """bimodal: probability of a slow gradient."""
    slow_factor: Number = 10.0
    """bimodal: how many times as long that takes."""
    trace: str | None = None
    """trace: a run directory, or a text file of seconds with a column for each worker; used over and over."""
    overhead_s: Seconds = 5e-6
    """Of a rank's own time for each message that it sends or receives."""
    latency_s: Seconds = 5e-5
    """Of a message, from the end of the sending to its arrival."""
    bytes_per_s: BytesPerSecond = 1e9
    """Of a rank's link, over which its messages leave one after the other."""


class RecordConfig(Section, frozen=True):
    """What is recorded."""

    every: Rounds = 20
    """Rounds between two rows of history.csv."""
    optimum: bool = False
    """Also find the optimum (scipy L-BFGS on the pooled data, on rank 0 or of all ranks) and report suboptimality."""
    events: bool = True
    """Keep what decided each rank's every vector, for goco replay: 8 bytes a round and 4 for each neighbour."""
    timeline: bool = False
    """Also keep when: for goco report, with --html and --timeline."""
    status: bool = True
    """While the run lasts, let every rank say where it is, for goco watch: 512 bytes a second or less often, to a file
    of its own beside the run directory, and 1 % of its time for an estimate of the loss."""


class CheckpointConfig(Section, frozen=True):
    """When each rank keeps its state on disk, so that the run can go on from it: goco run --resume."""

    every: Rounds | None = None
    """Rounds between two checkpoints."""
    every_s: Seconds | None = None
    """Seconds between two."""
    keep: Count = 2
    """How many are kept: the newest."""


class RunConfig(Section, frozen=True):
    """A whole experiment."""

    seed: Count = 0
    """Decides the random parts of everything: data, split, graph, placement, codes, stragglers, minibatches."""
    rounds: Rounds = 200
    """How many each rank goes through, if nothing in [stop] ends the run before."""
    data: DataConfig = DataConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    topology: TopologyConfig = TopologyConfig()
    placement: PlacementConfig = PlacementConfig()
    method: MethodConfig = MethodConfig()
    step: StepConfig = StepConfig()
    deadline: DeadlineConfig = DeadlineConfig()
    stop: StopConfig = StopConfig()
    stragglers: StragglerConfig = StragglerConfig()
    cost: CostConfig = CostConfig()
    record: RecordConfig = RecordConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
