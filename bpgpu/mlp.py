"""The network: one flat theta, the forward pass, the backward pass, and the gradient as the product of both.

Layer l = 0 .. L-1 has weights[l] (i, o) and biases[l] (o) and takes a[l] to a[l+1]:

    z(l) = a[l] weights[l] + biases[l]      a[l+1] = f(z(l))      delta[l] = dL/dz(l)      dW[l] = a[l]^T delta[l]
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from . import per_example
from .backend import DTYPES, Array, Backend, check_pair, get_backend
from .checks import as_labels, as_matrix, as_numbers, as_targets, as_weights, nearest
from .kernels.names import ACTIVATIONS, LOSSES, SAVES_Z
from .optim import SGD
from .per_example import ExampleNorms, NoiseScale, check_limit, clip
from .random import WEIGHTS, check_seed, uniform
from .reverse import Reverse

if TYPE_CHECKING:
    from .trace import Trace
    from .training import Callback, History, Trainer

BLOCK = 1024  # rows that go through the network at a time in predict and evaluate; results do not depend on it
_OUTPUTS = {"cross_entropy": "softmax", "binary_cross_entropy": "sigmoid"}
# sqrt of the numerator of the uniform limit sqrt(c / fan): He et al. (2015) for the relu family, LeCun (1998) for selu,
# Glorot and Bengio (2010), c = 6 over fan_in + fan_out, for the others
_HE = frozenset({"relu", "leaky_relu", "elu", "gelu", "silu"})


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class Backward:
    """What the backward pass gives: the loss, delta[l] = dL/dz(l) (n, units), and the gradient, laid out as theta."""

    loss: float
    losses: Array  # (n,) of which the loss is the sum: C^n times 1/n, 1 or the example's weight
    delta: list[Array]
    gradient: Array
    dW: list[Array]
    db: list[Array]


class Views(list[Array]):
    """Arrays that are views of theta: assigning to one copies into it."""

    def __setitem__(self, index: Any, values: Any) -> None:
        array = self[index]
        if values is not array:
            array[...] = values


class MLP:
    """A multilayer perceptron of any size, trained by backpropagation.

    layers             units of each layer, the input first: [784, 1024, 1024, 10]
    activation         one name or one for each hidden layer; see bpgpu.ACTIVATIONS
    loss               "cross_entropy" (softmax; labels or rows of probabilities), "binary_cross_entropy" (sigmoid; one or
                       several labels), "squared_error" (halved), "absolute_error", "huber"
    output_activation  given by the first two losses; "identity" unless another is named for the others
    reduction          L is the "mean" (weighted, if examples have weights) or the "sum" of C^n over the examples
    backend            "cpu", "cuda", "auto", "numpy" or a Backend
    dtype              "float32" or "float64"
    seed               of the initial weights and the shuffles: the same seed gives the same bits on any machine

    theta is one flat array {w1, w2, ..., b1, b2, ...}; weights[l] (i, o) and biases[l] (o) are views of it.
    """

    def __init__(
        self,
        layers: Sequence[int],
        *,
        activation: str | Sequence[str] = "relu",
        loss: str = "cross_entropy",
        output_activation: str | None = None,
        reduction: str = "mean",
        backend: str | Backend = "cpu",
        dtype: Any = "float32",
        seed: int = 0,
    ) -> None:
        self.layers = _check_layers(layers)
        self.activations = _check_activations(activation, len(self.layers) - 2)
        self.loss = nearest(loss, LOSSES, "loss")
        self.output_activation = output_activation or _OUTPUTS.get(loss, "identity")
        check_pair(loss, self.output_activation)
        if loss == "cross_entropy" and self.layers[-1] < 2:
            raise ValueError("cross_entropy needs two outputs or more; for one output take binary_cross_entropy")
        self.reduction = nearest(reduction, ("mean", "sum"), "reduction")
        self.dtype = _check_dtype(dtype)
        self.seed = check_seed(seed)
        self.backend = get_backend(backend)
        self.classes: tuple[str, ...] | None = None  # names of the labels, kept with the model
        self.epochs_trained = 0
        self._theta = self.backend.asarray(self._initial_theta())
        weights, biases = self.views(self._theta)
        self.weights, self.biases = Views(weights), Views(biases)
        self._trainers: WeakKeyDictionary[SGD, Trainer] = WeakKeyDictionary()

    # -- theta -----------------------------------------------------------------------------------------------------------

    @property
    def theta(self) -> Array:
        """All parameters, one flat array {w1, w2, ..., b1, b2, ...}.  Assigning to it copies into it."""
        return self._theta

    @theta.setter
    def theta(self, values: Any) -> None:
        if values is not self._theta:
            if np.shape(values) != self._theta.shape:
                raise ValueError(f"theta has shape {self._theta.shape}; it cannot take values of shape {np.shape(values)}")
            self.backend.write(self._theta, values)

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

    def _initial_theta(self) -> np.ndarray[Any, Any]:
        """Biases 0, weights uniform in +-limit, the limit chosen so that z keeps its size from layer to layer."""
        theta = np.zeros(sum(i * o + o for i, o in self.shapes), self.dtype)
        weights, _ = self.views(theta)
        for l, (i, o) in enumerate(self.shapes):
            name = self.activations[l] if l < len(self.activations) else self.output_activation
            limit = math.sqrt(6 / i if name in _HE else 3 / i if name == "selu" else 6 / (i + o))
            weights[l][:] = uniform(self.seed, WEIGHTS + l, (i, o), limit, self.dtype)
        return theta

    # -- both passes -----------------------------------------------------------------------------------------------------

    def forward(self, X: Any) -> Passes:
        """The forward pass of X (n, inputs), everything kept.  ValueError, TypeError: X is not what it should be."""
        return self._passes(self._inputs(X))

    def _passes(self, X: Array) -> Passes:
        a, saved = [X], []
        for l, activation in enumerate(self.activations):
            Z = self.backend.empty((len(a[0]), self.layers[l + 1]), self.dtype) if activation in SAVES_Z else None
            a.append(self.backend.dense_forward(a[l], self.weights[l], self.biases[l], activation, Z=Z))
            saved.append(a[-1] if Z is None else Z)
        saved.append(self.backend.dense_forward(a[-1], self.weights[-1], self.biases[-1]))
        a.append(self.backend.activate(saved[-1], self.output_activation))
        return Passes(self, a, saved)

    def backward(self, passes: Passes, y: Any, *, sample_weight: Any = None, clip_per_example: float | None = None) -> Backward:
        """The backward pass: from the loss against y through the network run in reverse.

        y: labels (n,), or targets (n, outputs); sample_weight (n,) or None.  clip_per_example: dC^n/dtheta of every
        example, by itself, is made no longer than this (delta then is the clipped one; the loss is what it was).
        """
        limit = check_limit(clip_per_example)
        b, n = self.backend, len(passes.a[0])
        scale = b.asarray(self.scale(n, sample_weight))
        delta, losses = b.output_delta(
            passes.saved[-1], b.asarray(self.targets(y, n)), self.loss, self.output_activation, scale=scale
        )
        deltas = self.reverse(passes).deltas(delta)
        if limit is not None:
            clip(b, passes.a[:-1], deltas, b.asarray(np.full(1, limit, self.dtype)), scale)
        gradient = b.empty(self.theta.shape, self.dtype)
        dW, db = self.views(gradient)
        for l, delta in enumerate(deltas):
            b.dense_gradient(passes.a[l], delta, dW=dW[l], db=db[l])
        return Backward(self._sum(losses), losses, deltas, gradient, dW, db)

    def reverse(self, passes: Passes) -> Reverse:
        """The network in reverse, its gains f'(z) fixed by a forward pass: rev(dC/dy) gives every delta and dC/dx."""
        return Reverse(passes)

    def gradient(
        self, X: Any, y: Any, *, sample_weight: Any = None, clip_per_example: float | None = None
    ) -> tuple[float, Array]:
        """(loss, gradient): L and dL/dtheta, the gradient laid out as theta; the arguments are those of backward."""
        back = self.backward(self.forward(X), y, sample_weight=sample_weight, clip_per_example=clip_per_example)
        return back.loss, back.gradient

    def trace(self, x: Any, y: Any) -> Trace:
        """Everything both passes compute of one example x (inputs) or a batch (n, inputs), on the host; print it.

        MemoryError: more than fits; ValueError, TypeError: x or y is not what it should be.
        """
        from .trace import trace

        return trace(self, x, y)

    # -- gradients of single examples (bpgpu/per_example.py) -----------------------------------------------------------------

    def per_example_norms(self, X: Any, y: Any) -> ExampleNorms:
        """|dC^n/dtheta| of every example, in all (n,) and by layer (n, L), at hardly more than the price of both passes.

        |dC^n/dW|^2 = |a_n|^2 |delta_n|^2 for a dense layer (Goodfellow, 2015); no gradient is formed.
        """
        return per_example.norms(self, X, y)

    def per_example_gradients(self, X: Any, y: Any) -> np.ndarray[Any, Any]:
        """dC^n/dtheta of every example, (n, parameters), each row laid out as theta.  MemoryError: more than fits."""
        return per_example.gradients(self, X, y)

    def per_example_gram(self, X: Any, y: Any) -> np.ndarray[Any, Any]:
        """<dC^n/dtheta, dC^m/dtheta> of all pairs of examples, (n, n) float64: (A A^T + 1) * (D D^T), summed over layers.

        MemoryError: more examples than fit.
        """
        return per_example.gram(self, X, y)

    def gradient_noise_scale(self, X: Any, y: Any) -> NoiseScale:
        """trace of the covariance of dC^n/dtheta over |dC/dtheta|^2: about the batch size beyond which a larger one gains
        little.  McCandlish et al., arXiv:1812.06162 (2018), section 2.2.  ValueError: fewer than two examples.
        """
        return per_example.noise_scale(self, X, y)

    # -- training --------------------------------------------------------------------------------------------------------

    def train_step(
        self, X: Any, y: Any, optimizer: SGD, *, sample_weight: Any = None, clip_per_example: float | None = None
    ) -> float:
        """One step of gradient descent on one batch; gives the loss before the step.  clip_per_example: see backward."""
        X = self._inputs(X)
        y, scale = self.targets(y, len(X)), self.scale(len(X), sample_weight)
        trainer = self.trainer(optimizer)
        trainer.clip = check_limit(clip_per_example)
        return trainer.step(optimizer, X, y, scale)

    def fit(
        self,
        X: Any,
        y: Any,
        *,
        epochs: int = 10,
        batch_size: int = 128,
        optimizer: SGD | None = None,
        validation_data: tuple[Any, Any] | None = None,
        sample_weight: Any = None,
        shuffle: bool = True,
        restore_best: bool = False,
        clip_per_example: float | None = None,
        callback: Callback | None = None,
    ) -> History:
        """Train for a number of epochs; see bpgpu.training.fit.  The default optimizer is SGD(0.05, momentum=0.9)."""
        from .training import fit

        return fit(
            self, X, y, epochs=epochs, batch_size=batch_size, optimizer=optimizer, validation_data=validation_data,
            sample_weight=sample_weight, shuffle=shuffle, restore_best=restore_best, clip_per_example=clip_per_example,
            callback=callback,
        )  # fmt: skip

    def trainer(self, optimizer: SGD) -> Trainer:
        """The recorded steps and the velocity of this network under an optimizer."""
        if not isinstance(optimizer, SGD):
            raise TypeError(f"optimizer is a {type(optimizer).__name__}; expected for example bpgpu.SGD(0.05, momentum=0.9)")
        if optimizer not in self._trainers:
            from .training import Trainer

            self._trainers[optimizer] = Trainer(self)
        return self._trainers[optimizer]

    # -- use -------------------------------------------------------------------------------------------------------------

    def outputs(self, X: Any) -> np.ndarray[Any, Any]:
        """a[L] for every row of X: (n, outputs), on the host."""
        X = self._inputs(X)
        blocks = [self.backend.to_numpy(self._forward_only(X[s : s + BLOCK])) for s in range(0, len(X), BLOCK)]
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)

    def predict(self, X: Any) -> np.ndarray[Any, Any]:
        """Labels (n,) of cross_entropy, 0/1 (n,) or (n, outputs) of binary_cross_entropy, otherwise the outputs."""
        a = self._decided(self.outputs(X))
        return a[:, 0] if a.ndim == 2 and a.shape[1] == 1 else a

    def _decided(self, a: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Labels (n,), 0 and 1 (n, outputs), or the outputs as they are."""
        if self.loss == "cross_entropy":
            return np.asarray(np.argmax(a, axis=1))
        return (a > 0.5).astype(np.int64) if self.loss == "binary_cross_entropy" else a

    def predict_proba(self, X: Any) -> np.ndarray[Any, Any]:
        """Probabilities (n, outputs).  ValueError: the loss is none of probabilities."""
        if self.loss not in _OUTPUTS:
            raise ValueError(f"a network with the loss {self.loss} has no probabilities; use predict or outputs")
        return self.outputs(X)

    def evaluate(self, X: Any, y: Any, *, sample_weight: Any = None) -> tuple[float, float | None]:
        """(loss, accuracy) on X, y; the accuracy is None for a regression."""
        b, X = self.backend, self._inputs(X)
        y, scale = self.targets(y, len(X)), self.scale(len(X), sample_weight)
        losses, right = b.empty((len(X),), self.dtype), 0.0
        for s in range(0, len(X), BLOCK):
            e = min(s + BLOCK, len(X))
            target = b.asarray(y[s:e])
            Z = self._logits(X[s:e])
            b.output_delta(
                Z, target, self.loss, self.output_activation, losses=losses[s:e],
                scale=b.asarray(scale if len(scale) == 1 else scale[s:e]),
            )  # fmt: skip
            if self.loss in _OUTPUTS:
                right += self._right(b.to_numpy(b.activate(Z, self.output_activation, A=Z)), y[s:e])
        return self._sum(losses), (right / len(X) if self.loss in _OUTPUTS else None)

    def _right(self, a: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> float:
        """How many rows predict() has right; several labels a row count by their share."""
        if self.loss == "cross_entropy":
            return float(np.sum(self._decided(a) == (y if y.ndim == 1 else np.argmax(y, axis=1))))
        return float(np.mean(self._decided(a) == (y > 0.5), axis=1).sum())

    def _logits(self, X: Array) -> Array:
        """z of the output layer, nothing else kept."""
        A = X
        for l, activation in enumerate((*self.activations, "identity")):
            A = self.backend.dense_forward(A, self.weights[l], self.biases[l], activation)
        return A

    def _forward_only(self, X: Array) -> Array:
        Z = self._logits(X)
        return self.backend.activate(Z, self.output_activation, A=Z)

    def _sum(self, losses: Array) -> float:
        total = self.backend.empty((1,), self.dtype)
        self.backend.total(losses, total)
        return float(self.backend.to_numpy(total)[0])

    # -- the caller's arrays ---------------------------------------------------------------------------------------------

    def _inputs(self, X: Any) -> Array:
        return self.backend.asarray(as_matrix(X, dtype=self.dtype, width=self.layers[0]))

    def targets(self, y: Any, n: int) -> np.ndarray[Any, Any]:
        """y as the loss wants it: int64 labels (n,) for cross_entropy if they are labels, otherwise (n, outputs).

        Labels (n,) for several outputs mean rows of 0 and one 1, for any loss.
        """
        outputs = self.layers[-1]
        y = y if hasattr(y, "shape") else as_numbers(y, "y")
        shape = tuple(y.shape)
        if outputs > 1 and (len(shape) < 2 or shape[1:] == (1,)):
            labels = as_labels(y, n=n, classes=outputs)
            return labels if self.loss == "cross_entropy" else np.eye(outputs, dtype=self.dtype)[labels]
        targets = as_targets(y, n=n, width=outputs, dtype=self.dtype)
        if self.loss in _OUTPUTS and (targets.min() < 0 or targets.max() > 1):
            raise ValueError(f"y has values from {targets.min()} to {targets.max()}; {self.loss} expects probabilities, 0 to 1")
        if self.loss == "cross_entropy":
            worst = int(np.abs(targets.sum(axis=1) - 1).argmax())
            if abs((total := float(targets[worst].sum())) - 1) > 1e-3:
                raise ValueError(f"the probabilities y[{worst}] add up to {total:g}; expected 1 in every row, or labels (n,)")
        return targets

    def scale(self, n: int, sample_weight: Any = None) -> np.ndarray[Any, Any]:
        """What each C^n is multiplied by: (1,) without weights, otherwise (n,)."""
        if sample_weight is None:
            return np.full(1, 1 / n if self.reduction == "mean" else 1, self.dtype)
        weight = as_weights(sample_weight, n=n, dtype=self.dtype)
        return self.normalized(weight)

    def normalized(self, weight: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The weights of a batch, over their sum if the reduction is the mean (all 0 if they are all 0)."""
        if self.reduction == "sum":
            return weight
        _, exponent = np.frexp(weight.max())
        weight = np.ldexp(weight.astype(np.float64), -exponent)  # exact, and the sum cannot overflow
        return (weight / (math.fsum(weight) or 1.0)).astype(self.dtype)

    # -- files -----------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model as safetensors; the file is replaced as a whole or not at all.  OSError: it cannot be written."""
        from .files import save

        save(self, path)

    def __repr__(self) -> str:
        kinds = dict.fromkeys(self.activations)
        return (
            f"MLP({'-'.join(map(str, self.layers))}, {', '.join(kinds) or 'linear'}, {self.loss}, {self.dtype}, "
            f"{self.backend.name}, {self.theta.size:,} parameters)"
        )


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
