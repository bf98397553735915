"""Coded table Newton on stacked arrays: the oracle for `goco_mpi.core.methods.table_newton`.

Written from the equations there, with dense solves in the place of factors, and sets, lists and all
workers' weights in the place of bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from goco_mpi.core.shares import Share
from goco_mpi.core.stacked.base import Array, Finished, Links, Step

Workers = frozenset[int]
NOBODY: Workers = frozenset()


@dataclass
class Entry:
    """A gradient g at z with all its weight w, the stamp-th of its worker, coded without ``out``, ready in ``t``."""

    stamp: int
    t: int
    out: Workers
    w: float
    z: Array
    g: Array


@dataclass
class Declared:
    """Who is left out; the larger of two holds: the later, or the one with the larger set."""

    number: int = 0
    out: Workers = NOBODY

    @property
    def key(self) -> tuple[int, int]:
        """What is compared."""
        return self.number, sum(2**i for i in self.out)


Message = tuple[Declared, Entry | None, dict[int, Entry]]
"""A declaration, the worker's own entry, and all that it has of its row."""


@dataclass
class View:
    """What one worker knows: entries by set of weights, everyone's stamps and rounds, and other rows' entries."""

    history: list[list[tuple[int, int]]]
    tables: dict[Workers, dict[int, Entry]] = field(default_factory=lambda: {NOBODY: {}})
    now: Workers = NOBODY
    declared: Declared = field(default_factory=Declared)
    since: int = 0
    slow: Workers = NOBODY
    other_rows: dict[int, dict[int, Entry]] = field(default_factory=dict)


class StackedNewton(Step):
    """Entries of all workers, of which each knows what has arrived; x = zb - alpha P^-1 gb."""

    steps = False

    def __init__(self, x: Array, links: Links, shares: Sequence[Share]) -> None:
        n = len(x)
        self.x = x.copy()
        self.links = links
        self.shares = shares
        self.w = np.array([share.weight for share in shares])
        self.added = np.zeros_like(x)
        self.first_p = [self._p(i) if self.w[i] else None for i in range(n)]
        self.p = list(self.first_p)
        self.entries: list[Entry | None] = [None] * n
        self.views = [View([[(0, -1)] for _ in range(n)]) for _ in range(n)]
        self.inbox: dict[int, Message] = {}
        self.means: list[tuple[Array, Array] | None] = [None] * n
        self.alpha = np.full(n, 0.5)
        self.k: list[list[float]] = [[] for _ in shares]
        self.n_columns = self._columns()
        self.entered = np.zeros(n)
        self.longest = np.zeros(n)
        self.least_gb = np.full(n, np.inf)

    @property
    def reweights(self) -> bool:
        """Whether anybody can be left out."""
        return self.all_weights is not None and self.n_columns == len(self.x) <= 52

    def _columns(self) -> int:
        """Return the columns of the rook's graph that the links are; one row of them is the complete graph."""
        n = len(self.x)
        i = np.arange(n)
        joined = np.eye(n, dtype=bool)
        joined[self.links.dest, self.links.source] = True
        for columns in range(n, 0, -1):
            row, column = i // columns, i % columns
            if n % columns == 0 and (joined == ((row[:, None] == row) | (column[:, None] == column))).all():
                return columns
        raise ValueError("neither a complete graph nor a rook's")

    def needs_gradient(self, t: int) -> bool:
        """With several rows, news takes two rounds: a gradient is taken in every other."""
        return self.n_columns == len(self.x) or t % 2 == 1

    def _p(self, i: int) -> Array:
        share = self.shares[i]
        h = share.hessian(self.x[i]) / self.w[i]
        c = np.clip(share.n_params / share.n_rows - 0.25, 0.0, 1.0) if share.n_rows else 0.0
        self.added[i] = c * np.diag(h)
        return np.asarray(h + np.diag(self.added[i]))

    def _all_without(self, out: Workers) -> Array:
        """Return a_ik / sum_{j not in out} a_jk, zero rows for those in ``out``."""
        assert self.all_weights is not None
        kept = self.all_weights.copy()
        kept[sorted(out)] = 0.0
        return np.asarray(kept / kept.sum(axis=0) * self.all_weights.sum(axis=0))

    def weights(self, worker: int, t: int) -> Array | None:
        """Return the worker's weights by the declaration that it knows."""
        out = self.views[worker].declared.out
        if not self.reweights or self._same(worker, NOBODY, out):
            return None
        assert self.all_weights is not None
        return np.asarray(self._all_without(out)[worker, self.all_weights[worker] > 0.0])

    def _shards(self, worker: int) -> set[int]:
        assert self.all_weights is not None
        return set(np.flatnonzero(self.all_weights[worker]).tolist())

    def _same(self, worker: int, out: Workers, other: Workers) -> bool:
        """Tell whether no shard of the worker's has another holder that is in one of the sets alone."""
        return all(not self._shards(worker) & self._shards(j) for j in out ^ other)

    def advance(self, g: Array, finished: Finished, eta: float, t: int) -> None:
        """Go on by one round; ``eta`` plays no part."""
        n = len(self.x)
        for i in np.flatnonzero(finished).tolist():
            self._new_entry(i, g[i], t)
        said = [view.declared for view in self.views]
        rows = [dict(view.tables[view.now]) for view in self.views]
        for i, entry in enumerate(self.entries):
            if entry is not None:
                rows[i][i] = entry
        sent: list[Message] = list(zip(said, self.entries, rows, strict=True))
        heard = self._deliver(sent, t)
        for i in range(n):
            view = self.views[i]
            news = [(i, sent[i]), *heard[i]]
            if self.reweights:
                largest = max((declared for _, (declared, _, _) in news), key=lambda d: d.key)
                if largest.key > view.declared.key:
                    self._declare(view, largest, t)
            for j, (_, entry, row) in news:
                if j // self.n_columns != i // self.n_columns:
                    view.other_rows[j // self.n_columns] = row
                elif entry is not None:
                    self._hear(view, j, entry)
            changed = self.reweights and self._change(view)
            table = [e for known in (view.tables[view.now], *view.other_rows.values()) for e in known.values() if e.w]
            if table:
                w = sum(entry.w for entry in table)
                grown = w > self.entered[i] + 1e-9 * n or changed
                self.entered[i] = w
                if grown:
                    self.least_gb[i] = np.inf
                if changed:
                    self.means[i] = None
                zb = sum((entry.w * entry.z for entry in table), start=np.zeros(self.x.shape[1])) / w
                gb = sum((entry.g for entry in table), start=np.zeros(self.x.shape[1])) / w
                self._step(i, zb, gb, grown)
            if self.reweights:
                self._judge(view, t)

    def _deliver(self, sent: list[Message], t: int) -> list[list[tuple[int, Message]]]:
        """Let messages arrive or be lost; return everyone's newest of everyone else."""
        # The links carry numbers: the round tells whose message came now.
        self.links.deliver(np.full((len(sent), 1), float(t)), t)
        arrived, newest = self.links.newest()
        heard: list[list[tuple[int, Message]]] = [[] for _ in sent]
        for edge in np.flatnonzero(arrived).tolist():
            j = int(self.links.source[edge])
            if newest[edge, 0] == t:
                self.inbox[edge] = sent[j]
            heard[self.links.dest[edge]].append((j, self.inbox[edge]))
        return heard

    def _new_entry(self, i: int, g: Array, t: int) -> None:
        weights, before = self.weights(i, t), self.entries[i]
        stamp = 1 if before is None else before.stamp + 1
        w = self.w[i] if weights is None else float(weights.sum())
        out = NOBODY if weights is None else self.views[i].declared.out
        entry = self.entries[i] = Entry(stamp, t, out, w, self.x[i].copy(), g.copy())
        p = self.p[i]
        if p is None:
            return
        if not self.shares[i].quadratic:
            self.p[i] = self._p(i)
        elif self.means[i] is None and weights is None:
            # P d = -g/w; the gradient at x + d is g + w (P - added) d, which is nothing but rounding with c = 0.
            d = -np.linalg.solve(p, g / w)
            entry.z, entry.g = self.x[i] + d, -w * self.added[i] * d

    def _hear(self, view: View, j: int, entry: Entry) -> None:
        if entry.stamp > view.history[j][-1][0]:
            view.history[j].append((entry.stamp, entry.t))
        for out, table in view.tables.items():
            fits = not self.reweights or self._same(j, entry.out, out)
            if fits and (j not in table or table[j].stamp < entry.stamp):
                table[j] = entry

    def _declare(self, view: View, declared: Declared, t: int) -> None:
        view.declared, view.since = declared, t
        present = view.tables[view.now]
        carried = {j: entry for j, entry in present.items() if self._same(j, view.now, declared.out)}
        view.tables = {declared.out: carried, view.now: present}

    def _change(self, view: View) -> bool:
        out = view.declared.out
        if out == view.now:
            return False
        weighty = {j for j in range(len(self.x)) if self._shards(j)} - out
        if not weighty <= set(view.tables[out]):
            return False
        view.now, view.tables = out, {out: view.tables[out]}
        return True

    def _slow(self, view: View, t: int) -> Workers:
        intervals, silence = [], []
        for heard in view.history:
            stamp, last = heard[-1]
            # From the gradient five before, or the last one heard of before that.
            earlier = [(s, r) for s, r in heard if s <= stamp - 5]
            s, r = earlier[-1] if earlier else heard[0]
            intervals.append(max((last - r) / (stamp - s) if stamp > s else 0.0, (t - r) / (stamp - s + 1)))
            silence.append(t - last)
        median = sorted(intervals)[(len(intervals) - 1) // 2]
        slow = {j for j, interval in enumerate(intervals) if interval > 5 * median or silence[j] > 10 * median}
        slow |= {j for j in view.slow if intervals[j] >= 3 * median}
        unheard = {j for j, heard in enumerate(view.history) if heard[-1][0] == 0}
        if len(unheard) <= len(intervals) / 4:
            slow |= unheard
        return frozenset(slow)

    def _judge(self, view: View, t: int) -> None:
        view.slow = self._slow(view, t)
        number = view.declared.number
        if number and t - view.since < min(4 * 2.0 ** (number - 1), 64):
            return
        moving = {j for j in view.slow ^ view.now if self._shards(j)}
        while True:
            out = view.now ^ moving
            staying = [self._shards(j) for j in view.slow - out]
            kept = set().union(*(self._shards(j) for j in range(len(self.x)) if j not in out))
            vetoed = {
                j for j in moving if not self._shards(j) <= kept or any(self._shards(j) & shards for shards in staying)
            }
            if not vetoed:
                break
            moving -= vetoed
        if out != view.declared.out:
            self._declare(view, Declared(number + 1, frozenset(out)), t)

    def _step(self, i: int, zb: Array, gb: Array, grown: bool) -> None:
        before, self.means[i] = self.means[i], (zb, gb)
        p, first_p, quadratic = self.p[i], self.first_p[i], self.shares[i].quadratic
        if p is None or first_p is None:
            self.x[i] = zb
            return
        norm = float(np.linalg.norm(gb))
        if not quadratic and norm > 1.5 * self.least_gb[i]:
            p = first_p
        self.least_gb[i] = min(self.least_gb[i], norm)
        if before is not None:
            s, y = zb - before[0], gb - before[1]
            # What is not more than rounding is nothing.
            sy, yy, size = float(s @ y), float(y @ np.linalg.solve(p, y)), 1e-24 * float(zb @ p @ zb)
            moved, changed = s @ p @ s > size, yy > size
            if moved or changed:
                self.k[i].append(yy / sy if moved and changed and sy > 0.0 else 4.0)
                self.alpha[i] = np.clip(1.0 / max(self.k[i][-3:]), 0.03, 1.0)
        step = self.alpha[i] * np.linalg.solve(p, gb)
        if not quadratic:
            length = float(np.linalg.norm(step))
            self.longest[i] = max(self.longest[i], length if grown else 0.0)
            step *= min(1.0, self.longest[i] / length) if length else 1.0
        self.x[i] = zb - step
