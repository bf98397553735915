"""A rank that says when its rounds have begun: python -m mpi4py rank.py EXPERIMENT OUT [KEY=VALUE ...]"""

import sys
from pathlib import Path

import numpy as np

from goco_mpi import train
from goco_mpi.config import read_config

BEGUN = "rounds have begun"
BEGUN_AFTER = 5


def main() -> None:
    """Train, and write the run directory."""
    said = False

    def say(round_: int, x: np.ndarray) -> None:
        nonlocal said
        if round_ >= BEGUN_AFTER and not said:
            said = True
            print(BEGUN, flush=True)

    experiment, out, *overrides = sys.argv[1:]
    train(read_config(Path(experiment), overrides), callback=say, out=out)


if __name__ == "__main__":
    main()
