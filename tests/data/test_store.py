import errno
import json
import os
import shutil
import tracemalloc
from pathlib import Path

import msgspec
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from goco_mpi import manifest
from goco_mpi.cli import main
from goco_mpi.config import parse_config
from goco_mpi.data import sharding, store
from goco_mpi.data.crew import Crew
from goco_mpi.data.readers import open_source
from goco_mpi.data.sharding import make_store
from goco_mpi.data.split import needs_targets, split
from goco_mpi.errors import InputError, RunError

N, D = 230, 6


def write_input(path, sparse):
    """A file of samples that differ from each other, and its ``[data]``."""
    rng = np.random.default_rng(3)
    features = np.where(rng.random((N, D)) < 0.4, rng.integers(1, 9, (N, D)), 0.0)
    targets = rng.integers(0, 3, N).astype(float)
    if sparse:
        from sklearn.datasets import dump_svmlight_file

        features[:, 0] = np.arange(1.0, N + 1)  # which row it was
        dump_svmlight_file(sp.csr_array(features), targets, str(path / "data.svm"), zero_based=True)
        return {"source": str(path / "data.svm")}
    features[:, 0] = np.arange(1.0, N + 1)
    np.savez(path / "data.npz", features=features, targets=targets)
    return {"source": str(path / "data.npz")}


@pytest.fixture(params=[False, True], ids=["dense", "csr"])
def data(request, tmp_path):
    return write_input(tmp_path, request.param)


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    """Many blocks and chunks even of small data."""
    monkeypatch.setattr(sharding, "BLOCK_BYTES", 1500)
    monkeypatch.setattr(sharding, "_FIRST_ROWS", 16)
    monkeypatch.setattr(store, "CHUNK_BYTES", 700)


def made(data, out, seed=0, force=False, **options):
    config = parse_config({"seed": seed, "data": {"shards": 5, **data, **options}})
    return make_store(config.data, seed, Path(out), force, {})


def opened(out, **options):
    config = parse_config({"data": {"source": str(out), **options}})
    return open_source(config.data, config.seed)


def dense(array):
    return array.toarray() if sp.issparse(array) else array


def everything(source):
    return dense(source.features(slice(0, source.n_samples))), source.targets(slice(0, source.n_samples))


def refusal(action):
    with pytest.raises(InputError) as refused:
        action()
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("partition", ["iid", "by_label", "in_order", "dirichlet"])
def test_a_store_has_the_rows_of_each_shard_as_a_run_would_cut_them(data, tmp_path, partition):
    made(data, tmp_path / "store", seed=4, partition=partition)
    config = parse_config({"seed": 4, "data": {**data, "shards": 5, "partition": partition}}).data
    with open_source(config, 4) as source, opened(tmp_path / "store") as stored:
        features, targets = everything(source)
        wanted = split(config, source, 4, targets if needs_targets(config, source) else None, None)
        assert len(stored.cut.shards) == 5
        for shard, rows in enumerate(stored.cut.shards):
            original = np.sort(np.r_[wanted.rows(shard)])
            np.testing.assert_array_equal(dense(stored.features(rows)), features[original])
            np.testing.assert_array_equal(stored.targets(rows), targets[original])
        np.testing.assert_array_equal(dense(stored.features(stored.cut.test)), features[np.sort(np.r_[wanted.test])])
        assert stored.sparse == source.sparse
        assert stored.labels.tolist() == [0.0, 1.0, 2.0]


@settings(max_examples=30, deadline=None)
@given(draws=st.data())
def test_any_rows_are_those_rows(tmp_path_factory, draws):
    path = tmp_path_factory.mktemp("store")
    made(write_input(path, draws.draw(st.booleans())), path / "store")
    with opened(path / "store") as stored, opened(path / "store") as parts:
        features, targets = everything(stored)
        for _ in range(4):
            if draws.draw(st.booleans()):
                start = draws.draw(st.integers(0, N))
                rows = slice(start, draws.draw(st.integers(start, N)))
            else:
                rows = np.array(draws.draw(st.lists(st.integers(0, N - 1), max_size=20)), dtype=np.intp)
            np.testing.assert_array_equal(dense(parts.features(rows)), features[rows])
            np.testing.assert_array_equal(parts.targets(rows), targets[rows])
            if not parts.sparse:
                out = np.full((len(targets[rows]), D + 1), np.nan)
                parts.read_into(rows, out[:, :D])
                np.testing.assert_array_equal(out[:, :D], features[rows])


def test_a_store_cut_along_a_column_has_each_site_whole(tmp_path):
    pytest.importorskip("pyarrow")
    sites = np.random.default_rng(1).choice(["oslo", "bonn", "rome"], N)
    lines = [f"{row},{site},{row % 2}" for row, site in enumerate(sites)]
    (tmp_path / "data.csv").write_text("\n".join(["number,site,target", *lines]) + "\n")
    keys = {"partition": "by_column", "partition_column": "site", "shards": 3, "test_fraction": 0.25}
    made({"source": str(tmp_path / "data.csv")}, tmp_path / "store", **keys)
    assert parse_config({"data": {"source": str(tmp_path / "store")}}).data.partition_column == "site"
    with opened(tmp_path / "store") as stored:
        assert stored.n_features == 1
        found = [set(sites[stored.features(rows)[:, 0].astype(int)]) for rows in stored.cut.shards]
        assert found == [{"bonn"}, {"oslo"}, {"rome"}]
        assert stored.cut.test == slice(N - 58, N)


def test_the_store_of_a_generator_has_its_samples_and_its_shards(tmp_path):
    keys = {"n_samples": 500, "n_features": 4, "partition": "in_order", "heterogeneity": 1.0}
    for kind in ("synthetic_regression", "synthetic_sparse"):
        made({"source": kind}, tmp_path / kind, seed=2, **keys)
        with (
            opened(tmp_path / kind) as stored,
            open_source(parse_config({"data": {"source": kind, "shards": 5, **keys}}).data, 2) as source,
        ):
            for found, wanted in zip(everything(stored), everything(source), strict=True):
                np.testing.assert_array_equal(found, wanted)
            assert stored.cut.shards == source.cut.shards
            assert stored.cut.test == source.cut.test
            assert (stored.labels is None) == (kind == "synthetic_regression")


@pytest.mark.parametrize("stored_as", ["float64", "float32"])
@pytest.mark.parametrize("wanted", [None, "float64", "float32"])
def test_features_come_in_the_type_of_the_store_or_in_the_one_that_is_asked_for(data, tmp_path, stored_as, wanted):
    made(data, tmp_path / "store", dtype=stored_as)
    with opened(tmp_path / "store", **({} if wanted is None else {"dtype": wanted})) as stored:
        assert stored.features(slice(0, N)).dtype == stored.dtype == (wanted or stored_as)
        assert sorted(everything(stored)[0][:, 0]) == list(range(1, N + 1))


def test_a_value_too_large_for_the_type_that_is_asked_for_is_refused_with_its_row(tmp_path):
    features = np.ones((20, 3))
    features[7, 1] = 1e60
    np.savez(tmp_path / "data.npz", features=features, targets=np.arange(20.0))
    made({"source": str(tmp_path / "data.npz")}, tmp_path / "store", partition="in_order", test_fraction=0.0)
    with opened(tmp_path / "store", dtype="float32") as stored:
        assert "feature in row 7" in refusal(lambda: stored.features(slice(0, 20)))


def test_the_scaling_is_that_of_the_training_rows(data, tmp_path):
    made(data, tmp_path / "store")
    with opened(tmp_path / "store") as stored:
        train = everything(stored)[0][: stored.cut.test.start]
        if stored.sparse:
            assert not stored.scaling.shift.any()
            np.testing.assert_allclose(stored.scaling.scale, np.sqrt((train**2).mean(axis=0)), rtol=1e-12)
        else:
            np.testing.assert_allclose(stored.scaling.shift, train.mean(axis=0), rtol=1e-12)
            np.testing.assert_allclose(stored.scaling.scale, train.std(axis=0), rtol=1e-12)


def test_a_rank_reads_its_shards_and_no_others(data, tmp_path):
    sizes = made(data, tmp_path / "store").sizes
    with opened(tmp_path / "store") as stored:
        total = sum(path.stat().st_size for path in (tmp_path / "store").iterdir())
        assert stored.bytes_read < total / 3
        before = stored.bytes_read
        rows = stored.cut.shards[3]
        for start in range(rows.start, rows.stop, 4):
            features = stored.features(slice(start, min(start + 4, rows.stop)))
        features = stored.features(rows)
        n_bytes = features.nbytes if not stored.sparse else 12 * features.nnz + 8 * sizes[3]
        # Twice; of CSR the end of a chunk's last row, once more for each chunk.
        assert 2 * n_bytes <= stored.bytes_read - before <= 2 * (n_bytes + (8 * 40 if stored.sparse else 0))
        before = stored.bytes_read
        stored.targets(rows)
        assert stored.bytes_read - before == 8 * sizes[3]


def test_who_is_not_rank_0_hears_from_it_what_is_to_be_known(data, tmp_path):
    made(data, tmp_path / "store")
    told = []
    config = parse_config({"data": {"source": str(tmp_path / "store")}}).data
    with open_source(config, 0, Crew(0, 2, lambda part: told.append(part) or [part, (None, None)])) as first:
        wanted = everything(first)
    answers = iter(told)
    with open_source(config, 0, Crew(1, 2, lambda part: [next(answers), part])) as other:
        assert other.bytes_read == 0
        for found, expected in zip(everything(other), wanted, strict=True):
            np.testing.assert_array_equal(found, expected)


def test_a_whole_store_is_made_in_the_memory_of_a_few_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, "BLOCK_BYTES", 1 << 20)
    monkeypatch.setattr(store, "CHUNK_BYTES", 1 << 18)
    tracemalloc.start()
    try:
        made({"source": "synthetic_regression"}, tmp_path / "store", n_samples=40_000, n_features=100)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(path.stat().st_size for path in (tmp_path / "store").iterdir()) > 32e6
    assert peak < 8e6


def test_rows_of_one_large_csr_shard_are_cut_into_chunks_in_that_memory_too(tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, "BLOCK_BYTES", 1 << 20)
    monkeypatch.setattr(store, "CHUNK_BYTES", 1 << 18)
    n = 500_000
    tracemalloc.start()
    try:
        made({"source": "synthetic_sparse"}, tmp_path / "store", shards=1, n_samples=n, n_features=10, density=0.1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8e6 + 12 * n  # the shard of each sample, and the targets, which the generator keeps


def test_an_experiment_on_a_store_need_not_say_how_it_is_cut(data, tmp_path):
    made(data, tmp_path / "store", partition="dirichlet", alpha=0.25, test_fraction=0.3)
    found = parse_config({"data": {"source": str(tmp_path / "store")}}).data
    assert (found.shards, found.partition, found.alpha, found.test_fraction) == (5, "dirichlet", 0.25, 0.3)


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("shards", 6, "data.shards must be 5"),
        ("partition", "by_label", "data.partition must be 'iid'"),
        ("test_fraction", 0.5, "data.test_fraction must be 0.2"),
    ],
)
def test_another_cut_is_refused(tmp_path, key, value, rule):
    made(write_input(tmp_path, False), tmp_path / "store")
    message = refusal(lambda: opened(tmp_path / "store", **{key: value}))
    assert rule in message
    assert f"Got {value!r}" in message
    assert "make another store" in message


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 16
    path.write_bytes(content)


def test_a_changed_byte_is_found_wherever_it_is_and_says_in_which_shard(data, tmp_path):
    made(data, tmp_path / "whole")
    rng = np.random.default_rng(0)
    with opened(tmp_path / "whole") as stored:
        shards, sparse = stored.cut.shards, stored.sparse
        row = stored.features(slice(0, shards[2].start)).nnz if sparse else shards[2].start * D
    # Each file, how large its header is, and where the numbers of shard 2 begin behind that.
    starts = {"targets.npy": shards[2].start} | (
        {"data.npy": row, "indices.npy": row / 2, "indptr.npy": shards[2].start} if sparse else {"features.npy": row}
    )
    for name, number in starts.items():
        for _ in range(8):
            shutil.rmtree(tmp_path / "store", ignore_errors=True)
            shutil.copytree(tmp_path / "whole", tmp_path / "store")
            path = tmp_path / "store" / name
            flip(path, 128 + int(8 * number) + 8 + int(rng.integers(150)))
            with opened(tmp_path / "store") as stored:
                stored.features(shards[0])  # what is whole can be read
                stored.targets(shards[0])
                read = stored.targets if name == "targets.npy" else stored.features
                message = refusal(lambda rows=shards[2], read=read: read(rows))
            assert "is damaged" in message
            assert name in message
            assert "shard 2" in message
            assert "goco shard" in message


@pytest.mark.parametrize("name", ["manifest.json", "chunks.npy", "scaling.npy"])
def test_a_changed_byte_in_what_is_read_as_a_whole_is_found_at_once(data, tmp_path, name):
    made(data, tmp_path / "store")
    size = (tmp_path / "store" / name).stat().st_size
    for place in (size // 4, size // 2, size - 20):
        flip(tmp_path / "store" / name, place)
        message = refusal(lambda: opened(tmp_path / "store"))
        assert "is damaged" in message or "has schema version" in message
        assert name in message or "schema version" in message
        flip(tmp_path / "store" / name, place)
    opened(tmp_path / "store").close()


def test_a_file_that_is_short_long_missing_or_unreadable_is_named(data, tmp_path):
    facts = made(data, tmp_path / "whole")
    for name in facts.files:
        for what in ("short", "long", "missing", "a directory"):
            shutil.rmtree(tmp_path / "store", ignore_errors=True)
            shutil.copytree(tmp_path / "whole", tmp_path / "store")
            path = tmp_path / "store" / name
            content = path.read_bytes()
            path.unlink()
            if what == "a directory":
                path.mkdir()
            elif what != "missing":
                path.write_bytes(content[:-1] if what == "short" else content + b"\0")
            message = refusal(lambda: opened(tmp_path / "store"))
            assert "is damaged" in message
            assert name in message


def test_a_file_that_becomes_short_under_way_is_named(tmp_path):
    made(write_input(tmp_path, False), tmp_path / "store")
    with opened(tmp_path / "store") as stored:
        os.truncate(tmp_path / "store" / "features.npy", 3000)
        assert "features.npy ends before row" in refusal(lambda: stored.features(slice(0, N)))


def test_an_array_that_is_not_what_the_manifest_says_is_refused(tmp_path):
    made(write_input(tmp_path, False), tmp_path / "store")
    np.save(tmp_path / "store" / "targets.npy", np.zeros(N, np.int64))  # of the same size
    assert "targets.npy is of shape" in refusal(lambda: opened(tmp_path / "store"))
    (tmp_path / "store" / "targets.npy").write_bytes(bytes((tmp_path / "store" / "targets.npy").stat().st_size))
    assert "targets.npy is no .npy file" in refusal(lambda: opened(tmp_path / "store"))


def rewritten(path, **changes):
    facts = json.loads((path / "manifest.json").read_text()) | changes
    facts.pop("checksum")
    (path / "manifest.json").write_text(json.dumps({**facts, "checksum": manifest._checksum(facts)}))


def test_a_manifest_of_another_version_or_with_other_keys_is_refused(tmp_path):
    made(write_input(tmp_path, False), tmp_path / "store")
    rewritten(tmp_path / "store", sizes="many")
    assert "manifest.json: Expected" in refusal(lambda: opened(tmp_path / "store"))
    rewritten(tmp_path / "store", schema_version=7)
    assert "has schema version 7, and this goco reads 1" in refusal(lambda: opened(tmp_path / "store"))
    for text in ("{", "[]", "\xff"):
        (tmp_path / "store" / "manifest.json").write_text(text, encoding="latin-1")
        assert "manifest.json is not JSON" in (said := refusal(lambda: opened(tmp_path / "store"))) or "version" in said


def test_a_directory_that_is_no_store_is_refused(tmp_path):
    assert "is a directory, and no shard store" in refusal(lambda: opened(tmp_path))


def contents(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_what_is_there_is_replaced_only_if_it_is_a_store_and_that_is_wanted(tmp_path):
    data = write_input(tmp_path, False)
    made(data, tmp_path / "store")
    before = contents(tmp_path / "store")
    assert "exists. Choose another OUT, or replace it with --force" in refusal(lambda: made(data, tmp_path / "store"))
    assert contents(tmp_path / "store") == before
    made(data, tmp_path / "store", seed=9, force=True)
    assert contents(tmp_path / "store") != before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("all of it")
    assert "is none (it has no manifest.json)" in refusal(lambda: made(data, tmp_path / "mine", force=True))
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "all of it"


def test_a_store_that_cannot_be_written_leaves_nothing_behind(data, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(RunError, match="cannot be written: No space left on device"):
        made(data, tmp_path / "store")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_input_that_is_refused_leaves_nothing_behind(tmp_path):
    np.savez(tmp_path / "data.npz", features=np.full((9, 2), np.nan), targets=np.zeros(9))
    refusal(lambda: made({"source": str(tmp_path / "data.npz")}, tmp_path / "store"))
    assert [path.name for path in tmp_path.iterdir()] == ["data.npz"]


def test_the_manifest_reads_back_as_it_was_written(data, tmp_path):
    facts = made(data, tmp_path / "store")
    assert manifest.read_manifest(str(tmp_path / "store")) == facts
    assert msgspec.to_builtins(facts)["cut"]["shards"] == 5


def test_shard_on_the_command_line_says_what_it_made(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["shard", "synthetic_sparse", "out", "--shards", "4", "--partition", "dirichlet", "--alpha", "0.3"]
    words += ["--seed", "5", "--set", "data.n_samples=300", "--set", "data.n_features=9"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "300 rows of 9 features (CSR float64): 4 shards of" in said
    assert "60 rows to test on" in said
    facts = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert facts["cut"] == {"shards": 4, "partition": "dirichlet", "test_fraction": 0.2, "alpha": 0.3}
    assert facts["origin"]["seed"] == 5
    assert facts["origin"]["data"]["n_samples"] == 300


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "rounds=3"], "--set of goco shard takes keys of [data]"),
        (["--partition", "random"], "data.partition must be one of"),
        (["--shards", "0"], "data.shards must be between 1 and"),
        (["--alpha", "-1"], "data.alpha must be a positive"),
        (["--set", "data.n_samples=3"], "data.shards must be at most the number of training samples"),
    ],
)
def test_what_shard_cannot_do_is_one_line(tmp_path, capsys, words, message):
    assert main(["shard", "synthetic_regression", str(tmp_path / "out"), "--shards", "4", *words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40_000), st.integers(0, 2**32), st.sampled_from([1, 512, 4096]))
def test_a_checksum_changes_with_a_byte_with_pages_exchanged_and_with_one_lost(size, seed, page):
    rng = np.random.default_rng(seed)
    content = rng.integers(0, 256, size, dtype=np.uint8)
    kept = store.checksum(content)
    assert store.checksum(content.copy()) == kept
    changed = content.copy()
    changed[rng.integers(size)] ^= 1 << rng.integers(8)
    assert store.checksum(changed) != kept
    assert store.checksum(content[:-1]) != kept
    assert store.checksum(np.append(content, np.uint8(0))) != kept
    if size >= 2 * page:
        first, second = page * rng.choice(size // page, 2, replace=False)
        changed = content.copy()
        changed[first : first + page], changed[second : second + page] = (
            content[second : second + page],
            content[first : first + page],
        )
        if page > 1 or abs(first - second) % 4168:
            assert (store.checksum(changed) == kept) == np.array_equal(changed, content)
        doubled = content.copy()
        doubled[first : first + page] = content[second : second + page]
        assert (store.checksum(doubled) == kept) == np.array_equal(doubled, content)
