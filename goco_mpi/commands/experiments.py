"""What ``goco run`` and ``goco simulate`` do alike: from an experiment file to a record."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from goco_mpi.outcome import Outcome
    from goco_mpi.schema import RunConfig


def prepare(options: argparse.Namespace) -> tuple[RunConfig, Path]:
    """Read the experiment and make sure that its result has a place."""
    from goco_mpi import config as cfg
    from goco_mpi import record

    config = cfg.read_config(options.experiment, options.set)
    out = options.out or Path("runs") / Path(options.experiment).stem
    record.refuse_existing(out, _may_replace(options))
    return config, out


def _may_replace(options: argparse.Namespace) -> bool:
    """Return whether an earlier record may be replaced: also by a run that goes on from where it stopped."""
    return bool(options.force or getattr(options, "resume", False))


def finish(
    options: argparse.Namespace, out: Path, config: RunConfig, outcome: Outcome, environment: dict[str, Any]
) -> None:
    """Write the record, print the result, and fail a run that is worse than no training."""
    refuse(config, outcome, write(options, out, config, outcome, environment), out)


def write(
    options: argparse.Namespace, out: Path, config: RunConfig, outcome: Outcome, environment: dict[str, Any]
) -> dict[str, Any]:
    """Write the record and print the result; return it."""
    from goco_mpi import record

    result = record.write_run(out, config, environment, outcome, _may_replace(options))
    if not options.quiet:
        print_result(out, result, outcome.history[-1]["round"], config.rounds)
    return result


def refuse(config: RunConfig, outcome: Outcome, result: dict[str, Any], out: Path) -> None:
    """Fail a run that lost data with its ranks, or is worse than no training."""
    from goco_mpi import record

    record.refuse_losses(outcome, out)
    record.refuse_worse(config, result, out)


def print_result(out: Path, result: dict[str, Any], round_: int, n_rounds: int) -> None:
    """Print what a run achieved."""
    from goco_mpi import record
    from goco_mpi.checkpoint import EARLY
    from goco_mpi.core.survivors import DISCONNECTED, LOST_SHARD

    parts = [f"loss {result['loss']:.6g}"]
    if result["stopped_by"] in record.ASKED_TO_STOP:
        parts.insert(0, f"stopped in round {round_} of {n_rounds}, {record.ASKED_TO_STOP[result['stopped_by']]}")
    elif result["stopped_by"] in (LOST_SHARD, DISCONNECTED):
        parts.insert(0, f"stopped by deaths in round {round_} of {n_rounds}")
    elif result["stopped_by"] != "rounds":
        parts.insert(0, f"stopped by stop.{result['stopped_by']}")
    if result["suboptimality"] is not None:
        parts.append(f"suboptimality {result['suboptimality']:.3g}")
    parts.append(f"consensus distance {result['consensus_distance']:.3g}")
    if result["test_accuracy"] is not None:
        parts.append(f"test accuracy {100 * result['test_accuracy']:.1f} %")
    if result["gradient_dissimilarity"] is not None:
        parts.append(f"gradient dissimilarity of the shards {result['gradient_dissimilarity']:.3g}")
    if result["wall_s"] is not None:
        parts.append(f"{result['wall_s']:.2f} s")
    print(", ".join(parts))
    print(f"record in {out}")
    if result["stopped_by"] in EARLY:
        print("to go on from there: the same command with --resume")
