import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.datasets import dump_svmlight_file

from goco_mpi.config import parse_config
from goco_mpi.errors import InputError
from goco_mpi.experiment import lay_out, step_schedule
from goco_mpi.problem import load_problem

N_WORKERS = 6
PLACEMENTS = ("pairwise_balanced", "fractional_repetition", "cyclic", "bernoulli", "uncoded")


def configure(placement="pairwise_balanced", **tables):
    """Least squares on 97 samples in 11 shards, which divide neither the samples nor the workers."""
    raw = {
        "data": {
            "source": "synthetic",
            "n_samples": 121,
            "n_features": 5,
            "shards": 11,
            "heterogeneity": 1.0,
            "partition": "in_order",
        },
        "objective": {"kind": "least_squares", "l2": 0.2},
        "placement": {"kind": placement, "replication": 6 if placement == "bernoulli" else 3},
    }
    for name, table in tables.items():
        raw[name] = {**raw.get(name, {}), **table} if isinstance(table, dict) else table
    return parse_config(raw)


def coded_mean(problem, layout, params, rates):
    """Mean over workers of the coded gradients, each weighted by how often it is finished."""
    gradients = [problem.share(layout, worker).gradient(params) for worker in range(layout.n_workers)]
    return np.asarray(rates) @ gradients / layout.n_workers


STRAGGLERS = [
    {"kind": "none"},
    {"kind": "bernoulli", "p": 0.4},
    {"kind": "persistent", "ranks": [1, 4], "factor": 5.0},
    {"kind": "slow", "ranks": [0], "factor": 10.0, "delay_p": 0.2, "delay_s": 1.0},
    {"kind": "delays", "delay_p": 0.3, "delay_s": 1.0},
]


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("stragglers", STRAGGLERS, ids=lambda table: table["kind"])
def test_coded_gradients_are_an_unbiased_estimate_of_the_full_gradient(placement, stragglers):
    layout = lay_out(configure(placement, stragglers=stragglers), N_WORKERS)
    problem = load_problem(layout.config)
    params = np.random.default_rng(0).standard_normal(problem.objective.n_params)
    found = coded_mean(problem, layout, params, layout.stragglers.completion_rates())
    expected = shard_mean_gradient(problem, params)
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-12)


def shard_mean_gradient(problem, params):
    """grad F as (1/n) sum over samples + l2 x, in numpy alone."""
    features, targets = problem.train.features, problem.train.targets
    return features.T @ (features @ params - targets) / len(targets) + 0.2 * params


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_owned_losses_of_all_workers_add_up_to_the_objective(placement):
    layout = lay_out(configure(placement), N_WORKERS)
    problem = load_problem(layout.config)
    params = np.random.default_rng(0).standard_normal(problem.objective.n_params)
    rows = [problem.share(layout, worker) for worker in range(N_WORKERS)]
    pooled = problem.pooled_rows()
    assert sum(problem.objective.loss(params, part.owned) for part in rows) == pytest.approx(
        problem.objective.loss(params, pooled), rel=1e-13
    )
    np.testing.assert_allclose(
        problem.objective.gradient(params, pooled), shard_mean_gradient(problem, params), rtol=1e-11
    )
    assert sum(part.owned.l2_weight for part in rows) == pytest.approx(1.0)


@pytest.mark.parametrize("kind", ["bernoulli", "persistent", "slow", "delays"])
@pytest.mark.parametrize("weights", ["coverage", "paper"])
def test_whoever_waits_drops_nothing_and_must_not_make_up_for_lateness(kind, weights):
    # With late = "wait" every gradient counts in every round, so that rates are 1, not 1 - p.
    options = {"p": 0.5, "ranks": [0], "factor": 4.0, "delay_p": 0.5, "delay_s": 1.0}
    config = configure(method={"late": "wait", "weights": weights}, stragglers={"kind": kind, **options})
    layout = lay_out(config, N_WORKERS)
    np.testing.assert_allclose(layout.encoding_weights.sum(axis=0), 1.0, rtol=1e-14)
    problem = load_problem(config)
    params = np.ones(problem.objective.n_params)
    found = coded_mean(problem, layout, params, np.ones(N_WORKERS))
    np.testing.assert_allclose(found, shard_mean_gradient(problem, params), rtol=1e-11)


@pytest.mark.parametrize("table", STRAGGLERS, ids=lambda table: table["kind"])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_memory_and_waiting_lose_nothing_and_make_up_for_nothing(placement, table):
    for late in ("memory", "wait"):
        layout = lay_out(configure(placement, method={"late": late}, stragglers=table), N_WORKERS)
        np.testing.assert_allclose(layout.encoding_weights.sum(axis=0), 1.0, rtol=1e-14)


@pytest.mark.parametrize("table", STRAGGLERS, ids=lambda table: table["kind"])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_partial_and_discarded_gradients_make_up_for_what_is_lost_of_each_shard(placement, table):
    # With coverage weights every shard's weights, times how often its holders finish it, add up to 1.
    for late in ("discard", "partial"):
        layout = lay_out(configure(placement, method={"late": late}, stragglers=table), N_WORKERS)
        load = layout.placement.load if late == "partial" else None
        rates = layout.stragglers.completion_rates(load)
        np.testing.assert_allclose(rates @ layout.encoding_weights, 1.0, rtol=1e-14)


DEAD = {"kind": "bernoulli", "p": [0.0, 0.3, 1.0, 0.5, 0.8, 0.1]}
"""Worker 2 never finishes."""


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ({"late": "discard"}, "coverage"),
        ({"late": "partial"}, "coverage"),
        ({"late": "memory"}, "live holders"),
        ({"late": "discard", "kind": "push_pull"}, "live holders"),
        ({"late": "wait"}, "all holders"),
    ],
    ids=str,
)
def test_what_a_dead_worker_holds_is_given_to_the_other_holders(method, expected):
    layout = lay_out(configure(method=method, stragglers=DEAD), N_WORKERS)
    held, weights = layout.placement.held, layout.encoding_weights
    live = np.arange(N_WORKERS) != 2
    assert held[2].any()
    if expected == "coverage":
        load = layout.placement.load if method["late"] == "partial" else None
        rates = layout.stragglers.completion_rates(load)
        assert rates[2] == 0.0
        np.testing.assert_allclose(rates @ weights, 1.0, rtol=1e-14)
    else:
        counts = held[live].sum(axis=0) if expected == "live holders" else held.sum(axis=0)
        np.testing.assert_allclose(weights[held], (held / counts)[held], rtol=1e-14)


def test_own_weights_make_up_for_each_worker_by_its_own_rate():
    stragglers = {"kind": "bernoulli", "p": [0.0, 0.3, 0.9, 0.5, 0.8, 0.1]}
    layout = lay_out(configure(method={"weights": "own"}, stragglers=stragglers), N_WORKERS)
    rates = 1.0 - np.array(stragglers["p"])
    np.testing.assert_allclose(layout.encoding_weights, layout.placement.held / (3 * rates[:, None]), rtol=1e-14)


def test_a_worker_with_more_shards_finishes_more_of_a_late_gradient():
    # 0.6 + 0.4 (n - 1) / 2n of the time each of its n shards, against 0.6 of the time the whole.
    stragglers = {"kind": "bernoulli", "p": 0.4}
    layouts = {
        late: lay_out(configure(method={"late": late}, stragglers=stragglers), N_WORKERS)
        for late in ("discard", "partial")
    }
    load = layouts["partial"].placement.load
    assert set(load.tolist()) == {5, 6}
    rate = {n: 0.6 + 0.4 * (n - 1) / (2 * n) for n in (5, 6)}
    for shard in range(11):
        holders = layouts["partial"].placement.holders(shard)
        partial, discard = (layouts[late].encoding_weights[holders, shard] for late in ("partial", "discard"))
        np.testing.assert_allclose(partial, 1.0 / sum(rate[load[i]] for i in holders), rtol=1e-14)
        np.testing.assert_allclose(discard, 1.0 / (3 * 0.6), rtol=1e-14)


def test_workers_without_shards_keep_empty_rows_and_a_zero_gradient():
    layout = lay_out(configure("uncoded", data={"shards": 2}), N_WORKERS)
    problem = load_problem(layout.config)
    idle = [worker for worker in range(N_WORKERS) if not layout.placement.shards_of(worker)]
    assert len(idle) == 4
    for worker in idle:
        rows = problem.share(layout, worker)
        assert rows.coded.n_rows == 0
        assert not problem.objective.gradient(np.ones(problem.objective.n_params), rows.coded).any()


@pytest.mark.parametrize("n_workers", [1, 4, 7])
def test_test_samples_are_shared_out_each_once(n_workers):
    config = configure(placement="uncoded")
    layout, problem = lay_out(config, n_workers), load_problem(config)
    rows = [problem.share(layout, worker) for worker in range(n_workers)]
    assert sum(part.test.n_rows for part in rows) == problem.test.n_samples
    shared = np.sort(np.concatenate([part.test.targets for part in rows]))
    np.testing.assert_array_equal(shared, np.sort(problem.test.targets))


def test_shards_cover_the_training_samples():
    problem = load_problem(configure())
    assert sorted(np.concatenate(problem.shards).tolist()) == list(range(problem.train.n_samples))
    assert problem.train.n_samples + problem.test.n_samples == 121


def test_sparse_files_stay_sparse_through_the_whole_preparation(tmp_path):
    rng = np.random.default_rng(1)
    features = sp.csr_array(np.where(rng.random((60, 9)) < 0.3, rng.standard_normal((60, 9)), 0.0))
    dump_svmlight_file(features, rng.choice([3.0, 7.0], 60), str(tmp_path / "data.svm"))
    raw = {
        "data": {"source": str(tmp_path / "data.svm"), "shards": 5, "standardize": True, "partition": "by_label"},
        "objective": {"kind": "logistic", "l2": 0.1},
    }
    config = parse_config(raw)
    layout, problem = lay_out(config, 4), load_problem(config)
    assert sp.issparse(problem.train.features)
    assert set(problem.train.targets) == {-1.0, 1.0}
    params = rng.standard_normal(10)
    parts = [problem.share(layout, worker) for worker in range(4)]
    assert all(sp.issparse(part.coded.features) for part in parts)
    gradients = [problem.objective.gradient(params, part.coded) for part in parts]
    expected = problem.objective.gradient(params, problem.pooled_rows())
    np.testing.assert_allclose(np.mean(gradients, axis=0), expected, rtol=1e-12, atol=1e-14)


def test_labels_become_classes_for_classifiers_and_stay_numbers_for_regression():
    digits = load_problem(parse_config({}))
    assert digits.objective.n_params == 65 * 10
    assert sorted(set(digits.train.targets)) == list(range(10))
    cancer = load_problem(parse_config({"data": {"source": "breast_cancer"}, "objective": {"kind": "logistic"}}))
    assert set(cancer.train.targets) == {-1.0, 1.0}
    regression = load_problem(parse_config({"objective": {"kind": "least_squares"}}))
    assert regression.objective.n_params == 65
    assert sorted(set(regression.train.targets)) == list(range(10))


def test_intercept_and_standardisation_follow_the_config():
    bare = load_problem(parse_config({"data": {"intercept": False}}))
    assert bare.train.n_features == 64
    scaled = load_problem(parse_config({"data": {"standardize": True}})).train.features
    np.testing.assert_allclose(scaled[:, :-1].mean(axis=0), 0.0, atol=1e-12)
    assert (scaled[:, -1] == 1.0).all()
    assert (load_problem(parse_config({"data": {"standardize": True}})).test.features[:, -1] == 1.0).all()


def test_optimum_is_below_the_loss_anywhere_nearby():
    problem = load_problem(configure())
    best = problem.optimum()
    rng = np.random.default_rng(0)
    pooled = problem.pooled_rows()
    assert all(problem.objective.loss(rng.standard_normal(6), pooled) > best for _ in range(20))


@pytest.mark.parametrize(
    ("raw", "n_workers", "message"),
    [
        ({"topology": {"kind": "hypercube"}}, 6, "power of two workers. Got 6"),
        ({"topology": {"kind": "grid", "rows": 4}}, 6, "topology.rows must divide"),
        ({"topology": {"kind": "erdos_renyi", "p": 0.0}}, 6, "connected"),
        ({"topology": {"kind": "random_regular", "degree": 6}}, 6, "topology.degree must be between"),
        ({"topology": {"kind": "edges", "edges": [[0, 9]]}}, 6, "topology.edges must join"),
        ({"placement": {"replication": 7}}, 6, "placement.replication must be between 1 and 6. Got 7"),
        ({"placement": {"replication": 0}}, 6, "placement.replication must be between 1 and 6. Got 0"),
        ({"stragglers": {"kind": "bernoulli", "p": 1.0}}, 6, "stragglers.p must be at least 0 and below 1"),
        ({"stragglers": {"kind": "slow", "ranks": [6]}}, 6, "stragglers.ranks must be between 0 and 5. Got 6"),
        ({"stragglers": {"kind": "bernoulli", "p": [0.5] * 5}}, 6, "stragglers.p must be one number or one for each"),
        ({"stragglers": {"link_p": [0.5] * 7}}, 6, "stragglers.link_p must be one number or one for each worker"),
        ({"stragglers": {"kind": "bernoulli", "p": [1.0] * 6}}, 6, "every shard needs a holder that finishes"),
        ({"stragglers": {"link_p": 1.0}}, 6, "stragglers.link_p must be at least 0 and below 1"),
    ],
)
def test_a_config_that_does_not_fit_the_workers_is_refused(raw, n_workers, message):
    with pytest.raises(InputError, match=message):
        lay_out(parse_config(raw), n_workers)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"objective": {"kind": "logistic"}}, "needs two classes. Got 10"),
        ({"data": {"source": "synthetic", "n_samples": 50}}, "needs whole-number class labels"),
        ({"data": {"shards": 1500}}, "data.shards must be at most the number of training samples"),
        ({"data": {"source": "nowhere"}}, "There is no file 'nowhere'"),
    ],
)
def test_data_that_do_not_fit_the_config_are_refused(raw, message):
    with pytest.raises(InputError, match=message):
        load_problem(parse_config(raw))


def test_targets_that_are_nearly_all_different_are_no_classes(tmp_path):
    np.savez(tmp_path / "data.npz", features=np.ones((20, 2)), targets=np.arange(20) * 2 // 3)
    raw = {"data": {"source": str(tmp_path / "data.npz"), "shards": 2}}
    with pytest.raises(InputError, match=r"needs classes as targets. Got 13 different values in 20 samples"):
        load_problem(parse_config(raw))


def test_layout_is_the_same_everywhere_and_its_fingerprint_tells_layouts_apart():
    config = configure()
    assert lay_out(config, 6).fingerprint() == lay_out(config, 6).fingerprint()
    others = [
        lay_out(config, 7),
        lay_out(configure(seed=1), 6),
        lay_out(configure(topology={"kind": "ring"}), 6),
        lay_out(configure(objective={"l2": 0.3}), 6),
    ]
    assert len({layout.fingerprint() for layout in [lay_out(config, 6), *others]}) == 5


def test_step_schedules_of_the_three_kinds():
    constant = step_schedule(configure(step={"kind": "constant", "size": 0.5, "tau": 3.0}), np.nan)
    assert [constant(0), constant(100)] == [0.5, 0.5]
    decreasing = step_schedule(configure(step={"kind": "decreasing", "size": 0.5, "tau": 4.0}), np.nan)
    assert [decreasing(0), decreasing(4)] == [0.5, 0.25]
    automatic = step_schedule(configure(step={"kind": "auto", "scale": 2.0}), 8.0)
    assert [automatic(0), automatic(9)] == [0.25, 0.25]
    falling = step_schedule(configure(step={"kind": "auto", "tau": 9.0}), 8.0)
    assert [falling(0), falling(9)] == [0.125, 0.0625]


def test_an_automatic_step_without_curvature_is_refused_with_the_way_out():
    # All-zero features and no regulariser: nothing bends, and no step follows from it.
    with pytest.raises(InputError, match="step"):
        step_schedule(configure(), 0.0)


@pytest.mark.parametrize("partition", ["iid", "by_label", "dirichlet"])
def test_a_problem_s_gradient_dissimilarity_is_that_of_its_shards(partition):
    config = parse_config(
        {"data": {"source": "breast_cancer", "standardize": True, "shards": 9, "partition": partition}}
    )
    problem = load_problem(config)
    layout = lay_out(config, 4)
    gradients = [
        9 * gradient
        for worker in range(4)
        for gradient in problem.share(layout, worker).owned_gradients(np.zeros(problem.objective.n_params))
    ]
    mean = problem.objective.gradient(np.zeros(problem.objective.n_params), problem.pooled_rows())
    expected = np.mean([np.sum((g - mean) ** 2) for g in gradients]) / np.sum(mean**2)
    assert len(gradients) == 9
    assert problem.gradient_dissimilarity() == pytest.approx(expected, rel=1e-12)


def test_the_gradients_of_the_shards_that_workers_answer_for_add_up_to_the_whole():
    layout = lay_out(configure(), N_WORKERS)
    problem = load_problem(layout.config)
    params = np.random.default_rng(0).standard_normal(problem.objective.n_params)
    found = [part for worker in range(N_WORKERS) for part in problem.share(layout, worker).owned_gradients(params)]
    assert len(found) == 11
    np.testing.assert_allclose(sum(found), problem.objective.gradient(params, problem.pooled_rows()), rtol=1e-12)


def test_sorted_shards_are_more_dissimilar_than_mixed_ones():
    found = [
        load_problem(parse_config({"data": {"source": "digits", "partition": kind}})).gradient_dissimilarity()
        for kind in ("iid", "dirichlet", "by_label")
    ]
    assert 10 * found[0] < 3 * found[1] < found[2]


def test_shards_of_unequal_size_weigh_every_sample_alike():
    layout = lay_out(configure(data={"partition": "dirichlet", "alpha": 0.1}), N_WORKERS)
    problem = load_problem(layout.config)
    assert max(problem.sizes) > 3 * min(problem.sizes)
    params = np.random.default_rng(0).standard_normal(problem.objective.n_params)
    found = coded_mean(problem, layout, params, np.ones(N_WORKERS))
    np.testing.assert_allclose(found, problem.objective.gradient(params, problem.pooled_rows()), rtol=1e-11)
