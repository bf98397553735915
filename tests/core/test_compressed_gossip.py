"""Gossip with compressed messages: what it conserves, where it ends, and what forgetting the rest would cost."""

import numpy as np
import pytest

from goco_mpi.config import parse_config
from goco_mpi.core import mixing, topology
from goco_mpi.core.compression import Compression
from goco_mpi.core.gossip import Mixing, Received
from goco_mpi.core.methods import Place
from goco_mpi.core.methods.compressed import CompressedGossip
from goco_mpi.core.stacked import Links, StackedCompressed
from goco_mpi.core.stragglers import StragglerModel
from goco_mpi.errors import RunError
from goco_mpi.experiment import lay_out
from goco_mpi.simulation.rounds import Simulation, simulate_experiment

COMPRESSIONS = {
    "top_k": Compression("top_k", ratio=0.1),
    "random_k": Compression("random_k", ratio=0.1),
    **{f"{bits} bits": Compression("quantize", bits=bits) for bits in (2, 4, 8, 16)},
}
GRAPHS = {
    "ring": topology.ring(8),
    "star": topology.star(6),
    "complete": topology.complete(8),
    "exponential": topology.exponential(16),
}


def consensus(compression, graph, n, n_rounds, seed=0, link_p=0.0):
    """Give every worker a vector of its own; return these, and the vectors after each of the rounds that mix them."""
    n_workers = graph.n_workers
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((n_workers, n)) * rng.random(n) ** 4
    links = Links(mixing.metropolis(graph), StragglerModel("none", n_workers, seed, link_p=link_p), "stale", 20)
    step = StackedCompressed(np.zeros((n_workers, n)), links, compression)
    everybody = np.ones(n_workers, dtype=bool)
    seen = []
    for t in range(n_rounds):
        step.advance(-vectors * (t == 0), everybody, 1.0, t)
        seen.append(step.x)
    return vectors, np.array(seen)


def spread(x):
    return float(np.linalg.norm(x - x.mean(axis=0)))


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("name", COMPRESSIONS)
def test_the_mean_moves_by_the_steps_alone_and_all_come_to_it(name, graph):
    seed = list(COMPRESSIONS).index(name) + len(COMPRESSIONS) * list(GRAPHS).index(graph)
    vectors, seen = consensus(COMPRESSIONS[name], GRAPHS[graph], 50, 700, seed)
    mean = vectors.mean(axis=0)
    np.testing.assert_allclose(seen.mean(axis=1), np.tile(mean, (700, 1)), rtol=0, atol=1e-12)
    # Once the first errors are settled the disagreement falls, and goes on falling.
    distances = [spread(x) for x in seen[[50, 300, 699]]]
    assert distances[0] < 2 * spread(vectors)
    # A reference in single precision leaves a millionth of itself at most.
    settled = 1e-6 * spread(vectors)
    assert distances[1] < max(0.6 * distances[0], settled)
    assert distances[2] < max(0.2 * distances[0], settled)


@pytest.mark.parametrize("graph", ["complete", "exponential"])
@pytest.mark.parametrize("kind", ["random_k", "2 bits"])
def test_a_few_times_the_automatic_consensus_step_is_too_much(kind, graph):
    # What the step is for; with the coordinates that changed most the limit is further off.
    automatic = COMPRESSIONS[kind].step(50, mixing.laplacian_norm(mixing.metropolis(GRAPHS[graph])))
    larger = Compression(COMPRESSIONS[kind].kind, ratio=0.1, bits=2, consensus_step=min(1.0, 8 * automatic))
    vectors, seen = consensus(larger, GRAPHS[graph], 50, 300)
    assert spread(seen[-1]) > 10 * spread(vectors)


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_lost_messages_delay_consensus_and_move_the_mean_little(name):
    for seed in range(2):
        vectors, seen = consensus(COMPRESSIONS[name], GRAPHS["ring"], 50, 1000, seed, link_p=0.5)
        assert spread(seen[-1]) < 0.1 * spread(vectors)
        moved = np.linalg.norm(seen[-1].mean(axis=0) - vectors.mean(axis=0))
        assert moved < spread(vectors) / np.sqrt(8)  # which is each worker's own distance to the mean


def experiment(n_workers, seed=0, **tables):
    raw = {
        "seed": seed,
        "rounds": 600,
        "data": {
            "source": "synthetic",
            "partition": "in_order",
            "heterogeneity": 1.0,
            "n_samples": 40 * n_workers,
            "n_features": 60,
            "shards": 2 * n_workers,
            "intercept": False,
            "test_fraction": 0.0,
        },
        "objective": {"kind": "least_squares", "l2": 1e-2},
        "step": {"kind": "auto", "scale": 0.1},
        "record": {"every": 600, "optimum": True},
    }
    for name, value in tables.items():
        raw[name] = {**raw.get(name, {}), **value} if isinstance(value, dict) else value
    return parse_config(raw)


def gap(config, n_workers):
    outcome = simulate_experiment(config, n_workers)
    first, last = outcome.history[0]["loss"], outcome.history[-1]["loss"]
    return (last - outcome.loss_optimum) / (first - outcome.loss_optimum)


def message_bytes(config, n_workers):
    """Return the bytes of a message, its header of four numbers included."""
    return 8 * (4 + lay_out(config, n_workers).method.message_size(60))


@pytest.mark.parametrize("n_workers", [8, 16])
def test_eight_bits_lead_to_the_neighbourhood_of_whole_messages(n_workers):
    for seed in range(3):
        # Late gradients are noise, which goes on changing what is sent.
        for late, factor in ({}, 1.3), ({"kind": "bernoulli", "p": 0.3}, 1.3):
            whole = experiment(n_workers, seed, stragglers=late)
            short = experiment(n_workers, seed, stragglers=late, method={"compression": "quantize"})
            assert message_bytes(short, n_workers) < 0.3 * message_bytes(whole, n_workers)
            assert gap(short, n_workers) < factor * gap(whole, n_workers) < 1e-2


def test_lost_messages_cost_eight_bits_a_factor_and_not_the_result():
    late = {"kind": "bernoulli", "p": 0.3, "link_p": 0.3}
    # One run against one is 2 to 8 times further off: means over seeds.
    whole = np.mean([gap(experiment(8, seed, stragglers=late), 8) for seed in range(6)])
    eight = {"compression": "quantize"}
    short = np.mean([gap(experiment(8, seed, stragglers=late, method=eight), 8) for seed in range(6)])
    assert short < 5 * whole < 2e-2


@pytest.mark.parametrize(("kind", "factor"), [("top_k", 1.5), ("random_k", 2.5)])
@pytest.mark.parametrize("n_workers", [8, 16])
def test_where_steps_are_small_a_few_coordinates_a_message_are_enough(kind, factor, n_workers):
    for seed in range(2):
        whole = experiment(n_workers, seed, step={"scale": 0.02})
        short = experiment(n_workers, seed, step={"scale": 0.02}, method={"compression": kind})
        saving = message_bytes(whole, n_workers) / message_bytes(short, n_workers)
        assert saving > 4
        found = gap(short, n_workers)
        assert found < factor * gap(whole, n_workers)
        # As many bytes in whole messages are fewer rounds.
        n_rounds = int(600 / saving)
        fewer = experiment(n_workers, seed, rounds=n_rounds, record={"every": n_rounds}, step={"scale": 0.02})
        assert found < 0.1 * gap(fewer, n_workers)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "method",
    [
        {"compression": "top_k", "compression_ratio": 0.3},
        {"compression": "random_k", "compression_ratio": 0.3},
        {"compression": "quantize", "compression_bits": 4},
        {"compression": "quantize", "compression_bits": 16, "consensus_step": 0.3},
    ],
    ids=str,
)
def test_the_end_is_that_of_whole_messages_with_the_smaller_mixing_step(method, seed):
    # The compression's error is of what still changes: where nothing does, there is none.
    config = experiment(8, seed, rounds=4000, method=method, step={"scale": 0.9})
    simulation = Simulation(config, 8)
    x = simulation.run(lambda round_, stacked_params: True)
    layout, shares = simulation.layout, simulation.shares
    method = layout.method
    gamma = method._compression.step(60, method._norm)
    lazy = (1.0 - gamma) * np.eye(8) + gamma * layout.mixing_matrix.toarray()
    # X = lazy (X - eta (H X - b)), worker by worker, as one linear system.
    eta = simulation.step_size(0)
    hessians = [share.hessian(np.zeros(60)) for share in shares]
    local = np.zeros((480, 480))
    for i, hessian in enumerate(hessians):
        local[60 * i : 60 * i + 60, 60 * i : 60 * i + 60] = np.eye(60) - eta * hessian
    constant = np.concatenate([-eta * share.gradient(np.zeros(60)) for share in shares])
    mixes = np.kron(lazy, np.eye(60))
    expected = np.linalg.solve(np.eye(480) - mixes @ local, mixes @ constant).reshape(8, 60)
    assert spread(expected) > 0.1
    np.testing.assert_allclose(x, expected, rtol=0, atol=1e-7 * np.abs(expected).max())


@pytest.mark.parametrize("kind", ["random_k", "quantize"])
def test_compression_that_forgets_what_it_left_out_never_settles(kind):
    # The control: the same, but of v itself and not of what the others do not know yet.
    method = {"compression": kind, "compression_ratio": 0.25, "compression_bits": 4}
    config = experiment(8, method=method, step={"scale": 0.9}, rounds=1500)
    simulation, seen = Simulation(config, 8), []
    simulation.run(lambda round_, stacked_params: seen.append(stacked_params.copy()) is None)
    matrix, shares, eta = simulation.layout.mixing_matrix.toarray(), simulation.shares, simulation.step_size(0)
    rng, x, forgetful = np.random.default_rng(0), np.zeros((8, 60)), []
    for _ in range(1500):
        v = np.array([x[i] - eta * shares[i].gradient(x[i]) for i in range(8)])
        if kind == "random_k":
            sent = v * (rng.random(v.shape) < 0.25)
        else:
            unit = np.abs(v).max(axis=1, keepdims=True) / 7
            sent = np.floor(v / unit + rng.random(v.shape)) * unit
        x = v + 0.1 * (matrix - np.eye(8)) @ sent
        forgetful.append(x)
    moved, moved_forgetful = (np.linalg.norm(xs[-1] - xs[-2]) for xs in (seen, forgetful))
    assert moved_forgetful > 0.01 * spread(x)
    assert moved < 1e-4 * moved_forgetful


@pytest.mark.parametrize("method", [{"compression": kind} for kind in ("top_k", "random_k", "quantize")], ids=str)
def test_a_run_that_diverges_says_so_and_nothing_else(method):
    config = experiment(4, method=method, step={"kind": "constant", "size": 50.0})
    with pytest.raises(RunError, match="diverged"):
        simulate_experiment(config, 4)
    matrix = mixing.metropolis(topology.ring(3))
    for size in (1e60, 1e200, np.inf):
        gossip = CompressedGossip(Compression(method["compression"]), mixing.laplacian_norm(matrix))
        states = [gossip.start(np.zeros(30), Place(i, 3, (j, k), None, 1.0, None, 0)) for i, j, k in RING_OF_3]
        for round_ in range(3):
            sent = np.empty((3, gossip.message_size(30)))
            for i, state in enumerate(states):
                state.params[:] = size * (-1.0) ** (i + round_)
                gossip.send(state, None, 0.1, round_, sent[i])
            for i, j, k in RING_OF_3:
                inbox = [Received(sent[j], 0), Received(sent[k], 0)]
                gossip.receive(states[i], sent[i], inbox, Mixing(np.full(2, 1 / 3), 20), 0.1)


RING_OF_3 = [(0, 1, 2), (1, 0, 2), (2, 0, 1)]


@pytest.mark.parametrize("name", COMPRESSIONS)
@pytest.mark.parametrize("seed", range(3))
def test_messages_of_any_age_lead_to_consensus_in_an_asynchronous_network(name, seed):
    # The method's own functions; chance decides who takes a step, and how old what it hears is.
    rng = np.random.default_rng(seed)
    graph, n = topology.ring(6), 20
    matrix = mixing.metropolis(graph)
    method = CompressedGossip(COMPRESSIONS[name], mixing.laplacian_norm(matrix))
    x = rng.standard_normal((6, n))
    held = np.ones((6, 1), dtype=bool)
    # Everybody is known to be at x_i: then only what comes of the messages' ages is seen.
    states = [method.start(x[i], Place(i, 6, graph.neighbors(i), None, 1.0, held, 0)) for i in range(6)]
    for i, state in enumerate(states):
        state.copies = [state.codec.copy(x[j]) for j in graph.neighbors(i)]
    mixings = [Mixing(mixing.neighbor_weights(matrix, graph, i), 20) for i in range(6)]
    sent = [[] for _ in range(6)]
    heard = [dict.fromkeys(graph.neighbors(i), -1) for i in range(6)]
    for _ in range(9000):
        i = int(rng.choice(6, p=np.arange(1, 7) / 21))  # some are six times as fast as others
        message = np.empty(method.message_size(n))
        method.send(states[i], None, 0.1, 0, message)
        sent[i].append(message)
        inbox = []
        for j in graph.neighbors(i):
            if sent[j] and rng.random() < 0.6:
                heard[i][j] = int(rng.integers(max(heard[i][j], 0), len(sent[j])))
            inbox.append(Received(None if heard[i][j] < 0 else sent[j][heard[i][j]], 0))
        method.receive(states[i], message, inbox, mixings[i], 0.1)
    ends = np.array([state.params for state in states])
    assert spread(ends) < 0.02 * spread(x)
    assert np.linalg.norm(ends.mean(axis=0) - x.mean(axis=0)) < spread(x)
