"""A small convolutional network under a slow rank: GOCO against synchronous allreduce.

Run it with mpiexec -n 8 python -m mpi4py examples/digits_torch.py (it needs pip install 'goco-mpi[torch]')

Handwritten digits, sorted so that a shard has one or two of them. Rank 3, or the last of fewer, takes ten times as
long for a gradient as the others. A gradient lasts 5 ms a shard, slept where it takes less: with two copies of each
shard GOCO's are twice as long as allreduce's. Both take the same steps from the same beginning.
"""

import argparse

import numpy as np
import torch
from mpi4py import MPI
from sklearn.datasets import load_digits

from goco_mpi.torch import fit

N_SHARDS = 16
VARIANTS = {
    "goco, every shard twice": {
        "placement": {"replication": 2},
        "method": {"rates": "ema"},  # nobody tells the ranks who is slow
        # Where ranks share cores, and so come one after the other, a neighbour in time is worth a wait.
        "deadline": {"gossip_factor": 1.0},
    },
    "allreduce": {"method": {"kind": "allreduce"}},
}


def network():
    """Return the network, the same on every call."""
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, kernel_size=3, padding=1),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(16, 32, kernel_size=3, padding=1),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(128, 10),
    )


def digits():
    """Return the shards, and the images and labels to test on."""
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels / 16.0, dtype=torch.float32).reshape(-1, 1, 8, 8)
    order = np.random.default_rng(0).permutation(len(labels))
    test, training = order[:360], order[360:]
    training = training[np.argsort(labels[training], kind="stable")]
    shards = [(images[rows], labels[rows]) for rows in np.array_split(training, N_SHARDS)]
    return shards, (images[test], labels[test])


def seconds_to(history, accuracy):
    """Return when the mean of the parameters first was that good, as text."""
    found = (row["wall_s"] for row in history if row["test_accuracy"] >= accuracy)
    return next((f"{wall_s:.1f} s" for wall_s in found), "never")


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--rounds", type=int, default=200)
parser.add_argument("--shard-s", type=float, default=0.005, help="seconds that the gradient of a shard lasts")
options = parser.parse_args()

world = MPI.COMM_WORLD
shards, test = digits()
if world.rank == 0:
    print(f"{'':<25}{'95 %':>8}{'97 %':>8}{'at the end':>12}{'rounds':>8}{'seconds':>9}", flush=True)
for name, tables in VARIANTS.items():
    copies = min(tables.get("placement", {}).get("replication", 1), world.size)
    module = network()
    result = fit(
        module,
        torch.nn.CrossEntropyLoss(),
        shards,
        test=test,
        step={"kind": "decreasing", "size": 0.5, "tau": 100},
        batch_size=16,
        rounds=options.rounds,
        stragglers={
            "kind": "slow",
            "ranks": [min(3, world.size - 1)],
            "factor": 10.0,
            "work_s": options.shard_s * copies * N_SHARDS / world.size,
        },
        record={"every": 5},
        **{**tables, "placement": {"replication": copies}},
    )
    if world.rank == 0:
        last = result.history[-1]
        print(
            f"{name:<25}{seconds_to(result.history, 0.95):>8}{seconds_to(result.history, 0.97):>8}"
            f"{100 * last['test_accuracy']:>10.1f} %{result.nit:>8}{result.wall_s:>9.1f}",
            flush=True,
        )
