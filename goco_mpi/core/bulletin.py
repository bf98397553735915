"""A few numbers that every rank says of itself, known to all through the gossip alone."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Bulletin:
    """One number a rank, each with the round in which it was posted; the newest wins.

    It rides along with every message and is merged on arrival, so that a number reaches all ranks
    within as many rounds as the graph's diameter, whoever is slow elsewhere.

    Parameters
    ----------
    n_ranks : int
    unsaid : float
        What stands for a number that is not known.

    Attributes
    ----------
    entries : ndarray of shape (2, n_ranks)
        What travels: the rounds in which the numbers were posted, -1 for none, and the numbers.

    Examples
    --------
    >>> mine, theirs = Bulletin(2), Bulletin(2)
    >>> mine.post(0, round_=4, value=0.5); theirs.post(1, round_=3, value=0.25)
    >>> mine.total()
    nan
    >>> mine.merge(theirs.entries.ravel()); mine.total()
    0.75
    """

    def __init__(self, n_ranks: int, unsaid: float = -1.0) -> None:
        self.entries = np.full((2, n_ranks), -1.0)
        self.entries[1] = self._unsaid = unsaid

    def post(self, rank: int, round_: int, value: float) -> None:
        """Say something new of ``rank``."""
        self.entries[:, rank] = round_, value

    def restart(self, absent: Collection[int]) -> None:
        """Forget everything; those who are ``absent`` count as having said 0, and never say anything again."""
        self.entries[0], self.entries[1] = -1.0, self._unsaid
        for rank in absent:
            self.post(rank, 0, 0.0)

    def merge(self, entries: Array) -> None:
        """Take over what is newer in a neighbour's entries, shape (2 * n_ranks,)."""
        theirs = entries.reshape(2, -1)
        newer = theirs[0] > self.entries[0]
        self.entries[:, newer] = theirs[:, newer]

    def total(self) -> float:
        """Return the sum of all ranks' newest numbers; NaN as long as one is missing."""
        return float(self.entries[1].sum()) if (self.entries[0] >= 0.0).all() else float("nan")
