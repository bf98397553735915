"""goco, some of whose ranks die or freeze: mortal.py '{"3": ["round", 120]}' run EXPERIMENT.toml ...

Each rank that is named ends itself by SIGKILL: with ["round", t] when it is about to begin round t or a later one; with
["offer", t] once it has heard all neighbours' vectors of that round, and before it sends its own (where everybody waits
for everybody); with ["freeze", t] it stops for 5 s instead; otherwise when it gets to one of MOMENTS.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

FROZEN_S = 5

MOMENTS = {
    "setup": ("goco_mpi.engine.setting_up", "_curvature"),
    "goodbye": ("goco_mpi.engine.gossip_exchange.GossipExchange", "close"),
    "regroup": ("goco_mpi.engine.train", "regroup"),
    "gather": ("goco_mpi.engine.evaluate", "history"),
    "write": ("goco_mpi.record", "write_run"),
}


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _freeze() -> None:
    subprocess.Popen(["sh", "-c", f"sleep {FROZEN_S}; kill -CONT {os.getpid()}"])
    os.kill(os.getpid(), signal.SIGSTOP)


def _before(path: str, name: str, action: Callable[..., None]) -> None:
    """Do something before every call of a function or method."""
    try:
        owner: Any = importlib.import_module(path)
    except ModuleNotFoundError:
        module, _, cls = path.rpartition(".")
        owner = getattr(importlib.import_module(module), cls)
    wrapped = getattr(owner, name)

    def call(*given: Any, **named: Any) -> Any:
        action(*given)
        return wrapped(*given, **named)

    setattr(owner, name, call)


def _once(action: Callable[[], None], first_round: int) -> Callable[..., None]:
    done: list[bool] = []

    def look(stopping: object, round_: int, *rest: object) -> None:
        if round_ >= first_round and not done:
            done.append(True)
            action()

    return look


def _before_offer(first_round: int) -> Callable[..., None]:
    def look(exchange: Any, round_: int, step: int) -> None:
        if round_ == first_round:
            exchange._round = round_  # it listens for these from now on
            while any(edge.receive.heard_round < round_ for edge in exchange._edges):
                for index in range(exchange.degree):
                    exchange._listen(index)
                exchange._progress(time.perf_counter() + 1.0)
            _die()

    return look


def arrange(moment: str, round_: int | None = None) -> None:
    """Let this process die or freeze at a moment."""
    if moment in ("round", "freeze"):
        _before(
            "goco_mpi.engine.stopping.Stopping",
            "after_round",
            _once(_die if moment == "round" else _freeze, round_ or 0),
        )
    elif moment == "offer":
        _before("goco_mpi.engine.gossip_exchange.GossipExchange", "offer", _before_offer(round_ or 0))
    else:
        _before(*MOMENTS[moment], lambda *given: _die())


if __name__ == "__main__":
    from goco_mpi.cli import main
    from goco_mpi.engine.session import LAUNCH  # as goco itself does: BLAS threads before numpy

    ends = json.loads(sys.argv[1])
    if str(LAUNCH.rank) in ends:
        arrange(*ends[str(LAUNCH.rank)])
    sys.exit(main(sys.argv[2:]))
