"""Runs on files of which each rank reads its part, against the simulator."""

from __future__ import annotations

import numpy as np
import pytest
from resumption import common_directory
from sample_files import csv, hdf5_csr, hdf5_in_chunks, npy, npz_csr, parquet, svmlight
from test_against_simulator import assert_equals_simulation, experiment

from goco_mpi.data.readers import memory
from goco_mpi.engine.session import Session

WRITERS = {write.__name__: write for write in (npy, npz_csr, hdf5_in_chunks, hdf5_csr, svmlight, parquet, csv)}


@pytest.mark.mpi(min_size=1, shared=True)
@pytest.mark.quick(sizes=(1, 2, 3), names=())
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("write", WRITERS)
def test_ranks_that_read_their_parts_of_a_file_train_on_what_the_simulator_has(
    write: str, dtype: str, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "SMALL_BYTES", 0)
    with common_directory(session) as directory:

        def make() -> dict[str, str]:
            rng = np.random.default_rng(0)
            features = rng.standard_normal((240, 7)) * (rng.random((240, 7)) < 0.6)
            features[0, 0] = features[0, -1] = 1.0
            return WRITERS[write](directory, features, (features.sum(axis=1) > 0).astype(float))

        options = session.share(make)
        data = {"dtype": dtype, "partition": "iid", "test_fraction": 0.25, **options}
        assert_equals_simulation(experiment(session.size, data=data))
