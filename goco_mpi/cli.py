"""The command line: ``goco run | simulate | sweep | replay | report | calibrate | plan | bench | info``."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from goco_mpi import __version__
from goco_mpi.errors import GocoError, InputError, RunError, check_range

if TYPE_CHECKING:
    from goco_mpi.engine.session import Session
    from goco_mpi.progress import Progress
    from goco_mpi.record import Outcome
    from goco_mpi.schema import RunConfig


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 run failed, 2 bad input."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.command(options)
    except GocoError as error:
        if not error.silent:
            print(f"goco: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone; nothing is left to say
        return 0
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="goco", description="Decentralized learning with gradient coding that does not wait for the slowest node."
    )
    parser.add_argument("--version", action="version", version=f"goco {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="train on MPI: mpiexec -n 8 goco run EXPERIMENT.toml")
    _add_experiment(run)
    run.add_argument("--ranks", type=int, metavar="N", help="refuse to start on any other number of ranks")
    run.set_defaults(command=_run)

    simulate = commands.add_parser("simulate", help="the same experiment in one process, without MPI")
    _add_experiment(simulate)
    simulate.add_argument("--workers", type=int, default=8, metavar="N", help="number of workers (default 8)")
    simulate.add_argument(
        "--time", action="store_true", help="in simulated seconds: each worker in its own time, by the costs of [cost]"
    )
    simulate.set_defaults(command=_simulate)

    sweep = commands.add_parser("sweep", help="all members of a grid of experiments, resumably, into one table")
    sweep.add_argument("sweep", metavar="SWEEP.toml")
    sweep.add_argument("--out", type=Path, metavar="DIR", help="directory (default runs/SWEEP)")
    sweep.add_argument("--jobs", type=int, metavar="N", help="simulations at a time (default: one a core)")
    sweep.add_argument("--mpiexec", metavar="COMMAND", help='launcher for mode = "mpi" (default: as bench)')
    sweep.add_argument("--quiet", action="store_true", help="print nothing but errors")
    sweep.set_defaults(command=_sweep)

    replay = commands.add_parser("replay", help="compute finished runs once more from their events, and compare")
    replay.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR")
    replay.set_defaults(command=_replay)

    report = commands.add_parser("report", help="compare finished runs or the variants of a sweep: tables, pictures")
    report.add_argument("runs", nargs="+", type=Path, metavar="DIR", help="run directory, or a sweep's")
    report.add_argument(
        "--targets", metavar="LIST", help="cost to these suboptimalities, such as 1e-2,1e-6 (default for sweeps)"
    )
    report.add_argument(
        "--figure", type=Path, metavar="FILE", help="draw against rounds, time, bytes and gradients (.svg, .png, .pdf)"
    )
    report.add_argument("--title", default="", help="of the figure")
    report.add_argument("--floor", type=float, default=0.0, metavar="VALUE", help="the lowest value in the figure")
    report.add_argument(
        "--best",
        metavar="KEY",
        help="of variants that differ in KEY, such as step.scale, only the quickest (figure: to --gap)",
    )
    report.add_argument("--reference", type=Path, metavar="RUN_DIR", help="run without stragglers, for round rates")
    report.add_argument("--gap", type=float, default=0.01, help="suboptimality that counts (default 0.01)")
    report.add_argument("--png", type=Path, metavar="FILE", help="draw loss against wall time alone")
    report.add_argument(
        "--timeline", type=Path, metavar="FILE", help="write the (first) run's timeline, for https://ui.perfetto.dev"
    )
    report.set_defaults(command=_report)

    calibrate = commands.add_parser("calibrate", help="how well simulated seconds predict recorded runs, rank by rank")
    calibrate.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR")
    calibrate.set_defaults(command=_calibrate)

    plan = commands.add_parser(
        "plan", help="which method, replication, graph and deadlines: simulates candidates in time"
    )
    plan.add_argument("source", type=Path, metavar="RUN_DIR|EXPERIMENT.toml", help="a recorded run, or one with [cost]")
    plan.add_argument("--nodes", type=int, metavar="N", help="number of ranks (default: the run's; of an experiment 8)")
    plan.add_argument("--gap", type=float, default=0.01, help="suboptimality to reach (default 0.01)")
    plan.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of the experiment file"
    )
    plan.add_argument("--json", action="store_true", help="print JSON")
    plan.set_defaults(command=_plan)

    bench = commands.add_parser("bench", help="measure on this machine: against raw limits, promises and peers")
    bench.add_argument("names", nargs="*", metavar="MEMBER", help="what to measure (default: everything but peers)")
    bench.add_argument("--peers", action="store_true", help="also measure torch's gloo and disropt, installed once")
    bench.add_argument("--peers-dir", type=Path, metavar="DIR", help="where (default ~/.cache/goco_mpi/peers)")
    bench.add_argument("--mpiexec", metavar="COMMAND", help="launcher (default: the one beside this Python)")
    bench.add_argument("--json", action="store_true", help="one JSON object a figure, each on a line of its own")
    bench.add_argument("--strict", action="store_true", help="exit code 1 if a bound is missed")
    bench.set_defaults(command=_bench)

    bench_rank = commands.add_parser("bench-rank")  # what bench starts under mpiexec
    bench_rank.add_argument("function")
    bench_rank.add_argument("options", metavar="JSON")
    bench_rank.set_defaults(command=_bench_rank)

    info = commands.add_parser("info", help="MPI library, launcher, ranks, cores, threads, versions")
    info.set_defaults(command=_info)
    return parser


def _add_experiment(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("experiment", metavar="EXPERIMENT.toml")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a key, such as method.kind=dgd"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="run directory (default runs/EXPERIMENT)")
    parser.add_argument("--force", action="store_true", help="replace an earlier run directory")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")


def _prepare(options: argparse.Namespace) -> tuple[RunConfig, Path]:
    """Read the experiment and make sure that its result has a place."""
    from goco_mpi import config as cfg
    from goco_mpi import record

    config = cfg.read_config(options.experiment, options.set)
    out = options.out or Path("runs") / Path(options.experiment).stem
    record.refuse_existing(out, options.force)
    return config, out


def _run(options: argparse.Namespace) -> int:
    from goco_mpi.engine.session import Session  # first: it sets BLAS threads before numpy loads

    with Session(expected_ranks=options.ranks) as session:
        try:
            _run_together(options, session)
        except GocoError as error:
            if not error.agreed:
                raise
            if session.rank == 0:
                print(f"goco: {error}", file=sys.stderr, flush=True)
            return error.exit_code
    return 0


def _run_together(options: argparse.Namespace, session: Session) -> None:
    """Train on all ranks and write the record on rank 0. Collective."""
    from goco_mpi.engine.train import train
    from goco_mpi.progress import Progress

    # One rank reads the experiment: on a cluster only some nodes may see the directory.
    config, out = session.share(lambda: _prepare(options))
    with Progress(config.rounds, quiet=options.quiet or session.rank > 0) as progress:
        outcome = train(config, session, progress)
    environment = session.environment()

    def finish() -> None:
        assert outcome is not None  # rank 0 has it
        _finish(options, out, config, outcome, environment)

    session.share(finish)


def _simulate(options: argparse.Namespace) -> int:
    from goco_mpi.progress import Progress
    from goco_mpi.simulation import simulate_experiment

    check_range("--workers", options.workers, 1, 2**31)
    config, out = _prepare(options)
    environment = {"simulated": True, "n_ranks": options.workers}
    with Progress(config.rounds, options.quiet) as progress:
        if options.time:
            outcome, environment["simulator"] = _simulate_in_time(config, options.workers, progress)
        else:
            outcome = simulate_experiment(config, options.workers, progress)
    _finish(options, out, config, outcome, environment)
    if options.time and not options.quiet:
        print(
            "simulated {rounds} rounds of workers in {seconds:.1f} s: {rate:.0f} a second".format(
                **environment["simulator"]
            )
        )
    return 0


def _simulate_in_time(config: RunConfig, n_workers: int, progress: Progress) -> tuple[Outcome, dict[str, Any]]:
    """Return the outcome in simulated seconds, and how quickly it was simulated."""
    import time

    from goco_mpi.timed import simulate_in_time

    start = time.perf_counter()
    found = simulate_in_time(config, n_workers, progress)
    seconds = time.perf_counter() - start
    n_rounds = int(sum(row["rounds"] for row in found.outcome.ranks))
    return found.outcome, {
        "rounds": n_rounds,
        "events": found.n_events,
        "seconds": seconds,
        "rate": n_rounds / seconds,
    }


def _finish(
    options: argparse.Namespace, out: Path, config: RunConfig, outcome: Outcome, environment: dict[str, Any]
) -> None:
    """Write the record, print the result, and fail a run that is worse than no training."""
    from goco_mpi import record

    result = record.write_run(out, config, environment, outcome, options.force)
    if not options.quiet:
        _print_result(out, result)
    record.refuse_worse(result, out)


def _print_result(out: Path, result: dict[str, Any]) -> None:
    parts = [f"loss {result['loss']:.6g}"]
    if result["stopped_by"] != "rounds":
        parts.insert(0, f"stopped by stop.{result['stopped_by']}")
    if result["suboptimality"] is not None:
        parts.append(f"suboptimality {result['suboptimality']:.3g}")
    parts.append(f"consensus distance {result['consensus_distance']:.3g}")
    if result["test_accuracy"] is not None:
        parts.append(f"test accuracy {100 * result['test_accuracy']:.1f} %")
    if result["wall_s"] is not None:
        parts.append(f"{result['wall_s']:.2f} s")
    print(", ".join(parts))
    print(f"record in {out}")


def _sweep(options: argparse.Namespace) -> int:
    from goco_mpi.bench import default_mpiexec
    from goco_mpi.sweep import RESULTS, read_sweep
    from goco_mpi.sweep_run import run_sweep

    jobs = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if options.jobs is not None:
        check_range("--jobs", options.jobs, 1, 2**15)
        jobs = options.jobs
    sweep = read_sweep(options.sweep)
    file = Path(options.sweep).resolve()
    out = options.out or Path("runs") / (file.parent.name if file.stem == "sweep" else file.stem)

    def say(line: str) -> None:
        if not options.quiet:
            print(line, flush=True)

    mpiexec = shlex.split(options.mpiexec or default_mpiexec())
    n_failed = run_sweep(sweep, out, jobs, mpiexec, say)
    say(f"table in {out / RESULTS}; goco report {out} compares the variants")
    if n_failed:
        raise RunError(f"{n_failed} of {len(sweep.members)} members failed. Their reasons are in {out / RESULTS}.")
    return 0


def _replay(options: argparse.Namespace) -> int:
    from goco_mpi.record import read_run
    from goco_mpi.replay import TOLERANCE, replay

    agree = True
    for path in options.runs:
        found = replay(read_run(path))
        agree &= found.agrees
        worst = int(found.differences.argmax())
        print(
            f"{path}: {found.n_steps} steps of {len(found.differences)} ranks replayed; the largest difference is "
            f"{found.differences[worst]:.2g} (rank {worst}), {'within' if found.agrees else 'beyond'} "
            f"{found.tolerance:.2g}{', to which rounding may have grown' if found.tolerance > TOLERANCE else ''}"
        )
    if not agree:
        raise RunError(
            "A run and its replay differ: its events, its data or this version of goco are not the run's own."
        )
    return 0


def _report(options: argparse.Namespace) -> int:
    from goco_mpi import report, timeline
    from goco_mpi.record import read_run
    from goco_mpi.sweep import RESULTS

    of_runs = options.reference or options.png or options.timeline
    of_sweeps = any((path / RESULTS).exists() or (path / "runs").is_dir() for path in options.runs)
    if options.targets or options.figure or options.best or of_sweeps:
        if of_runs:
            raise InputError(
                "--png, --reference and --timeline are for runs, and --targets, --figure and --best for variants of "
                "an experiment, as sweeps are. Report one after the other."
            )
        return _compare(options)
    runs = [read_run(path) for path in options.runs]
    reference = read_run(options.reference) if options.reference else None
    report.print_table(runs, reference, options.gap)
    if options.png:
        report.draw(runs, options.gap, options.png)
        print(f"picture in {options.png}")
    if options.timeline:
        timeline.write(runs[0], options.timeline)
        print(f"timeline in {options.timeline}: open it with https://ui.perfetto.dev or chrome://tracing")
    return 0


def _calibrate(options: argparse.Namespace) -> int:
    from goco_mpi.prediction import predict, print_prediction
    from goco_mpi.record import read_run

    for path in options.runs:
        print_prediction(str(path), predict(read_run(path)))
    return 0


def _plan(options: argparse.Namespace) -> int:
    from goco_mpi import plan
    from goco_mpi.calibration import calibrate
    from goco_mpi.config import read_config
    from goco_mpi.planner import Planner
    from goco_mpi.record import read_run

    def progress(words: str) -> None:
        if sys.stderr.isatty():
            print(f"trying {words}", file=sys.stderr, flush=True)

    if options.source.is_dir():
        if options.set:
            raise InputError("--set changes an experiment file, and a recorded run is what it is. Give its experiment.")
        found = calibrate(read_run(options.source))
        planner = Planner(found.config, options.nodes or found.n_workers, found.cost, options.gap, progress)
    else:
        config = read_config(options.source, options.set)
        planner = Planner(config, options.nodes or 8, None, options.gap, progress)
    made = planner.plan()
    if options.json:
        print(plan.to_json(made))
    else:
        plan.print_plan(made)
    return 0


def _compare(options: argparse.Namespace) -> int:
    """Report what variants need to targets, each over its seeds."""
    from goco_mpi import comparison, figures

    targets = list(comparison.TARGETS)
    if options.targets:
        try:
            targets = [float(word) for word in options.targets.split(",")]
        except ValueError:
            raise InputError(f"--targets takes numbers, such as 1e-2,1e-6. Got {options.targets!r}.") from None
    variants = comparison.read_variants(options.runs)
    comparison.print_costs(variants, targets, options.best)
    if options.figure:
        if options.best:
            variants = comparison.best(variants, options.best, options.gap)
        figures.draw(variants, options.figure, options.title, options.floor)
        print(f"figure in {options.figure}")
    return 0


def _bench(options: argparse.Namespace) -> int:
    from goco_mpi import bench, bench_peers

    mpiexec = shlex.split(options.mpiexec or bench.default_mpiexec())
    setup = bench.Setup(tuple(mpiexec), options.peers_dir or bench_peers.default_dir())
    bounds_hold = bench.run(options.names, setup, options.json, options.peers)
    return 1 if options.strict and not bounds_hold else 0


def _bench_rank(options: argparse.Namespace) -> int:
    import json

    from goco_mpi.engine.session import Session  # first, as in _run

    with Session() as session:
        from goco_mpi.engine import benchmarks

        try:
            samples = getattr(benchmarks, options.function)(session, **json.loads(options.options))
        except GocoError as error:
            if not error.agreed:
                raise
            if session.rank == 0:
                print(f"goco: {error}", file=sys.stderr, flush=True)
            return error.exit_code
        if session.rank == 0:
            print(json.dumps(samples))
    return 0


def _info(options: argparse.Namespace) -> int:
    from collections import Counter

    from goco_mpi.engine.session import LAUNCH, Session
    from goco_mpi.record import software

    def summary(value: Any) -> str:
        """Write a list of one value a rank as counts, and a dict as words."""
        if isinstance(value, list):
            return ", ".join(f"{item} ({count} ranks)" for item, count in Counter(map(str, value)).items())
        return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)

    with Session(guard=False) as session:
        environment = {**software(), **session.environment()}
        del environment["command"]
        matches = LAUNCH.n_ranks in (None, session.size)
        environment["launcher_match"] = (
            "yes" if matches else f"NO: {LAUNCH.n_ranks} ranks were started and this process sees {session.size}"
        )
        if session.rank == 0 and (matches or LAUNCH.rank == 0):
            for name, value in environment.items():
                print(f"{name:>15}  {summary(value)}")
    return 0 if matches else 2
