"""One module a command of the command line: each has ``run(options)``, which returns the exit code.

`goco_mpi.cli` imports the one that was asked for, and each imports what it needs when it runs.
"""
