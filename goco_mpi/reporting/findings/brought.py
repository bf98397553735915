"""What a round brought: a loss that still falls, or what held it up."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from goco_mpi.core.metrics import sampled_dissimilarity
from goco_mpi.reporting.findings.facts import LATE, Array, Facts, Finding, percent

FALLING = 1.1
"""By so many times at least the suboptimality falls in the last third of a run that was not at its end."""
DECREASE = 0.01
"""The same where the optimum is not known: part of the whole decrease of the loss."""
ROUNDING = 1e-12
"""Suboptimality that cannot be told from the optimum."""
EXPLAINS = 0.1
"""What ranks lose by not agreeing, over the suboptimality, from which on the first may be why the second stays."""
WEAK_GAP = 0.1
"""Spectral gap below which agreement takes tens of rounds."""
ALIKE = 0.1
"""Ranks' gradients that are off by less, relative to their mean, leave little to gain by making them more alike."""


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
        text = f"The last third of the rounds brought {percent(late / decrease)} of the whole decrease of the loss."
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
        noise.append(f"{percent(facts.late_share)} of the gradients were late and dropped, or used in part")
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
            f"{percent(off[facts.replication])} of the mean, with one copy of each by {percent(off[1])}."
        )
    else:
        text += f"ranks' gradients are off by about {percent(off[1])} of the mean."
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
