"""What a run keeps in its memory survives being text and arrays: to the last bit, for every method."""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from goco_mpi.config import parse_config
from goco_mpi.core.flatten import flatten, restore
from goco_mpi.core.gossip import Received
from goco_mpi.core.methods import METHODS, SOLVERS, Gradient, Method, State
from goco_mpi.core.methods.allreduce_pcg import Phase
from goco_mpi.core.methods.base import Encoding
from goco_mpi.core.pace.deadline import Deadline
from goco_mpi.core.pace.work import FinishedWork
from goco_mpi.experiment import lay_out
from goco_mpi.problem import load_problem

N_WORKERS = 4
HALF = 7
LEAST_SQUARES = {"kind": "least_squares", "l2": 1e-2}
LOGISTIC = {
    "data": {"source": "breast_cancer", "standardize": True, "shards": N_WORKERS},
    "objective": {"kind": "logistic", "l2": 1e-2},
}

EXPERIMENTS: dict[str, dict[str, Any]] = {
    **{kind: {"method": {"kind": kind}} for kind in METHODS if kind not in ("table_newton", "gradient_coding")},
    **{solver: {"method": {"kind": "allreduce", "solver": solver}} for solver in SOLVERS},
    "preconditioned cg": {"method": {"kind": "allreduce", "solver": "cg", "preconditioner": "local"}},
    "cg of a convex loss": {"method": {"kind": "allreduce", "solver": "cg"}, **LOGISTIC},
    "gradient coding": {"method": {"kind": "gradient_coding", "solver": "descent"}, "placement": {"kind": "cyclic"}},
    "a master's cg": {"method": {"kind": "gradient_coding", "solver": "cg"}, "placement": {"kind": "cyclic"}},
    "table": {"method": {"kind": "table_newton"}, "topology": {"kind": "complete"}},
    "table of a convex loss": {
        "method": {"kind": "table_newton"},
        "topology": {"kind": "complete"},
        **LOGISTIC,
    },
    "rook": {"method": {"kind": "table_newton"}, "topology": {"kind": "rook"}},
    "running sums": {"method": {"mixing": "running"}},
    "momentum": {"method": {"momentum": 0.5}},
    "chebyshev": {"method": {"gossip_rounds": 3}},
    "top_k": {"method": {"compression": "top_k", "compression_ratio": 0.5}},
    "random_k": {"method": {"compression": "random_k", "compression_ratio": 0.5}},
    "quantize": {"method": {"compression": "quantize"}},
    "rates": {"method": {"rates": "ema"}},
    "rates of running sums": {"method": {"rates": "counted", "mixing": "running"}},
}


class Network:
    """All workers of an experiment in one place, in lockstep, without a straggler."""

    def __init__(self, tables: dict[str, Any]) -> None:
        deadline = {"compute_s": float("inf"), "gossip_s": float("inf")}
        data = {"source": "synthetic", "n_samples": 60, "n_features": 6, "shards": N_WORKERS}
        objective = LEAST_SQUARES
        config = parse_config(
            {"data": data, "objective": objective, "topology": {"kind": "ring"}, "deadline": deadline, **tables}
        )
        layout, problem = lay_out(config, N_WORKERS), load_problem(config)
        self.method: Method[Any] = layout.method
        self.shares = [problem.share(layout, worker) for worker in range(N_WORKERS)]
        self.places = [layout.place(worker, share, 0.5) for worker, share in enumerate(self.shares)]
        self.mixings = [layout.mixing(worker) for worker in range(N_WORKERS)]
        self.n_params = problem.objective.n_params

    def start(self) -> list[State]:
        return [self.method.start(np.zeros(self.n_params), place) for place in self.places]

    def go(self, states: list[State], rounds: range) -> None:
        for round_ in rounds:
            messages = [np.zeros(self.method.message_size(self.n_params)) for _ in states]
            for state, share, message in zip(states, self.shares, messages, strict=True):
                gradient = None
                if self.method.needs_gradient(state, round_):
                    encoding = self.method.encoding(state)
                    coded = share if encoding is None else share.reweighted(encoding.weights)
                    gradient = Gradient(coded.gradient(state.params), state.params.copy(), encoding)
                self.method.send(state, gradient, 0.1, round_, message)
            mean = np.mean(messages, axis=0)
            for state, place, mixing, message in zip(states, self.places, self.mixings, messages, strict=True):
                inbox = [Received(messages[j], 0) for j in place.neighbors]
                if self.method.exchange == "allreduce":
                    inbox = [Received(mean, 0)]
                self.method.receive(state, message, inbox, mixing, 0.1)


def through_a_file(value: object, like: object = None) -> Any:
    text, arrays = flatten(value)
    return restore(text, arrays, like)


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("half", [0, 1, HALF])
def test_every_method_goes_on_as_if_nothing_had_been(name: str, half: int) -> None:
    network = Network(EXPERIMENTS[name])
    states = network.start()
    network.go(states, range(half))
    restored = [
        through_a_file(state, network.method.start(np.zeros(network.n_params), place))
        for state, place in zip(states, network.places, strict=True)
    ]
    for state, other in zip(states, restored, strict=True):
        assert type(state) is type(other)
        assert other.params is not state.params
    at_half = [state.params.copy() for state in states]
    network.go(states, range(half, 2 * HALF))
    # What was kept is a copy: the run that went on meanwhile has not changed it.
    for params, other in zip(at_half, restored, strict=True):
        np.testing.assert_array_equal(params, other.params)
    network.go(restored, range(half, 2 * HALF))
    for state, other in zip(states, restored, strict=True):
        np.testing.assert_array_equal(state.params, other.params)
    assert any(np.abs(state.params - params).max() > 0.0 for state, params in zip(states, at_half, strict=True))


def test_numbers_and_containers_come_back_as_they_were() -> None:
    value = {
        "whole": 3,
        "real": 0.1,
        "endless": -float("inf"),
        "nothing": None,
        "yes": True,
        "text": 'a "b"',
        "pair": (1, [2.0, (3,)]),
        "last": deque([1.0, 2.0], maxlen=2),
        4: "by number",
        "scalar": np.float32(0.5),
        "phase": Phase.TRIAL,
    }
    other = through_a_file(value)
    assert other == value
    assert [type(item) for item in other.values()] == [type(item) for item in value.values()]
    assert other["last"].maxlen == 2
    assert np.isnan(through_a_file(float("nan")))


@pytest.mark.parametrize("array", [np.zeros((0, 3)), np.ones((2, 2), dtype=bool), np.arange(3), np.array(2.0)], ids=str)
def test_arrays_keep_shape_and_type(array: np.ndarray) -> None:
    other = through_a_file(array)
    assert (other.dtype, other.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(other, array)


def test_what_is_shared_stays_shared() -> None:
    # A method may ask whether the gradient that it is handed is the one that it has.
    gradient = Gradient(np.ones(2), np.zeros(2), Encoding(np.ones(3), epoch=4))
    work = FinishedWork(gradient, point=7, uses=2)
    other = through_a_file({"last": gradient, "work": work, "params": gradient.params})
    assert other["work"].gradient is other["last"]
    assert other["last"].params is other["params"]
    assert (other["work"].point, other["work"].uses, other["last"].encoding.epoch) == (7, 2, 4)


def test_learned_deadlines_go_on_learning() -> None:
    deadline = Deadline("auto", 2.0)
    for seconds in (1.0, 2.0, 4.0):
        deadline.observe(seconds)
    other = through_a_file(deadline)
    assert other.seconds == deadline.seconds == 4.0
    for one in (deadline, other):
        one.observe(8.0)
    assert other.seconds == deadline.seconds == 6.0


@dataclass
class Foreign:
    """None of the package's."""

    x: int = 0


class Colour(enum.Enum):
    RED = 1


@pytest.mark.parametrize("value", [Foreign(), Colour.RED, {1}, b"bytes", open, 1j], ids=repr)
def test_what_is_not_of_the_package_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="cannot be kept in a checkpoint"):
        flatten({"inside": [value]})


@pytest.mark.parametrize(
    "text",
    [
        '{"object": 0, "class": "os:system", "attributes": []}',
        '{"object": 0, "class": "goco_mpi.core.flatten:json", "attributes": []}',
        '{"object": 0, "class": "goco_mpi.core.flatten:flatten", "attributes": []}',
        '{"object": 0, "class": "goco_mpi.core.flatten:Place", "attributes": []}',
        '{"object": 0, "class": "goco_mpi.core.nowhere:Thing", "attributes": []}',
        '{"enum": "goco_mpi.core.methods.allreduce_pcg:Phase", "value": 99}',
        '{"enum": "goco_mpi.core.rates:RateEstimate", "value": "ema"}',
        "{}",
        '{"array": "7"}',
        '{"given": "Place"}',
        '{"again": 3}',
        '{"other": 3}',
        '{"list": 3}',
        "[1, 2",
    ],
)
def test_a_text_that_is_none_of_ours_is_an_error_and_nothing_more(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        restore(text, {})
