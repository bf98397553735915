"""Where a rank goes on: whether it keeps up in the middle of a gradient, and which round comes next."""

from __future__ import annotations

from enum import Enum

BEHIND = 2
"""Rounds that the neighbours are ahead when a rank gossips in the middle of its gradient."""
UNBOUNDED = 1e200
"""Squared norm of the parameters beyond which the run has diverged."""


class Look(Enum):
    """What a rank does when it looks up from its gradient."""

    GO_ON = 0
    GOSSIP = 1
    CUT = 2


def look(late: bool, over: bool, carries_on: bool) -> Look:
    """Decide what becomes of a gradient under way.

    Parameters
    ----------
    late : bool
        Whether its deadline has passed.
    over : bool
        Whether the run is.
    carries_on : bool
        Whether a late gradient is carried on with (``method.late = 'memory'``): the rank gossips
        then, and gives it another deadline.

    Examples
    --------
    >>> look(late=True, over=False, carries_on=True).name, look(late=True, over=False, carries_on=False).name
    ('GOSSIP', 'CUT')
    """
    if late and carries_on and not over:
        return Look.GOSSIP
    return Look.CUT if late or over else Look.GO_ON


def behind(round_: int, newest_round: int) -> bool:
    """Tell whether the neighbours are so far ahead that a rank gossips in the middle of its gradient.

    Otherwise they would mix with an old vector of this rank.
    """
    return newest_round >= round_ + BEHIND


def following(round_: int, newest_round: int, advance: bool = True) -> int:
    """Return the round after this: the newest heard of, where the neighbours are further than the next.

    With ``advance`` false it stays: gossip in the middle of a gradient does not go past the
    neighbours' round, as only finished work moves the network's rounds on.

    Examples
    --------
    >>> following(3, newest_round=2), following(3, newest_round=9), following(3, newest_round=9, advance=False)
    (4, 9, 3)
    """
    return max(round_ + 1, newest_round) if advance else round_


def diverged(squared_norm: float) -> bool:
    """Tell whether parameters of this squared norm have grown without bound, NaN included.

    The bound is far below overflow: nothing computed from it warns.
    """
    return not squared_norm < UNBOUNDED
