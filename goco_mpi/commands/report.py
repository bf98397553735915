"""``goco report``: compare runs, or the variants of a sweep."""

from __future__ import annotations

import argparse

from goco_mpi.errors import InputError


def run(options: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    from goco_mpi.record import read_run
    from goco_mpi.reporting import table, timeline
    from goco_mpi.sweeps.file import RESULTS

    of_runs = options.reference or options.png or options.timeline or options.html
    of_sweeps = any((path / RESULTS).exists() or (path / "runs").is_dir() for path in options.runs)
    if options.targets or options.figure or options.best or of_sweeps:
        if of_runs:
            raise InputError(
                "--html, --png, --reference and --timeline are for runs, and --targets, --figure and --best for "
                "variants of an experiment, as sweeps are. Report one after the other."
            )
        return _compare(options)
    runs = [read_run(path) for path in options.runs]
    if options.html:
        _write_page(options)
        if any(run.run["result"]["wall_s"] is None for run in runs):
            return 0  # the table is of seconds
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
