"""The activation functions, each above its derivative, which says what it needs saved.

`f(z)` gives a.  `gain(s)` gives f'(z), the factor by which the neuron multiplies in the backward pass, from the one tensor
that was saved: a where f' is a function of a, z where it is not.  At a kink the slope is the one from the left.  What z = inf,
-inf and NaN give is said above each.  activations.cuh is the twin, formula by formula.
"""

from __future__ import annotations

from functools import cache
from typing import Any, TypeAlias

from .constants import LEAK, SCALED_TANH, SELU_ALPHA, SELU_SCALE, TANH_SCALE
from .functions import functions
from .machine import Lanes
from .vector import absolute, fma, njit, select, splat

Pair: TypeAlias = tuple[Any, Any]


# saves a.  inf, -inf, NaN give themselves; f' is 1
def identity(V: Lanes) -> Pair:

    def f(z: Any) -> Any:
        return z

    def gain(a: Any) -> Any:
        return splat(V, 1.0)

    return f, gain


# saves a.  inf, -inf, NaN give 1, 0, NaN; f' 0, 0, NaN
def sigmoid(V: Lanes) -> Pair:
    sigma = functions(V).sigmoid

    def f(z: Any) -> Any:
        return sigma(z)

    def gain(a: Any) -> Any:
        return a * (1.0 - a)

    return f, gain


# saves a.  inf, -inf, NaN give 1, -1, NaN; f' 0, 0, NaN
def tanh(V: Lanes) -> Pair:
    hyperbolic = functions(V).tanh

    def f(z: Any) -> Any:
        return hyperbolic(z)

    def gain(a: Any) -> Any:
        return fma(-a, a, 1.0)

    return f, gain


# saves a.  inf, -inf, NaN give 1.7159, -1.7159, NaN; f' 0 but for a rounding, the same, NaN
def scaled_tanh(V: Lanes) -> Pair:
    hyperbolic = functions(V).tanh

    def f(z: Any) -> Any:
        return hyperbolic(z * TANH_SCALE) * SCALED_TANH

    def gain(a: Any) -> Any:
        return fma(-a, a, SCALED_TANH**2) * (TANH_SCALE / SCALED_TANH)

    return f, gain


# saves a.  inf, -inf, NaN give inf, 0, NaN; f' 1, 0, 0
def relu(V: Lanes) -> Pair:

    def f(z: Any) -> Any:
        return select(z < 0.0, 0.0, z)

    def gain(a: Any) -> Any:
        return select(a > 0.0, splat(V, 1.0), 0.0)

    return f, gain


# saves a.  inf, -inf, NaN give themselves; f' 1, 0.01, 0.01
def leaky_relu(V: Lanes) -> Pair:

    def f(z: Any) -> Any:
        return select(z < 0.0, z * LEAK, z)

    def gain(a: Any) -> Any:
        return select(a > 0.0, splat(V, 1.0), LEAK)

    return f, gain


# saves a.  inf, -inf, NaN give inf, -1, NaN; f' 1, 0, NaN
def elu(V: Lanes) -> Pair:
    expm1 = functions(V).expm1

    def f(z: Any) -> Any:
        return select(z < 0.0, expm1(z), z)

    def gain(a: Any) -> Any:
        return select(a > 0.0, 1.0, a + 1.0)

    return f, gain


# saves a.  inf, -inf, NaN give inf, -1.7581, NaN; f' 1.0507, 0, NaN
def selu(V: Lanes) -> Pair:
    expm1 = functions(V).expm1

    def f(z: Any) -> Any:
        return select(z < 0.0, expm1(z) * SELU_ALPHA, z) * SELU_SCALE

    def gain(a: Any) -> Any:
        return select(a > 0.0, SELU_SCALE, a + SELU_SCALE * SELU_ALPHA)

    return f, gain


# saves z.  inf, -inf, NaN give inf, NaN (-inf 0), NaN; f' NaN
def gelu(V: Lanes) -> Pair:
    normal = functions(V).normal

    def f(z: Any) -> Any:
        below, _ = normal(z)
        return z * below

    def gain(z: Any) -> Any:
        below, density = normal(z)
        return fma(z, density, below)

    return f, gain


# saves z.  inf, -inf, NaN give inf, NaN (-inf 0), NaN; f' NaN
def silu(V: Lanes) -> Pair:
    sigma = functions(V).sigmoid

    def f(z: Any) -> Any:
        return z * sigma(z)

    def gain(z: Any) -> Any:
        s = sigma(z)
        return fma(z * s, 1.0 - s, s)

    return f, gain


# saves a.  inf, -inf, NaN give inf, 0, NaN; f' 1, -0, NaN
def softplus(V: Lanes) -> Pair:
    F = functions(V)
    exp, expm1, log1p = F.exp, F.expm1, F.log1p

    def f(z: Any) -> Any:
        return select(z > 0.0, z, 0.0) + log1p(exp(-absolute(z)))

    def gain(a: Any) -> Any:
        return -expm1(-a)

    return f, gain


@cache
def activation(V: Lanes, name: str) -> Pair:
    """(f, gain) of the activation called `name`, for vectors of one dtype."""
    f, gain = globals()[name](V)
    return njit(f), njit(gain)
