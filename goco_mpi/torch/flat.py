"""A module's trainable parameters as one vector, and so their gradients."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from goco_mpi.errors import InputError

Array = NDArray[np.float64]


class FlatModule:
    """A copy of a module whose trainable parameters are views of one vector, and their gradients of another.

    Loading a vector of parameters is then one copy, whatever the number of layers, and autograd adds up its gradients
    where they are read. The order is that of ``module.parameters()``; frozen ones (``requires_grad = False``) are left
    where and as they are.

    Parameters
    ----------
    module : torch.nn.Module

    Attributes
    ----------
    module : torch.nn.Module
        The copy.
    parameters : list of torch.nn.Parameter
        The trainable ones.
    n_params : int
    dtype : torch.dtype
        float32 or float64.
    gradients : ndarray of shape (n_params,)
        Of the last backward passes since `load`, in the module's dtype.

    Raises
    ------
    InputError
        If the module cannot be copied, or its parameters are not of one kind that can be trained here.

    Examples
    --------
    >>> flat = FlatModule(torch.nn.Linear(2, 1))
    >>> flat.load(np.array([1.0, 2.0, 3.0]))
    >>> flat.module(torch.tensor([[10.0, 100.0]])).item()
    213.0
    """

    def __init__(self, module: torch.nn.Module) -> None:
        _refuse_unusable(module)
        self.module = module = _copied(module)
        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.dtype = self.parameters[0].dtype
        self.n_params = sum(parameter.numel() for parameter in self.parameters)
        self._trained = [part for part in module.modules() if part.training]
        values, gradients = (torch.zeros(self.n_params, dtype=self.dtype) for _ in range(2))
        self.gradients = gradients.numpy()
        self._values = values.numpy()
        for parameter, begin, end in self._places():
            view = values[begin:end].view(parameter.shape)
            view.copy_(parameter.detach())
            parameter.data = view
            parameter.grad = gradients[begin:end].view(parameter.shape)

    def _places(self) -> Iterator[tuple[torch.nn.Parameter, int, int]]:
        ends = list(itertools.accumulate(parameter.numel() for parameter in self.parameters))
        return zip(self.parameters, [0, *ends], ends, strict=False)

    @property
    def values(self) -> Array:
        """A copy of the parameters, float64, shape (n_params,)."""
        return np.array(self._values, dtype=np.float64)

    def load(self, params: Array) -> None:
        """Set the parameters to ``params``, rounded to the module's dtype, and the gradients to zero."""
        np.copyto(self._values, params, casting="same_kind")
        self.gradients.fill(0.0)

    def split(self, vector: Array) -> list[torch.Tensor]:
        """Return a vector's parts in the shapes of the parameters, in the module's dtype."""
        whole = torch.from_numpy(vector.astype(self._values.dtype))
        return [whole[begin:end].view(parameter.shape) for parameter, begin, end in self._places()]

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Put the module in evaluation mode, and then each part of it back in the mode it was handed over in."""
        for part in self._trained:
            part.training = False
        try:
            with torch.no_grad():
                yield
        finally:
            for part in self._trained:
                part.training = True


@contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """Let torch's CPU generator begin with ``seed`` (of 32 bits), and put it back as it was."""
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(state)


def reason_of(error: Exception) -> str:
    r"""Return an error's type and the first line of what it says, without the stop or colon behind it.

    Examples
    --------
    >>> reason_of(RuntimeError("Too much.\nHere.")), reason_of(RuntimeError())
    ('RuntimeError: Too much', 'RuntimeError')
    """
    said = str(error).strip().partition("\n")[0].rstrip(".:")
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _copied(module: torch.nn.Module) -> torch.nn.Module:
    try:
        return copy.deepcopy(module)
    except Exception as error:
        raise InputError(
            f"module must be one that copy.deepcopy can copy. Got {reason_of(error)}. Use "
            "torch.nn.utils.parametrizations in place of older hooks, and keep locks and files out of it."
        ) from error


def _refuse_unusable(module: torch.nn.Module) -> None:
    if not isinstance(module, torch.nn.Module):
        raise InputError(f"module must be a torch.nn.Module. Got {module!r}.")
    named = list(module.named_parameters())
    for name, parameter in named:
        if isinstance(parameter, torch.nn.parameter.UninitializedParameter):
            raise InputError(f"module has no {name!r} yet. Apply it to a few inputs once, on every rank, before.")
        if parameter.device.type != "cpu":
            raise InputError(
                f"module must be on the CPU, where its messages leave from. Got {name!r} on {parameter.device}. Use "
                "module.cpu()."
            )
    trained = [(name, parameter) for name, parameter in named if parameter.requires_grad]
    if not trained:
        raise InputError("module must have at least one parameter with requires_grad. Got none.")
    dtype = trained[0][1].dtype
    for name, parameter in trained:
        if parameter.dtype not in (torch.float32, torch.float64):
            raise InputError(
                f"module's parameters must be float32 or float64. Got {name!r} as {parameter.dtype}. Use "
                "module.float()."
            )
        if parameter.dtype != dtype:
            raise InputError(
                f"module's parameters must have one dtype. Got {name!r} as {parameter.dtype} and {trained[0][0]!r} as "
                f"{dtype}. Use module.float() or module.double()."
            )
        if not bool(torch.isfinite(parameter.detach()).all()):
            raise InputError(f"module's parameters must be finite. Got NaN or infinity in {name!r}.")
    for name, part in module.named_modules():
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm) and part.training:
            raise InputError(
                f"module must treat every row alone. Got batch normalisation in {name!r}, whose statistics are those "
                "of a batch, and belong to one rank. Use GroupNorm or LayerNorm, or freeze it with eval()."
            )
