"""What the value of a key may be, each key by itself."""

from __future__ import annotations

import math

from goco_mpi.core import (
    compression,
    costs,
    encoding,
    gossip,
    mixing,
    objectives,
    placement,
    rates,
    stragglers,
    topology,
)
from goco_mpi.core.methods import METHODS, SOLVERS, method_of
from goco_mpi.errors import InputError, check_one_of, check_range
from goco_mpi.schema import (
    CheckpointConfig,
    CostConfig,
    DataConfig,
    DeadlineConfig,
    MethodConfig,
    RunConfig,
    StepConfig,
    StopConfig,
    StragglerConfig,
)

BUNDLED = ("digits", "breast_cancer", "diabetes")
GENERATED = ("synthetic_regression", "synthetic_classification", "synthetic_sparse")
NO_PATHS = (*BUNDLED, "synthetic", *GENERATED)
"""What ``data.source`` may be other than a path."""
PARTITIONS = ("iid", "by_label", "in_order", "dirichlet", "by_column")
DTYPES = ("float64", "float32")
FORMATS = ("auto", "svmlight", "npz", "npy", "hdf5", "parquet", "csv")
STEPS = ("constant", "decreasing", "auto")
PRECONDITIONERS = ("none", "local")
ON_LOST_SHARD = ("stop", "continue")
LATE_POLICIES = ("discard", "partial", "memory", "wait")


def check_values(config: RunConfig) -> None:
    """Check everything that does not depend on the number of workers or the data."""
    check_range("seed", config.seed, 0, 2**63 - 1)
    check_range("rounds", config.rounds, 1, 2**31 - 1)
    _check_data(config.data)
    check_one_of("objective.kind", config.objective.kind, objectives.KINDS)
    _check_not_negative("objective.l2", config.objective.l2)
    check_one_of("topology.kind", config.topology.kind, topology.KINDS)
    check_one_of("topology.mixing_matrix", config.topology.mixing_matrix, mixing.KINDS)
    check_one_of("placement.kind", config.placement.kind, placement.KINDS)
    _check_method(config.method)
    _check_step(config.step)
    _check_deadline(config.deadline)
    _check_stop(config.stop)
    _check_stragglers(config.stragglers)
    _check_cost(config.cost)
    check_range("record.every", config.record.every, 1, 2**52)
    _check_checkpoint(config.checkpoint)


def _check_data(data: DataConfig) -> None:
    check_one_of("data.partition", data.partition, PARTITIONS)
    _check_positive("data.alpha", data.alpha)
    if (data.partition_column is None) == (data.partition == "by_column"):
        raise InputError(
            "data.partition_column goes with data.partition = 'by_column', and names the column along which to cut. "
            f"Got data.partition = '{data.partition}' and data.partition_column = {data.partition_column!r}."
        )
    check_one_of("data.format", data.format, FORMATS)
    check_one_of("data.dtype", data.dtype, DTYPES)
    check_range("data.shards", data.shards, 1, 2**31)
    if data.batch_size is not None:
        check_range("data.batch_size", data.batch_size, 1, 2**31)
    check_range("data.n_samples", data.n_samples, 1, 2**40)
    check_range("data.n_features", data.n_features, 1, 2**31)
    check_range("data.n_classes", data.n_classes, 2, 2**16)
    if not 0.0 < data.density <= 1.0:
        raise InputError(f"data.density must be above 0 and at most 1. Got {data.density:g}.")
    check_range("data.condition_number", data.condition_number, 1.0, 1e16)
    _check_not_negative("data.noise", data.noise)
    _check_not_negative("data.heterogeneity", data.heterogeneity)
    if not 0.0 <= data.test_fraction < 1.0:
        raise InputError(f"data.test_fraction must be at least 0 and below 1. Got {data.test_fraction:g}.")
    if data.heterogeneity > 0.0 and data.partition == "iid":
        raise InputError(
            "data.heterogeneity > 0 makes every shard's solution its own, and data.partition = 'iid' mixes "
            "the shards again. Use data.partition = 'in_order'."
        )


def _check_method(method: MethodConfig) -> None:
    if ":" in method.kind:
        method_of(method.kind)
    else:
        check_one_of("method.kind", method.kind, METHODS)
    check_one_of("method.late", method.late, ("auto", *LATE_POLICIES))
    check_one_of("method.weights", method.weights, encoding.KINDS)
    if method.rates is not None:
        check_one_of("method.rates", method.rates, rates.KINDS)
    if method.mixing is not None:
        check_one_of("method.mixing", method.mixing, gossip.RULES)
    if method.solver is not None:
        check_one_of("method.solver", method.solver, SOLVERS)
    if method.preconditioner is not None:
        check_one_of("method.preconditioner", method.preconditioner, PRECONDITIONERS)
    check_range("method.max_age", method.max_age, 0, 2**31)
    check_range("method.gossip_rounds", method.gossip_rounds, 1, 50)
    if not 0.0 <= method.momentum < 1.0:
        raise InputError(f"method.momentum must be at least 0 and below 1. Got {method.momentum:g}.")
    _check_compression(method)


def _check_compression(method: MethodConfig) -> None:
    check_one_of("method.compression", method.compression, compression.KINDS)
    for name, value in (("compression_ratio", method.compression_ratio), ("consensus_step", method.consensus_step)):
        if value is not None and not 0.0 < value <= 1.0:
            raise InputError(f"method.{name} must be above 0 and at most 1. Got {value:g}.")
    if method.compression_bits not in compression.BITS:
        known = ", ".join(map(str, compression.BITS))
        raise InputError(f"method.compression_bits must be one of {known}. Got {method.compression_bits}.")
    if method.consensus_step is not None and method.compression == "none":
        raise InputError(
            f"method.consensus_step goes with compressed messages only. Got {method.consensus_step:g} with "
            "method.compression = 'none'. Leave it out, or choose top_k, random_k or quantize."
        )


def _check_step(step: StepConfig) -> None:
    check_one_of("step.kind", step.kind, STEPS)
    _check_positive("step.scale", step.scale)
    if step.size is not None:
        _check_positive("step.size", step.size)
    elif step.kind != "auto":
        raise InputError(f"step.size must be given with step.kind = '{step.kind}'. Or use step.kind = 'auto'.")
    if step.tau is not None:
        _check_positive("step.tau", step.tau)
    elif step.kind == "decreasing":
        raise InputError("step.tau must be given with step.kind = 'decreasing': the rounds to half the step.")


def _check_deadline(deadline: DeadlineConfig) -> None:
    for name in ("compute_s", "gossip_s"):
        _check_seconds(f"deadline.{name}", getattr(deadline, name), "inf (wait for ever)")
    _check_seconds("deadline.poll_s", deadline.poll_s, "0 (spin)")
    if deadline.poll_s == "inf" or deadline.poll_s == math.inf:
        raise InputError("deadline.poll_s must be finite. Got inf. Use 'auto'.")
    _check_positive("deadline.compute_factor", deadline.compute_factor)
    _check_not_negative("deadline.gossip_factor", deadline.gossip_factor)
    _check_positive("deadline.shutdown_s", deadline.shutdown_s)


def _check_stop(stop: StopConfig) -> None:
    if stop.target_loss is not None and not math.isfinite(stop.target_loss):
        raise InputError(f"stop.target_loss must be a finite number. Got {stop.target_loss:g}.")
    for name in ("gradient_norm", "time_limit_s"):
        if getattr(stop, name) is not None:
            _check_positive(f"stop.{name}", getattr(stop, name))
    _check_not_negative("stop.margin_s", stop.margin_s)
    check_range("stop.every", stop.every, 1, 2**31)
    check_one_of("stop.on_lost_shard", stop.on_lost_shard, ON_LOST_SHARD)


def _check_stragglers(section: StragglerConfig) -> None:
    check_one_of("stragglers.kind", section.kind, stragglers.KINDS)
    check_one_of("stragglers.distribution", section.distribution, stragglers.DISTRIBUTIONS)
    if not section.factor >= 1.0 or math.isinf(section.factor):
        raise InputError(
            f"stragglers.factor must be a finite number of at least 1. Got {section.factor:g}. "
            "It says how many times slower the chosen ranks are."
        )
    for name in ("work_s", "delay_s"):
        _check_not_negative(f"stragglers.{name}", getattr(section, name))


def _check_cost(cost: CostConfig) -> None:
    check_one_of("cost.compute", cost.compute, costs.KINDS)
    for name in ("compute_s", "bytes_per_s"):
        _check_positive(f"cost.{name}", getattr(cost, name))
    for name in ("spread", "overhead_s", "latency_s"):
        _check_not_negative(f"cost.{name}", getattr(cost, name))
    if cost.rows is not None:
        check_range("cost.rows", cost.rows, 1, 2**52)
    check_range("cost.slow_p", cost.slow_p, 0.0, 1.0)
    if not 1.0 <= cost.slow_factor < math.inf:
        raise InputError(f"cost.slow_factor must be a finite number of at least 1. Got {cost.slow_factor:g}.")
    if (cost.trace is None) == (cost.compute == "trace"):
        raise InputError(
            "cost.trace goes with cost.compute = 'trace', and names a run directory or a file of seconds. "
            f"Got cost.compute = '{cost.compute}' and cost.trace = {cost.trace!r}."
        )


def _check_checkpoint(section: CheckpointConfig) -> None:
    if section.every is not None:
        check_range("checkpoint.every", section.every, 1, 2**52)
    if section.every_s is not None:
        _check_positive("checkpoint.every_s", section.every_s)
    check_range("checkpoint.keep", section.keep, 1, 2**31)


def _check_positive(name: str, value: float) -> None:
    if not 0.0 < value < math.inf:
        raise InputError(f"{name} must be a positive, finite number. Got {value:g}.")


def _check_not_negative(name: str, value: float) -> None:
    if not 0.0 <= value < math.inf:
        raise InputError(f"{name} must be a finite number of at least 0. Got {value:g}.")


def _check_seconds(name: str, value: float | str, special: str) -> None:
    if not (value in ("auto", "inf") or (not isinstance(value, str) and value >= 0.0)):
        raise InputError(f"{name} must be a number of seconds of at least 0, {special}, or 'auto'. Got {value!r}.")
