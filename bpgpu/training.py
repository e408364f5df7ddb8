"""Training: a step recorded once and replayed, epochs of shuffled batches, and what is kept of them.

A step is the lecture's: forward pass, output delta, then from the last layer to the first the hidden delta and the update
(which takes the place of the gradient: no gradient array is written).  On any backend the step is recorded as a Program, and
fit() replays it for many batches a call, so that Python is not in the way.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .backend import Array, Program
from .checks import on_gpu
from .kernels.names import SAVES_Z
from .optim import SGD
from .random import SHUFFLE, permutation

if TYPE_CHECKING:
    from .mlp import MLP

SLAB_BYTES = 1 << 26  # of a data set that is larger than the device should hold: what is copied there at a time
SLICE_SECONDS = 0.1  # how long a replay may take before Python looks at Ctrl-C and reports progress


@dataclass
class History:
    """What happened, one entry an epoch: mean loss of the batches, validation loss and accuracy, seconds of training."""

    loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    validation_accuracy: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    best_epoch: int | None = None  # counted from 0; None before the first epoch has ended


@dataclass(frozen=True)
class Progress:
    """Where a run is: passed to the callback several times a second and at the end of each epoch."""

    epoch: int  # counted from 0
    epochs: int
    examples: int  # of this epoch that have been used
    examples_in_all: int  # of every epoch together
    loss: float  # mean over this epoch so far
    epoch_ended: bool
    history: History


Callback = Callable[[Progress], Any]  # returning True ends the training


class Diverged(ArithmeticError):
    """The loss is no longer a finite number; the message says where, the weights are those of the last good epoch."""


class Step:
    """The arrays of a training step for one batch size."""

    def __init__(self, net: MLP, n: int, labels: bool, weighted: bool) -> None:
        b, units = net.backend, net.layers
        self.net, self.n = net, n
        self.X = b.empty((n, units[0]), net.dtype)
        self.y = b.empty((n,), np.int64) if labels else b.empty((n, units[-1]), net.dtype)
        self.scale = b.empty((n,) if weighted else (1,), net.dtype)
        if not weighted:
            b.write(self.scale, net.scale(n))
        self.losses = b.empty((n,), net.dtype)
        self.a = [self.X, *(b.empty((n, o), net.dtype) for o in units[1:])]
        hidden = zip(units[1:-1], net.activations, strict=True)
        self.z = [b.empty((n, o), net.dtype) if f in SAVES_Z else None for o, f in hidden]
        room = [b.empty((n * max(units[1:]),), net.dtype) for _ in range(2)]  # deltas of two neighbouring layers
        self.delta = [room[l % 2][: n * o].reshape(n, o) for l, o in enumerate(units[1:])]

    @staticmethod
    def bytes_each(net: MLP, labels: bool, weighted: bool) -> int:
        """How much memory the arrays take for each example of the batch."""
        units = net.layers
        numbers = sum(units) + net.saved_z + 2 * max(units[1:]) + 1 + weighted + (0 if labels else units[-1])
        return numbers * net.dtype.itemsize + 8 * labels

    def record(self, losses: Array, trainer: Trainer) -> None:
        """Issue the operations of the step; L of step t goes to losses[t]."""
        net, b, last = self.net, self.net.backend, len(self.net.weights) - 1
        for l in range(last + 1):
            f, Z = (net.activations[l], self.z[l]) if l < last else ("identity", None)
            b.dense_forward(self.a[l], net.weights[l], net.biases[l], f, A=self.a[l + 1], Z=Z)
        b.output_delta(
            self.a[-1], self.y, net.loss, net.output_activation,
            scale=self.scale, dZ=self.delta[last], losses=self.losses,
        )  # fmt: skip
        b.total(self.losses, losses)
        for l in range(last, -1, -1):
            if l > 0:
                saved = self.a[l] if self.z[l - 1] is None else self.z[l - 1]
                b.hidden_delta(self.delta[l], net.weights[l], saved, net.activations[l - 1], dZ_below=self.delta[l - 1])
            trainer.record_update(l, self.a[l], self.delta[l])


class Trainer:
    """One network under one optimizer: the velocity, the numbers of the rule on the device, and recorded steps."""

    def __init__(self, net: MLP) -> None:
        self.net, self.rule = net, ""
        self.hyper = net.backend.empty((2, 3), net.dtype)
        self.losses = net.backend.empty((1,), net.dtype)
        self.velocity: Array = None  # like theta, once there is momentum
        self._steps: dict[tuple[Any, ...], tuple[Step, Program]] = {}

    def record_update(self, l: int, a: Array, delta: Array) -> None:
        net, states = self.net, None
        if self.rule != "sgd":
            weights, biases = net.views(self.velocity)
            states = weights[l], biases[l]
        net.backend.dense_update(a, delta, net.weights[l], net.biases[l], self.rule, self.hyper, states)

    def prepare(self, optimizer: SGD) -> None:
        """Bring the optimizer's present numbers to the device.  (The optimizer is not kept, so that it can be let go.)"""
        net = self.net
        net.backend.write(self.hyper, optimizer.hyper(net.dtype))
        if self.rule != optimizer.rule:
            if optimizer.rule != "sgd" and self.velocity is None:
                self.velocity = net.backend.asarray(np.zeros(net.theta.shape, net.dtype))
            self.rule = optimizer.rule
            self._steps.clear()

    def forget(self) -> None:
        """Start again from rest."""
        if self.velocity is not None:
            self.net.backend.write(self.velocity, np.zeros(self.net.theta.shape, self.net.dtype))

    def step(self, optimizer: SGD, X: Array, y: Array, scale: np.ndarray[Any, Any]) -> float:
        """One step on one batch (arrays as the network's checks leave them); the loss before the step."""
        self.prepare(optimizer)
        b, key = self.net.backend, (len(X), y.ndim, len(scale) > 1)
        if key not in self._steps:
            self.net.check_room(len(X), Step.bytes_each(self.net, y.ndim == 1, len(scale) > 1))
            step = Step(self.net, len(X), y.ndim == 1, len(scale) > 1)
            with b.capture() as program:
                step.record(self.losses, self)
            self._steps[key] = step, program
        step, program = self._steps[key]
        b.write(step.X, X)
        b.write(step.y, y)
        b.write(step.scale, scale)
        program.run()
        return float(b.to_numpy(self.losses)[0])


class Epochs:
    """The recorded steps of whole epochs over one data set: full batches, and the smaller one at the end if there is one.

    X and y stay on the device, or come there slab by slab where they would not fit: the steps gather their batches from one
    of two slabs while the other one is filled.  `slab` is the number of rows of a slab, all of them if the data stay; `spare`
    bytes of memory are left for others.
    """

    def __init__(
        self, trainer: Trainer, X: Array, y: Array, weight: np.ndarray[Any, Any] | None, batch_size: int, spare: int = 0
    ) -> None:
        net, b = trainer.net, trainer.net.backend
        self.net, self.weight, self.n, self.batch = net, weight, len(X), min(batch_size, len(X))
        self.full, self.rest = divmod(self.n, self.batch)
        self.slab = self._rows_of_slab(X, y, spare)
        self.resident = self.slab == self.n
        self.order = b.empty((self.n,), np.int64)
        self.losses = b.empty((self.full + (self.rest > 0),), net.dtype)
        self.scale = b.empty((self.n,), net.dtype)
        ascending = b.asarray(np.arange(self.n))
        if self.resident:
            sources = [(b.asarray(X), b.asarray(y))]
        else:
            self.host = X, b.to_numpy(y) if on_gpu(y) else y
            self.slabs = [[b.buffer((self.slab, *part.shape[1:]), part.dtype) for part in self.host] for _ in range(2)]
            sources = [(X_slab.array, y_slab.array) for X_slab, y_slab in self.slabs]
            b.write(self.order, np.arange(self.n) % self.slab)  # in a slab the examples are in order
        self.programs: list[list[Program]] = []  # of full batches and of the smaller one, for each of the sources
        for start, n, steps in ((0, self.batch, self.full), (self.full * self.batch, self.rest, 1)):
            if n == 0:
                continue
            step = Step(net, n, y.ndim == 1, weight is not None)
            losses = self.losses[:steps] if start == 0 else self.losses[steps * self.full :]
            self.programs.append([])
            for X_source, y_source in sources:
                with b.capture() as program:
                    b.gather(X_source, self.order[start:], step.X)
                    b.gather(y_source, self.order[start:], step.y)
                    if weight is not None:
                        b.gather(self.scale[start:], ascending[: n * steps], step.scale)
                    step.record(losses, trainer)
                self.programs[-1].append(program)

    def _rows_of_slab(self, X: Array, y: Array, spare: int) -> int:
        """How many rows of X and y are to be on the device at a time.  MemoryError: not even two batches have room."""
        net = self.net
        free, row = net.backend.free_bytes(), (X.nbytes + y.nbytes) // self.n
        each = Step.bytes_each(net, y.ndim == 1, self.weight is not None)
        besides = (
            spare + 3 * net.theta.nbytes + self.n * (16 + net.dtype.itemsize)
        )  # copies of theta; order, losses and the like
        batches = (self.batch + self.rest) * each
        if on_gpu(X) or besides + batches + self.n * row <= free:
            net.check_room(self.batch + self.rest, each, besides)
            return self.n
        net.check_room(self.batch, 2 * (each + row), besides)
        room = min(SLAB_BYTES, (free - besides - batches) // 2)
        return max(1, int(room // (self.batch * row))) * self.batch

    def begin(self, order: np.ndarray[Any, Any]) -> None:
        """Set the order of the coming epoch, and with it the weights of the examples in their batches."""
        b = self.net.backend
        if self.resident:
            b.write(self.order, order)
        else:
            self.order_on_host = order
        if self.weight is not None:
            ordered = self.weight[order]
            batches = [self.net.normalized(ordered[s : s + self.batch]) for s in range(0, self.n, self.batch)]
            b.write(self.scale, np.concatenate(batches))

    def slices(self) -> Iterator[tuple[int, int | None]]:
        """Run the epoch, some steps a call; yields how many examples are done, and the first step whose loss is not finite."""
        b, steps_a_call, examples = self.net.backend, 1, 0
        b.join()
        self._fill(0)
        for number, start in enumerate(range(0, self.n, self.slab)):
            b.join()
            next_is_filled, end = False, min(start + self.slab, self.n)
            pieces = [(start // self.batch, end // self.batch, self.batch), (0, int(end == self.n), self.rest)]
            for programs, (first, last, n) in zip(self.programs, pieces, strict=False):
                while first < last:
                    count, begun = min(steps_a_call, last - first), time.perf_counter()
                    programs[number % len(programs)].run(first, count)
                    if not next_is_filled:
                        self._fill(number + 1)
                        next_is_filled = True
                    first, examples = first + count, examples + count * n
                    bad = self.first_bad_step(examples)  # waits for a device that works on its own
                    seconds = time.perf_counter() - begun
                    steps_a_call = max(1, min(4 * steps_a_call, int(count * SLICE_SECONDS / max(seconds, 1e-9))))
                    yield examples, bad

    def _fill(self, number: int) -> None:
        """Begin to bring slab `number` of the present order to the device, if there is one."""
        if not self.resident:
            rows = self.order_on_host[number * self.slab : (number + 1) * self.slab]
            for buffer, source in zip(self.slabs[number % 2], self.host, strict=True):
                if len(rows):
                    buffer.fill(source, rows)

    def first_bad_step(self, examples: int) -> int | None:
        """The first step of this epoch, of those for these examples, whose loss is not finite."""
        bad = ~np.isfinite(self.net.backend.to_numpy(self.losses)[: -(-examples // self.batch)])
        return int(bad.argmax()) if bad.any() else None

    def mean_loss(self, examples: int) -> float:
        """Of the first batches of this epoch that are these examples: the mean (or for reduction "sum" the sum)."""
        sizes = np.diff(np.minimum(np.arange(0, examples + self.batch, self.batch), examples))
        losses = self.net.backend.to_numpy(self.losses)[: len(sizes)].astype(np.float64)
        return float(losses.sum() if self.net.reduction == "sum" else (losses * sizes).sum() / examples)


def fit(
    net: MLP,
    X: Any,
    y: Any,
    *,
    epochs: int,
    batch_size: int,
    optimizer: SGD | None,
    validation_data: tuple[Any, Any] | None,
    sample_weight: Any,
    shuffle: bool,
    restore_best: bool,
    callback: Callback | None,
) -> History:
    """Train `net` on X (n, inputs) and y for `epochs` epochs of batches of `batch_size` (the last one may be smaller).

    validation_data  (X, y): loss and accuracy on it after each epoch
    sample_weight    (n,), none negative
    shuffle          a new order each epoch, a function of the network's seed and the number of epochs it has trained
    restore_best     leave the weights of the best epoch (by validation accuracy, else validation loss, else loss), also
                     when Ctrl-C or an error ends the training; without it those of the last step
    callback         called with a Progress some times a second and after each epoch; True ends the training

    X and y may be on the GPU already.  From the host they are copied there once, or, if they are larger than the free memory
    of the GPU, slab by slab while it computes: the results are the same.

    Raises Diverged when the loss is no longer finite; ValueError and TypeError before any work if an argument is wrong, and
    MemoryError if the GPU has no room for such a batch.
    """
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} is {value!r}; expected a positive integer")
    X = net.matrix(X)
    targets = net.targets(y, len(X))
    weight = None if sample_weight is None else net.sample_weights(sample_weight, len(X))
    if callback is not None and not callable(callback):
        raise TypeError(f"callback is a {type(callback).__name__}; expected a function of one Progress")
    spare = 0
    if validation_data is not None:
        if not isinstance(validation_data, (tuple, list)) or len(validation_data) != 2:
            raise TypeError("validation_data must be a pair (X, y)")
        spare = net.evaluation_bytes(len(net.targets(validation_data[1], len(net.matrix(validation_data[0])))))
    optimizer = optimizer or SGD(0.05, momentum=0.9)
    trainer = net.trainer(optimizer)
    trainer.prepare(optimizer)
    run = Epochs(trainer, X, targets, weight, batch_size, spare)
    history, best, good = History(), Best(net, restore_best), net.backend.copy(net.theta)

    def diverged(what: str) -> Diverged:
        net.backend.write(net.theta, good)
        trainer.forget()
        return Diverged(
            f"{what}; the weights are those from before this: "
            f"lower the learning rate (it is {optimizer.learning_rate:g}) or scale the inputs"
        )

    try:
        for epoch in range(epochs):
            begun, before = time.perf_counter(), net.backend.copy(net.theta)
            order = permutation(net.seed, SHUFFLE + net.epochs_trained, run.n) if shuffle else np.arange(run.n)
            run.begin(order)

            def report(examples: int, ended: bool, epoch: int = epoch) -> bool:
                loss = history.loss[-1] if ended else run.mean_loss(examples)
                done = Progress(epoch, epochs, examples, epochs * run.n, loss, ended, history)
                return callback is not None and callback(done) is True

            for examples, step in run.slices():
                if step != 0:  # the weights before this epoch have given a finite loss
                    good = before
                if step is not None:
                    raise diverged(f"the loss is no finite number in step {step + 1} of epoch {epoch + 1}")
                if examples < run.n and report(examples, False):
                    return history
            if not np.isfinite(net.backend.to_numpy(net.theta)).all():
                raise diverged(f"the weights are no finite numbers at the end of epoch {epoch + 1}")
            net.epochs_trained += 1
            history.loss.append(run.mean_loss(run.n))
            history.seconds.append(time.perf_counter() - begun)
            if validation_data is not None:
                loss, accuracy = net.evaluate(*validation_data)
                history.validation_loss.append(loss)
                if accuracy is not None:
                    history.validation_accuracy.append(accuracy)
            best.see(history)
            if report(run.n, True):
                break
    finally:
        best.restore()
    return history


class Best:
    """The weights of the best epoch so far, if they are to be restored."""

    def __init__(self, net: MLP, keep: bool) -> None:
        self.net, self.keep = net, keep
        self.score, self.theta = -math.inf, None

    def see(self, history: History) -> None:
        losses = history.validation_loss or history.loss
        score = history.validation_accuracy[-1] if history.validation_accuracy else -losses[-1]
        if score > self.score:
            self.score, history.best_epoch = score, len(history.loss) - 1
            if self.keep:
                self.theta = self.net.backend.copy(self.net.theta)

    def restore(self) -> None:
        if self.theta is not None:
            self.net.backend.write(self.net.theta, self.theta)
