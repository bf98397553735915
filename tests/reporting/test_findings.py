"""What is said of a run, on facts made by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from goco_mpi.reporting.findings import Facts, Finding, find

ROUNDS = np.arange(0.0, 301.0, 10.0)
FLOOR = np.maximum(10.0 ** (-ROUNDS / 30.0), 1e-4)
"""Suboptimality that stays at 1e-4 from round 120 on."""


def facts(**changes: Any) -> Facts:
    """Return the facts of a run that was at its end, with nothing wrong, and changes."""
    return dataclasses.replace(
        Facts(
            waiting=0.05,
            computing=0.9,
            late_share=0.0,
            rounds=ROUNDS,
            values=10.0 ** (-ROUNDS / 20.0),
            spread=np.full(len(ROUNDS), 1e-9),
            optimum_known=True,
            scale=1.0,
            seconds_a_round=0.5,
            curvature=2.0,
            spectral_gap=0.5,
            dissimilarity=0.01,
            n_shards=16,
            n_ranks=8,
            replication=2,
        ),
        **changes,
    )


def of(kind: str, found: list[Finding]) -> Finding:
    """Return the one finding of a kind."""
    (finding,) = [one for one in found if one.kind == kind]
    return finding


def kinds(**changes: Any) -> list[str]:
    """Return the kinds of what is found, in order."""
    return [finding.kind for finding in find(facts(**changes))]


def test_what_took_most_of_the_time_comes_first() -> None:
    assert kinds()[0] == "computing"
    assert kinds(waiting=0.6, computing=0.3)[0] == "waiting"
    assert kinds(waiting=0.2, computing=0.2)[0] == "messages"


def test_the_numbers_that_a_finding_stands_on_are_in_its_words() -> None:
    text = find(facts(waiting=0.62, computing=0.25))[0].text
    assert "waited 62 %" in text
    assert "computed 25 %" in text
    assert "13 % on messages" in text


def test_a_wait_that_is_not_the_most_is_told_from_a_fifth_on() -> None:
    assert kinds(waiting=0.19, computing=0.7).count("waiting") == 0
    assert kinds(waiting=0.21, computing=0.7).count("waiting") == 1


def test_slow_ranks_are_named_the_slowest_first_and_not_all_of_many() -> None:
    slow = {rank: 3.0 + rank for rank in range(6)}
    text = of("waiting", find(facts(waiting=0.6, computing=0.3, slow=slow))).text
    assert "rank 5 (8.0 times), rank 4 (7.0 times)" in text
    assert "and 2 more" in text
    assert "rank 0" not in text


def test_an_allreduce_that_waits_is_told_of_gossip_and_gossip_with_deadlines_of_shorter_ones() -> None:
    waiting = {"waiting": 0.7, "computing": 0.3}
    for changes, words in (
        ({"exchange": "allreduce", "method": "allreduce", "waits": True}, 'method.kind = "goco"'),
        ({"exchange": "central", "method": "gradient_coding"}, "placement.replication"),
        ({"exchange": "central", "method": "gradient_coding"}, 'method.kind = "sgc"'),
        ({"exchange": "central", "method": "sgc"}, "deadline.compute_factor"),
        ({"waits": True}, 'deadline.gossip_s = "auto"'),
        ({}, "deadline.gossip_factor"),
    ):
        assert words in " ".join(of("waiting", find(facts(**waiting, **changes))).tries)


def test_less_replication_is_only_suggested_where_hardly_any_gradient_was_late() -> None:
    def suggested(**changes: Any) -> bool:
        return "placement.replication = 1" in " ".join(of("computing", find(facts(**changes))).tries)

    assert suggested()
    assert not suggested(late_share=0.2)
    assert not suggested(slow={3: 9.0})
    assert not suggested(replication=1)


def test_ranks_that_shared_cores_are_told_that_seconds_say_little() -> None:
    assert "unknown" not in kinds()
    assert "Ranks shared cores" in of("unknown", find(facts(crowded=True))).text


def test_a_simulation_without_time_says_so_instead_of_guessing() -> None:
    found = find(facts(waiting=float("nan"), computing=float("nan")))
    assert found[0].kind == "unknown"
    assert "goco simulate --time" in " ".join(found[0].tries)
    assert not {"waiting", "computing", "messages"} & {finding.kind for finding in found}


def test_what_falls_is_not_at_its_end_with_what_another_decade_costs() -> None:
    text = of("rounds", find(facts(values=10.0 ** (-ROUNDS / 50.0)))).text
    assert "1.0e-06" in text
    assert "every 50 rounds (25 s)" in text


def test_a_slow_but_steady_fall_is_one_too_and_a_scatter_is_none() -> None:
    slow = 1.0 / (1.0 + ROUNDS / 50.0)
    assert "rounds" in kinds(values=slow)
    # By chance lower at the end than before, but no more than it goes up and down.
    scatter = FLOOR * 10.0 ** (0.2 * (-1.0) ** np.arange(len(ROUNDS)) - ROUNDS / 1000.0)
    assert "rounds" not in kinds(values=scatter)


def test_the_optimum_is_fine() -> None:
    assert "as near as rounding" in find(facts(values=10.0 ** (-ROUNDS / 20.0)))[1].text
    assert "rounds" not in kinds(values=np.maximum(10.0 ** (-ROUNDS / 10.0), 1e-14))


def test_ranks_that_do_not_agree_hold_it_up() -> None:
    # 1/2 curvature spread^2 = 1e-4, as much as the suboptimality that stays.
    found = find(facts(values=FLOOR, spread=np.full(len(ROUNDS), 1e-2)))
    finding = of("mixing", found)
    assert "1.0e-04 of suboptimality, beside 1.0e-04" in finding.text
    assert "push_pull" in " ".join(finding.tries)
    assert "noise" not in [one.kind for one in found]


def test_a_weak_graph_is_named_as_such() -> None:
    spread = np.full(len(ROUNDS), 1e-2)
    text = of("mixing", find(facts(values=FLOOR, spread=spread, spectral_gap=0.01))).text
    assert "0.01, at which agreement takes tens of rounds" in text
    tries = " ".join(of("mixing", find(facts(values=FLOOR, spread=spread, spectral_gap=0.01))).tries)
    assert 'topology.kind = "exponential"' in tries


def test_a_method_without_bias_is_not_suggested_to_those_who_use_one() -> None:
    spread = np.full(len(ROUNDS), 1e-2)
    tries = " ".join(of("mixing", find(facts(values=FLOOR, spread=spread, method="push_pull"))).tries)
    assert "push_pull" not in tries


def test_noise_is_blamed_where_there_is_some_and_the_ranks_agree() -> None:
    assert "minibatches" in of("noise", find(facts(values=FLOOR, minibatches=True))).text
    text = of("noise", find(facts(values=FLOOR, late_share=0.3))).text
    assert "30 % of the gradients were late" in text
    assert "noise" not in kinds(values=FLOOR, late_share=0.3, late="memory")


def test_where_nothing_says_why_it_stays_that_is_said() -> None:
    finding = of("unknown", find(facts(values=FLOOR)))
    assert "Nothing in the record says why" in finding.text
    # Nor where the curvature is unknown, and with it what not agreeing costs.
    assert "unknown" in kinds(values=FLOOR, spread=np.full(len(ROUNDS), 1e-2), curvature=float("nan"))


def test_without_the_optimum_a_flat_loss_is_not_explained() -> None:
    loss = 0.3 + FLOOR
    finding = of("unknown", find(facts(values=loss, optimum_known=False)))
    assert "record.optimum = true" in " ".join(finding.tries)
    assert "rounds" in kinds(values=1.0 / (1.0 + ROUNDS / 50.0), optimum_known=False)


@pytest.mark.parametrize("values", [np.array([1.0, 0.5]), np.full(31, np.nan)])
def test_a_history_that_is_too_short_or_not_finite_is_not_judged(values: np.ndarray) -> None:
    assert "What a round brought is not known" in [
        finding.title for finding in find(facts(values=values, rounds=np.arange(float(len(values)))))
    ]


@pytest.mark.parametrize(
    ("dissimilarity", "replication", "method", "kind"),
    [
        (1e-4, 2, "goco", "good"),  # alike
        (0.045, 4, "goco", "good"),  # evened out: 1/4 of the shards on each rank
        (4.0, 2, "goco", "heterogeneity"),
        (4.0, 2, "push_pull", "heterogeneity"),
        (float("nan"), 2, "goco", "unknown"),
    ],
)
def test_heterogeneity_is_judged_by_how_far_ranks_gradients_are_off(
    dissimilarity: float, replication: int, method: str, kind: str
) -> None:
    found = find(facts(dissimilarity=dissimilarity, replication=replication, method=method))
    assert found[-1].kind == kind
    if kind == "heterogeneity":
        assert bool(found[-1].tries) == (method == "goco")
    if kind == "good":
        assert ("look alike" in found[-1].title) == (dissimilarity < 1e-3)


def test_an_allreduce_has_nothing_to_do_with_differences() -> None:
    assert not {"heterogeneity", "mixing"} & set(kinds(exchange="allreduce", method="allreduce", dissimilarity=4.0))
