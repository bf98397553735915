"""A running job as `goco watch` shows it: what follows from what its ranks say of themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from goco_mpi.status import JobStatus, RankStatus

if TYPE_CHECKING:
    from rich.console import RenderableType

SILENT_PERIODS = 5.0
"""Periods after which a rank that says nothing is silent."""
LEAST_SILENT_S = 5.0
"""Seconds that network file systems may keep something to themselves."""
SLOW = 0.5
"""A rank that goes through fewer gradients a second than this part of the median rank's is slow."""
MOST_ROWS = 24
"""Ranks in the table: of more, those that are most worth a look."""
STUCK_S = 10.0
"""Seconds in one round that are worth telling, and more than so many rounds' time."""
STUCK_ROUNDS = 20.0


@dataclass(frozen=True)
class RankView:
    """A rank.

    Attributes
    ----------
    rank : int
    host, state : str
        ``running``, ``ended``, ``silent``, or ``not heard of``.
    round : int
    rounds_per_s, gradients_per_s, waiting : float
        Since the look before, and since its start at the first; NaN where not known, as the last two at a first look
        at a run that went on from a checkpoint: what had been done by then is only known in rounds.
    late : int
        Gradients that were.
    silent_s : float
        Since it was heard of.
    in_round_s : float
        That its thread has seen it in one round.
    suspected_by : int
        Neighbours that do not wait for it.
    slow : bool
    """

    rank: int
    host: str
    state: str
    round: int
    rounds_per_s: float
    gradients_per_s: float
    waiting: float
    late: int
    silent_s: float
    in_round_s: float
    suspected_by: int
    slow: bool = False

    @property
    def trouble(self) -> str:
        """What is the matter with it, in words; empty if nothing."""
        if self.state == "not heard of":
            return "not heard of yet"
        words = []
        if self.state == "silent":
            words.append(f"silent for {duration(self.silent_s)}")
        if self.in_round_s > 0.0:
            words.append(f"in round {self.round} for {duration(self.in_round_s)}")
        if self.slow:
            words.append("slow")
        if self.suspected_by:
            words.append(f"suspected by {self.suspected_by}")
        return ", ".join(words)


@dataclass(frozen=True)
class View:
    """A job at one moment.

    Attributes
    ----------
    job : dict
    ranks : sequence of RankView
    round : int
        Of the median rank that lives.
    rounds_per_s : float
        Likewise.
    left_s : float
        For the rounds that are left; NaN where not known.
    loss : float
        Estimate: the sum of what all ranks said last, each at its own parameters; NaN where one has said nothing.
    n_losses : int
        Ranks that have.
    """

    job: dict[str, Any]
    ranks: Sequence[RankView]
    round: int
    rounds_per_s: float
    left_s: float
    loss: float
    n_losses: int


def view(now: JobStatus, before: JobStatus | None, time_s: float) -> View:
    """Return a job at one moment.

    Parameters
    ----------
    now : JobStatus
    before : JobStatus or None
        At the look before: rates are since then.
    time_s : float
        Seconds since the epoch. Of the file system's clock only differences between ranks count, unless all are silent.
    """
    n_ranks = int(now.job["n_ranks"])
    suspects = [suspect for rank in now.ranks.values() for suspect in rank.said.get("suspects", [])]
    # Clocks may differ: the rank that was heard of last was heard of now, unless that cannot be.
    newest = max((rank.time_s for rank in now.ranks.values()), default=time_s)
    limit_s = max(SILENT_PERIODS * float(now.job.get("period_s", 1.0)), LEAST_SILENT_S)
    reference = time_s if time_s - newest > limit_s else newest
    found = []
    for rank, first_round in enumerate(now.job.get("first_rounds", [0] * n_ranks)):
        earlier = None if before is None else before.ranks.get(rank)
        found.append(_rank(rank, now.ranks.get(rank), earlier, first_round, reference, limit_s, suspects.count(rank)))
    found = _with_slow(found)
    running = [rank for rank in found if rank.state == "running"] or [rank for rank in found if rank.round >= 0]
    round_ = round(float(np.median([rank.round for rank in running]))) if running else 0
    rates = [rank.rounds_per_s for rank in running if not math.isnan(rank.rounds_per_s)]
    rate = float(np.median(rates)) if rates else math.nan
    left = max(int(now.job["rounds"]) - round_, 0)
    losses = [rank.said["loss"] for rank in now.ranks.values() if "loss" in rank.said]
    return View(
        job=now.job,
        ranks=found,
        round=round_,
        rounds_per_s=rate,
        left_s=left / rate if rate > 0.0 else math.nan,
        loss=float(sum(losses)) if len(losses) == n_ranks else math.nan,
        n_losses=len(losses),
    )


def _rank(
    rank: int,
    now: RankStatus | None,
    before: RankStatus | None,
    first_round: int,
    reference_s: float,
    limit_s: float,
    suspected_by: int,
) -> RankView:
    nan = math.nan
    if now is None:
        return RankView(rank, "", "not heard of", -1, nan, nan, nan, 0, nan, 0.0, suspected_by)
    said = now.said
    ended, silent_s = said["state"] == "ended", max(reference_s - now.time_s, 0.0)
    done_before = nan if first_round else 0.0
    then: dict[str, Any] = {"round": first_round, "gradients": done_before, "wait_s": done_before, "noted_s": 0.0}
    if before is not None and said["noted_s"] > before.said["noted_s"]:
        then = before.said
    passed = said["noted_s"] - then["noted_s"]

    def rate(name: str) -> float:
        return (said[name] - then[name]) / passed if passed > 0.0 else nan

    rounds_per_s = rate("round")
    in_round_s = said["up_s"] - said["noted_s"]
    usual_s = 1.0 / rounds_per_s if rounds_per_s > 0.0 else 0.0
    return RankView(
        rank=rank,
        host=str(said.get("host", "")),
        state="ended" if ended else "silent" if silent_s > limit_s else "running",
        round=int(said["round"]),
        rounds_per_s=rounds_per_s,
        gradients_per_s=rate("gradients"),
        waiting=min(max(rate("wait_s"), 0.0), 1.0),
        late=int(said["late"]),
        silent_s=silent_s,
        in_round_s=in_round_s if not ended and in_round_s > max(STUCK_S, STUCK_ROUNDS * usual_s) else 0.0,
        suspected_by=suspected_by,
    )


def _with_slow(ranks: Sequence[RankView]) -> list[RankView]:
    """Return the ranks with those marked that finish few gradients: rounds they may go through without any."""
    rates = [rank.gradients_per_s for rank in ranks if rank.state == "running" and not math.isnan(rank.gradients_per_s)]
    usual = float(np.median(rates)) if rates else math.nan
    return [replace(rank, slow=rank.state == "running" and rank.gradients_per_s < SLOW * usual) for rank in ranks]


def duration(seconds: float) -> str:
    """Return some seconds as text.

    Examples
    --------
    >>> duration(4.2), duration(75), duration(7260), duration(float("nan"))
    ('4 s', '1 min 15 s', '2 h 1 min', 'not known')
    """
    if math.isnan(seconds):
        return "not known"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def line(seen: View) -> str:
    """Return a moment in one line, for a log."""
    if all(rank.state == "not heard of" for rank in seen.ranks):
        return "setting up: no rank has begun its rounds"
    running = sum(rank.state == "running" for rank in seen.ranks)
    parts = [f"round {seen.round} of {seen.job['rounds']}", *_pace(seen), _loss(seen)]
    if running < len(seen.ranks):
        parts.append(f"{running} of {len(seen.ranks)} ranks running")
    troubled = [f"rank {rank.rank} {rank.trouble}" for rank in seen.ranks if rank.trouble]
    more = [f"{len(troubled) - 4} more"] if len(troubled) > 4 else []
    return ", ".join(parts) + "".join(f"; {one}" for one in [*troubled[:4], *more])


def _pace(seen: View) -> list[str]:
    """Return how fast it goes and for how long it will, or why it does not go."""
    states = {rank.state for rank in seen.ranks}
    if "running" not in states and "silent" in states:
        silent_s = min(rank.silent_s for rank in seen.ranks if rank.state == "silent")
        return [f"nothing heard for {duration(silent_s)}: the job may be dead"]
    if "running" not in states and "ended" in states:
        return ["the rounds are over"]
    if math.isnan(seen.rounds_per_s):
        return ["no round yet"]
    left = [] if math.isnan(seen.left_s) else [f"about {duration(seen.left_s)} left"]
    if seen.round >= int(seen.job["rounds"]):
        left = ["all rounds done"]
    return [f"{seen.rounds_per_s:.3g} rounds/s", *left]


def _loss(seen: View) -> str:
    if math.isnan(seen.loss):
        return f"loss known of {seen.n_losses} of {len(seen.ranks)} ranks"
    return f"loss about {seen.loss:.5g}"


def table(seen: View, name: str) -> RenderableType:
    """Return a moment for a terminal: what all do, and the ranks."""
    from rich import box
    from rich.console import Group
    from rich.markup import escape
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    shown = sorted(seen.ranks, key=lambda rank: (not rank.trouble, rank.round, rank.rank))[:MOST_ROWS]
    grid = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    grid.add_column("rank", justify="right")
    grid.add_column("host", no_wrap=True, max_width=16)
    for title in ("round", "rounds/s", "gradients/s", "waiting", "late"):
        grid.add_column(title, justify="right", no_wrap=True)
    grid.add_column("", overflow="fold")
    for rank in sorted(shown, key=lambda one: one.rank):
        color = "bold red" if rank.state in ("silent", "not heard of") else "yellow" if rank.trouble else ""
        grid.add_row(
            str(rank.rank),
            escape(rank.host),
            str(rank.round) if rank.round >= 0 else "-",
            _number(rank.rounds_per_s),
            _number(rank.gradients_per_s),
            "-" if math.isnan(rank.waiting) else f"{100 * rank.waiting:.0f} %",
            str(rank.late),
            Text("ended" if rank.state == "ended" and not rank.trouble else rank.trouble, style=color),
        )
    job = seen.job
    heading = Text.assemble(
        (name, "bold"), f"  {job.get('method', '')} on {job.get('source', '')}, {job['n_ranks']} ranks"
    )
    progress = Table.grid(padding=(0, 2))
    bar = ProgressBar(total=max(int(job["rounds"]), 1), completed=max(seen.round, 0), width=24)
    progress.add_row(bar, Text(", ".join([f"round {seen.round} of {job['rounds']}", *_pace(seen), _loss(seen)])))
    left_out = len(seen.ranks) - len(shown)
    note = [Text(f"and {left_out} more ranks that are further, and fine", style="dim")] if left_out else []
    return Group(heading, progress, grid, *note)


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}"
