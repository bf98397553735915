"""The command line: ``goco run | simulate | shard | sweep | watch | replay | report | plan | bench | ...``."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from goco_mpi import __version__
from goco_mpi.errors import GocoError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 run failed, 2 bad input."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    options = (whole := parser()).parse_args(words)
    options.parser = whole
    options.words = words[1:]
    options.ends_process = arguments is None  # the command is all that this process is for
    try:
        code: int = importlib.import_module(f"goco_mpi.commands.{options.command}").run(options)
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


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="goco",
        description="Decentralized learning with gradient coding that does not wait for the slowest node.",
        epilog="Exit codes: 0 done, 1 the run failed and said why, 2 bad input, above 2 a rank died.",
    )
    parser.add_argument("--version", action="version", version=f"goco {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="train on MPI: mpiexec -n 8 goco run EXPERIMENT.toml")
    _add_experiment(run)
    run.add_argument("--ranks", type=int, metavar="N", help="refuse to start on any other number of ranks")
    run.add_argument(
        "--resume", action="store_true", help="go on from the newest checkpoint of DIR, or begin where there is none"
    )
    run.add_argument(
        "--warm-start", type=Path, metavar="DIR", help="begin at the mean parameters of another run, of any layout"
    )
    run.set_defaults(command="run")

    simulate = commands.add_parser("simulate", help="compute the same experiment in one process, without MPI")
    _add_experiment(simulate)
    simulate.add_argument("--workers", type=int, default=8, metavar="N", help="number of workers (default 8)")
    simulate.add_argument(
        "--time", action="store_true", help="in simulated seconds: each worker in its own time, by the costs of [cost]"
    )
    simulate.set_defaults(command="simulate")

    _add_shard(commands.add_parser("shard", help="write data into a shard store, of which each rank reads its part"))

    sweep = commands.add_parser("sweep", help="run a grid of experiments into one table, going on where it was")
    sweep.add_argument("sweep", metavar="SWEEP.toml")
    sweep.add_argument("--out", type=Path, metavar="DIR", help="directory (default runs/SWEEP)")
    sweep.add_argument("--jobs", type=int, metavar="N", help="simulations at a time (default: one a core)")
    sweep.add_argument("--mpiexec", metavar="COMMAND", help='launcher for mode = "mpi" (default: as bench)')
    sweep.add_argument("--quiet", action="store_true", help="print nothing but errors")
    only = sweep.add_mutually_exclusive_group()
    only.add_argument(
        "--member", type=int, metavar="I", help="run nothing: write the experiment of member I (from 0), print its name"
    )
    only.add_argument("--collect", action="store_true", help="run nothing: put into the table what has been run")
    sweep.set_defaults(command="sweep")

    replay = commands.add_parser("replay", help="compute finished runs once more from their events, and compare")
    replay.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR")
    replay.set_defaults(command="replay")

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
    report.add_argument(
        "--html",
        type=Path,
        metavar="FILE",
        help="write one page with everything: figures, ranks, what limited the runs",
    )
    report.add_argument("--png", type=Path, metavar="FILE", help="draw loss against wall time alone")
    report.add_argument(
        "--timeline", type=Path, metavar="FILE", help="write the (first) run's timeline, for https://ui.perfetto.dev"
    )
    report.set_defaults(command="report")

    watch = commands.add_parser("watch", help="follow a running job: pace, slow and silent ranks, loss, time left")
    watch.add_argument("run", type=Path, metavar="RUN_DIR", help="the run directory that the job will write")
    watch.add_argument("--once", action="store_true", help="say in one line where it is, and end")
    watch.set_defaults(command="watch")

    calibrate = commands.add_parser(
        "calibrate", help="say how well simulated seconds predict recorded runs, rank by rank"
    )
    calibrate.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR")
    calibrate.set_defaults(command="calibrate")

    plan = commands.add_parser(
        "plan", help="say which method, replication, graph and deadlines to run, by simulating candidates"
    )
    plan.add_argument("source", type=Path, metavar="RUN_DIR|EXPERIMENT.toml", help="a recorded run, or one with [cost]")
    plan.add_argument("--nodes", type=int, metavar="N", help="number of ranks (default: the run's; of an experiment 8)")
    plan.add_argument("--gap", type=float, default=0.01, help="suboptimality to reach (default 0.01)")
    plan.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of the experiment file"
    )
    plan.add_argument("--json", action="store_true", help="print JSON")
    plan.set_defaults(command="plan")

    bench = commands.add_parser("bench", help="measure on this machine: against raw limits, promises and peers")
    bench.add_argument(
        "names", nargs="*", metavar="MEMBER", help="what to measure (default: everything but peers and train-2gb)"
    )
    bench.add_argument("--peers", action="store_true", help="also measure torch's gloo and disropt, installed once")
    bench.add_argument("--peers-dir", type=Path, metavar="DIR", help="where (default ~/.cache/goco_mpi/peers)")
    bench.add_argument("--mpiexec", metavar="COMMAND", help="launcher (default: the one beside this Python)")
    bench.add_argument("--json", action="store_true", help="print one JSON object per figure, each on its own line")
    bench.add_argument("--strict", action="store_true", help="exit code 1 if a bound is missed")
    bench.set_defaults(command="bench")

    bench_rank = commands.add_parser("bench-rank")  # what bench starts under mpiexec
    bench_rank.add_argument("function")
    bench_rank.add_argument("options", metavar="JSON")
    bench_rank.set_defaults(command="bench_rank")

    _add_jobscript(commands.add_parser("jobscript", help="print a batch script for Slurm, PBS or LSF: one rank a node"))

    completion = commands.add_parser("completion", help="print a script with which bash or zsh completes command lines")
    completion.add_argument("shell", choices=["bash", "zsh"])
    completion.set_defaults(command="completion")

    info = commands.add_parser(
        "info", help="show MPI library, launcher, ranks, cores, versions; with --check whether the job is fit"
    )
    info.add_argument(
        "--check", action="store_true", help="also examine nodes, clocks, network and directory; exit code 1 if not fit"
    )
    info.add_argument("--out", type=Path, metavar="DIR", help="with --check: run directory (default below runs/)")
    info.add_argument("--ranks", type=int, metavar="N", help="with --check: how many ranks there should be")
    info.set_defaults(command="info")
    return parser


def _add_experiment(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("experiment", metavar="EXPERIMENT.toml")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a key, such as method.kind=dgd"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="run directory (default runs/EXPERIMENT)")
    parser.add_argument("--force", action="store_true", help="replace an earlier run directory")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")


def _add_shard(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="INPUT", help="whatever data.source may be: a file, a set, a generator")
    parser.add_argument("out", metavar="OUT", type=Path, help="directory: use it as data.source")
    parser.add_argument("--shards", type=int, required=True, metavar="M", help="how many")
    parser.add_argument("--partition", metavar="KIND", help="iid (default), by_label, in_order, dirichlet or by_column")
    parser.add_argument("--alpha", type=float, metavar="A", help="of dirichlet")
    parser.add_argument("--partition-column", metavar="NAME", help="of by_column: what tells sites or users apart")
    parser.add_argument("--test-fraction", type=float, metavar="F", help="kept for testing (default 0.2)")
    parser.add_argument("--seed", type=int, default=0, help="of the split, the partition and generators (default 0)")
    parser.add_argument("--dtype", metavar="TYPE", help="of the features: float64 (default) or float32")
    parser.add_argument("--format", metavar="KIND", help="of a file whose suffix does not tell")
    parser.add_argument("--targets", metavar="FILE", help="of .npy features")
    parser.add_argument("--target-column", metavar="NAME", help="of Parquet and CSV; of HDF5 the dataset")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="another key, such as data.n_samples=100000"
    )
    parser.add_argument("--force", action="store_true", help="replace an earlier store")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    parser.set_defaults(command="shard")


def _add_jobscript(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("scheduler", choices=["slurm", "pbs", "lsf"])
    parser.add_argument("experiment", metavar="EXPERIMENT.toml", help="as seen from where the job will be submitted")
    parser.add_argument("--nodes", type=int, required=True, metavar="N", help="number of nodes, and of ranks")
    parser.add_argument("--time", default="01:00:00", metavar="[D-]HH:MM:SS", help="limit (default 01:00:00)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="run directory (default runs/EXPERIMENT)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of the experiment file"
    )
    parser.add_argument("--cores", type=int, metavar="C", help="cores of a node (default: all that it has)")
    parser.add_argument("--launcher", choices=["srun", "mpiexec"], help="default: srun under Slurm, or else mpiexec")
    parser.add_argument("--mpi", choices=["pmi2", "pmix"], help="of srun: pmi2 (MPICH, default) or pmix (Open MPI)")
    parser.add_argument(
        "--array", choices=["sweep"], help="EXPERIMENT.toml is a sweep: a job array with an element a member"
    )
    parser.add_argument(
        "--scaling", choices=["strong", "weak"], help="on 1, 2, 4, ... N nodes; weak: data grow with them"
    )
    parser.add_argument(
        "--chain", type=int, default=1, metavar="K", help="K jobs one after the other, each resuming the last"
    )
    parser.add_argument("--requeue", action="store_true", help="start again after the failure of a node or a rank")
    parser.add_argument("--container", nargs=2, metavar=("apptainer", "IMAGE"), help="run the goco of an image")
    parser.add_argument("--prologue", default="", metavar="FILE", help="what the job sources first: modules and such")
    parser.add_argument(
        "--directive",
        action="append",
        default=[],
        metavar="OPTION",
        help="one more option of the scheduler, as --directive=-x",
    )
    parser.set_defaults(command="jobscript")
