"""For whom a rank waits, until when, and what it learns: by hand, without a clock."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from goco_mpi.core.pace import rounds
from goco_mpi.core.pace.deadline import Deadline
from goco_mpi.core.pace.patience import NETWORK_WEIGHT, SKEW_S, Patience
from goco_mpi.core.pace.rounds import BEHIND, Look
from goco_mpi.core.pace.suspicion import Suspicion


def neighbour(**heard):
    slot = SimpleNamespace(**{"heard_round": -1, "reached": -1.0, "busy_s": 0.0, **heard})
    return SimpleNamespace(receive=slot, suspicion=Suspicion())


def hear(edge, round_, busy_s=1.0):
    edge.receive.heard_round, edge.receive.reached, edge.receive.busy_s = round_, float(round_), busy_s


def test_a_wait_that_a_neighbours_longer_work_explains_is_not_the_networks():
    edge, deadline = neighbour(), Deadline("auto", 0.1, first_s=1.75)
    patience = Patience([edge], deadline, now=10.0)
    assert patience.offer(12.0) == 2.0
    assert patience.begin(0, 12.0) == 13.75
    assert patience.awaits()
    hear(edge, 0, busy_s=3.0)
    assert not patience.awaits()
    # 1.5 s were waited, of which the neighbour worked for one.
    patience.end(13.5)
    assert deadline.seconds == pytest.approx(0.1 * (2.0 + NETWORK_WEIGHT * 0.5))
    assert patience.offer(14.0) == 0.5  # work counts from the end of the wait


def test_only_the_trusted_are_waited_for_and_learned_from():
    slow, prompt = neighbour(), neighbour()
    deadline = Deadline("auto", 0.1, first_s=1.0)
    patience = Patience([slow, prompt], deadline, now=0.0)
    patience.offer(2.0)
    patience.begin(0, 2.0)
    hear(prompt, 0, busy_s=2.0)
    assert patience.awaits()  # for the slow one
    patience.end(3.0)
    assert (patience.missed, patience.suspected) == (1, 1)
    assert slow.suspicion.suspect
    assert not prompt.suspicion.suspect
    patience.offer(5.0)
    patience.begin(1, 5.0)
    hear(prompt, 1, busy_s=2.0)
    assert not patience.awaits()
    slow.receive.busy_s = 100.0  # of a suspect, which explains nothing
    patience.end(5.5)
    assert (patience.missed, patience.suspected) == (2, 1)
    seen = [2.0 + NETWORK_WEIGHT * 1.0, 2.0 + NETWORK_WEIGHT * 0.5]
    assert deadline.seconds == pytest.approx(0.1 * sum(seen) / 2)


@pytest.mark.parametrize(("busy_s", "wait_s"), [(9.0, 1.0), (0.5, 0.5), (0.001, SKEW_S)])
def test_the_first_wait_is_as_long_as_the_work_before_it(busy_s, wait_s):
    patience = Patience([neighbour()], Deadline("auto", 0.1, first_s=1.0), now=0.0)
    patience.offer(busy_s)
    assert patience.begin(0, busy_s) == busy_s + wait_s


def test_the_first_wait_for_the_others_is_what_would_be_learned_from_a_prompt_half():
    edges, deadline = [neighbour() for _ in range(4)], Deadline("auto", 0.1, first_s=50.0)
    patience = Patience(edges, deadline, now=0.0)
    patience.offer(20.0)
    assert patience.begin(0, 20.0) == patience.due(20.0) == 40.0
    hear(edges[0], 0, busy_s=20.0)
    assert patience.awaits()
    assert patience.due(20.5) == 40.0  # one of four is no measure
    hear(edges[1], 0, busy_s=21.0)
    assert patience.awaits()
    due = 21.5 + 0.1 * (20.0 + NETWORK_WEIGHT * 0.5)  # of 1.5 s one is explained by work
    assert patience.due(21.5) == pytest.approx(due)
    hear(edges[2], 0, busy_s=20.0)
    assert patience.awaits()
    assert patience.due(23.0) == pytest.approx(due)  # the third does not ask for more
    patience.end(25.0)  # in vain: that says nothing of the network
    assert deadline.seconds == pytest.approx(0.1 * (20.0 + NETWORK_WEIGHT * 0.5))
    assert [edge.suspicion.suspect for edge in edges] == [False, False, False, True]
    patience.offer(45.0)
    for edge in edges[:2]:
        hear(edge, 1, busy_s=20.0)
    later = patience.begin(1, 45.0)
    assert patience.awaits()
    assert patience.due(45.1) == later == 45.0 + deadline.seconds  # from now on it is learned


def test_a_first_wait_that_all_end_in_time_is_learned_from_as_a_whole():
    edges, deadline = [neighbour() for _ in range(2)], Deadline("auto", 0.1, first_s=50.0)
    patience = Patience(edges, deadline, now=0.0)
    patience.offer(20.0)
    patience.begin(0, 20.0)
    hear(edges[0], 0, busy_s=20.0)
    assert patience.awaits()
    assert patience.due(20.5) < 30.0
    hear(edges[1], 0, busy_s=20.0)
    patience.end(21.0)
    assert deadline.seconds == pytest.approx(0.1 * (20.0 + NETWORK_WEIGHT * 1.0))


def test_a_fixed_deadline_learns_nothing():
    edge, deadline = neighbour(), Deadline(0.5, 0.1)
    patience = Patience([edge], deadline, now=0.0)
    patience.offer(1.0)
    assert patience.begin(0, 1.0) == 1.5
    patience.end(1.5)
    assert deadline.seconds == 0.5


def test_who_said_goodbye_owes_nothing():
    edge = neighbour(heard_round=3, reached=math.inf)
    patience = Patience([edge], Deadline(0.5, 0.1), now=0.0)
    patience.begin(7, 1.0)
    assert not patience.awaits()


def test_only_who_waits_without_a_deadline_is_deaf_to_the_next_round():
    edge = neighbour(heard_round=4)
    synchronous, other = (Patience([edge], Deadline(seconds, 0.1), now=0.0) for seconds in (math.inf, 1.0))
    assert [synchronous.deaf(edge.receive, round_) for round_ in (3, 4, 5)] == [True, True, False]
    assert not any(other.deaf(edge.receive, round_) for round_ in (3, 4, 5))


@pytest.mark.parametrize(
    ("late", "over", "carries_on", "found"),
    [
        (False, False, False, Look.GO_ON),
        (False, False, True, Look.GO_ON),
        (True, False, False, Look.CUT),
        (True, False, True, Look.GOSSIP),
        (False, True, True, Look.CUT),
        (True, True, True, Look.CUT),
    ],
)
def test_a_late_gradient_is_cut_or_carried_on_with_and_any_is_left_when_the_run_is_over(late, over, carries_on, found):
    assert rounds.look(late, over, carries_on) is found


def test_a_rank_keeps_up_from_two_rounds_behind_and_never_goes_back():
    assert [rounds.behind(5, newest) for newest in (4, 5, 6, 5 + BEHIND, 9)] == [False, False, False, True, True]
    assert [rounds.following(5, newest) for newest in (-1, 5, 6, 9)] == [6, 6, 6, 9]
    assert rounds.following(5, 9, advance=False) == 5


def test_not_a_number_is_without_bound():
    assert [rounds.diverged(square) for square in (0.0, 1e199, 1e201, math.inf, math.nan)] == [
        False,
        False,
        True,
        True,
        True,
    ]
