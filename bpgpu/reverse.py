"""The network run in reverse: linear, with the weights W^T, and amplifiers f'(z) that the forward pass has set.

A change dC/dy of the outputs goes in where y came out, and dC/dx comes out where x went in:

    delta[L-1] = dC/dy * f'(z(L-1))      delta[l] = (delta[l+1] weights[l+1]^T) * f'(z(l))      dC/dx = delta[0] weights[0]^T

Softmax is the one layer whose amplifiers are coupled: its dy/dz is the (symmetric) matrix diag(y) - y y^T.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .backend import Array
from .checks import as_matrix
from .kernels.names import SAVES_Z

if TYPE_CHECKING:
    from .passes import Passes


class Reversed(NamedTuple):
    """What comes out of the reversed network: delta[l] = dC/dz(l) (n, units) for every layer, and dX = dC/dx (n, inputs)."""

    delta: list[Array]
    dX: Array


class Reverse:
    """The network of one forward pass, run in reverse on the same kernels: rev(seed) = J^T seed, J = dy/dx of each example.

    It is linear in the seed, because the forward pass has made f'(z) constants.  The weights are those of the network: use
    it before they move, as the passes.
    """

    def __init__(self, passes: Passes) -> None:
        self.passes, self.net = passes, passes.net

    @cached_property
    def gains(self) -> list[Array]:
        """gains[l] = f'(z(l)), (n, units), what each unit multiplies by; none for a softmax output layer (see above)."""
        net, b, n = self.net, self.net.backend, len(self.passes.a[0])
        one = b.asarray(np.ones((n, 1), net.dtype))
        layers = list(zip(self.passes.saved[:-1], net.activations, strict=True))
        if net.output_activation != "softmax":
            f = net.output_activation
            layers.append((self.passes.saved[-1] if f in SAVES_Z else self.passes.a[-1], f))
        ones = [b.asarray(np.ones((saved.shape[1], 1), net.dtype)) for saved, _ in layers]
        return [b.hidden_delta(one, w, saved, f) for w, (saved, f) in zip(ones, layers, strict=True)]  # (1 * 1) f'(z)

    def __call__(self, seed: Any) -> Reversed:
        """Run it: seed (n, outputs) is dC/dy, of any C.  ValueError, TypeError: seed is no such array."""
        delta = self.deltas(self._outputs(self._checked(seed, "seed", self.net.layers[-1])))
        net = self.net
        return Reversed(delta, net.backend.hidden_delta(delta[0], net.weights[0], self.passes.a[0]))

    def deltas(self, delta: Array) -> list[Array]:
        """delta of every layer from the output layer's, which is at hand where C is the loss (net.backward starts here)."""
        net, deltas = self.net, [delta]
        for l in range(len(net.weights) - 1, 0, -1):
            saved = self.passes.saved[l - 1]
            deltas.insert(0, net.backend.hidden_delta(deltas[0], net.weights[l], saved, net.activations[l - 1]))
        return deltas

    def tangent(self, dX: Any) -> Array:
        """The same linear network run forwards: J dX (n, outputs), what a small change dX (n, inputs) does to the outputs.

        <J dX, seed> = <dX, J^T seed>: rev.tangent and rev are adjoint.  ValueError, TypeError: dX is no such array.
        """
        net, b = self.net, self.net.backend
        change = b.asarray(self._checked(dX, "dX", net.layers[0]))
        for l in range(len(net.weights)):
            saved, f = (self.passes.saved[l], net.activations[l]) if l < len(net.activations) else (None, "identity")
            saved = b.empty((len(change), net.layers[l + 1]), net.dtype) if saved is None else saved
            change = b.hidden_delta(change, b.asarray(net.weights[l].T), saved, f)
        return self._outputs(b.to_numpy(change))

    def _outputs(self, change: np.ndarray[Any, Any]) -> Array:
        """dy/dz of the output layer, which is symmetric, on a change of y or of z.  Softmax: y (change - <change, y>)."""
        net, b = self.net, self.net.backend
        if net.output_activation != "softmax":
            return b.asarray(change * b.to_numpy(self.gains[-1]))
        y = b.to_numpy(self.passes.a[-1])
        along = np.cumsum(change * y, axis=1, dtype=net.dtype)[:, -1:]  # ascending
        return b.asarray(y * (change - along))

    def _checked(self, change: Any, name: str, width: int) -> np.ndarray[Any, Any]:
        n = len(self.passes.a[0])
        matrix = as_matrix(self.net.on_host(change, name), dtype=self.net.dtype, width=width, name=name)
        if len(matrix) != n:
            raise ValueError(f"{name} has {len(matrix)} rows; expected {n}, as the forward pass had {n} examples")
        return matrix
