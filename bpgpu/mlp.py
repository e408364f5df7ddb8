"""The network: one flat theta, the forward pass, the backward pass, and the gradient as the product of both.

Layer l = 0 .. L-1 has weights[l] (i, o) and biases[l] (o) and takes a[l] to a[l+1]:

    z(l) = a[l] weights[l] + biases[l]      a[l+1] = f(z(l))      delta[l] = dL/dz(l)      dW[l] = a[l]^T delta[l]
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from . import initializers, per_example
from .backend import Array, Backend, BackendUnavailable
from .checks import as_given, on_gpu, readable_bytes
from .design import Design
from .devices import get_backend
from .inference import Inference
from .initializers import Initializer
from .kernels.names import SAVES_Z
from .optim import Optimizer
from .passes import Backward, Passes
from .per_example import BLOCK, ExampleNorms, NoiseScale, check_limit, clip, limit_array
from .reverse import Reverse
from .shapes import OUTPUTS

if TYPE_CHECKING:
    from .callbacks import Callbacks
    from .epochs import Transform
    from .fitting import History, Order
    from .trace import Trace
    from .training import Trainer


class Views(list[Array]):
    """Arrays that are views of theta: assigning to one copies into it."""

    def __init__(self, arrays: list[Array], write: Callable[[Array, Any], None]) -> None:
        super().__init__(arrays)
        self.write = write

    def __setitem__(self, index: Any, values: Any) -> None:
        array = self[index]
        if values is not array:
            self.write(array, values)


class MLP(Design):
    """A multilayer perceptron of any size, trained by backpropagation.

    layers             units of each layer, the input first: [784, 1024, 1024, 10]
    activation         one name or one for each hidden layer; see bpgpu.ACTIVATIONS
    loss               "cross_entropy" (softmax; labels or rows of probabilities), "binary_cross_entropy" (sigmoid; one or
                       several labels), "squared_error" (halved), "absolute_error", "huber"
    output_activation  given by the first two losses; "identity" unless another is named for the others
    reduction          L is the "mean" (weighted, if examples have weights) or the "sum" of C^n over the examples
    backend            "cpu", "cuda" (or "cuda:1"), "auto", "numpy" or a Backend
    dtype              "float32" or "float64"
    precision          of products: "exact", the same bits on CPU and GPU; or on the GPU, for float32, "fp32-tc", "tf32" or
                       "bf16", which are faster and promise an error bound instead (bpgpu/fast.py)
    seed               of the initial weights, the shuffles and dropout: the same seed gives the same bits on any machine
    dropout            share of the hidden units that each training step leaves out (Srivastava et al., JMLR 2014), or a list
                       for the inputs and each hidden layer; train_step and fit alone do so, the rest uses all units
    initializer        of the weights: "auto" (by the activation), "glorot_uniform", "he_normal", "lecun_uniform", ...,
                       "orthogonal", or a function of the shape (i, o) and a NumPy Generator; see bpgpu.initializers

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
        precision: str = "exact",
        seed: int = 0,
        dropout: float | Sequence[float] = 0.0,
        initializer: str | Initializer = "auto",
    ) -> None:
        super().__init__(
            layers, activation, loss, output_activation, reduction, backend=backend, dtype=dtype, precision=precision,
            seed=seed, dropout=dropout,
        )  # fmt: skip
        self.classes: tuple[str, ...] | None = None  # names of the labels, kept with the model
        self.epochs_trained = 0
        self._take(self._initial_theta(initializers.check(initializer)))

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

    def _initial_theta(self, initializer: str | Initializer) -> np.ndarray[Any, Any]:
        """Biases 0, weights as initializers.py makes them.  MemoryError: there is no room for so many."""
        count = sum(i * o + o for i, o in self.shapes)
        try:
            theta = np.zeros(count, self.dtype)
        except (MemoryError, ValueError):  # more than there is, more than an array can have
            what = f"layers {list(self.layers)} have {count:,} parameters of {self.dtype}"
            raise MemoryError(f"{what}, {readable_bytes(count * self.dtype.itemsize)}; take smaller layers") from None
        weights, _ = self.views(theta)
        for l, (W, name) in enumerate(zip(weights, (*self.activations, self.output_activation), strict=True)):
            W[:] = initializers.weights(initializer, name, self.seed, l, W.shape, self.dtype)
        return theta

    # -- both passes -----------------------------------------------------------------------------------------------------

    def forward(self, X: Any) -> Passes:
        """The forward pass of X (n, inputs), everything kept.

        ValueError, TypeError: X is not what it should be.  MemoryError: the GPU has no room for both passes of so many rows.
        """
        X = self.matrix(X)
        self.check_room(len(X), self.passes_bytes, self.theta.nbytes)
        return self._passes(self.backend.asarray(X))

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
        example, by itself, is made no longer than this (delta then is the clipped one; the loss is what it was).  In float32
        an example whose gradient is longer than 2^64, so that its square is no finite number, is left out.
        """
        b, n, reverse = self.backend, len(passes.a[0]), self.reverse(passes)
        limit = limit_array(clip_per_example, self.dtype)
        scale = b.asarray(self.scale(n, sample_weight))
        delta, losses = b.output_delta(
            passes.saved[-1], b.asarray(self.targets(y, n)), self.loss, self.output_activation, scale=scale
        )
        deltas = reverse.deltas(delta)
        if limit is not None:
            clip(b, passes.a[:-1], deltas, b.asarray(limit), scale)
        gradient = b.empty(self.theta.shape, self.dtype)
        dW, db = self.views(gradient)
        for l, delta in enumerate(deltas):
            b.dense_gradient(passes.a[l], delta, dW=dW[l], db=db[l])
        return Backward(self._sum(losses), losses, deltas, gradient, dW, db)

    def reverse(self, passes: Passes) -> Reverse:
        """The network in reverse, its gains f'(z) fixed by a forward pass: rev(dC/dy) gives every delta and dC/dx.

        TypeError, ValueError: passes is no forward pass of this network.
        """
        if not isinstance(passes, Passes):
            raise TypeError(f"passes is a {type(passes).__name__}; expected a forward pass: passes = net.forward(X)")
        if passes.net is not self:
            raise ValueError("passes is a forward pass of another network; expected one of this: passes = net.forward(X)")
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
        self, X: Any, y: Any, optimizer: Optimizer, *, sample_weight: Any = None, clip_per_example: float | None = None
    ) -> float:
        """One step of gradient descent on one batch; gives the loss before the step, finite or not.

        clip_per_example: see backward.  ValueError, TypeError: an argument is not what it should be; nothing is changed.
        MemoryError: the GPU has no room for such a batch; a size that fits is named.
        """
        X = self.matrix(X)
        y = self.targets(y, len(X))
        weight = None if sample_weight is None else self.sample_weights(sample_weight, len(X))
        trainer = self.trainer(optimizer)
        trainer.clip = check_limit(clip_per_example)
        return trainer.step(optimizer, X, y, weight)

    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        epochs: int = 10,
        batch_size: int = 128,
        micro_batch: int | None = None,
        optimizer: Optimizer | None = None,
        validation_data: tuple[Any, ...] | None = None,
        sample_weight: Any = None,
        class_weight: Any = None,
        label_smoothing: float = 0.0,
        shuffle: Order = True,
        restore_best: bool = False,
        clip_per_example: float | None = None,
        callbacks: Callbacks = None,
        resume: str | os.PathLike[str] | None = None,
        transform: Transform | None = None,
    ) -> History:
        """Train on X (n, inputs) and y for `epochs` epochs of batches of `batch_size` (the last one may be smaller).

        y                labels 0 .. outputs - 1 (n,), or targets (n, outputs), for one output also (n,)
        optimizer        by default SGD(0.05, momentum=0.9)
        micro_batch      how many examples go through the network at a time, a multiple of 256: for batches that do not fit in
                         memory; the result does not depend on it, to the bit
        validation_data  (X, y) or (X, y, sample_weight): loss and accuracy on it after each epoch, the loss weighted
        sample_weight    (n,), none negative
        class_weight     {label: weight}, a weight for each class, or "balanced": the weight of an example is multiplied by it
        label_smoothing  the share of each target that is spread over all classes (Szegedy et al., CVPR 2016)
        shuffle          a new order each epoch, a function of the network's seed and the number of epochs it has trained; or a
                         function of the epoch (0, 1, 2, ...) that gives its order, a permutation of 0 .. n-1
        restore_best     leave the weights of the best epoch (by validation accuracy, else validation loss, else loss), also
                         when Ctrl-C or an error ends the training; without it those of the last step (an EarlyStopping among
                         the callbacks decides instead)
        clip_per_example  dC^n/dtheta of every example (with dropout: of the network that is left) is made no longer than this
                         before they are added up
        callbacks        one or a list of bpgpu.Callback, or of functions of one Progress, called some times a second and
                         after each epoch; True ends the training
        resume           a checkpoint (bpgpu.Checkpoint) of a run with the same network, data and arguments: goes on from there,
                         to the bits of the run that was never interrupted; `epochs` counts from that run's beginning, and
                         callbacks go on if there was one of their class, and begin if there was none.  Functions (a schedule,
                         shuffle, transform) cannot be compared: they must be the same ones
        transform        function of a batch X (n, inputs) and a NumPy Generator, which gives what is trained on in its place,
                         of the same shape (such as bpgpu.Distort); in a thread, ahead of the steps; numbers at random that it
                         takes from the generator are a function of the network's seed, the epoch and the step

        X may also be a memory map or a matrix of scipy.sparse, which are read and made dense some rows at a time, by a thread,
        while others are computed with; or, without y, an iterable of batches (X, y) of any sizes that has an end: it is gone
        through once, and kept on disk if it is large.  The results are the same for the same rows, wherever they are.
        X and y may be on the GPU already.  From the host they are copied there once, or, if they are larger than the free
        memory of the GPU, slab by slab while it computes: the results are the same.

        Raises Diverged when the loss is no longer finite; ValueError and TypeError before any work if an argument is wrong, and
        MemoryError if the GPU has no room for such a batch.
        """
        from .fitting import fit

        return fit(
            self, X, y, epochs=epochs, batch_size=batch_size, micro_batch=micro_batch, optimizer=optimizer,
            validation_data=validation_data, sample_weight=sample_weight, class_weight=class_weight,
            label_smoothing=label_smoothing, shuffle=shuffle, restore_best=restore_best, clip_per_example=clip_per_example,
            callbacks=callbacks, resume=resume, transform=transform,
        )  # fmt: skip

    def trainer(self, optimizer: Optimizer) -> Trainer:
        """The recorded steps of this network under an optimizer, and what its rule keeps."""
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer is a {type(optimizer).__name__}; expected for example bpgpu.SGD(0.05, momentum=0.9)")
        if optimizer not in self._trainers:
            from .training import Trainer

            self._trainers[optimizer] = Trainer(self)
        return self._trainers[optimizer]

    # -- use -------------------------------------------------------------------------------------------------------------

    def outputs(self, X: Any) -> Array:
        """a[L] for every row of X: (n, outputs), where X is: a NumPy array, or for an X on the GPU one of the same library."""
        return as_given(self._outputs(X), X)

    def _outputs(self, X: Any) -> Array:
        X, b, blocks = self.rows(X), self.backend, []
        for s in range(0, len(X), BLOCK):
            with self._inference.of(self, X[s : s + BLOCK]) as (_, A):
                blocks.append(b.copy(A) if on_gpu(X) else np.array(b.to_numpy(A)))
        with b.here():
            return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)

    def predict(self, X: Any) -> Array:
        """Labels (n,) of cross_entropy, 0/1 (n,) or (n, outputs) of binary_cross_entropy, otherwise the outputs."""
        with self.backend.here():
            a = self._decided(self._outputs(X))
        return as_given(a[:, 0] if a.ndim == 2 and a.shape[1] == 1 else a, X)

    def _decided(self, a: Array) -> Array:
        """Labels (n,), 0 and 1 (n, outputs), or the outputs as they are."""
        if self.loss == "cross_entropy":
            return a.argmax(axis=1)
        return (a > 0.5).astype(np.int64) if self.loss == "binary_cross_entropy" else a

    def predict_proba(self, X: Any) -> Array:
        """Probabilities (n, outputs).  ValueError: its loss gives no probabilities."""
        if self.loss not in OUTPUTS:
            raise ValueError(f"a network with the loss {self.loss} has no probabilities; use predict or outputs")
        return self.outputs(X)

    def evaluate(self, X: Any, y: Any, *, sample_weight: Any = None) -> tuple[float, float | None]:
        """(loss, accuracy) on X, y, the loss with sample_weight (n,); the accuracy is None for a regression, and where a row
        has several labels the share of them that is right.  ValueError, TypeError: an argument is not what it should be.
        """
        b, X = self.backend, self.rows(X)
        y, scale = self.targets(y, len(X)), self.scale(len(X), sample_weight)
        losses, right = b.empty((len(X),), self.dtype), 0.0
        for s in range(0, len(X), BLOCK):
            e = min(s + BLOCK, len(X))
            target = b.asarray(y[s:e])
            with self._inference.of(self, X[s:e]) as (Z, A):
                b.output_delta(
                    Z, target, self.loss, self.output_activation, losses=losses[s:e],
                    scale=b.asarray(scale if len(scale) == 1 else scale[s:e]),
                )  # fmt: skip
                if self.loss in OUTPUTS:
                    with b.here():
                        right += self._right(A if on_gpu(y) else b.to_numpy(A), y[s:e])
        return self._sum(losses), (right / len(X) if self.loss in OUTPUTS else None)

    def _right(self, a: Array, y: Array) -> float:
        """How many rows predict() has right; several labels a row count by their share."""
        if self.loss == "cross_entropy":
            return float((self._decided(a) == (y if y.ndim == 1 else y.argmax(axis=1))).sum())
        return float((self._decided(a) == (y > 0.5)).mean(axis=1).sum())

    def _sum(self, losses: Array) -> float:
        total = self.backend.empty((1,), self.dtype)
        self.backend.total(losses, total)
        return float(self.backend.to_numpy(total)[0])

    # -- files -----------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model as safetensors; the file is replaced as a whole or not at all.  OSError: it cannot be written."""
        from .files import save

        save(self, path)

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy: without what optimizers keep for it, what is recorded and what was said."""
        b, left_out = self.backend, ("weights", "biases", "told", "_trainers", "_inference")
        state = {name: value for name, value in vars(self).items() if name not in left_out}
        return state | {"backend": (b.at("exact", self.dtype).name, b.precision), "_theta": np.array(b.to_numpy(self._theta))}

    def __setstate__(self, state: dict[str, Any]) -> None:
        name, precision = state["backend"]
        try:
            state["backend"] = get_backend(name).at(precision, state["dtype"])
        except BackendUnavailable as why:
            warnings.warn(f"the network is on the CPU now, with precision='exact': {why}", stacklevel=2)
            state["backend"] = get_backend("cpu")
        vars(self).update(state)
        self._take(state["_theta"])

    def _take(self, theta: np.ndarray[Any, Any]) -> None:
        """Copy an array of the host as theta."""
        self._theta = self.backend.placed(theta)
        weights, biases = self.views(self._theta)
        self.weights, self.biases = (Views(arrays, self.backend.write) for arrays in (weights, biases))
        self._trainers: WeakKeyDictionary[Optimizer, Trainer] = WeakKeyDictionary()
        self._inference = Inference()
        self.told: set[str] = set()  # kinds of trouble that were said on standard error (bpgpu/health.py)

    def __repr__(self) -> str:
        kinds = dict.fromkeys(self.activations)
        return (
            f"MLP({'-'.join(map(str, self.layers))}, {', '.join(kinds) or 'linear'}, {self.loss}, {self.dtype}, "
            f"{self.backend.name}, {self.theta.size:,} parameters)"
        )
