"""What a choice makes of the keys left open, and what is sound alone and wrong together."""

from __future__ import annotations

import math

import numpy as np

from goco_mpi.core import codes, objectives
from goco_mpi.core.methods import METHODS, PRECONDITIONED, method_of
from goco_mpi.core.methods.table_newton import TABLE_NEWTON
from goco_mpi.errors import InputError, check_one_of
from goco_mpi.schema import (
    MethodConfig,
    PlacementConfig,
    RunConfig,
    StepConfig,
    StragglerConfig,
    TopologyConfig,
    replace,
)


def resolve(config: RunConfig) -> RunConfig:
    """Make the config say what will be done, so that the record does too."""
    method, section, deadline = method_of(config.method.kind), config.method, config.deadline
    for name in ("compute_s", "gossip_s"):
        if getattr(deadline, name) == "inf":  # as a record spells it
            deadline = replace(deadline, **{name: math.inf})
    placement_section = config.placement
    step = config.step
    if section.late == "auto":
        section = replace(section, late=method.late)
    if not method.mixings:
        section = replace(section, mixing=None)
    elif section.mixing is None:
        section = replace(section, mixing=method.mixings[0])
    if not method.steps:  # they are its own: nothing to work out before the first round
        step = StepConfig(kind="constant", size=1.0)
    if not method.coded:
        section = replace(section, weights="plain")
    if not method.coded or placement_section.kind == "uncoded":
        placement_section = PlacementConfig(kind="uncoded", replication=1)
    topology_section = config.topology
    if method.exchange == "allreduce":
        solver, preconditioner = section.solver or "descent", section.preconditioner or "none"
        section = replace(section, late="wait", solver=solver, preconditioner=preconditioner)
    if method.exchange == "central":
        topology_section = TopologyConfig(kind="star")
        deadline = replace(deadline, gossip_s=math.inf)
        solver = section.solver or method.solvers[0]
        local = solver == "cg" and config.objective.kind == objectives.LeastSquares.name
        preconditioner = section.preconditioner or ("local" if local else "none")
        section = replace(section, solver=solver, preconditioner=preconditioner)
        endless = not method.exact and deadline.compute_s == math.inf
        if endless and section.late == "discard" and config.stragglers.kind in ("slow", "delays"):
            section = replace(section, late="wait")  # for as long as they take: there is nothing to make up for
    if method.exact:  # whoever is needed is waited for
        deadline = replace(deadline, compute_s=math.inf)
        section = replace(section, weights="plain")
    if section.rates is None:
        section = replace(section, rates=_default_rates(section, config.stragglers))
    if section.late == "wait":
        deadline = replace(deadline, compute_s=math.inf, gossip_s=math.inf)
    config = replace(
        config,
        topology=topology_section,
        method=section,
        placement=placement_section,
        step=step,
        deadline=deadline,
    )
    _check_pairings(config)
    return config


def has_own_steps(config: RunConfig) -> bool:
    """Return whether method or solver finds the length of its steps itself, so that ``[step]`` has no part in it."""
    return not method_of(config.method.kind).steps or config.method.solver in ("cg", "lbfgs")


def _default_rates(section: MethodConfig, straggler_section: StragglerConfig) -> str:
    if not method_of(section.kind).reweighs or section.weights == "plain" or section.late == "wait":
        return "stated"
    if straggler_section.kind != "none":
        return "stated"
    if section.gossip_rounds > 1:
        return "stated"
    if section.compression != "none":
        return "stated"  # what the ranks tell each other would be longer than their messages
    return "live" if section.late == "memory" else "ema"


def _check_pairings(config: RunConfig) -> None:
    """Refuse what is sound alone and wrong together."""
    section, method = config.method, method_of(config.method.kind)
    kind = section.kind
    _check_mixing(config)
    if section.momentum:
        _check_momentum(config)
    if section.gossip_rounds > 1:
        _check_gossip_rounds(config)
    if section.compression != "none":
        _check_compression(section)
    _check_checkpoint(config)
    if method.remembers and section.late == "partial":
        raise InputError(
            f"method.late = 'partial' is not sound with method.kind = '{kind}', which remembers whole gradients: "
            "a part would take the place of the whole. Use 'memory' or 'discard'."
        )
    _check_rates(section)
    _check_solver(config)
    _check_central(config)
    if method is TABLE_NEWTON:
        _check_table_newton(config)


def _check_mixing(config: RunConfig) -> None:
    kind, rule, method = config.method.kind, config.method.mixing, method_of(config.method.kind)
    if method.mixings and rule not in method.mixings:
        why = _UNSOUND[str(rule)] if kind in METHODS else "its class does not have it among its mixings."
        raise InputError(
            f"method.mixing = '{rule}' is not sound with method.kind = '{kind}': {why} "
            f"Use {' or '.join(repr(name) for name in method.mixings)}."
        )
    if rule == "running" and kind not in METHODS:
        raise InputError(
            f"method.mixing = 'running' makes the messages of goco and dgd, not those of method.kind = '{kind}'. Use "
            "'stale' or 'fold'."
        )
    if rule == "symmetric" and config.deadline.gossip_s != math.inf:
        raise InputError(
            "method.mixing = 'symmetric' needs deadline.gossip_s = inf: by a deadline no rank can know whether its own "
            f"message has arrived too. Got {config.deadline.gossip_s!r}. Or use method.late = 'wait' or another method."
        )


def _check_compression(section: MethodConfig) -> None:
    kind, rule = section.kind, section.mixing
    if kind not in ("goco", "dgd"):
        raise InputError(
            f"method.compression = '{section.compression}' is not sound with method.kind = '{kind}', whose "
            "messages hold more than parameters that settle. Use 'none', or method.kind = 'goco' or 'dgd'."
        )
    if rule != "stale":
        raise InputError(
            f"method.mixing = '{rule}' is not sound with method.compression = '{section.compression}': a "
            f"message renews a part of a neighbour's vector, and the rest is older. {_COMPRESSED[str(rule)]} "
            "Use 'stale'."
        )


def _check_checkpoint(config: RunConfig) -> None:
    kind, method = config.method.kind, method_of(config.method.kind)
    if config.checkpoint.every_s is not None and (method.in_step or config.method.gossip_rounds > 1):
        raise InputError(
            "checkpoint.every_s goes with methods whose ranks may be kept in different rounds. Got "
            f"{config.checkpoint.every_s:g} with method.kind = '{kind}' and method.gossip_rounds = "
            f"{config.method.gossip_rounds}. Use checkpoint.every, in rounds."
        )


def _check_table_newton(config: RunConfig) -> None:
    kind = config.method.kind
    if config.topology.kind not in ("complete", "rook"):
        raise InputError(
            f"method.kind = '{kind}' needs topology.kind = 'complete' or 'rook': a rank hears of another's "
            f"gradient only from that rank itself, or from its row. Got {config.topology.kind!r}. On other graphs use "
            "method.kind = 'push_pull'."
        )
    if config.data.batch_size is not None:
        raise InputError(
            f"data.batch_size is not sound with method.kind = '{kind}', which reads the curvature off differences of "
            f"gradients: those of other rows are no curvature. Got {config.data.batch_size}. Leave it out, or use "
            "method.kind = 'goco'."
        )
    if config.stop.on_lost_shard == "continue":
        raise InputError(
            f"stop.on_lost_shard = 'continue' is not sound with method.kind = '{kind}', whose table would keep the "
            "last gradients of the dead for ever. Use 'stop', or method.kind = 'push_pull'."
        )
    if config.stop.gradient_norm is not None:
        raise InputError(
            f"stop.gradient_norm does not go with method.kind = '{kind}': it is read off steps along the gradient, and "
            f"these are not. Got {config.stop.gradient_norm:g}. Use stop.target_loss."
        )


def _check_rates(section: MethodConfig) -> None:
    if section.rates == "stated":
        return
    given = f"method.rates = '{section.rates}'"
    if not method_of(section.kind).reweighs:
        raise InputError(
            f"{given} does not go with method.kind = '{section.kind}', whose weights stay as they are. "
            "Use 'stated', or method.kind = 'goco'."
        )
    if section.weights == "plain" or section.late == "wait":
        what = "method.weights = 'plain'" if section.weights == "plain" else "method.late = 'wait'"
        raise InputError(f"{given} does not go with {what}, under which no rate matters. Leave method.rates out.")
    if section.late == "memory" and section.rates != "live":
        raise InputError(
            f"{given} is not sound with method.late = 'memory': a late rank's last gradient counts in every round, "
            "however seldom it finishes. Use 'live' or 'stated'."
        )


def _check_central(config: RunConfig) -> None:
    """Refuse what a master or its code cannot do."""
    kind, method = config.method.kind, method_of(config.method.kind)
    if method.exchange != "central":
        return
    check_one_of(f"method.solver with method.kind = '{kind}'", str(config.method.solver), method.solvers)
    if config.method.late not in ("discard", "wait"):
        raise InputError(
            f"method.late = '{config.method.late}' does not go with method.kind = '{kind}': a gradient counts at the "
            "master's present parameters, and whole. Use 'discard', or 'wait' for all workers in every round."
        )
    if method.exact and config.placement.kind not in codes.KINDS:
        raise InputError(
            f"method.kind = '{kind}' needs placement.kind = 'cyclic' or 'fractional_repetition', which have a code. "
            f"Got '{config.placement.kind}'. For any placement use method.kind = 'sgc'."
        )


def _check_solver(config: RunConfig) -> None:
    """Refuse what does not go with a way to use the mean gradient."""
    solver, step, stop = config.method.solver, config.step, config.stop
    for key in ("solver", "preconditioner"):
        value = getattr(config.method, key)
        if value is not None and method_of(config.method.kind).exchange == "gossip":
            raise InputError(
                f"method.{key} is about what is made of an allreduce's mean gradient, and "
                f"method.kind = '{config.method.kind}' has none. Got {value!r}. Leave it out, or use "
                "method.kind = 'allreduce'."
            )
    if config.method.preconditioner == "local" and (
        solver not in PRECONDITIONED or config.objective.kind != objectives.LeastSquares.name
    ):
        raise InputError(
            "method.preconditioner = 'local' needs method.solver = 'cg' and objective.kind = 'least_squares', whose "
            f"Hessians can be factored once. Got {solver!r} and {config.objective.kind!r}. Leave it out."
        )
    if (
        solver is not None
        and has_own_steps(config)
        and (step.kind != "auto" or step.size is not None or step.tau is not None)
    ):
        raise InputError(
            f"method.solver = '{solver}' finds the length of its steps itself: step.kind, step.size and step.tau have "
            "no part in it. Leave them out, or use method.solver = 'descent' or 'nesterov'."
        )
    if solver not in (None, "descent") and stop.gradient_norm is not None:
        raise InputError(
            f"stop.gradient_norm does not go with method.solver = '{solver}': it is read off steps along the gradient, "
            f"and these are not. Got {stop.gradient_norm:g}. Use stop.target_loss."
        )


def _check_gossip_rounds(config: RunConfig) -> None:
    section, given = config.method, f"method.gossip_rounds = {config.method.gossip_rounds}"
    if section.kind not in ("goco", "dgd") or section.mixing == "running":
        raise InputError(
            f"{given} goes with method.kind = 'goco' or 'dgd' and method.mixing = 'stale', 'fold' or 'symmetric'. Got "
            f"{section.kind!r} and {section.mixing!r}. Leave it out."
        )
    if section.compression != "none" or section.momentum or section.rates != "stated":
        raise InputError(
            f"{given} does not go with method.compression, method.momentum or observed method.rates: most of its "
            "rounds have no gradient. Leave them out."
        )
    if section.late == "memory":
        raise InputError(f"{given} is not sound with method.late = 'memory': a gradient belongs to the first of them.")
    if config.deadline.gossip_s != math.inf or np.any(config.stragglers.link_p):
        raise InputError(
            f"{given} needs every message of every round: deadline.gossip_s = inf, or method.late = 'wait', and "
            f"stragglers.link_p = 0. Got {config.deadline.gossip_s!r} and {config.stragglers.link_p!r}."
        )
    if config.stop.gradient_norm is not None:
        raise InputError(
            f"stop.gradient_norm does not go with {given}: it is read off steps along the gradient, and most of these "
            f"are not. Got {config.stop.gradient_norm:g}. Use stop.target_loss."
        )


def _check_momentum(config: RunConfig) -> None:
    kind, beta = config.method.kind, config.method.momentum
    if kind not in ("goco", "dgd"):
        raise InputError(
            f"method.momentum goes with method.kind = 'goco' or 'dgd'. Got {beta:g} with '{kind}'. Leave it out."
        )
    if config.method.mixing == "running":
        raise InputError(
            "method.momentum is not sound with method.mixing = 'running', whose parameters jump when late mass comes "
            f"in. Got {beta:g}. Use 'stale', 'fold' or 'symmetric'."
        )
    if config.method.compression != "none":
        raise InputError(
            f"method.momentum is not sound with method.compression = '{config.method.compression}': it would carry on "
            f"what the copies of the neighbours are off by. Got {beta:g}. Leave one of them out."
        )
    if config.stop.gradient_norm is not None:
        raise InputError(
            "stop.gradient_norm does not go with method.momentum: it is read off steps along the gradient alone. "
            f"Got {config.stop.gradient_norm:g}. Use stop.target_loss."
        )


_COMPRESSED = {
    "fold": "'fold' mixes nothing old.",
    "symmetric": "What two neighbours take from each other must cancel, and after a loss it does not.",
    "running": "Of running sums nothing may be left out.",
}
_UNSOUND = {
    "stale": "what two neighbours take from each other must cancel, and an older vector does not.",
    "fold": "what two neighbours take from each other must cancel, and with fold one may mix alone.",
    "running": "running sums carry the parameters of 'goco' and 'dgd' alone.",
}
