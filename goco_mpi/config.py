"""The experiment file: TOML to one frozen, validated `RunConfig`.

The keys are in `goco_mpi.schema`. What can be checked without knowing the number of workers is checked
here, once; the rest in `goco_mpi.experiment`.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import msgspec

from goco_mpi.core import costs, encoding, gossip, mixing, objectives, placement, rates, stragglers, topology
from goco_mpi.core.methods import METHODS
from goco_mpi.core.methods.table_newton import TABLE_NEWTON
from goco_mpi.errors import InputError, check_one_of, check_range
from goco_mpi.schema import (
    CostConfig,
    DeadlineConfig,
    MethodConfig,
    PlacementConfig,
    RunConfig,
    Section,
    StepConfig,
    StopConfig,
    StragglerConfig,
)

BUNDLED = ("digits", "breast_cancer", "diabetes")
PARTITIONS = ("iid", "by_label", "in_order")
FORMATS = ("auto", "svmlight", "npz", "npy")
STEPS = ("constant", "decreasing", "auto")
LATE_POLICIES = ("discard", "partial", "memory", "wait")


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read an experiment file and apply ``key=value`` overrides.

    Parameters
    ----------
    path : str or Path
        A TOML file.
    overrides : sequence of str
        Such as ``"method.kind=dgd"``; the value is TOML, a bare word is a string.

    Returns
    -------
    RunConfig

    Raises
    ------
    InputError
        If the file is missing or not TOML, a key is unknown, or a value is not allowed.
    """
    path = Path(path)
    raw = read_toml(path, "experiment")
    for override in overrides:
        _apply_override(raw, override)
    resolve_paths(raw, path.parent)
    return parse_config(raw)


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """Read the tables of a TOML file; ``what`` says in an error which file it is.

    Raises
    ------
    InputError
        If the file is missing or not TOML.
    """
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise InputError(f"The {what} file {str(path)!r} cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"The {what} file {str(path)!r} is not valid TOML: {error}.") from None


def parse_config(raw: dict[str, Any]) -> RunConfig:
    """Turn the tables of an experiment into a validated `RunConfig`.

    Examples
    --------
    >>> parse_config({"rounds": 5, "method": {"kind": "dgd"}}).placement.kind
    'uncoded'
    """
    refuse_unknown_keys(raw)
    try:
        config = msgspec.convert(raw, RunConfig)
    except msgspec.ValidationError as error:
        raise InputError(_explain(str(error), raw)) from None
    _check(config)
    return _resolve(config)


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Return the config as plain tables, infinite deadlines spelt ``"inf"`` (JSON has none)."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return "inf" if isinstance(value, float) and math.isinf(value) else value

    tables: dict[str, Any] = plain(msgspec.to_builtins(config))
    return tables


_S = TypeVar("_S", bound=Section)


def replace(section: _S, **changes: Any) -> _S:
    """Return a copy of a config section with some fields changed."""
    return msgspec.structs.replace(section, **changes)


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise InputError(f"--set takes key=value, such as method.kind=dgd. Got {override!r}.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    put(raw, key.strip(), value, f"--set {key.strip()}")


def put(raw: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Set a dotted key in the tables of an experiment; ``where`` begins an error.

    Examples
    --------
    >>> raw = {"rounds": 5}
    >>> put(raw, "method.kind", "dgd", "--set method.kind")
    >>> raw
    {'rounds': 5, 'method': {'kind': 'dgd'}}
    """
    *tables, last = key.split(".")
    for table in tables:
        inner = raw.setdefault(table, {})
        if not isinstance(inner, dict):
            raise InputError(f"{where}: {table!r} is a value, not a table.")
        raw = inner
    raw[last] = value


def resolve_paths(raw: dict[str, Any], base: Path) -> None:
    """Look a relative data path up from the current directory, then from the experiment file's."""
    for section, key in (("data", "source"), ("data", "targets"), ("cost", "trace")):
        table = raw.get(section)
        value = table.get(key) if isinstance(table, dict) else None
        if key == "source" and value in (*BUNDLED, "synthetic"):
            continue
        # os.path: a name too long for a file is no file rather than an error.
        if isinstance(value, str) and not os.path.exists(value) and os.path.exists(base / value):  # noqa: PTH110
            raw[section][key] = str(base / value)


def refuse_unknown_keys(raw: dict[str, Any], section: type[Section] = RunConfig, prefix: str = "") -> None:
    """Refuse tables of an experiment with a key that is none.

    Raises
    ------
    InputError
        Naming the nearest keys.
    """
    types = get_type_hints(section)
    for key, value in raw.items():
        if key not in types:
            near = difflib.get_close_matches(key, types, n=3, cutoff=0.5)
            where = f"in [{prefix[:-1]}]" if prefix else "at the top level"
            advice = f"Did you mean {' or '.join(near)}?" if near else f"Known keys: {', '.join(types)}."
            raise InputError(f"Unknown key {prefix + key!r} {where}. {advice}")
        inner = types[key]
        if isinstance(inner, type) and issubclass(inner, Section):
            if not isinstance(value, dict):
                raise InputError(f"{prefix + key} must be a table. Got {value!r}.")
            refuse_unknown_keys(value, inner, f"{prefix}{key}.")


_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
    "null": "nothing",
}


def _explain(message: str, raw: dict[str, Any]) -> str:
    """Turn msgspec's message into ours: parameter, rule, value."""
    found = re.fullmatch(r"(.*?)(?: - at `\$\.?(.*?)`)?", message, re.DOTALL)
    assert found is not None  # the pattern matches any text
    rule, where = found[1], found[2] or "experiment"
    expected = re.match(r"Expected `([^`]*)`", rule)
    if expected:
        names = [_WORDS.get(name.strip(), name.strip()) for name in expected[1].split("|")]
        rule = "must be " + " or ".join(name for name in names if name != "nothing")
        length = re.search(r"of length (\d+)", found[1])
        rule += f" of {length[1]}" if length else ""
    value: Any = raw
    for key in re.findall(r"[^.\[\]]+", where):
        if isinstance(value, dict):
            value = value.get(key)
        elif isinstance(value, list) and key.isdigit():
            value = value[int(key)]
    return f"{where} {rule}. Got {value!r}."


def _check(config: RunConfig) -> None:
    """Check everything that does not depend on the number of workers or the data."""
    data, step = config.data, config.step
    check_range("seed", config.seed, 0, 2**63 - 1)
    check_range("rounds", config.rounds, 1, 2**31 - 1)
    check_one_of("data.partition", data.partition, PARTITIONS)
    check_one_of("data.format", data.format, FORMATS)
    check_range("data.shards", data.shards, 1, 2**31)
    check_range("data.n_samples", data.n_samples, 1, 2**40)
    check_range("data.n_features", data.n_features, 1, 2**31)
    _check_not_negative("data.noise", data.noise)
    _check_not_negative("data.heterogeneity", data.heterogeneity)
    if not 0.0 <= data.test_fraction < 1.0:
        raise InputError(f"data.test_fraction must be at least 0 and below 1. Got {data.test_fraction:g}.")
    if data.heterogeneity > 0.0 and data.partition == "iid":
        raise InputError(
            "data.heterogeneity > 0 makes every shard's solution its own, and data.partition = 'iid' mixes "
            "the shards again. Use data.partition = 'in_order'."
        )
    check_one_of("objective.kind", config.objective.kind, objectives.KINDS)
    _check_not_negative("objective.l2", config.objective.l2)
    check_one_of("topology.kind", config.topology.kind, topology.KINDS)
    check_one_of("topology.mixing_matrix", config.topology.mixing_matrix, mixing.KINDS)
    check_one_of("placement.kind", config.placement.kind, placement.KINDS)
    check_one_of("method.kind", config.method.kind, METHODS)
    check_one_of("method.late", config.method.late, ("auto", *LATE_POLICIES))
    check_one_of("method.weights", config.method.weights, encoding.KINDS)
    if config.method.rates is not None:
        check_one_of("method.rates", config.method.rates, rates.KINDS)
    if config.method.mixing is not None:
        check_one_of("method.mixing", config.method.mixing, gossip.RULES)
    check_range("method.max_age", config.method.max_age, 0, 2**31)
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
    _check_deadline(config.deadline)
    _check_stop(config.stop)
    check_one_of("stragglers.kind", config.stragglers.kind, stragglers.KINDS)
    check_one_of("stragglers.distribution", config.stragglers.distribution, stragglers.DISTRIBUTIONS)
    if not config.stragglers.factor >= 1.0 or math.isinf(config.stragglers.factor):
        raise InputError(
            f"stragglers.factor must be a finite number of at least 1. Got {config.stragglers.factor:g}. "
            "It says how many times slower the chosen ranks are."
        )
    for name in ("work_s", "delay_s"):
        _check_not_negative(f"stragglers.{name}", getattr(config.stragglers, name))
    _check_cost(config.cost)
    check_range("record.every", config.record.every, 1, 2**52)


def _check_deadline(deadline: DeadlineConfig) -> None:
    for name in ("compute_s", "gossip_s"):
        _check_seconds(f"deadline.{name}", getattr(deadline, name), "inf (wait for ever)")
    _check_seconds("deadline.poll_s", deadline.poll_s, "0 (spin)")
    if deadline.poll_s == "inf" or deadline.poll_s == math.inf:
        raise InputError("deadline.poll_s must be finite. Got inf. Use 'auto'.")
    _check_positive("deadline.compute_factor", deadline.compute_factor)
    _check_not_negative("deadline.gossip_factor", deadline.gossip_factor)
    _check_positive("deadline.shutdown_s", deadline.shutdown_s)


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


def _check_stop(stop: StopConfig) -> None:
    if stop.target_loss is not None and not math.isfinite(stop.target_loss):
        raise InputError(f"stop.target_loss must be a finite number. Got {stop.target_loss:g}.")
    for name in ("gradient_norm", "time_limit_s"):
        if getattr(stop, name) is not None:
            _check_positive(f"stop.{name}", getattr(stop, name))
    check_range("stop.every", stop.every, 1, 2**31)


def _check_positive(name: str, value: float) -> None:
    if not 0.0 < value < math.inf:
        raise InputError(f"{name} must be a positive, finite number. Got {value:g}.")


def _check_not_negative(name: str, value: float) -> None:
    if not 0.0 <= value < math.inf:
        raise InputError(f"{name} must be a finite number of at least 0. Got {value:g}.")


def _check_seconds(name: str, value: float | str, special: str) -> None:
    if not (value in ("auto", "inf") or (not isinstance(value, str) and value >= 0.0)):
        raise InputError(f"{name} must be a number of seconds of at least 0, {special}, or 'auto'. Got {value!r}.")


def _resolve(config: RunConfig) -> RunConfig:
    """Make the config say what will be done, so that the record does too."""
    method, section, deadline = METHODS[config.method.kind], config.method, config.deadline
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
    if method.exchange == "allreduce":
        section = replace(section, late="wait")
    if section.rates is None:
        section = replace(section, rates=_default_rates(section, config.stragglers))
    if section.late == "wait":
        deadline = replace(deadline, compute_s=math.inf, gossip_s=math.inf)
    config = replace(config, method=section, placement=placement_section, step=step, deadline=deadline)
    _check_pairings(config)
    return config


def _default_rates(section: MethodConfig, straggler_section: StragglerConfig) -> str:
    if not METHODS[section.kind].reweighs or section.weights == "plain" or section.late == "wait":
        return "stated"
    if straggler_section.kind != "none":
        return "stated"
    return "live" if section.late == "memory" else "ema"


def _check_pairings(config: RunConfig) -> None:
    """Refuse what is sound alone and wrong together."""
    kind, rule, method = config.method.kind, config.method.mixing, METHODS[config.method.kind]
    if method.mixings and rule not in method.mixings:
        raise InputError(
            f"method.mixing = '{rule}' is not sound with method.kind = '{kind}': {_UNSOUND[str(rule)]} "
            f"Use {' or '.join(repr(name) for name in method.mixings)}."
        )
    if rule == "symmetric" and config.deadline.gossip_s != math.inf:
        raise InputError(
            "method.mixing = 'symmetric' needs deadline.gossip_s = inf: by a deadline no rank can know whether its own "
            f"message has arrived too. Got {config.deadline.gossip_s!r}. Or use method.late = 'wait' or another method."
        )
    if method.remembers and config.method.late == "partial":
        raise InputError(
            f"method.late = 'partial' is not sound with method.kind = '{kind}', which remembers whole gradients: "
            "a part would take the place of the whole. Use 'memory' or 'discard'."
        )
    _check_rates(config.method)
    if method is TABLE_NEWTON and config.topology.kind not in ("complete", "rook"):
        raise InputError(
            f"method.kind = '{kind}' needs topology.kind = 'complete' or 'rook': a rank hears of another's "
            f"gradient only from that rank itself, or from its row. Got {config.topology.kind!r}. On other graphs use "
            "method.kind = 'push_pull'."
        )
    if method is TABLE_NEWTON and config.stop.gradient_norm is not None:
        raise InputError(
            f"stop.gradient_norm does not go with method.kind = '{kind}': it is read off steps along the gradient, and "
            f"these are not. Got {config.stop.gradient_norm:g}. Use stop.target_loss."
        )


def _check_rates(section: MethodConfig) -> None:
    if section.rates == "stated":
        return
    given = f"method.rates = '{section.rates}'"
    if not METHODS[section.kind].reweighs:
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


_UNSOUND = {
    "stale": "what two neighbours take from each other must cancel, and an older vector does not.",
    "fold": "what two neighbours take from each other must cancel, and with fold one may mix alone.",
    "running": "running sums carry the parameters of 'goco' and 'dgd' alone.",
}
