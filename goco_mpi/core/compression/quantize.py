"""All coordinates in few bits, rounded at random."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.compression.base import Array, Codec, Copy

BITS = (2, 4, 8, 16)
SLICES = 7
"""Messages until every coordinate's reference is a new one; a prime: who hears every other hears of all."""
BUCKET = 256
"""Coordinates that share a scale."""


@dataclass(kw_only=True)
class ReferredCopy(Copy):
    """Also the references, shape (n_params,), and with which message each slice's came, shape (SLICES,)."""

    reference: Array
    came_with: NDArray[np.int64]


class QuantizingCodec(Codec):
    """``quantize``: stochastic rounding of the difference to a reference that is renewed slice by slice.

    A message is: its number, the slice's new reference and the buckets' scales in single precision, and a code of
    ``bits`` for every coordinate. A bucket's differences u become

        sign(u_i) floor(L |u_i| / max |u| + theta_i) max |u| / L / (1 + omega) ,  L = 2^(bits - 1) - 1

    with theta_i uniform in [0, 1): without the last factor unbiased, of variance at most omega ||u||^2, and with it
    a contraction. The largest difference in the place of QSGD's 2-norm makes the variance smaller.

    Parameters
    ----------
    n_params, seed : int
    bits : int
        One of ``BITS``.

    Examples
    --------
    >>> codec = QuantizingCodec(10_000, seed=0, bits=8)
    >>> codec.size, round(codec.contraction, 3)
    (1986, 0.996)
    """

    def __init__(self, n_params: int, seed: int, bits: int) -> None:
        super().__init__(n_params, seed)
        self.bits = bits
        self.levels = 2 ** (bits - 1) - 1
        self.bounds = np.arange(SLICES + 1) * n_params // SLICES
        self.n_buckets = -(-n_params // BUCKET)
        n_reference = -(-n_params // SLICES)
        self._code_start = 1 + -(-n_reference // 2) + -(-self.n_buckets // 2)
        self.size = self._code_start + -(-n_params * bits // 64)
        m = min(n_params, BUCKET)
        # A rounding's variance is at most a quarter of a level squared, and at most a level times |u_i|.
        self.omega = min(m / (4.0 * self.levels**2), math.sqrt(m) / self.levels)
        self.contraction = 1.0 / (1.0 + self.omega)
        # A slice of age a is off by what its last a moves were, of which every one counts in a + (a + 1) + ... .
        self.lag = math.sqrt((1.0 - self.contraction) * SLICES * (SLICES - 1) / 2.0)

    def copy(self, params: Array) -> ReferredCopy:
        """Return the copy of a worker of which only the first parameters are known."""
        return ReferredCopy(
            params.copy(),
            np.ones(params.size, dtype=bool),
            reference=params.copy(),
            came_with=np.full(SLICES, -1, dtype=np.int64),
        )

    def encode(self, vector: Array, copy: Copy, worker: int, out: Array) -> None:
        """Write the slice's turn and the rounded differences."""
        assert isinstance(copy, ReferredCopy)  # from `copy`
        number = copy.number + 1
        out[:] = 0.0
        out[0] = number
        with np.errstate(all="ignore"):  # a run that diverges says so elsewhere
            where = self._slice(number)
            self._reference_of(out, where)[:] = vector[where]
            reference = copy.reference.copy()
            reference[where] = self._reference_of(out, where)
            buckets = self._in_buckets(vector - reference)
            scales = np.abs(buckets).max(axis=1)
            single = scales.astype(np.float32)
            # Never below the largest difference: it must not need one level more.
            single = np.where(single < scales, np.nextafter(single, np.float32(np.inf)), single)
            self._scales_of(out)[:] = single
            unit = np.where(single > 0.0, single, 1.0).astype(np.float64)[:, None]
            dither = self._stream(worker, number).random(self.n_params)
            sizes = np.floor(np.abs(buckets) / unit * self.levels + self._in_buckets(dither))
            sizes = np.nan_to_num(np.minimum(sizes, self.levels))
        signed = np.where(buckets < 0.0, -sizes, sizes).ravel()[: self.n_params]
        self._pack((signed + self.levels).astype(np.uint16), out)
        self.decode(out, copy, worker, max_age=0)

    def _take_in(self, message: Array, copy: Copy, worker: int, number: int) -> None:
        assert isinstance(copy, ReferredCopy)  # from `copy`
        where = self._slice(number)
        copy.reference[where] = self._reference_of(message, where)
        copy.came_with[number % SLICES] = number
        signed = self._in_buckets(self._unpack(message) - float(self.levels))
        unit = self._scales_of(message).astype(np.float64)[:, None] / self.levels
        with np.errstate(all="ignore"):  # as in `encode`
            differences = (signed * unit).ravel()[: self.n_params] * self.contraction
        # A slice whose newest reference was missed is left out: what it was may be two cycles old, and to go on
        # mixing that shifts the mean far more.
        turns = np.arange(SLICES)
        newest = np.maximum(number - (number - turns) % SLICES, -1)
        heard = np.repeat(copy.came_with == newest, np.diff(self.bounds))
        copy.value[heard] = copy.reference[heard] + differences[heard]
        copy.known = heard

    def _slice(self, number: int) -> slice:
        turn = number % SLICES
        return slice(int(self.bounds[turn]), int(self.bounds[turn + 1]))

    def _reference_of(self, message: Array, where: slice) -> NDArray[np.float32]:
        return message[1:].view(np.float32)[: where.stop - where.start]

    def _scales_of(self, message: Array) -> NDArray[np.float32]:
        start = self._code_start - -(-self.n_buckets // 2)
        return message[start:].view(np.float32)[: self.n_buckets]

    def _in_buckets(self, vector: Array) -> Array:
        padded = np.zeros(self.n_buckets * BUCKET)
        padded[: vector.size] = vector
        return padded.reshape(self.n_buckets, BUCKET)

    def _pack(self, codes: NDArray[np.uint16], out: Array) -> None:
        if self.bits == 16:
            out[self._code_start :].view(np.uint16)[: self.n_params] = codes
            return
        in_byte = 8 // self.bits
        padded = np.zeros(-(-self.n_params // in_byte) * in_byte, dtype=np.uint8)
        padded[: self.n_params] = codes
        shifts = (self.bits * np.arange(in_byte)).astype(np.uint8)
        packed = np.bitwise_or.reduce(padded.reshape(-1, in_byte) << shifts, axis=1)
        out[self._code_start :].view(np.uint8)[: packed.size] = packed

    def _unpack(self, message: Array) -> Array:
        if self.bits == 16:
            return message[self._code_start :].view(np.uint16)[: self.n_params].astype(np.float64)
        in_byte = 8 // self.bits
        packed = message[self._code_start :].view(np.uint8)[: -(-self.n_params // in_byte)]
        shifts = (self.bits * np.arange(in_byte)).astype(np.uint8)
        codes = (packed[:, None] >> shifts) & np.uint8(2**self.bits - 1)
        return codes.ravel()[: self.n_params].astype(np.float64)
