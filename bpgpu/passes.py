"""What both passes keep and give, to be looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .backend import Array
from .kernels.names import SAVES_Z

if TYPE_CHECKING:
    from .mlp import MLP


@dataclass(frozen=True, eq=False)
class Passes:
    """What the forward pass keeps: a[0] is X, a[L] the network's output, each (n, units)."""

    net: MLP
    a: list[Array]
    saved: list[Array]  # per layer what f'(z) is made of: a[l+1] or z(l); z(L-1) for the output layer

    def z(self, l: int) -> Array:
        """z(l) = a[l] weights[l] + biases[l], of layer l = 0 .. L-1 (-1 is the output layer)."""
        l = range(len(self.saved))[l]
        if l == len(self.saved) - 1 or self.net.activations[l] in SAVES_Z:
            return self.saved[l]
        return self.net.backend.dense_forward(self.a[l], self.net.weights[l], self.net.biases[l])


@dataclass(frozen=True, eq=False)
class Backward:
    """What the backward pass gives: the loss, delta[l] = dL/dz(l) (n, units), and the gradient, laid out as theta."""

    loss: float
    losses: Array  # (n,) of which the loss is the sum: C^n times 1/n, 1 or the example's weight
    delta: list[Array]
    gradient: Array
    dW: list[Array]
    db: list[Array]
