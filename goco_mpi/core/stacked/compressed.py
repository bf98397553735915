"""Compressed gossip on stacked arrays: the oracle for `goco_mpi.core.methods.compressed` and its messages.

Nothing is packed here: a message is whole vectors and masks of what a real one would hold. What is
drawn at random is drawn from the same streams.
"""

from __future__ import annotations

import math

import numpy as np

from goco_mpi.core.compression import Compression
from goco_mpi.core.mixing import laplacian_norm
from goco_mpi.core.rng import Purpose, stream
from goco_mpi.core.stacked.base import Array, Finished, Links, Step


class StackedCompressed(Step):
    """X <- V + gamma (sum over edges of w (copy - public copy)), V = X - eta G.

    Rows of ``copies`` and ``known`` are edges, as in ``links``.
    """

    def __init__(self, x: Array, links: Links, compression: Compression) -> None:
        self.x = x
        self.links = links
        self.compression = compression
        self.gamma = compression.step(x.shape[1], laplacian_norm(links.matrix))
        self.public, self.copies = x.copy(), x[links.source]
        self.known = np.ones(self.copies.shape, dtype=bool)
        self.heard = np.full(len(links.dest), -1)
        # quantize: references, and the round in which each coordinate's was set; -1: the start.
        self.reference, self.set_in = x.copy(), np.full(x.shape, -1.0)
        self.edge_reference, self.edge_set_in = self.copies.copy(), np.full(self.copies.shape, -1.0)

    def advance(self, g: Array, finished: Finished, eta: float, t: int) -> None:
        """Go on by one round; ``t`` is the number of everybody's message."""
        v = self.x - eta * g
        quantized = self.compression.kind == "quantize"
        with np.errstate(all="ignore"):  # a run that diverges says so elsewhere
            message = self._quantize(v, t) if quantized else self._sparsify(v, t)
        self.links.deliver(message, t)
        ever, newest = self.links.newest()
        numbers = np.where(ever, self.links.last_round, -1)
        self.known[numbers - self.heard - 1 > self.links.max_age] = False
        self.heard = numbers
        parts = np.where(ever[:, None], newest, 0.0).reshape(len(newest), newest.shape[1] // v.shape[1], v.shape[1])
        if quantized:
            fresh, value, set_in, difference = (parts[:, part] for part in range(4))
            self.edge_reference = np.where(fresh > 0.0, value, self.edge_reference)
            self.edge_set_in = np.where(fresh > 0.0, set_in, self.edge_set_in)
            valid = ever[:, None] & (self.edge_set_in == set_in)
            self.copies = np.where(valid, self.edge_reference + difference, self.copies)
        else:
            valid = parts[:, 0] > 0.0
            self.copies = np.where(valid, parts[:, 1], self.copies)
        self.known = valid if quantized else self.known | valid
        usable = ever & (t - self.links.last_round <= self.links.max_age)
        with np.errstate(invalid="ignore"):
            pull = np.where(self.known & usable[:, None], self.copies - self.public[self.links.dest], 0.0)
        self.x = v.copy()
        np.add.at(self.x, self.links.dest, self.gamma * self.links.weight[:, None] * pull)

    def _sparsify(self, v: Array, t: int) -> Array:
        """Return [mask, V] after setting the public copies where the mask is."""
        n = v.shape[1]
        top = self.compression.kind == "top_k"
        k = min(n, max(2 if top else 1, math.ceil(self.compression.ratio * n - 1e-9)))
        drawn = max(1, k // 4) if top else k
        mask = np.zeros_like(v)
        for i in range(len(v)):
            rng = stream(self.compression.seed, Purpose.COMPRESSION, i, t)
            mask[i, rng.choice(n, drawn, replace=False, shuffle=False)] = 1.0
            off = np.abs(v[i] - self.public[i]).astype(np.float32)
            order = np.argsort(np.where(mask[i] > 0.0, np.inf, -off), kind="stable")
            mask[i, order[: k - drawn]] = 1.0
        self.public = np.where(mask > 0.0, v, self.public)
        return np.hstack([mask, v])

    def _quantize(self, v: Array, t: int) -> Array:
        """Return [mask of the new references, references, rounds they were set in, rounded differences]."""
        n, levels = v.shape[1], 2 ** (self.compression.bits - 1) - 1
        fresh = np.zeros_like(v)
        fresh[:, n * (t % 7) // 7 : n * (t % 7 + 1) // 7] = 1.0
        self.reference = np.where(fresh > 0.0, v.astype(np.float32), self.reference)
        self.set_in = np.where(fresh > 0.0, t, self.set_in)
        u = v - self.reference
        rounded = np.zeros_like(u)
        for i in range(len(v)):
            theta = np.asarray(stream(self.compression.seed, Purpose.COMPRESSION, i, t).random(n))
            for start in range(0, n, 256):
                part = slice(start, start + 256)
                largest = float(np.abs(u[i, part]).max())
                scale = float(np.float32(largest))
                if scale < largest:
                    scale = float(np.nextafter(np.float32(largest), np.float32(np.inf)))
                if scale > 0.0:
                    level = np.floor(np.abs(u[i, part]) / scale * levels + theta[part])
                    rounded[i, part] = np.sign(u[i, part]) * np.minimum(level, levels) * scale / levels
        m = min(n, 256)
        rounded /= 1.0 + min(m / (4.0 * levels**2), math.sqrt(m) / levels)
        self.public = self.reference + rounded
        return np.hstack([fresh, self.reference, self.set_in, rounded])
