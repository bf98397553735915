"""``python -m goco_mpi`` is the command ``goco``."""

import sys

from goco_mpi.cli import main

sys.exit(main())
