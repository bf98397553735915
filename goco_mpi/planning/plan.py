"""What a plan says: which method, replication, graph, late policy and deadline, and what they are worth."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from goco_mpi import terminal
from goco_mpi.config import flat
from goco_mpi.core import metrics

FEW = 5
"""Rounds in which nothing is decided yet."""
ALIKE = 0.1
"""Gradients of ranks that are off by less, relative to their mean, leave little to gain by making them more alike."""
LITTLE = 0.25
"""Messages that take less than this part of a gradient leave a round compute-bound."""


@dataclass(frozen=True)
class Choice:
    """What a candidate is, in the experiment's own keys.

    Attributes
    ----------
    kind, late : str
        ``method.kind`` and ``method.late``.
    replication : int
    graph : str
        ``topology.kind``.
    degree : int
        ``topology.degree``, of ``random_regular``.
    compute_s, gossip_s : float or str
        ``[deadline]``.
    """

    kind: str
    replication: int
    graph: str
    degree: int = 6
    late: str = "discard"
    compute_s: float | str = "auto"
    gossip_s: float | str = "auto"

    @property
    def coded(self) -> bool:
        """Whether shards have more than one holder."""
        return self.replication > 1

    def settings(self) -> dict[str, dict[str, Any]]:
        """Return the tables of an experiment that make it this."""
        if self.kind == "allreduce":
            return {"method": {"kind": "allreduce"}}
        topology = {"kind": self.graph, **({"degree": self.degree} if self.graph == "random_regular" else {})}
        return {
            "method": {"kind": self.kind, "late": self.late},
            "placement": {"kind": "pairwise_balanced", "replication": self.replication},
            "topology": topology,
            "deadline": {"compute_s": self.compute_s, "gossip_s": self.gossip_s},
        }


@dataclass(frozen=True)
class Candidate:
    """A choice and what its simulation gave.

    Attributes
    ----------
    choice : Choice
    step : dict
        Its ``[step]``, with the best of the step sizes tried.
    seconds : float or None
        To the gap; None where that was not reached.
    rounds : int or None
    reason : str
        Why it was not reached; empty where it was.
    """

    choice: Choice
    step: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    rounds: int | None = None
    reason: str = ""

    def settings(self) -> dict[str, dict[str, Any]]:
        """Return the tables of an experiment that make it this."""
        return {**self.choice.settings(), "step": {key: value for key, value in self.step.items() if value is not None}}


@dataclass(frozen=True, eq=False)
class Plan:
    """What was found.

    Attributes
    ----------
    n_workers : int
    gap : float
    candidates : list of Candidate
        In the order in which they were tried.
    best : Candidate or None
        None where no candidate reached the gap.
    verdict : {'code', 'uncoded', 'allreduce', 'none'}
    allreduce, uncoded : Candidate
        What the best is compared with; ``uncoded`` is the fastest gossip with one holder a shard.
    survives : int
        Workers that may die without a shard being lost, by the best choice's placement.
    loss_probability : dict of float to float
        Probability that a shard is lost, by share of dead workers.
    message_share : float
        Seconds of a round's messages on the exponential graph, over those of a usual gradient without replication.
    dead : list of int
        Workers that never finish a gradient.
    n_shards : int
    gradient_dissimilarity : float or None
        Of the shards at 0 (`goco_mpi.core.metrics.gradient_dissimilarity`).
    """

    n_workers: int
    gap: float
    candidates: list[Candidate]
    best: Candidate | None
    verdict: str
    allreduce: Candidate
    uncoded: Candidate
    survives: int
    loss_probability: dict[float, float]
    message_share: float
    dead: list[int]
    n_shards: int = 1
    gradient_dissimilarity: float | None = None

    def gain_over(self, other: Candidate) -> float | None:
        """Return how many times as long another candidate takes as the best; infinite where it never gets there."""
        if self.best is None or self.best.seconds is None:
            return None
        return math.inf if other.seconds is None else other.seconds / self.best.seconds


def describe(choice: Choice) -> str:
    """Return a choice in words.

    Examples
    --------
    >>> describe(Choice("goco", 2, "ring", late="memory"))
    'goco, d = 2, memory, ring'
    """
    if choice.kind == "allreduce":
        return "allreduce"
    graph = f"{choice.graph} {choice.degree}" if choice.graph == "random_regular" else choice.graph
    words = [choice.kind, f"d = {choice.replication}", choice.late, graph.replace("_", " ")]
    if choice.late != "wait":
        words += [f"{name} = {value}" for name, value in _deadlines(choice) if value != "auto"]
    return ", ".join(words)


def _deadlines(choice: Choice) -> Sequence[tuple[str, float | str]]:
    return ("compute_s", choice.compute_s), ("gossip_s", choice.gossip_s)


def to_json(plan: Plan) -> str:
    """Return a plan as JSON; what is never reached, or never ends, is null."""

    def candidate(found: Candidate | None) -> dict[str, Any] | None:
        if found is None:
            return None
        return {
            "choice": describe(found.choice),
            "settings": found.settings(),
            "seconds": found.seconds,
            "rounds": found.rounds,
            "reason": found.reason,
        }

    def finite(value: float | None) -> float | None:
        return value if value is not None and math.isfinite(value) else None

    document = {
        "nodes": plan.n_workers,
        "gap": plan.gap,
        "verdict": plan.verdict,
        "best": candidate(plan.best),
        "gain_over_allreduce": finite(plan.gain_over(plan.allreduce)),
        "gain_over_uncoded": finite(plan.gain_over(plan.uncoded)),
        "survives": plan.survives,
        "loss_probability": {f"{rho:g}": p for rho, p in plan.loss_probability.items()},
        "message_share": plan.message_share,
        "dead": plan.dead,
        "gradient_dissimilarity": plan.gradient_dissimilarity,
        "candidates": [candidate(found) for found in plan.candidates],
        "words": words(plan),
    }
    return json.dumps(document, indent=2)


def words(plan: Plan) -> list[str]:
    """Return the plan in sentences."""
    said = [_verdict(plan)]
    bound = "compute-bound, where replication is dear" if plan.message_share < LITTLE else "not compute-bound"
    said.append(
        f"The messages of a round take {_percent(plan.message_share)} of the time of a gradient without replication: "
        f"rounds are {bound}."
    )
    if plan.gradient_dissimilarity is not None:
        said.append(_differences(plan.gradient_dissimilarity, plan.n_shards, plan.n_workers))
    if plan.dead:
        said.append(
            f"Ranks {plan.dead} finish no gradient at all: allreduce would wait for them, and with one holder a shard "
            f"their data would be lost, however fast that is. Only more than {len(plan.dead)} holders a shard count."
        )
    if plan.best is not None:
        said.append(_survival(plan))
        if (plan.best.rounds or 0) < FEW:
            said.append(
                f"It takes only {plan.best.rounds} rounds: a gap of {plan.gap:g} is too near the start to tell much "
                "apart. Ask for a smaller --gap."
            )
    return said


def _verdict(plan: Plan) -> str:
    if plan.best is None:
        return (
            f"No candidate comes to a gap of {plan.gap:g}. Raise rounds, lower step.scale, or ask for a larger --gap."
        )
    there = f"{describe(plan.best.choice)} is there in {_time(plan.best)}"
    if plan.verdict == "allreduce":
        return (
            f"Do not gossip: {there}, and no gossip is clearly faster "
            f"(the best without replication, {describe(plan.uncoded.choice)}: {_time(plan.uncoded)})."
        )
    if plan.verdict == "uncoded":
        return (
            f"Do not code: {there}, {_gain(plan, plan.allreduce)}, and no replication is clearly faster: d holders of "
            "every shard cost d times the gradient work."
        )
    return f"Code: {there}, {_gain(plan, plan.allreduce)}; {_gain(plan, plan.uncoded)}, without replication."


def _differences(dissimilarity: float, n_shards: int, n_workers: int) -> str:
    """Return how far a rank's gradient over its shards is from that over all, with and without replication."""

    def off(replication: int) -> float:
        held = min(max(1, round(replication * n_shards / n_workers)), n_shards)
        return math.sqrt(metrics.sampled_dissimilarity(dissimilarity, n_shards, held))

    meaning = (
        "they are so alike that replication makes little difference to them"
        if off(1) < ALIKE
        else f"with two holders a shard by {_percent(off(2))}, which is what replication gains"
    )
    return (
        f"The shards' gradient dissimilarity at 0 is {dissimilarity:.2g}: with one holder a shard, ranks' gradients "
        f"are off by about {_percent(off(1))} of their mean; {meaning}."
    )


def _survival(plan: Plan) -> str:
    chances = ", ".join(f"{_percent(p)} with {100 * rho:g} % dead" for rho, p in plan.loss_probability.items())
    ranks = f"any {plan.survives} ranks" if plan.survives else "no rank"
    return f"The placement can lose {ranks} without losing a shard; at random, a shard is lost in {chances}."


def _percent(share: float) -> str:
    """Return a share in percent, to two digits or whole ones.

    Examples
    --------
    >>> _percent(0.0123), _percent(2.6)
    ('1.2 %', '260 %')
    """
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def _time(candidate: Candidate) -> str:
    return "never" if candidate.seconds is None else f"{candidate.seconds:.3g} s"


def _gain(plan: Plan, other: Candidate) -> str:
    gain, name = plan.gain_over(other), describe(other.choice)
    assert gain is not None  # only asked of a best that got there
    if math.isinf(gain):
        return f"where {name} does not get ({other.reason})"
    return f"{gain:.2g} times as fast as {name}"


def print_plan(plan: Plan) -> None:
    """Print a table of all candidates, the plan in sentences, and its settings."""
    from rich.table import Table

    table = Table(
        header_style="bold", title=f"to a gap of {plan.gap:g} on {plan.n_workers} ranks", title_justify="left"
    )
    table.add_column("candidate")
    for title in ("seconds", "rounds", "times the best"):
        table.add_column(title, justify="right")
    table.add_column("")
    best_s = None if plan.best is None else plan.best.seconds
    for found in plan.candidates:
        ratio = found.seconds / best_s if found.seconds is not None and best_s else None
        table.add_row(
            describe(found.choice),
            "-" if found.seconds is None else f"{found.seconds:.3g}",
            "-" if found.rounds is None else str(found.rounds),
            "-" if ratio is None else f"{ratio:.2f}",
            found.reason,
            style="bold" if found is plan.best else None,
        )
    console = terminal.console()
    console.print(table)
    for sentence in words(plan):
        console.print(sentence, soft_wrap=True, highlight=False)
    if plan.best is not None:
        settings = " ".join(f"--set {key}={value}" for key, value in flat(plan.best.settings()).items())
        console.print(f"settings: {settings}", soft_wrap=True, highlight=False)
