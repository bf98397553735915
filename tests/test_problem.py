"""What each worker reads by itself is what one process would give it, to the last bit."""

import numpy as np
import pytest
import scipy.sparse as sp
from crews import on_all

from goco_mpi.config import parse_config
from goco_mpi.data.readers.memory import InMemory
from goco_mpi.data.source import Cut, Scaling
from goco_mpi.errors import InputError
from goco_mpi.experiment import lay_out
from goco_mpi.problem import load_share, problem_of

N_WORKERS, N_SAMPLES, N_SHARDS = 5, 143, 11


class InParts(InMemory):
    """A source that each member reads a part of, and what it asked for."""

    whole = False

    def __init__(self, features, targets, columns=None):
        super().__init__("in parts", features, targets, columns)
        self.asked, self.targets_asked, self.columns_asked = 0, 0, 0

    def features(self, rows):
        found = super().features(rows)
        self.asked += found.shape[0]
        return found

    def targets(self, rows):
        found = super().targets(rows)
        self.targets_asked += len(found)
        return found

    def column(self, name):
        self.columns_asked += 1
        return super().column(name)


def source(kind="softmax", sparse=False, dtype=np.float64):
    rng = np.random.default_rng(3)
    features = (rng.standard_normal((N_SAMPLES, 4)) * [1.0, 50.0, 0.1, 3.0] + [0.0, 9.0, 1e3, -1.0]).astype(dtype)
    if sparse:
        features = sp.csr_array(np.where(rng.random(features.shape) < 0.5, features, 0.0).astype(dtype))
    targets = {
        "softmax": rng.choice([-2.0, 4.0, 5.0], N_SAMPLES),
        "logistic": rng.choice([3.0, 7.0], N_SAMPLES),
        "least_squares": rng.standard_normal(N_SAMPLES),
    }[kind]
    return InParts(features, targets, {"site": rng.integers(0, 40, N_SAMPLES)})


def configure(kind="softmax", **data):
    column = {"partition_column": "site"} if data.get("partition") == "by_column" else {}
    return parse_config(
        {"data": {"shards": N_SHARDS, "standardize": True, **column, **data}, "objective": {"kind": kind}}
    )


def arrays(share):
    """All that a share is made of."""
    for rows in (share.coded, share.owned, share.test):
        features = rows.features
        yield from (features.data, features.indices, features.indptr) if sp.issparse(features) else (features,)
        yield from (rows.targets, rows.weights, np.array(rows.l2_weight))
    yield from (np.array(share.sizes), share.weights)


def assert_same(share, expected):
    for mine, theirs in zip(arrays(share), arrays(expected), strict=True):
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("kind", ["softmax", "logistic"])
@pytest.mark.parametrize("partition", ["iid", "by_label", "in_order", "dirichlet", "by_column"])
def test_shares_read_apart_are_those_of_one_process_to_the_last_bit(partition, kind, sparse):
    config = configure(kind, partition=partition)
    layout = lay_out(config, N_WORKERS)
    problem = problem_of(config, source(kind, sparse))
    found = on_all(N_WORKERS, lambda crew: load_share(source(kind, sparse), layout, crew.rank, crew))
    for worker, (share, sizes) in enumerate(found):
        assert_same(share, problem.share(layout, worker))
        assert sizes == problem.sizes


@pytest.mark.parametrize(
    "data",
    [{"standardize": False}, {"intercept": False}, {"test_fraction": 0.0}, {"shards": 2}, {"shards": 60}],
    ids=str,
)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_same_holds_for_what_else_the_config_says(data, dtype):
    config = configure(**{"partition": "in_order", **data})
    layout = lay_out(config, N_WORKERS)
    problem = problem_of(config, source(dtype=dtype))
    assert problem.train.features.dtype == dtype
    found = on_all(N_WORKERS, lambda crew: load_share(source(dtype=dtype), layout, crew.rank, crew))
    for worker, (share, _) in enumerate(found):
        assert_same(share, problem.share(layout, worker))


def test_a_regression_has_nothing_to_test_on_that_anybody_would_read():
    config = configure("least_squares", test_fraction=0.5)
    layout = lay_out(config, N_WORKERS)
    problem = problem_of(config, source("least_squares"))
    for worker, (share, _) in enumerate(
        on_all(N_WORKERS, lambda crew: load_share(source("least_squares"), layout, crew.rank, crew))
    ):
        expected = problem.share(layout, worker)
        for mine, theirs in ((share.coded, expected.coded), (share.owned, expected.owned)):
            np.testing.assert_array_equal(mine.features, theirs.features)
            np.testing.assert_array_equal(mine.targets, theirs.targets)
        assert share.test.n_rows == 0
        assert not (share.correct(np.zeros(share.n_params)) or (0.0, 0))[1]


@pytest.mark.parametrize("partition", ["iid", "by_label", "in_order", "by_column"])
def test_a_worker_reads_its_own_rows_and_a_part_of_the_targets(partition):
    config = configure(partition=partition)
    layout = lay_out(config, N_WORKERS)
    sources = [source() for _ in range(N_WORKERS)]
    found = on_all(N_WORKERS, lambda crew: load_share(sources[crew.rank], layout, crew.rank, crew))
    for (share, _), read in zip(found, sources, strict=True):
        mine = share.n_rows + share.test.n_rows
        assert read.asked == mine < 0.7 * N_SAMPLES
        assert mine + N_SAMPLES // N_WORKERS <= read.targets_asked <= mine + N_SAMPLES // N_WORKERS + 1
    assert [read.columns_asked for read in sources] == [int(partition == "by_column"), *[0] * (N_WORKERS - 1)]


def test_what_a_source_knows_of_itself_is_not_looked_for():
    def cut():
        found = source()
        found.cut = Cut(tuple(slice(10 * k, 10 * k + 10) for k in range(N_SHARDS)), slice(110, N_SAMPLES))
        found.scaling = Scaling(np.array([0.0, 9.0, 1e3, -1.0]), np.array([1.0, 50.0, 0.1, 3.0]))
        found.labels = np.array([-2.0, 4.0, 5.0])
        return found

    config = configure(test_fraction=0.9)
    layout = lay_out(config, N_WORKERS)
    problem, sources = problem_of(config, cut()), [cut() for _ in range(N_WORKERS)]
    assert (problem.train.n_samples, problem.test.n_samples) == (110, 33)
    found = on_all(N_WORKERS, lambda crew: load_share(sources[crew.rank], layout, crew.rank, crew))
    for worker, (share, sizes) in enumerate(found):
        assert_same(share, problem.share(layout, worker))
        assert sizes == [10] * N_SHARDS
        assert sources[worker].targets_asked == share.n_rows + share.test.n_rows
    whole = source()
    np.testing.assert_array_equal(
        problem.train.features[:, :4], (whole.features(slice(0, 110)) - cut().scaling.shift) / cut().scaling.scale
    )


def test_what_one_member_cannot_read_all_refuse():
    class Damaged(InParts):
        def features(self, rows):
            raise InputError("'in parts' cannot be read: no such luck.")

    config = configure()
    layout = lay_out(config, 3)
    plain = source()

    def load(crew):
        mine = Damaged(plain._features, plain._targets) if crew.rank == 1 else source()
        return load_share(mine, layout, crew.rank, crew)

    errors = on_all(3, load)
    assert [(type(error), str(error)) for error in errors] == [
        (InputError, "'in parts' cannot be read: no such luck.")
    ] * 3


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        ("logistic", {}, "needs two classes. Got 3"),
        ("softmax", {"shards": 144}, "data.shards must be at most the number of training samples"),
        ("softmax", {"partition": "by_column", "shards": 41}, "number of different values of data.partition_column"),
    ],
)
def test_data_that_do_not_fit_are_refused_by_all_alike(kind, data, message):
    config = configure(kind, **data)
    layout = lay_out(config, 3)
    for error in on_all(3, lambda crew: load_share(source(), layout, crew.rank, crew)):
        assert isinstance(error, InputError)
        assert message in str(error)
