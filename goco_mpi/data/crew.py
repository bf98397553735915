"""Those who read one data set together, each a part of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from goco_mpi.errors import InputError

T = TypeVar("T")


def _alone(part: object) -> list[Any]:
    return [part]


@dataclass(frozen=True)
class Crew:
    """A process among those that set up a run together; without arguments, one that is alone.

    Attributes
    ----------
    rank, size : int
    gather : callable (object) -> list of object
        Collective: returns what all members gave, in the order of their ranks, to all of them.

    Examples
    --------
    >>> Crew().together(lambda: 3)
    [3]
    """

    rank: int = 0
    size: int = 1
    gather: Callable[[object], list[Any]] = _alone

    def together(self, make: Callable[[], T]) -> list[T]:
        """Return what each member's ``make`` returned; where one of them refuses its input, all do.

        Raises
        ------
        InputError
            That of the lowest rank that had one.
        """
        part: T | None = None
        refusal: str | None = None
        try:
            part = make()
        except InputError as error:
            refusal = str(error)
        parts = self.gather((part, refusal))
        for _, said in parts:
            if said is not None:
                raise InputError(said)
        return [part for part, _ in parts]

    def piece(self, n: int) -> slice:
        """Return this member's part of ``n`` things cut evenly.

        Examples
        --------
        >>> [Crew(rank, 3).piece(10) for rank in range(3)]
        [slice(0, 3, None), slice(3, 6, None), slice(6, 10, None)]
        """
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)
