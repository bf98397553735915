import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from goco_mpi import __version__, record, record_schema, software
from goco_mpi.config import parse_config, to_dict
from goco_mpi.core.objectives import kernels
from goco_mpi.errors import InputError, RunError
from goco_mpi.outcome import Death, Outcome
from goco_mpi.record import read_run, refuse_existing, write_run

SPENT = {"bytes_sent": 96.0, "shard_gradients": 8.5}
CONFIG = parse_config({"rounds": 4, "method": {"kind": "allreduce"}})


def outcome(loss=0.5, loss_optimum=None):
    return Outcome(
        history=[
            {"round": 0, "wall_s": 0.0, "loss": 2.0, "consensus_distance": 0.0, "test_accuracy": None, **SPENT},
            {"round": 4, "wall_s": 1.5, "loss": loss, "consensus_distance": 0.125, "test_accuracy": 0.75, **SPENT},
        ],
        ranks=[{"rank": 0, "host": "a", "rounds": 4}, {"rank": 1, "host": "b,c", "rounds": 3}],
        stacked_params=np.arange(6.0).reshape(2, 3),
        step_size=0.1,
        wall_s=1.5,
        loss_optimum=loss_optimum,
    )


def write(out, force=False, **options):
    return write_run(out, CONFIG, {"n_ranks": 2}, outcome(**options), force)


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_run_reads_back_as_it_was_written(tmp_path):
    out = tmp_path / "runs" / "deep" / "first"
    result = write(out, loss_optimum=0.25)
    found = read_run(out)
    assert found.path == out
    assert found.run["result"] == result
    assert found.run["config"] == json.loads(json.dumps(to_dict(CONFIG)))
    assert found.run["environment"]["n_ranks"] == 2
    assert found.run["environment"]["goco_mpi"] == __version__
    assert tuple(found.history) == record.HISTORY
    assert found.history["shard_gradients"].tolist() == [8.5, 8.5]
    assert found.history["loss"].tolist() == [2.0, 0.5]
    assert found.history["suboptimality"].tolist() == [1.0, pytest.approx(0.25 / 1.75)]
    assert np.isnan(found.history["test_accuracy"][0])
    assert found.history["test_accuracy"][1] == 0.75
    assert found.ranks == [{"rank": 0.0, "host": "a", "rounds": 4.0}, {"rank": 1.0, "host": "b,c", "rounds": 3.0}]
    np.testing.assert_array_equal(np.load(out / "params.npy"), np.arange(6.0).reshape(2, 3))


def test_result_is_the_last_row_and_the_frame_around_it(tmp_path):
    assert write(tmp_path / "run", loss_optimum=0.25) == {
        "loss": 0.5,
        "suboptimality": pytest.approx(1 / 7),
        "consensus_distance": 0.125,
        "test_accuracy": 0.75,
        "loss_start": 2.0,
        "loss_optimum": 0.25,
        "rounds": [4, 3],
        "wall_s": 1.5,
        "step_size": 0.1,
        "momentum": None,
        "gradient_dissimilarity": None,
        "stopped_by": "rounds",
        "resumed_from": None,
        "events_sha256": None,
    }


def test_a_record_from_before_costs_were_counted_is_read_without_them(tmp_path):
    write(tmp_path / "run")
    file = tmp_path / "run" / "history.csv"
    file.write_text("\n".join(line.rsplit(",", 2)[0] for line in file.read_text().splitlines()))
    found = read_run(tmp_path / "run").history
    assert tuple(found) == record.HISTORY
    assert np.isnan(found["bytes_sent"]).all()
    assert np.isnan(found["shard_gradients"]).all()
    assert found["loss"].tolist() == [2.0, 0.5]


def test_without_an_optimum_there_is_no_suboptimality(tmp_path):
    assert write(tmp_path / "run")["suboptimality"] is None
    assert np.isnan(read_run(tmp_path / "run").history["suboptimality"]).all()


def test_a_run_that_starts_at_the_optimum_and_leaves_it_is_recorded(tmp_path):
    assert write(tmp_path / "run", loss=2.5, loss_optimum=2.0)["suboptimality"] is None
    np.testing.assert_array_equal(read_run(tmp_path / "run").history["suboptimality"], [0.0, np.nan])


def test_losses_survive_the_text_to_the_last_bit(tmp_path):
    write(tmp_path / "run", loss=1 / 3)
    assert read_run(tmp_path / "run").history["loss"][1] == 1 / 3


@pytest.mark.parametrize(
    ("method", "way_out"),
    [
        ({"kind": "allreduce"}, "The step size 0.1 is too large. Lower step.size"),
        ({"kind": "allreduce", "solver": "lbfgs"}, "Raise objective.l2, or use method.kind = 'push_pull'"),
        ({"kind": "table_newton"}, "Raise objective.l2, or use method.kind = 'push_pull'"),
    ],
)
def test_a_run_worse_than_none_is_told_what_its_method_has(tmp_path, method, way_out):
    config = parse_config({"method": method, "topology": {"kind": "complete"}})
    result = {"loss": 0.75, "loss_start": 0.5, "step_size": 0.1, "stopped_by": "rounds"}
    with pytest.raises(RunError, match=r"did not converge: the loss went from 0.5 to 0.75\. .*" + way_out):
        record.refuse_worse(config, result, tmp_path)
    record.refuse_worse(config, {**result, "stopped_by": "signal"}, tmp_path)


def test_the_directory_is_as_open_as_the_umask_says_and_nothing_else_is_left(tmp_path):
    old = os.umask(0o027)
    try:
        write(tmp_path / "run")
    finally:
        os.umask(old)
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o750
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert set(contents(tmp_path / "run")) == {"run.json", "history.csv", "ranks.csv", "params.npy"}


def test_an_earlier_run_is_refused_without_force_and_stays(tmp_path):
    write(tmp_path / "run")
    before = contents(tmp_path / "run")
    with pytest.raises(InputError, match=r"exists. Choose another --out, or replace it with --force"):
        write(tmp_path / "run", loss=0.1)
    assert contents(tmp_path / "run") == before


def test_force_replaces_an_earlier_run_and_leaves_nothing_of_it(tmp_path):
    write(tmp_path / "run")
    (tmp_path / "run" / "notes.txt").touch()
    write(tmp_path / "run", force=True, loss=0.1)
    assert read_run(tmp_path / "run").run["result"]["loss"] == 0.1
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert "notes.txt" not in contents(tmp_path / "run")


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_even_force_does_not_touch_what_is_no_run(tmp_path, kind):
    out = tmp_path / "thesis"
    precious = out
    if kind == "directory":
        out.mkdir()
        precious = out / "chapter.tex"
    precious.write_text("years of work")
    with pytest.raises(InputError, match=r"is none \(it has no run.json\)"):
        write(out, force=True)
    with pytest.raises(InputError, match="exists"):
        refuse_existing(out, force=False)
    assert precious.read_text() == "years of work"


@pytest.mark.parametrize("force", [False, True])
def test_an_empty_directory_and_a_free_name_are_fine(tmp_path, force):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "free"):
        refuse_existing(tmp_path / name, force)
        write(tmp_path / name, force)
        assert read_run(tmp_path / name).history["round"].tolist() == [0.0, 4.0]


def test_a_link_stays_one_and_the_run_stands_where_it_points(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "scratch" / "empty").mkdir(parents=True)
    for name in ("empty", "nothing_yet"):
        link, place = tmp_path / "home" / name, tmp_path / "scratch" / name
        link.symlink_to(place)
        refuse_existing(link, force=False)
        write(link)
        write(link, force=True, loss=0.25)
        assert link.is_symlink()
        assert read_run(place).run["result"]["loss"] == 0.25
    assert sorted(path.name for path in (tmp_path / "home").iterdir()) == ["empty", "nothing_yet"]
    assert sorted(path.name for path in (tmp_path / "scratch").iterdir()) == ["empty", "nothing_yet"]


def no_space(*arguments, **options):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(np, "save", no_space)
    with pytest.raises(RunError, match=r"cannot be written: No space left on device. Choose another --out"):
        write(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_an_earlier_run_as_it_was(tmp_path, monkeypatch):
    write(tmp_path / "run")
    before = contents(tmp_path / "run")
    monkeypatch.setattr(np, "save", no_space)
    with pytest.raises(RunError, match="No space left on device"):
        write(tmp_path / "run", force=True)
    assert contents(tmp_path / "run") == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_failed_swap_puts_an_earlier_run_back(tmp_path, monkeypatch):
    out = tmp_path / "run"
    write(out)
    before = contents(out)
    rename = Path.rename
    failed = []

    def fail_to_take_the_place(self, target):
        if Path(target) == out and not failed:
            failed.append(self)
            no_space()
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_to_take_the_place)
    with pytest.raises(RunError, match="cannot be written"):
        write(out, force=True, loss=0.1)
    assert failed
    assert out.is_dir()
    assert contents(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_directory_that_one_may_not_look_into_is_refused(tmp_path, monkeypatch):
    def forbidden(path):
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / "of_another_user").mkdir()
    monkeypatch.setattr(Path, "iterdir", forbidden)
    with pytest.raises(InputError, match=r"of_another_user' cannot be a directory: Permission denied"):
        refuse_existing(tmp_path / "of_another_user", force=True)


def test_a_parent_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        write(tmp_path / "file" / "run")


def test_what_is_no_run_directory_is_refused_by_the_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"is not a run directory: .*run.json: No such file"):
        read_run(tmp_path)
    write(tmp_path / "run")
    (tmp_path / "run" / "ranks.csv").unlink()
    with pytest.raises(InputError, match=r"is not a run directory: .*ranks.csv"):
        read_run(tmp_path / "run")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is not a run directory"):
        read_run(tmp_path / "file")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.json", b""),
        ("run.json", b'{"schema_version": 1,'),
        ("run.json", b"[1]"),
        ("run.json", b"\xff\xfe\x00"),
        ("run.json", b'{"schema_version": 2}'),
        ("run.json", b'{"schema_version": 2, "config": {}, "environment": {}, "result": 5}'),
        ("history.csv", b""),
        ("history.csv", b"round,wall_s,loss\n"),
        ("history.csv", b"round,loss\n0,much\n"),
        ("history.csv", b"round,loss\n0\n"),
        ("history.csv", b"\xff\xfe\x00"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path, name, content):
    write(tmp_path / "run")
    (tmp_path / "run" / name).write_bytes(content)
    with pytest.raises(InputError, match="run") as refused:
        read_run(tmp_path / "run")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("missing", [None, "ranks.csv"])
def test_another_schema_is_refused_whatever_files_it_has(tmp_path, missing):
    out = tmp_path / "run"
    write(out)
    document = json.loads((out / "run.json").read_text())
    document["schema_version"] = record_schema.VERSION + 1
    (out / "run.json").write_text(json.dumps(document))
    if missing:
        (out / missing).unlink()
    with pytest.raises(InputError, match="has schema version 3, and this goco reads 1 to 2"):
        read_run(out)


def test_software_names_the_libraries_that_compute():
    found = software.software()
    assert found["libraries"]["numpy"] == np.__version__
    assert set(found["libraries"]) == set(software.LIBRARIES)
    assert found["gradients"].startswith("numpy" if kernels.compiled is None else "compiled (")
    json.dumps(found, allow_nan=False)


def test_who_died_is_in_the_record_and_not_among_the_ranks_that_lived(tmp_path):
    whole = outcome()
    bereaved = replace(
        whole,
        ranks=whole.ranks[1:],
        stacked_params=whole.stacked_params[1:],
        deaths=[Death(0, {1: 3}), Death(2, {})],
        lost="shard 4 (9 of 90 rows)",
    )
    result = write_run(tmp_path / "run", CONFIG, {}, bereaved, False)
    assert result["deaths"] == [
        {"rank": 0, "round": 3, "noticed": {"1": 3}},
        {"rank": 2, "round": None, "noticed": {}},
    ]
    assert result["lost"] == "shard 4 (9 of 90 rows)"
    table = (tmp_path / "run" / "ranks.csv").read_text().splitlines()
    assert table == ["rank,host,rounds,died", "0,,,3", '1,"b,c",3,', "2,,,at the end"]
    assert [row["rank"] for row in read_run(tmp_path / "run").ranks] == [1.0]


@pytest.mark.parametrize(
    ("stopped_by", "said"),
    [
        ("lost_shard", "Ranks 0 and 2 died, and with that the last copies of shard 4 (9 of 90 rows). Go on from"),
        ("disconnected", "Ranks 0 and 2 died, and the others are no connected graph any more"),
    ],
)
def test_a_run_that_deaths_have_stopped_is_refused_by_name(stopped_by, said, tmp_path):
    stopped = replace(
        outcome(), stopped_by=stopped_by, deaths=[Death(0, {}), Death(2, {})], lost="shard 4 (9 of 90 rows)"
    )
    with pytest.raises(RunError) as error:
        record.refuse_losses(stopped, tmp_path / "run")
    assert str(error.value).startswith(said)
    assert str(error.value).endswith(f"is in {tmp_path / 'run'}.")
    record.refuse_losses(replace(stopped, stopped_by="rounds"), tmp_path / "run")
