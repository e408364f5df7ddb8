"""The forward pass alone, recorded once for a size of batch and replayed, so that Python is not between the layers."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from .backend import Array, Program

if TYPE_CHECKING:
    from .mlp import MLP

SIZES = 4  # of batches that are kept recorded, here and in training.py
FEW = 64  # rows up to which each layer has an array of its own, so that rows may go through all layers


def numbers_kept(layers: Sequence[int], n: int) -> int:
    """How many numbers the arrays take for n rows."""
    return n * (layers[-1] + (sum(layers) if n <= FEW else layers[0] + 2 * max(layers[1:])))


class Inference:
    """Outputs of one network, for one Python thread at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._recorded: dict[int, tuple[Array, Array, Array, Program]] = {}

    @contextmanager
    def of(self, net: MLP, X: Array) -> Iterator[tuple[Array, Array]]:
        """z of the output layer and a[L] for the rows of X, in arrays that are used again after the with block."""
        with self._lock:
            if len(X) not in self._recorded:
                if len(self._recorded) == SIZES:
                    del self._recorded[next(iter(self._recorded))]
                self._recorded[len(X)] = self._record(net, len(X))
            inputs, Z, A, program = self._recorded[len(X)]
            net.backend.give(program, inputs, X)
            program.run()
            yield Z, A

    def _record(self, net: MLP, n: int) -> tuple[Array, Array, Array, Program]:
        b, units, dtype = net.backend, net.layers, net.dtype
        if n <= FEW:
            a = [b.empty((n, o), dtype) for o in units]
        else:
            room = [b.empty((n * max(units[1:]),), dtype) for _ in range(2)]  # of two neighbouring layers
            a = [b.empty((n, units[0]), dtype), *(room[l % 2][: n * o].reshape(n, o) for l, o in enumerate(units[1:]))]
        A = b.empty(a[-1].shape, dtype)
        with b.capture() as program, b.by_rows() if n <= FEW else nullcontext():
            for l, activation in enumerate((*net.activations, "identity")):
                b.dense_forward(a[l], net.weights[l], net.biases[l], activation, A=a[l + 1])
            b.activate(a[-1], net.output_activation, A=A)
        return a[0], a[-1], A, program
