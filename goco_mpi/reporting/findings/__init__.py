"""What limited a run, in words: each finding with the numbers it stands on and what to try.

Two questions, which have answers of their own. Where did the *seconds* of a round go: waiting, computing, or the rest,
which is messages and mixing? And what did a *round* bring: was the loss still falling, or held up by ranks that did not
agree (mixing), by gradients that differ (heterogeneity), by noise? Where the record does not tell, that is said.
"""

from __future__ import annotations

from goco_mpi.reporting.findings.brought import differences, progress
from goco_mpi.reporting.findings.facts import SLOW, Facts, Finding
from goco_mpi.reporting.findings.seconds import seconds

__all__ = ["SLOW", "Facts", "Finding", "find"]


def find(facts: Facts) -> list[Finding]:
    """Return what limited a run: first where its seconds went, then what a round brought."""
    return [*seconds(facts), *progress(facts), *differences(facts)]
