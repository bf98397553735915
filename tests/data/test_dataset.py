import numpy as np
import pytest
import scipy.sparse as sp

from goco_mpi.data.dataset import Dataset, check_usable
from goco_mpi.errors import InputError


@pytest.mark.parametrize(
    ("features", "targets", "message"),
    [
        (np.empty((0, 3)), np.empty(0), "empty"),
        (np.empty((3, 0)), np.empty(3), "empty"),
        (np.ones((3, 2)), np.ones(2), "one target a row"),
        (np.ones((3, 2)), np.ones((3, 1)), "one target a row"),
        (np.array([[1.0], [np.nan]]), np.ones(2), r"1 feature values are NaN or infinite \(first in row 1"),
        (np.array([[1.0], [2.0]]), np.array([np.inf, np.nan]), r"2 target values .* \(first in row 0"),
        (sp.csr_array(np.array([[1.0], [np.inf]])), np.ones(2), "1 feature values are NaN or infinite"),
    ],
)
def test_unusable_samples_are_refused_by_name(features, targets, message):
    with pytest.raises(InputError, match=message) as refused:
        check_usable(Dataset(features, targets), "here.npz")
    assert "'here.npz'" in str(refused.value)
    assert "\n" not in str(refused.value)
