"""The losses that are sums over the outputs of one example, each above its derivative.

`loss(z, a, y)` is one output's share of C; `slope(z, a, y, gain)` is dC/dz, gain being f'(z) of the output activation.
Cross-entropy, whose outputs hang together through the softmax, is in output_delta.py.
"""

from __future__ import annotations

from functools import cache
from typing import Any, TypeAlias

from .functions import functions
from .machine import Lanes
from .vector import absolute, fma, njit, select, splat

Pair: TypeAlias = tuple[Any, Any]


def binary_cross_entropy(V: Lanes) -> Pair:  # of a = sigmoid(z): -y ln a - (1 - y) ln(1 - a) = ln(1 + e^z) - y z
    F = functions(V)
    exp, log1p = F.exp, F.log1p

    def loss(z: Any, a: Any, y: Any) -> Any:
        return fma(-y, z, select(z > 0.0, z, 0.0) + log1p(exp(-absolute(z))))

    def slope(z: Any, a: Any, y: Any, gain: Any) -> Any:
        return a - y

    return loss, slope


def squared_error(V: Lanes) -> Pair:

    def loss(z: Any, a: Any, y: Any) -> Any:
        d = a - y
        return (d * 0.5) * d

    def slope(z: Any, a: Any, y: Any, gain: Any) -> Any:
        return (a - y) * gain

    return loss, slope


def absolute_error(V: Lanes) -> Pair:

    def loss(z: Any, a: Any, y: Any) -> Any:
        return absolute(a - y)

    def slope(z: Any, a: Any, y: Any, gain: Any) -> Any:
        d = a - y
        return select(d > 0.0, splat(V, 1.0), select(d < 0.0, splat(V, -1.0), d)) * gain

    return loss, slope


def huber(V: Lanes) -> Pair:  # quadratic up to |a - y| = 1, linear beyond: Huber (1964)

    def loss(z: Any, a: Any, y: Any) -> Any:
        d = absolute(a - y)
        return select(d > 1.0, d - 0.5, (d * 0.5) * d)

    def slope(z: Any, a: Any, y: Any, gain: Any) -> Any:
        d = a - y
        return select(d > 1.0, 1.0, select(d < -1.0, -1.0, d)) * gain

    return loss, slope


@cache
def elementwise(V: Lanes, name: str) -> Pair:
    """(loss, slope) of the loss called `name`, for vectors of one dtype."""
    loss, slope = globals()[name](V)
    return njit(loss), njit(slope)
