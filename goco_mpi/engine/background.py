"""A thread that keeps messages moving while a gradient leaves no room to look at them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType

PERIOD_S = 3e-4
"""Time between two looks at the messages."""


class Background:
    """Calls ``drain`` now and then while a block of work is under way, and only then.

    For gradients that are one long call into another library: MPI moves large messages only while it
    is called. Where the work comes in blocks, draining between them costs less. The work must release
    Python's lock, as BLAS and most libraries do; the main thread does not touch MPI meanwhile.

    Parameters
    ----------
    drain : callable () -> None

    Examples
    --------
    >>> with Background(lambda: None) as background:
    ...     sum(1 for _ in background.around(iter([None, None])))
    2
    """

    def __init__(self, drain: Callable[[], None]) -> None:
        self._drain = drain
        self._working = threading.Event()
        self._turn = threading.Lock()
        self._ended = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="goco_mpi.background", daemon=True)

    def __enter__(self) -> Background:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the thread."""
        self._ended = True
        self._working.set()
        self._thread.join()

    def around(self, blocks: Iterator[None]) -> Iterator[None]:
        """Yield as ``blocks`` does, with the thread at work while it computes.

        Raises
        ------
        Exception
            What ``drain`` raised in the thread.
        """
        while True:
            self._working.set()
            try:
                next(blocks)
            except StopIteration:
                return
            finally:
                self._working.clear()
                with self._turn:  # wait for a look under way
                    pass
                if self._error is not None:
                    raise self._error
            yield

    def _run(self) -> None:
        while not self._ended:
            self._working.wait()
            self._look()
            time.sleep(PERIOD_S)

    def _look(self) -> None:
        """Drain if it is the thread's turn."""
        with self._turn:
            if self._working.is_set() and not self._ended and self._error is None:
                try:
                    self._drain()
                except BaseException as error:  # for the main thread to raise
                    self._error = error
