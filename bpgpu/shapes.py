"""What an operation of the seam takes: shapes, dtypes, layouts and names, checked before anything is done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .checks import nearest
from .kernels.names import ACTIVATIONS, DTYPES, HYPER, RULES

_FLOATS = frozenset(map(np.dtype, DTYPES))  # (their names would be made anew for each array)
OUTPUTS = {"cross_entropy": "softmax", "binary_cross_entropy": "sigmoid"}  # of the losses that classify, the output activation


def check_pair(loss: str, activation: str) -> None:
    """Which output activation goes with which loss."""
    partner = OUTPUTS.get(loss)
    if partner:
        if activation != partner:
            raise ValueError(f"the loss {loss} goes with the output activation {partner}, not {activation!r}")
    elif activation == "softmax":
        raise ValueError(f"the output activation softmax goes with the loss cross_entropy, not {loss!r}")
    else:
        nearest(activation, ACTIVATIONS, "output activation")


def check_states(rule: str, states: Sequence[Any]) -> tuple[str, ...]:
    """The names of the states of a rule, of which there is one each."""
    names = RULES[nearest(rule, RULES, "rule")]
    if not isinstance(states, (tuple, list)) or len(states) != len(names) or any(s is None for s in states):
        wanted = " and ".join(names) or "nothing"
        raise ValueError(f"the rule {rule} keeps {wanted}; expected states to be a tuple of {len(names)}, each laid out as w")
    return names


def check_hyper(found: dict[str, int]) -> None:
    if found["h"] != len(HYPER):
        raise ValueError(f"hyper has {found['h']} numbers; expected {len(HYPER)}: {', '.join(HYPER)}")


def check_arrays(**arrays: Any) -> None:
    for name, array in arrays.items():
        if not hasattr(array, "dtype") or not hasattr(array, "flags"):
            raise TypeError(f"{name} is a {type(array).__name__}; expected an array of the backend")


def check_layout(name: str, array: Any, *, written: bool) -> None:
    if not array.flags.c_contiguous:
        raise ValueError(f"{name} is not C-contiguous; pass numpy.ascontiguousarray({name})")
    if written and not getattr(array.flags, "writeable", True):
        raise ValueError(f"{name} is read-only and would be written to; pass {name}.copy()")


def sizes(spec: str, *arrays: Any) -> dict[str, int]:
    """The sizes named in a spec such as "X n i, W i o", checked over all arrays that are given (not None).

    Also checks that they are C-contiguous and share one dtype, float32 or float64, and that those with "=" can be written.
    """
    found: dict[str, int] = {}
    dtype = None
    for part, array in zip(spec.split(","), arrays, strict=True):
        name, *letters = part.split()
        written, name = name.startswith("="), name.lstrip("=")
        if array is None:
            continue
        check_arrays(**{name: array})
        if array.dtype not in _FLOATS or (dtype is not None and array.dtype != dtype):
            raise TypeError(f"{name} has dtype {array.dtype}; expected {dtype or 'float32 or float64'}, one for all")
        dtype = array.dtype
        expected = [found.get(x, int(x) if x.isdigit() else None) for x in letters]
        if array.ndim != len(letters) or any(e is not None and e != d for e, d in zip(expected, array.shape, strict=True)):
            wanted = ", ".join(x if e is None else str(e) for x, e in zip(letters, expected, strict=True))
            raise ValueError(f"{name} has shape {tuple(array.shape)}; expected ({wanted}) in {spec.replace('=', '')}")
        if 0 in array.shape:
            raise ValueError(f"{name} has shape {tuple(array.shape)}; expected at least one element")
        check_layout(name, array, written=written)
        found.update(zip(letters, array.shape, strict=True))
    return found
