"""One rank's gradients alone: what finishing, cutting and going on meanwhile give, by each policy."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from goco_mpi.core.pace.work import FinishedWork
from goco_mpi.core.shares import Share
from goco_mpi.core.stragglers import StragglerModel
from goco_mpi.engine import gradients
from goco_mpi.engine.gradients import GradientWork

POLICIES = ("discard", "partial", "memory", "wait")
N_PARAMS = 6


class Clock:
    """Time that passes only in sleep."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert 0.0 < seconds <= gradients.SLICE_S
        self.now += seconds


class ScriptedShare(Share):
    """Shard k's gradient is (k + 1) x + 10^k e_k, computed in blocks; whole numbers, so that sums are exact.

    Until the last block is done ``out`` holds numbers that would show in any result.
    """

    def __init__(self, n_shards: int, n_blocks: int = 1) -> None:
        self.n_params = N_PARAMS
        self.n_shards = n_shards
        self.n_blocks = n_blocks
        self.n_computed = 0

    def term(self, params: np.ndarray, shard: int) -> np.ndarray:
        term = (shard + 1.0) * params
        term[shard % N_PARAMS] += 10.0**shard
        return term

    def gradient_blocks(self, params: np.ndarray, out: np.ndarray, shard: int | None = None) -> Iterator[None]:
        for k in range(self.n_shards) if shard is None else (shard,):
            for block in range(self.n_blocks):
                out[:] = -1e9 - k - block
                self.n_computed += 1
                yield
        out[:] = sum((self.term(params, k) for k in self.places(shard)), start=np.zeros(N_PARAMS))

    def places(self, shard: int | None) -> list[int]:
        return list(range(self.n_shards)) if shard is None else [shard]

    def loss(self, params: np.ndarray) -> float:
        raise AssertionError("a gradient needs no loss")

    def reweighted(self, weights: np.ndarray) -> ScriptedShare:
        raise AssertionError("these weights stay")


NOBODY = StragglerModel("none", 1)
EVERY_THIRD = StragglerModel("persistent", 1, ranks=(0,), factor=3.0)
"""Finishes in the rounds 2, 5, 8, ... only."""


def work_on(share: Share, late: str, stragglers: StragglerModel = NOBODY) -> GradientWork:
    return GradientWork(0, share, stragglers, late)


def point(step: int) -> np.ndarray:
    return np.arange(N_PARAMS) + 100.0 * step


def whole(work: GradientWork, round_: int, step: int) -> FinishedWork | None:
    """Compute the gradient of a round to its end."""
    for _ in work.start(point(step), round_, step):
        pass
    return work.finish()


def counts(work: GradientWork) -> tuple[int, int, int]:
    return work.n_whole, work.n_partial, work.n_late


@pytest.mark.parametrize("late", POLICIES)
@pytest.mark.parametrize("n_blocks", [1, 3])
def test_a_gradient_in_time_is_whole_whatever_the_policy(late: str, n_blocks: int) -> None:
    share = ScriptedShare(4, n_blocks)
    work = work_on(share, late)
    for step in range(5):
        gradient = whole(work, round_=2 * step, step=step)
        assert gradient is not None
        np.testing.assert_array_equal(gradient.gradient.vector, share.gradient(point(step)))
        np.testing.assert_array_equal(gradient.gradient.params, point(step))
        assert (gradient.point, gradient.uses) == (step, 0)
        assert sorted(gradient.shards) == ([0, 1, 2, 3] if late == "partial" else [])
    assert counts(work) == (5, 0, 0)


@pytest.mark.parametrize("late", ["discard", "memory", "wait"])
def test_one_pass_over_all_shards_where_they_do_not_count_one_by_one(late: str) -> None:
    share = ScriptedShare(4, n_blocks=3)
    assert sum(1 for _ in work_on(share, late).start(point(0), 0, 0)) == 12


@pytest.mark.parametrize("late", POLICIES)
def test_parameters_that_change_meanwhile_do_not_change_the_gradient(late: str) -> None:
    # The rank gossips in the middle of its gradient, into the very parameters that it was given.
    share = ScriptedShare(3, n_blocks=2)
    work = work_on(share, late)
    params = point(1)
    for _ in work.start(params, 0, 0):
        params += 7.0
    gradient = work.finish()
    assert gradient is not None
    np.testing.assert_array_equal(gradient.gradient.params, point(1))
    np.testing.assert_array_equal(gradient.gradient.vector, share.gradient(point(1)))


def test_discard_gives_nothing_of_a_late_gradient() -> None:
    share = ScriptedShare(4)
    work = work_on(share, "discard")
    list(islice(work.start(point(0), 0, 0), 3))
    assert work.cut() is None
    assert work.meanwhile is None
    assert counts(work) == (0, 0, 1)
    # And the next one is not touched by it.
    gradient = whole(work, 1, 1)
    assert gradient is not None
    np.testing.assert_array_equal(gradient.gradient.vector, share.gradient(point(1)))
    assert work.meanwhile is None
    assert counts(work) == (1, 0, 1)


@pytest.mark.parametrize("late", ["discard", "partial"])
def test_a_script_makes_gradients_late(late: str) -> None:
    work = work_on(ScriptedShare(4), late, EVERY_THIRD)
    made = [whole(work, round_, round_) is not None for round_ in range(9)]
    assert made == [False, False, True] * 3
    assert counts(work) == (3, 0, 6)


@pytest.mark.parametrize("late", POLICIES)
def test_a_worker_without_shards_is_never_late(late: str) -> None:
    work = work_on(ScriptedShare(0), late, EVERY_THIRD)
    for round_ in range(9):
        whole(work, round_, round_)
    assert work.n_late == work.n_partial == 0


def test_who_waits_has_no_late_gradients_whatever_the_script_says() -> None:
    work = work_on(ScriptedShare(4), "wait", EVERY_THIRD)
    assert all(whole(work, round_, round_) is not None for round_ in range(9))
    assert counts(work) == (9, 0, 0)


@given(
    n_shards=st.integers(1, 6),
    n_blocks=st.integers(1, 3),
    round_=st.integers(0, 10_000),
    work_s=st.sampled_from([0.0, 2e-3]),
    data=st.data(),
)
def test_wherever_it_is_cut_a_partial_gradient_is_the_sum_of_the_finished_shards(
    n_shards: int, n_blocks: int, round_: int, work_s: float, data: st.DataObject
) -> None:
    share = ScriptedShare(n_shards, n_blocks)
    lasting = StragglerModel("none", 1, work_s=work_s)
    with mock.patch.object(gradients, "time", Clock()):
        work = work_on(share, "partial", lasting)
        n_looks = sum(1 for _ in work.start(point(2), round_, 2))  # leaves something in the buffers
        n_done = data.draw(st.integers(0, n_looks), label="looks before it is cut")
        share.n_computed = 0
        assert sum(1 for _ in islice(work.start(point(3), round_, 3), n_done)) == n_done
        gradient = work.cut()
    n_whole = share.n_computed // n_blocks
    if gradient is None:
        assert n_whole <= 1  # no shard was taken up
        assert counts(work) == (0, 0, 1)
        return
    # A shard counts once its sum is taken up, at the latest with the next shard's first block.
    assert n_whole - 1 <= len(gradient.shards) <= n_whole
    assert gradient.shards == lasting.shard_order(0, round_, n_shards)[: len(gradient.shards)]
    expected = sum((share.term(point(3), k) for k in gradient.shards), start=np.zeros(N_PARAMS))
    np.testing.assert_array_equal(gradient.gradient.vector, expected)
    np.testing.assert_array_equal(gradient.gradient.params, point(3))
    assert gradient.point == 3
    assert counts(work) == ((1, 0, 0) if len(gradient.shards) == n_shards else (0, 1, 0))


def test_a_partial_gradient_goes_through_the_shards_in_an_order_of_its_own_each_round() -> None:
    work = work_on(ScriptedShare(5), "partial")
    firsts = []
    for round_ in range(60):
        list(islice(work.start(point(0), round_, round_), 2))
        gradient = work.cut()
        assert gradient is not None
        firsts += gradient.shards
    # Of 60 draws from 5 places none is left out but with probability 5 * 0.8^60 < 1e-5.
    assert len(firsts) == 60
    assert set(firsts) == set(range(5))


def test_a_scripted_partial_gradient_stops_after_the_scripted_number_of_shards() -> None:
    stragglers = StragglerModel("bernoulli", 1, seed=4, p=0.7)
    share = ScriptedShare(5)
    work = work_on(share, "partial", stragglers)
    expected = [stragglers.shards_finished(0, round_, 5) for round_ in range(50)]
    for round_, n_finished in enumerate(expected):
        before = share.n_computed
        gradient = whole(work, round_, round_)
        assert share.n_computed - before == n_finished  # the others are not even computed
        assert (gradient is None) == (n_finished == 0)
        if gradient is not None:
            assert gradient.shards == stragglers.shard_order(0, round_, 5)[:n_finished]
    n_whole, n_late = expected.count(5), expected.count(0)
    assert counts(work) == (n_whole, 50 - n_whole - n_late, n_late)
    assert min(counts(work)) > 0  # the script has something of everything


def test_memory_has_nothing_before_its_first_gradient() -> None:
    work = work_on(ScriptedShare(3), "memory", EVERY_THIRD)
    assert work.meanwhile is None
    assert [whole(work, round_, round_) for round_ in (0, 1)] == [None, None]
    assert counts(work) == (0, 0, 2)


def test_memory_keeps_the_last_gradient_untouched_while_the_next_is_computed() -> None:
    share = ScriptedShare(3, n_blocks=2)
    work = work_on(share, "memory")
    last = None
    for step in range(6):
        kept = None if last is None else last.gradient.vector.copy()
        for _ in work.start(point(step), step, step):
            assert work.meanwhile is last
            if last is not None:
                np.testing.assert_array_equal(last.gradient.vector, kept)
                np.testing.assert_array_equal(last.gradient.params, point(step - 1))
        gradient = work.finish()
        assert gradient is not None
        assert gradient is not last
        assert work.meanwhile is gradient
        np.testing.assert_array_equal(gradient.gradient.vector, share.gradient(point(step)))
        assert gradient.point == step
        last = gradient


def test_memory_gives_the_last_gradient_again_where_a_script_makes_one_late() -> None:
    share = ScriptedShare(3)
    work = work_on(share, "memory", EVERY_THIRD)
    found = [whole(work, round_, round_) for round_ in range(9)]
    assert found[2] is found[3] is found[4]
    assert found[5] is found[6] is found[7]
    for gradient, step in ((found[4], 2), (found[7], 5), (found[8], 8)):
        assert gradient is not None
        assert gradient.point == step
    assert counts(work) == (3, 0, 6)
    # The latest is intact; older ones may have lent their buffers to it.
    assert found[8] is not None
    np.testing.assert_array_equal(found[8].gradient.vector, share.gradient(point(8)))
    np.testing.assert_array_equal(found[8].gradient.params, point(8))


def test_a_late_one_does_not_spoil_what_memory_keeps() -> None:
    share = ScriptedShare(3)
    work = work_on(share, "memory", EVERY_THIRD)
    for round_ in range(5):
        gradient = whole(work, round_, round_)
        if round_ >= 2:
            assert gradient is not None
            np.testing.assert_array_equal(gradient.gradient.vector, share.gradient(point(2)))
            np.testing.assert_array_equal(gradient.gradient.params, point(2))


@pytest.mark.parametrize("late", POLICIES)
def test_work_lasts_as_long_as_it_is_told_to_and_looks_up_in_between(
    late: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(gradients, "time", clock)
    share = ScriptedShare(4)
    stragglers = StragglerModel("slow", 1, ranks=(0,), factor=10.0, work_s=2e-3)
    work = work_on(share, late, stragglers)
    looks = sum(1 for _ in work.start(point(0), 0, 0))
    assert clock.now == pytest.approx(20e-3)
    assert looks >= 20e-3 / gradients.SLICE_S
    assert work.finish() is not None
    # Half of the time is half of the shards: the sleep is spread over them.
    start = clock.now
    blocks = work.start(point(1), 1, 1)
    while clock.now < start + 10.5e-3:
        next(blocks)
    gradient = work.cut()
    if late == "partial":
        assert gradient is not None
        assert len(gradient.shards) == 2
