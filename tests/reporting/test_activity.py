"""Who was slow, skipped or suspected, on times and events made by hand."""

from __future__ import annotations

import numpy as np

from goco_mpi.core.events import NONE, Events
from goco_mpi.reporting import pictures
from goco_mpi.reporting.account import SAMPLES
from goco_mpi.reporting.activity import Activity, State, by_round, by_time
from goco_mpi.reporting.ages import ages

NEIGHBORS = [[1, 2], [0, 2], [0, 1]]
N_STEPS = 20


def steady(rank: int, seconds: float = 1.0, wait: float = 0.0, n_steps: int = N_STEPS) -> tuple[np.ndarray, list]:
    """Return times and events of a rank that goes through rounds of some length, with all neighbours there."""
    offered = np.arange(1, n_steps + 1) * (seconds + wait) - wait
    times = np.zeros((n_steps, 3 + 4))
    times[:, 0], times[:, 1], times[:, 2] = offered, offered + wait, offered + wait
    rows = [[step, step, step, step] for step in range(n_steps)]
    return times, [*rows, [n_steps, NONE, NONE, NONE]]


def build(parts: list[tuple[np.ndarray, list]]) -> tuple[list[np.ndarray], list[Events], list[np.ndarray]]:
    """Return times, events and ages of all."""
    times = [table for table, _ in parts]
    events = [Events(np.array(rows, dtype=np.int32), 2) for _, rows in parts]
    return times, events, ages(events, NEIGHBORS, [len(table) for table in times])


def states(times: list[np.ndarray], events: list[Events], found: list[np.ndarray], n_pieces: int = 40) -> np.ndarray:
    return by_time(times, events, NEIGHBORS, found, n_pieces).states


def test_ranks_that_do_their_rounds_are_at_work_and_nobody_is_suspected() -> None:
    times, events, found = build([steady(rank) for rank in range(3)])
    activity = by_time(times, events, NEIGHBORS, found, 40)
    assert (activity.states == State.WORKING).all()
    assert not activity.suspected.any()
    assert activity.timed
    assert activity.edges[0] == 0.0
    assert activity.edges[-1] == 20.0  # the first step began as long before it ended as the others


def test_who_waits_most_of_the_time_is_waiting() -> None:
    times, events, found = build([steady(0), steady(1), steady(2, seconds=0.25, wait=0.75)])
    activity = by_time(times, events, NEIGHBORS, found, 20)
    assert activity.share(2, State.WAITING) > 0.9
    assert activity.share(0, State.WAITING) == 0.0


def test_a_gradient_of_more_than_twice_the_usual_time_is_slow_from_its_begin_to_its_end() -> None:
    times, rows = steady(2, n_steps=16)
    times[8:, :3] += 4.0  # the ninth took five seconds
    times, events, found = build([steady(0), steady(1), (times, rows)])
    activity = by_time(times, events, NEIGHBORS, found, 200)
    slow = np.flatnonzero(activity.states[2] == State.SLOW)
    middles = (activity.edges[1:] + activity.edges[:-1]) / 2.0
    assert 8.0 - 0.2 < middles[slow].min() < 8.2
    assert 12.8 < middles[slow].max() < 13.0 + 0.2
    assert (np.diff(slow) == 1).all()
    assert not (activity.states[:2] == State.SLOW).any()


def test_waiting_does_not_make_a_gradient_slow() -> None:
    # As in an allreduce: all wait for one.
    times, events, found = build([steady(0, 1.0, 4.0), steady(1, 1.0, 4.0), steady(2, 5.0, 0.0)])
    activity = by_time(times, events, NEIGHBORS, found, 50)
    assert activity.share(2, State.SLOW) > 0.8
    assert activity.share(0, State.SLOW) == 0.0
    assert activity.share(0, State.WAITING) >= 0.6


def test_who_is_not_there_for_its_neighbours_is_skipped() -> None:
    first, second, third = (steady(rank) for rank in range(3))
    for step in range(10, 15):  # both use what rank 2 sent in step 9
        first[1][step][3] = second[1][step][3] = 9
    times, events, found = build([first, second, third])
    activity = by_time(times, events, NEIGHBORS, found, 20)
    assert np.flatnonzero(activity.states[2] == State.SKIPPED).tolist() == [11, 12, 13, 14, 15]
    assert not (activity.states[:2] == State.SKIPPED).any()


def test_suspicion_is_shown_whatever_else_a_rank_does_and_takes_most_neighbours() -> None:
    first, second, third = (steady(rank) for rank in range(3))
    first[0][5:10, 3 + 2 + 1] = 1.0  # rank 0 of rank 2
    second[0][7:10, 3 + 2 + 1] = 1.0
    first[0][12:14, 3 + 2 + 0] = 1.0  # rank 0 of rank 1, alone: half of its neighbours
    times, events, found = build([first, second, third])
    activity = by_time(times, events, NEIGHBORS, found, 20)
    assert np.flatnonzero(activity.suspected[2]).tolist() == [6, 7, 8, 9, 10]
    assert np.flatnonzero(activity.suspected[1]).tolist() == [13, 14]
    assert activity.share_suspected(0) == 0.0


def test_after_its_last_step_a_rank_is_gone() -> None:
    times, events, found = build([steady(0), steady(1), steady(2, n_steps=10)])
    assert set(states(times, events, found)[2, 21:].tolist()) == {State.GONE}
    assert State.GONE not in states(times, events, found)[2, :19]


def test_by_rounds_who_finishes_few_gradients_is_slow_and_who_is_old_is_skipped() -> None:
    parts = [steady(rank) for rank in range(3)]
    slow = [[step, step // 5 * 5, step, step] for step in range(N_STEPS)]  # one gradient in five rounds
    for rank in (0, 1):
        for step in range(10, 15):
            parts[rank][1][step][2] = 5  # rank 0 of rank 1, and the other way round
    parts[2] = (parts[2][0], [*slow, [N_STEPS, NONE, NONE, NONE]])
    _, events, found = build(parts)
    activity = by_round(events, NEIGHBORS, found, 4)
    assert not activity.timed
    assert activity.edges.tolist() == [0.0, 5.0, 10.0, 15.0, 20.0]
    assert (activity.states[2] == State.SLOW).all()
    assert activity.states[0].tolist() == [State.WORKING] * 4  # half of its neighbours is not most
    for rank in (0, 1):
        for step in range(10, 15):
            parts[2][1][step][2 + rank] = 5
    _, events, found = build(parts)
    assert by_round(events, NEIGHBORS, found, 4).states[0].tolist() == [
        State.WORKING,
        State.WORKING,
        State.SKIPPED,
        State.WORKING,
    ]


def test_what_is_shorter_than_a_column_of_the_map_has_its_share_of_the_height() -> None:
    samples = np.full((2, 2 * SAMPLES), State.WORKING, dtype=np.int8)
    suspected = np.zeros(samples.shape, dtype=bool)
    samples[0, 3] = State.SLOW  # an eighth of the first column, in its middle
    suspected[0, 2:4] = True
    samples[1, SAMPLES:] = State.SLOW
    found = Activity(np.arange(2.0 * SAMPLES + 1.0), samples, suspected, timed=True)
    pixels = pictures.map_pixels(found, stripe=5)
    first, second = np.split(pixels, 2)
    assert (first[: 2 * SAMPLES, 0] == State.SLOW).mean() == 1 / SAMPLES
    assert (first[2 * SAMPLES :, 0] == 5).sum() == 2
    assert (first[: 2 * SAMPLES, 1] == State.WORKING).all()
    assert (second[: 2 * SAMPLES] == [State.WORKING, State.SLOW]).all()


def test_of_many_ranks_the_map_has_a_line_each_of_what_they_mostly_did() -> None:
    n_ranks = pictures.NAMED + 1
    samples = np.full((n_ranks, 2 * SAMPLES), State.WORKING, dtype=np.int8)
    suspected = np.zeros(samples.shape, dtype=bool)
    samples[3, :2], samples[4, :5], suspected[5, :5] = State.SLOW, State.SLOW, True
    pixels = pictures.map_pixels(Activity(np.arange(2.0 * SAMPLES + 1.0), samples, suspected, timed=True), stripe=5)
    assert pixels.shape == (n_ranks, 2)
    assert pixels[3:6, 0].tolist() == [State.WORKING, State.SLOW, 5]
    assert (pixels[:, 1] == State.WORKING).all()


def test_a_run_of_no_step_has_an_activity_too() -> None:
    events = [Events(np.array([[0, NONE]], dtype=np.int32), 0)]
    assert by_round(events, [[]], [np.zeros((0, 0), np.int32)], 10).states.shape == (1, 1)
    nothing = by_time([np.zeros((0, 3))], events, [[]], [np.zeros((0, 0), np.int32)], 10)
    assert (nothing.states == State.GONE).all()
