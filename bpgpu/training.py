"""Training: a step recorded once and replayed, epochs of shuffled batches, and what is kept of them.

A step is the lecture's: forward pass, output delta, from the last layer to the first the hidden deltas, then the updates
(which take the place of the gradient: no gradient array is written).  On any backend the step is recorded as a Program, and
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
from .checks import as_matrix, as_weights
from .health import Health, Observer
from .kernels.names import SAVES_Z
from .optim import SGD
from .per_example import check_limit, clip
from .random import SHUFFLE, permutation

if TYPE_CHECKING:
    from .mlp import MLP

SLICE_SECONDS = 0.1  # how long a replay may take before Python looks at Ctrl-C and reports progress


@dataclass
class History:
    """What happened, one entry an epoch: mean loss of the batches, validation loss and accuracy, seconds of training.

    health has an entry now and then (bpgpu/health.py), notes a sentence for each kind of trouble that was seen.
    """

    loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    validation_accuracy: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    health: list[Health] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
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

    def __init__(self, net: MLP, n: int, labels: bool, weighted: bool, limit: float | None) -> None:
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
        self.limit = None if limit is None else b.asarray(np.full(1, limit, net.dtype))  # of an example's gradient
        self.delta = [b.empty((n, o), net.dtype) for o in units[1:]]

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
        for l in range(last, 0, -1):
            saved = self.a[l] if self.z[l - 1] is None else self.z[l - 1]
            b.hidden_delta(self.delta[l], net.weights[l], saved, net.activations[l - 1], dZ_below=self.delta[l - 1])
        if self.limit is not None:
            clip(b, self.a[:-1], self.delta, self.limit, self.scale)
        with b.together():
            for l in range(last + 1):
                trainer.record_update(l, self.a[l], self.delta[l])
            b.total(self.losses, losses)


class Trainer:
    """One network under one optimizer: the velocity, the numbers of the rule on the device, and recorded steps."""

    def __init__(self, net: MLP) -> None:
        self.net, self.rule = net, ""
        self.clip: float | None = None  # the longest that an example's gradient may be
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
            self.rule = optimizer.rule
            self._steps.clear()
            if self.rule != "sgd" and self.velocity is None:
                self.velocity = net.backend.asarray(np.zeros(net.theta.shape, net.dtype))

    def forget(self) -> None:
        """Start again from rest."""
        if self.velocity is not None:
            self.net.backend.write(self.velocity, np.zeros(self.net.theta.shape, self.net.dtype))

    def step(self, optimizer: SGD, X: Array, y: np.ndarray[Any, Any], scale: np.ndarray[Any, Any]) -> float:
        """One step on one batch (arrays as the network's checks leave them); the loss before the step."""
        self.prepare(optimizer)
        b, key = self.net.backend, (len(X), y.ndim, len(scale) > 1, self.clip)
        if key not in self._steps:
            step = Step(self.net, len(X), y.ndim == 1, len(scale) > 1, self.clip)
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
    """The recorded steps of whole epochs over one data set: full batches, and the smaller one at the end if there is one."""

    def __init__(self, trainer: Trainer, X: Array, y: Array, weight: np.ndarray[Any, Any] | None, batch_size: int) -> None:
        net, b = trainer.net, trainer.net.backend
        self.net, self.weight, self.n, self.batch = net, weight, len(X), min(batch_size, len(X))
        self.full, self.rest = divmod(self.n, self.batch)
        self.order = b.empty((self.n,), np.int64)
        self.losses = b.empty((self.full + (self.rest > 0),), net.dtype)
        self.scale = b.empty((self.n,), net.dtype)
        ascending = b.asarray(np.arange(self.n))
        self.programs: list[tuple[Program, int]] = []
        for start, n, steps in ((0, self.batch, self.full), (self.full * self.batch, self.rest, 1)):
            if n == 0:
                continue
            step = Step(net, n, y.ndim == 1, weight is not None, trainer.clip)
            losses = self.losses[:steps] if start == 0 else self.losses[steps * self.full :]
            with b.capture() as program:
                with b.together():
                    b.gather(X, self.order[start:], step.X)
                    b.gather(y, self.order[start:], step.y)
                    if weight is not None:
                        b.gather(self.scale[start:], ascending[: n * steps], step.scale)
                step.record(losses, trainer)
            self.programs.append((program, steps))

    def begin(self, order: np.ndarray[Any, Any]) -> None:
        """Set the order of the coming epoch, and with it the weights of the examples in their batches."""
        b = self.net.backend
        b.write(self.order, order)
        if self.weight is not None:
            ordered = self.weight[order]
            batches = [self.net.normalized(ordered[s : s + self.batch]) for s in range(0, self.n, self.batch)]
            b.write(self.scale, np.concatenate(batches))

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
    clip_per_example: float | None,
    callback: Callback | None,
) -> History:
    """Train `net` on X (n, inputs) and y for `epochs` epochs of batches of `batch_size` (the last one may be smaller).

    validation_data  (X, y): loss and accuracy on it after each epoch
    sample_weight    (n,), none negative
    shuffle          a new order each epoch, a function of the network's seed and the number of epochs it has trained
    restore_best     leave the weights of the best epoch (by validation accuracy, else validation loss, else loss), also
                     when Ctrl-C or an error ends the training; without it those of the last step
    clip_per_example  dC^n/dtheta of every example is made no longer than this before they are added up
    callback         called with a Progress some times a second and after each epoch; True ends the training

    Raises Diverged when the loss is no longer finite; ValueError and TypeError before any work if an argument is wrong.
    """
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} is {value!r}; expected a positive integer")
    X = net._inputs(X)
    targets = net.targets(y, len(X))
    weight = None if sample_weight is None else as_weights(sample_weight, n=len(X), dtype=net.dtype)
    if callback is not None and not callable(callback):
        raise TypeError(f"callback is a {type(callback).__name__}; expected a function of one Progress")
    if validation_data is not None:
        if not isinstance(validation_data, (tuple, list)) or len(validation_data) != 2:
            raise TypeError("validation_data must be a pair (X, y)")
        net.targets(validation_data[1], len(as_matrix(validation_data[0], dtype=net.dtype, width=net.layers[0])))
    optimizer = optimizer or SGD(0.05, momentum=0.9)
    trainer = net.trainer(optimizer)
    trainer.clip = check_limit(clip_per_example)
    trainer.prepare(optimizer)
    device_y = net.backend.asarray(targets)
    run = Epochs(trainer, X, device_y, weight, batch_size)
    history, best, good = History(), Best(net, restore_best), net.backend.copy(net.theta)
    observer = Observer(net, X, device_y, run.order)

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

            for examples in _slices(run):
                step = run.first_bad_step(examples)
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
            observer.look(before, history)
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


def _slices(run: Epochs) -> Iterator[int]:
    """Run the epoch, some steps a call; yields how many examples are done."""
    examples, steps_a_call = 0, 1
    for (program, steps), n in zip(run.programs, (run.batch, run.rest), strict=False):
        first = 0
        while first < steps:
            count = min(steps_a_call, steps - first)
            begun = time.perf_counter()
            program.run(first, count)
            seconds = time.perf_counter() - begun
            first, examples = first + count, examples + count * n
            steps_a_call = max(1, min(4 * steps_a_call, int(count * SLICE_SECONDS / max(seconds, 1e-9))))
            yield examples


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
