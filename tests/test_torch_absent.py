"""Without PyTorch everything else works, and goco_mpi.torch says what to install."""

from __future__ import annotations

import importlib
import sys

import pytest

from goco_mpi.errors import InputError


def test_without_torch_one_line_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("goco_mpi.torch")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match=r"pip install 'goco-mpi\[torch\]'") as refused:
        importlib.import_module("goco_mpi.torch")
    assert "\n" not in str(refused.value)
