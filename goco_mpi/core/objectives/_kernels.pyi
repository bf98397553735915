from typing import Any

import numpy as np
from numpy.typing import NDArray

PROCESSOR: str

def dense(
    kind: int,
    features: NDArray[Any],
    targets: NDArray[np.float64],
    weights: NDArray[np.float64],
    params: NDArray[np.float64],
    out: NDArray[np.float64] | None,
    with_loss: bool,
    /,
) -> float: ...
def csr(
    kind: int,
    data: NDArray[Any],
    indices: NDArray[Any],
    indptr: NDArray[Any],
    ones: bool,
    start: int,
    stop: int,
    n_columns: int,
    targets: NDArray[np.float64],
    weights: NDArray[np.float64],
    params: NDArray[np.float64],
    out: NDArray[np.float64] | None,
    with_loss: bool,
    /,
) -> float: ...
def check_csr(data: NDArray[Any], indices: NDArray[Any], indptr: NDArray[Any], n_columns: int, /) -> bool: ...
