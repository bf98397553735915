"""Step sizes as functions of the round."""

from __future__ import annotations

from dataclasses import dataclass

STABLE = 2.0
"""Step size times curvature up to which a step on a quadratic does not lead away from its optimum."""


@dataclass(frozen=True)
class StepSchedule:
    """eta_t = size / (1 + t / tau); constant when ``tau`` is None.

    Attributes
    ----------
    size : float
        eta_0, positive.
    tau : float or None
        Rounds after which the step has halved.
    momentum : float or None
        beta, the part of the last move that accelerated descent repeats (`goco_mpi.core.methods.allreduce_nesterov`),
        where it follows from the curvatures; None where the method finds its own.

    Examples
    --------
    >>> StepSchedule(0.5, tau=10.0)(10)
    0.25
    """

    size: float
    tau: float | None = None
    momentum: float | None = None

    def __call__(self, round_: int) -> float:
        """Return the step size of round ``round_``, counted from 0."""
        return self.size if self.tau is None else self.size / (1.0 + round_ / self.tau)


def from_curvature(curvature: float, scale: float) -> float:
    """Return ``scale / curvature`` to six significant digits.

    The rounding hides in which order the curvature was summed, so that one process and many
    choose the same step to the last bit.

    Examples
    --------
    >>> from_curvature(3.0, 1.0)
    0.333333
    """
    return float(f"{scale / curvature:.6g}")
