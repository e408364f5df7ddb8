"""What a network is before it has parameters: its layers and functions, and how a caller's arrays become its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .backend import Array, Backend
from .checks import amount, as_labels, as_matrix, as_numbers, as_targets, as_weights, nearest, on_gpu, readable_bytes
from .devices import get_backend
from .inference import numbers_kept
from .kernels.names import ACTIVATIONS, DTYPES, LOSSES, SAVES_Z
from .per_example import BLOCK
from .random import check_seed
from .shapes import OUTPUTS, check_pair
from .streams import Rows, as_rows


class Design:
    """The arguments of MLP, checked; see there."""

    def __init__(
        self, layers: Sequence[int], activation: str | Sequence[str], loss: str, output_activation: str | None, reduction: str,
        *, backend: str | Backend, dtype: Any, precision: str, seed: int, dropout: float | Sequence[float],
    ) -> None:  # fmt: skip
        self.layers = _check_layers(layers)
        self.activations = _check_activations(activation, len(self.layers) - 2)
        self.loss = nearest(loss, LOSSES, "loss")
        self.output_activation = output_activation or OUTPUTS.get(loss, "identity")
        check_pair(loss, self.output_activation)
        if loss == "cross_entropy" and self.layers[-1] < 2:
            raise ValueError("cross_entropy needs two outputs or more; for one output take binary_cross_entropy")
        self.reduction = nearest(reduction, ("mean", "sum"), "reduction")
        self.dtype = _check_dtype(dtype)
        self.seed = check_seed(seed)
        self.dropout = _check_dropout(dropout, len(self.activations))
        self.backend = get_backend(backend).at(precision, self.dtype)

    # -- theta, laid out -------------------------------------------------------------------------------------------------

    @property
    def shapes(self) -> list[tuple[int, int]]:
        return list(zip(self.layers, self.layers[1:], strict=False))

    def views(self, flat: Array) -> tuple[list[Array], list[Array]]:
        """Weights and biases, layer by layer, as views of an array laid out as theta."""
        weights, biases, start = [], [], 0
        for i, o in self.shapes:
            weights.append(flat[start : start + i * o].reshape(i, o))
            start += i * o
        for _, o in self.shapes:
            biases.append(flat[start : start + o])
            start += o
        return weights, biases

    # -- the caller's arrays ---------------------------------------------------------------------------------------------

    def matrix(self, X: Any) -> Array:
        """X (n, inputs) as a checked array of the network's dtype, on the host or on the GPU as it was given."""
        return self.rows(X)[:]

    def rows(self, X: Any, name: str = "X") -> Array | Rows:
        """X as matrix() gives it, but Rows of a memory map or a sparse matrix, which are read when they are used."""
        X = self.backend.adopt(X, name)
        rows = as_rows(X, dtype=self.dtype, width=self.layers[0], name=name)
        with self.backend.here():
            return as_matrix(X, dtype=self.dtype, width=self.layers[0], name=name) if rows is None else rows

    def targets(self, y: Any, n: int, name: str = "y") -> Array:
        """y as the loss wants it: int64 labels (n,) for cross_entropy if they are labels, otherwise (n, outputs).

        Labels (n,) for several outputs mean rows of 0 and one 1, for any loss.  On the host or the GPU, as it was given.
        """
        y = self.backend.adopt(y, name)
        with self.backend.here():
            return self._targets(y if hasattr(y, "shape") else as_numbers(y, name), n, name)

    def _targets(self, y: Any, n: int, name: str) -> Array:
        outputs, shape = self.layers[-1], tuple(y.shape)
        if outputs > 1 and (len(shape) < 2 or shape[1:] == (1,)):
            labels = as_labels(y, n=n, classes=outputs, name=name)
            return labels if self.loss == "cross_entropy" else self.one_hot(labels, outputs)
        targets = as_targets(y, n=n, width=outputs, dtype=self.dtype, name=name)
        if self.loss in OUTPUTS and (targets.min() < 0 or targets.max() > 1):
            found = f"{targets.min()} to {targets.max()}"
            raise ValueError(f"{name} has values from {found}; {self.loss} expects probabilities, 0 to 1")
        if self.loss == "cross_entropy":
            worst = int(np.abs(targets.sum(axis=1) - 1).argmax())
            if abs((total := float(targets[worst].sum())) - 1) > 1e-3:
                row = f"the probabilities {name}[{worst}]"
                raise ValueError(f"{row} add up to {total:g}; expected 1 in every row, or labels (n,)")
        return targets

    def one_hot(self, labels: Array, classes: int) -> Array:
        """Rows (n, classes) of 0 and one 1, on the host or on the GPU as the labels are."""
        rows, b = np.eye(classes, dtype=self.dtype), self.backend
        if not on_gpu(labels):
            return rows[labels]
        b.gather(b.asarray(rows), labels, hot := b.empty((len(labels), classes), self.dtype))
        return hot

    def scale(self, n: int, sample_weight: Any = None) -> np.ndarray[Any, Any]:
        """What each C^n is multiplied by: (1,) without weights, otherwise (n,)."""
        if sample_weight is None:
            return np.full(1, 1 / n if self.reduction == "mean" else 1, self.dtype)
        return self.normalized(self.sample_weights(sample_weight, n))

    def sample_weights(self, weight: Any, n: int, name: str = "sample_weight") -> np.ndarray[Any, Any]:
        """One checked weight for each example, on the host: they are few."""
        return as_weights(self.on_host(weight, name), n=n, dtype=self.dtype, name=name)

    def on_host(self, array: Any, name: str) -> Any:
        """What a caller gives; an array on the GPU is copied to the host."""
        array = self.backend.adopt(array, name)
        return self.backend.to_numpy(array) if on_gpu(array) else array

    def normalized(self, weight: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The weights of a batch, over their sum if the reduction is the mean (all 0 if they are all 0)."""
        if self.reduction == "sum":
            return weight
        _, exponent = np.frexp(weight.max())
        weight = np.ldexp(weight.astype(np.float64), -exponent)  # exact, and the sum cannot overflow
        return (weight / (math.fsum(weight) or 1.0)).astype(self.dtype)

    # -- memory ----------------------------------------------------------------------------------------------------------

    @property
    def saved_z(self) -> int:
        """Numbers that are kept of each example beside a: z of the layers whose f' is made of it."""
        return sum(o for o, f in zip(self.layers[1:], self.activations, strict=False) if f in SAVES_Z)

    @property
    def passes_bytes(self) -> int:
        """Memory that both passes keep for an example: a, z and delta of each layer, z and y of the last, some numbers."""
        return self.dtype.itemsize * (sum(self.layers) + self.saved_z + sum(self.layers[1:]) + 2 * self.layers[-1] + 3)

    def evaluation_bytes(self, n: int) -> int:
        """Memory that evaluate takes for n examples: forward passes of a block and of the last one, targets and delta of a
        block, and every loss.
        """
        block, last = min(n, BLOCK), n % BLOCK if n > BLOCK else 0
        numbers = numbers_kept(self.layers, block) + numbers_kept(self.layers, last) + 2 * block * self.layers[-1] + n
        return numbers * self.dtype.itemsize + 8 * block

    def check_room(self, n: int, bytes_each: int, besides: int = 0) -> None:
        """MemoryError: the device has less room than n examples at a time need, each so many bytes."""
        free, needed = self.backend.free_bytes(), besides + n * bytes_each
        if needed > free:
            fits = int(max(0, free - besides)) // bytes_each
            mend = f"a batch of {fits} would fit" if fits else "not one example would fit, take a smaller network"
            needs, has = readable_bytes(needed), readable_bytes(free)
            raise MemoryError(f"a batch of {n} needs {needs} of GPU memory and {has} are free; {mend}")


def _check_layers(layers: Sequence[int]) -> tuple[int, ...]:
    try:
        sizes = tuple(layers)
    except TypeError:
        sizes = ()
    if len(sizes) < 2 or not all(isinstance(s, (int, np.integer)) and not isinstance(s, bool) and s > 0 for s in sizes):
        raise ValueError(f"layers is {layers!r}; expected two or more positive integers such as [784, 1024, 10]")
    return tuple(int(s) for s in sizes)


def _check_dtype(dtype: Any) -> np.dtype[Any]:
    try:
        name = dtype if isinstance(dtype, str) else np.dtype(dtype).name if dtype is not None else None
    except TypeError:
        name = repr(dtype)
    return np.dtype(nearest(name, DTYPES, "dtype"))


def _check_activations(activation: str | Sequence[str], hidden: int) -> tuple[str, ...]:
    if not isinstance(activation, (str, list, tuple)):
        raise TypeError(f"activation is {activation!r}; expected a name such as 'relu', or a list of one for each hidden layer")
    names = (activation,) * hidden if isinstance(activation, str) else tuple(activation)
    for name in (activation,) if isinstance(activation, str) else names:
        nearest(name, ACTIVATIONS, "activation")
    if len(names) != hidden:
        raise ValueError(f"{len(names)} activations for {hidden} hidden layers; expected one name, or one for each")
    return names


def _check_dropout(dropout: float | Sequence[float], hidden: int) -> tuple[float, ...]:
    rates = dropout if isinstance(dropout, (list, tuple)) else (0.0, *[dropout] * max(hidden, 1))
    for rate in rates:
        if amount("dropout", rate) >= 1:
            raise ValueError(f"dropout is {rate!r}; expected less than 1, for example 0.5")
    if isinstance(dropout, (list, tuple)) and len(rates) != 1 + hidden:
        raise ValueError(f"{len(rates)} rates of dropout; expected one number, or {1 + hidden}: inputs, then each hidden layer")
    return tuple(amount("dropout", rate) for rate in rates[: 1 + hidden])
