"""What a fault of one node costs the others: make faults, as root.

Eight emulated nodes with one rank each. Each method runs for some seconds undisturbed and then with one fault of one
node, and once without; all of that ``--repeats`` times over. The table has medians. A run's fast nodes are all but the
one at fault, and what they got done during the fault is compared with what they did in the run without. Runs that are
in ``--out`` already are not made again.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, median

import watched
from nodes import Nodes, NodesError, missing
from watched import Window

from goco_mpi.replay import replay

N_NODES = 8
AT_FAULT = 3
QUIET_S = 4.0
ROUNDING = 1e-15
EXPERIMENT = Path(__file__).with_name("faults.toml")
METHODS = {
    "push_pull": ["method.kind=push_pull", "step.scale=0.5"],
    "goco": ["method.kind=goco"],
    "allreduce": ["method.kind=allreduce"],
}
TOLERANCES = {"push_pull": 1e-6, "goco": 1e-4, "allreduce": 1e-6}
"""How far above the gap of the run without a fault one with a fault may end, of 1 at the start.

Exact methods are on their way to 0 in both; goco ends in the bias of its constant step, which ages of gradients move.
"""


@dataclass(frozen=True)
class Fault:
    """Something that befalls a node.

    Attributes
    ----------
    begin : callable (Nodes, int) -> None
    end : callable (Nodes, int) -> None, optional
    lasts_s : float
        0: to the end of the run.
    """

    begin: Callable[[Nodes, int], None] = lambda nodes, node: None
    end: Callable[[Nodes, int], None] = lambda nodes, node: None
    lasts_s: float = 0.0


def _impair(nodes: Nodes, node: int, **link: float) -> None:
    nodes.impair(node, **link)


NONE = "none"
FAULTS = {
    NONE: Fault(),
    "delayed 20 ms": Fault(partial(_impair, delay_s=0.02)),
    "at 20 Mbit/s": Fault(partial(_impair, bits_per_s=20e6)),
    "5 % of its frames lost": Fault(partial(_impair, loss=0.05)),
    "cut off for 6 s": Fault(Nodes.unplug, Nodes.plug_in, 6.0),
    "frozen for 5 s": Fault(Nodes.freeze, Nodes.thaw, 5.0),
    "slowed ten times": Fault(partial(Nodes.slow_down, factor=10.0)),
}


@dataclass(frozen=True)
class Found:
    """What a run gave.

    Attributes
    ----------
    rate : float
        Gradients a second of the fast nodes' mean during the fault; after `QUIET_S` where there is none.
    slowest_rate : float
        Of the slowest of them.
    later_rate : float
        Of their mean from the fault's beginning to the end of the run.
    own_rate : float
        Of the node at fault, during the fault.
    gap : float
        Suboptimality at the end.
    replayed : float
        Largest difference of a rank's parameters to its replay's.
    """

    rate: float
    slowest_rate: float
    later_rate: float
    own_rate: float
    gap: float
    replayed: float


def run_one(method: str, fault: Fault, out: Path, mpiexec: Sequence[str]) -> Found:
    """Make a run and see what came of it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with Nodes(N_NODES) as nodes:

        def disturb() -> Window:
            time.sleep(QUIET_S)
            begin, end = partial(fault.begin, nodes, AT_FAULT), partial(fault.end, nodes, AT_FAULT)
            return watched.during(begin, fault.lasts_s, end)

        disturbed = watched.run(nodes, mpiexec, EXPERIMENT, out, METHODS[method], disturb)
    run = watched.read(out)
    fast = [rank for rank in range(N_NODES) if rank != AT_FAULT]
    rest = Window(disturbed.begin_s, run.end_s(fast))
    window = disturbed if fault.lasts_s else rest
    rates = [run.rate(rank, window) for rank in fast]
    return Found(
        rate=fmean(rates),
        slowest_rate=min(rates),
        later_rate=fmean(run.rate(rank, rest) for rank in fast),
        own_rate=run.rate(AT_FAULT, window),
        gap=run.record.run["result"]["suboptimality"],
        replayed=float(replay(run.record).differences.max()),
    )


def find(method: str, fault: str, out: Path, mpiexec: Sequence[str]) -> Found:
    """Return what a run gave, which is made unless it is there already."""
    result = out.with_suffix(".json")
    if result.exists():
        return Found(**json.loads(result.read_text()))
    shutil.rmtree(out, ignore_errors=True)  # of an earlier one that was interrupted
    found = run_one(method, FAULTS[fault], out, mpiexec)
    result.write_text(json.dumps(vars(found), indent=1) + "\n")
    return found


def table(found: dict[str, dict[str, list[Found]]], methods: Sequence[str]) -> str:
    """Return what was found as a table: for each fault and method the rate relative to no fault, and the gap.

    Behind the rate during a fault that ends: from its beginning to the end of the run.
    """
    head = ["one of eight nodes"] + [f"{method}: {what}" for method in methods for what in ("rate", "gap")]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, fault in FAULTS.items():
        cells = [name]
        for method in methods:
            runs = found[method][name]
            pairs = list(zip(runs, found[method][NONE], strict=True))
            rate = f"{median(run.rate / free.rate for run, free in pairs):.2f}"
            later = f" ({median(run.later_rate / free.rate for run, free in pairs):.2f})" if fault.lasts_s else ""
            gap = median(run.gap for run in runs)
            cells += [rate + later, f"{gap:.1e}" if gap >= ROUNDING else f"< {ROUNDING:.0e}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Run the command line; the exit code is 1 if a run failed, ends above its tolerance or does not replay."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--mpiexec", required=True, metavar="COMMAND", help="launcher, with its arguments")
    parser.add_argument("--out", type=Path, required=True, help="a new directory for the runs")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    options = parser.parse_args()
    if (reason := missing()) is not None:
        parser.error(reason)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what runs is ended, too
    found: dict[str, dict[str, list[Found]]] = {method: {fault: [] for fault in FAULTS} for method in options.methods}
    for repeat in range(options.repeats):
        for method in options.methods:
            for fault in FAULTS:
                out = options.out / f"{method} {fault} {repeat}".translate(str.maketrans(" /%", "___"))
                try:
                    run = find(method, fault, out, shlex.split(options.mpiexec))
                except NodesError as error:
                    print(f"{method}, {fault}: {error}", file=sys.stderr)
                    return 1
                found[method][fault].append(run)
                print(f"{method}, {fault}: {run}", flush=True)
    print(table(found, options.methods))
    worst = max(run.replayed for runs in found.values() for same in runs.values() for run in same)
    print(f"All runs replay to {worst:.0e}.")
    above = [
        f"{method}, {fault}: {run.gap - free.gap:.1e}"
        for method, faults in found.items()
        for fault, runs in faults.items()
        for run, free in zip(runs, faults[NONE], strict=True)
        if run.gap - free.gap > TOLERANCES[method]
    ]
    print("Above the gap of the run without a fault by more than its tolerance:", *above or ["none"], sep="\n  ")
    return 0 if worst <= 1e-12 and not above else 1


if __name__ == "__main__":
    sys.exit(main())
