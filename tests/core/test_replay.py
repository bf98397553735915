import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goco_mpi.core import topology
from goco_mpi.core.events import NONE, EventLog, Events
from goco_mpi.core.gossip import Mixing
from goco_mpi.core.methods import METHODS, Place
from goco_mpi.core.replay import replay_allreduce, replay_gossip
from goco_mpi.core.shares import Share
from goco_mpi.errors import RunError

N_PARAMS = 3
HELD = np.ones((1, 0), dtype=bool)
"""Nobody here asks who else holds what."""
GRAPHS = {
    "alone": topology.from_edges(1, []),
    "pair": topology.ring(2),
    "ring": topology.ring(5),
    "star": topology.star(5),
    "complete": topology.complete(4),
    "exponential": topology.exponential(8),
    "lopsided": topology.from_edges(6, [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 0), (0, 3), (0, 2)]),
}


def step_size(round_):
    return 0.2 / (1.0 + round_ / 7.0)


class Wavy(Share):
    """Shards with gradients A_k x - b_k + sin x: all points differ, and far apart they differ much."""

    def __init__(self, seed, n_shards):
        rng = np.random.default_rng(seed)
        self.n_params, self.n_shards = N_PARAMS, n_shards
        self.matrices = rng.standard_normal((n_shards, N_PARAMS, N_PARAMS)) / n_shards
        self.offsets = rng.standard_normal((n_shards, N_PARAMS)) / n_shards

    def term(self, x, shard):
        return self.matrices[shard] @ x - self.offsets[shard] + np.sin(x) / self.n_shards

    def gradient_blocks(self, params, out, shard=None):
        out[:] = 0.0
        for k in range(self.n_shards) if shard is None else (shard,):
            out += self.term(params, k)
            yield

    def loss(self, params):
        raise AssertionError("a replay needs no losses")

    def reweighted(self, weights):
        raise AssertionError("these weights stay")


class Worker:
    """One worker of `Network`: a step is sent first and mixed later, as others do things in between."""

    def __init__(self, n_steps, start):
        self.n_steps = n_steps
        self.x = start.copy()
        self.points = []  # parameters before each step
        self.sent = []  # (round, vector) of each step, at last the goodbye
        self.round = 0
        self.vector = None  # between sending and mixing
        self.gradient = None  # (point, shards, value) that later steps may use again
        self.chosen = (NONE, [])  # what the step under way uses
        self.newest = {}  # step of each neighbour's newest message that has come


class Network:
    """An asynchronous network without messages or time: chance decides who does what next.

    Its vectors follow from the equations as they stand, and everything that decided them is taken down.
    """

    def __init__(self, graph, seed, n_shards=3, partial=False, max_age=6, n_steps=10):
        self.rng = rng = np.random.default_rng(seed)
        self.graph, self.max_age, self.partial = graph, max_age, partial
        n = graph.n_workers
        self.start = rng.standard_normal(N_PARAMS)
        self.shares = [Wavy(100 * seed + i, n_shards) for i in range(n)]
        self.neighbors = [sorted(graph.neighbors(i)) for i in range(n)]
        degrees = [len(found) for found in self.neighbors]
        self.weights = [
            np.array([1.0 / (1 + max(degrees[i], degrees[j])) for j in self.neighbors[i]]) for i in range(n)
        ]
        self.logs = [EventLog(degrees[i], n_shards if partial else 0) for i in range(n)]
        self.workers = [Worker(int(rng.integers(n_steps, 2 * n_steps)), self.start) for _ in range(n)]
        busy = list(range(n))
        while busy:
            i = int(rng.choice(busy))
            worker = self.workers[i]
            if worker.vector is not None:
                self.mix(i, worker)
            elif len(worker.sent) < worker.n_steps:
                self.send(i, worker)
            else:
                self.say_goodbye(i, worker)
                busy.remove(i)
        self.events = [log.events() for log in self.logs]
        self.params = np.stack([worker.x for worker in self.workers])

    def send(self, i, worker):
        rng, step = self.rng, len(worker.sent)
        worker.points.append(worker.x)
        # Twice in one round, the next, or a jump.
        worker.round += int(rng.choice([0, 1, 1, 1, 2, 5]))
        how = rng.choice(["none", "fresh", "fresh", "old", "again"]) if step else "fresh"
        if how in ("fresh", "old"):
            # Taken here, or at parameters that others have been mixed into since.
            point = step if how == "fresh" else int(rng.integers(max(0, step - 4), step + 1))
            if worker.gradient is None or point > worker.gradient[0]:
                n_shards = self.shares[i].n_shards
                n_finished = int(rng.integers(1, n_shards + 1)) if self.partial else n_shards
                shards = [int(k) for k in rng.permutation(n_shards)[:n_finished]]
                value = sum(self.shares[i].term(worker.points[point], k) for k in shards)
                worker.gradient = (point, shards, value)
        worker.vector, worker.chosen = worker.x, (NONE, [])
        if how != "none" and worker.gradient is not None:
            point, shards, value = worker.gradient
            worker.vector, worker.chosen = worker.x - step_size(worker.round) * value, (point, shards)
        worker.sent.append((worker.round, worker.vector))

    def mix(self, i, worker):
        newest, x = [], worker.vector.copy()
        for j, weight in zip(self.neighbors[i], self.weights[i], strict=True):
            theirs, before = self.workers[j].sent, worker.newest.get(j, NONE)
            arrived = range(max(before, 0), len(theirs))
            s = int(self.rng.choice(arrived)) if arrived and self.rng.random() < 0.8 else before
            newest.append(s)
            worker.newest[j] = s
            # What has come is taken down, whether it is mixed or too old.
            if s != NONE and worker.round - theirs[s][0] <= self.max_age:
                x += weight * (theirs[s][1] - worker.vector)
        self.logs[i].append(worker.round, worker.chosen[0], newest, worker.chosen[1])
        worker.x, worker.vector = x, None

    def say_goodbye(self, i, worker):
        worker.sent.append((worker.round + 1, worker.x))
        self.logs[i].append(worker.round + 1, NONE, [NONE] * len(self.neighbors[i]))

    def replay(self, events=None, max_age=None):
        n = self.graph.n_workers
        return replay_gossip(
            METHODS["goco"],
            [Place(i, n, tuple(self.neighbors[i]), self.shares[i], 1.0, HELD, 0) for i in range(n)],
            [Mixing(weights, self.max_age if max_age is None else max_age) for weights in self.weights],
            step_size,
            self.events if events is None else events,
            self.start,
        )

    def mixed(self, i, row, place, step):
        """Tell whether worker i, in a step of its own, mixes this step's message of a neighbour."""
        theirs = self.workers[self.neighbors[i][place]].sent
        return NONE < step < len(theirs) and self.events[i].rounds[row] - theirs[step][0] <= self.max_age

    def altered(self, worker, row, column, value):
        """Return the events with one number changed."""
        tables = [found.table.copy() for found in self.events]
        tables[worker][row, column] = value
        return [Events(table, found.degree) for table, found in zip(tables, self.events, strict=True)]


SEEDS = st.integers(0, 2**20)
CASES = st.sampled_from(sorted(GRAPHS))


@settings(max_examples=60, deadline=None)
@given(CASES, SEEDS, st.booleans(), st.sampled_from([1, 3, 40]), st.sampled_from([0, 2, 50]))
def test_a_replay_ends_in_the_parameters_of_the_run(name, seed, partial, n_shards, max_age):
    network = Network(GRAPHS[name], seed, n_shards, partial, max_age)
    assert np.abs(network.params).max() > 1e-3
    np.testing.assert_allclose(network.replay(), network.params, rtol=1e-12, atol=1e-14)


def test_the_networks_of_these_tests_have_everything_that_a_run_can_have():
    # Lest a change of them leaves the tests empty: what follows must all occur.
    found = dict.fromkeys(
        ["stale", "too old", "newer", "again", "old point", "none", "same round", "jump", "goodbye used"], 0
    )
    for seed in range(5):
        network = Network(GRAPHS["complete"], seed)
        for i, events in enumerate(network.events):
            points, rounds = events.points[:-1], events.rounds
            with_gradient = points[points != NONE]
            found["none"] += int((points == NONE).sum())
            found["again"] += len(with_gradient) - len(set(with_gradient.tolist()))
            found["old point"] += int(((points < np.arange(len(points))) & (points != NONE)).sum())
            found["same round"] += int((np.diff(rounds) == 0).sum())
            found["jump"] += int((np.diff(rounds) > 1).sum())
            for place, j in enumerate(network.neighbors[i]):
                theirs = network.events[j].rounds
                for step, used in enumerate(events.used[:, place]):
                    if used != NONE:
                        found["stale"] += int(theirs[used] < rounds[step])
                        found["too old"] += int(theirs[used] < rounds[step] - network.max_age)
                        found["newer"] += int(theirs[used] > rounds[step])
                        found["goodbye used"] += int(used == len(theirs) - 1)
    assert min(found.values()) > 0, found


def test_synchronous_rounds_are_steps_of_gossip_as_matrices():
    # Everyone uses everyone's vector of the very round, which no order of whole steps could have.
    graph, n_rounds = GRAPHS["ring"], 9
    network = Network(graph, 1)
    matrix = np.zeros((5, 5))
    for i in range(5):
        matrix[i, network.neighbors[i]] = network.weights[i]
        matrix[i, i] = 1.0 - network.weights[i].sum()
    x = np.tile(network.start, (5, 1))
    logs = [EventLog(2) for _ in range(5)]
    for t in range(n_rounds):
        gradients = [sum(share.term(x[i], k) for k in range(3)) for i, share in enumerate(network.shares)]
        x = matrix @ (x - step_size(t) * np.array(gradients))
        for log in logs:
            log.append(t, t, [t, t])
    for log in logs:
        log.append(n_rounds, NONE, [NONE, NONE])
    found = network.replay([log.events() for log in logs], max_age=0)
    np.testing.assert_allclose(found, x, rtol=1e-12, atol=1e-14)


def outcome(network, events):
    """Return the replayed parameters, or None if the events are refused."""
    try:
        return network.replay(events)
    except RunError:
        return None


def assert_noticed(network, worker, row, column, value):
    found = outcome(network, network.altered(worker, row, column, value))
    # What one number decides is about a step times a weight; after some rounds of contraction it is
    # still far above the 1e-12 that a replay is compared with.
    assert found is None or np.abs(found - network.params).max() > 1e-11 * np.abs(network.params).max()


def with_gradient(network, worker):
    return np.flatnonzero(network.events[worker].points != NONE)


@settings(max_examples=60, deadline=None)
@given(CASES, SEEDS, st.booleans(), st.data())
def test_another_gradient_point_is_noticed(name, seed, partial, data):
    network = Network(GRAPHS[name], seed, partial=partial)
    i = data.draw(st.integers(0, GRAPHS[name].n_workers - 1))
    points = network.workers[i].points
    row = data.draw(st.sampled_from(range(len(points))))
    was = int(network.events[i].points[row])
    value = data.draw(st.integers(-2, len(points) + 1).filter(lambda value: value != was))
    if was == NONE and partial:
        return  # then a gradient of no shards is claimed, which is zero: see below
    if min(value, was) >= 0 and value < len(points) and np.abs(points[value] - points[was]).max() < 1e-6:
        return  # nothing had happened in between
    assert_noticed(network, i, row, 1, value)


@settings(max_examples=60, deadline=None)
@given(CASES.filter(lambda name: name != "alone"), SEEDS, st.booleans(), st.data())
def test_another_used_step_is_noticed(name, seed, partial, data):
    network = Network(GRAPHS[name], seed, partial=partial)
    i = data.draw(st.integers(0, GRAPHS[name].n_workers - 1))
    row = data.draw(st.integers(0, len(network.events[i].table) - 1))  # the goodbye as well
    place = data.draw(st.integers(0, len(network.neighbors[i]) - 1))
    was = int(network.events[i].used[row, place])
    sent = [vector for _, vector in network.workers[network.neighbors[i][place]].sent]
    value = data.draw(st.integers(-3, len(sent) + 1).filter(lambda value: value != was))
    own = network.workers[i].sent[row][1]
    if NONE <= value < len(sent) and row < len(network.events[i].table) - 1:
        # Too old is as good as not there: it is taken down and not mixed.
        before, after = (sent[step] - own if network.mixed(i, row, place, step) else 0.0 * own for step in (was, value))
        if np.abs(after - before).max() < 1e-6:
            return  # equal vectors are no difference: a worker may send the same twice, or its neighbour's own
    assert_noticed(network, i, row, 2 + place, value)


@settings(max_examples=60, deadline=None)
@given(CASES, SEEDS, st.booleans(), st.data())
def test_another_round_is_noticed_where_a_step_size_follows_from_it(name, seed, partial, data):
    network = Network(GRAPHS[name], seed, partial=partial)
    i = data.draw(st.integers(0, GRAPHS[name].n_workers - 1))
    rows = with_gradient(network, i)
    if not rows.size:
        return
    row = int(data.draw(st.sampled_from(rows.tolist())))
    was = int(network.events[i].rounds[row])
    value = data.draw(st.integers(-2, was + 20).filter(lambda value: value != was))
    assert_noticed(network, i, row, 0, value)


@settings(max_examples=40, deadline=None)
@given(CASES, SEEDS, st.sampled_from([3, 31, 40]), st.data())
def test_other_finished_shards_are_noticed(name, seed, n_shards, data):
    network = Network(GRAPHS[name], seed, n_shards, partial=True)
    i = data.draw(st.integers(0, GRAPHS[name].n_workers - 1))
    rows = with_gradient(network, i)
    if not rows.size:
        return
    row = int(data.draw(st.sampled_from(rows.tolist())))
    shard = data.draw(st.integers(0, n_shards - 1))
    column = 2 + len(network.neighbors[i]) + shard // 31
    assert_noticed(network, i, row, column, network.events[i].table[row, column] ^ (1 << shard % 31))


@pytest.mark.parametrize("bit", [3, 30, 31], ids=["a fourth of three", "the last bit", "the sign"])
@pytest.mark.parametrize("with_one", [True, False], ids=["gradient", "none"])
def test_shards_that_a_worker_does_not_hold_are_refused(bit, with_one):
    network = Network(GRAPHS["ring"], 2, partial=True)
    row = int(np.flatnonzero((network.events[0].points != NONE) == with_one)[0])
    words = network.events[0].table.view(np.uint32)
    value = np.uint32(words[row, 4] | np.uint32(1 << bit)).view(np.int32)
    with pytest.raises(RunError, match="rank 0"):
        network.replay(network.altered(0, row, 4, value))


def test_shards_without_a_gradient_are_refused():
    network = Network(GRAPHS["ring"], 2, partial=True)
    row = int(np.flatnonzero(network.events[3].points == NONE)[0])
    with pytest.raises(RunError, match="rank 3"):
        network.replay(network.altered(3, row, 4, 0b101))


def test_rounds_that_go_back_are_refused():
    network = Network(GRAPHS["ring"], 3, max_age=10**6)
    row = int(np.flatnonzero(np.diff(network.events[2].rounds) > 0)[2]) + 1
    before = network.events[2].rounds[row - 1]
    with pytest.raises(RunError, match="rank 2 go back in rounds"):
        network.replay(network.altered(2, row, 0, before - 1))


@pytest.mark.parametrize("ahead", [1, 5])
def test_a_gradient_from_the_future_is_refused(ahead):
    network = Network(GRAPHS["ring"], 3)
    with pytest.raises(RunError, match="rank 1 use a gradient before it was taken"):
        network.replay(network.altered(1, 4, 1, 4 + ahead))


@pytest.mark.parametrize("how", ["beyond the goodbye", "below none"])
def test_a_vector_that_was_never_sent_is_refused(how):
    network = Network(GRAPHS["ring"], 4, max_age=10**6)
    rows = np.flatnonzero(network.events[0].used[:, 1] != NONE)
    value = len(network.events[4].table) if how == "beyond the goodbye" else -2
    for row in rows:
        with pytest.raises(RunError, match="rank 0 use a message of rank 4 that it never sent"):
            network.replay(network.altered(0, int(row), 3, value))


def test_an_older_vector_after_a_newer_one_is_refused():
    network = Network(GRAPHS["ring"], 4, max_age=10**6)
    used = network.events[0].used[:, 0]
    rows = np.flatnonzero(used > 0)
    newest = int(used[rows[0]])
    with pytest.raises(RunError, match=f"rank 0 use an older message of rank {network.neighbors[0][0]} after a newer"):
        network.replay(network.altered(0, int(rows[1]), 2, newest - 1))


def test_a_message_older_than_the_limit_is_not_mixed_and_one_as_old_is():
    network = Network(GRAPHS["ring"], 5, max_age=6)
    ages = [
        int(events.rounds[s] - network.events[j].rounds[used])
        for i, events in enumerate(network.events)
        for place, j in enumerate(network.neighbors[i])
        for s, used in enumerate(events.used[:, place])
        if used != NONE
    ]
    assert {5, 6, 7} <= set(ages)
    scale = np.abs(network.params).max()
    for max_age in (4, 5, 6, 7, 8):
        # Nothing lies between an age and the limit just above it.
        same = not set(ages) & set(range(min(max_age, 6) + 1, max(max_age, 6) + 1))
        difference = np.abs(network.replay(max_age=max_age) - network.params).max()
        assert difference <= 1e-12 * scale if same else difference > 1e-6 * scale


def pair_of(*rows):
    """Return events of two workers from their rows, each ending in a goodbye."""
    return [Events(np.array([*found, [99, NONE, NONE]], dtype=np.int32), 1) for found in rows]


def test_steps_that_wait_for_each_other_are_refused():
    network = Network(GRAPHS["pair"], 0, max_age=100)
    # Each mixes its first vector with the other's second, which only comes of that.
    crossed = pair_of([[0, 0, 1], [1, 1, 1]], [[0, 0, 1], [1, 1, 1]])
    with pytest.raises(RunError, match=r"contradict themselves: step 0 of rank 0 uses a message that only comes of it"):
        network.replay(crossed)
    possible = pair_of([[0, 0, 0], [1, 1, 1]], [[0, 0, 1], [1, 1, 1]])  # one of them may be ahead
    assert np.isfinite(network.replay(possible)).all()


def test_a_ring_of_steps_that_wait_for_each_other_is_refused():
    network = Network(GRAPHS["ring"], 0, max_age=100)
    n = 5
    events = []
    for i in range(n):
        rows = np.full((3, 4), NONE, dtype=np.int32)
        rows[:, 0] = [0, 1, 2]
        rows[:-1, 2 + network.neighbors[i].index((i + 1) % n)] = 1  # the right neighbour's second step
        events.append(Events(rows, 2))
    with pytest.raises(RunError, match="contradict themselves"):
        network.replay(events)


@pytest.mark.parametrize("column", [1, 2, 3])
def test_whoever_goes_on_after_the_goodbye_is_refused(column):
    network = Network(GRAPHS["ring"], 6)
    with pytest.raises(RunError, match="rank 1"):
        network.replay(network.altered(1, -1, column, 0))


def test_a_missing_row_is_noticed_wherever_it_is():
    network = Network(GRAPHS["star"], 7)
    for i, events in enumerate(network.events):
        for row in range(len(events.table)):
            rest = list(network.events)
            rest[i] = Events(np.delete(events.table, row, axis=0), events.degree)
            found = outcome(network, rest)
            goodbye = row == len(events.table) - 1
            mixed = [network.mixed(i, row, place, int(used)) for place, used in enumerate(events.used[row])]
            if events.points[row] == NONE and not (goodbye or any(mixed)) and found is not None:
                continue  # nothing happened in that step
            assert found is None or np.abs(found - network.params).max() > 1e-11


@pytest.mark.parametrize("table", [np.empty((0, 4)), np.zeros((3, 3)), np.zeros((3, 1)), np.zeros(4)], ids=str)
def test_tables_of_another_form_are_refused(table):
    network = Network(GRAPHS["ring"], 8)
    events = [*network.events[:4], Events(table.astype(np.int32), 2)]
    with pytest.raises(RunError, match="rank 4"):
        network.replay(events)


def test_events_of_another_number_of_neighbours_are_refused():
    network = Network(GRAPHS["star"], 8)
    with pytest.raises(RunError, match="not of this graph"):
        network.replay([network.events[1], network.events[0], *network.events[2:]])


class Counting(Wavy):
    """Counts whole gradients."""

    n_gradients = 0

    def gradient(self, params, shard=None):
        self.n_gradients += 1
        return super().gradient(params, shard)


def test_a_gradient_that_is_used_again_is_computed_once():
    network = Network(GRAPHS["ring"], 9)
    network.shares = [Counting(900 + i, 3) for i in range(5)]
    np.testing.assert_allclose(network.replay(), network.params, rtol=1e-12)
    for share, events in zip(network.shares, network.events, strict=True):
        used = events.points[events.points != NONE]
        assert share.n_gradients == len(set(used.tolist())) < len(used)


def test_replaying_leaves_events_and_start_as_they_are():
    network = Network(GRAPHS["ring"], 10)
    tables, start = [found.table.copy() for found in network.events], network.start.copy()
    network.replay()
    np.testing.assert_array_equal(network.start, start)
    for found, before in zip(network.events, tables, strict=True):
        np.testing.assert_array_equal(found.table, before)


def synchronous_events(n_workers, n_rounds):
    table = np.array([[t, t] for t in range(n_rounds)] + [[n_rounds, NONE]], dtype=np.int32)
    return [Events(table.copy(), 0) for _ in range(n_workers)]


@pytest.mark.parametrize("n_workers", [1, 4])
def test_a_replayed_allreduce_is_descent_along_the_mean_gradient(n_workers):
    shares = [Wavy(i, 3) for i in range(n_workers)]
    start = np.array([1.0, -2.0, 0.5])
    x = start.copy()
    for t in range(12):
        x = x - step_size(t) * sum(share.term(x, k) for share in shares for k in range(3)) / n_workers
    found = replay_allreduce(shares, step_size, synchronous_events(n_workers, 12), start)
    np.testing.assert_allclose(found, np.tile(x, (n_workers, 1)), rtol=1e-12)
    np.testing.assert_array_equal(start, [1.0, -2.0, 0.5])


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize(("row", "column", "value"), [(3, 0, 4), (3, 1, 2), (3, 1, NONE), (12, 0, 13), (12, 1, 12)])
def test_an_allreduce_in_which_one_rank_went_another_way_is_refused(rank, row, column, value):
    events = synchronous_events(3, 12)
    events[rank].table[row, column] = value
    with pytest.raises(RunError, match="other rounds than rank 0"):
        replay_allreduce([Wavy(i, 3) for i in range(3)], step_size, events, np.zeros(N_PARAMS))


@pytest.mark.parametrize(("row", "column", "value"), [(3, 0, 4), (3, 1, 2), (3, 1, NONE), (0, 0, -1)])
def test_an_allreduce_with_a_round_left_out_by_all_is_refused(row, column, value):
    events = synchronous_events(3, 12)
    for found in events:
        found.table[row, column] = value
    with pytest.raises(RunError, match="contradict the rules"):
        replay_allreduce([Wavy(i, 3) for i in range(3)], step_size, events, np.zeros(N_PARAMS))


def test_an_allreduce_of_which_one_rank_lacks_a_round_is_refused():
    events = synchronous_events(3, 12)
    events[1] = Events(events[1].table[1:], 0)
    with pytest.raises(RunError, match="rank 1 went through other rounds than rank 0"):
        replay_allreduce([Wavy(i, 3) for i in range(3)], step_size, events, np.zeros(N_PARAMS))
