"""Whatever is wrong with a file, it is refused in one line that names it."""

import os
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import scipy.sparse as sp
from crews import in_crew
from sample_files import (
    DENSE,
    FORMATS,
    csr_arrays,
    hdf5,
    hdf5_csr,
    hdf5_in_chunks,
    npy,
    npz,
    npz_csr,
    parquet,
    svmlight,
)
from sklearn.datasets import dump_svmlight_file

from goco_mpi.data.readers import memory, open_source
from goco_mpi.errors import InputError
from goco_mpi.schema import DataConfig

EVERY = slice(None)
FEATURES = np.random.default_rng(0).standard_normal((40, 3)).round(3)
TARGETS = np.arange(40.0)
LARGE = np.where(FEATURES > 0, 1e308, 1e307)
TEXT = ("svmlight", "csv")
IN_PARTS = (npy, npz, npz_csr, hdf5, hdf5_csr, svmlight, parquet)


def name_of(value):
    return getattr(value, "__name__", None)


def read_all(source):
    source.targets(EVERY), source.features(EVERY)


def refusal(**options):
    """The one line with which a source is refused, at the latest when it is read."""
    with pytest.raises(InputError) as refused, open_source(DataConfig(**options), 0) as source:
        read_all(source)
    message = str(refused.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("write", FORMATS, ids=name_of)
def test_features_that_are_not_finite_are_refused_by_their_row(tmp_path, write):
    features = FEATURES.copy()
    features[23, 1], features[30] = np.nan, [np.inf, -np.inf, np.nan]
    message = refusal(**write(tmp_path, features, TARGETS))
    assert "must hold finite numbers. A feature in row 23 (counted from 0)" in message
    assert "Remove or impute" in message


@pytest.mark.parametrize("write", IN_PARTS, ids=name_of)
def test_numbers_whose_sum_overflows_are_finite_all_the_same(tmp_path, write):
    with open_source(DataConfig(**write(tmp_path, LARGE, TARGETS)), 0) as source:
        got = source.features(EVERY)
        np.testing.assert_array_equal(got.toarray() if source.sparse else got, LARGE)


@pytest.mark.parametrize("write", IN_PARTS, ids=name_of)
def test_it_is_the_row_of_the_file_that_is_named_whatever_rows_are_asked_for(tmp_path, write):
    features = FEATURES.copy()
    features[23, 1] = np.nan
    with open_source(DataConfig(**write(tmp_path, features, TARGETS)), 0) as source:
        for rows in (np.array([39, 23, 2]), slice(22, 30)):
            with pytest.raises(InputError, match=r"A feature in row 23 \(counted from 0\)"):
                source.features(rows)
        np.testing.assert_array_equal(source.targets(slice(20, 25)), TARGETS[20:25])


@pytest.mark.parametrize("write", FORMATS, ids=name_of)
def test_targets_that_are_not_finite_are_refused_by_their_row(tmp_path, write):
    message = refusal(**write(tmp_path, FEATURES, np.where(TARGETS == 17, np.nan, TARGETS)))
    assert "must hold finite numbers. A target in row 17 (counted from 0)" in message


@pytest.mark.parametrize("write", FORMATS, ids=name_of)
def test_numbers_too_large_for_float32_are_refused_as_such(tmp_path, write):
    features = FEATURES.copy()
    features[5, 2] = 1e300
    options = write(tmp_path, features, TARGETS)
    assert "row 5 (counted from 0) is inf as float32" in refusal(dtype="float32", **options)


@pytest.mark.parametrize("write", [write for write in FORMATS if write not in (svmlight, hdf5_in_chunks)], ids=name_of)
@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_no_samples_and_no_features_are_refused(tmp_path, write, shape):
    assert "is empty" in refusal(**write(tmp_path, np.empty(shape), np.empty(shape[0])))


@pytest.mark.parametrize("text", [b"", b"\n  \n", b"# only a comment\n"])
def test_an_svmlight_file_without_samples_is_refused(tmp_path, text):
    (tmp_path / "data.svm").write_bytes(text)
    assert "is empty" in refusal(source=str(tmp_path / "data.svm"))


@pytest.mark.parametrize("write", [write for write in FORMATS if write.__name__ not in TEXT], ids=name_of)
@pytest.mark.parametrize("part", [0.0, 0.02, 0.6, 1.0])
def test_a_truncated_file_is_refused(tmp_path, write, part):
    options = write(tmp_path, np.tile(FEATURES, (20, 1)), np.tile(TARGETS, 20))
    path = Path(options["source"])
    path.write_bytes(path.read_bytes()[: round(part * (path.stat().st_size - 1))])
    assert repr(str(path)) in refusal(**options)


@pytest.mark.parametrize("write", [npy, npz, npz_csr, hdf5, hdf5_csr, parquet], ids=name_of)
def test_that_the_last_byte_is_missing_is_noticed_when_a_file_is_opened(tmp_path, write):
    options = write(tmp_path, FEATURES, TARGETS)
    os.truncate(options["source"], Path(options["source"]).stat().st_size - 1)
    with pytest.raises(InputError, match=r"truncated|damaged"):
        open_source(DataConfig(**options), 0)


@pytest.mark.parametrize("write", FORMATS, ids=name_of)
@pytest.mark.parametrize("content", [b"\x00\x01\xff\n\xfe", b"text,\n", b"PK\x03\x04", b"PK\x05\x06", b"PAR1"])
def test_a_file_of_another_format_is_refused(tmp_path, write, content):
    options = write(tmp_path, FEATURES, TARGETS)
    Path(options["source"]).write_bytes(content)
    assert repr(options["source"]) in refusal(**options)


@pytest.mark.parametrize("write", FORMATS, ids=name_of)
@pytest.mark.parametrize("what", ["directory", "broken link", "nothing"])
def test_what_is_no_file_is_refused(tmp_path, write, what):
    options = write(tmp_path, FEATURES, TARGETS)
    path = Path(options["source"])
    path.unlink()
    if what == "directory":
        path.mkdir()
    elif what == "broken link":
        path.symlink_to(tmp_path / "gone")
    assert repr(options["source"]) in refusal(**options)


@pytest.mark.parametrize("write", FORMATS, ids=name_of)
def test_a_file_that_one_may_not_read_is_refused(tmp_path, write, monkeypatch):
    options = write(tmp_path, FEATURES, TARGETS)
    real = os.open  # the superuser may read everything, so that modes of the file would prove nothing

    def denied(path, *arguments):
        if path == options["source"]:
            raise PermissionError(13, "Permission denied")
        return real(path, *arguments)

    monkeypatch.setattr(os, "open", denied)
    assert f"data.source {options['source']!r} cannot be read: Permission denied." in refusal(**options)


@pytest.mark.parametrize("write", FORMATS, ids=name_of)
def test_a_disk_that_fails_is_refused(tmp_path, write, monkeypatch):
    options = write(tmp_path, FEATURES, TARGETS)

    def fails(*arguments):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", fails)
    message = refusal(**options)
    assert repr(options["source"]) in message
    assert "cannot be read: Input/output error" in message


@pytest.mark.parametrize("write", IN_PARTS, ids=name_of)
def test_a_file_that_shrinks_after_it_was_opened_is_refused(tmp_path, write):
    options = write(tmp_path, np.tile(FEATURES, (500, 1)), np.tile(TARGETS, 500))
    with open_source(DataConfig(**options), 0) as source:
        os.truncate(options["source"], 500)
        with pytest.raises(InputError, match=r"data\.source"):
            read_all(source)


@pytest.mark.parametrize(
    ("features", "targets", "message"),
    [
        (FEATURES[0], TARGETS, "must be a 2-dimensional array of real numbers. Got shape (3,)"),
        (FEATURES[:, :, None], TARGETS, "must be a 2-dimensional array of real numbers. Got shape (40, 3, 1)"),
        (FEATURES, TARGETS[:, None], "must be a 1-dimensional array of real numbers. Got shape (40, 1)"),
        (np.float64(3.0), TARGETS, "must be a 2-dimensional array of real numbers. Got shape ()"),
        (FEATURES.astype("S8"), TARGETS, "must be a 2-dimensional array of real numbers"),
        (FEATURES, TARGETS.astype("S8"), "must be a 1-dimensional array of real numbers"),
        (FEATURES + 1j, TARGETS, "dtype complex128"),
        (np.zeros(40, [("a", float), ("b", int)]), TARGETS, "must be a 2-dimensional array of real numbers"),
        (
            FEATURES,
            TARGETS[:-1],
            "must have one target a row. Got features of shape (40, 3) and targets of shape (39,",
        ),
    ],
    ids=["1d", "3d", "2d-targets", "0d", "text", "text-targets", "complex", "records", "lengths"],
)
@pytest.mark.parametrize("write", [npy, npz, hdf5], ids=name_of)
def test_arrays_that_are_no_samples_are_refused(tmp_path, write, features, targets, message):
    assert message in refusal(**write(tmp_path, features, targets))


@pytest.mark.parametrize("write", [write for write in DENSE if write.__name__.startswith("np")], ids=name_of)
def test_pickled_objects_are_refused_and_never_unpickled(tmp_path, write):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    ragged = np.empty((40, 3), object)
    ragged[:] = Trap()
    message = refusal(**write(tmp_path, ragged, TARGETS))
    assert "dtype object" in message or "Object arrays cannot be loaded" in message
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"indptr": lambda a: a[:-1]}, "the shape of the CSR features must be two whole numbers"),
        ({"indptr": lambda a: a + 1}, "indptr of the CSR features must go from 0 to the length"),
        (
            {"indptr": lambda a: np.concatenate((a[:5], a[4:5] - 2, a[6:]))},
            "must not decrease or leave the data. Row 4",
        ),
        ({"indptr": lambda a: np.concatenate((a[:5], [10**9], a[6:]))}, "must not decrease or leave the data. Row 4"),
        ({"indptr": lambda a: np.concatenate((a[:5], [-(2**40)], a[6:]))}, "must not decrease or leave the data"),
        ({"indptr": lambda a: a.astype(float)}, "indptr of the CSR features must be a 1-dimensional array of whole"),
        ({"indices": lambda a: np.where(np.arange(len(a)) == 70, 3, a)}, "Row 23 (counted from 0) has column 3"),
        ({"indices": lambda a: np.where(np.arange(len(a)) == 70, -1, a)}, "Row 23 (counted from 0) has column -1"),
        (
            {"indices": lambda a: a.astype(np.int64) + 2**32 * (np.arange(len(a)) == 70)},
            "has column 429496729",
        ),
        ({"indices": lambda a: a[:-1]}, "indptr of the CSR features must go from 0 to the length"),
        ({"data": lambda a: a.astype("S8")}, "data of the CSR features must be a 1-dimensional array of real numbers"),
        ({"data": lambda a: a[:, None]}, "data of the CSR features must be a 1-dimensional array of real numbers"),
        ({"shape": lambda a: np.array([40, 2])}, "must be at least 0 and below 2"),
        ({"shape": lambda a: np.array([39, 3])}, "the shape of the CSR features must be two whole numbers"),
        ({"shape": lambda a: np.array([40.0, 3.0])}, "the shape of the CSR features must be two whole numbers"),
    ],
)
@pytest.mark.parametrize("kind", ["npz", "h5"])
def test_arrays_that_are_no_csr_matrix_are_refused(tmp_path, kind, change, message):
    arrays = csr_arrays(FEATURES + 10.0)
    for name, wrong in change.items():
        arrays[name] = wrong(arrays[name])
    path = tmp_path / f"data.{kind}"
    if kind == "npz":
        np.savez(path, targets=TARGETS, **arrays)
    else:
        with h5py.File(path, "w") as file:
            file["targets"] = TARGETS
            for name, array in arrays.items():
                file[f"features/{name}"] = array
    assert message in refusal(source=str(path))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed, None], ids=["npz", "compressed", "h5"])
def test_a_csc_matrix_is_not_taken_for_its_transpose(tmp_path, save):
    square = sp.csc_array(FEATURES[:3])
    if save is not None:
        path = tmp_path / "data.npz"
        sp.save_npz(path, square)
        with np.load(path) as arrays:
            save(tmp_path / "data.npz", targets=TARGETS[:3], **dict(arrays))
    else:
        path = tmp_path / "data.h5"
        with h5py.File(path, "w") as file:
            file["targets"] = TARGETS[:3]
            group = file.create_group("features")
            group.attrs["encoding-type"], group.attrs["shape"] = "csc_matrix", square.shape
            for name in ("data", "indices", "indptr"):
                group[name] = getattr(square, name)
    assert "must be CSR. The file says that they are CSC. Use tocsr()." in refusal(source=str(path))


def test_repeated_columns_whose_sum_overflows_are_refused_by_their_row(tmp_path):
    arrays = {"data": [1.0, 1e308, 1e308], "indices": [0, 1, 1], "indptr": [0, 1, 3], "shape": [2, 2]}
    np.savez(tmp_path / "data.npz", targets=[0.0, 1.0], **arrays)
    assert "A feature in row 1 (counted from 0) is inf" in refusal(source=str(tmp_path / "data.npz"))


def test_datasets_that_are_not_there_are_named_with_those_that_are(tmp_path):
    options = hdf5(tmp_path, FEATURES, TARGETS)
    message = refusal(features="x", **options)
    assert "data.features = 'x'" in message and "It has features, targets." in message
    assert "data.target_column = 'y'" in refusal(target_column="y", **options)
    with h5py.File(options["source"], "a") as file:
        file["group/x"] = FEATURES
    assert "has a group of that name" in refusal(target_column="group", **options)
    assert "member = 'data'" in refusal(features="group", **options)
    np.savez(tmp_path / "data.npz", features=FEATURES, labels=TARGETS)
    assert "It holds features, labels." in refusal(source=str(tmp_path / "data.npz"))
    np.savez(tmp_path / "data.npz")
    assert "It holds none." in refusal(source=str(tmp_path / "data.npz"))


def test_an_hdf5_file_of_damaged_chunks_is_refused(tmp_path):
    path = tmp_path / "data.h5"
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("features", data=FEATURES, chunks=(10, 3), fletcher32=True)
        place = dataset.id.get_chunk_info(2).byte_offset
        file["targets"] = TARGETS
    content = bytearray(path.read_bytes())
    content[place : place + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    assert "cannot be read" in refusal(source=str(path))


def write_table(path, columns):
    if path.suffix == ".csv":
        lines = zip(*columns.values(), strict=True)
        path.write_text("\n".join(",".join(map(str, line)) for line in [list(columns), *lines]) + "\n")
    else:
        pa.parquet.write_table(pa.table(columns), path)
    return str(path)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_tables_are_refused_with_the_column_that_is_wrong(tmp_path, suffix):
    path = tmp_path / f"data{suffix}"
    write_table(path, {"a": [1.0, 2.0], "label": [0, 1]})
    assert "data.target_column = 'target'" in refusal(source=str(path))
    assert "It has a, label." in refusal(source=str(path), target_column="b")
    write_table(path, {"a": [1.0, 2.0], "site": ["north", "south"], "target": [0, 1]})
    message = refusal(source=str(path))
    assert "column 'site' must hold real numbers. Got string" in message
    write_table(path, {"a": [1.0, 2.0], "target": ["yes", "no"]})
    assert "column 'target' must hold real numbers" in refusal(source=str(path))
    write_table(path, {"target": [0, 1]})
    assert "is empty: it has no column of features" in refusal(source=str(path))


def test_places_without_a_number_are_not_finite(tmp_path):
    columns = {"a": pa.array([1.0, None, 3.0]), "n": pa.array([1, 2, 3]), "target": [0, 1, 2]}
    pa.parquet.write_table(pa.table(columns), tmp_path / "data.parquet")
    assert "A feature in row 1" in refusal(source=str(tmp_path / "data.parquet"))
    (tmp_path / "data.csv").write_text("a,target\n1,2\n3,\n")
    assert "A target in row 1" in refusal(source=str(tmp_path / "data.csv"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("a,target\n", "is empty"),
        ("1.0,2.0\n3.0,4.0\n", "must name its columns in the first line. Got 1.0, 2.0."),
        ("a,target\n1,2\n3\n", "Expected 2 columns, got 1"),
        ("a,a,target\n1,2,3\n", "must have columns of different names. Several are called 'a'"),
        ("a,target\n1,2\nx,4\n", "column 'a' must hold real numbers. Got string"),
    ],
    ids=["nothing", "head-only", "headless", "ragged", "twice", "text"],
)
def test_csv_files_that_are_no_table_of_numbers_are_refused(tmp_path, text, message):
    (tmp_path / "data.csv").write_text(text)
    assert message in refusal(source=str(tmp_path / "data.csv"))


@pytest.mark.parametrize(
    "text",
    [
        "hello world\n",
        "1 2 3\n",
        "1 1:\n",
        "1 -1:2\n",
        "1 3:1 1:1\n",
        "1,2 1:3\n",
        "1 99999999999999999999:1\n",
        "1 4000000000:1\n",
        "\x00\x01\x02\n",
    ],
)
def test_text_that_is_no_svmlight_is_refused_by_its_place(tmp_path, text):
    path = tmp_path / "data.svm"
    path.write_text("0 1:1\n" * 300 + text + "0 1:1\n" * 300)
    message = refusal(source=str(path))
    assert repr(str(path)) in message
    assert "not an svmlight file" in message
    if "4000000000" not in text:
        assert "at byte 1800" in message


def test_an_svmlight_file_that_counts_from_1_and_has_a_0_where_another_rank_reads_is_zero_based(tmp_path):
    path = tmp_path / "data.svm"
    dump_svmlight_file(np.eye(3), np.ones(3), str(path), zero_based=True)
    with open_source(DataConfig(source=str(path)), 0) as source:
        assert source.n_features == 3


def test_a_group_column_that_is_not_there_has_gaps_or_names_nothing_is_refused(tmp_path):
    options = {"partition": "by_column", "partition_column": "site"}
    path = tmp_path / "data.parquet"
    pa.parquet.write_table(pa.table({"a": [1.0], "target": [1]}), path)
    assert "no such column. It has a, target." in refusal(source=str(path), **options)
    pa.parquet.write_table(pa.table({"a": [1.0, 2.0], "target": [1, 2], "site": ["n", None]}), path)
    with (
        open_source(DataConfig(source=str(path), **options), 0) as source,
        pytest.raises(InputError, match=r"must name the group of every sample\. It has 1 empty"),
    ):
        source.column("site")
    for sites in ([[1], [2, 3]], [{"x": 1}, {"x": 2}]):
        pa.parquet.write_table(pa.table({"a": [1.0, 2.0], "target": [1, 2], "site": sites}), path)
        with (
            open_source(DataConfig(source=str(path), **options), 0) as source,
            pytest.raises(InputError, match=r"must name groups by text or numbers\. Got (list|struct)"),
        ):
            source.column("site")


@pytest.mark.parametrize(
    ("module", "extra", "write"), [("h5py", "hdf5", "data.h5"), ("pyarrow.parquet", "parquet", "data.parquet")]
)
def test_a_library_that_is_not_there_is_named_with_how_to_get_it(tmp_path, monkeypatch, module, extra, write):
    import sys

    (tmp_path / write).write_bytes(b"")
    monkeypatch.setitem(sys.modules, module, None)
    message = refusal(source=str(tmp_path / write))
    assert f"needs {module}, which is not installed: pip install 'goco-mpi[{extra}]'." in message


@pytest.mark.parametrize("write", IN_PARTS, ids=name_of)
def test_what_one_rank_cannot_open_all_refuse_in_its_words_and_leave_nothing_open(tmp_path, write, monkeypatch):
    monkeypatch.setattr(memory, "SMALL_BYTES", 0)
    options = write(tmp_path, FEATURES, TARGETS)
    gone = str(tmp_path / f"gone{Path(options['source']).suffix}")

    def work(crew):
        source = gone if crew.rank == 1 else options["source"]
        with pytest.raises(InputError) as refused:
            open_source(DataConfig(**{**options, "source": source}), 0, crew)
        return str(refused.value)

    opened_before = len(list(Path("/dev/fd").iterdir()))
    messages = in_crew(3, work)
    assert messages == [f"data.source {gone!r} cannot be read: No such file or directory."] * 3
    assert len(list(Path("/dev/fd").iterdir())) == opened_before


@pytest.mark.parametrize("write", FORMATS, ids=name_of)
def test_damaged_bytes_are_read_or_refused_and_nothing_else(tmp_path, write):
    options = write(tmp_path, FEATURES, TARGETS)
    path, rng, refused = Path(options["source"]), np.random.default_rng(5), 0
    content = path.read_bytes()
    for _ in range(60):
        damaged = bytearray(content)
        for near in (min(600, len(content)), len(content)):  # most of what is not a number is in the beginning
            damaged[rng.integers(near)] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            with open_source(DataConfig(**options), 0) as source:
                read_all(source)
        except InputError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused
