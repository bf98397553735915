"""PyTorch modules on goco_mpi: `fit` trains one, `ModuleObjective` makes it an objective for `goco_mpi.minimize`.

The only package that imports torch; nothing else of goco_mpi needs it. See docs/torch.md.
"""

from goco_mpi.errors import InputError

try:
    import torch  # noqa: F401
except ImportError as error:
    raise InputError(
        f"goco_mpi.torch needs PyTorch: {error}. Install it with pip install 'goco-mpi[torch]'; the build for CPUs "
        "alone is enough, and much smaller (docs/torch.md)."
    ) from None

from goco_mpi.torch.fit import fit
from goco_mpi.torch.objective import ModuleObjective

__all__ = ["ModuleObjective", "fit"]
