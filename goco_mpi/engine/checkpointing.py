"""When one rank makes its part of a checkpoint, and a thread that writes it while the rounds go on."""

from __future__ import annotations

import contextlib
import math
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from goco_mpi.checkpoint import CheckpointFiles
from goco_mpi.core.flatten import flatten
from goco_mpi.core.methods import State
from goco_mpi.engine.exchange import Exchange
from goco_mpi.errors import InputError
from goco_mpi.schema import CheckpointConfig

Kept = Callable[[], dict[str, Any]]
"""Returns what a rank keeps of the moment."""


def refuse_unkeepable(state: State) -> None:
    """Refuse checkpoints of a state that none can hold.

    Raises
    ------
    InputError
        As with a method from outside that has a class of its own for its state.
    """
    try:
        flatten(state)
    except TypeError as error:
        raise InputError(
            "[checkpoint] needs a method whose state is made of goco_mpi's own classes, numbers, arrays and lists. "
            f"Got one of which {error}. Keep what the method remembers as attributes of a State, or leave [checkpoint] "
            "out."
        ) from None


class Checkpointing:
    """Makes one rank's parts of the checkpoints. Nobody waits for anybody.

    A rank begins a checkpoint by its own rounds or clock, or because it hears of one (`Exchange`). What is written
    is a copy, and a checkpoint that comes while the last one is still being written is left out.

    Parameters
    ----------
    config : CheckpointConfig
        Without ``every`` and ``every_s`` there is one where the run is stopped, if anything.
    files : CheckpointFiles
    exchange : Exchange
        Its ``checkpoint`` is the number of the last one before this run.
    rank : int
    prefix : str
        Which rank speaks, where something cannot be written.

    Attributes
    ----------
    n_written, n_skipped, n_failed : int
        Parts on disk; left out as another was being written; that could not be written.
    """

    def __init__(
        self, config: CheckpointConfig, files: CheckpointFiles, exchange: Exchange, rank: int, prefix: str
    ) -> None:
        self._config = config
        self._files = files
        self._exchange = exchange
        self._rank = rank
        self._prefix = prefix
        self._next_round = self._next_s = math.inf
        self._start_s = 0.0
        self._thread: threading.Thread | None = None
        self._held: Callable[[], None] | None = None
        self.n_written = self.n_skipped = self.n_failed = 0

    @property
    def _periodic(self) -> bool:
        return self._config.every is not None or self._config.every_s is not None

    @property
    def _complete(self) -> bool:
        """Whether the last one of the run is made."""
        return 0 < self._exchange.last_checkpoint <= self._exchange.checkpoint

    def start(self, round_: int) -> None:
        """Start the clock, in the first round."""
        self._start_s = time.perf_counter()
        self._plan(round_)

    @property
    def heard(self) -> bool:
        """Whether this rank has heard of a checkpoint that it has not made its part of."""
        return self._exchange.heard_checkpoint > self._exchange.checkpoint

    def due(self, round_: int) -> bool:
        """Tell whether this rank's part is due before it begins ``round_``."""
        if self.heard:
            return True
        if self._complete:
            return False
        if round_ >= self._next_round:
            return True
        if time.perf_counter() >= self._next_s:
            self._plan(round_)
            return self._exchange.ask_for_checkpoint()
        return False

    def make(self, round_: int, kept: Kept) -> None:
        """Make this rank's part, with what ``kept`` returns, and leave the writing to the thread."""
        busy = self._thread is not None and self._thread.is_alive()
        try:
            write = self._begin(round_, kept, only_number=busy and not self._exchange.last_checkpoint)
        except TypeError as error:  # the state of a method from outside; see `refuse_unkeepable`
            self.n_failed += 1
            if self.n_failed == 1 and self._rank == 0:
                self._say(f"cannot be made: {error}. The run goes on without")
            return
        if write is None:
            self.n_skipped += 1
        elif self._periodic:
            self._start_thread(write)
        else:
            self._held = write

    def finish(self, round_: int, kept: Kept) -> None:
        """Make the last one, of where the run ends, unless a neighbour's last was made already.

        Where there are no others it is not written before `settle`.
        """
        if not self._complete and (self._periodic or self._exchange.stopped):
            self._exchange.last_checkpoint = max(self._exchange.checkpoint + 1, self._exchange.heard_checkpoint)
            self.make(round_, kept)

    def settle(self, wanted: bool, time_limit_s: float) -> None:
        """Write what is held if it is ``wanted``, and wait until everything is written, but not for ever."""
        if wanted and self._held is not None:
            self._start_thread(self._held)
            self._held = None
        if self._thread is not None:
            self._thread.join(time_limit_s)
            if self._thread.is_alive():
                self._complain(f"is given up: it is still being written after {time_limit_s:g} s")

    def tidy(self) -> None:
        """Look once more whether checkpoints are whole, when all ranks have written theirs."""
        with contextlib.suppress(OSError):
            self._files.tidy()

    def counts(self) -> dict[str, int]:
        """Return the counts, by column of the record."""
        return {
            "checkpoints": self.n_written,
            "checkpoints_skipped": self.n_skipped,
            "checkpoints_failed": self.n_failed,
        }

    def _begin(self, round_: int, kept: Kept, only_number: bool) -> Callable[[], None] | None:
        """Take the next number, and return how this rank's part is written."""
        exchange = self._exchange
        first, number = exchange.checkpoint + 1, max(exchange.checkpoint + 1, exchange.heard_checkpoint)
        exchange.checkpoint = first  # what came with it or later is not of the part
        try:
            part = None if only_number else flatten(kept())
        finally:
            exchange.checkpoint = number
            self._plan(max(round_, exchange.newest_round))
        if part is None:
            return None
        text, arrays = part
        # Nothing that came with any of the numbers in between has been mixed: it is as good a part of those. Where
        # several ranks end at about the same time each may have begun another one.
        numbers = range(max(first, number - 1), number + 1)

        def write() -> None:
            for one in numbers:
                self._files.write(one, self._rank, round_, text, arrays)

        return write

    def _plan(self, round_: int) -> None:
        """Set when this rank begins the next by itself: not one that it has just heard of."""
        if self._config.every is not None:
            self._next_round = (round_ // self._config.every + 1) * self._config.every
        if self._config.every_s is not None:
            passed = (time.perf_counter() - self._start_s) / self._config.every_s
            self._next_s = self._start_s + (math.floor(passed + 0.5) + 1) * self._config.every_s

    def _start_thread(self, write: Callable[[], None]) -> None:
        before = self._thread

        def work() -> None:
            if before is not None:
                before.join()
            try:
                write()
                self.n_written += 1
            except OSError as error:
                self.n_failed += 1
                if self.n_failed == 1:
                    self._complain(f"cannot be written: {error.strerror or error}. The run goes on without")

        self._thread = threading.Thread(target=work, name="goco_mpi.checkpoint", daemon=True)
        self._thread.start()

    def _complain(self, what: str) -> None:
        self._say(f"{what}. Make room there, or choose another --out next time")

    def _say(self, what: str) -> None:
        where = f"{self._prefix} checkpoint {self._exchange.checkpoint} in {str(self._files.directory)!r}"
        print(f"goco: {where} {what}.", file=sys.stderr, flush=True)
