"""The errors a user can meet, each with the exit code the command line ends with."""

from __future__ import annotations

from collections.abc import Iterable


class GocoError(Exception):
    """Base of every error raised on purpose; its text is the whole message for the user."""

    exit_code = 1
    agreed = False
    """Whether every rank of the job raised this same error, so that one may speak for all."""
    silent = False
    """Whether another process says it already."""


class InputError(GocoError):
    """What the user gave cannot be used: parameter, rule, value and way out are in the text."""

    exit_code = 2


class RunError(GocoError):
    """The run started and could not be finished, or its result is not usable."""


def divergence(round_: int, step_size: float | None) -> RunError:
    """Return the error of a run whose parameters grow without bound; ``step_size`` as in `worse_than_nothing`."""
    return RunError(
        f"The run diverged in round {round_}: the parameters grow without bound. {worse_than_nothing(step_size)}"
    )


def worse_than_nothing(step_size: float | None) -> str:
    """Return why training made the parameters worse, and which setting to change.

    ``step_size`` is None where the method takes no steps of a size that is given.
    """
    if step_size is None:
        return "The loss is not convex enough for this method. Raise objective.l2, or use method.kind = 'push_pull'."
    return f"The step size {step_size:g} is too large. Lower step.size (or step.scale with step.kind = 'auto')."


def check_range(name: str, value: float, low: float, high: float, hint: str = "") -> None:
    """Refuse a number outside [low, high] in the project's one wording.

    Parameters
    ----------
    name : str
        The parameter as the user wrote it, such as ``placement.replication``.
    value, low, high : float
        The value given and the inclusive bounds.
    hint : str, optional
        The way out, appended to the message.

    Raises
    ------
    InputError
        If ``value`` is not within the bounds (a NaN never is).

    Examples
    --------
    >>> check_range("rounds", 3, 1, 10)
    """
    if not low <= value <= high:
        shown = str(value) if isinstance(value, int) else f"{value:g}"  # an int may exceed all floats
        text = f"{name} must be between {low:g} and {high:g}. Got {shown}."
        raise InputError(f"{text} {hint}".strip())


def check_one_of(name: str, value: str, known: Iterable[str]) -> None:
    """Refuse a name that is not one of ``known``, listing them.

    Raises
    ------
    InputError
        If ``value`` is not among ``known``.
    """
    names = list(known)
    if value not in names:
        raise InputError(f"{name} must be one of {', '.join(names)}. Got {value!r}.")
