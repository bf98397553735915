"""Decentralized gradient descent, uncoded: every shard on one worker, no weight for lateness.

With infinite deadlines it waits for all; with finite ones it ignores stragglers, and with them
their data. The step is the one of `goco_mpi.core.methods.goco`.

References
----------
Nedic & Ozdaglar, "Distributed subgradient methods for multi-agent optimization", IEEE TAC 2009;
Yuan, Ling & Yin, "On the convergence of decentralized gradient descent", SIAM J. Optim. 2016.
"""

from goco_mpi.core.methods.base import Descent


class Dgd(Descent):
    """See the module."""

    name = "dgd"
    coded = False


DGD = Dgd()
