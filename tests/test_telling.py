"""How a rank says where it is, without MPI: a round loop that is none, and real files."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from goco_mpi import status
from goco_mpi.engine.telling import LOSS_SHARE, LossClock, Teller


def walk(clock: LossClock, n_rounds: int, loss_s: float, round_s: float) -> list[int]:
    """Return the rounds in which a rank worked out its loss."""
    found = []
    for round_ in range(1, n_rounds + 1):
        if clock.due(round_):
            clock.took(round_, loss_s, round_s)
            found.append(round_)
    return found


@pytest.mark.parametrize(("loss_s", "round_s"), [(1e-6, 1e-4), (0.01, 0.001), (2.0, 5.0), (1e-3, 1e-5)])
def test_the_loss_takes_no_more_than_its_share_of_the_time(loss_s: float, round_s: float) -> None:
    n_rounds = 1 << 18
    found = walk(LossClock(1.0), n_rounds, loss_s, round_s)
    assert len(found) >= 2
    assert (len(found) - 1) * loss_s <= LOSS_SHARE * n_rounds * round_s  # but for the first
    assert (len(found) - 1) * 1.0 <= n_rounds * round_s  # once a second is enough


def test_ranks_of_different_speed_work_it_out_in_the_same_rounds() -> None:
    quick, slow = walk(LossClock(1.0), 4096, 1e-4, 0.01), walk(LossClock(1.0), 4096, 3e-3, 0.012)
    assert len(slow) >= 8
    assert set(slow) <= set(quick)


def test_a_rank_that_jumps_over_its_round_works_it_out_in_the_next() -> None:
    clock = LossClock(1.0)
    clock.took(1, 0.0, 0.1)
    assert clock.every == 16
    assert not clock.due(15)
    assert clock.due(19)


def teller(directory: Path, **said: Any) -> tuple[Teller, Any]:
    """Return a teller that has started, and its loop."""
    loop = SimpleNamespace(round=3, counts=SimpleNamespace(wait_s=0.25))
    work = SimpleNamespace(n_whole=2, n_partial=1, n_late=4)
    exchange = SimpleNamespace(suspects=lambda: list(range(40)))
    one = Teller(directory, 1, 2, "node1")
    one.start(loop, work, exchange, lambda params: float(params.sum()))  # type: ignore[arg-type]
    return one, loop


def test_the_end_is_said_with_the_last_numbers_and_the_thread_is_gone(tmp_path: Path) -> None:
    status.begin(tmp_path / "s", {"n_ranks": 2})
    before = threading.active_count()
    with teller(tmp_path / "s")[0] as one:
        one.after_round(4, np.array([0.5, 1.0]))
    found = status.read(tmp_path / "s")
    assert found is not None
    said = found.ranks[1].said
    assert said["state"] == "ended"
    assert (said["round"], said["gradients"], said["late"]) == (3, 3, 4)
    assert said["loss"] == 1.5
    assert said["suspects"] == list(range(status.MOST_SUSPECTS))
    assert threading.active_count() == before
    one.end()  # twice is safe


def test_the_longest_that_a_rank_can_say_fits(tmp_path: Path) -> None:
    status.begin(tmp_path / "s", {"n_ranks": 2})
    loop = SimpleNamespace(round=2**40, counts=SimpleNamespace(wait_s=1e8 / 3))
    work = SimpleNamespace(n_whole=2**40, n_partial=0, n_late=2**40)
    exchange = SimpleNamespace(suspects=lambda: list(range(10**6, 10**6 + 40)))
    one = Teller(tmp_path / "s", 1, 2, "n\u00f6de" * 40)
    one.start(loop, work, exchange, lambda params: -1.0 / 3.0e300)  # type: ignore[arg-type]
    one.after_round(2**41, np.zeros(1))
    one.end()
    found = status.read(tmp_path / "s")
    assert found is not None
    assert found.ranks[1].said["late"] == 2**40


def test_a_loss_that_is_not_finite_is_not_told(tmp_path: Path) -> None:
    status.begin(tmp_path / "s", {"n_ranks": 2})
    with teller(tmp_path / "s")[0] as one:
        one.after_round(4, np.array([np.inf]))
    found = status.read(tmp_path / "s")
    assert found is not None
    assert "loss" not in found.ranks[1].said


def test_a_note_that_is_being_made_is_not_written_in_part(tmp_path: Path) -> None:
    status.begin(tmp_path / "s", {"n_ranks": 2})
    one, loop = teller(tmp_path / "s")
    seen: list[dict[str, Any]] = []

    class Counts:
        """Lets the thread that writes have a look in the middle of a note."""

        @property
        def wait_s(self) -> float:
            seen.append(dict(one._said))
            return 0.25

    loop.counts = Counts()
    one.end()
    assert seen
    for said in seen:
        assert {"round", "gradients", "late", "wait_s"} <= said.keys()  # `goco watch` needs them


def test_a_node_without_the_directory_goes_on_unseen(tmp_path: Path) -> None:
    one, _ = teller(tmp_path / "nowhere")
    one.after_round(4, np.zeros(1))
    one.end()
    assert list(tmp_path.iterdir()) == []


def test_without_a_start_there_is_nothing_to_end(tmp_path: Path) -> None:
    with Teller(tmp_path, 0, 1, "node"):
        pass
    assert list(tmp_path.iterdir()) == []
