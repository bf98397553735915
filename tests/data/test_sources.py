import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.datasets import dump_svmlight_file

from goco_mpi.data.dataset import Dataset
from goco_mpi.data.readers import FILE_OPENERS, OPENERS, SUFFIXES, open_source, synthetic
from goco_mpi.errors import InputError
from goco_mpi.schema import DataConfig
from goco_mpi.values import FORMATS, NO_PATHS

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
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.fixture
def npy(tmp_path):
    """Features and targets in two .npy files."""
    np.save(tmp_path / "x.npy", FEATURES)
    np.save(tmp_path / "y.npy", TARGETS)
    return tmp_path / "x.npy", tmp_path / "y.npy"


def test_an_experiment_file_may_name_whatever_there_is_a_reader_of():
    assert set(OPENERS) == set(NO_PATHS)
    assert {"auto", *FILE_OPENERS} == set(FORMATS)
    assert set(SUFFIXES.values()) == set(FILE_OPENERS)


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


@pytest.mark.parametrize("key", ["targets", "features", "target_column"])
def test_a_key_for_which_the_format_has_no_use_is_refused(tmp_path, key):
    np.savez(tmp_path / "data.npz", features=FEATURES, targets=TARGETS)
    message = refusal(tmp_path / "data.npz", **{key: "y"})
    assert f"data.{key} goes with the formats" in message
    assert "whose format is npz. Leave it out." in message


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
    assert "is a directory, and no shard store" in refusal(tmp_path)


def test_an_unknown_suffix_asks_for_the_format(tmp_path):
    (tmp_path / "data.tsv").write_text("1\t2\n")
    message = refusal(tmp_path / "data.tsv")
    assert "data.format must be given" in message
    assert "svmlight, npz, npy, hdf5, parquet or csv" in message


def test_a_damaged_npz_is_refused_wherever_the_damage_is_if_it_is_compressed(tmp_path):
    path = tmp_path / "data.npz"
    np.savez_compressed(path, features=FEATURES, targets=TARGETS)
    content = path.read_bytes()
    for place in range(60, 1500, 160):
        path.write_bytes(content[:place] + b"\xff" * 8 + content[place + 8 :])
        assert repr(str(path)) in refusal(path)


def test_a_single_array_is_no_npz(npy):
    assert "is not an .npz archive" in refusal(npy[0], format="npz")


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
