import gc

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.datasets import dump_svmlight_file

from goco_mpi.data.crew import Crew
from goco_mpi.data.dataset import Dataset
from goco_mpi.data.readers import open_source, synthetic
from goco_mpi.errors import InputError
from goco_mpi.schema import DataConfig

FEATURES = np.random.default_rng(0).standard_normal((30, 12))
TARGETS = np.arange(30.0)


def load(source, **options):
    with open_source(DataConfig(source=str(source), **options), seed=0) as opened:
        return Dataset(opened.features(slice(None)), opened.targets(slice(None)))


def draw(*arguments, **options):
    return Dataset(*synthetic.synthetic_least_squares(*arguments, **options))


def refusal(source, **options):
    """The one line with which a source is refused."""
    with pytest.raises(InputError) as refused:
        load(source, **options)
    message = str(refused.value)
    assert "\n" not in message
    # A file left open is reported when its last reference goes: let it go here, in the right test.
    del refused
    gc.collect()
    return message


@pytest.fixture
def npy(tmp_path):
    """Features and targets in two .npy files."""
    np.save(tmp_path / "x.npy", FEATURES)
    np.save(tmp_path / "y.npy", TARGETS)
    return tmp_path / "x.npy", tmp_path / "y.npy"


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [("digits", (1797, 64), 10), ("breast_cancer", (569, 30), 2), ("diabetes", (442, 10), 0)],
)
def test_bundled_sets_have_their_published_shapes(name, shape, classes):
    dataset = load(name)
    assert dataset.features.shape == shape
    assert dataset.features.dtype == dataset.targets.dtype == np.float64
    if classes:
        assert sorted(set(dataset.targets)) == list(range(classes))


@pytest.mark.parametrize("suffix", [".svm", ".libsvm", ".svmlight", ".txt"])
def test_svmlight_round_trip(tmp_path, suffix):
    sparse = sp.csr_array(np.where(FEATURES > 0.5, FEATURES, 0.0))
    path = tmp_path / f"data{suffix}"
    dump_svmlight_file(sparse, TARGETS, str(path), zero_based=False)
    dataset = load(path, format="svmlight" if suffix == ".txt" else "auto")
    assert isinstance(dataset.features, sp.csr_array)
    # The format is decimal text of 16 digits.
    np.testing.assert_allclose(dataset.features.toarray(), sparse.toarray(), rtol=1e-15)
    np.testing.assert_array_equal(dataset.targets, TARGETS)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_round_trip(tmp_path, save):
    save(tmp_path / "data.npz", features=FEATURES, targets=TARGETS)
    dataset = load(tmp_path / "data.npz")
    np.testing.assert_array_equal(dataset.features, FEATURES)
    np.testing.assert_array_equal(dataset.targets, TARGETS)


def test_npy_round_trip(npy):
    features, targets = npy
    dataset = load(features, targets=str(targets))
    np.testing.assert_array_equal(dataset.features, FEATURES)
    np.testing.assert_array_equal(dataset.targets, TARGETS)


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.uint8, np.bool_])
def test_real_numbers_of_any_type_become_float64_rows(tmp_path, dtype):
    features = np.asfortranarray(np.arange(6).reshape(3, 2) % 2).astype(dtype)
    np.savez(tmp_path / "data.npz", features=features, targets=np.ones(3, dtype))
    dataset = load(tmp_path / "data.npz")
    assert dataset.features.dtype == dataset.targets.dtype == np.float64
    assert dataset.features.flags.c_contiguous
    np.testing.assert_array_equal(dataset.features, features.astype(float))


def test_a_format_given_outranks_the_suffix(tmp_path):
    np.savez(tmp_path / "data.npz", features=FEATURES, targets=TARGETS)
    (tmp_path / "data.npz").rename(tmp_path / "data.svm")
    np.testing.assert_array_equal(load(tmp_path / "data.svm", format="npz").features, FEATURES)


def test_synthetic_data_without_noise_have_one_solution():
    dataset = draw(60, 5, 6, noise=0.0, heterogeneity=0.0, seed=3)
    _, residual, _, _ = np.linalg.lstsq(dataset.features, dataset.targets)
    assert residual[0] < 1e-20


def test_heterogeneity_gives_every_shard_a_solution_of_its_own_at_its_distance():
    options = {"n_samples": 600, "n_features": 5, "n_shards": 6, "noise": 0.0, "seed": 3}
    same = draw(**options, heterogeneity=0.0)
    own = draw(**options, heterogeneity=2.0)
    np.testing.assert_array_equal(same.features, own.features)
    common = np.linalg.lstsq(same.features, same.targets)[0]
    shifts = []
    for rows in np.array_split(np.arange(600), 6):
        solution, residual, _, _ = np.linalg.lstsq(own.features[rows], own.targets[rows])
        assert residual[0] < 1e-18
        shifts.append((solution - common) / 2.0)
    # 30 standard normal numbers: mean square 1 with deviation sqrt(2 / 30).
    assert abs(np.mean(np.square(shifts)) - 1.0) < 5 * np.sqrt(2 / 30)
    assert len({tuple(shift.round(6)) for shift in shifts}) == 6


def test_noise_has_its_standard_deviation():
    options = {"n_samples": 4000, "n_features": 3, "n_shards": 2, "heterogeneity": 0.0, "seed": 1}
    clean, noisy = (draw(**options, noise=noise).targets for noise in (0.0, 0.5))
    # The deviation of a sample's deviation is sigma / sqrt(2 n).
    assert abs(np.std(noisy - clean) - 0.5) < 5 * 0.5 / np.sqrt(8000)


def test_synthetic_data_depend_on_the_seed_alone():
    first, again, other = (
        open_source(DataConfig(source="synthetic", n_samples=20, n_features=3, shards=4), seed).targets(slice(None))
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("source", ["no_such_set", "gone/data.npz", "", "nul\0byte", "x" * 300])
def test_a_source_that_is_no_file_is_refused_with_what_there_is(source):
    message = refusal(source)
    assert repr(source) in message
    assert "digits, breast_cancer, diabetes, synthetic" in message


def test_a_directory_is_no_file(tmp_path):
    assert "There is no file" in refusal(tmp_path)


def test_an_unknown_suffix_asks_for_the_format(tmp_path):
    (tmp_path / "data.csv").write_text("1,2\n")
    message = refusal(tmp_path / "data.csv")
    assert "data.format must be given" in message
    assert "svmlight, npz or npy" in message


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
def test_text_that_is_no_svmlight_is_refused_by_name(tmp_path, text):
    path = tmp_path / "data.svm"
    path.write_text(text)
    message = refusal(path)
    assert repr(str(path)) in message
    assert "not an svmlight file" in message


@pytest.mark.parametrize(
    ("text", "what"), [("1 1:nan\n", "feature"), ("1 1:inf\n", "feature"), ("nan 1:1\n", "target")]
)
def test_svmlight_values_that_are_not_finite_are_refused(tmp_path, text, what):
    path = tmp_path / "data.svm"
    path.write_text("0 1:1\n" + text)
    assert f"1 {what} values are NaN or infinite" in refusal(path)


@pytest.mark.parametrize("text", ["", "# only a comment\n"])
def test_an_svmlight_file_without_samples_is_empty(tmp_path, text):
    path = tmp_path / "data.svm"
    path.write_text(text)
    assert "is empty" in refusal(path)


@pytest.mark.parametrize(
    ("features", "targets", "message"),
    [
        (FEATURES[0], TARGETS, "features must be a 2-dimensional array of real numbers. Got shape (12,)"),
        (FEATURES, TARGETS[:, None], "targets must be a 1-dimensional array of real numbers. Got shape (30, 1)"),
        (FEATURES.astype(str), TARGETS, "features must be a 2-dimensional array of real numbers"),
        (FEATURES + 1j, TARGETS, "dtype complex128"),
        (FEATURES, TARGETS[:-1], "must have one target a row"),
        (FEATURES[:0], TARGETS[:0], "is empty"),
        (
            np.where(TARGETS[:, None] == 7, np.nan, FEATURES),
            TARGETS,
            "12 feature values are NaN or infinite (first in row 7",
        ),
        (FEATURES, np.where(TARGETS == 5, -np.inf, TARGETS), "1 target values are NaN or infinite (first in row 5"),
        (np.array([[1], [1, 2]], dtype=object), TARGETS, "cannot be read"),
    ],
    ids=["1d", "2d-targets", "text", "complex", "ragged", "empty", "nan", "inf", "objects"],
)
def test_arrays_that_are_no_samples_are_refused(tmp_path, features, targets, message):
    path = tmp_path / "data.npz"
    np.savez(path, features=features, targets=targets)
    told = refusal(path)
    assert message in told
    assert repr(str(path)) in told


def test_npz_without_the_arrays_says_what_it_holds(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, features=FEATURES, labels=TARGETS)
    message = refusal(path)
    assert "must hold the arrays 'features' and 'targets'. It holds features, labels." in message
    np.savez(path)
    assert "It holds none." in refusal(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03", b"plain text\n", b"PK\x05\x06"])
def test_npz_that_is_no_archive_is_refused(tmp_path, content):
    path = tmp_path / "data.npz"
    path.write_bytes(content)
    assert repr(str(path)) in refusal(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_truncated_npz_is_refused(tmp_path, save):
    path = tmp_path / "data.npz"
    save(path, features=FEATURES, targets=TARGETS)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert repr(str(path)) in refusal(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_npz_is_refused_wherever_the_damage_is(tmp_path, save):
    path = tmp_path / "data.npz"
    save(path, features=FEATURES, targets=TARGETS)
    content = path.read_bytes()
    for place in range(60, 1500, 160):
        path.write_bytes(content[:place] + b"\xff" * 8 + content[place + 8 :])
        assert repr(str(path)) in refusal(path)


def test_a_single_array_is_no_npz(npy):
    assert "single .npy array, not an .npz file" in refusal(npy[0], format="npz")


def test_an_npz_archive_is_no_npy_array(tmp_path, npy):
    archive = tmp_path / "data.npz"
    np.savez(archive, features=FEATURES, targets=TARGETS)
    assert repr(str(archive)) in refusal(archive, format="npy", targets=str(npy[1]))
    assert repr(str(archive)) in refusal(npy[0], targets=str(archive))


def test_npy_features_need_a_file_of_targets(npy):
    message = refusal(npy[0])
    assert "data.targets must name the .npy file" in message


def test_a_missing_file_of_targets_is_named(npy, tmp_path):
    gone = str(tmp_path / "gone.npy")
    message = refusal(npy[0], targets=gone)
    assert repr(gone) in message
    assert "data.targets" in message


@pytest.mark.parametrize("size", [0, 20, 300])
def test_a_truncated_npy_is_refused(npy, size):
    features, targets = npy
    features.write_bytes(features.read_bytes()[:size])
    assert repr(str(features)) in refusal(features, targets=str(targets))


def test_only_rank_0_of_a_crew_reads_what_is_held_whole(npy):
    features, targets = npy
    config = DataConfig(source=str(features), targets=str(targets))
    told = []

    def first(part):
        told.append(part)
        return [part, (None, None)]

    root = open_source(config, 0, Crew(0, 2, first))
    kind, facts = told

    def second(part):
        return [kind if part[0] == "" else facts, part]

    features.unlink()
    other = open_source(config, 0, Crew(1, 2, second))
    assert other.whole and root.whole
    assert (other.n_samples, other.n_features, other.sparse, other.dtype) == (30, 12, False, np.float64)
    assert (root.bytes_read > 30 * 13 * 8, other.bytes_read) == (True, 0)
    np.testing.assert_array_equal(other.targets(slice(None)), TARGETS)
    np.testing.assert_array_equal(root.features(np.array([3, 1])), FEATURES[[3, 1]])
