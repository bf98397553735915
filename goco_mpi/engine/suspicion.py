"""Whom a rank waits for: neighbours who miss the deadline are suspects until they keep pace again."""

from __future__ import annotations

TRUSTED_AFTER = 3
"""Rounds in a row that a suspect must keep pace before it is waited for again."""


class Suspicion:
    """Tells whether one neighbour is worth waiting for.

    A neighbour that misses a gossip deadline becomes a suspect: its messages are still used, but
    not waited for. It is trusted again once it has sent something newer in each of
    ``TRUSTED_AFTER`` rounds in a row. A rank that is slow for good sends something only now and
    then, so it costs its neighbours one deadline in all; a rank that was held up once is back
    after three rounds; and ranks that are equally fast but out of step find together again.

    Examples
    --------
    >>> suspicion = Suspicion()
    >>> suspicion.judge(heard_round=2, missed=True); suspicion.suspect
    True
    >>> for round_ in (5, 6, 7): suspicion.judge(heard_round=round_, missed=False)
    >>> suspicion.suspect
    False
    """

    def __init__(self) -> None:
        self.suspect = False
        self._heard_round = -1
        self._in_pace = 0

    def judge(self, heard_round: int, missed: bool) -> None:
        """Take note of one of the rank's own rounds.

        Parameters
        ----------
        heard_round : int
            Newest round heard of the neighbour so far.
        missed : bool
            Whether it was waited for until the deadline in vain.
        """
        self._in_pace = self._in_pace + 1 if heard_round > self._heard_round else 0
        self._heard_round = heard_round
        if missed:
            self.suspect = True
            self._in_pace = 0
        elif self._in_pace >= TRUSTED_AFTER:
            self.suspect = False
