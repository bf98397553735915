"""`goco bench train`: seconds from the first round to a gap of the optimum, ours beside everybody else's.

The gap is [F(x) - F*] / [F(0) - F*]. In three situations ranks share the cores of this machine and sleep for most of
their gradients, as if each had cores of its own. A gradient of an equal part of the rows lasts `Case.copy_s`, so that
with d copies of everything it lasts d times as long:

- ``undisturbed``
- ``one slow``: every gradient of rank `SLOW` lasts ten times as long
- ``delays``: of all gradients 30 % do, drawn anew for every one

and in the fourth, ``real``, nothing sleeps: what the cores really need, beside other programs with all of these cores.

Two clocks: that of the rounds, to which the bounds apply, and with what a method does once before its first round (a
Hessian and its factor), charged as the gradients that it lasts as long as. Nobody's step size is on a clock: it is
found before. That a rank which is slow for good also sets up slowly, and that all wait for it then, is on neither.
"""

from __future__ import annotations

import functools
import json
import math
import statistics
import sys
from dataclasses import dataclass, replace
from typing import Any

from goco_mpi.bench.measuring import Member, Setup
from goco_mpi.errors import RunError

TARGETS = (1e-3, 1e-6)
SLOW, FACTOR = 3, 10.0
DELAYED = 0.3
OURS = "table_newton"

Tables = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A problem and who solves it.

    Attributes
    ----------
    name : str
    tables : dict
        Data and objective of an experiment.
    copy_s : float
        How long a gradient of an equal part of the rows lasts.
    methods : dict of str to (int, dict)
        Rounds that are enough, and the tables of an experiment.
    situations : dict of str to tuple of str
        Which methods go through it.
    alone : tuple of str
        Which of `goco_mpi.bench.serial` solve it, too.
    repeats : int
        Of all, in turn.
    """

    name: str
    tables: Tables
    copy_s: float
    methods: dict[str, tuple[int, Tables]]
    situations: dict[str, tuple[str, ...]]
    alone: tuple[str, ...]
    repeats: int = 3  # slow ranks and steps that are given leave little to chance, and an allreduce takes long

    def runs(self, situation: str) -> dict[str, Tables]:
        """Return the experiments of a situation."""
        return {name: self._run(*self.methods[name], situation) for name in self.situations[situation]}

    def _run(self, rounds: int, tables: Tables, situation: str) -> Tables:
        method = tables["method"]["kind"]
        coded = method in CODED and tables.get("placement", {}).get("kind") != "uncoded"
        work_s = self.copy_s * (2 if coded else 1)
        stragglers: dict[str, Tables] = {
            "undisturbed": {"kind": "slow", "work_s": work_s},
            "one slow": {"kind": "slow", "work_s": work_s, "ranks": [SLOW], "factor": FACTOR},
            "delays": {
                "kind": "delays",
                "work_s": work_s,
                "delay_p": DELAYED,
                "delay_s": (FACTOR - 1.0) * work_s,
                "distribution": "constant",
            },
            "real": {"kind": "none"},
        }
        return {**self.tables, **tables, "rounds": rounds, "stragglers": stragglers[situation]}


CODED = ("table_newton", "push_pull", "goco", "gradient_coding")
"""Methods that hold two copies of every shard unless they are told otherwise."""


def _allreduce(solver: str, **options: str) -> Tables:
    return {"method": {"kind": "allreduce", "solver": solver, **options}}


def _gradient_coding(solver: str) -> Tables:
    return {
        "placement": {"kind": "cyclic", "replication": 2},
        "method": {"kind": "gradient_coding", "solver": solver},
    }


_TABLE_NEWTON: Tables = {"topology": {"kind": "complete"}, "method": {"kind": OURS}}
_WAITING: Tables = {"topology": {"kind": "complete"}, "method": {"kind": "dgd", "late": "wait"}}
ONCE = ("allreduce, descent", "dgd that waits")
"""Whoever takes so long that one repeat must do."""
CONSTANT_STEP = "dgd that waits"
"""Who need not come to the last target: its optimum is another one."""

LEAST_SQUARES = Case(
    "least squares",
    {
        "data": {
            "source": "synthetic_regression",
            "n_samples": 20_000,
            "n_features": 500,
            "condition_number": 100.0,
            "heterogeneity": 0.1,
            "partition": "in_order",
            "test_fraction": 0.0,
            "intercept": False,
        },
        "objective": {"kind": "least_squares", "l2": 0.0},
    },
    0.01,
    {
        OURS: (60, _TABLE_NEWTON),
        "allreduce, descent": (250, _allreduce("descent")),
        "allreduce, nesterov": (75, _allreduce("nesterov")),
        "allreduce, lbfgs": (45, _allreduce("lbfgs")),
        "allreduce, cg": (40, _allreduce("cg")),
        "allreduce, preconditioned cg": (12, _allreduce("cg", preconditioner="local")),
        "gradient_coding, descent": (250, _gradient_coding("descent")),
        "gradient_coding, nesterov": (75, _gradient_coding("nesterov")),
        "gradient_coding, cg": (20, _gradient_coding("cg")),
        CONSTANT_STEP: (180, _WAITING),
    },
    {
        "undisturbed": (
            OURS,
            "allreduce, nesterov",
            "allreduce, lbfgs",
            "allreduce, cg",
            "allreduce, preconditioned cg",
            "gradient_coding, cg",
        ),
        "one slow": (
            OURS,
            "allreduce, descent",
            "allreduce, nesterov",
            "allreduce, lbfgs",
            "allreduce, cg",
            "allreduce, preconditioned cg",
            "gradient_coding, descent",
            "gradient_coding, nesterov",
            "gradient_coding, cg",
            CONSTANT_STEP,
        ),
        "delays": (OURS, "allreduce, nesterov", "allreduce, lbfgs", "gradient_coding, cg"),
        "real": (OURS, "allreduce, lbfgs", "gradient_coding, cg"),
    },
    ("scipy L-BFGS", "sklearn LinearRegression", "sklearn Ridge"),
)

A9A_LIKE = Case(
    "like a9a",
    {
        "data": {
            "source": "synthetic_sparse",
            "n_samples": 32_561,
            "n_features": 123,
            "density": 14 / 123,
            "n_classes": 2,
            "partition": "in_order",
            "test_fraction": 0.0,
            "intercept": False,
        },
        "objective": {"kind": "logistic", "l2": 1e-4},
    },
    0.01,
    {
        OURS: (40, _TABLE_NEWTON),
        "allreduce, nesterov": (120, _allreduce("nesterov")),
        "allreduce, lbfgs": (40, _allreduce("lbfgs")),
        "gradient_coding, lbfgs": (40, _gradient_coding("lbfgs")),
        CONSTANT_STEP: (420, _WAITING),
    },
    {
        "undisturbed": (OURS, "allreduce, nesterov", "allreduce, lbfgs", "gradient_coding, lbfgs"),
        "one slow": (OURS, "allreduce, nesterov", "allreduce, lbfgs", "gradient_coding, lbfgs", CONSTANT_STEP),
        "delays": (OURS, "allreduce, lbfgs", "gradient_coding, lbfgs"),
        "real": (OURS, "allreduce, lbfgs"),
    },
    ("scipy L-BFGS", "sklearn LogisticRegression"),
)

TWO_GB = Case(
    "2 GB",
    {
        **LEAST_SQUARES.tables,
        "data": {**LEAST_SQUARES.tables["data"], "n_samples": 500_000, "condition_number": 10.0},
    },
    0.25,  # an eighth of 2 GB takes a core about a tenth of it
    {
        OURS: (20, _TABLE_NEWTON),
        "allreduce, lbfgs": (10, _allreduce("lbfgs")),
        CONSTANT_STEP: (30, _WAITING),
    },
    {
        **dict.fromkeys(("undisturbed", "one slow", "delays"), (OURS, "allreduce, lbfgs", CONSTANT_STEP)),
        "real": (OURS, "allreduce, lbfgs"),
    },
    ("scipy L-BFGS", "sklearn Ridge"),
    repeats=1,
)

CASES = {case.name: case for case in (LEAST_SQUARES, A9A_LIKE, TWO_GB)}
SERIAL = "one process: "
"""What the names of those begin with that run without MPI."""

Times = dict[str, list[list[float]]]
"""Of each method and repeat: seconds of setting up, and in the rounds to each target."""


@functools.cache
def _measured(case: str, situation: str, setup: Setup) -> Times:
    """Launch all runs of a situation once, in turn."""
    options = {
        "runs": CASES[case].runs(situation),
        "targets": TARGETS,
        "slow": [SLOW] if situation == "one slow" else [],
        "repeats": CASES[case].repeats,
        "once": ONCE,
    }
    found: Times = setup.call_on_ranks("training", **options)
    if situation == "real":
        tables, alone_, repeats = CASES[case].tables, CASES[case].alone, CASES[case].repeats
        serial = {"tables": tables, "targets": TARGETS, "names": alone_, "repeats": repeats}
        alone: Times = setup.found([sys.executable, "-m", "goco_mpi.bench.serial", json.dumps(serial)])
        found |= {SERIAL + name: times for name, times in alone.items()}
    return found


def _seconds(setup: Setup, case: str, situation: str, method: str, target: float, whole: bool = False) -> list[float]:
    """Return the seconds to a target, of each repeat; ``whole``: with setting up."""
    at = 1 + TARGETS.index(target)
    found = [times[at] + whole * times[0] for times in _measured(case, situation, setup)[method]]
    if not all(math.isfinite(seconds) for seconds in found):
        raise RunError(f"{method} did not come to a gap of {target:.0e} in its rounds ({case}, {situation}).")
    return found


def _clock(whole: bool) -> str:
    return ", set-up too" if whole else ""


def _slowed(case: str, target: float, bound: float | None) -> Member:
    """Return ours with one slow rank / undisturbed: what is set up before would only hide a loss."""

    def sample(setup: Setup) -> list[float]:
        undisturbed = statistics.median(_seconds(setup, case, "undisturbed", OURS, target))
        return [slowed / undisturbed for slowed in _seconds(setup, case, "one slow", OURS, target)]

    return Member("train", f"{case}: ours, one slow / undisturbed, to {target:.0e}", sample, bound)


def _against(
    case: str, situation: str, rival: str, target: float, bound: float | None = None, whole: bool = False
) -> Member:
    """Return a rival's time / ours."""

    def sample(setup: Setup) -> list[float]:
        ours = _seconds(setup, case, situation, OURS, target, whole)
        theirs = statistics.median(_seconds(setup, case, situation, rival, target, whole))
        return [theirs / our_s for our_s in ours]

    return Member(
        "train", f"{case}, {situation}: {rival} / ours, to {target:.0e}{_clock(whole)}", sample, bound, at_most=False
    )


def _price(case: str, target: float, bound: float | None, whole: bool) -> Member:
    """Return ours / the quicker of the accelerated allreduces, undisturbed."""

    def sample(setup: Setup) -> list[float]:
        accelerated = [
            statistics.median(_seconds(setup, case, "undisturbed", rival, target, whole))
            for rival in ("allreduce, nesterov", "allreduce, lbfgs")
        ]
        return [ours / min(accelerated) for ours in _seconds(setup, case, "undisturbed", OURS, target, whole)]

    what = f"{case}, undisturbed: ours / accelerated allreduce, to {target:.0e}{_clock(whole)}"
    return Member("train", what, sample, bound)


def _ours(case: str, situation: str, target: float) -> Member:
    def sample(setup: Setup) -> list[float]:
        return _seconds(setup, case, situation, OURS, target)

    return Member("train", f"{case}, {situation}: ours, to {target:.0e}", sample, unit="s")


def _set_up(case: str, situation: str) -> Member:
    """Return what ours takes before its rounds."""
    return Member(
        "train",
        f"{case}, {situation}: ours, set-up",
        lambda setup: [times[0] for times in _measured(case, situation, setup)[OURS]],
        unit="s",
    )


def _rows(case: Case, bounds: dict[str, float]) -> tuple[Member, ...]:
    """Return the figures of a case: with bounds, where there are any, to every target, without to the last one."""
    name, rivals = case.name, {situation: methods[1:] for situation, methods in case.situations.items()}
    last = TARGETS[-1]
    return (
        *(_slowed(name, target, 1.1 if bounds else None) for target in TARGETS),
        *(
            _against(name, "one slow", rival, target, bounds.get(rival))
            for rival in rivals["one slow"]
            for target in (TARGETS if rival in bounds else TARGETS[:1] if rival == CONSTANT_STEP else TARGETS[1:])
        ),
        *(
            _against(name, "one slow", rival, last, whole=True)
            for rival in rivals["one slow"]
            if rival != CONSTANT_STEP
        ),
        *(
            _price(name, target, 1.5 if bounds and not whole else None, whole)
            for target in TARGETS
            for whole in (False, True)
        ),
        *(
            _against(name, situation, rival, last)
            for situation in ("undisturbed", "delays")
            for rival in rivals.get(situation, ())
        ),
        *(
            _against(name, "real", rival, last, whole=True)
            for rival in (*rivals["real"], *(SERIAL + who for who in case.alone))
        ),
        *(_ours(name, situation, last) for situation in case.situations),
        _set_up(name, "undisturbed"),
        _set_up(name, "real"),
    )


def _first_target(case: Case, name: str) -> tuple[Member, ...]:
    """Return the figures to the first target, as a member of a name of its own."""
    target, members = TARGETS[0], [_slowed(case.name, TARGETS[0], None)]
    for situation, (_, *rivals) in case.situations.items():
        members.append(_ours(case.name, situation, target))
        alone = [SERIAL + who for who in case.alone if situation == "real"]
        for rival in (*rivals, *alone):
            members.append(_against(case.name, situation, rival, target, whole=situation == "real"))
        if "allreduce, lbfgs" in rivals and situation != "real":
            members.append(_against(case.name, situation, "allreduce, lbfgs", target, whole=True))
        members.append(_set_up(case.name, situation))
    return tuple(replace(member, name=name) for member in members)


MEMBERS = (
    *_rows(
        LEAST_SQUARES,
        {
            "allreduce, descent": 10.0,
            "allreduce, nesterov": 5.0,
            "allreduce, lbfgs": 5.0,
            "allreduce, cg": 5.0,
            "gradient_coding, descent": 1.0,
            "gradient_coding, nesterov": 1.0,
            "gradient_coding, cg": 1.0,
        },
    ),
    *_rows(A9A_LIKE, {}),
    *_first_target(TWO_GB, "train-2gb"),
)
