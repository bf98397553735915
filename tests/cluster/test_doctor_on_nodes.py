"""What the doctor says of nodes with a network between them, one of which is far away."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from nodes import Nodes, missing

pytestmark = pytest.mark.cluster

LIMIT_S = 60.0


def test_the_doctor_finds_the_node_that_is_far_away(
    need: Callable[[str | None], None], mpiexec: list[str], tmp_path: Path
) -> None:
    need(missing())
    output = tmp_path / "log"
    # A short name: the table would break the line of a long one.
    with tempfile.TemporaryDirectory(prefix="goco-") as place, Nodes(5) as nodes:
        nodes.impair(2, delay_s=0.02)
        goco = [sys.executable, "-m", "goco_mpi", "info", "--check", "--ranks", "5", "--out", f"{place}/out"]
        code = nodes.start(mpiexec, goco, output).wait(LIMIT_S)
        assert not list(Path(place).iterdir())
    said = output.read_text()
    assert code == 0, said
    assert "5 nodes, 1 a node" in said
    assert "all nodes see it" in said
    # The delay is that of either link of the node, and much more than that of those between the others.
    [advice] = [line for line in said.splitlines() if line.startswith("advice, slowest between nodes")]
    assert "repair" in advice
    [row] = [line for line in said.splitlines() if "slowest between nodes" in line and line != advice]
    assert "(node2)" in row
