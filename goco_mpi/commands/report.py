"""``goco report``: compare runs, or the variants of a sweep."""

from __future__ import annotations

import argparse
import math

from goco_mpi.errors import InputError, check_range


def run(options: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    from goco_mpi.record import read_run
    from goco_mpi.reporting import table, timeline
    from goco_mpi.sweeps.file import RESULTS

    if not 0.0 < options.gap < 1.0:
        raise InputError(f"--gap must be above 0 and below 1. Got {options.gap:g}. It is a part of F(0) - F*.")
    of_a_table = options.reference or options.png or options.timeline
    of_sweeps = any((path / RESULTS).exists() or (path / "runs").is_dir() for path in options.runs)
    if options.targets is not None or options.figure or options.best or of_sweeps:
        if of_a_table or options.html:
            raise InputError(
                "--html, --png, --reference and --timeline are for runs, and --targets, --figure and --best for "
                "variants of an experiment, as sweeps are. Report one after the other."
            )
        return _compare(options)
    if options.title or options.floor:
        raise InputError("--title and --floor are for a figure alone. Add --figure.")
    runs = [read_run(path) for path in options.runs]
    if options.html:
        _write_page(options)
        if not of_a_table and any(run.run["result"]["wall_s"] is None for run in runs):
            return 0  # the table is of seconds, and was not asked for
    reference = read_run(options.reference) if options.reference else None
    table.print_table(runs, reference, options.gap)
    if options.png:
        table.draw(runs, options.gap, options.png)
        print(f"picture in {options.png}")
    if options.timeline:
        timeline.write(runs[0], options.timeline)
        print(f"timeline in {options.timeline}: open it with https://ui.perfetto.dev or chrome://tracing")
    return 0


def _write_page(options: argparse.Namespace) -> None:
    """Write the page of some runs."""
    from goco_mpi.reporting import account, page

    page.write(page.build([account.read(path) for path in options.runs], options.gap), options.html)
    print(f"page in {options.html}")


def _compare(options: argparse.Namespace) -> int:
    """Report what variants need to targets, each over its seeds."""
    from goco_mpi.reporting import comparison, figures

    check_range("--floor", options.floor, 0.0, 1.0)
    targets = comparison.TARGETS if options.targets is None else _targets(options.targets)
    variants = comparison.read_variants(options.runs)
    comparison.print_costs(variants, targets, options.best)
    if options.figure:
        if options.best:
            variants = comparison.best(variants, options.best, options.gap)
        figures.draw(variants, options.figure, options.title, options.floor)
        print(f"figure in {options.figure}")
    return 0


def _targets(text: str) -> list[float]:
    """Return the numbers of ``--targets``."""
    try:
        targets = [float(word) for word in text.split(",")]
    except ValueError:
        targets = []
    if not targets or not all(0.0 < target < math.inf for target in targets):
        raise InputError(f"--targets takes numbers above 0, such as 1e-2,1e-6. Got {text!r}.")
    return targets
