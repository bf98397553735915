"""Synchronous data-parallel gradient descent: what most people run today.

x <- x - eta_t mean_i g_i        the mean by an allreduce, which waits for the slowest worker
"""

from __future__ import annotations

import numpy as np

from goco_mpi.core.methods.base import Array, Method


def _send_gradient(params: Array, gradient: Array | None, step_size: float, out: Array) -> None:
    if gradient is None:
        out[:] = 0.0
    else:
        np.copyto(out, gradient)


def _step_along_mean(params: Array, exchanged: Array, step_size: float, out: Array) -> None:
    np.subtract(params, step_size * exchanged, out=out)


ALLREDUCE = Method("allreduce", coded=False, exchange="allreduce", local_step=_send_gradient, combine=_step_along_mean)
