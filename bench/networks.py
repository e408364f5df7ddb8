"""The networks that are timed, with the numbers at random that every competitor starts from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Array = np.ndarray[Any, Any]

LEARNING_RATE = 1e-3  # of timed steps
FIT_RATE, FIT_MOMENTUM = 0.05, 0.9  # of a whole fit on MNIST
CLIP = 1.0  # the longest that an example's gradient may be, where they are clipped; here all are longer


@dataclass(frozen=True)
class Network:
    name: str
    layers: tuple[int, ...]
    activation: str
    batch: int
    dtype: Literal["float32", "float64"] = "float32"

    @property
    def shapes(self) -> list[tuple[int, int]]:
        return list(zip(self.layers, self.layers[1:], strict=False))

    @property
    def parameters(self) -> int:
        return sum(i * o + o for i, o in self.shapes)

    @property
    def flops(self) -> int:
        """Of the step's matrix products: Z and dW for each layer, dX for each but the first."""
        products = [i * o for i, o in self.shapes]
        return 2 * self.batch * (3 * sum(products) - products[0])

    @property
    def forward_flops(self) -> int:
        return 2 * self.batch * sum(i * o for i, o in self.shapes)

    def weights(self) -> list[Array]:
        """One (i, o) matrix a layer, such that z keeps its size from layer to layer.  Biases start at 0."""
        rng = np.random.default_rng(1)
        return [rng.standard_normal(s, self.dtype) * np.array(s[0] ** -0.5, self.dtype) for s in self.shapes]

    def data(self, batches: int = 1) -> tuple[Array, Array]:
        """X and labels y; the first batch is the same however many there are."""
        rng_X, rng_y = np.random.default_rng(2), np.random.default_rng(3)
        n = batches * self.batch
        return rng_X.standard_normal((n, self.layers[0]), self.dtype), rng_y.integers(0, self.layers[-1], n)

    def __str__(self) -> str:
        dtype = "" if self.dtype == "float32" else f" {self.dtype}"
        return f"{'-'.join(map(str, self.layers))} {self.activation} b{self.batch}{dtype}"


_MNIST = (784, 1024, 1024, 10)
NETWORKS = {
    n.name: n
    for n in (
        Network("small", (784, 128, 64, 10), "relu", 32),
        Network("mnist", _MNIST, "relu", 128),
        Network("deep", (784, 2500, 2000, 1500, 1000, 500, 10), "tanh", 256),
        Network("mnist-sigmoid", _MNIST, "sigmoid", 128),
        Network("mnist-4096", _MNIST, "sigmoid", 4096),
        Network("mnist-1", _MNIST, "relu", 1),
        Network("mnist-8", _MNIST, "relu", 8),
        Network("wide", (1024, 4096, 4096, 1000), "gelu", 64),
        Network("double", (784, 512, 10), "relu", 128, "float64"),
    )
}
GPU_NETWORKS = {
    n.name: n
    for n in (
        NETWORKS["mnist"],
        Network("mnist-32", _MNIST, "relu", 32),
        Network("mnist-1024", _MNIST, "relu", 1024),
        NETWORKS["deep"],
        Network("square", (1024, 2048, 2048, 2048, 1024), "relu", 1024),
        Network("large", (4096,) * 5, "relu", 8192),
    )
}
BATCHES = [Network(f"batch-{n}", _MNIST, "relu", n) for n in (1, 8, 32, 128, 512, 1024, 4096)]
WIDTHS = [Network(f"width-{w}", (784, w, w, 10), "relu", 128) for w in (256, 512, 1024, 2048, 4096)]
EVERY = NETWORKS | {n.name: n for n in (*BATCHES, *WIDTHS)}
DEFAULT = ("small", "mnist", "deep")
