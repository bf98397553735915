"""Modules on all ranks: against the simulator, against the built-in objective, and from a real run's events."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from mpi4py import MPI  # noqa: E402

from goco_mpi import minimize  # noqa: E402
from goco_mpi.config import parse_config  # noqa: E402
from goco_mpi.core.events import Events  # noqa: E402
from goco_mpi.core.replay import replay_gossip  # noqa: E402
from goco_mpi.core.simulate import simulate  # noqa: E402
from goco_mpi.core.stacked import Links  # noqa: E402
from goco_mpi.core.stacked.goco import StackedDescent  # noqa: E402
from goco_mpi.engine.session import Session  # noqa: E402
from goco_mpi.engine.train import descend  # noqa: E402
from goco_mpi.errors import InputError, RunError  # noqa: E402
from goco_mpi.experiment import Layout, batch, lay_out, step_schedule  # noqa: E402
from goco_mpi.problem import load_problem  # noqa: E402
from goco_mpi.simulation.rounds import simulate_experiment  # noqa: E402
from goco_mpi.torch import ModuleObjective, fit  # noqa: E402
from goco_mpi.torch.share import TorchShare  # noqa: E402

INF = float("inf")
N_FEATURES, N_CLASSES, N_SHARDS = 4, 3, 6
LOSS = torch.nn.CrossEntropyLoss()


def network(dtype: Any = torch.float64, dropout: float = 0.0) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return torch.nn.Sequential(
            torch.nn.Linear(N_FEATURES, 8),
            torch.nn.Tanh(),
            torch.nn.Dropout(dropout),
            torch.nn.Linear(8, N_CLASSES),
        ).to(dtype)


def shards() -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(1)
    inputs = rng.standard_normal((20 * N_SHARDS, N_FEATURES))
    targets = (inputs @ rng.standard_normal((N_FEATURES, N_CLASSES))).argmax(axis=1)
    order = np.argsort(targets, kind="stable")
    return [(inputs[rows], targets[rows]) for rows in np.split(order, N_SHARDS)]


def layout_of(size: int, **tables: Any) -> Layout:
    raw: dict[str, Any] = {
        "seed": 5,
        "rounds": 40,
        "data": {"shards": N_SHARDS, "batch_size": 4},
        "placement": {"replication": min(2, size)},
        "topology": {"kind": "ring"},
        "step": {"kind": "constant", "size": 0.1},
        **tables,
    }
    return lay_out(parse_config(raw), size)


def share_of(objective: ModuleObjective, layout: Layout, rank: int) -> TorchShare:
    held = layout.placement.shards_of(rank)
    return objective.share(
        [shards()[k] for k in held],
        layout.encoding_weights[rank, held] * layout.n_workers / N_SHARDS,
        np.isin(held, layout.placement.owned_by(rank)) / N_SHARDS,
        rank,
        layout.n_workers,
    )


@pytest.mark.mpi(min_size=1)
@pytest.mark.parametrize("late", ["discard", "partial", "memory"])
def test_a_scripted_run_ends_in_the_simulators_parameters_dropout_included(late: str) -> None:
    objective = ModuleObjective(network(dropout=0.3), LOSS, block_rows=6)
    with Session() as session:
        layout = layout_of(
            session.size,
            method={"late": late},
            deadline={"compute_s": INF, "gossip_s": INF},
            stragglers={"kind": "bernoulli", "p": 0.3, "link_p": 0.25},
        )
        outcome = descend(layout, session, share_of(objective, layout, session.rank), objective.x0)
    if outcome is None:
        return
    config, stragglers = layout.config, layout.stragglers.scripted()
    workers = [share_of(objective, layout, rank) for rank in range(layout.n_workers)]
    links = Links(layout.mixing_matrix, stragglers, str(config.method.mixing), config.method.max_age)
    step = StackedDescent(np.tile(objective.x0, (layout.n_workers, 1)), links, workers)
    expected = simulate(
        step,
        workers,
        step_schedule(config, np.nan),
        stragglers,
        config.rounds,
        late=late,
        batch=batch(config),
    )
    np.testing.assert_allclose(outcome.stacked_params, expected, rtol=1e-12, atol=1e-14)
    assert np.abs(expected - objective.x0).max() > 1e-2


class SoftmaxRegression(torch.nn.Module):
    """The built-in objective, from the same beginning."""

    def __init__(self, n_features: int, n_classes: int) -> None:
        super().__init__()
        self.matrix = torch.nn.Parameter(torch.zeros(n_features, n_classes, dtype=torch.float64))

    def forward(self, inputs: Any) -> Any:
        return inputs @ self.matrix


@pytest.mark.mpi(min_size=1)
def test_softmax_regression_goes_the_way_of_the_built_in_one() -> None:
    size = MPI.COMM_WORLD.size
    config = parse_config(
        {
            "seed": 5,
            "rounds": 30,
            # Three shards of 599 rows: built-in shards count by their rows, and here all have the same weight.
            "data": {"source": "digits", "shards": 3, "test_fraction": 0.0, "standardize": True, "batch_size": 16},
            "objective": {"kind": "softmax", "l2": 0.0},
            "placement": {"replication": min(2, size)},
            "topology": {"kind": "ring"},
            "step": {"kind": "constant", "size": 0.05},
            "deadline": {"compute_s": INF, "gossip_s": INF},
            "stragglers": {"kind": "bernoulli", "p": 0.3},
        }
    )
    problem = load_problem(config)
    parts = [problem.train.rows(rows) for rows in problem.shards]
    assert {part.n_samples for part in parts} == {599}
    objective = ModuleObjective(SoftmaxRegression(problem.train.n_features, 10), LOSS)
    with Session() as session:
        layout = lay_out(config, size)
        held = layout.placement.shards_of(session.rank)
        share = objective.share(
            [(parts[k].features, parts[k].targets.astype(np.int64)) for k in held],
            layout.encoding_weights[session.rank, held] * size / 3,
            np.isin(held, layout.placement.owned_by(session.rank)) / 3,
            session.rank,
            size,
        )
        outcome = descend(layout, session, share, objective.x0)
    if outcome is None:
        return
    expected = simulate_experiment(config, size)
    np.testing.assert_allclose(outcome.stacked_params, expected.stacked_params, rtol=1e-11, atol=1e-12)
    assert outcome.history[-1]["loss"] == pytest.approx(expected.history[-1]["loss"], rel=1e-10)
    assert np.abs(expected.stacked_params).max() > 1e-2


@pytest.mark.mpi(min_size=1)
@pytest.mark.parametrize("late", ["discard", "partial", "memory"])
def test_a_real_run_is_computed_again_from_its_events(late: str) -> None:
    objective = ModuleObjective(network(dropout=0.3), LOSS, block_rows=6)
    with Session() as session:
        layout = layout_of(
            session.size,
            method={"late": late},
            stragglers={"kind": "slow", "ranks": [0], "factor": 5.0, "work_s": 2e-3},
        )
        outcome = descend(layout, session, share_of(objective, layout, session.rank), objective.x0)
    if outcome is None:
        return
    assert outcome.events is not None
    workers, config = range(layout.n_workers), layout.config
    found = replay_gossip(
        layout.method,
        [layout.place(rank, share_of(objective, layout, rank)) for rank in workers],
        [layout.mixing(rank) for rank in workers],
        step_schedule(config, np.nan),
        [Events(table, len(layout.topology.neighbors(rank))) for rank, table in enumerate(outcome.events)],
        objective.x0,
        batch(config),
    )
    np.testing.assert_allclose(found, outcome.stacked_params, rtol=0, atol=1e-12 * np.abs(found).max())
    assert np.abs(found - objective.x0).max() > 1e-2


@pytest.mark.mpi(min_size=1)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_fit_gives_every_rank_the_module_with_the_mean_of_the_parameters(dtype: Any) -> None:
    module = network(dtype, dropout=0.1)
    inputs, targets = (np.concatenate(parts) for parts in zip(*shards(), strict=True))
    result = fit(
        module, LOSS, shards(), step=0.5, batch_size=5, rounds=300, topology="ring", test=(inputs, targets), seed=2
    )
    vector = torch.nn.utils.parameters_to_vector(module.parameters()).detach().numpy()
    everyone = MPI.COMM_WORLD.allgather(vector.tobytes())
    assert len(set(everyone)) == 1
    np.testing.assert_array_equal(vector, result.x.astype(vector.dtype))
    module.eval()
    outputs = module(torch.tensor(inputs, dtype=dtype))
    right = (outputs.argmax(dim=1) == torch.tensor(targets)).double().mean().item()
    assert right == result.history[-1]["test_accuracy"] > 0.85
    assert result.fun == pytest.approx(LOSS(outputs, torch.tensor(targets)).item(), rel=1e-5)
    assert result.success
    assert result.fun < 0.5 * result.history[0]["loss"]


@pytest.mark.mpi(min_size=1)
def test_all_ranks_begin_where_rank_0_does() -> None:
    module = network()
    with torch.no_grad():
        module[0].weight.fill_(float(MPI.COMM_WORLD.rank))
    result = fit(
        module, LOSS, shards(), step=1e-9, batch_size=5, rounds=1, topology="ring", callback=lambda round_, x: None
    )
    np.testing.assert_allclose(result.x[: module[0].weight.numel()], 0.0, atol=1e-6)


@pytest.mark.mpi(min_size=1)
def test_the_same_seed_makes_the_same_run() -> None:
    def run(seed: int) -> np.ndarray:
        module = network(dropout=0.5)
        options: dict[str, Any] = {"topology": "ring", "deadline": {"compute_s": INF, "gossip_s": INF}, "rounds": 10}
        return fit(module, LOSS, shards(), step=0.3, batch_size=5, seed=seed, **options).x

    first, again, other = run(1), run(1), run(2)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.mpi(min_size=1)
def test_minimize_takes_a_module_too_and_all_rows_where_no_batch_is_asked_for() -> None:
    options: dict[str, Any] = {
        "topology": "ring",
        "deadline": {"compute_s": INF, "gossip_s": INF},
        "method": {"kind": "push_pull"},
        "rounds": 10,
    }
    objective = ModuleObjective(network(), LOSS)
    step = {"kind": "constant", "size": 0.3}
    found = minimize(objective, objective.x0, shards=shards(), step=step, **options).x
    np.testing.assert_array_equal(found, fit(network(), LOSS, shards(), step=0.3, batch_size=10**6, **options).x)
    assert np.abs(found - objective.x0).max() > 1e-2


@pytest.mark.mpi(min_size=1)
@pytest.mark.parametrize(
    ("module", "options", "words"),
    [
        (lambda: "linear", {}, "module must be a torch.nn.Module"),
        (lambda: torch.nn.BatchNorm1d(N_FEATURES), {}, "batch normalisation"),
        (lambda: torch.nn.Linear(N_FEATURES + 1, 2).double(), {}, "applicable to the first rows"),
        (network, {"batch_size": 0}, "data.batch_size must be"),
        (network, {"step": "fast"}, "step.size"),
        (network, {"test": (np.zeros((3, 4)), np.zeros(3))}, "test must have classes"),
        (network, {"data": {"shards": 2}}, "minimize takes no table 'data'"),
        (network, {"objective_": {}}, "Unknown key 'objective_'"),
    ],
)
def test_what_cannot_be_used_is_refused_on_every_rank(
    module: Callable[[], Any], options: dict[str, Any], words: str
) -> None:
    usual: dict[str, Any] = {"step": 0.1, "batch_size": 5, "topology": "ring", "rounds": 2}
    with pytest.raises(InputError, match=words):
        fit(module(), LOSS, shards(), **{**usual, **options})


@pytest.mark.mpi(min_size=2)
def test_modules_of_other_shapes_are_refused() -> None:
    module = torch.nn.Linear(N_FEATURES, 3 + MPI.COMM_WORLD.rank)
    with pytest.raises(InputError, match="module must be made alike on every rank"):
        fit(module, LOSS, shards(), step=0.1, batch_size=5, topology="ring")


@pytest.mark.mpi(min_size=1)
def test_a_run_that_diverges_leaves_the_module_where_it_began() -> None:
    module = torch.nn.Linear(N_FEATURES, 1).double()
    before = MPI.COMM_WORLD.bcast({name: value.clone() for name, value in module.state_dict().items()})
    squares = [(inputs, inputs[:, :1]) for inputs, _ in shards()]
    with pytest.raises(RunError, match="diverged"):
        fit(module, torch.nn.MSELoss(), squares, step=1e6, batch_size=5, topology="ring", rounds=1000)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.mpi(min_size=1)
def test_the_automatic_step_is_that_of_the_curvature_at_the_start() -> None:
    result = fit(network(), LOSS, shards(), step={"kind": "auto"}, batch_size=5, topology="ring", rounds=200)
    assert result.fun < 0.8 * result.history[0]["loss"]
