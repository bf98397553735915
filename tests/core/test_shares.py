import numpy as np
import pytest
import scipy.sparse as sp

from goco_mpi.core import encoding, objectives, placement
from goco_mpi.core.objectives import WeightedRows
from goco_mpi.core.shares import CustomShare, ModelShare, Share
from goco_mpi.errors import InputError

KINDS = ("least_squares", "logistic", "softmax")
SIZES = [5, 3, 8, 1, 6, 4, 7, 2, 5, 3, 4]
"""Rows of each of 11 shards, which divide nothing."""
N_WORKERS, N_FEATURES, L2 = 4, 5, 0.3
RATES = np.array([1.0, 0.5, 0.25, 0.8])


class Case:
    """Shards of random rows on four workers of unequal completion rates."""

    def __init__(self, kind, sparse=False):
        rng = np.random.default_rng(7)
        self.n = sum(SIZES)
        self.ends = np.cumsum(SIZES)
        features = rng.standard_normal((self.n, N_FEATURES)) * (rng.random((self.n, N_FEATURES)) < 0.6)
        self.features = sp.csr_array(features) if sparse else features
        self.targets = {
            "least_squares": rng.standard_normal(self.n),
            "logistic": rng.choice([-1.0, 1.0], self.n),
            "softmax": rng.integers(0, 3, self.n).astype(float),
        }[kind]
        n_classes = {"least_squares": None, "logistic": 2, "softmax": 3}[kind]
        self.objective = objectives.build(kind, N_FEATURES, L2, n_classes)
        self.placed = placement.pairwise_balanced(N_WORKERS, len(SIZES), 2, seed=1)
        self.encoding_weights = encoding.coverage(self.placed, RATES)
        self.params = rng.standard_normal(self.objective.n_params)

    def rows_of(self, shards):
        return np.concatenate([np.arange(self.ends[k] - SIZES[k], self.ends[k]) for k in shards])

    def shard(self, k):
        """Rows under which the objective is f_k, where F = (1/M) sum_k f_k."""
        index, m = self.rows_of([k]), len(SIZES)
        return WeightedRows(self.features[index], self.targets[index], np.full(len(index), m / self.n), 1.0)

    def pooled(self):
        return WeightedRows(self.features, self.targets, np.full(self.n, 1.0 / self.n), 1.0)

    def terms(self, worker):
        """(N/M) a_ik grad f_k of every shard held, as the definition has it."""
        scale = N_WORKERS / len(SIZES) * self.encoding_weights[worker]
        return [scale[k] * self.objective.gradient(self.params, self.shard(k)) for k in self.placed.shards_of(worker)]

    def share(self, worker):
        held = self.placed.shards_of(worker)
        index, sizes = self.rows_of(held), [SIZES[k] for k in held]
        features, targets, m = self.features[index], self.targets[index], len(SIZES)
        scale = self.encoding_weights[worker, held] * N_WORKERS
        owned = np.isin(held, self.placed.owned_by(worker)).astype(float)
        return ModelShare(
            self.objective,
            coded=WeightedRows(features, targets, np.repeat(scale / self.n, sizes), scale.sum() / m),
            owned=WeightedRows(features, targets, np.repeat(owned / self.n, sizes), owned.sum() / m),
            sizes=sizes,
            weights=scale / m,
            test=WeightedRows(features[:6], targets[:6], np.empty(0), 0.0),
        )


@pytest.fixture(params=[(kind, sparse) for kind in KINDS for sparse in (False, True)], ids=str)
def case(request):
    return Case(*request.param)


@pytest.fixture
def small_blocks(case):
    """Blocks of a row or two, so that shards and blocks end in different places."""
    case.objective.block_bytes = 8 * N_FEATURES // 2


@pytest.mark.parametrize("blocks", ["one block", "many"])
def test_the_coded_gradient_is_the_sum_of_the_terms_of_its_shards(case, blocks, request):
    if blocks == "many":
        request.getfixturevalue("small_blocks")
    for worker in range(N_WORKERS):
        share, terms = case.share(worker), case.terms(worker)
        assert share.n_shards == len(terms) > 1
        found = [share.gradient(case.params, place) for place in range(share.n_shards)]
        for term, expected in zip(found, terms, strict=True):
            np.testing.assert_allclose(term, expected, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(share.gradient(case.params), np.sum(terms, axis=0), rtol=1e-12, atol=1e-14)


def test_coded_gradients_weighted_by_how_often_they_come_average_to_the_full_one(case):
    gradients = [case.share(worker).gradient(case.params) for worker in range(N_WORKERS)]
    expected = case.objective.gradient(case.params, case.pooled())
    np.testing.assert_allclose(RATES @ gradients / N_WORKERS, expected, rtol=1e-12, atol=1e-14)


def test_losses_of_all_workers_add_up_to_the_objective(case):
    losses = [case.share(worker).loss(case.params) for worker in range(N_WORKERS)]
    assert sum(losses) == pytest.approx(case.objective.loss(case.params, case.pooled()), rel=1e-13)


def test_the_exact_hessian_product_agrees_with_central_differences(case):
    # With step h the difference is off by h^2 |f'''| / 6 from the curvature's change and by eps |g| / h from
    # rounding, in all about eps^(2/3) = 4e-11 of what is around; and it is linear in the direction.
    rng = np.random.default_rng(3)
    share = case.share(1)
    for length in (1e-3, 1.0, 1e3):
        direction = length * rng.standard_normal(share.n_params)
        exact = share.hessian_product(case.params, direction)
        found = Share.hessian_product(share, case.params, direction)
        assert np.linalg.norm(exact) > 0.01 * length
        np.testing.assert_allclose(found, exact, rtol=0, atol=1e-8 * np.linalg.norm(exact))


def test_no_direction_has_no_hessian_product(case):
    share = case.share(0)
    nowhere = np.zeros(share.n_params)
    assert not Share.hessian_product(share, case.params, nowhere).any()
    assert not share.hessian_product(case.params, nowhere).any()


def test_right_answers_are_counted_of_the_test_rows_where_there_are_classes(case):
    share = case.share(2)
    if case.objective.name == "least_squares":
        assert share.correct(case.params) is None
        return
    features = share.test.features.toarray() if sp.issparse(share.test.features) else share.test.features
    if case.objective.name == "logistic":
        answers = np.sign(features @ case.params)  # on the border it is no answer
    else:
        scores = features @ case.params.reshape(N_FEATURES, -1)
        answers = scores.argmax(axis=1)
    assert share.correct(case.params) == ((answers == share.test.targets).sum(), 6)


def test_a_share_counts_its_rows_and_lets_the_caller_look_up(case, small_blocks):
    share = case.share(0)
    assert share.n_rows == sum(SIZES[k] for k in case.placed.shards_of(0))
    out = np.full(share.n_params, np.nan)
    n_blocks = sum(1 for _ in share.gradient_blocks(case.params, out))
    assert n_blocks >= share.n_rows // 4
    np.testing.assert_array_equal(out, share.gradient(case.params))


def test_a_worker_without_shards_has_no_gradient_and_no_loss():
    case = Case("least_squares")
    none = WeightedRows(np.empty((0, N_FEATURES)), np.empty(0), np.empty(0), 0.0)
    share = ModelShare(case.objective, none, none, [], np.empty(0), none)
    assert (share.n_shards, share.n_rows, share.loss(case.params)) == (0, 0, 0.0)
    assert not share.gradient(case.params).any()
    custom = CustomShare(RidgeOnAShard(), N_FEATURES, [], np.empty(0), np.empty(0))
    assert (custom.n_shards, custom.loss(case.params)) == (0, 0.0)
    assert not custom.gradient(case.params).any()


class RidgeOnAShard:
    """A user's own f_k: the least squares of `Case`, in numpy alone; counts how often it is called."""

    def __init__(self):
        self.n_losses = self.n_gradients = 0

    def loss(self, x, shard):
        self.n_losses += 1
        features, targets = shard
        return len(SIZES) / sum(SIZES) * 0.5 * ((features @ x - targets) ** 2).sum() + 0.5 * L2 * (x @ x)

    def gradient(self, x, shard, out):
        self.n_gradients += 1
        features, targets = shard
        out[:] = len(SIZES) / sum(SIZES) * (features.T @ (features @ x - targets)) + L2 * x


def custom_share(case, worker, objective):
    held = case.placed.shards_of(worker)
    shards = [(case.features[case.rows_of([k])], case.targets[case.rows_of([k])]) for k in held]
    weights = N_WORKERS / len(SIZES) * case.encoding_weights[worker, held]
    owned = np.isin(held, case.placed.owned_by(worker)) / len(SIZES)
    return CustomShare(objective, N_FEATURES, shards, weights, owned)


def test_an_objective_of_ones_own_gives_the_same_numbers_as_the_model():
    case = Case("least_squares")
    direction = np.random.default_rng(5).standard_normal(N_FEATURES)
    for worker in range(N_WORKERS):
        own, model = custom_share(case, worker, RidgeOnAShard()), case.share(worker)
        assert own.n_shards == model.n_shards
        assert own.loss(case.params) == pytest.approx(model.loss(case.params), rel=1e-13, abs=1e-15)
        np.testing.assert_allclose(own.gradient(case.params), model.gradient(case.params), rtol=1e-12, atol=1e-14)
        for place in range(own.n_shards):
            np.testing.assert_allclose(
                own.gradient(case.params, place), model.gradient(case.params, place), rtol=1e-12, atol=1e-14
            )
        exact = model.hessian_product(case.params, direction)
        found = own.hessian_product(case.params, direction)
        np.testing.assert_allclose(found, exact, rtol=0, atol=1e-8 * np.linalg.norm(exact))
        assert own.correct(case.params) is None


class Returning(RidgeOnAShard):
    """Returns its gradient and leaves ``out`` alone."""

    def gradient(self, x, shard, out):
        fresh = np.empty_like(x)
        super().gradient(x, shard, fresh)
        return fresh


class ReturningAColumn(Returning):
    """Returns as many numbers in another shape."""

    def gradient(self, x, shard, out):
        return super().gradient(x, shard, out)[:, None]


def test_a_gradient_may_be_returned_instead_of_written():
    case = Case("least_squares")
    written, *returned = (
        custom_share(case, 1, objective) for objective in (RidgeOnAShard(), Returning(), ReturningAColumn())
    )
    for share in returned:
        np.testing.assert_array_equal(share.gradient(case.params), written.gradient(case.params))


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (1.0, r"of Returned must return 5 numbers, as many as x has. Got an array of shape \(\)"),
        (np.zeros(3), r"Got an array of shape \(3,\). Return the gradient with respect to x, or write it into out."),
        ("much", "Got 'much'"),
        (None, "of Returned must write the gradient into out, or return it"),
    ],
)
def test_what_is_no_gradient_is_refused(returned, message):
    class Returned(RidgeOnAShard):
        def gradient(self, x, shard, out):
            return returned

    case = Case("least_squares")
    with pytest.raises(InputError, match=message):
        custom_share(case, 1, Returned()).gradient(case.params)


def test_what_is_no_loss_is_refused():
    class Silent(RidgeOnAShard):
        def loss(self, x, shard):
            return None

    case = Case("least_squares")
    with pytest.raises(InputError, match=r"loss\(x, shard\) of Silent must return a number. Got None."):
        [custom_share(case, worker, Silent()).loss(case.params) for worker in range(N_WORKERS)]


def test_losses_of_ones_own_objective_add_up_and_each_shard_is_asked_once():
    case, objective = Case("least_squares"), RidgeOnAShard()
    shares = [custom_share(case, worker, objective) for worker in range(N_WORKERS)]
    total = sum(share.loss(case.params) for share in shares)
    assert total == pytest.approx(case.objective.loss(case.params, case.pooled()), rel=1e-13)
    assert objective.n_losses == len(SIZES)


def test_ones_own_objective_yields_after_every_shard():
    case, objective = Case("least_squares"), RidgeOnAShard()
    share = custom_share(case, 0, objective)
    out = np.full(N_FEATURES, np.nan)
    seen = []
    for _ in share.gradient_blocks(case.params, out):
        seen.append(objective.n_gradients)
        np.testing.assert_allclose(out, np.sum(case.terms(0)[: len(seen)], axis=0), rtol=1e-12)
    assert seen == list(range(1, share.n_shards + 1))
    objective.n_gradients = 0
    assert sum(1 for _ in share.gradient_blocks(case.params, out, 1)) == objective.n_gradients == 1


def test_params_stay_as_they_are(case):
    before = case.params.copy()
    share = case.share(0)
    share.gradient(case.params)
    share.hessian_product(case.params, np.ones(share.n_params))
    share.loss(case.params)
    np.testing.assert_array_equal(case.params, before)


def test_other_weights_scale_the_terms_of_the_shards_and_leave_the_loss_alone(case):
    for worker in range(N_WORKERS):
        shares = [case.share(worker)]
        if case.objective.name == "least_squares" and isinstance(case.features, np.ndarray):
            shares.append(custom_share(case, worker, RidgeOnAShard()))
        for share in shares:
            factors = np.random.default_rng(worker).uniform(0.0, 3.0, share.n_shards)
            other = share.reweighted(factors * share.weights)
            expected = sum(f * share.gradient(case.params, k) for k, f in enumerate(factors))
            np.testing.assert_allclose(other.gradient(case.params), expected, rtol=1e-12, atol=1e-14)
            assert other.weight == pytest.approx(float(factors @ share.weights))
            assert other.loss(case.params) == share.loss(case.params)
            # And there is a way back.
            back = other.reweighted(share.weights)
            np.testing.assert_allclose(back.gradient(case.params), share.gradient(case.params), rtol=1e-12, atol=1e-14)
