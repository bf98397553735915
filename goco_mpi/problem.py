"""The data of a run and the objective on them: all in one process, or each worker's part read by itself.

Both ways go through the same steps (labels, split, reading, scaling), so that a worker's rows are the same to the
last bit whoever reads them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from goco_mpi import hardware
from goco_mpi.core import metrics, objectives, optimum
from goco_mpi.core.objectives import Objective, WeightedRows
from goco_mpi.core.shares import ModelShare
from goco_mpi.data import filling, labels, scaling
from goco_mpi.data.crew import Crew
from goco_mpi.data.dataset import Dataset
from goco_mpi.data.labels import Labels
from goco_mpi.data.readers import open_source
from goco_mpi.data.source import Rows, Source
from goco_mpi.data.split import Split, needs_groups, needs_targets, split
from goco_mpi.schema import RunConfig

if TYPE_CHECKING:
    from goco_mpi.experiment import Layout

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Samples:
    """A source of samples whose rows and classes are known, and no features yet.

    Attributes
    ----------
    config : RunConfig
    source : Source
    split : Split
    labels : Labels or None
        None for regression.
    objective : Objective
    """

    config: RunConfig
    source: Source
    split: Split
    labels: Labels | None
    objective: Objective

    def read(self, parts: Sequence[Rows]) -> Dataset:
        """Read some rows of the source, one part after the other; features not yet scaled.

        Raises
        ------
        InputError
            If they cannot be read, or have no place in the data set.
        """
        features = filling.features(self.source, parts, self.config.data.intercept)
        targets = filling.targets(self.source, parts)  # second: what is generated is there now
        return Dataset(features, targets if self.labels is None else self.labels.encode(targets))

    def standardize(self, train: Dataset, test: Dataset, owned: Mapping[int, Rows], crew: Crew) -> None:
        """Scale features in place where the config says so. Collective.

        Parameters
        ----------
        train, test : Dataset
            Those of this member.
        owned : mapping of int to Rows
            The shards that this member answers for: where their rows are in ``train``.
        crew : Crew
        """
        if not self.config.data.standardize:
            return
        found = self.source.scaling
        if found is None:
            n_shards, n_train = len(self.split.shards), self.split.n_train
            found = scaling.measure(train.features, owned, self.source.n_features, n_shards, n_train, crew)
        for part in (train, test):
            scaling.apply(found, part.features)


def prepare(config: RunConfig, source: Source, crew: Crew) -> Samples:
    """Find the classes and the rows of every shard. Collective.

    Raises
    ------
    InputError
        If the samples do not fit the objective or the number of shards.
    """
    kind, n = config.objective.kind, source.n_samples
    classified = kind != objectives.LeastSquares.name
    everything: Array | None = None
    mine = np.empty(0)

    def look() -> None:  # the result stays here: each member needs only what it has read
        nonlocal mine
        mine = source.targets(crew.piece(n))

    if needs_targets(config.data, source):
        everything = np.concatenate(crew.together(lambda: source.targets(crew.piece(n))))
        mine = everything[crew.piece(n)]
    elif classified and source.labels is not None:
        mine = source.labels
    elif classified:
        crew.together(look)
    groups = None
    if needs_groups(config.data, source):
        column = str(config.data.partition_column)
        groups = crew.together(lambda: source.column(column) if crew.rank == 0 else None)[0]
    found = labels.find(mine, n, kind, crew) if classified else None
    rows = split(config.data, source, config.seed, everything, groups)
    n_columns = source.n_features + config.data.intercept
    n_classes = None if found is None else len(found.values)
    cache = hardware.block_bytes(hardware.cache_bytes(2))
    objective = objectives.build(kind, n_columns, config.objective.l2, n_classes, cache)
    return Samples(config, source, rows, found, objective)


def model_share(
    objective: Objective, layout: Layout, worker: int, held: Dataset, sizes: Sequence[int], n_train: int, test: Dataset
) -> ModelShare:
    """Return what a worker keeps: the rows of its shards with their weights, and some to test on.

    Parameters
    ----------
    objective : Objective
    layout : Layout
    worker : int
    held : Dataset
        The rows of its shards, one after the other.
    sizes : sequence of int
        Of all shards.
    n_train : int
        Training rows of all shards.
    test : Dataset
    """
    shards = layout.placement.shards_of(worker)
    lengths = [sizes[k] for k in shards]
    encoding_weights = layout.encoding_weights[worker, shards]
    owned = np.isin(shards, layout.placement.owned_by(worker)).astype(np.float64)
    n_shards, n_workers = len(sizes), layout.n_workers
    l2_weights = encoding_weights * n_workers / n_shards
    return ModelShare(
        objective,
        coded=WeightedRows(
            held.features,
            held.targets,
            np.repeat(encoding_weights * n_workers / n_train, lengths),
            float(l2_weights.sum()),
        ),
        owned=WeightedRows(
            held.features, held.targets, np.repeat(owned / n_train, lengths), float(owned.sum()) / n_shards
        ),
        sizes=lengths,
        weights=l2_weights,
        test=WeightedRows(test.features, test.targets, np.empty(0), 0.0),
    )


def load_share(source: Source, layout: Layout, worker: int, crew: Crew) -> tuple[ModelShare, list[int]]:
    """Read what a worker keeps, and no other features. Collective.

    Parameters
    ----------
    source : Source
        Opened together, and not `Source.whole`.
    layout : Layout
    worker : int
        Whom this member reads for.
    crew : Crew
        One member for each worker.

    Returns
    -------
    share : ModelShare
    sizes : list of int
        Rows of every shard, whoever holds it.

    Raises
    ------
    InputError
        If the samples cannot be read, or do not fit the config; to all members.
    """
    samples = prepare(layout.config, source, crew)
    rows, held = samples.split, layout.placement.shards_of(worker)
    # A regression has no accuracy, so that nothing is to be tested on.
    part = Crew(worker, layout.n_workers).piece(0 if samples.labels is None else rows.n_test)
    parts: list[Dataset] = []

    def read() -> None:
        parts.append(samples.read([rows.rows(shard) for shard in held]))
        parts.append(samples.read([rows.test_part(part)]))

    crew.together(read)
    train, test = parts
    ends = np.cumsum([rows.sizes[shard] for shard in held])
    owned = {
        shard: slice(int(end) - rows.sizes[shard], int(end))
        for shard, end in zip(held, ends, strict=True)
        if shard in layout.placement.owned_by(worker)
    }
    samples.standardize(train, test, owned, crew)
    return model_share(samples.objective, layout, worker, train, rows.sizes, rows.n_train, test), rows.sizes


@dataclass(frozen=True, eq=False)
class Problem:
    """The data of a run in one process, cut into shards, and the objective on them.

    Attributes
    ----------
    objective : Objective
    train, test : Dataset
    shards : sequence of ndarray
        Training rows of each shard.
    """

    objective: Objective
    train: Dataset
    test: Dataset
    shards: Sequence[NDArray[np.intp]]

    @property
    def sizes(self) -> list[int]:
        """Rows of each shard."""
        return [len(rows) for rows in self.shards]

    def pooled_rows(self) -> WeightedRows:
        """Return all training samples, weighted so that their objective is F."""
        n = self.train.n_samples
        return WeightedRows(self.train.features, self.train.targets, np.full(n, 1.0 / n), 1.0)

    def share(self, layout: Layout, worker: int) -> ModelShare:
        """Return what ``worker`` keeps: the rows of its shards with their weights, and some to test on."""
        index = [self.shards[shard] for shard in layout.placement.shards_of(worker)]
        held = self.train.rows(np.concatenate(index) if index else np.empty(0, np.intp))
        part = Crew(worker, layout.n_workers).piece(self.test.n_samples)
        test = self.test.rows(np.r_[part])
        return model_share(self.objective, layout, worker, held, self.sizes, self.train.n_samples, test)

    def gradient_dissimilarity(self) -> float | None:
        """Return how far the shards' gradients at 0 differ (`goco_mpi.core.metrics.gradient_dissimilarity`)."""
        n, n_shards, start = self.train.n_samples, len(self.shards), np.zeros(self.objective.n_params)
        mean, mean_square = np.zeros(self.objective.n_params), 0.0
        for index in self.shards:
            rows = self.train.rows(index)
            # f_k is M / n times the sum over the shard's rows, so that F is the mean of the f_k.
            weights = np.full(len(index), n_shards / n)
            gradient = self.objective.gradient(start, WeightedRows(rows.features, rows.targets, weights, 1.0))
            mean += gradient / n_shards
            mean_square += float(gradient @ gradient) / n_shards
        return metrics.gradient_dissimilarity(mean_square, mean)

    def optimum(self) -> float:
        """Return F at the optimum, found by scipy's L-BFGS on the pooled samples."""
        return optimum.minimize(self.objective, self.pooled_rows())[1]


def problem_of(config: RunConfig, source: Source) -> Problem:
    """Read all samples of a source, split, standardise and cut them.

    Raises
    ------
    InputError
        If the samples cannot be read, or do not fit the objective or the number of shards.
    """
    samples = prepare(config, source, Crew())
    train, test = samples.read([samples.split.train]), samples.read([samples.split.test])
    samples.standardize(train, test, dict(enumerate(samples.split.shards)), Crew())
    return Problem(samples.objective, train, test, [np.r_[places] for places in samples.split.shards])


def load_problem(config: RunConfig) -> Problem:
    """Load, split, standardise and cut the data that ``config`` names.

    Raises
    ------
    InputError
        If the data cannot be read, or do not fit the objective or the number of shards.
    """
    with open_source(config.data, config.seed) as source:
        return problem_of(config, source)
