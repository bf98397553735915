"""Without torch the modules that import it have no examples to collect."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("torch") else ["goco_mpi/torch/*"]
