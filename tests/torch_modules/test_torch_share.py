"""A worker's gradients of a module: against torch.autograd on the pooled rows, and what is refused."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from goco_mpi.core.batches import Batch  # noqa: E402
from goco_mpi.core.objectives import Softmax, WeightedRows  # noqa: E402
from goco_mpi.core.shares import ModelShare  # noqa: E402
from goco_mpi.errors import InputError  # noqa: E402
from goco_mpi.torch import ModuleObjective  # noqa: E402
from goco_mpi.torch.share import TorchShare  # noqa: E402

N_FEATURES, N_CLASSES = 5, 3
SIZES = [7, 12, 9]
WEIGHTS = np.array([1.5, 0.25, 2.0])
OWNED = np.array([1.0, 0.0, 1.0]) / 3.0
LOSS = torch.nn.CrossEntropyLoss()


def network(dtype: Any = torch.float64, dropout: float = 0.0) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return torch.nn.Sequential(
            torch.nn.Linear(N_FEATURES, 6),
            torch.nn.Tanh(),
            torch.nn.Dropout(dropout),
            torch.nn.Linear(6, N_CLASSES),
        ).to(dtype)


def data() -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [(rng.standard_normal((n, N_FEATURES)), rng.integers(N_CLASSES, size=n)) for n in SIZES]


def share_of(module: Any, shards: Any = None, weights: np.ndarray = WEIGHTS, **options: Any) -> TorchShare:
    objective = ModuleObjective(module, LOSS, **options)
    return objective.share(data() if shards is None else shards, weights, OWNED, 0, 1)


def pooled_gradient(module: Any, parts: list[tuple[np.ndarray, np.ndarray]], weights: np.ndarray) -> np.ndarray:
    """Return the gradient of the weighted mean losses, the plainest way there is."""
    dtype = next(module.parameters()).dtype
    total = sum(
        weight * LOSS(module(torch.tensor(inputs, dtype=dtype)), torch.tensor(targets))
        for weight, (inputs, targets) in zip(weights, parts, strict=True)
    )
    gradients = torch.autograd.grad(total, [p for p in module.parameters() if p.requires_grad])
    return torch.cat([gradient.ravel() for gradient in gradients]).numpy().astype(np.float64)


@pytest.mark.parametrize("block_rows", [1, 4, 10, 12, 1000])
def test_the_coded_gradient_is_that_of_the_weighted_sum_whatever_the_blocks(block_rows: int) -> None:
    module = network()
    share = share_of(module, block_rows=block_rows)
    x0 = ModuleObjective(module, LOSS).x0
    np.testing.assert_allclose(share.gradient(x0), pooled_gradient(module, data(), WEIGHTS), rtol=1e-12, atol=1e-15)
    for place in range(len(SIZES)):
        expected = pooled_gradient(module, data()[place : place + 1], WEIGHTS[place : place + 1])
        np.testing.assert_allclose(share.gradient(x0, place), expected, rtol=1e-12, atol=1e-15)
    n_blocks = sum(1 for _ in share.gradient_blocks(x0, np.empty_like(x0)))
    assert n_blocks == -(-sum(SIZES) // block_rows)


def test_a_float32_module_rounds_the_parameters_and_its_gradients_add_up_in_float64() -> None:
    module = network(torch.float32)
    share = share_of(module, block_rows=4)
    x = ModuleObjective(module, LOSS).x0 + 1e-12
    found = share.gradient(x)
    assert found.dtype == np.float64
    exact = pooled_gradient(network(torch.float32).double(), data(), WEIGHTS)
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-6)
    assert np.abs(found - exact).max() > 0.0


def test_the_gradient_is_of_the_parameters_given_and_leaves_them_and_the_users_module_alone() -> None:
    module = network()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    share = share_of(module)
    x = np.random.default_rng(4).standard_normal(share.n_params)
    kept = x.copy()
    found = share.gradient(x)
    assert (x == kept).all()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())
    torch.nn.utils.vector_to_parameters(torch.tensor(x), module.parameters())
    np.testing.assert_allclose(found, pooled_gradient(module, data(), WEIGHTS), rtol=1e-12, atol=1e-15)


def test_a_loss_between_two_blocks_does_not_disturb_the_gradient() -> None:
    share = share_of(network(dropout=0.5), block_rows=4).sampled(9, np.random.default_rng(0))
    x = ModuleObjective(network(), LOSS).x0
    expected, found = share.gradient(x), np.empty(share.n_params)
    for _ in share.gradient_blocks(x, found):
        share.loss(np.zeros(share.n_params))
    np.testing.assert_array_equal(found, expected)


def test_frozen_parameters_stay_out_of_the_vector() -> None:
    module = network()
    module[0].requires_grad_(False)
    share = share_of(module)
    assert share.n_params == 6 * N_CLASSES + N_CLASSES
    x0 = ModuleObjective(module, LOSS).x0
    np.testing.assert_allclose(share.gradient(x0), pooled_gradient(module, data(), WEIGHTS), rtol=1e-12, atol=1e-15)


def test_tied_parameters_are_there_once() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(N_FEATURES, N_FEATURES), torch.nn.Linear(N_FEATURES, N_FEATURES))
    module = module.double()
    module[1].weight = module[0].weight
    share = share_of(module)
    assert share.n_params == N_FEATURES**2 + 2 * N_FEATURES
    x0 = ModuleObjective(module, LOSS).x0
    np.testing.assert_allclose(share.gradient(x0), pooled_gradient(module, data(), WEIGHTS), rtol=1e-12, atol=1e-15)


def test_losses_are_of_the_shards_answered_for_and_of_all_their_rows() -> None:
    module = network(dropout=0.9)
    share = share_of(module, block_rows=5)
    module.eval()
    terms = [LOSS(module(torch.tensor(inputs)), torch.tensor(targets)).item() for inputs, targets in data()]
    x0 = ModuleObjective(module, LOSS).x0
    assert share.loss(x0) == pytest.approx(OWNED @ terms, rel=1e-12)
    assert share.sampled(2, np.random.default_rng(0)).loss(x0) == share.loss(x0)
    other = share.owning(np.array([False, True, False]), 3)
    assert other.loss(x0) == pytest.approx(terms[1] / 3.0, rel=1e-12)


def test_other_weights_are_other_weights_of_the_same_shards() -> None:
    share = share_of(network())
    x0 = ModuleObjective(network(), LOSS).x0
    weights = np.array([0.0, 1.0, 3.0])
    expected = sum(weight * share.gradient(x0, k) / WEIGHTS[k] for k, weight in enumerate(weights))
    np.testing.assert_allclose(share.reweighted(weights).gradient(x0), expected, rtol=1e-12, atol=1e-15)
    back = share.reweighted(weights).reweighted(WEIGHTS)
    np.testing.assert_array_equal(back.gradient(x0), share.gradient(x0))


@pytest.mark.parametrize("batch_size", [3, 8, 100])
def test_the_rows_drawn_are_those_that_the_built_in_objective_draws(batch_size: int) -> None:
    class Linear(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = torch.nn.Parameter(torch.zeros(N_FEATURES, N_CLASSES, dtype=torch.float64))

        def forward(self, inputs: Any) -> Any:
            return inputs @ self.matrix

    features, targets = (np.concatenate(parts) for parts in zip(*data(), strict=True))
    weights = np.concatenate([np.full(n, weight / n) for n, weight in zip(SIZES, WEIGHTS, strict=True)])
    rows = WeightedRows(features, targets.astype(np.float64), weights, 0.0)
    model = ModelShare(Softmax(N_FEATURES, 0.0, N_CLASSES), rows, rows, SIZES, WEIGHTS, rows)
    share = share_of(Linear())
    x = np.random.default_rng(2).standard_normal(share.n_params)
    batch = Batch(batch_size, seed=5)
    for step in range(4):
        found, expected = (batch.of(one, 2, step).gradient(x) for one in (share, model))
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)


def test_dropout_follows_from_seed_worker_and_step_and_leaves_torchs_own_numbers_alone() -> None:
    share, batch = share_of(network(dropout=0.5), block_rows=6), Batch(4, seed=1)
    x0 = ModuleObjective(network(), LOSS).x0
    torch.manual_seed(8)
    expected = torch.rand(3)
    torch.manual_seed(8)
    first = [batch.of(share, worker, step).gradient(x0) for worker, step in ((0, 0), (0, 1), (1, 0))]
    assert torch.equal(torch.rand(3), expected)
    again = batch.of(share_of(network(dropout=0.5), block_rows=6), 0, 1).gradient(x0)
    np.testing.assert_array_equal(first[1], again)
    # Whole shards, so that nothing but dropout differs.
    whole = [Batch(100, seed).of(share, *place).gradient(x0) for seed, place in ((1, (0, 0)), (1, (0, 1)), (2, (0, 0)))]
    assert len({gradient.tobytes() for gradient in whole}) == 3


def test_two_blocks_of_a_shard_draw_other_numbers() -> None:
    inputs, targets = np.ones((2, N_FEATURES)), np.zeros(2, dtype=np.int64)
    objective = ModuleObjective(network(dropout=0.5), LOSS, block_rows=1)
    share = objective.share([(inputs, targets)], np.ones(1), np.ones(1), 0, 1).sampled(2, np.random.default_rng(0))
    out, seen = np.empty(share.n_params), [np.zeros(share.n_params)]
    for _ in share.gradient_blocks(objective.x0, out):
        seen.append(out.copy())
    first, second = np.diff(seen, axis=0)
    assert np.abs(first - second).max() > 1e-3


def test_with_dropout_too_the_coded_gradient_is_the_sum_of_the_shards_terms() -> None:
    share = share_of(network(dropout=0.5)).sampled(4, np.random.default_rng(2))
    x0 = ModuleObjective(network(), LOSS).x0
    terms = [share.gradient(x0, place) for place in range(len(SIZES))]
    np.testing.assert_allclose(share.gradient(x0), np.sum(terms, axis=0), rtol=1e-12, atol=1e-15)


def test_the_curvature_along_a_direction_is_exact() -> None:
    share = share_of(network(), block_rows=10)
    x0 = ModuleObjective(network(), LOSS).x0
    direction = np.random.default_rng(3).standard_normal(share.n_params)
    size = 1e-6
    expected = (share.gradient(x0 + size * direction) - share.gradient(x0 - size * direction)) / (2.0 * size)
    np.testing.assert_allclose(share.hessian_product(x0, direction), expected, rtol=0, atol=1e-8)


def test_test_samples_are_each_answered_for_by_one_rank() -> None:
    inputs, targets = data()[1]
    module = network()
    objective = ModuleObjective(module, LOSS, test=(inputs, targets), block_rows=2)
    counts = [objective.share([], np.empty(0), np.empty(0), rank, 5).correct(objective.x0) for rank in range(5)]
    right = (module(torch.tensor(inputs)).argmax(dim=1) == torch.tensor(targets)).sum()
    assert sum(n for _, n in counts) == len(targets)
    assert sum(correct for correct, _ in counts) == int(right)
    assert share_of(module).correct(objective.x0) is None


class Items(torch.utils.data.Dataset):
    """Has whatever items it is given."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: int) -> Any:
        return self.items[place]


def items(inputs: np.ndarray, targets: np.ndarray) -> Items:
    """Return rows as a Dataset makes them: one by one."""
    return Items([(torch.tensor(row), int(target)) for row, target in zip(inputs, targets, strict=True)])


@pytest.mark.parametrize(
    "of",
    [
        lambda inputs, targets: (torch.tensor(inputs), torch.tensor(targets)),
        lambda inputs, targets: [inputs.astype(np.float32), targets.astype(np.int16).astype(np.int64)],
        lambda inputs, targets: torch.utils.data.TensorDataset(torch.tensor(inputs), torch.tensor(targets)),
        items,
        lambda inputs, targets: torch.utils.data.Subset(items(inputs, targets), range(len(targets))),
    ],
    ids=["tensors", "float32", "TensorDataset", "Dataset", "Subset"],
)
def test_a_shard_may_be_given_in_many_ways(of: Callable[..., Any]) -> None:
    shards = [(inputs.astype(np.float32).astype(np.float64), targets) for inputs, targets in data()]
    expected = share_of(network(), shards)
    share = share_of(network(), [of(*shard) for shard in shards])
    x0, batch = ModuleObjective(network(), LOSS).x0, Batch(3, seed=2)
    np.testing.assert_allclose(
        batch.of(share, 0, 1).gradient(x0), batch.of(expected, 0, 1).gradient(x0), rtol=1e-12, atol=1e-15
    )


def test_what_memory_maps_is_read_though_it_is_not_to_be_written() -> None:
    shards = data()
    for part in (part for shard in shards for part in shard):
        part.flags.writeable = False
    x0 = ModuleObjective(network(), LOSS).x0
    x0.flags.writeable = False
    np.testing.assert_array_equal(share_of(network(), shards).gradient(x0), share_of(network()).gradient(x0))


def test_alone_it_is_an_objective_like_any_other() -> None:
    module = network()
    objective = ModuleObjective(module, LOSS)
    out = np.full(len(objective.x0), np.nan)
    objective.gradient(objective.x0, data()[1], out=out)
    np.testing.assert_allclose(out, pooled_gradient(module, data()[1:2], np.ones(1)), rtol=1e-12, atol=1e-15)
    inputs, targets = data()[1]
    expected = LOSS(module(torch.tensor(inputs)), torch.tensor(targets)).item()
    assert objective.loss(objective.x0, data()[1]) == pytest.approx(expected, rel=1e-12)
    objective.write(np.arange(objective.x0.size, dtype=np.float64), module)
    assert torch.nn.utils.parameters_to_vector(module.parameters()).tolist() == list(range(objective.x0.size))


def test_a_frozen_batch_normalisation_is_a_fixed_map() -> None:
    module = torch.nn.Sequential(torch.nn.BatchNorm1d(N_FEATURES), torch.nn.Linear(N_FEATURES, N_CLASSES)).double()
    module[0].eval()
    share = share_of(module)
    x0 = ModuleObjective(module, LOSS).x0
    np.testing.assert_allclose(share.gradient(x0), pooled_gradient(module, data(), WEIGHTS), rtol=1e-12, atol=1e-15)
    share.loss(x0)
    np.testing.assert_allclose(share.gradient(x0), pooled_gradient(module, data(), WEIGHTS), rtol=1e-12, atol=1e-15)


class Counting(torch.nn.Module):
    """Keeps something that changes as it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(N_FEATURES, N_CLASSES).double()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, inputs: Any) -> Any:
        if self.training:
            self.calls += 1
        return self.linear(inputs)


class Endless(torch.utils.data.IterableDataset):
    """Has neither a length nor places."""

    def __iter__(self) -> Iterator[Any]:
        return iter(())


def changed(module: Any, change: Callable[[Any], object]) -> Any:
    change(module)
    return module


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: torch.nn.functional.relu, "module must be a torch.nn.Module"),
        (lambda: torch.nn.Tanh(), "at least one parameter with requires_grad"),
        (lambda: network().half(), "must be float32 or float64"),
        (lambda: torch.nn.Sequential(torch.nn.Linear(5, 5), torch.nn.Linear(5, 3).double()), "must have one dtype"),
        (lambda: torch.nn.Linear(5, 3, device="meta"), "must be on the CPU"),
        (lambda: torch.nn.LazyLinear(3), "Apply it to a few inputs once"),
        (lambda: changed(network(), lambda m: m[0].bias.data.fill_(np.nan)), "must be finite. Got NaN"),
        (lambda: torch.nn.Sequential(torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 3)), "batch normalisation in '0'"),
        (lambda: torch.nn.BatchNorm1d(5, track_running_stats=False), "GroupNorm"),
        (Counting, "Got 'calls', which changes"),
        (
            lambda: changed(network(), lambda m: setattr(m, "lock", threading.Lock())),
            "copy.deepcopy can copy. Got TypeErr",
        ),
        (lambda: torch.nn.Linear(4, 3).double(), r"applicable to the first rows of a shard. Got RuntimeError: mat1"),
        (lambda: torch.nn.Sequential(network(), torch.nn.Flatten(0)), r"Got one of shape \(21,\)"),
        (lambda: torch.nn.LSTM(5, 3).double(), "a tensor with a row for each row of its inputs. Got a tuple"),
        (lambda: changed(network(), lambda m: m.append(torch.nn.Softmax(0))), "each of which the module treats alone"),
    ],
)
def test_a_module_that_cannot_be_trained_here_is_refused(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        share_of(make())


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        ("mean", "loss must be callable"),
        (torch.nn.CrossEntropyLoss(reduction="sum"), "loss must be the mean over rows"),
        (torch.nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 9.0]).double()), "without weights of classes"),
        (torch.nn.CrossEntropyLoss(reduction="none"), r"one floating number. Got one of shape \(7,\)"),
        (lambda outputs, targets: 0.5, "one floating number. Got a float"),
        (lambda outputs, targets: torch.zeros(()), "must depend on the parameters"),
        (torch.nn.MSELoss(), "applicable to the first rows of a shard. Got RuntimeError"),
    ],
)
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_a_loss_that_is_no_mean_over_rows_is_refused(loss: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        ModuleObjective(network(), loss).share(data(), WEIGHTS, OWNED, 0, 1)


@pytest.mark.parametrize(
    ("shard", "words"),
    [
        (np.zeros((4, 5)), "must be a pair"),
        (None, "must be a pair"),
        (([1.0, 2.0], [0, 1]), "must be a pair .* list where a tensor or an array was expected"),
        ((np.zeros((4, 5)), np.zeros(3, dtype=np.int64)), r"Got shapes \(4, 5\) and \(3,\)"),
        ((np.zeros((4, 5)), np.array(3)), r"Got shapes \(4, 5\) and \(\)"),
        ((np.zeros((0, 5)), np.zeros(0, dtype=np.int64)), "at least one row"),
        ((np.full((20, 5), np.nan), np.zeros(20, dtype=np.int64)), "must be finite at the start. Got nan"),
        ((np.zeros((20, 5)), np.repeat([0, 3], [19, 1])), r"the rows of a rank's shards. Got IndexError: Target 3"),
        (Endless(), "without length or items"),
        (Items([(torch.zeros(5), 0, 1)]), "must be pairs"),
        ((np.array([["a"]]), np.zeros(1)), "must be a pair .* can't convert"),
    ],
)
def test_a_shard_that_cannot_be_used_is_refused(shard: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        share_of(network(), [shard, *data()[1:]])


@pytest.mark.parametrize(
    ("test", "words"),
    [
        (3, "test must be a pair"),
        ((np.zeros((4, 5)), np.zeros(4)), "test must have classes"),
        ((np.zeros((4, 4)), np.zeros(4, dtype=np.int64)), "applicable to the test rows"),
        (Items([(torch.zeros(5), 0, 1)]), r"must be pairs .* Got \(tensor"),
        (Items([(torch.zeros(5), "a")]), "must be pairs"),
        (Items([{"inputs": torch.zeros(5), "target": 0}]), "must be pairs .* Got {'inputs'"),
        (Items([(torch.zeros(5), None)]), "applicable to the test rows. Got TypeError: default_collate"),
        (Items([]), "test must have at least one row"),
    ],
)
def test_test_samples_that_cannot_be_used_are_refused(test: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        share_of(network(), test=test)


def test_an_accuracy_needs_one_output_a_class_in_every_row() -> None:
    # Were the largest of two outputs a row compared with the targets, two rows could be right four times.
    module = torch.nn.Sequential(torch.nn.Linear(N_FEATURES, 6), torch.nn.Unflatten(1, (3, 2))).double()
    with pytest.raises(InputError, match=r"a number for each class in every row. Got one of shape \(1, 3, 2\)"):
        ModuleObjective(module, LOSS, test=(np.zeros((2, N_FEATURES)), np.zeros(2, dtype=np.int64)))


def test_looking_at_test_samples_leaves_torchs_own_numbers_alone() -> None:
    class Noisy(Items):
        def __getitem__(self, place: int) -> Any:
            return torch.randn(N_FEATURES), self.items[place]

    module, test = network(), Noisy([0, 1, 2])
    before = torch.default_generator.get_state()
    ModuleObjective(module, LOSS, test=test)
    assert torch.equal(torch.default_generator.get_state(), before)


@pytest.mark.parametrize("block_rows", [0, 2.5, "8", None])
def test_block_rows_that_are_no_positive_number_of_rows_are_refused(block_rows: Any) -> None:
    with pytest.raises(InputError, match="block_rows must be"):
        ModuleObjective(network(), LOSS, block_rows=block_rows)


class Once(torch.autograd.Function):
    """Has no second derivatives."""

    @staticmethod
    def forward(ctx: Any, inputs: Any) -> Any:
        return inputs.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Any) -> Any:
        return gradient.clone()


class Mute(torch.autograd.Function):
    """Refuses them without a word."""

    @staticmethod
    def forward(ctx: Any, inputs: Any) -> Any:
        return inputs.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError
        return gradient.clone()


@pytest.mark.parametrize("function", [Once, Mute])
def test_a_module_without_second_derivatives_asks_for_a_step(function: Any) -> None:
    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(N_FEATURES, N_CLASSES).double()

        def forward(self, inputs: Any) -> Any:
            return function.apply(self.linear(inputs))

    share = share_of(Module())
    with pytest.raises(InputError, match=r"Give step\.size"):
        share.hessian_product(np.zeros(share.n_params), np.ones(share.n_params))


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Leave torch's threads as they were."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_torch_gets_the_threads_of_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(2)
    ModuleObjective(network(), LOSS)
    assert torch.get_num_threads() == 1
