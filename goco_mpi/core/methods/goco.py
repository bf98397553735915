"""GOCO: gossip-based decentralized learning with gradient coding.

    gradient    g_i = (N/M) sum_{k held by i} a_ik grad f_k(x_i)
    local step  v_i = x_i - eta_t g_i  if finished in time, else v_i = x_i
    gossip      x_i <- v_i + sum_j w_ij (v_j - v_i)

What a late gradient is worth is up to ``method.late``; a late worker gossips all the same.

References
----------
Li & Skoglund, "Gossip-based decentralized learning with gradient coding", arXiv 2402.04193.
"""

from goco_mpi.core.methods.base import Descent


class Goco(Descent):
    """See the module."""

    name = "goco"
    reweighs = True


GOCO = Goco()
