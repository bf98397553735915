"""All formats load the same, whoever asks for which rows."""

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import scipy.sparse as sp
from crews import in_crew
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sample_files import DENSE, FORMATS, SPARSE, dense, npy, opened
from sklearn.datasets import dump_svmlight_file

from goco_mpi.data.readers import open_source, rows, svmlight
from goco_mpi.data.readers.memory import HeldByRankZero
from goco_mpi.errors import InputError
from goco_mpi.schema import DataConfig

EVERY = slice(None)
# Few digits, so that text formats hold them exactly too, and zeros, so that CSR has something to leave out.
NUMBERS = st.sampled_from([0.0, 1.0, -2.0, 0.5, 1024.25, -0.0625])


@pytest.fixture(autouse=True)
def small_reads(monkeypatch):
    """Several reads even for a few rows."""
    from goco_mpi.data.readers import csr, hdf5, memory, numpy_files

    monkeypatch.setattr(memory, "SMALL_BYTES", 0)

    for module in (rows, csr, hdf5, numpy_files, svmlight):
        monkeypatch.setattr(module, "BLOCK_BYTES", 200)
        if hasattr(module, "GAP_BYTES"):
            monkeypatch.setattr(module, "GAP_BYTES", 40)


@st.composite
def samples(draw):
    n, p = draw(st.integers(1, 40)), draw(st.integers(1, 6))
    features = draw(hnp.arrays(np.float64, (n, p), elements=NUMBERS))
    targets = draw(hnp.arrays(np.float64, n, elements=NUMBERS))
    index = draw(st.lists(st.integers(0, n - 1), max_size=2 * n))
    start = draw(st.integers(0, n))
    return features, targets, [np.array(index, np.intp), slice(start, draw(st.integers(start, n))), EVERY]


@pytest.mark.parametrize("write", FORMATS, ids=lambda write: write.__name__)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(drawn=samples(), size=st.integers(1, 3))
def test_the_same_samples_load_from_every_format_whatever_rows_are_asked_for(
    tmp_path_factory, write, dtype, drawn, size
):
    features, targets, subsets = drawn
    if write in SPARSE:
        features[0, -1] = 1.0  # svmlight files say how many columns there are by their last one
    if write.__name__ == "svmlight":
        features[0, 0] = 1.0  # and where they begin to count by the first
    options = write(tmp_path_factory.mktemp("data"), features, targets)
    for source in opened(size, dtype=dtype, **options):
        with source:
            assert (source.n_samples, source.n_features, source.sparse) == (*features.shape, write in SPARSE)
            for subset in subsets:
                if isinstance(source, HeldByRankZero):
                    continue
                np.testing.assert_array_equal(source.targets(subset), targets[subset])
                got = source.features(subset)
                assert got.dtype == source.dtype == dtype
                assert sp.issparse(got) == source.sparse
                np.testing.assert_array_equal(dense(got), features[subset])
                if not source.sparse:
                    out = np.full((len(features[subset]), features.shape[1] + 1), 7.0, dtype)
                    source.read_into(subset, out[:, :-1])
                    np.testing.assert_array_equal(out[:, :-1], features[subset])
                    assert (out[:, -1] == 7.0).all()


KINDS = (np.float32, np.int64, np.uint8, np.bool_, np.float16, ">f8")
KINDS_OF = {"parquet": KINDS[:5], "csv": KINDS[:4]}
"""Those that arrow knows, and that it writes as text."""


@pytest.mark.parametrize(
    ("write", "kind"), [(write, kind) for write in DENSE for kind in KINDS_OF.get(write.__name__, KINDS)]
)
def test_real_numbers_of_any_type_become_floats(tmp_path, write, kind):
    features = (np.arange(40).reshape(20, 2) % 3 == 0).astype(kind)
    options = write(tmp_path, features, np.arange(20).astype(np.int32))
    (source,) = opened(1, **options)
    with source:
        np.testing.assert_array_equal(source.features(EVERY), features.astype(float))
        np.testing.assert_array_equal(source.features(np.array([7, 3])), features[[7, 3]].astype(float))
        np.testing.assert_array_equal(source.targets(EVERY), np.arange(20.0))


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_whether_svmlight_counts_from_0_or_1_is_one_decision_for_all_ranks(tmp_path, first, size):
    # Feature 0 or 1 is in the very last row alone, so that most ranks do not see it themselves.
    features = np.zeros((20, 5))
    features[:, 3], features[-1, 0], features[:, 4] = 1.0, 2.0, np.arange(20)
    dump_svmlight_file(features, np.arange(20.0), str(tmp_path / "data.svm"), zero_based=first == 0)
    for source in opened(size, source=str(tmp_path / "data.svm")):
        with source:
            np.testing.assert_array_equal(source.features(EVERY).toarray(), features)


AWKWARD = b"# a comment\n\n  1 1:2 2:3 # behind\n\t\r\n   # indented\n-1 qid:7 2:0.5\r\n2\n\n+3e0 3:1\n#\n  \n4 1:1 # x"


@pytest.mark.parametrize("size", [1, 2, 5, 30])
def test_svmlight_lines_are_found_among_comments_and_blanks_wherever_the_parts_are_cut(tmp_path, size):
    (tmp_path / "data.svm").write_bytes(AWKWARD)
    expected = [[2, 3, 0], [0, 0.5, 0], [0, 0, 0], [0, 0, 1], [1, 0, 0]]
    for source in opened(size, source=str(tmp_path / "data.svm")):
        with source:
            np.testing.assert_array_equal(source.targets(EVERY), [1, -1, 2, 3, 4])
            np.testing.assert_array_equal(source.features(EVERY).toarray(), expected)
            for row in range(5):
                np.testing.assert_array_equal(source.features(slice(row, row + 1)).toarray(), [expected[row]])


def test_a_file_that_is_not_the_same_to_all_ranks_is_refused(tmp_path):
    for rank, n in enumerate((9, 9, 7)):
        (tmp_path / str(rank)).mkdir()
        npy(tmp_path / str(rank), np.ones((n, 2)), np.ones(n))

    def work(crew):
        here = tmp_path / str(crew.rank)
        return open_source(DataConfig(source=str(here / "x.npy"), targets=str(here / "y.npy")), 0, crew)

    with pytest.raises(InputError, match=r"Rank 0 sees samples of shape \(9, 2\), rank 2 samples of shape \(7, 2\)"):
        in_crew(3, work)


def test_columns_are_told_apart_by_their_whole_names(tmp_path):
    table = pa.table({"y.lag": [1.0, 2.0], "y": [0.0, 1.0], "z": [5, 6]})
    pa.parquet.write_table(table, tmp_path / "data.parquet")
    pa.csv.write_csv(table, tmp_path / "data.csv")
    for name in ("data.parquet", "data.csv"):
        (source,) = opened(1, source=str(tmp_path / name), target_column="y")
        with source:
            np.testing.assert_array_equal(source.targets(EVERY), [0.0, 1.0])
            np.testing.assert_array_equal(source.features(EVERY), [[1.0, 5.0], [2.0, 6.0]])


def test_row_groups_without_rows_are_passed_over(tmp_path):
    table = pa.table({"x": [1.0, 2.0, 3.0], "target": [0, 1, 2]})
    with pa.parquet.ParquetWriter(tmp_path / "data.parquet", table.schema) as writer:
        for part in (table[:0], table[:1], table[:0], table[1:]):
            writer.write_table(part)
    assert pa.parquet.ParquetFile(tmp_path / "data.parquet").num_row_groups == 4
    (source,) = opened(1, source=str(tmp_path / "data.parquet"))
    with source:
        np.testing.assert_array_equal(source.features(EVERY), [[1.0], [2.0], [3.0]])
        np.testing.assert_array_equal(source.targets(EVERY), [0.0, 1.0, 2.0])


def test_groups_are_read_from_named_columns_and_are_no_features(tmp_path):
    sites = np.array(["b", "a", "b"])
    table = pa.table({"x": [1.0, 2.0, 3.0], "site": sites, "target": [0, 1, 0]})
    pa.parquet.write_table(table, tmp_path / "data.parquet")
    pa.csv.write_csv(table, tmp_path / "data.csv")
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["features"], file["targets"] = [[1.0], [2.0], [3.0]], [0, 1, 0]
        file["site"] = sites.astype(object)
    for name in ("data.parquet", "data.csv", "data.h5"):
        (source,) = opened(1, source=str(tmp_path / name), partition="by_column", partition_column="site")
        with source:
            assert source.column("site").tolist() == sites.tolist()
            np.testing.assert_array_equal(source.features(EVERY), [[1.0], [2.0], [3.0]])


def test_csr_with_repeated_and_unsorted_columns_is_put_in_order(tmp_path):
    np.savez(
        tmp_path / "csr.npz",
        data=[1.0, 2.0, 4.0],
        indices=[2, 0, 2],
        indptr=[0, 3, 3],
        shape=[2, 3],
        targets=[0.0, 1.0],
    )
    (source,) = opened(1, source=str(tmp_path / "csr.npz"))
    with source:
        matrix = source.features(EVERY)
        assert matrix.has_canonical_format
        np.testing.assert_array_equal(matrix.indices, [0, 2])
        np.testing.assert_array_equal(matrix.data, [2.0, 5.0])
