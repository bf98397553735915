"""Whom a rank waits for: neighbours who miss the deadline are suspects until they keep up again."""

from __future__ import annotations

TRUSTED_AFTER = 3
"""Rounds in a row that a suspect must keep up before it is waited for again."""
MOST_PATIENCE = 48


class Suspicion:
    """Tells whether one neighbour is worth waiting for.

    A neighbour that misses a gossip deadline becomes a suspect: its messages are still used, but
    not waited for. It is trusted again once in ``TRUSTED_AFTER`` rounds in a row

    - its message was there in time without anybody waiting: it has caught up; or
    - it has sent something newer: it is as fast, but out of step. Waiting for it brings both into
      step if that takes less than the deadline. If it does not, the next such attempt comes after
      twice as many rounds: being out of step costs little, and waiting for nothing costs more.

    A rank that is slow for good does neither, so it costs its neighbours one deadline in all.

    Attributes
    ----------
    suspect : bool
        Whether not to wait for it.
    settled : bool
        Whether another round in time would change nothing: so for most, most of the time.

    Examples
    --------
    >>> suspicion = Suspicion()
    >>> suspicion.judge(heard_round=2, late=True, missed=True); suspicion.suspect
    True
    >>> for round_ in (5, 6, 7): suspicion.judge(heard_round=round_, late=True, missed=False)
    >>> suspicion.suspect
    False
    """

    def __init__(self) -> None:
        self.suspect = False
        self.settled = False
        self._heard_round = -1
        self._in_pace = 0
        self._in_time = 0
        self._patience = TRUSTED_AFTER
        self._on_trial = False

    def judge(self, heard_round: int, late: bool, missed: bool) -> None:
        """Take note of one of the rank's own rounds.

        Parameters
        ----------
        heard_round : int
            Newest round heard of the neighbour so far.
        late : bool
            Whether this round's message is not there.
        missed : bool
            Whether it was waited for until the deadline in vain.
        """
        self._in_pace = self._in_pace + 1 if heard_round > self._heard_round else 0
        self._in_time = 0 if late else self._in_time + 1
        self._heard_round = heard_round
        if missed:
            if self._on_trial:
                self._patience = min(2 * self._patience, MOST_PATIENCE)
            self.suspect, self._in_pace = True, 0
        elif self.suspect:
            self.suspect = self._in_time < TRUSTED_AFTER and self._in_pace < self._patience
            self._on_trial = not self.suspect
        elif self._in_time >= TRUSTED_AFTER:
            self._on_trial, self._patience = False, TRUSTED_AFTER
        self.settled = not (self.suspect or self._on_trial) and self._in_time >= TRUSTED_AFTER
