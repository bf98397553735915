"""Figures of a page with what is said of them: a caption, and a text for those who do not see them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from goco_mpi.reporting import curves, pictures
from goco_mpi.reporting.account import Account
from goco_mpi.reporting.activity import SLOW, State
from goco_mpi.reporting.figures import AGAINST
from goco_mpi.reporting.svg import WIDTH

if TYPE_CHECKING:
    from markupsafe import Markup


LASTING = 0.1
"""Part of its time in which a rank was slow, skipped or suspected that is worth telling."""


@dataclass(frozen=True)
class Shown:
    """A figure.

    Attributes
    ----------
    picture : Markup or None
        SVG; None where there is nothing to draw, which ``caption`` then explains.
    caption : str
    alt : str
        What is to be seen, in words.
    narrow : Markup or None
        The same for a narrow page, where it is another.
    """

    picture: Markup | None
    caption: str
    alt: str = ""
    narrow: Markup | None = None


@dataclass(frozen=True)
class Section:
    """Figures of one run."""

    name: str
    place: int
    figures: list[Shown]
    legend: list[tuple[str, str]]


def progress(runs: Sequence[Account]) -> list[Shown]:
    """Return the progress of all runs against what it cost, and their consensus distance."""
    column = curves.measure(runs)
    words = "Suboptimality" if column == "suboptimality" else "Loss"
    found = []
    for cost, (title, unit) in AGAINST.items():
        knowing = [run for run in runs if curves.known(run, cost)]
        if not knowing:
            found.append(Shown(None, f"{words} against {title}: no record says what it took."))
            continue
        ends = "; ".join(
            f"{run.name} {run.record.history[column][0]:.2g} to {run.record.history[column][-1]:.2g} "
            f"in {run.record.history[cost][-1] / unit:.3g}"
            for run in knowing
        )
        left_out = [run.name for run in runs if run not in knowing]
        more = f" Not known of {', '.join(left_out)}." if left_out else ""
        found.append(Shown(_markup(curves.progress(runs, cost)), f"{words} against {title}.{more}", f"{title}: {ends}"))
    last = "; ".join(f"{run.name} {run.record.history['consensus_distance'][-1]:.2g} at the end" for run in runs)
    caption = "Consensus distance: how far the ranks' parameters are from their mean, as root mean square."
    return [*found, Shown(_markup(curves.consensus(runs)), caption, f"consensus distance: {last}")]


def activity(run: Account, place: int) -> Section:
    """Return who was slow when, and what the ranks' time went into."""
    figures, legend = [], []
    found = run.activity
    if found is None:
        figures.append(Shown(None, f"Who was slow when is not known. {run.missing['activity']}"))
    else:
        told = [
            f"rank {rank} {word} {100 * share:.0f} %"
            for rank in range(len(found.states))
            for word, share in (
                ("slow", found.share(rank, State.SLOW)),
                ("skipped", found.share(rank, State.SKIPPED)),
                ("suspected", found.share_suspected(rank)),
            )
            if share >= LASTING
        ]
        stacked = found.timed and run.n_ranks <= pictures.NAMED
        caption = (
            "What each rank did; where a column covers several things, each has its share of the height. "
            if stacked
            else "What each rank mostly did. "
        )
        caption += (
            f"Slow: a gradient that took more than {SLOW:g} times the usual. Skipped: most neighbours mixed without "
            "its vector of the round. Suspected, the stripe: most neighbours had stopped waiting for it."
            if found.timed
            else "By rounds, as times were not kept (record.timeline = true). Slow: fewer than half the gradients of "
            "the median rank. Skipped: most neighbours mixed without its vector of the round."
        )
        more = [f"and {len(told) - 12} more"] if len(told) > 12 else []
        alt = "; ".join(told[:12] + more) or "No rank was slow, skipped or suspected for long"
        wide = _markup(pictures.heat_map(run, f"heat-{place}"))
        narrow = _markup(pictures.heat_map(run, f"heat-narrow-{place}", WIDTH))
        figures.append(Shown(wide, caption, alt, narrow))
        present = set(np.unique(found.states).tolist())
        legend = [pictures.STATES[state] for state in pictures.STATES if int(state) in present]
        legend += [pictures.SUSPECTED] if found.suspected.any() else []
    if run.timed and all({"compute_s", "wait_s", "wall_s"} <= row.keys() for row in run.record.ranks):
        facts = run.facts()
        alt = f"Median rank: computing {100 * facts.computing:.0f} %, waiting {100 * facts.waiting:.0f} %."
        caption = "Where each rank's time went. Computing includes gossip in the middle of a gradient, but no waiting."
        figures.append(Shown(_markup(pictures.seconds(run, f"seconds-{place}")), caption, alt))
    else:
        why = run.missing.get("seconds", "The record has no such columns.")
        figures.append(Shown(None, f"Where each rank's time went is not known. {why}"))
    rates = run.completion
    if np.isfinite(rates).any():
        low = int(np.nanargmin(rates))
        rank = int(run.record.ranks[low]["rank"])
        alt = f"From {np.nanmin(rates):.2f} (rank {rank}) to {np.nanmax(rates):.2f} gradients a round."
        caption = "Completion rates: gradients that a rank finished, a round."
        figures.append(Shown(_markup(pictures.completion(run, f"completion-{place}")), caption + _stated(run), alt))
    else:
        figures.append(Shown(None, "Completion rates are not known: the run was simulated, or its record is older."))
    return Section(run.name, place, figures, legend)


def _stated(run: Account) -> str:
    """Return what the weights make of the rates, and where they had them from; empty where there are no weights."""
    if run.config is None or run.layout is None or run.exchange != "gossip":
        return ""
    text, rates = " Encoding weights make up for those below 1.", run.config.method.rates
    if rates != "stated":
        return f"{text} The ranks told each other theirs (method.rates = {rates})."
    stated = run.layout.completion_rates
    if (stated == 1.0).all():
        return f"{text} The weights of this run took all ranks to finish always."
    low, high = f"{stated.min():.2g}", f"{stated.max():.2g}"
    return f"{text} The weights of this run were for stated rates of {low if low == high else f'{low} to {high}'}."


def ages(runs: Sequence[Account]) -> list[Shown]:
    """Return how old the vectors were that were mixed."""
    known = [run for run in runs if run.age_shares is not None]
    found = []
    if known:
        told = []
        for run in known:
            shares, unused = run.age_shares or (np.zeros(1), 0.0)
            old = 100 * (1.0 - shares[0] - unused)
            told.append(
                f"{run.name}: {100 * shares[0]:.3g} % of the same round, {old:.2g} % older, "
                f"{100 * unused:.2g} % not used"
            )
        caption = (
            "Age of the neighbours' newest vectors when they were mixed; not used are those too old for the rule, "
            "or not there."
        )
        found.append(Shown(_markup(pictures.old_values(runs)), caption, "; ".join(told)))
    found += [
        Shown(None, f"{run.name}: ages of vectors are not known. {run.missing.get('ages', '')}")
        for run in runs
        if run not in known
    ]
    return found


def layouts(runs: Sequence[Account]) -> list[Section]:
    """Return graph, placement and coverage of each run."""
    return [Section(run.name, place, _layout(run, place), []) for place, run in enumerate(runs)]


def _layout(run: Account, place: int) -> list[Shown]:
    if run.layout is None or run.config is None:
        return [Shown(None, f"Graph and shards are not known. {run.missing['layout']}")]
    topology, held = run.layout.topology, run.layout.placement
    found = []
    if run.exchange == "allreduce":
        found.append(Shown(None, "There is no graph: all ranks took part in an allreduce."))
    else:
        alt = f"{run.config.topology.kind} of {run.n_ranks} ranks, {len(topology.edges)} edges."
        gap = "" if run.spectral_gap is None else f" Spectral gap {run.spectral_gap:.3g}: {_mixes(run.spectral_gap)}"
        who = "Who gossips with whom" if run.exchange == "gossip" else "Who works for the master, rank 0"
        caption = (
            f"{who}: {run.config.topology.kind.replace('_', ' ')}, "
            f"{_range(topology.degrees, 'neighbour')} each, diameter {topology.diameter}.{gap}"
        )
        if np.isfinite(run.completion).any():
            caption += " The darker a rank, the fewer gradients it finished"
            caption += "; grey ones died." if run.result.get("deaths") else "."
        found.append(Shown(_markup(pictures.graph(run, f"graph-{place}")), caption, alt))
    caption = (
        f"Who holds which shard: {run.config.placement.kind.replace('_', ' ')}, {_range(held.replication, 'holder')} a "
        f"shard, {_range(held.load, 'shard')} a rank."
    )
    found.append(Shown(_markup(pictures.placement(run, f"placement-{place}")), caption, caption))
    if run.coverage is None:
        why = (
            "ranks died."
            if run.result.get("deaths")
            else "the record does not say how many gradients each rank finished."
        )
        found.append(Shown(None, f"How well shards were covered is not known: {why}"))
    else:
        low = int(np.argmin(run.coverage))
        alt = f"Least: shard {low}, of whose holders ({held.replication[low]}) {run.coverage[low]:.2g} finish."
        caption = f"Coverage: how many holders of each shard finish a gradient in a round, on average. {alt}"
        found.append(Shown(_markup(pictures.coverage(run, f"coverage-{place}")), caption, alt))
    return found


def _mixes(gap: float) -> str:
    """Return what a spectral gap means."""
    if gap >= 1.0:
        return "one round of gossip makes all ranks agree."
    if gap <= 0.0:
        return "gossip never makes the ranks agree."
    rounds = np.log(10.0) / -np.log1p(-gap)
    return f"ranks come ten times closer to each other in {max(rounds, 1.0):.2g} rounds of gossip."


def _range(values: NDArray[np.int64], word: str) -> str:
    low, high = int(values.min()), int(values.max())
    plural = word if low == high == 1 else f"{word}s"
    return f"{low} {plural}" if low == high else f"{low} to {high} {plural}"


def _markup(svg: str) -> Markup:
    """Return an SVG of ours, in which matplotlib has escaped what comes from a record."""
    from markupsafe import Markup

    return Markup(svg)
