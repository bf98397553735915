"""Checkpoints on disk: whole or not there, whoever is killed when, and what is refused."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import threading
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from checkpoint_writer import CONFIG, Victims, files, newest, write_set

from goco_mpi import checkpoint
from goco_mpi.checkpoint import DamagedError
from goco_mpi.config import parse_config, to_dict
from goco_mpi.core.flatten import flatten
from goco_mpi.errors import InputError

N_RANKS, N_PARAMS = 3, 5
KILLS = 12
"""Here; ``make test-cluster`` has two hundred."""


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_set_is_whole_once_every_rank_has_written_its_file(tmp_path: Path) -> None:
    writer = files(tmp_path, N_RANKS)
    for rank in (2, 0):
        writer.write(1, rank, 10 + rank, *flatten({"params": np.ones(2)}))
        assert checkpoint.whole_sets(tmp_path) == []
    writer.write(1, 1, 11, *flatten({"params": np.ones(2)}))
    (found,) = checkpoint.whole_sets(tmp_path)
    assert (found.number, found.rounds) == (1, [10, 11, 12])
    assert found.document["facts"] == {"size": 0.5, "momentum": None}
    assert names(found.path) == ["rank00000.npz", "rank00001.npz", "rank00002.npz", "whole.json"]


@pytest.mark.parametrize("keep", [1, 3])
def test_the_newest_are_kept_and_what_is_older_goes(tmp_path: Path, keep: int) -> None:
    writer = files(tmp_path, N_RANKS, keep)
    writer.write(1, 0, 0, *flatten({"params": np.ones(2)}))  # never whole
    for number in range(2, 8):
        write_set(writer, number, N_RANKS, N_PARAMS)
        assert newest(tmp_path, N_RANKS) == number
    assert names(tmp_path) == [f"set-{number:08d}" for number in range(8 - keep, 8)]


def test_a_set_that_a_run_goes_on_from_stays_and_one_that_is_not_whole_yet(tmp_path: Path) -> None:
    writer = files(tmp_path, N_RANKS, keep=1)
    write_set(writer, 1, N_RANKS, N_PARAMS)
    writer.pin(*checkpoint.whole_sets(tmp_path))
    for number in (2, 3):
        write_set(writer, number, N_RANKS, N_PARAMS)
    writer.write(5, 0, 0, *flatten({"params": np.ones(2)}))  # the others are still at it
    assert names(tmp_path) == ["set-00000001", "set-00000003", "set-00000005"]
    assert newest(tmp_path, N_RANKS) == 3


def test_one_that_nobody_saw_complete_is_named_whole_later(tmp_path: Path) -> None:
    writer = files(tmp_path, N_RANKS)
    write_set(writer, 1, N_RANKS, N_PARAMS)
    (tmp_path / "set-00000001" / "whole.json").unlink()  # as where ranks see each other's files late
    assert checkpoint.whole_sets(tmp_path) == []
    writer.tidy()
    assert newest(tmp_path, N_RANKS) == 1


def test_ranks_that_write_at_once_end_with_whole_sets(tmp_path: Path) -> None:
    barrier = threading.Barrier(4)
    errors: list[BaseException] = []

    def work(rank: int) -> None:
        writer = files(tmp_path, 4)
        try:
            for number in range(1, 21):
                barrier.wait(30.0)
                kept = {"params": np.full(3, float(number)), "number": number, "rank": rank}
                writer.write(number, rank, 10 * number + rank, *flatten(kept))
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    files(tmp_path, 4).tidy()
    assert newest(tmp_path, 4) == 20
    assert names(tmp_path) == ["set-00000019", "set-00000020"]


def test_two_that_name_a_set_whole_at_once_do_not_write_into_one_file(tmp_path: Path) -> None:
    """As ranks of two nodes whose process numbers are the same: each has a file of its own until it is whole."""
    both_are_writing = threading.Barrier(2)
    errors: list[BaseException] = []

    def write(file: BinaryIO) -> None:
        both_are_writing.wait(30.0)
        file.write(b"whole")

    def work() -> None:
        try:
            checkpoint._write_whole(tmp_path / "whole.json", write)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert names(tmp_path) == ["whole.json"]
    assert (tmp_path / "whole.json").read_bytes() == b"whole"


def test_a_writer_killed_at_any_moment_leaves_the_newest_whole_set_readable(tmp_path: Path) -> None:
    write_set(files(tmp_path, N_RANKS), 1, N_RANKS, 20000)
    before, halves = 1, 0
    with Victims(tmp_path, N_RANKS, 20000) as victims:
        for number, delay_s in enumerate(np.random.default_rng(5).uniform(0.0, 0.1, 20 * KILLS)):
            if number >= KILLS and before > 1 and halves:
                break
            victims.kill_one(float(delay_s))
            number = newest(tmp_path, N_RANKS)
            assert number >= before
            before = number
            halves += checkpoint.newest_number(tmp_path) > number
    assert before > 1  # they wrote sets, and some were killed in the middle of one
    assert halves > 0
    write_set(files(tmp_path, N_RANKS), checkpoint.newest_number(tmp_path) + 1, N_RANKS, 20000)
    assert len(names(tmp_path)) == 2  # what they left is tidied up


def damage(file: Path, how: str) -> None:
    content = bytearray(file.read_bytes())
    if how == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif how == "flipped":
        content[content.index(b"array0.npy") + 150] ^= 1
        file.write_bytes(content)
    elif how == "empty":
        file.write_bytes(b"")
    else:
        file.unlink()


@pytest.mark.parametrize("how", ["cut", "flipped", "empty", "gone"])
def test_a_damaged_file_is_found_out(tmp_path: Path, how: str) -> None:
    write_set(files(tmp_path, N_RANKS), 1, N_RANKS, N_PARAMS)
    (found,) = checkpoint.whole_sets(tmp_path)
    damage(found.path / "rank00001.npz", how)
    checkpoint.read_rank(found.path, 0)
    with pytest.raises(DamagedError, match=r"rank00001\.npz"):
        checkpoint.read_rank(found.path, 1)


@pytest.mark.parametrize("text", ['{"schema_version"', "[]", "null", '{"schema_version": 1}'])
def test_a_set_whose_name_is_damaged_is_not_taken_for_another_runs(tmp_path: Path, text: str) -> None:
    write_set(files(tmp_path, N_RANKS), 1, N_RANKS, N_PARAMS)
    (tmp_path / "set-00000001" / "whole.json").write_text(text)
    (found,) = checkpoint.whole_sets(tmp_path)
    with pytest.raises(DamagedError, match=r"whole\.json' is damaged"):
        checkpoint.refuse_other_run(found, CONFIG, N_RANKS)
    with pytest.raises(DamagedError, match=r"whole\.json' is damaged"):
        checkpoint.mean_params(tmp_path)


@pytest.mark.parametrize(
    ("tables", "difference"),
    [
        ({"data": {"shards": 12}}, "data.shards was 16. Got 12"),
        ({"seed": 1}, "seed was 0. Got 1"),
        ({"deadline": {"gossip_s": 0.5}}, "deadline.gossip_s was 'auto'. Got 0.5"),
        ({"topology": {"kind": "edges", "edges": [[0, 1], [1, 2]]}}, "topology.edges was"),
    ],
)
def test_another_experiment_is_refused_with_the_difference(
    tmp_path: Path, tables: dict[str, Any], difference: str
) -> None:
    write_set(files(tmp_path, N_RANKS), 1, N_RANKS, N_PARAMS)
    (found,) = checkpoint.whole_sets(tmp_path)
    with pytest.raises(InputError) as raised:
        checkpoint.refuse_other_run(found, parse_config({"rounds": 5, **tables}), N_RANKS)
    assert difference in str(raised.value)


@pytest.mark.parametrize(
    "tables", [{"rounds": 7}, {"stop": {"time_limit_s": 3.0}}, {"record": {"every": 1}}, {"checkpoint": {"every": 4}}]
)
def test_what_may_change_may_change(tmp_path: Path, tables: dict[str, Any]) -> None:
    write_set(files(tmp_path, N_RANKS), 1, N_RANKS, N_PARAMS)
    (found,) = checkpoint.whole_sets(tmp_path)
    checkpoint.refuse_other_run(found, parse_config({"rounds": 5, **tables}), N_RANKS)


def test_another_number_of_ranks_and_another_schema_are_refused(tmp_path: Path) -> None:
    write_set(files(tmp_path, N_RANKS), 1, N_RANKS, N_PARAMS)
    (found,) = checkpoint.whole_sets(tmp_path)
    with pytest.raises(InputError, match=r"is of 3 ranks\. Got 4"):
        checkpoint.refuse_other_run(found, CONFIG, 4)
    document = {**found.document, "schema_version": 99}
    (found.path / "whole.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match="schema version 99, and this goco reads 1"):
        checkpoint.whole_sets(tmp_path)


def test_an_experiment_with_lists_is_the_same_after_a_file(tmp_path: Path) -> None:
    config = parse_config({"topology": {"kind": "edges", "edges": [[0, 1], [1, 2]]}, "deadline": {"gossip_s": "inf"}})
    writer = checkpoint.CheckpointFiles(tmp_path, config, 1, {})
    writer.write(1, 0, 0, *flatten({"params": np.ones(1)}))
    (found,) = checkpoint.whole_sets(tmp_path)
    assert json.loads(json.dumps(to_dict(config))) == found.document["config"]
    checkpoint.refuse_other_run(found, config, 1)


def test_a_place_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for directory in (tmp_path / "file", tmp_path / "file" / "run.checkpoints"):
        with pytest.raises(InputError, match="cannot be written"):
            files(directory, 1).refuse_unwritable(0)
    assert names(tmp_path) == ["file"]
    files(tmp_path / "new", 1).refuse_unwritable(0)
    assert names(tmp_path / "new") == []


def test_a_full_disk_leaves_nothing_behind_and_the_last_whole_set_as_it_was(tmp_path: Path) -> None:
    writer = files(tmp_path, 1)
    write_set(writer, 1, 1, 100)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            write_set(writer, 2, 1, 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert newest(tmp_path, 1) == 1
    assert names(tmp_path / "set-00000002") == []
    write_set(writer, 3, 1, 100_000)
    assert newest(tmp_path, 1) == 3


def test_the_mean_parameters_of_the_newest_set(tmp_path: Path) -> None:
    assert checkpoint.mean_params(tmp_path) is None
    writer = files(tmp_path, 2)
    for number in (1, 2):
        for rank in range(2):
            writer.write(number, rank, 0, *flatten({"state": (0,), "params": np.array([float(rank), number])}))
    found = checkpoint.mean_params(tmp_path)
    assert found is not None
    assert found.tolist() == [0.5, 2.0]
