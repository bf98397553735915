"""What `goco watch` makes of what ranks say, by hand."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
from rich.console import Console

from goco_mpi.status import JobStatus, RankStatus
from goco_mpi.watching import View, line, table, view

NOW = 1_000_000.0


def rank(number: int, heard_s: float = 0.5, **said: Any) -> RankStatus:
    """Return what a rank said ``heard_s`` ago, 100 rounds after its start ten seconds before."""
    usual = {
        "host": f"node{number}",
        "state": "running",
        "noted_s": 10.0,
        "up_s": 10.2,
        "round": 100,
        "gradients": 100,
        "late": 0,
        "wait_s": 2.0,
        "suspects": [],
    }
    return RankStatus(number, {**usual, **said}, NOW - heard_s)


def job(*ranks: RankStatus, n_ranks: int = 4, **changes: Any) -> JobStatus:
    """Return a job of which some ranks have said something."""
    document = {"n_ranks": n_ranks, "rounds": 500, "method": "goco", "source": "digits", "period_s": 1.0, **changes}
    return JobStatus(document, {one.rank: one for one in ranks}, NOW - 10.0)


def all_fine(**said: Any) -> list[RankStatus]:
    return [rank(number, **said) for number in range(4)]


def shown(seen: View) -> str:
    """Return the table as a terminal shows it."""
    console = Console(file=io.StringIO(), width=110, force_terminal=False)
    console.print(table(seen, "my_run"))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_pace_and_time_left_are_the_median_ranks() -> None:
    seen = view(job(*all_fine()[:3], rank(3, round=10, gradients=10)), None, NOW)
    assert (seen.round, seen.rounds_per_s, seen.left_s) == (100, 10.0, 40.0)
    assert line(seen).startswith("round 100 of 500, 10 rounds/s, about 40 s left")


def test_rates_are_since_the_look_before() -> None:
    before = job(*all_fine())
    now = job(*all_fine(noted_s=12.0, up_s=12.1, round=108, gradients=104, wait_s=3.0))
    seen = view(now, before, NOW)
    assert seen.rounds_per_s == 4.0
    assert seen.ranks[0].gradients_per_s == 2.0
    assert seen.ranks[0].waiting == 0.5
    # Nothing new was said: what is known is the whole time.
    assert view(before, before, NOW).rounds_per_s == 10.0


def test_what_a_run_went_on_from_was_not_done_since_its_start() -> None:
    resumed = all_fine(round=5100, gradients=4000, wait_s=300.0)
    seen = view(job(*resumed, rounds=6000, first_rounds=[5000] * 4), None, NOW)
    assert (seen.rounds_per_s, seen.left_s) == (10.0, 90.0)
    # How many gradients there were by then it does not say: known from the next look on.
    assert math.isnan(seen.ranks[0].gradients_per_s)
    assert math.isnan(seen.ranks[0].waiting)
    assert not any(one.slow for one in seen.ranks)
    later = job(*all_fine(round=5120, gradients=4016, wait_s=300.5, noted_s=12.0, up_s=12.0))
    seen = view(later, job(*resumed, first_rounds=[5000] * 4), NOW)
    assert (seen.rounds_per_s, seen.ranks[0].gradients_per_s, seen.ranks[0].waiting) == (10.0, 8.0, 0.25)


def test_a_rank_that_finishes_few_gradients_is_slow_though_it_keeps_up_with_the_rounds() -> None:
    seen = view(job(*all_fine()[:3], rank(3, gradients=20)), None, NOW)
    assert [one.slow for one in seen.ranks] == [False, False, False, True]
    assert "rank 3 slow" in line(seen)


def test_who_is_suspected_is_what_its_neighbours_say() -> None:
    seen = view(job(rank(0, suspects=[3]), rank(1), rank(2, suspects=[3, 1]), rank(3)), None, NOW)
    assert [one.suspected_by for one in seen.ranks] == [0, 1, 0, 2]
    assert "rank 3 suspected by 2" in line(seen)


def test_a_rank_that_says_nothing_any_more_is_silent() -> None:
    seen = view(job(*all_fine()[:3], rank(3, heard_s=75.0)), None, NOW)
    assert [one.state for one in seen.ranks] == ["running"] * 3 + ["silent"]
    assert "3 of 4 ranks running; rank 3 silent for 1 min 14 s" in line(seen)  # beside the one heard of last


def test_another_clock_on_the_file_system_makes_nobody_silent() -> None:
    for off in (-3600.0, 4.0):
        late = view(job(*all_fine()), None, NOW + off)
        assert {one.state for one in late.ranks} == {"running"}


def test_all_are_silent_where_nothing_was_written_for_long() -> None:
    seen = view(job(*all_fine()), None, NOW + 300.0)
    assert {one.state for one in seen.ranks} == {"silent"}
    assert "0 of 4 ranks running" in line(seen)
    # Of what is dead it is not known how long it will take.
    assert "nothing heard for 5 min 0 s: the job may be dead" in line(seen)
    assert "left" not in line(seen)
    assert "rounds/s," not in shown(seen)


def test_a_run_that_stopped_early_has_no_time_left() -> None:
    seen = view(job(*all_fine(state="ended")), None, NOW)
    assert line(seen).startswith("round 100 of 500, the rounds are over, ")


def test_large_jobs_write_seldom_and_are_not_silent_between() -> None:
    large = job(*all_fine()[:3], rank(3, 90.0), period_s=20.0)
    assert {one.state for one in view(large, None, NOW).ranks} == {"running"}


def test_a_rank_that_is_there_and_does_not_get_on_is_told_with_its_round() -> None:
    seen = view(job(*all_fine()[:3], rank(3, up_s=40.0)), None, NOW)
    assert seen.ranks[3].state == "running"
    assert "rank 3 in round 100 for 30 s" in line(seen)
    # Where rounds are that long for everybody there is nothing to tell.
    long = [rank(number, round=2, noted_s=60.0, up_s=85.0) for number in range(4)]
    assert not any(one.trouble for one in view(job(*long), None, NOW).ranks)


def test_the_loss_is_the_sum_of_all_parts_or_not_known() -> None:
    seen = view(job(*[rank(number, loss=0.25 * number) for number in range(4)]), None, NOW)
    assert seen.loss == 1.5
    assert "loss about 1.5" in line(seen)
    seen = view(job(*[rank(number, loss=0.25) for number in range(3)], rank(3)), None, NOW)
    assert math.isnan(seen.loss)
    assert "loss known of 3 of 4 ranks" in line(seen)


def test_before_anybody_has_begun_it_is_being_set_up() -> None:
    seen = view(job(), None, NOW)
    assert line(seen) == "setting up: no rank has begun its rounds"
    assert "not heard of yet" in shown(seen)
    first = view(job(*all_fine(noted_s=0.0, up_s=0.0, round=0, gradients=0, wait_s=0.0)), None, NOW)
    assert "no round yet" in line(first)


def test_after_the_last_round_there_is_no_time_left_to_tell() -> None:
    assert "all rounds done" in line(view(job(*all_fine(), rounds=100), None, NOW))


def test_ranks_that_ended_are_neither_silent_nor_slow() -> None:
    seen = view(job(*all_fine()[:3], rank(3, state="ended", gradients=1, heard_s=50.0)), None, NOW)
    assert seen.ranks[3].state == "ended"
    assert seen.ranks[3].trouble == ""
    assert "ended" in shown(seen)


def test_the_table_has_every_rank_of_few() -> None:
    text = shown(view(job(*all_fine()[:3], rank(3, gradients=20, host="[bold]odd")), None, NOW))
    assert "my_run  goco on digits, 4 ranks" in text
    assert "round 100 of 500, 10 rounds/s, about 40 s left" in text
    for number in range(3):
        assert f"node{number}" in text
    assert "[bold]odd" in text
    assert "slow" in text
    assert "20 %" in text


def test_of_many_ranks_the_table_has_those_worth_a_look() -> None:
    ranks = [rank(number) for number in range(300)]
    ranks[217] = rank(217, heard_s=60.0)
    ranks[44] = rank(44, gradients=5)
    text = shown(view(job(*ranks, n_ranks=300), None, NOW))
    assert "node217" in text
    assert "node44" in text
    assert "and 276 more ranks" in text
    assert len(text.splitlines()) < 40


@pytest.mark.parametrize("n_troubled", [4, 6])
def test_a_line_names_a_few_and_counts_the_rest(n_troubled: int) -> None:
    ranks = [rank(number, gradients=10 if number < n_troubled else 100) for number in range(20)]
    text = line(view(job(*ranks, n_ranks=20), None, NOW))
    assert text.count("slow") == 4
    assert ("2 more" in text) == (n_troubled == 6)
