"""Runs on stacked arrays in which workers die, as a script says."""

from __future__ import annotations

import numpy as np

from goco_mpi.core.stacked import STEPS, StackedRunningSums
from goco_mpi.core.stacked.deaths import NEVER, Deaths, MortalLinks, StackedDeaths
from goco_mpi.core.stacked.gradients import StackedGradients
from goco_mpi.experiment import Layout

RESTARTING = ("push_pull", "exact_diffusion", "running")


def script(n_workers: int, dies: dict[int, int], latest: int = 0, seed: int = 0) -> Deaths:
    """Return deaths of which everybody hears in the round of the death, or up to ``latest`` rounds later."""
    rng = np.random.default_rng(seed)
    noticed = np.full((n_workers, n_workers), NEVER)
    for worker, round_ in dies.items():
        noticed[:, worker] = round_ + rng.integers(0, latest + 1, n_workers)
    return Deaths(dies, noticed)


def weights_without(layout: Layout, dead: list[int]) -> np.ndarray:
    """Return (N/M) a_ik of plain weights without the dead: each shard's living holders share it equally."""
    n, m = layout.n_workers, layout.placement.n_shards
    weights = np.zeros((n, m))
    for k in range(m):
        holders = [i for i in layout.placement.holders(k) if i not in dead]
        for i in holders:
            weights[i, k] = (n - len(dead)) / m / len(holders)
    return weights


def stacked_step(layout: Layout, n_params: int, deaths: Deaths, start: np.ndarray | None = None) -> StackedDeaths:
    """Return the method of a layout at its start, with deaths."""
    section = layout.config.method
    kind = "running" if section.mixing == "running" else section.kind
    links = MortalLinks(
        layout.mixing_matrix, layout.stragglers, str(section.mixing), section.max_age, deaths, kind in RESTARTING
    )
    make = StackedRunningSums if kind == "running" else STEPS[kind]
    x = np.zeros((layout.n_workers, n_params)) if start is None else start
    known: dict[tuple[int, ...], np.ndarray] = {}

    def weigh(dead: list[int]) -> np.ndarray:
        if tuple(dead) not in known:
            known[tuple(dead)] = weights_without(layout, dead)
        return known[tuple(dead)]

    return StackedDeaths(make(x, links, []), links, deaths, weigh, layout.placement.held)


def run(step: StackedDeaths, shares, step_size: float, n_rounds: int) -> np.ndarray:
    """Go through the rounds with every gradient finished; return the parameters of all workers, the dead included."""
    gradients = StackedGradients(shares)
    g, everyone = np.zeros_like(step.x), np.ones(len(shares), dtype=bool)
    for t in range(n_rounds):
        given = [step.weights(i, t) for i in range(len(shares))]
        weights = np.concatenate([s.weights if w is None else w for s, w in zip(shares, given, strict=True)])
        gradients.into(g, step.x, everyone, weights)
        step.advance(g, everyone, step_size, t)
    return step.x
