"""How different the shards are, found by their owners and in one process."""

import pytest

from goco_mpi.config import parse_config
from goco_mpi.engine import evaluate
from goco_mpi.engine.loading import load
from goco_mpi.experiment import lay_out
from goco_mpi.problem import load_problem

pytestmark = pytest.mark.mpi


@pytest.mark.parametrize("partition", ["iid", "by_label", "dirichlet"])
def test_ranks_find_the_dissimilarity_that_one_process_finds(session, partition):
    config = parse_config({"data": {"source": "digits", "shards": 11, "partition": partition}})
    share, _ = load(session, lay_out(config, session.size))
    found = evaluate.gradient_dissimilarity(session, share, 11)
    assert found == pytest.approx(load_problem(config).gradient_dissimilarity(), rel=1e-12)
