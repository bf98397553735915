"""``goco jobscript``: the text that it prints. Whether schedulers and shells take it: tests/cluster."""

from __future__ import annotations

import runpy
import shlex
import subprocess
from pathlib import Path

import pytest

from goco_mpi.cli import main
from goco_mpi.errors import InputError
from goco_mpi.jobscripts.job import Job, Run, clock, parse_time

JOBSCRIPTS = Path(__file__).resolve().parent.parent / "jobscripts"
RENDERER = runpy.run_path(str(JOBSCRIPTS / "render.py"))
EXPERIMENT = """\
rounds = 5
[data]
source = "synthetic"
n_samples = 64
shards = 8
[objective]
kind = "least_squares"
"""
SWEEP = """\
workers = 4
mode = "mpi"
[base]
rounds = 5
[grid]
seed = [0, 1, 2]
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "small.toml").write_text(EXPERIMENT)
    (tmp_path / "sweep.toml").write_text(SWEEP)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def jobscript(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Return the script that the command prints."""
    code = main(["jobscript", *words])
    printed, said = capsys.readouterr()
    assert (code, said) == (0, "")
    return printed


def directives(script: str) -> list[str]:
    lines = script.splitlines()[2:]
    return [line.split(" ", 1)[1] for line in lines[: lines.index("")]]


@pytest.mark.parametrize("job", RENDERER["JOBS"])
@pytest.mark.parametrize("scheduler", RENDERER["SCHEDULERS"])
def test_the_scripts_in_the_repository_are_what_the_command_prints(scheduler: str, job: str) -> None:
    path = JOBSCRIPTS / scheduler / f"{job}.sh"
    assert path.read_text() == RENDERER["render"](scheduler, job), "make jobscripts renders them anew"
    assert path.stat().st_mode & 0o111


def test_there_are_no_other_scripts_in_the_repository() -> None:
    found = {str(path.relative_to(JOBSCRIPTS)) for path in JOBSCRIPTS.glob("*/*.sh")}
    assert found == {f"{scheduler}/{job}.sh" for scheduler in RENDERER["SCHEDULERS"] for job in RENDERER["JOBS"]}


# What is asked of each scheduler beside --nodes 4, and what it is told for that.
TOLD: dict[str, tuple[str, list[str]]] = {
    "slurm, one rank a node and a word before the end": (
        "slurm small.toml",
        ["--nodes=4", "--ntasks-per-node=1", "--exclusive", "--time=01:00:00", "--signal=B:USR1@120", "--no-requeue"],
    ),
    "slurm, days": ("slurm small.toml --time 2-00:00:30", ["--time=48:00:30"]),
    "slurm, cores": ("slurm small.toml --cores 16", ["--cpus-per-task=16"]),
    "slurm, again": ("slurm small.toml --requeue", ["--requeue", "--open-mode=append"]),
    "slurm, chain": ("slurm small.toml --chain 3", ["--array=1-3%1", "--output=%x-%A_%a.out"]),
    "slurm, array": ("slurm sweep.toml --array sweep", ["--array=0-2"]),
    "slurm, more": ("slurm small.toml --directive=--qos=low --directive=-C=fast", ["--qos=low", "-C=fast"]),
    "pbs, one rank a node": (
        "pbs small.toml",
        ["-l select=4:mpiprocs=1", "-l place=scatter:exclhost", "-l walltime=01:00:00", "-r n", "-N small"],
    ),
    "pbs, cores": ("pbs small.toml --cores 16", ["-l select=4:ncpus=16:mpiprocs=1"]),
    "pbs, chain": ("pbs small.toml --chain 3", ["-J 1-3%1", "-r y"]),
    "pbs, array": ("pbs sweep.toml --array sweep", ["-J 0-2", "-r y"]),
    "lsf, one rank a node and a word before the end": (
        "lsf small.toml",
        ["-n 4", '-R "span[ptile=1]"', "-x", "-W 01:00", "-wa USR1", "-wt 2", "-rn", '-J "small"'],
    ),
    "lsf, whole minutes": ("lsf small.toml --time 00:10:01", ["-W 00:11"]),
    "lsf, cores": ("lsf small.toml --cores 16", ['-R "affinity[core(16)]"']),
    "lsf, again": ("lsf small.toml --requeue", ["-r", '-Q "all ~0 ~1 ~2"']),
    "lsf, chain": ("lsf small.toml --chain 3", ['-J "small[1-3]%1"', "-o small-%J_%I.out"]),
    "lsf, array": ("lsf sweep.toml --array sweep", ['-J "sweep[1-3]"']),
}


@pytest.mark.parametrize("name", TOLD)
def test_a_scheduler_is_told(here: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    words, expected = TOLD[name]
    found = directives(jobscript(capsys, *words.split(), "--nodes", "4"))
    assert [line for line in expected if line not in found] == []


@pytest.mark.parametrize("scheduler", RENDERER["SCHEDULERS"])
def test_what_was_not_asked_for_is_not_told(here: Path, capsys: pytest.CaptureFixture[str], scheduler: str) -> None:
    text = "\n".join(directives(jobscript(capsys, scheduler, "small.toml", "--nodes", "4")))
    for word in ("array", "-J 0", "[1-", "cpus-per-task", "ncpus", "affinity", "-Q"):
        assert word not in text


# What is asked for, and what is then in the script, or not.
SAID: dict[str, tuple[str, list[str], list[str]]] = {
    "srun": (
        "slurm small.toml",
        ["srun --mpi=pmi2 ", "--kill-on-bad-exit=1", '--ranks "$ranks" --resume', "train 4 small.toml runs/small"],
        ["mpiexec", "GOCO_JOB_END_TIME", "scontrol"],
    ),
    "srun with Open MPI": ("slurm small.toml --mpi pmix", ["srun --mpi=pmix "], ["pmi2"]),
    "mpiexec under Slurm": ("slurm small.toml --launcher mpiexec", ['mpiexec -n "$ranks"', "$out.stop"], ["srun"]),
    "nodes of PBS": ("pbs small.toml", ['mpiexec --hostfile "$PBS_NODEFILE"', "+ 3600"], ["srun"]),
    "nodes of LSF": (
        "lsf small.toml",
        ['mpiexec --hostfile "$LSB_DJOB_HOSTFILE"', "+ 3600", "PRTE_MCA_plm_ssh_agent=blaunch"],
        ["srun"],
    ),
    "settings": ("pbs small.toml --set seed=3", ["train 4 small.toml runs/small --set seed=3\n"], []),
    "place": ("pbs small.toml --out /data/a", ["train 4 small.toml /data/a\n"], []),
    "image": (
        "slurm small.toml --container apptainer goco.sif",
        ['"$ranks" apptainer exec --bind "$PWD" goco.sif goco run', "launch 4 apptainer"],
        [],
    ),
    "strong": (
        "slurm small.toml --scaling strong --nodes 6",
        [f"train {n} small.toml runs/small/{n}" for n in (1, 2, 4, 6)],
        ["train 3", "n_samples"],
    ),
    "weak": (
        "slurm small.toml --scaling weak --nodes 2",
        ["runs/small/2 --set data.n_samples=128 --set data.shards=16\n"],
        ["train 4"],
    ),
    "failure": ("slurm small.toml --requeue", ['scontrol requeue "$SLURM_JOB_ID"', "-lt 5"], []),
    "sweep": (
        "lsf sweep.toml --array sweep",
        ["sweep.toml --out runs/sweep --member $((LSB_JOBINDEX - 1))", 'runs/sweep/runs/"$member"'],
        [],
    ),
}


@pytest.mark.parametrize("name", SAID)
def test_a_script_says(here: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    words, present, absent = SAID[name]
    nodes = [] if "--nodes" in words else ["--nodes", "4"]
    script = jobscript(capsys, *words.split(), *nodes)
    for text in present:
        assert text in script
    for text in absent:
        assert text not in script


def test_the_second_line_renders_the_script_again(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = jobscript(capsys, "slurm", "small.toml", "--nodes", "2", "--directive=--comment=a b", "--set", "seed=3")
    words = shlex.split(script.splitlines()[1].removeprefix("# goco "))
    assert jobscript(capsys, *words[1:]) == script


# What is given after --nodes 4, and words that the message must have.
REFUSED: dict[str, tuple[str, list[str]]] = {
    "no such experiment": ("slurm missing.toml", ["missing.toml", "No such file"]),
    "an experiment that is not valid": ("slurm small.toml --set method.kindd=dgd", ["method.kindd", "kind"]),
    "one that does not fit the nodes": ("pbs small.toml --set placement.replication=5", ["replication", "5"]),
    "one that fits the nodes and not fewer": (
        "pbs small.toml --scaling strong --set placement.replication=3",
        ["replication", "3"],
    ),
    "no nodes": ("slurm small.toml --nodes 0", ["--nodes", "between 1", "Got 0"]),
    "minutes or hours": ("slurm small.toml --time 30:00", ["--time", "HH:MM:SS", "'30:00'"]),
    "seconds above 59": ("slurm small.toml --time 00:10:60", ["--time", "HH:MM:SS"]),
    "no time to stop": ("slurm small.toml --time 00:03:59", ["--time", "240", "239"]),
    "srun elsewhere": ("pbs small.toml --launcher srun", ["--launcher", "pbs", "mpiexec", "'srun'"]),
    "what srun speaks elsewhere": ("lsf small.toml --mpi pmix", ["--mpi", "srun"]),
    "another container": ("slurm small.toml --container docker image", ["--container", "apptainer", "'docker'"]),
    "a directive that is none": ("slurm small.toml --directive partition", ["--directive", "'partition'"]),
    "a chain of none": ("slurm small.toml --chain 0", ["--chain", "Got 0"]),
    "a chain of a sweep": ("slurm sweep.toml --array sweep --chain 2", ["--chain", "--array"]),
    "settings of a sweep": ("slurm sweep.toml --array sweep --set seed=1", ["--array", "--set"]),
    "no cores": ("pbs small.toml --cores 0", ["--cores", "Got 0"]),
    "a sweep as an experiment": ("slurm sweep.toml", ["workers"]),
    "a sweep of another size": ("slurm sweep.toml --array sweep --nodes 8", ["workers", "8", "has 4"]),
    "data that do not grow": ("slurm digits.toml --scaling weak", ["synthetic", "'digits'"]),
    "a simulated sweep": ("slurm simulated.toml --array sweep", ["mode", "mpi"]),
    "a sweep of one": ("slurm one.toml --array sweep", ["two members", "one"]),
    "a member that is refused": ("slurm bad.toml --array sweep", ["Member 1", "replication"]),
    "a member that is no experiment": ("slurm worse.toml --array sweep", ["Member 1", "step.scale"]),
    "members that are the same": ("slurm twice.toml --array sweep", ["same run"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(here: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (here / "digits.toml").write_text("rounds = 5\n")
    (here / "simulated.toml").write_text(SWEEP.replace('"mpi"', '"simulate"'))
    (here / "one.toml").write_text(SWEEP.replace("[0, 1, 2]", "[0]"))
    (here / "twice.toml").write_text(SWEEP.replace("[0, 1, 2]", "[0, 1, 1]"))
    (here / "bad.toml").write_text(SWEEP.replace("seed = [0, 1, 2]", "placement.replication = [1, 0]"))
    (here / "worse.toml").write_text(SWEEP.replace("seed = [0, 1, 2]", "step.scale = [1.0, 0.0]"))
    words, expected = REFUSED[name]
    nodes = [] if "--nodes" in words else ["--nodes", "4"]
    assert main(["jobscript", *words.split(), *nodes]) == 2
    printed, said = capsys.readouterr()
    assert printed == ""
    assert len(said.splitlines()) == 1
    for word in expected:
        assert word in said


@pytest.mark.parametrize("option", ["--prologue", "--directive", "--out", "--set", "--container"])
def test_a_second_line_cannot_be_smuggled_into_a_script(
    here: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    value = {"--set": 'data.source="a\nb"', "--directive": "--comment=a\n#SBATCH --wrap=b"}.get(option, "a\nb")
    words = ["apptainer", value] if option == "--container" else [value]
    given = [f"{option}={value}"] if option == "--directive" else [option, *words]
    assert main(["jobscript", "slurm", "small.toml", "--nodes", "2", *given]) == 2
    printed, said = capsys.readouterr()
    assert printed == ""
    assert option in said or "TOML" in said or "data.source" in said


def test_a_job_is_checked_however_it_is_made() -> None:
    with pytest.raises(InputError, match="EXPERIMENT must be one line"):
        Job("goco", "a\nb", "a", 1, (Run(1, "out"),))


@pytest.mark.parametrize(
    "text", ["", "1", "01:00", "1:2:3", "00:60:00", "-1:00:00", "1-2-00:00:00", "00:00:00\n", "\u0661:00:00"]
)
def test_a_time_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="HH:MM:SS"):
        parse_time(text)


@pytest.mark.parametrize(("text", "seconds"), [("00:00:00", 0), ("100:00:01", 360001), ("1-01:00:00", 90000)])
def test_a_time_is_read_and_said_again(text: str, seconds: int) -> None:
    assert parse_time(text) == seconds
    assert parse_time(clock(seconds)) == seconds


@pytest.mark.parametrize("path", sorted(JOBSCRIPTS.glob("**/*.sh")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_bash_reads_every_script(path: Path) -> None:
    subprocess.run(["bash", "-n", path], check=True)
