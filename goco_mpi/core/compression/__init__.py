"""Compressed messages, each of which says on its own what it says: one that is lost loses only freshness.

A worker makes a *public copy* of its vector known; every neighbour keeps one of its own, and what is mixed are the
copies. The next message is made of the difference to the public copy (as in CHOCO-SGD), so that what was left out
stays in the difference and comes later: the compression's error vanishes as the vectors settle. But a message never
holds an increment, which would be lost for good with it. It holds values:

    random_k    k coordinates drawn anew for every message, as they are now; the receiver draws the same
    top_k       a quarter of the k drawn likewise, the rest those whose public copy is furthest off, with their places
    quantize    one of ``SLICES`` parts of the vector, in turn, as it is now (the new *reference* of that part);
                and for every coordinate the difference to its reference, rounded at random to some bits

With random_k and top_k, and nothing lost, this is CHOCO-SGD with these operators to the letter. After a loss the lost
coordinates are older until they come again, as a whole vector would be under the stale rule; and in a copy that has
missed more than ``max_age`` messages in a row only what has come since counts. A slice whose newest reference was
missed cannot be read, and is left out until the next.

References
----------
Koloskova, Stich & Jaggi, "Decentralized stochastic optimization and gossip algorithms with compressed
communication", ICML 2019, arXiv 1902.00340; Alistarh, Grubic, Li, Tomioka & Vojnovic, "QSGD", NeurIPS 2017.
"""

from __future__ import annotations

from dataclasses import dataclass

from goco_mpi.core.compression.base import Codec, Copy
from goco_mpi.core.compression.quantize import BITS, QuantizingCodec
from goco_mpi.core.compression.sparse import SparseCodec

KINDS = ("none", "top_k", "random_k", "quantize")
SAFETY = 0.8
"""Part of the largest consensus step that is taken by default."""

__all__ = ["BITS", "KINDS", "Codec", "Compression", "Copy", "QuantizingCodec", "SparseCodec"]


@dataclass(frozen=True)
class Compression:
    """How messages are compressed, whatever the number of parameters.

    Attributes
    ----------
    kind : str
        One of ``KINDS`` but ``none``.
    ratio : float
        top_k, random_k: part of the coordinates in a message, in (0, 1].
    bits : int
        quantize: of a coordinate; one of ``BITS``.
    seed : int
        Of the drawn coordinates and the random rounding.
    consensus_step : float or None
        gamma in (0, 1]; None: see `step`.
    """

    kind: str
    ratio: float = 0.1
    bits: int = 8
    seed: int = 0
    consensus_step: float | None = None

    def codec(self, n_params: int) -> Codec:
        """Return what makes the messages of vectors of that length."""
        if self.kind == "quantize":
            return QuantizingCodec(n_params, self.seed, self.bits)
        return SparseCodec(n_params, self.seed, self.ratio, largest=self.kind == "top_k")

    def step(self, n_params: int, norm: float) -> float:
        """Return the consensus step gamma: the one configured, or one that no error of this compression upsets.

        Parameters
        ----------
        n_params : int
        norm : float
            ||I - W||, from `goco_mpi.core.mixing.laplacian_norm`.

        Returns
        -------
        float
            ``SAFETY`` 2 / (||I - W|| (1 + 2 lag)), at most 1; to six digits, so that all processes round alike.

        Notes
        -----
        Take x+ = x - gamma g, g = L (x - e), L = I - W, e the error of the public copies. The disagreement x' L x / 2
        falls in a step by gamma/2 ((1 - gamma ||L||) ||g||^2 + ||L x||^2 - ||L e||^2) at least, where ||L x||^2 is at
        least (1 - theta) ||g||^2 - (1/theta - 1) ||L e||^2. Over all steps sum ||e||^2 <= (lag gamma)^2 sum ||g||^2;
        with theta = lag gamma ||L|| what it falls by is positive for gamma ||L|| (1 + 2 lag) < 2, for any
        contraction. The spectral gap does not enter, unlike in the step that the theory of CHOCO-SGD gives, of the
        order of delta times its square. Without compression this is the exact bound gamma ||L|| < 2.

        Examples
        --------
        >>> Compression("random_k", ratio=0.19).step(100, norm=1.0)
        0.0842105
        >>> Compression("quantize").step(100, norm=1.0)
        1.0
        """
        if self.consensus_step is not None:
            return self.consensus_step
        step = min(1.0, SAFETY * 2.0 / max(norm * (1.0 + 2.0 * self.codec(n_params).lag), 1e-300))
        return float(f"{step:.6g}")
