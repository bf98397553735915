"""How one rank says where it is while it trains: a few numbers a second, written by a thread of its own.

The round loop makes a note of them when one is due, between two rounds; a file system that takes its time keeps
the thread and nobody else.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from goco_mpi import status

if TYPE_CHECKING:
    from goco_mpi.engine.exchange import Exchange
    from goco_mpi.engine.gradients import GradientWork
    from goco_mpi.engine.runner import RoundLoop

GIVE_UP_S = 2.0
"""How long the end waits for the last words to be written."""
LOSS_SHARE = 0.01
"""Part of its time that a rank may spend on its part of the loss, which nobody but the watcher needs."""


def seen(loop: RoundLoop, work: GradientWork, exchange: Exchange) -> dict[str, Any]:
    """Return where a rank is: for its own thread, between two rounds."""
    return {
        "round": loop.round,
        "gradients": work.n_whole + work.n_partial,
        "late": work.n_late,
        "wait_s": round(loop.counts.wait_s, 3),
        "suspects": exchange.suspects()[: status.MOST_SUSPECTS],
    }


class LossClock:
    """When a rank works out its part of the loss: so seldom that it costs no more than `LOSS_SHARE` of its time.

    All ranks do so in the same rounds, or in some of the same: where each round waits for everybody, ranks that did it
    in different ones would hold each other up in all of them. So the interval is a power of two.

    Parameters
    ----------
    period_s : float
        Seconds between two that are enough.

    Examples
    --------
    >>> clock = LossClock(period_s=1.0)
    >>> clock.due(1), clock.took(1, seconds=0.002, passed_s=0.01), clock.due(2)
    (True, None, False)
    >>> clock.every
    128
    """

    def __init__(self, period_s: float) -> None:
        self._period_s = period_s
        self._last = -1
        self.every = 1

    def due(self, round_: int) -> bool:
        """Tell whether it is time in a round."""
        return round_ // self.every > self._last

    def took(self, round_: int, seconds: float, passed_s: float) -> None:
        """Take note of one in a round, what it took, and how long a round lasts."""
        wanted_s = max(self._period_s, seconds / LOSS_SHARE)
        self.every = 2 ** max(math.ceil(math.log2(wanted_s / max(passed_s, 1e-9))), 0)
        self._last = round_ // self.every


class Teller:
    """Says where one rank is.

    Parameters
    ----------
    directory : Path
        Of `goco_mpi.status`, made by rank 0; a rank whose node does not see it goes on unseen.
    rank, size : int
        This rank, and how many there are: of more, each says less often.
    host : str
    """

    def __init__(self, directory: Path, rank: int, size: int, host: str) -> None:
        self._directory = directory
        self._rank = rank
        self._host = host.encode("ascii", "replace").decode()[:64]  # what it says has a fixed size
        self._period_s = status.period_s(size)
        self._clock = LossClock(self._period_s)
        self._look: Callable[[], dict[str, Any]] = dict
        self._loss: Callable[[NDArray[Any]], float] | None = None
        self._said: dict[str, Any] = {}
        self._told: dict[str, Any] = {}
        self._due_s = self._start_s = 0.0
        self._first_round = 0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(
        self, loop: RoundLoop, work: GradientWork, exchange: Exchange, loss: Callable[[NDArray[Any]], float]
    ) -> None:
        """Begin, before the first round; ``loss`` returns this rank's part of F."""
        self._look, self._loss, self._first_round = partial(seen, loop, work, exchange), loss, loop.round
        self._start_s = time.perf_counter()
        self._note("running")
        self._thread = threading.Thread(target=self._write_on, name="goco_mpi.status", daemon=True)
        self._thread.start()

    def after_round(self, round_: int, params: NDArray[Any]) -> None:
        """Make a note if one is due."""
        if self._clock.due(round_) and self._loss is not None:
            before = time.perf_counter()
            part = self._loss(params)
            now = time.perf_counter()
            self._clock.took(round_, now - before, (now - self._start_s) / max(round_ - self._first_round, 1))
            self._told = {"loss": part} if math.isfinite(part) else {}
        if time.perf_counter() >= self._due_s:
            self._note("running")

    def end(self) -> None:
        """Say that the rounds are over, and write no more."""
        if self._thread is None or self._ended.is_set():
            return
        self._note("ended")
        self._ended.set()
        self._thread.join(GIVE_UP_S)  # but not for ever: the file system may hang

    def __enter__(self) -> Teller:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def _note(self, state: str) -> None:
        now = time.perf_counter()
        self._due_s = now + self._period_s
        head = {"host": self._host, "state": state, "noted_s": round(now - self._start_s, 3)}
        self._said = head | self._look() | self._told  # all at once: the thread may be about to write it

    def _write_on(self) -> None:
        """Write until the end, in a thread of its own."""
        first = True
        while True:
            last = self._ended.is_set()
            line = status.encode({**self._said, "up_s": round(time.perf_counter() - self._start_s, 3)})
            try:
                status.write(self._directory, self._rank, line)
            except OSError:
                if first:
                    return  # this node does not see the directory; the run goes on unseen
            if last:
                return
            first = False
            self._ended.wait(self._period_s)
