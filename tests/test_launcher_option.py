"""The launcher of ``--mpiexec``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from goco_mpi.cli import main
from goco_mpi.commands import launcher


@pytest.mark.parametrize("given", ["'", "", " "])
@pytest.mark.parametrize("command", [["bench", "exchange"], ["sweep", "sweep.toml"]])
def test_what_is_no_command_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str], given: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sweep.toml").write_text('workers = 2\nbase = {}\ngrid = {"seed" = [0]}\n')
    assert main([*command, "--mpiexec", given]) == 2
    said = capsys.readouterr().err
    assert said.startswith("goco: --mpiexec must be a command")
    assert said.count("\n") == 1


def test_the_launcher_beside_this_python_is_taken_wherever_that_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "with a space"
    directory.mkdir()
    monkeypatch.setattr(sys, "executable", str(directory / "python"))
    assert launcher.words(None) == ["mpiexec"]
    (directory / "mpiexec").touch()
    assert launcher.words(None) == [str(directory / "mpiexec")]
