"""Processes that write checkpoints until they are killed: ``python checkpoint_writer.py DIRECTORY N_RANKS N_PARAMS``.

For every line that it reads it begins one, and prints its number; a new process of Python each would take seconds.
Every set is all ranks' files with the set's number in each of their numbers, so that a reader sees what is mixed up.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from goco_mpi import checkpoint
from goco_mpi.config import parse_config
from goco_mpi.core.flatten import flatten

CONFIG = parse_config({"rounds": 5})


def files(directory: Path, n_ranks: int, keep: int = 2) -> checkpoint.CheckpointFiles:
    return checkpoint.CheckpointFiles(directory, CONFIG, n_ranks, {"size": 0.5, "momentum": None}, keep)


def write_set(writer: checkpoint.CheckpointFiles, number: int, n_ranks: int, n_params: int) -> None:
    for rank in range(n_ranks):
        kept = {"params": np.full(n_params, float(number)), "number": number, "rank": rank}
        writer.write(number, rank, 10 * number + rank, *flatten(kept))


def newest(directory: Path, n_ranks: int) -> int:
    """Read the newest whole set as a run that goes on does, check every number in it, and return which it is."""
    sets = checkpoint.whole_sets(directory)
    if not sets:
        return 0
    checkpoint.refuse_other_run(sets[0], CONFIG, n_ranks)
    assert sets[0].rounds == [10 * sets[0].number + rank for rank in range(n_ranks)]
    for rank in range(n_ranks):
        kept = checkpoint.read_rank(sets[0].path, rank)
        assert (kept["number"], kept["rank"]) == (sets[0].number, rank)
        assert (kept["params"] == sets[0].number).all()
    return sets[0].number


def write_until_killed(directory: Path, n_ranks: int, n_params: int) -> None:
    writer = files(directory, n_ranks)
    number = checkpoint.newest_number(directory)
    while True:
        number += 1
        write_set(writer, number, n_ranks, n_params)


class Victims:
    """Begins writers, and kills each after a while."""

    def __init__(self, directory: Path, n_ranks: int, n_params: int) -> None:
        words = [sys.executable, __file__, str(directory), str(n_ranks), str(n_params)]
        self._server = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Victims:
        return self

    def kill_one(self, delay_s: float) -> None:
        assert self._server.stdin is not None and self._server.stdout is not None
        print("begin", file=self._server.stdin, flush=True)
        pid = int(self._server.stdout.readline())
        time.sleep(delay_s)
        os.kill(pid, signal.SIGKILL)
        assert self._server.stdout.readline() == "killed\n"

    def __exit__(self, *error: object) -> None:
        self._server.communicate(timeout=30.0)


if __name__ == "__main__":
    for _ in sys.stdin:
        pid = os.fork()
        if not pid:
            write_until_killed(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print("killed" if os.WIFSIGNALED(status) else "ended", flush=True)
