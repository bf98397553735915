import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goco_mpi import config as cfg
from goco_mpi import schema
from goco_mpi.config import RunConfig, parse_config, read_config, to_dict
from goco_mpi.core import topology
from goco_mpi.core.gossip import RULES
from goco_mpi.core.methods import METHODS
from goco_mpi.core.methods.compressed import CompressedGossip
from goco_mpi.core.methods.momentum import QuasiGlobalMomentum
from goco_mpi.core.methods.running_sums import RUNNING_SUMS
from goco_mpi.errors import InputError
from goco_mpi.experiment import lay_out

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.toml"))
INF, NAN = math.inf, math.nan


def nested(key, value):
    *tables, last = key.split(".")
    raw = {last: value}
    for table in reversed(tables):
        raw = {table: raw}
    return raw


def refusal(raw):
    """The one line with which an experiment is refused."""
    with pytest.raises(InputError) as refused:
        parse_config(raw)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_an_empty_experiment_is_all_defaults():
    # But for what follows from the method: the record says what will be done.
    defaults = RunConfig()
    assert parse_config({}) == schema.replace(
        defaults, method=schema.replace(defaults.method, mixing="stale", rates="ema", late="discard")
    )


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_parses(path):
    assert isinstance(read_config(path), RunConfig)


def test_there_are_examples():
    assert "quickstart" in [path.stem for path in EXAMPLES]


def test_values_arrive_where_they_belong():
    raw = {
        "seed": 3,
        "rounds": 7,
        "data": {"source": "diabetes", "shards": 4},
        "topology": {"kind": "edges", "edges": [[0, 1], [1, 2]]},
        "stragglers": {"kind": "slow", "ranks": [1, 2], "factor": 4},
        "step": {"kind": "decreasing", "size": 0.5, "tau": 10},
    }
    config = parse_config(raw)
    assert (config.seed, config.rounds, config.data.source, config.data.shards) == (3, 7, "diabetes", 4)
    assert config.topology.edges == ((0, 1), (1, 2))
    assert config.stragglers.ranks == (1, 2)
    assert (config.step.size, config.step.tau) == (0.5, 10.0)
    assert config.method == schema.MethodConfig(mixing="stale", rates="stated", late="discard")


# Each: key, value, the rule that the message must state, the value as the message must show it.
WRONG = [
    ("seed", -1, "must be between 0 and", "Got -1"),
    ("seed", 2**63, "must be between 0 and", "Got 9223372036854775808"),
    ("seed", "x", "must be a whole number", "Got 'x'"),
    ("rounds", 0, "must be between 1 and", "Got 0"),
    ("rounds", 10**400, "must be between 1 and", "Got 1"),
    ("rounds", 5.0, "must be a whole number", "Got 5.0"),
    ("rounds", True, "must be a whole number", "Got True"),
    ("data", 3, "must be a table", "Got 3"),
    ("data.partition", "random", "must be one of iid, by_label, in_order", "Got 'random'"),
    ("data.partition", "by_column", "data.partition_column goes with", "data.partition_column = None"),
    ("data.partition_column", "site", "goes with data.partition = 'by_column'", "data.partition = 'iid'"),
    ("data.alpha", 0.0, "must be a positive, finite number", "Got 0"),
    ("data.format", "tsv", "must be one of auto, svmlight, npz, npy, hdf5, parquet, csv", "Got 'tsv'"),
    ("data.dtype", "float16", "must be one of float64, float32", "Got 'float16'"),
    ("data.shards", 0, "must be between 1 and", "Got 0"),
    ("data.n_samples", 0, "must be between 1 and", "Got 0"),
    ("data.n_features", -5, "must be between 1 and", "Got -5"),
    ("data.n_classes", 1, "must be between 2 and", "Got 1"),
    ("data.density", 0.0, "must be above 0 and at most 1", "Got 0"),
    ("data.density", NAN, "must be above 0 and at most 1", "Got nan"),
    ("data.condition_number", 0.5, "must be between 1 and", "Got 0.5"),
    ("data.noise", -1.0, "must be a finite number of at least 0", "Got -1"),
    ("data.noise", NAN, "must be a finite number of at least 0", "Got nan"),
    ("data.heterogeneity", INF, "must be a finite number of at least 0", "Got inf"),
    ("data.test_fraction", 1.0, "must be at least 0 and below 1", "Got 1"),
    ("data.test_fraction", -0.1, "must be at least 0 and below 1", "Got -0.1"),
    ("data.test_fraction", NAN, "must be at least 0 and below 1", "Got nan"),
    ("data.standardize", 1, "must be true or false", "Got 1"),
    ("objective.kind", "hinge", "must be one of least_squares, logistic, softmax", "Got 'hinge'"),
    ("objective.l2", -1e-3, "must be a finite number of at least 0", "Got -0.001"),
    ("objective.l2", "small", "must be a number", "Got 'small'"),
    ("topology.kind", "line", "must be one of ring,", "Got 'line'"),
    ("topology.mixing_matrix", "max", "must be one of metropolis,", "Got 'max'"),
    ("topology.edges", [[0, 1], ["a", 1]], "must be a whole number", "Got 'a'"),
    ("topology.edges", 3, "must be a list", "Got 3"),
    ("placement.kind", "striped", "must be one of pairwise_balanced,", "Got 'striped'"),
    ("placement.replication", 2.5, "must be a whole number", "Got 2.5"),
    (
        "method.kind",
        "sgd",
        "must be one of goco, push_pull, exact_diffusion, table_newton, dgd, allreduce",
        "Got 'sgd'",
    ),
    ("method.late", "drop", "must be one of auto, discard, partial, memory, wait", "Got 'drop'"),
    ("method.rates", "measured", "must be one of stated, counted, ema, live", "Got 'measured'"),
    ("method.weights", "ema", "must be one of paper, own, coverage, plain", "Got 'ema'"),
    ("method.mixing", "sums", "must be one of stale, fold, symmetric, running", "Got 'sums'"),
    ("method.mixing", 3, "must be a text", "Got 3"),
    ("method.momentum", 1.0, "must be at least 0 and below 1", "Got 1"),
    ("method.momentum", NAN, "must be at least 0 and below 1", "Got nan"),
    ("data.batch_size", 0, "must be between 1 and", "Got 0"),
    ("method.max_age", -1, "must be between 0 and", "Got -1"),
    ("method.compression", "zip", "must be one of none, top_k, random_k, quantize", "Got 'zip'"),
    ("method.compression_ratio", 0.0, "must be above 0 and at most 1", "Got 0"),
    ("method.compression_ratio", NAN, "must be above 0 and at most 1", "Got nan"),
    ("method.compression_bits", 3, "must be one of 2, 4, 8, 16", "Got 3"),
    ("method.consensus_step", 1.5, "must be above 0 and at most 1", "Got 1.5"),
    ("method.consensus_step", 0.5, "goes with compressed messages only", "Got 0.5"),
    ("step.kind", "cosine", "must be one of constant, decreasing, auto", "Got 'cosine'"),
    ("step.size", 0.0, "must be a positive, finite number", "Got 0"),
    ("step.size", INF, "must be a positive, finite number", "Got inf"),
    ("step.size", NAN, "must be a positive, finite number", "Got nan"),
    ("step.size", "big", "must be a number", "Got 'big'"),
    ("step.tau", -1.0, "must be a positive, finite number", "Got -1"),
    ("step.scale", 0.0, "must be a positive, finite number", "Got 0"),
    ("deadline.compute_s", "soon", "must be a number of seconds of at least 0", "Got 'soon'"),
    ("deadline.compute_s", -1.0, "must be a number of seconds of at least 0", "Got -1.0"),
    ("deadline.gossip_s", NAN, "must be a number of seconds of at least 0", "Got nan"),
    ("deadline.gossip_s", [], "must be a number or a text", "Got []"),
    ("deadline.poll_s", "x", "must be a number of seconds of at least 0", "Got 'x'"),
    ("deadline.poll_s", INF, "must be finite", "Got inf"),
    ("deadline.compute_factor", 0.0, "must be a positive, finite number", "Got 0"),
    ("deadline.gossip_factor", -1.0, "must be a finite number of at least 0", "Got -1"),
    ("deadline.shutdown_s", INF, "must be a positive, finite number", "Got inf"),
    ("stragglers.kind", "lazy", "must be one of none, bernoulli,", "Got 'lazy'"),
    ("stragglers.distribution", "normal", "must be one of exponential, pareto, constant", "Got 'normal'"),
    ("stragglers.factor", 0.5, "must be a finite number of at least 1", "Got 0.5"),
    ("stragglers.factor", INF, "must be a finite number of at least 1", "Got inf"),
    ("stragglers.factor", NAN, "must be a finite number of at least 1", "Got nan"),
    ("stragglers.work_s", -1.0, "must be a finite number of at least 0", "Got -1"),
    ("stragglers.delay_s", INF, "must be a finite number of at least 0", "Got inf"),
    ("stragglers.ranks", ["a"], "must be a whole number", "Got 'a'"),
    ("stragglers.ranks", 3, "must be a list", "Got 3"),
    ("stragglers.p", "often", "must be a number or a list", "Got 'often'"),
    ("stragglers.p", [0.1, "a"], "must be a number", "Got 'a'"),
    ("stragglers.link_p", [[0.1]], "must be a number", "Got [0.1]"),
    ("record.every", 0, "must be between 1 and", "Got 0"),
    ("record.optimum", "yes", "must be true or false", "Got 'yes'"),
]


@pytest.mark.parametrize(("key", "value", "rule", "shown"), WRONG, ids=[f"{w[0]}={w[1]!r:.20}" for w in WRONG])
def test_a_wrong_value_is_refused_with_parameter_rule_and_value(key, value, rule, shown):
    message = refusal(nested(key, value))
    assert message.startswith(key)
    assert rule in message
    assert shown in message


def test_an_edge_of_three_workers_is_told_that_an_edge_has_two():
    message = refusal(nested("topology.edges", [[0, 1, 2]]))
    assert message.startswith("topology.edges[0]")
    assert "2" in message.split("Got")[0].removeprefix("topology.edges[0]")


def test_steps_need_their_sizes():
    assert refusal({"step": {"kind": "constant"}}).startswith("step.size must be given with step.kind = 'constant'")
    assert refusal({"step": {"kind": "decreasing", "tau": 5}}).startswith("step.size must be given")
    assert refusal({"step": {"kind": "decreasing", "size": 1}}).startswith("step.tau must be given")


def test_heterogeneous_shards_must_not_be_mixed_again():
    message = refusal({"data": {"heterogeneity": 1.0}})
    assert "data.heterogeneity" in message
    assert "'in_order'" in message
    parse_config({"data": {"heterogeneity": 1.0, "partition": "in_order"}})


@pytest.mark.parametrize(
    ("raw", "key", "near"),
    [
        ({"round": 5}, "'round' at the top level", "rounds"),
        ({"stragler": {}}, "'stragler' at the top level", "stragglers"),
        ({"data": {"shard": 3}}, "'data.shard' in [data]", "shards"),
        ({"method": {"wieghts": "plain"}}, "'method.wieghts' in [method]", "weights"),
        ({"deadline": {"compute": 3}}, "'deadline.compute' in [deadline]", "compute_s"),
    ],
)
def test_an_unknown_key_is_refused_and_the_nearest_named(raw, key, near):
    message = refusal(raw)
    assert key in message
    assert near in message.partition("Did you mean")[2]


def test_a_key_that_is_no_text_is_unknown_too():
    assert refusal({1: 2}).startswith("Unknown key '1' at the top level. Known keys: ")


def test_a_key_like_no_other_lists_the_known_ones():
    message = refusal({"record": {"qqq": 1}})
    assert "Known keys: every, optimum" in message


PLAIN = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 9), st.floats(), st.sampled_from(["auto", "inf", "wait", "ring", "a\nb"])
)
VALUES = st.one_of(PLAIN, st.lists(PLAIN, max_size=2), st.lists(st.lists(PLAIN, max_size=3), max_size=2))
KEYS = [
    *("seed", "rounds"),
    *(f"{table}.{key}" for table, part in to_dict(RunConfig()).items() if isinstance(part, dict) for key in part),
]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(KEYS), VALUES)
def test_whatever_a_key_is_set_to_is_accepted_or_refused_in_one_line_that_names_it(key, value):
    try:
        parse_config(nested(key, value))
    except InputError as error:
        assert "\n" not in str(error)
        table, _, name = key.rpartition(".")
        # A value may break a rule between two keys; the message then names the table's other one.
        assert key in str(error) or f"{table}." in str(error)
        assert len(str(error)) > len(name) + 10


def write(tmp_path, text):
    path = tmp_path / "experiment.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("rounds=9", "rounds", 9),
        ("method.kind=dgd", "method.kind", "dgd"),
        ('method.kind="dgd"', "method.kind", "dgd"),
        (" objective.l2 = 0.5 ", "objective.l2", 0.5),
        ("stragglers.ranks=[1, 2]", "stragglers.ranks", (1, 2)),
        ("stragglers.p=[0, 0.5]", "stragglers.p", (0.0, 0.5)),
        ("stragglers.link_p=0.5", "stragglers.link_p", 0.5),
        ("data.standardize=true", "data.standardize", True),
        ("deadline.compute_s=inf", "deadline.compute_s", INF),
        ("deadline.gossip_s=auto", "deadline.gossip_s", "auto"),
        ("data.source=a=b.npz", "data.source", "a=b.npz"),
    ],
)
def test_override_replaces_the_value_of_the_file(tmp_path, override, key, value):
    path = write(tmp_path, "rounds = 3\n[method]\nkind = 'goco'\n")
    found = read_config(path, [override])
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value
    assert type(found) is type(value)


def test_the_last_override_of_a_key_counts(tmp_path):
    assert read_config(write(tmp_path, ""), ["rounds=3", "rounds=4"]).rounds == 4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rounds", "--set takes key=value, such as method.kind=dgd. Got 'rounds'"),
        ("=3", "--set takes key=value"),
        ("rounds.x=3", "'rounds' is a value, not a table"),
        ("method=3", "method must be a table. Got 3"),
        ("roundz=3", "Did you mean rounds"),
        ("rounds=many", "rounds must be a whole number. Got 'many'"),
        ("rounds=", "rounds must be a whole number. Got ''"),
    ],
)
def test_a_wrong_override_is_refused(tmp_path, override, message):
    with pytest.raises(InputError) as refused:
        read_config(write(tmp_path, "rounds = 3\n"), [override])
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"rounds = \n", b"[data\n", b"rounds = 1\nrounds = 2\n", b"\xff\xfe"])
def test_a_file_that_is_no_toml_is_refused_by_name(tmp_path, content):
    path = tmp_path / "experiment.toml"
    path.write_bytes(content)
    with pytest.raises(InputError, match="is not valid TOML") as refused:
        read_config(path)
    assert repr(str(path)) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_file_and_a_directory_are_refused_by_name(tmp_path):
    for path in (tmp_path / "gone.toml", tmp_path):
        with pytest.raises(InputError, match="cannot be read") as refused:
            read_config(path)
        assert repr(str(path)) in str(refused.value)


def test_a_data_path_is_looked_up_beside_the_experiment_file(tmp_path, monkeypatch):
    home = tmp_path / "home"
    (home / "sub").mkdir(parents=True)
    (home / "sub" / "data.npy").touch()
    (home / "sub" / "targets.npy").touch()
    path = write(home, "[data]\nsource = 'sub/data.npy'\ntargets = 'sub/targets.npy'\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    data = read_config(path).data
    assert (data.source, data.targets) == (str(home / "sub/data.npy"), str(home / "sub/targets.npy"))
    # The current directory comes first.
    (elsewhere / "sub").mkdir()
    (elsewhere / "sub" / "data.npy").touch()
    assert read_config(path).data.source == "sub/data.npy"


@pytest.mark.parametrize("name", cfg.NO_PATHS)
def test_a_file_named_like_a_bundled_set_does_not_shadow_it(tmp_path, monkeypatch, name):
    home = tmp_path / "home"
    (home / name).mkdir(parents=True)
    path = write(home, f"[data]\nsource = '{name}'\n")
    monkeypatch.chdir(tmp_path)
    assert read_config(path).data.source == name


def test_a_source_too_long_for_a_file_name_is_left_to_the_reader_of_the_data(tmp_path):
    path = write(tmp_path, f"[data]\nsource = '{'x' * 300}'\n")
    try:
        assert read_config(path).data.source == "x" * 300
    except InputError as error:
        assert "data.source" in str(error)


def test_uncoded_methods_say_so_in_the_config():
    for kind in ("dgd", "allreduce"):
        config = parse_config({"method": {"kind": kind}, "placement": {"replication": 3}})
        assert (config.placement.kind, config.placement.replication) == ("uncoded", 1)
        assert config.method.weights == "plain"
    config = parse_config({"placement": {"kind": "uncoded", "replication": 3}})
    assert config.placement.replication == 1
    assert config.method.weights == "coverage"


def test_whoever_waits_has_no_deadlines():
    waiting = parse_config({"method": {"late": "wait"}, "deadline": {"compute_s": 1.0, "gossip_s": "auto"}})
    assert (waiting.deadline.compute_s, waiting.deadline.gossip_s) == (INF, INF)
    collective = parse_config({"method": {"kind": "allreduce"}})
    assert collective.method.late == "wait"
    assert collective.deadline.compute_s == INF
    prompt = parse_config({"method": {"kind": "dgd"}, "deadline": {"compute_s": 1.5}})
    assert (prompt.method.late, prompt.deadline.compute_s, prompt.deadline.gossip_s) == ("discard", 1.5, "auto")


SOUND = {
    "goco": ["stale", "fold", "symmetric", "running"],
    "dgd": ["stale", "fold", "symmetric", "running"],
    "push_pull": ["fold", "stale", "symmetric"],
    "exact_diffusion": ["symmetric"],
}
"""The mixing rules of each method that mixes, the default first."""
WAITS = {"deadline": {"gossip_s": INF}}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", SOUND)
def test_a_method_takes_the_rules_that_are_sound_with_it_and_refuses_the_others_with_a_reason(kind, rule):
    raw = {"method": {"kind": kind, "mixing": rule}, **WAITS}
    if rule in SOUND[kind]:
        assert parse_config(raw).method.mixing == rule
        return
    message = refusal(raw)
    assert message.startswith(f"method.mixing = '{rule}' is not sound with method.kind = '{kind}': ")
    reasons = {
        "running": "running sums carry the parameters of 'goco' and 'dgd' alone",
        "stale": "an older",
        "fold": "one may",
    }
    assert reasons[rule] in message
    assert message.endswith(f"Use {' or '.join(map(repr, SOUND[kind]))}.")


@pytest.mark.parametrize("kind", SOUND)
def test_without_a_mixing_rule_it_is_the_methods_own(kind):
    assert parse_config({"method": {"kind": kind}, **WAITS}).method.mixing == SOUND[kind][0]


@pytest.mark.parametrize("rule", [None, *RULES])
@pytest.mark.parametrize("kind", ["allreduce", "table_newton"])
def test_a_method_that_does_not_mix_has_no_rule_and_does_not_become_another(kind, rule):
    raw = {"method": {"kind": kind}, "topology": {"kind": "complete"}}
    if rule is not None:
        raw["method"]["mixing"] = rule
    config = parse_config(raw)
    assert config.method.mixing is None
    layout = lay_out(config, 4)
    assert layout.method is METHODS[kind]
    assert not layout.stragglers.paired_links


@pytest.mark.parametrize("kind", ["goco", "dgd"])
def test_running_sums_take_the_place_of_the_method_that_they_carry(kind):
    layout = lay_out(parse_config({"method": {"kind": kind, "mixing": "running", "rates": "stated"}}), 4)
    assert layout.method is RUNNING_SUMS
    assert layout.placement.replication.tolist() == [2 if kind == "goco" else 1] * 16
    assert lay_out(parse_config({"method": {"kind": kind, "rates": "stated"}}), 4).method is METHODS[kind]


@pytest.mark.parametrize("compression", ["top_k", "random_k", "quantize"])
def test_compression_is_of_parameters_that_may_be_old(compression):
    method = {"compression": compression, "consensus_step": 0.5}
    for kind in ("goco", "dgd"):
        config = parse_config({"method": {**method, "kind": kind}})
        assert config.method.mixing == "stale"
        assert isinstance(lay_out(config, 4).method, CompressedGossip)
    for rule, reason in (("fold", "nothing old"), ("symmetric", "must cancel"), ("running", "Of running sums")):
        message = refusal({"method": {**method, "mixing": rule}, **WAITS})
        assert message.startswith(f"method.mixing = '{rule}' is not sound with method.compression = '{compression}': ")
        assert reason in message
        assert message.endswith("Use 'stale'.")
    for kind in ("push_pull", "exact_diffusion", "table_newton", "allreduce"):
        message = refusal({"method": {**method, "kind": kind}, "topology": {"kind": "complete"}, **WAITS})
        assert message.startswith(f"method.compression = '{compression}' is not sound with method.kind = '{kind}'")
        assert message.endswith("Use 'none', or method.kind = 'goco' or 'dgd'.")


@pytest.mark.parametrize("kind", ["goco", "exact_diffusion"])
@pytest.mark.parametrize("gossip_s", ["auto", 0.5, 0.0])
def test_the_symmetric_rule_needs_ranks_that_wait(kind, gossip_s):
    method = {"kind": kind, "mixing": "symmetric"}
    message = refusal({"method": method, "deadline": {"gossip_s": gossip_s}})
    assert message.startswith(
        "method.mixing = 'symmetric' needs deadline.gossip_s = inf: by a deadline no rank can know"
    )
    assert f"Got {gossip_s!r}." in message
    # Waiting for messages is enough: gradients may be late.
    assert parse_config({"method": method, "deadline": {"gossip_s": "inf"}}).deadline.compute_s == "auto"
    waiting = parse_config({"method": {**method, "late": "wait"}, "deadline": {"gossip_s": gossip_s}})
    assert waiting.deadline.gossip_s == INF
    assert lay_out(waiting, 4).stragglers.paired_links


@pytest.mark.parametrize(
    ("kind", "late"), [("goco", "discard"), ("push_pull", "discard"), ("table_newton", "memory"), ("allreduce", "wait")]
)
def test_what_a_late_gradient_is_worth_is_up_to_the_method_where_it_is_left_open(kind, late):
    for chosen in ({}, {"late": "auto"}):
        raw = {"method": {"kind": kind, **chosen}, "topology": {"kind": "complete"}}
        assert parse_config(raw).method.late == late


@pytest.mark.parametrize("kind", ["push_pull", "exact_diffusion", "table_newton"])
def test_whoever_remembers_whole_gradients_refuses_parts(kind):
    raw = {"method": {"kind": kind, "late": "partial"}, "topology": {"kind": "complete"}, **WAITS}
    message = refusal(raw)
    assert message.startswith(f"method.late = 'partial' is not sound with method.kind = '{kind}'")
    assert message.endswith("Use 'memory' or 'discard'.")
    for late in ("memory", "discard", "wait"):
        raw["method"]["late"] = late
        assert parse_config(raw).method.late == late


@pytest.mark.parametrize("graph", [kind for kind in topology.KINDS if kind not in ("complete", "rook")])
def test_a_table_of_gradients_needs_a_complete_graph_or_rows_and_columns(graph):
    message = refusal({"method": {"kind": "table_newton"}, "topology": {"kind": graph}})
    assert message.startswith("method.kind = 'table_newton' needs topology.kind = 'complete' or 'rook'")
    assert f"Got '{graph}'." in message
    assert "'push_pull'" in message


def test_a_lost_shard_is_not_gone_on_without_where_a_table_keeps_it():
    raw = {"method": {"kind": "table_newton"}, "topology": {"kind": "complete"}, "stop": {"on_lost_shard": "continue"}}
    assert "on_lost_shard = 'continue' is not sound with method.kind = 'table_newton'" in refusal(raw)
    assert "stop.on_lost_shard must be one of stop, continue." in refusal({"stop": {"on_lost_shard": "hope"}})


def test_a_gradient_norm_is_not_read_off_newton_steps():
    raw = {"method": {"kind": "table_newton"}, "topology": {"kind": "complete"}, "stop": {"gradient_norm": 0.25}}
    message = refusal(raw)
    assert message.startswith("stop.gradient_norm does not go with method.kind = 'table_newton'")
    assert "Got 0.25. Use stop.target_loss." in message
    parse_config({**raw, "stop": {"target_loss": 0.25}})
    parse_config({**raw, "method": {"kind": "push_pull"}})


def test_momentum_is_refused_where_moves_are_no_steps():
    method = {"momentum": 0.75, "rates": "stated"}
    for kind in ("goco", "dgd"):
        layout = lay_out(parse_config({"method": {**method, "kind": kind}}), 4)
        assert isinstance(layout.method, QuasiGlobalMomentum) and layout.method.beta == 0.75
    for other in (
        {"method": {**method, "kind": "push_pull"}},
        {"method": {**method, "kind": "allreduce"}},
        {"method": {**method, "mixing": "running"}},
        {"method": {**method, "compression": "top_k"}},
    ):
        message = refusal(other)
        assert message.startswith("method.momentum") and "Got 0.75" in message
    assert "Use stop.target_loss." in refusal({"method": method, "stop": {"gradient_norm": 0.1}})


def test_newton_steps_refuse_minibatches_and_the_others_take_them():
    raw = {"data": {"batch_size": 7}, "topology": {"kind": "complete"}, **WAITS}
    message = refusal({**raw, "method": {"kind": "table_newton"}})
    assert message.startswith("data.batch_size is not sound with method.kind = 'table_newton'")
    assert "Got 7." in message and message.endswith("use method.kind = 'goco'.")
    for kind in ("goco", "dgd", "allreduce", "push_pull", "exact_diffusion"):
        assert parse_config({**raw, "method": {"kind": kind}}).data.batch_size == 7


ROUND_TRIPS = [
    {"data": {"batch_size": 3}},
    {"method": {"momentum": 0.5}},
    {},
    {"method": {"kind": "dgd"}},
    {"method": {"kind": "allreduce"}},
    {"method": {"kind": "push_pull"}},
    {"method": {"mixing": "running"}},
    {"method": {"kind": "exact_diffusion"}, "deadline": {"gossip_s": INF}},
    {"method": {"compression": "quantize", "compression_bits": 4, "consensus_step": 0.25}},
    {"method": {"kind": "table_newton"}, "topology": {"kind": "complete"}},
    {"method": {"late": "wait"}},
    {"deadline": {"compute_s": 0.5, "gossip_s": INF}},
    {
        "topology": {"kind": "edges", "edges": [[0, 1]]},
        "stragglers": {"ranks": [0], "p": [0.1, 0.5], "link_p": [0, 0.9]},
    },
]


@pytest.mark.parametrize("raw", ROUND_TRIPS)
def test_config_as_plain_tables_is_strict_json_and_spells_infinity(raw):
    config = parse_config(raw)
    tables = json.loads(json.dumps(to_dict(config), allow_nan=False))
    assert set(tables) == set(RunConfig.__struct_fields__)
    assert (tables["deadline"]["gossip_s"] == "inf") == (config.deadline.gossip_s == INF)


@pytest.mark.parametrize("raw", ROUND_TRIPS)
def test_recorded_tables_parse_to_the_same_config(raw):
    config = parse_config(raw)
    tables = json.loads(json.dumps(to_dict(config)))
    for key, value in tables["deadline"].items():
        if value == "inf":  # JSON's spelling; TOML has inf itself
            tables["deadline"][key] = INF
    assert parse_config(tables) == config


def test_replace_leaves_the_original_alone():
    section = schema.StepConfig()
    changed = schema.replace(section, size=2.0)
    assert (changed.size, section.size) == (2.0, None)
    with pytest.raises(AttributeError):
        section.size = 1.0


@pytest.mark.parametrize(
    ("method", "stragglers", "rates"),
    [
        ({}, "none", "ema"),
        ({}, "slow", "stated"),
        ({"late": "partial"}, "none", "ema"),
        ({"late": "memory"}, "none", "live"),
        ({"late": "wait"}, "none", "stated"),
        ({"weights": "plain"}, "none", "stated"),
        ({"kind": "push_pull"}, "none", "stated"),
        ({"kind": "dgd"}, "none", "stated"),
        ({"rates": "counted"}, "slow", "counted"),
    ],
)
def test_rates_are_observed_where_nobody_states_them(method, stragglers, rates):
    assert parse_config({"method": method, "stragglers": {"kind": stragglers}}).method.rates == rates


@pytest.mark.parametrize(
    ("method", "why"),
    [
        ({"kind": "push_pull"}, "whose weights stay as they are"),
        ({"kind": "dgd"}, "whose weights stay as they are"),
        ({"weights": "plain"}, "under which no rate matters"),
        ({"late": "wait"}, "under which no rate matters"),
        ({"late": "memory"}, "last gradient counts in every round"),
    ],
)
def test_observed_rates_are_refused_where_they_mean_nothing(method, why):
    with pytest.raises(InputError, match=rf"method.rates = 'ema' .*{why}"):
        parse_config({"method": {**method, "rates": "ema"}})


@pytest.mark.parametrize("method", [{"kind": "exact_diffusion"}, {"gossip_rounds": 3}], ids=str)
def test_methods_whose_ranks_go_in_step_are_kept_by_rounds(method: dict[str, Any]) -> None:
    raw = {"method": method, "deadline": {"gossip_s": math.inf}}
    with pytest.raises(InputError, match=r"checkpoint\.every_s goes with .*Use checkpoint\.every"):
        parse_config({**raw, "checkpoint": {"every_s": 60.0}})
    assert parse_config({**raw, "checkpoint": {"every": 60}}).checkpoint.every == 60


@pytest.mark.parametrize("table", [{"every": 0}, {"every_s": 0.0}, {"every_s": math.inf}, {"keep": 0}], ids=str)
def test_checkpoints_need_sizes_of_their_own(table: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"checkpoint\.{next(iter(table))} must be"):
        parse_config({"checkpoint": table})
