"""Who is waited for, how long, and what is done about being late: the rules of a rank that gossips on its own clock.

None of them looks at a clock: times are handed to them, by MPI ranks in `goco_mpi.engine` and by simulated ones in
`goco_mpi.core.discrete_event`.
"""
