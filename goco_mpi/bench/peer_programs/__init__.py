"""Programs of peers for ``goco bench --peers``: each runs alone, in an environment without goco_mpi."""
