"""A process reads what its rows need and little more."""

import os
from pathlib import Path

import numpy as np
import pytest
from sample_files import hdf5, hdf5_csr, hdf5_in_chunks, npy, npy_in_columns, npz, npz_csr, opened, parquet, svmlight

from goco_mpi.data.readers import memory

N, WIDTH, SHARDS = 3200, 12, 16
FEATURES = np.random.default_rng(0).standard_normal((N, WIDTH)).round(6)
TARGETS = np.arange(N, dtype=float)


@pytest.fixture(autouse=True)
def large_files(monkeypatch):
    """As if these files were: small ones rank 0 reads for all."""
    monkeypatch.setattr(memory, "SMALL_BYTES", 0)


def row_group_of_200(directory, features, targets):
    import pyarrow.parquet
    from sample_files import table

    path = directory / "groups.parquet"
    pyarrow.parquet.write_table(table(features, targets), path, row_group_size=200, compression=None)
    return {"source": str(path)}


def large_chunks(directory, features, targets):
    import h5py

    path = directory / "large.h5"
    with h5py.File(path, "w") as file:  # of 10 MB each, where HDF5 by itself keeps 1 or 8 MiB
        features = np.hstack([features] * 100)
        file.create_dataset("features", data=features, chunks=(1100, features.shape[1]), shuffle=True)
        file["targets"] = targets
    return {"source": str(path)}


@pytest.mark.parametrize(
    ("write", "beside"),
    [  # what is read beside the rows: headers, and what the layout of the file makes one read
        (npy, 0.01),
        (npy_in_columns, 0.01),
        (npz, 0.01),
        (npz_csr, 0.02),
        (hdf5, 0.05),
        (hdf5_csr, 0.05),
        (hdf5_in_chunks, 0.08),
        (row_group_of_200, 0.25),  # the footer has statistics of each column of each group
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_rank_with_2_of_16_shards_reads_an_eighth_of_the_features(tmp_path, write, beside):
    options = write(tmp_path, FEATURES, TARGETS)
    size = Path(options["source"]).stat().st_size
    shards = np.array_split(np.arange(N), SHARDS)
    for rank, source in enumerate(opened(8, **options)):
        with source:
            rows = np.concatenate((shards[2 * rank], shards[2 * rank + 1]))
            np.testing.assert_array_equal(
                source.features(rows).toarray() if source.sparse else source.features(rows), FEATURES[rows]
            )
            assert 0.1 * size < source.bytes_read < (1 / 8 + beside) * size


def test_each_of_8_ranks_scans_an_eighth_of_an_svmlight_file_and_reads_its_rows(tmp_path):
    options = svmlight(tmp_path, FEATURES, TARGETS)
    size = Path(options["source"]).stat().st_size
    sources = opened(8, **options)
    for rank, source in enumerate(sources):
        with source:
            # Where lines begin is looked for in two places.
            assert source.bytes_read < size / 8 + 2 * 4096 + 200
            scanned = source.bytes_read
            source.features(slice(rank * N // 8, (rank + 1) * N // 8))
            assert 0.1 * size < source.bytes_read - scanned < 0.14 * size


@pytest.mark.parametrize("write", [large_chunks, parquet], ids=lambda write: write.__name__)
def test_who_goes_through_the_rows_in_small_steps_decodes_everything_once(tmp_path, write):
    options = write(tmp_path, FEATURES, TARGETS)
    (source,) = opened(1, **options)
    with source:
        for start in range(0, N, 50):
            source.features(slice(start, start + 50))
        assert source.bytes_read < 1.1 * Path(options["source"]).stat().st_size


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the kernel's own count is Linux's")
@pytest.mark.parametrize("write", [npy, npz, hdf5, hdf5_in_chunks, parquet, svmlight], ids=lambda write: write.__name__)
def test_bytes_read_are_those_that_the_kernel_counts(tmp_path, write):
    options = write(tmp_path, FEATURES, TARGETS)
    opened(1, **options)[0].close()  # imports what it needs

    def counted():
        descriptor = os.open("/proc/self/io", os.O_RDONLY)
        text = os.read(descriptor, 4096)
        os.close(descriptor)
        return int(text.split()[1]), len(text)

    before, own = counted()
    (source,) = opened(1, **options)
    with source:
        source.targets(slice(None))
        source.features(np.arange(0, N, 3))
    after, _ = counted()
    # Rank 0 looks at the directory of an archive before it is opened by all.
    assert abs(after - before - own - source.bytes_read) <= 256


def test_scattered_rows_are_read_together_where_that_is_cheaper(tmp_path, monkeypatch):
    options = npy(tmp_path, FEATURES, TARGETS)
    calls, real = [], os.preadv

    def counted(*arguments):
        calls.append(real(*arguments))
        return calls[-1]

    (source,) = opened(1, **options)
    monkeypatch.setattr(os, "preadv", counted)
    with source:
        rows = np.random.default_rng(1).permutation(N)[: N // 8]
        np.testing.assert_array_equal(source.features(rows), FEATURES[rows])
    assert len(calls) == 1
    assert calls[0] <= FEATURES.nbytes


def test_ranks_that_read_npy_import_no_other_reader(tmp_path):
    import subprocess
    import sys

    options = npy(tmp_path, FEATURES, TARGETS)
    code = f"""
import sys
from goco_mpi.data.readers import open_source
from goco_mpi.schema import DataConfig
open_source(DataConfig(source={options["source"]!r}, targets={options["targets"]!r}), 0).features(slice(0, 9))
print(*{{"h5py", "pyarrow", "sklearn", "scipy"}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == []


@pytest.mark.parametrize("write", [svmlight, parquet], ids=lambda write: write.__name__)
def test_a_small_file_that_needs_a_large_library_is_read_by_rank_0_alone(tmp_path, write, monkeypatch):
    monkeypatch.undo()
    options = write(tmp_path, FEATURES, TARGETS)
    assert Path(options["source"]).stat().st_size < memory.SMALL_BYTES
    first, *others = (
        opened(3, partition="by_column", partition_column="x1", **options) if write is parquet else opened(3, **options)
    )
    assert first.whole and all(source.whole and source.bytes_read == 0 for source in others)
    assert {source.n_samples for source in others} == {N}
    assert first.bytes_read > 0.9 * Path(options["source"]).stat().st_size
    np.testing.assert_array_equal(first.targets(slice(None)), TARGETS)
    if write is parquet:
        np.testing.assert_array_equal(first.column("x1"), FEATURES[:, 1])
        assert first.n_features == WIDTH - 1
