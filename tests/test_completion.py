"""``goco completion``: what bash offers for the beginning of a command line."""

from __future__ import annotations

import subprocess
import sys

import pytest

from goco_mpi.cli import main, parser

ASK = '. ./goco.bash; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _shtab_goco; printf "%s\\n" "${COMPREPLY[@]}"'


@pytest.fixture(scope="module")
def offered(tmp_path_factory: pytest.TempPathFactory):
    directory = tmp_path_factory.mktemp("shell")
    command = [sys.executable, "-m", "goco_mpi", "completion", "bash"]
    script = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (directory / "goco.bash").write_text(script)
    (directory / "mine.toml").touch()
    (directory / "mine").mkdir()

    def offered(*words: str) -> set[str]:
        done = subprocess.run(
            ["bash", "-c", ASK, "bash", "goco", *words], cwd=directory, capture_output=True, text=True, check=True
        )
        assert done.stderr == ""
        return set(done.stdout.split())

    return offered


def test_every_command_is_offered(offered) -> None:
    (commands,) = (action.choices for action in parser()._actions if isinstance(action.choices, dict))
    assert offered("") >= set(commands) - {"bench-rank"}
    assert offered("ca") == {"calibrate"}


def test_options_and_choices_are_offered(offered) -> None:
    assert offered("run", "--re") == {"--resume"}
    assert offered("jobscript", "s") == {"slurm"}


def test_keys_of_the_experiment_file_are_offered(offered) -> None:
    assert offered("run", "mine.toml", "--set", "placement.") == {"placement.kind=", "placement.replication="}
    assert {"seed=", "data.source="} <= offered("simulate", "--set", "")


def test_files_and_directories_are_offered_where_they_are_meant(offered) -> None:
    assert offered("run", "min") == {"mine", "mine.toml"}
    assert offered("replay", "min") == {"mine"}


def test_a_script_for_zsh_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "zsh"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("#compdef goco")
    assert "placement.replication=" in printed


def test_without_shtab_it_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert capsys.readouterr().err == "goco: goco completion needs shtab: pip install 'goco-mpi[completion]'.\n"


def test_the_command_line_imports_nothing_for_it() -> None:
    program = "import sys, goco_mpi.cli; goco_mpi.cli.parser(); print('shtab' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
