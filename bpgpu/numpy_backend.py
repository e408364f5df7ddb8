"""The numpy backend: the operations of the seam by the equations of reference.py, now or in a recorded program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .backend import Backend, Program, States
from .kernels.names import CHUNK
from .random import DROPOUT, mask
from .reference import Array, F, dense_forward, dense_gradient, descend, hidden_delta, output_delta, softmax


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

    def _set(self, compute: Callable[[int], Sequence[Array]], *targets: Array | None) -> None:
        """targets = compute(step)"""

        def operation(step: int) -> None:
            for target, value in zip(targets, compute(step), strict=True):
                if target is not None:
                    target[:] = value

        self._do(operation)

    def _dense_forward(self, X: Array, W: Array, b: Array, activation: str, A: Array, Z: Array | None) -> None:
        self._set(lambda step: dense_forward(X, W, b, activation), A, Z)

    def _activate(self, Z: Array, activation: str, A: Array) -> None:
        f = softmax if activation == "softmax" else F[activation][0]
        self._set(lambda step: [f(Z)], A)

    def _output_delta(self, Z: Array, y: Array, loss: str, activation: str, scale: Array, dZ: Array, losses: Array) -> None:
        self._set(lambda step: output_delta(Z, y, loss, activation, scale), dZ, losses)

    def _hidden_delta(self, dZ: Array, W: Array, saved: Array, activation: str, dZ_below: Array) -> None:
        self._set(lambda step: [hidden_delta(dZ, W, saved, activation)], dZ_below)

    def _dense_gradient(self, X: Array, dZ: Array, dW: Array, db: Array, add: bool) -> None:
        def gradient(step: int) -> Sequence[Array]:
            more = dense_gradient(X, dZ)
            return [total + part for total, part in zip((dW, db), more, strict=True)] if add else more

        self._set(gradient, dW, db)

    def _dense_update(self, X: Array, dZ: Array, W: Array, b: Array, rule: str, hyper: Array, states: States) -> None:
        def update(step: int) -> None:
            for k, (w, g) in enumerate(zip((W, b), dense_gradient(X, dZ), strict=True)):
                descend(w, g, rule, hyper[k], [state[k] for state in states])

        self._do(update)

    def _update(self, parameter: Array, gradient: Array, rule: str, hyper: Array, states: Sequence[Array]) -> None:
        self._do(lambda step: descend(parameter, gradient, rule, hyper, states))

    def _squares(self, numbers: Array, sums: Array) -> None:
        self._set(lambda step: [np.add.reduceat(numbers**2, np.arange(0, len(numbers), CHUNK))], sums)

    def _clip(self, gradient: Array, limits: Array, total: Array) -> None:
        def clip(step: int) -> Sequence[Array]:
            norm = np.sqrt(total[step])
            return [np.clip(gradient * (limits[0] / norm if norm > limits[0] else 1), -limits[1], limits[1])]

        self._set(clip, gradient)

    def _max_norm(self, W: Array, limit: Array) -> None:
        def shorten(step: int) -> Sequence[Array]:
            norm = np.sqrt((W**2).sum(axis=0))
            return [W * np.where(norm > limit, limit / np.maximum(norm, np.finfo(W.dtype).tiny), 1)]

        self._set(shorten, W)

    def _dropout(self, A: Array, rate: float, key: Array, layer: int, first: int, target: Array) -> None:
        def drop(step: int) -> Sequence[Array]:
            seed, begin = (int(number) for number in key.view(np.uint64))
            kept = mask(seed, DROPOUT + (layer << 40) + begin + step, (first + A.size,), rate)[first:].reshape(A.shape)
            return [np.where(kept, A * A.dtype.type(1 / (1 - rate)), 0)]

        self._set(drop, target)

    def _gather(self, source: Array, order: Array, target: Array) -> None:
        n = len(target)
        self._set(lambda step: [source[order[step * n : (step + 1) * n]]], target)

    def _example_norms(self, X: Array, dZ: Array, norms: Array, add: bool) -> None:
        self._set(lambda step: [(norms if add else 0) + ((X * X).sum(axis=1) + 1) * (dZ * dZ).sum(axis=1)], norms)

    def _clip_examples(self, dZ: Array, norms: Array, limit: Array, scale: Array) -> None:
        def shorten(step: int) -> Sequence[Array]:
            norm, allowed = np.sqrt(norms), limit * scale
            return [dZ * np.divide(allowed, norm, out=np.ones_like(norm), where=norm > allowed)[:, None]]

        self._set(shorten, dZ)

    def _total(self, numbers: Array, target: Array) -> None:
        def total(step: int) -> None:
            target[step] = numbers.sum()

        self._do(total)
