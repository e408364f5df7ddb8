"""Backpropagation in plain NumPy, one line an equation: what to read first, and what the tests hold the kernels against.

One layer is  Z = X W + b,  A = f(Z).  The forward pass keeps a of every layer, because dz/dw = a.  The backward pass is the
network run in reverse: dC/dz of the layer above goes through W^T and is amplified by f'(z), a constant by then.  The product
of both is dC/dw.  n counts examples, i inputs, o outputs; every array has one example a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .kernels.names import HYPER

Array = np.ndarray[Any, Any]
erf = np.vectorize(math.erf, otypes=[float])


def sigmoid(z: Array) -> Array:
    return np.exp(-np.logaddexp(0, -z))


def normal(z: Array) -> tuple[Array, Array]:
    """Phi(z) and its derivative, the density."""
    return (1 + erf(z / math.sqrt(2))).astype(z.dtype) / 2, np.exp(-z * z / 2) / math.sqrt(2 * math.pi)


# f(z), and f'(z) from what is saved: a, but z for gelu and silu
F: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "identity": (lambda z: z, lambda a: np.ones_like(a)),
    "sigmoid": (sigmoid, lambda a: a * (1 - a)),
    "tanh": (np.tanh, lambda a: 1 - a * a),
    "scaled_tanh": (lambda z: 1.7159 * np.tanh(z * 2 / 3), lambda a: 2 / 3 * (1.7159 - a * a / 1.7159)),
    "relu": (lambda z: np.where(z < 0, 0, z), lambda a: np.where(a > 0, 1, 0)),
    "leaky_relu": (lambda z: np.where(z < 0, 0.01 * z, z), lambda a: np.where(a > 0, 1, 0.01)),
    "elu": (lambda z: np.where(z < 0, np.expm1(z), z), lambda a: np.where(a > 0, 1, a + 1)),
    "selu": (
        lambda z: 1.0507009873554805 * np.where(z < 0, 1.6732632423543772 * np.expm1(z), z),
        lambda a: np.where(a > 0, 1.0507009873554805, a + 1.0507009873554805 * 1.6732632423543772),
    ),
    "gelu": (lambda z: z * normal(z)[0], lambda z: normal(z)[0] + z * normal(z)[1]),
    "silu": (lambda z: z * sigmoid(z), lambda z: sigmoid(z) * (1 + z * (1 - sigmoid(z)))),
    "softplus": (lambda z: np.logaddexp(0, z), lambda a: -np.expm1(-a)),
}

# C of one output from z, a and the target y, and dC/da
C: dict[str, tuple[Callable[[Array, Array, Array], Array], Callable[[Array, Array], Array]]] = {
    "squared_error": (lambda z, a, y: (a - y) ** 2 / 2, lambda a, y: a - y),
    "absolute_error": (lambda z, a, y: abs(a - y), lambda a, y: np.sign(a - y)),
    "huber": (
        lambda z, a, y: np.where(abs(a - y) > 1, abs(a - y) - 0.5, (a - y) ** 2 / 2),
        lambda a, y: np.clip(a - y, -1, 1),
    ),
    "binary_cross_entropy": (lambda z, a, y: np.logaddexp(0, z) - y * z, lambda a, y: a - y),
    "cross_entropy": (lambda z, a, y: y * (np.logaddexp.reduce(z, axis=1, keepdims=True) - z), lambda a, y: a - y),
}


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


# -- the forward pass


def dense_forward(X: Array, W: Array, b: Array, activation: str) -> tuple[Array, Array]:
    """A = f(Z), and Z."""
    Z = X @ W + b
    return F[activation][0](Z), Z


# -- the backward pass


def output_delta(Z: Array, y: Array, loss: str, activation: str, scale: Array) -> tuple[Array, Array]:
    """dZ of the output layer and the losses, for targets y (n, o) or labels (n)."""
    target = np.eye(Z.shape[1], dtype=Z.dtype)[y] if y.ndim == 1 else y
    a = softmax(Z) if activation == "softmax" else F[activation][0](Z)
    saved = Z if activation in ("gelu", "silu") else a
    gain = 1 if loss.endswith("cross_entropy") else F[activation][1](saved)  # there f' cancels: dC/dz = a - y
    cost, slope = C[loss]
    return slope(a, target) * gain * scale[:, None], scale * cost(Z, a, target).sum(axis=1)


def hidden_delta(dZ: Array, W: Array, saved: Array, activation: str) -> Array:
    return dZ @ W.T * F[activation][1](saved)


# -- the product of both, and descent


def dense_gradient(X: Array, dZ: Array) -> tuple[Array, Array]:
    """dW and db."""
    return X.T @ dZ, dZ.sum(axis=0)


def descend(w: Array, g: Array, rule: str, hyper: Array, states: Sequence[Array]) -> None:
    """Gradient descent, in place: w <- w - lr g, and its relatives; what the rule keeps is in `states`."""
    h = dict(zip(HYPER, hyper, strict=True))
    g = g + h["l2"] * w + h["l1"] * np.sign(w)  # the penalties l2 w^2 / 2 + l1 |w|
    u = g
    if rule in ("momentum", "nesterov", "adam"):
        v = states[0]
        v[:] = h["beta1"] * v + h["gain1"] * g
        u = h["beta1"] * v + h["gain1"] * g if rule == "nesterov" else v
    if rule in ("rmsprop", "adam"):
        s = states[-1]
        s[:] = h["beta2"] * s + h["gain2"] * g**2
        u = u / (np.sqrt(s) + h["epsilon"])
    w[:] = w - h["decay"] * w - h["learning_rate"] * u
