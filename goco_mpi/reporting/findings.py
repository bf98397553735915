"""What limited a run, in words: each finding with the numbers it stands on and what to try.

Two questions, which have answers of their own. Where did the *seconds* of a round go: waiting, computing, or the rest,
which is messages and mixing? And what did a *round* bring: was the loss still falling, or held up by ranks that did not
agree (mixing), by gradients that differ (heterogeneity), by noise? Where the record does not tell, that is said.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.metrics import sampled_dissimilarity

Array = NDArray[np.float64]

MUCH = 0.4
"""Share of its seconds in one thing that limits a rank."""
SOME = 0.2
"""Share that is worth a word."""
SLOW = 2.0
"""A rank whose gradients take so many times as long as the median rank's is a slow one."""
FALLING = 1.1
"""By so many times at least the suboptimality falls in the last third of a run that was not at its end."""
DECREASE = 0.01
"""The same where the optimum is not known: part of the whole decrease of the loss."""
ROUNDING = 1e-12
"""Suboptimality that cannot be told from the optimum."""
LATE = 0.01
"""Part of the gradients whose loss is worth a word."""
EXPLAINS = 0.1
"""What ranks lose by not agreeing, over the suboptimality, from which on the first may be why the second stays."""
WEAK_GAP = 0.1
"""Spectral gap below which agreement takes tens of rounds."""
ALIKE = 0.1
"""Ranks' gradients that are off by less, relative to their mean, leave little to gain by making them more alike."""

Kind = Literal["waiting", "computing", "messages", "mixing", "heterogeneity", "noise", "rounds", "good", "unknown"]


@dataclass(frozen=True)
class Finding:
    """One thing that limited a run, or did not.

    Attributes
    ----------
    kind : str
    title : str
    text : str
        Why, with the numbers.
    tries : tuple of str
        What to try; keys of the experiment file and commands between backquotes.
    """

    kind: Kind
    title: str
    text: str
    tries: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Facts:
    """What findings stand on. None, NaN or empty where the record does not say.

    Attributes
    ----------
    exchange : {'gossip', 'allreduce', 'central'}
    method, late : str
    waits : bool
        Whether every round waits for all: infinite deadlines, or an allreduce.
    waiting, computing : float
        Shares of its time of the median rank.
    slow : dict of int to float
        Ranks whose gradients took more than `SLOW` times the median rank's, and how many times.
    late_share : float
        Part of all gradients that was dropped, or used in part only.
    stale_share : float
        Part of the neighbours' vectors that were not of the same round when it was mixed.
    crowded : bool
        Whether several ranks shared a core.
    rounds, values, spread : ndarray
        Of the history: the round, suboptimality or loss, consensus distance.
    optimum_known : bool
        Whether ``values`` is the suboptimality.
    scale : float
        F(start) - F*, by which a suboptimality becomes a loss.
    seconds_a_round : float
    curvature : float
        Largest curvature of the loss at the start.
    spectral_gap : float
    dissimilarity : float
        Of the shards' gradients at 0 (`goco_mpi.core.metrics.gradient_dissimilarity`).
    n_shards, n_ranks, replication : int
    minibatches : bool
    stopped_by : str
    """

    exchange: str = "gossip"
    method: str = "goco"
    late: str = "discard"
    waits: bool = False
    waiting: float = math.nan
    computing: float = math.nan
    slow: dict[int, float] = field(default_factory=dict)
    late_share: float = math.nan
    stale_share: float = math.nan
    crowded: bool = False
    rounds: Array = field(default_factory=lambda: np.zeros(0))
    values: Array = field(default_factory=lambda: np.zeros(0))
    spread: Array = field(default_factory=lambda: np.zeros(0))
    optimum_known: bool = False
    scale: float = math.nan
    seconds_a_round: float = math.nan
    curvature: float = math.nan
    spectral_gap: float = math.nan
    dissimilarity: float = math.nan
    n_shards: int = 1
    n_ranks: int = 1
    replication: int = 1
    minibatches: bool = False
    stopped_by: str = "rounds"


def find(facts: Facts) -> list[Finding]:
    """Return what limited a run: first where its seconds went, then what a round brought."""
    return [*seconds(facts), *progress(facts), *differences(facts)]


def seconds(facts: Facts) -> list[Finding]:
    """Return where the seconds went."""
    if math.isnan(facts.waiting) or math.isnan(facts.computing):
        return [
            Finding(
                "unknown",
                "Where the time went is not known",
                "No time passes in a simulation in rounds.",
                ("`goco simulate --time` for seconds by a cost model, or a real run",),
            )
        ]
    shares = {"waiting": facts.waiting, "computing": facts.computing}
    shares["messages"] = max(1.0 - sum(shares.values()), 0.0)
    most = max(shares, key=lambda name: shares[name])
    told = (
        f"Of its time the median rank computed {_percent(facts.computing)}, waited {_percent(facts.waiting)} and spent "
        f"{_percent(shares['messages'])} on messages and mixing."
    )
    finders = {"waiting": _waiting, "computing": _computing, "messages": _messages}
    found = [finders[most](facts, told)]
    if most != "waiting" and facts.waiting >= SOME:
        text = f"{_percent(facts.waiting)} of the median rank's time. {_who_was_slow(facts)}"
        found.append(Finding("waiting", "Waiting cost time too", text.strip(), _against_waiting(facts)))
    if facts.crowded:
        found.append(
            Finding(
                "unknown",
                "The seconds are those of a crowded machine",
                "Ranks shared cores, and waited for them as well as for each other: shares of time and rounds a second "
                "say little of one rank a node.",
                ("a rank a node, or at most one a core",),
            )
        )
    return found


def _waiting(facts: Facts, told: str) -> Finding:
    return Finding("waiting", "Waiting limited it", f"{told} {_who_was_slow(facts)}".strip(), _against_waiting(facts))


def _computing(facts: Facts, told: str) -> Finding:
    text = told
    tries = ["more ranks: `goco plan RUN --nodes N` says what they would gain"]
    if facts.slow:
        text += f" {_who_was_slow(facts)}"
        if facts.waiting < SOME:
            text += " The others hardly waited."
    if facts.replication > 1:
        text += f" Every shard is on {facts.replication} ranks, which is {facts.replication} times the gradient work."
        if not facts.slow and not facts.late_share > LATE:
            tries.insert(
                0,
                "`placement.replication = 1`, as hardly any gradient was late: what it gives up is in `goco plan RUN`",
            )
    if not facts.minibatches:
        tries.append("`data.batch_size`: cheaper gradients, which are noisy")
    return Finding("computing", "Computing limited it", text, tuple(tries))


def _messages(facts: Facts, told: str) -> Finding:
    tries: list[str] = []
    if facts.exchange == "gossip":
        tries.append('fewer neighbours: `topology.kind = "ring"` or a `random_regular` of low `topology.degree`')
        if facts.method in ("goco", "dgd"):
            tries.append("shorter messages: `method.compression`")
    tries.append("fewer ranks: each then has more to compute between two messages")
    return Finding("messages", "Messages and mixing limited it", told, tuple(tries))


def _who_was_slow(facts: Facts) -> str:
    if not facts.slow:
        if facts.waits and facts.exchange != "central":
            return "Every round waits for everybody: now one rank was late, now another, and none throughout."
        return "No rank was slow throughout."
    worst = sorted(facts.slow, key=lambda rank: -facts.slow[rank])
    names = ", ".join(f"rank {rank} ({facts.slow[rank]:.1f} times)" for rank in worst[:4])
    more = f" and {len(worst) - 4} more" if len(worst) > 4 else ""
    text = f"Gradients took longer than the median rank's on {names}{more}"
    return text + (", and every round waits for everybody." if facts.waits and facts.exchange != "central" else ".")


def _against_waiting(facts: Facts) -> tuple[str, ...]:
    if facts.exchange == "allreduce":
        return (
            'gossip, which skips who is late: `method.kind = "goco"`, `"push_pull"` or `"table_newton"`',
            "`goco plan RUN`: what that gains here",
        )
    if facts.exchange == "central":
        return (
            "a code that tolerates more stragglers: a higher `placement.replication`",
            '`method.kind = "sgc"`, which has a deadline',
        )
    if facts.waits:
        return (
            'deadlines: `deadline.gossip_s = "auto"` and `deadline.compute_s = "auto"`',
            '`method.late = "memory"` or `"partial"`, so that late gradients count',
        )
    return (
        "a shorter deadline: a smaller `deadline.gossip_factor`, or seconds in `deadline.gossip_s`",
        "if messages are what is late: `method.compression`, or fewer neighbours",
    )


def progress(facts: Facts) -> list[Finding]:
    """Return what the last rounds brought, and what held them up."""
    rounds, values = facts.rounds, facts.values
    if len(rounds) < 4 or not np.isfinite(values).all():
        text = "The history has too few rows to tell." if len(rounds) < 4 else "The loss is not finite everywhere."
        return [Finding("unknown", "What a round brought is not known", text, ("a smaller `record.every`",))]
    if facts.optimum_known:
        return _by_suboptimality(facts, rounds, np.maximum(values, 0.0))
    decrease = values[0] - values[-1]
    late = float(np.interp(_two_thirds(rounds), rounds, values)) - values[-1]
    if decrease > 0.0 and late >= DECREASE * decrease:
        text = f"The last third of the rounds brought {_percent(late / decrease)} of the whole decrease of the loss."
        return [Finding("rounds", "It was not at its end", text, (_more_rounds(facts), *_quicker_rounds(facts)))]
    return [
        Finding(
            "unknown",
            "The loss hardly fell any more",
            "The last third of the rounds brought less than 1 % of its whole decrease. Whether it is at the optimum or "
            "held up before it cannot be told, as the optimum is not in the record.",
            ("`record.optimum = true`",),
        ),
    ]


def _by_suboptimality(facts: Facts, rounds: Array, gaps: Array) -> list[Finding]:
    end = float(gaps[-1])
    if end <= ROUNDING:
        text = f"The suboptimality ended at {end:.1g}, as near as rounding lets it."
        return [Finding("good", "It reached the optimum", text, ("fewer rounds, or `stop.target_loss`",))]
    logs = np.log10(np.maximum(gaps, 1e-300))
    tail = rounds >= _two_thirds(rounds)
    tail[-2:] = True
    line = np.polyfit(rounds[tail], logs[tail], 1)
    decades = -float(line[0]) * float(rounds[-1] - rounds[tail][0])
    scatter = float(np.std(logs[tail] - np.polyval(line, rounds[tail])))
    if decades >= max(math.log10(FALLING), 2.0 * scatter):
        each = float(rounds[-1] - rounds[tail][0]) / decades
        time = f" ({each * facts.seconds_a_round:.2g} s)" if math.isfinite(facts.seconds_a_round) else ""
        text = (
            f"The suboptimality was {end:.1e} and still falling, by another factor of 10 every {each:.3g} "
            f"rounds{time} at the end."
        )
        return [
            Finding("rounds", "It was not at its end", text, (_more_rounds(facts), *_quicker_rounds(facts))),
            *_agreement(facts, end, stays=False),
        ]
    return _held_up(facts, end)


def _held_up(facts: Facts, end: float) -> list[Finding]:
    """Return why the suboptimality stays where it is."""
    stays = f"The suboptimality hardly fell in the last third of the rounds, and ended at {end:.1e}."
    agreement = _agreement(facts, end, stays=True)
    if agreement and facts.exchange == "gossip":
        first = agreement[0]
        return [Finding(first.kind, first.title, f"{stays} {first.text}", first.tries)]
    noise = []
    if facts.minibatches:
        noise.append("gradients are of minibatches")
    if facts.late_share > LATE and facts.late in ("discard", "partial"):
        noise.append(f"{_percent(facts.late_share)} of the gradients were late and dropped, or used in part")
    if noise:
        shorter = ["a step that becomes shorter: `step.tau`, or a smaller `step.scale`"]
        if facts.minibatches:
            shorter.append("a larger `data.batch_size`")
        if facts.late_share > LATE:
            shorter.append('`method.late = "memory"`, with which no gradient is lost')
        text = f"{stays} The ranks agree more closely than that, so that noise is left: {' and '.join(noise)}."
        return [Finding("noise", "Noise limited it", text, tuple(shorter))]
    text = (
        f"{stays} Nothing in the record says why: as far as is known the ranks agree more closely than that, and no "
        "gradient was lost."
    )
    tries = ("another `step.scale`", "more rounds, to see whether it stays")
    return [Finding("unknown", "It was held up, and why is not known", text, tries)]


def _agreement(facts: Facts, end: float, stays: bool) -> list[Finding]:
    """Return what not agreeing costs, where it is much beside the suboptimality."""
    if facts.exchange != "gossip" or not facts.spread.size or not facts.spread[-1] > 0.0:
        return []
    cost = 0.5 * facts.curvature * float(facts.spread[-1]) ** 2 / facts.scale
    if not cost >= (EXPLAINS if stays else 1.0) * end:  # NaN included
        return []
    text = (
        f"At the end the ranks were {facts.spread[-1]:.2g} apart (consensus distance), which may cost each of them up "
        f"to {cost:.1e} of suboptimality, beside {end:.1e} at their mean."
    )
    tries = ["a shorter step: a smaller `step.scale`, or `step.tau`"]
    if facts.method in ("goco", "dgd"):
        tries.insert(0, 'a method without that bias: `method.kind = "push_pull"` or `"exact_diffusion"`')
        if facts.waits:
            tries.append("`method.gossip_rounds`")
    if math.isfinite(facts.spectral_gap):
        text += f" The graph's spectral gap is {facts.spectral_gap:.2g}"
        text += ", at which agreement takes tens of rounds." if facts.spectral_gap < WEAK_GAP else "."
        if facts.spectral_gap < 0.5:
            tries.append('a graph that mixes faster: `topology.kind = "exponential"` or `"complete"`')
    return [
        Finding(
            "mixing", "Mixing limited it" if stays else "The ranks agree less than they are right", text, tuple(tries)
        )
    ]


def differences(facts: Facts) -> list[Finding]:
    """Return whether the shards differ, as far as that matters to the method."""
    if facts.exchange != "gossip" or facts.n_ranks < 2:
        return []
    if math.isnan(facts.dissimilarity):
        return [
            Finding(
                "unknown",
                "How much the shards differ is not in the record",
                "It was written without the gradient dissimilarity: heterogeneity can be neither blamed nor ruled out.",
                ("`goco plan RUN`",),
            )
        ]
    off = {copies: _off(facts, copies) for copies in (1, facts.replication)}
    text = f"The shards' gradient dissimilarity at 0 is {facts.dissimilarity:.2g}: "
    if facts.replication > 1:
        text += (
            f"with every shard on {facts.replication} ranks their gradients are off by about "
            f"{_percent(off[facts.replication])} of the mean, with one copy of each by {_percent(off[1])}."
        )
    else:
        text += f"ranks' gradients are off by about {_percent(off[1])} of the mean."
    if off[1] < ALIKE:
        text += " There is little for replication to even out there; further on they may differ more."
        one = "`placement.replication = 1`, if no rank is slow or may die"
        return [Finding("good", "The shards look alike at the start", text, (one,) if facts.replication > 1 else ())]
    if off[facts.replication] < ALIKE:
        return [Finding("good", "Replication evens the shards out at the start", text)]
    exact = facts.method not in ("goco", "dgd")
    text += " The method makes up for that." if exact else ""
    tries = (
        ()
        if exact
        else (
            "a higher `placement.replication`",
            'a method that makes up for it: `method.kind = "push_pull"`, `"exact_diffusion"` or `"table_newton"`',
            '`data.partition = "iid"`, where data may be moved',
        )
    )
    return [Finding("heterogeneity", "The shards differ", text, tries)]


def _off(facts: Facts, copies: int) -> float:
    """Return how far a rank's gradient is from the mean over all, relative to that, with so many copies of a shard."""
    held = min(max(1, round(copies * facts.n_shards / facts.n_ranks)), facts.n_shards)
    return math.sqrt(sampled_dissimilarity(facts.dissimilarity, facts.n_shards, held))


def _two_thirds(rounds: Array) -> float:
    return float(rounds[0] + 2.0 * (rounds[-1] - rounds[0]) / 3.0)


def _more_rounds(facts: Facts) -> str:
    return (
        "more `rounds`"
        if facts.stopped_by == "rounds"
        else f"a later end: it was stopped by `{_stop_name(facts.stopped_by)}`"
    )


def _stop_name(stopped_by: str) -> str:
    return f"stop.{stopped_by}" if stopped_by in ("target_loss", "gradient_norm", "time_limit_s") else stopped_by


def _quicker_rounds(facts: Facts) -> Sequence[str]:
    if facts.exchange == "gossip" and facts.method in ("goco", "dgd", "push_pull", "exact_diffusion"):
        return (
            "a longer step: a larger `step.scale`",
            'a method that needs fewer rounds: `"table_newton"` on a complete or rook graph'
            + (", or `method.momentum`" if facts.method in ("goco", "dgd") else ""),
        )
    if facts.exchange == "allreduce":
        return ('a solver that needs fewer rounds: `method.solver = "cg"` or `"lbfgs"`',)
    return ()


def _percent(share: float) -> str:
    """Return a share as text.

    Examples
    --------
    >>> _percent(0.256), _percent(0.0004), _percent(0.0)
    ('26 %', '0.04 %', '0 %')
    """
    if share >= 0.01 or share <= 0.0:
        return f"{100 * share:.0f} %"
    return f"{100 * share:.1g} %"
