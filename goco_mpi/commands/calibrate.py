"""``goco calibrate``: how well simulated seconds predict recorded runs."""

from __future__ import annotations

import argparse


def run(options: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    from goco_mpi.record import read_run
    from goco_mpi.simulation.prediction import predict, print_prediction

    for path in options.runs:
        print_prediction(str(path), predict(read_run(path)))
    return 0
