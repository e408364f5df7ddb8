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

from .backend import Backend, Program, States
from .kernels.names import CHUNK, HYPER
from .random import DROPOUT, mask

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


class NumPyProgram(Program):
    """A list of operations to be called again, with the number of the step."""

    def __init__(self) -> None:
        self.operations: list[Callable[[int], None]] = []

    def _run(self, first_step: int, steps: int) -> None:
        for step in range(first_step, first_step + steps):
            for operation in self.operations:
                operation(step)


class NumPyBackend(Backend):
    name = "numpy"

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return np.empty(shape, dtype)

    def asarray(self, array: Any) -> Array:
        return np.ascontiguousarray(array)

    def copy(self, array: Array) -> Array:
        return array.copy()

    def write(self, target: Array, source: Any) -> None:
        np.copyto(target, source)

    def to_numpy(self, array: Array) -> Array:
        return array

    def _new_program(self) -> NumPyProgram:
        return NumPyProgram()

    def _do(self, operation: Callable[[int], None]) -> None:
        recorder = self.recorder
        if isinstance(recorder, NumPyProgram):
            recorder.operations.append(operation)
        else:
            operation(0)

    def _dense_forward(self, X: Array, W: Array, b: Array, activation: str, A: Array, Z: Array | None) -> None:
        def forward(step: int) -> None:
            z = X @ W + b
            A[:] = F[activation][0](z)
            if Z is not None:
                Z[:] = z

        self._do(forward)

    def _activate(self, Z: Array, activation: str, A: Array) -> None:
        f = softmax if activation == "softmax" else F[activation][0]
        self._do(lambda step: np.copyto(A, f(Z)))

    def _output_delta(self, Z: Array, y: Array, loss: str, activation: str, scale: Array, dZ: Array, losses: Array) -> None:
        cost, slope = C[loss]

        def delta(step: int) -> None:
            target = np.eye(Z.shape[1], dtype=Z.dtype)[y] if y.ndim == 1 else y
            a = softmax(Z) if activation == "softmax" else F[activation][0](Z)
            saved = Z if activation in ("gelu", "silu") else a
            gain = 1 if loss.endswith("cross_entropy") else F[activation][1](saved)  # there f' cancels: dC/dz = a - y
            losses[:] = scale * cost(Z, a, target).sum(axis=1)
            dZ[:] = slope(a, target) * gain * scale[:, None]

        self._do(delta)

    def _hidden_delta(self, dZ: Array, W: Array, saved: Array, activation: str, dZ_below: Array) -> None:
        self._do(lambda step: np.copyto(dZ_below, dZ @ W.T * F[activation][1](saved)))

    def _dense_gradient(self, X: Array, dZ: Array, dW: Array, db: Array) -> None:
        def gradient(step: int) -> None:
            dW[:] = X.T @ dZ
            db[:] = dZ.sum(axis=0)

        self._do(gradient)

    def _dense_update(self, X: Array, dZ: Array, W: Array, b: Array, rule: str, hyper: Array, states: States) -> None:
        self._do(lambda step: descend(W, X.T @ dZ, rule, hyper[0], [of_W for of_W, _ in states]))
        self._do(lambda step: descend(b, dZ.sum(axis=0), rule, hyper[1], [of_b for _, of_b in states]))

    def _update(self, parameter: Array, gradient: Array, rule: str, hyper: Array, states: Sequence[Array]) -> None:
        self._do(lambda step: descend(parameter, gradient, rule, hyper, states))

    def _squares(self, numbers: Array, sums: Array) -> None:
        def square(step: int) -> None:
            sums[:] = np.add.reduceat(numbers**2, np.arange(0, len(numbers), CHUNK))

        self._do(square)

    def _clip(self, gradient: Array, limits: Array, total: Array) -> None:
        def clip(step: int) -> None:
            norm = np.sqrt(total[step])
            gradient[:] = np.clip(gradient * (limits[0] / norm if norm > limits[0] else 1), -limits[1], limits[1])

        self._do(clip)

    def _max_norm(self, W: Array, limit: Array) -> None:
        def shorten(step: int) -> None:
            norm = np.sqrt((W**2).sum(axis=0))
            W[:] *= np.where(norm > limit, limit / np.maximum(norm, np.finfo(W.dtype).tiny), 1)

        self._do(shorten)

    def _dropout(self, A: Array, rate: float, key: Array, layer: int, target: Array) -> None:
        def drop(step: int) -> None:
            seed, first = (int(number) for number in key.view(np.uint64))
            kept = mask(seed, DROPOUT + (layer << 40) + first + step, A.shape, rate)
            target[:] = np.where(kept, A * A.dtype.type(1 / (1 - rate)), 0)

        self._do(drop)

    def _gather(self, source: Array, order: Array, target: Array) -> None:
        n = len(target)
        self._do(lambda step: np.copyto(target, source[order[step * n : (step + 1) * n]]))

    def _total(self, numbers: Array, target: Array) -> None:
        def total(step: int) -> None:
            target[step] = numbers.sum()

        self._do(total)


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
