"""One run as a report tells it: what its record holds, what follows from that, and what it does not hold."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from goco_mpi.config import flat, parse_config, to_dict
from goco_mpi.core import gossip, mixing
from goco_mpi.core.events import Events
from goco_mpi.errors import InputError
from goco_mpi.experiment import Layout, lay_out
from goco_mpi.record import RunRecord, read_run, read_tables
from goco_mpi.reporting import activity, ages, table
from goco_mpi.reporting.activity import Activity
from goco_mpi.reporting.findings import SLOW, Facts
from goco_mpi.schema import RunConfig

Array = NDArray[np.float64]

PIECES = 240
"""Pieces that a run is cut into, to say who did what when."""
SAMPLES = 8
"""Where times are known, each piece is cut into as many again: what is shorter than a piece is seen, too."""


@dataclass(eq=False)
class Account:
    """What there is to tell of a run.

    Attributes
    ----------
    record : RunRecord
    config : RunConfig or None
        None where it was written by another version and cannot be understood.
    layout : Layout or None
        The graph, placement and weights that follow from it.
    missing : dict of str to str
        Why something is not known: ``layout``, ``seconds``, ``events``, ``timeline``, ``ages``.
    """

    record: RunRecord
    config: RunConfig | None = None
    layout: Layout | None = None
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What the run is called."""
        return table.label(self.record)

    @property
    def path(self) -> Path:
        """Where it is."""
        return self.record.path

    @property
    def result(self) -> dict[str, Any]:
        """The result part of ``run.json``."""
        result: dict[str, Any] = self.record.run["result"]
        return result

    @property
    def environment(self) -> dict[str, Any]:
        """Where it ran."""
        environment: dict[str, Any] = self.record.run["environment"]
        return environment

    @property
    def n_ranks(self) -> int:
        """Ranks that it began with."""
        return int(self.environment.get("n_ranks", len(self.record.ranks)))

    @property
    def simulated(self) -> bool:
        """Whether there were no real ranks."""
        return bool(self.environment.get("simulated"))

    @property
    def timed(self) -> bool:
        """Whether it says what took how long."""
        return self.result.get("wall_s") is not None

    @property
    def exchange(self) -> str:
        """How vectors travelled: ``gossip``, ``allreduce`` or ``central``; empty where that is not known."""
        return "" if self.layout is None else self.layout.method.exchange

    @property
    def measure(self) -> str:
        """By what its progress is told: ``suboptimality`` where that is known, or ``loss``."""
        return "suboptimality" if np.isfinite(self.record.history["suboptimality"]).all() else "loss"

    @cached_property
    def spectral_gap(self) -> float | None:
        """Of the mixing matrix; None where there is no gossip."""
        if self.layout is None or self.exchange != "gossip":
            return None
        return mixing.spectral_gap(self.layout.mixing_matrix)

    @cached_property
    def neighbors(self) -> list[tuple[int, ...]]:
        """Of each rank, as its events have them."""
        assert self.layout is not None
        if self.exchange == "allreduce":
            return [()] * self.n_ranks  # its messages are MPI's own
        return [self.layout.topology.neighbors(rank) for rank in range(self.n_ranks)]

    @cached_property
    def events(self) -> list[Events] | None:
        """What decided each rank's every vector; None where that is not known."""
        tables = self._tables("events")
        if tables is None or "layout" in self.missing:
            return None
        return [Events(rows, len(sources)) for rows, sources in zip(tables, self.neighbors, strict=True)]

    @cached_property
    def timeline(self) -> list[Array] | None:
        """When each rank did what; None where that is not known."""
        return self._tables("timeline")

    def _tables(self, name: str) -> list[NDArray[Any]] | None:
        if self.simulated:
            self.missing[name] = "The run was simulated: ranks have no record of their own."
        elif self.result.get("deaths"):
            self.missing[name] = "Ranks died, and their part of the record with them."
        elif not (self.path / f"{name}.npz").exists():
            self.missing[name] = f"The run was made with record.{name} = false."
        else:
            try:
                tables = read_tables(self.path, name)
            except InputError as error:
                self.missing[name] = str(error)
            else:
                if len(tables) == self.n_ranks:
                    return tables
                self.missing[name] = f"It is of {len(tables)} ranks, and the run of {self.n_ranks}."
        return None

    @cached_property
    def ages(self) -> list[NDArray[np.int32]] | None:
        """Of what each rank had of each neighbour, in rounds; None where that is not known."""
        if self.events is None:
            self.missing["ages"] = self.missing.get("layout", self.missing.get("events", ""))
            return None
        return ages.ages(self.events, self.neighbors, [int(row["rounds"]) for row in self.record.ranks])

    @cached_property
    def age_shares(self) -> tuple[Array, float] | None:
        """Part of the neighbours' vectors of each age, and part that was too old or not there; None as for ``ages``."""
        if self.exchange not in ("", "gossip"):
            self.missing["ages"] = "There are no neighbours whose vectors could be old: the ranks did not gossip."
            return None
        if self.ages is None or self.config is None:
            return None
        method = self.config.method
        return ages.shares(self.ages, gossip.age_limit(str(method.mixing), method.max_age))

    @cached_property
    def activity(self) -> Activity | None:
        """Who did what when; None where that is not known."""
        if self.ages is None or self.events is None:
            self.missing["activity"] = self.missing["ages"]
            return None
        if self.timeline is None:
            return activity.by_round(self.events, self.neighbors, self.ages, PIECES)
        return activity.by_time(self.timeline, self.events, self.neighbors, self.ages, PIECES * SAMPLES)

    @cached_property
    def gradient_s(self) -> Array:
        """Seconds of each rank's mean gradient, shape (n_ranks,); NaN where it finished none or nothing is known."""
        found = []
        for row in self.record.ranks:
            n = row.get("gradients", 0.0) + row.get("partial_gradients", 0.0)
            n += row.get("late_gradients", 0.0) if n else 0.0
            found.append(row["compute_s"] / n if n and "compute_s" in row else math.nan)
        return np.array(found)

    @cached_property
    def completion(self) -> Array:
        """Gradients that each rank finished over its rounds, jumps included, at most 1; NaN where not known."""
        found = []
        for row in self.record.ranks:
            rounds = row["rounds"] + row.get("jumped", 0.0)
            done = row.get("gradients", math.nan) + row.get("partial_gradients", 0.0)
            found.append(min(done / rounds, 1.0) if rounds else math.nan)
        return np.array(found)

    @cached_property
    def coverage(self) -> Array | None:
        """How many holders of each shard finish in a round on average, shape (n_shards,); None where not known."""
        if self.layout is None or len(self.completion) != self.n_ranks or not np.isfinite(self.completion).all():
            return None
        return np.asarray(self.completion @ self.layout.placement.held)

    def facts(self) -> Facts:
        """Return what findings stand on."""
        history, result = self.record.history, self.result
        facts: dict[str, Any] = {
            "rounds": history["round"],
            "values": history[self.measure],
            "spread": history["consensus_distance"],
            "optimum_known": self.measure == "suboptimality",
            "n_ranks": self.n_ranks,
            "stopped_by": result.get("stopped_by", "rounds"),
        }
        start, optimum = result.get("loss_start"), result.get("loss_optimum")
        if start is not None and optimum is not None:
            facts["scale"] = start - optimum
        if (dissimilarity := result.get("gradient_dissimilarity")) is not None:
            facts["dissimilarity"] = dissimilarity
        if self.timed and all({"compute_s", "wait_s", "wall_s"} <= row.keys() for row in self.record.ranks):
            facts["waiting"] = table.per_second(self.record, "wait_s")
            facts["computing"] = table.per_second(self.record, "compute_s")
            rounds = history["round"][-1] - history["round"][0]
            facts["seconds_a_round"] = float((history["wall_s"][-1] - history["wall_s"][0]) / max(rounds, 1.0))
            facts["slow"] = self._slow()
            gradients = sum(row.get("gradients", 0.0) for row in self.record.ranks)
            late = sum(row.get("late_gradients", 0.0) + row.get("partial_gradients", 0.0) for row in self.record.ranks)
            facts["late_share"] = late / max(late + gradients, 1.0)
            on_node, cores = self.environment.get("ranks_on_node"), self.environment.get("cores")
            facts["crowded"] = bool(on_node and cores and any(n > c for n, c in zip(on_node, cores, strict=False)))
        elif self.layout is not None:
            spent = float(history["shard_gradients"][-1]) / float(
                history["round"][-1] * self.layout.placement.load.mean()
            )
            facts["late_share"] = max(1.0 - spent, 0.0)
        if self.config is not None and self.layout is not None:
            facts |= self._of_layout(self.config, self.layout)
        return Facts(**facts)

    def _of_layout(self, config: RunConfig, layout: Layout) -> dict[str, Any]:
        """Return what follows from the config."""
        facts: dict[str, Any] = {
            "exchange": layout.method.exchange,
            "method": config.method.kind,
            "late": config.method.late,
            "waits": layout.method.exchange == "allreduce" or config.deadline.gossip_s == math.inf,
            "n_shards": config.data.shards,
            "replication": round(float(layout.placement.replication.mean())),
            "minibatches": config.data.batch_size is not None,
        }
        if self.spectral_gap is not None:
            facts["spectral_gap"] = self.spectral_gap
        if config.step.kind == "auto" and self.result.get("step_size"):
            facts["curvature"] = config.step.scale / self.result["step_size"]
        return facts

    def _slow(self) -> dict[int, float]:
        """Return the ranks whose gradients took longer than the median rank's, and how many times as long."""
        usual = float(np.nanmedian(self.gradient_s)) if np.isfinite(self.gradient_s).any() else math.nan
        return {
            int(row["rank"]): float(seconds / usual)
            for row, seconds in zip(self.record.ranks, self.gradient_s, strict=True)
            if seconds > SLOW * usual > 0.0
        }


def read(path: Path) -> Account:
    """Read a run for a report.

    Raises
    ------
    InputError
        If it is no run directory, or damaged.
    """
    account = Account(read_run(path))
    if not account.timed:
        account.missing["seconds"] = "The run was simulated in rounds, in which no time passes."
    try:
        account.config = parse_config(account.record.run["config"])
        account.layout = lay_out(account.config, account.n_ranks)
    except InputError as error:
        account.missing["layout"] = f"The experiment of this record is not one that this version understands: {error}"
    return account


def changed_keys(config: dict[str, Any]) -> dict[str, tuple[Any, bool]]:
    """Return all keys of a config with dots, each with its value and whether that is not the default.

    Examples
    --------
    >>> changed_keys({"rounds": 200, "method": {"kind": "dgd"}})
    {'rounds': (200, False), 'method.kind': ('dgd', True)}
    """
    defaults = flat(json.loads(json.dumps(to_dict(RunConfig()))))  # as they come back from a record
    return {key: (value, key not in defaults or value != defaults[key]) for key, value in flat(config).items()}
