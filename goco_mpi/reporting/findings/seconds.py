"""Where the seconds of a run went: waiting, computing, or messages and mixing."""

from __future__ import annotations

import math

from goco_mpi.reporting.findings.facts import LATE, Facts, Finding, percent

SOME = 0.2
"""Share that is worth a word."""


def seconds(facts: Facts) -> list[Finding]:
    """Return where the seconds went."""
    if math.isnan(facts.waiting) or math.isnan(facts.computing):
        return [
            Finding(
                "unknown",
                "Where the time went is not known",
                "No time passed, as in a simulation in rounds, or the record does not say what it went into.",
                ("`goco simulate --time` for seconds by a cost model, or a real run",),
            )
        ]
    shares = {"waiting": facts.waiting, "computing": facts.computing}
    shares["messages"] = max(1.0 - sum(shares.values()), 0.0)
    most = max(shares, key=lambda name: shares[name])
    told = (
        f"Of its time the median rank computed {percent(facts.computing)}, waited {percent(facts.waiting)} and spent "
        f"{percent(shares['messages'])} on messages and mixing."
    )
    finders = {"waiting": _waiting, "computing": _computing, "messages": _messages}
    found = [finders[most](facts, told)]
    if most != "waiting" and facts.waiting >= SOME:
        text = f"{percent(facts.waiting)} of the median rank's time. {_who_was_slow(facts)}"
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
    if facts.method == "sgc":
        return ("a shorter deadline: a smaller `deadline.compute_factor`, or seconds in `deadline.compute_s`",)
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
