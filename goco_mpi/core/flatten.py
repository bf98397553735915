"""A run's state as one JSON text and named arrays, and back.

A state consists of dataclasses and small objects of this package, enums, containers, numbers and arrays. An object or
array with two names in it is one thing with two names afterwards; a container is copied for each name. Anything else
is refused, in writing and in reading, whoever wrote the text: objects of ``goco_mpi.core`` get their attributes, and
none of their code runs.

What follows from the experiment is left out, and *given* again by a fresh state: see ``GIVEN``.
"""

from __future__ import annotations

import importlib
import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from goco_mpi.core.compression.base import Codec
from goco_mpi.core.methods.base import Place
from goco_mpi.core.reweighting import Reweighting

GIVEN = (Place, Codec, Reweighting)
"""Objects that never change in a run and follow from the experiment; at most one of a kind in a state."""
_PACKAGE = "goco_mpi.core."
_PLAIN = (bool, int, float, str, type(None))
_CONTAINERS: dict[type, str] = {list: "list", tuple: "tuple", deque: "deque"}


def flatten(root: object) -> tuple[str, dict[str, NDArray[Any]]]:
    """Return an object as a text, and the arrays that it names, which are copies.

    Raises
    ------
    TypeError
        If something in it is neither plain nor of ``goco_mpi.core``.

    Examples
    --------
    >>> text, arrays = flatten({"round": 3, "params": np.ones(2)})
    >>> text, arrays
    ('{"dict": [["round", 3], ["params", {"array": "0"}]]}', {'0': array([1., 1.])})
    >>> restore(text, arrays)["round"]
    3
    """
    writer = _Writer()
    return json.dumps(writer.node(root)), writer.arrays


def restore(text: str, arrays: Mapping[str, NDArray[Any]], like: object = None) -> Any:
    """Return the object that `flatten` made ``text`` and ``arrays`` of.

    Parameters
    ----------
    text : str
    arrays : mapping of str to ndarray
        Become part of the object.
    like : object
        A fresh state, in which what is given is found.

    Raises
    ------
    ValueError
        If the text is not one of `flatten`, an array is missing, or ``like`` has not what is given.
    """
    try:
        return _Reader(arrays, {_kind(found): found for found in _given(like, set())}).value(json.loads(text))
    except (KeyError, TypeError, AttributeError, ImportError, IndexError) as error:
        raise ValueError(f"this state is not one of this version of goco_mpi ({error})") from None


def _kind(value: object) -> str:
    return next(kind.__name__ for kind in GIVEN if isinstance(value, kind))


def _attributes(value: object) -> dict[str, Any]:
    """Return the attributes of an object, also where it has slots."""
    if hasattr(value, "__dict__"):
        return vars(value)
    names = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    return {name: getattr(value, name) for name in names}


def _given(value: object, seen: set[int]) -> Iterator[object]:
    if id(value) in seen or isinstance(value, (*_PLAIN, np.ndarray, np.generic)):
        return
    seen.add(id(value))
    if isinstance(value, GIVEN):
        yield value
        return
    parts: Iterable[object]
    if isinstance(value, list | tuple | deque):
        parts = value
    else:
        parts = value.values() if isinstance(value, Mapping) else _attributes(value).values()
    for part in parts:
        yield from _given(part, seen)


class _Writer:
    """Names the arrays and numbers the objects, each once."""

    def __init__(self) -> None:
        self.arrays: dict[str, NDArray[Any]] = {}
        self._known: dict[int, tuple[dict[str, Any], object]] = {}

    def node(self, value: Any) -> Any:
        if type(value) in _PLAIN:
            return value
        if id(value) in self._known:
            return self._known[id(value)][0]
        if isinstance(value, GIVEN):
            return {"given": _kind(value)}
        if isinstance(value, np.ndarray | np.generic):
            name = str(len(self.arrays))
            self.arrays[name] = np.array(value)
            return self._note(value, {"array" if isinstance(value, np.ndarray) else "scalar": name})
        if type(value) is dict:
            return {"dict": [[self.node(key), self.node(item)] for key, item in value.items()]}
        if type(value) in _CONTAINERS:
            node: dict[str, Any] = {_CONTAINERS[type(value)]: [self.node(item) for item in value]}
            return {**node, "maxlen": value.maxlen} if isinstance(value, deque) else node
        kind = type(value)
        if not kind.__module__.startswith(_PACKAGE):
            raise TypeError(f"{kind.__module__}.{kind.__qualname__} cannot be kept in a checkpoint")
        name = f"{kind.__module__}:{kind.__qualname__}"
        if isinstance(value, Enum):
            return {"enum": name, "value": self.node(value.value)}
        number = len(self._known)
        self._note(value, {"again": number})
        return {
            "object": number,
            "class": name,
            "attributes": [[k, self.node(v)] for k, v in _attributes(value).items()],
        }

    def _note(self, value: object, node: dict[str, Any]) -> dict[str, Any]:
        self._known[id(value)] = node, value  # kept alive: its id is not used again
        return node


class _Reader:
    """Builds objects, each once."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]], given: Mapping[str, object]) -> None:
        self._arrays = arrays
        self._given = given
        self._built: dict[int, object] = {}

    def value(self, node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        kind = next(iter(node), "")
        content = node[kind]
        match kind:
            case "array":
                return self._arrays[content]
            case "scalar":
                return self._arrays[content][()]
            case "dict":
                return {self.value(key): self.value(item) for key, item in content}
            case "list":
                return [self.value(item) for item in content]
            case "tuple":
                return tuple(self.value(item) for item in content)
            case "deque":
                return deque((self.value(item) for item in content), node["maxlen"])
            case "given":
                return self._given[content]
            case "again":
                return self._built[content]
            case "enum":
                return _enum(content)(self.value(node["value"]))
            case "object":
                built = self._built[content] = object.__new__(_class(node["class"]))
                for name, item in node["attributes"]:
                    object.__setattr__(built, name, self.value(item))
                return built
        raise ValueError(f"this state has a part that is none: {kind!r}")


def _class(name: str) -> type[Any]:
    """Return a class of this package by its name."""
    module, _, qualname = name.partition(":")
    found = getattr(importlib.import_module(module), qualname) if module.startswith(_PACKAGE) else None
    if not isinstance(found, type) or found.__module__ != module:
        raise ValueError(f"this state has an object of {name!r}, which is none of goco_mpi's")
    return found


def _enum(name: str) -> type[Enum]:
    """Return an enum of this package by its name: calling any other class would run its code."""
    found = _class(name)
    if not issubclass(found, Enum):
        raise ValueError(f"this state has a member of {name!r}, which is no enum")
    return found
