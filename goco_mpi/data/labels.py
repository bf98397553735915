"""Classes from labels, the same for all who read a part of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from goco_mpi.data.crew import Crew
from goco_mpi.errors import InputError

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Labels:
    """The labels of a data set, whose places among them are the classes.

    Attributes
    ----------
    values : ndarray of shape (n_classes,)
        Whole numbers, ascending.
    signed : bool
        Whether the two classes are -1 and 1, and not 0 and 1.

    Examples
    --------
    >>> Labels(np.array([-1.0, 7.0]), signed=False).encode(np.array([7.0, -1.0, 7.0]))
    array([1., 0., 1.])
    """

    values: Array
    signed: bool

    def encode(self, targets: Array) -> Array:
        """Return the class of each label.

        Raises
        ------
        InputError
            If a label is none of the values.
        """
        classes = np.minimum(np.searchsorted(self.values, targets), len(self.values) - 1)
        strange = targets[self.values[classes] != targets]
        if strange.size:
            known = ", ".join(f"{value:g}" for value in self.values[:10])
            raise InputError(f"a target must be one of the labels {known}. Got {strange[0]:g}. Are the data damaged?")
        numbers = classes.astype(np.float64)
        return 2.0 * numbers - 1.0 if self.signed else numbers


def find(mine: Array, n_samples: int, kind: str, crew: Crew) -> Labels | None:
    """Return the labels of all targets, of which each member has read some; None if they are not whole numbers.

    Collective.

    Parameters
    ----------
    mine : ndarray
        Targets of this member, possibly none.
    n_samples : int
        Of all members.
    kind : {'logistic', 'softmax'}
    crew : Crew

    Raises
    ------
    InputError
        If there are so many different values that they can hardly be classes.
    """
    whole = np.array_equal(mine, np.round(mine))
    parts = crew.gather(np.unique(mine) if whole else None)
    if any(part is None for part in parts):
        return None
    values = np.unique(np.concatenate(parts))
    if len(values) > max(10, n_samples // 10):
        raise InputError(
            f"objective.kind = '{kind}' needs classes as targets. Got {len(values)} different values in "
            f"{n_samples} samples. Use 'least_squares'."
        )
    return Labels(values, signed=kind == "logistic")
