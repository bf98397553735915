"""What is said of a run's progress where there is no terminal."""

import pytest

from goco_mpi import progress


@pytest.mark.parametrize("first", [1, 801])
def test_the_rate_is_that_of_the_rounds_made_here(first, monkeypatch, capsys):
    """A run that is resumed begins with a later round, and every run reads its data before the first."""
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with progress.Progress(1000, quiet=False) as shown:
        now += 60.0  # data
        shown(first)
        now += 11.0
        shown(first + 22)
    said = capsys.readouterr().err.splitlines()
    assert said == [f"round {first} of 1000", f"round {first + 22} of 1000, 2 rounds/s"]
