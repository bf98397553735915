"""``goco shard``: data of any source into a shard store."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from goco_mpi.errors import InputError

KEYS = (
    *("shards", "partition", "alpha", "partition_column", "test_fraction"),
    *("dtype", "format", "targets", "target_column"),
)
"""Options that are keys of ``[data]``."""
EVERY_S = 10.0
"""Between two lines of progress."""


def run(options: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    import msgspec

    from goco_mpi.config import apply_override, parse_config
    from goco_mpi.data.sharding import make_store
    from goco_mpi.software import software

    data = {key: getattr(options, key) for key in KEYS if getattr(options, key) is not None}
    raw: dict[str, Any] = {"seed": options.seed, "data": {"source": options.source, **data}}
    for override in options.set:
        if not override.strip().startswith("data."):
            raise InputError(
                f"--set of goco shard takes keys of [data], such as data.n_samples=100000. Got {override!r}."
            )
        apply_override(raw, override)
    config = parse_config(raw)
    start = last = time.monotonic()

    def progress(what: str, row: int, n_rows: int) -> None:
        nonlocal last
        if not options.quiet and time.monotonic() - last > EVERY_S:
            last = time.monotonic()
            print(f"{what}: row {row} of {n_rows}", file=sys.stderr, flush=True)

    origin = {"data": msgspec.to_builtins(config.data), "seed": config.seed, "software": software()}
    made = make_store(config.data, config.seed, options.out, options.force, origin, progress)
    if not options.quiet:
        sizes = (
            f"{min(made.sizes)} to {max(made.sizes)} rows" if min(made.sizes) < max(made.sizes) else f"{made.sizes[0]}"
        )
        kind = f"{'CSR' if made.sparse else 'dense'} {made.dtype}"
        print(
            f"{made.n_samples} rows of {made.n_features} features ({kind}): {len(made.sizes)} shards of {sizes}, "
            f"{made.n_test} rows to test on; {sum(made.files.values()) / 2**20:.1f} MiB in "
            f"{time.monotonic() - start:.1f} s"
        )
        print(f"shard store in {options.out}: use it as data.source")
    return 0
