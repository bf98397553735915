"""Crews whose members are threads of one process, for tests of what is read together."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

from goco_mpi.data.crew import Crew
from goco_mpi.errors import InputError

T = TypeVar("T")

TIME_LIMIT_S = 60.0


def on_all(size: int, action: Callable[[Crew], T]) -> list[T | BaseException]:
    """Return what ``action`` returns to each of ``size`` members, or raises."""
    barrier = threading.Barrier(size, timeout=TIME_LIMIT_S)
    parts: list[Any] = [None] * size
    found: list[Any] = [None] * size

    def member(rank: int) -> None:
        def gather(part: object) -> list[Any]:
            parts[rank] = part
            barrier.wait()
            gathered = list(parts)
            barrier.wait()
            return gathered

        try:
            found[rank] = action(Crew(rank, size, gather))
        except BaseException as error:  # a failed pytest.raises is no Exception
            found[rank] = error
            if not isinstance(error, InputError):
                barrier.abort()  # whom the others would wait for

    threads = [threading.Thread(target=member, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def in_crew(size: int, action: Callable[[Crew], T]) -> list[T]:
    """Return what ``action`` returns to each of ``size`` members, or raise what it raises to the lowest."""
    found = on_all(size, action)
    for one in found:
        if isinstance(one, BaseException):
            raise one
    return found
