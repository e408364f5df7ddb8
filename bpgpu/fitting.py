"""fit: the loop over epochs, what is told of it (callbacks.py), and what a checkpoint needs to go on with it to the bit."""

from __future__ import annotations

import math
import os
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

import numpy as np

from .backend import Array, Backend
from .callbacks import Best, Callback, Callbacks, as_callbacks
from .checks import as_weights
from .epochs import Epochs, Transform
from .health import Health, Observer
from .kernels.names import CHUNK
from .labels import class_weights, smoothed
from .mlp import MLP
from .optim import SGD, Optimizer
from .per_example import BLOCK, check_limit
from .random import SHUFFLE, permutation
from .streams import Rows, gathered
from .training import Trainer

Order: TypeAlias = bool | Callable[[int], Any]


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
    notes: dict[str, str] = field(default_factory=dict)
    penalty: list[float] = field(default_factory=list)  # what L2 adds to the loss, if a callback measures_penalty
    best_epoch: int | None = None  # counted from 0; None before the first epoch has ended


@dataclass(frozen=True)
class Progress:
    """Where a run is: what callbacks get, several times a second and at the end of each epoch."""

    epoch: int  # counted from 0
    epochs: int
    examples: int  # of this epoch that have been used
    examples_in_all: int  # of every epoch together
    loss: float  # mean over this epoch so far
    epoch_ended: bool
    history: History
    net: MLP
    optimizer: Optimizer
    save: Callable[[str | os.PathLike[str]], None]  # writes a checkpoint, from which fit(resume=path) goes on


class Diverged(ArithmeticError):
    """The loss is no longer a finite number; the message says where, the weights are those of the last good epoch."""


class Run:
    """One call of fit: all that changes while it goes on."""

    def __init__(
        self, net: MLP, data: Epochs, optimizer: Optimizer, trainer: Trainer, epochs: int, *,
        shuffle: Order, validation: tuple[Any, Any, Any] | None, callbacks: list[Callback], identity: dict[str, Any],
    ) -> None:  # fmt: skip
        self.net, self.data, self.optimizer, self.trainer, self.epochs = net, data, optimizer, trainer, epochs
        self.shuffle, self.validation, self.callbacks, self.identity = shuffle, validation, callbacks, identity
        self.history, self.epoch, self.steps, self.stopped = History(), 0, 0, False  # steps of this epoch that are done
        self.seconds = 0.0  # that they took
        self.good = net.backend.copy(net.theta)  # weights that have given a finite loss, or the first ones
        self.start = self.good  # weights where the steps of this process begin in this epoch, and what the rule kept then
        self.start_states: dict[str, Array] = {}
        self.before = self.good  # weights before this epoch
        self.observer = Observer(net, data)

    def go(self) -> History:
        try:
            self.tell("on_fit_begin", False)
            while self.epoch < self.epochs and not self.stopped:
                self.one_epoch()
        finally:
            self.tell("on_fit_end", False)
        return self.history

    def tell(self, event: str, ended: bool) -> None:
        data, history = self.data, self.history
        loss = history.loss[-1] if ended else data.mean_loss(self.steps) if self.steps else math.nan
        progress = Progress(
            self.epoch, self.epochs, data.examples(self.steps), self.epochs * data.n, loss, ended, history,
            self.net, self.optimizer, self.save,
        )  # fmt: skip
        for callback in self.callbacks:
            if getattr(callback, event)(progress) is True:
                self.stopped = True

    def one_epoch(self) -> None:
        net, data, history = self.net, self.data, self.history
        data.begin(self.optimizer, self.order(), self.steps)
        self.remember()
        if self.steps == 0:
            self.before = self.start
        first = self.steps
        begun = time.perf_counter() - self.seconds
        for steps, bad in data.run(first, data.steps):
            self.steps, self.seconds = steps, time.perf_counter() - begun
            if bad != first:  # the weights before this epoch have given a finite loss
                self.good = self.start
            if bad is not None:
                raise self.diverged(bad, first)
            if steps < data.steps:
                self.tell("on_batch_end", False)
                if self.stopped:
                    return
        if not np.isfinite(net.backend.to_numpy(net.theta)).all():
            raise self.diverged(data.steps, first)
        net.epochs_trained += 1
        history.loss.append(data.mean_loss(data.steps))
        history.seconds.append(self.seconds)
        self.observer.look(self.before, history)
        if data.squares is not None:
            history.penalty.append(data.mean_penalty(self.optimizer))
        if self.validation is not None:
            X, y, weight = self.validation
            loss, accuracy = net.evaluate(X, y, sample_weight=weight)
            history.validation_loss.append(loss)
            if accuracy is not None:
                history.validation_accuracy.append(accuracy)
        self.tell("on_epoch_end", True)
        self.epoch, self.steps, self.seconds = self.epoch + 1, 0, 0.0

    def order(self) -> np.ndarray[Any, Any]:
        n = self.data.n
        if callable(self.shuffle):
            return _permutation(self.shuffle(self.epoch), n)
        return permutation(self.net.seed, SHUFFLE + self.net.epochs_trained, n) if self.shuffle else np.arange(n)

    # -- divergence ------------------------------------------------------------------------------------------------------

    def remember(self) -> None:
        """What is needed to take the steps of this epoch once more."""
        b = self.net.backend
        self.start = b.copy(self.net.theta)
        for name, state in self.trainer.states.items():
            if name not in self.start_states:
                self.start_states[name] = b.empty(state.shape, state.dtype)
            b.write(self.start_states[name], state)

    def diverged(self, bad: int, first: int) -> Diverged:
        """Say where it happened: the steps before `bad` are taken once more, to the same bits, and that step is looked at."""
        net, b, data, trainer = self.net, self.net.backend, self.data, self.trainer
        b.write(net.theta, self.start)
        for name, state in trainer.states.items():
            b.write(state, self.start_states[name])
        trainer.steps_taken -= self.steps - first
        rate = self.optimizer.rate(trainer.steps_taken + bad - first - (bad == data.steps))
        for _ in data.run(first, bad):
            pass
        if bad == data.steps:
            what = f"the weights are no finite numbers at the end of epoch {self.epoch + 1}, {self.bad_layer(None)}"
        else:
            where = self.bad_layer(bad)
            what = f"the loss is no finite number in step {bad + 1} of epoch {self.epoch + 1}, {where}"
        b.write(net.theta, self.good)
        trainer.forget()
        return Diverged(
            f"{what}; the weights are those from before this: lower the learning rate (it is {rate:g}) or scale the inputs"
        )

    def bad_layer(self, step: int | None) -> str:
        """The first layer with weights, or outputs for the examples of a step, that are not finite."""
        net, found = self.net, []
        first, end = (0, 1) if step is None else (step * self.data.batch, self.data.examples(step + 1))
        for start in range(first, end, BLOCK):
            X = None if step is None else self.data.rows(start, min(start + BLOCK, end))[0]
            for l, (W, bias) in enumerate(zip(net.weights, net.biases, strict=True)):
                if X is not None:
                    X = net.backend.dense_forward(X, W, bias, (*net.activations, "identity")[l])
                arrays = [array for array in (W, bias, X) if array is not None]
                bad = [kind for kind, array in enumerate(arrays) if not np.isfinite(net.backend.to_numpy(array)).all()]
                if bad:
                    found.append((l, bad[0]))
                    break
        if not found:
            return "though every layer is finite: the losses or their sum are too large"
        l, kind = min(found)
        return f"first in the {('weights', 'biases', 'outputs')[kind]} of layer {l + 1} of {len(net.weights)}"

    # -- checkpoints -----------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint, which is also a model file.  OSError, in one sentence: it cannot be written."""
        from .files import save

        b, trainer = self.net.backend, self.trainer
        tensors = {f"state.{name}": state for name, state in trainer.states.items()}
        numbers = vars(self.optimizer)
        kept: list[dict[str, Any]] = []
        for i, callback in enumerate(self.callbacks):
            arrays = {name: value for name, value in callback.state().items() if hasattr(value, "dtype")}
            tensors |= {f"callback.{i}.{name}": value for name, value in arrays.items()}
            kept.append({name: value for name, value in callback.state().items() if name not in arrays})
        ended = self.steps == self.data.steps  # the next epoch is where it goes on
        header = {
            "identity": self.identity, "epoch": self.epoch + ended, "steps": 0 if ended else self.steps,
            "seconds": 0.0 if ended else self.seconds, "steps_taken": trainer.steps_taken, "history": asdict(self.history),
            "optimizer": {name: value for name, value in numbers.items() if not callable(value)}, "callbacks": kept,
            "stopped": self.stopped,
        }  # fmt: skip
        if not ended:
            tensors |= {name: numbers[: self.steps] for name, numbers in self.data.measured.items()}
            if self.observer.due(self.epoch, self.history):
                tensors["before"] = self.before
        save(
            self.net, path, {f"run.{name}": np.ascontiguousarray(b.to_numpy(value)) for name, value in tensors.items()}, header
        )

    def resume(self, path: str | os.PathLike[str]) -> None:
        """Take up a checkpoint.  OSError: it cannot be read.  ValueError: it is none, or one of another run."""
        from .files import load, load_run

        header, tensors = load_run(path)
        for name, mine in self.identity.items():
            if (its := header["identity"].get(name)) != mine:
                raise ValueError(f"{path} is of another run: its {name} is {its!r}, here it is {mine!r}")
        net, b, trainer = self.net, self.net.backend, self.trainer
        saved = load(path, backend="numpy")
        vars(self.optimizer).update(header["optimizer"])
        trainer.adopt(self.optimizer)
        b.write(net.theta, saved.theta)
        for name, state in trainer.states.items():
            if f"state.{name}" in tensors:
                b.write(state, tensors[f"state.{name}"])
        trainer.steps_taken, net.epochs_trained = header["steps_taken"], saved.epochs_trained
        self.epoch, self.steps, self.seconds = header["epoch"], header["steps"], header["seconds"]
        self.history = History(**header["history"])
        self.history.health = [Health(**seen) for seen in header["history"]["health"]]
        if self.steps:
            for name, numbers in self.data.measured.items():
                b.write(numbers[: self.steps], tensors[name])
        self.good, self.stopped = b.copy(net.theta), header["stopped"]
        if "before" in tensors:
            self.before = b.asarray(tensors["before"])
        for i, (callback, state) in enumerate(zip(self.callbacks, header["callbacks"], strict=False)):
            prefix = f"callback.{i}."
            arrays = {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
            callback.restore(state | arrays)


def fit(
    net: MLP,
    X: Any,
    y: Any,
    *,
    epochs: int,
    batch_size: int,
    micro_batch: int | None,
    optimizer: Optimizer | None,
    validation_data: tuple[Any, ...] | None,
    sample_weight: Any,
    class_weight: Any,
    label_smoothing: float,
    shuffle: Order,
    restore_best: bool,
    clip_per_example: float | None,
    callbacks: Callbacks,
    resume: str | os.PathLike[str] | None,
    transform: Transform | None,
) -> History:
    """Train `net` on X (n, inputs) and y for `epochs` epochs of batches of `batch_size` (the last one may be smaller).

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
    callbacks        one or a list of bpgpu.callbacks.Callback, or of functions of one Progress, called some times a second and
                     after each epoch; True ends the training
    resume           a checkpoint (bpgpu.Checkpoint) of a run with the same network, data and arguments: goes on from there, to
                     the bits of the run that was never interrupted; `epochs` counts from that run's beginning

    transform        function of a batch X (n, inputs) and a NumPy Generator, which gives what is trained on in its place, of
                     the same shape (such as bpgpu.Distort); in a thread, ahead of the steps; numbers at random that it takes
                     from the generator are a function of the network's seed, the epoch and the step

    X may also be a memory map or a matrix of scipy.sparse, which are read and made dense some rows at a time, by a thread,
    while others are computed with; or, without y, an iterable of batches (X, y) of any sizes that has an end: it is gone
    through once, and kept on disk if it is large.  The results are the same for the same rows, wherever they are.
    X and y may be on the GPU already.  From the host they are copied there once, or, if they are larger than the free memory
    of the GPU, slab by slab while it computes: the results are the same.

    Raises Diverged when the loss is no longer finite; ValueError and TypeError before any work if an argument is wrong, and
    MemoryError if the GPU has no room for such a batch.
    """
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} is {value!r}; expected a positive integer")
    if micro_batch is not None and (not isinstance(micro_batch, (int, np.integer)) or micro_batch < 1 or micro_batch % CHUNK):
        raise ValueError(f"micro_batch is {micro_batch!r}; expected a multiple of {CHUNK}, or None")
    if not isinstance(shuffle, (bool, np.bool_)) and not callable(shuffle):
        raise TypeError(f"shuffle is {shuffle!r}; expected True, False or a function of the epoch that gives its order")
    if y is None:
        if not isinstance(X, Iterable) or hasattr(X, "shape"):
            raise TypeError(f"y is a NoneType; X alone must be an iterable of batches (X, y), not a {type(X).__name__}")
        X, y = gathered(X, dtype=net.dtype, width=net.layers[0])
    X = net.rows(X)
    targets = net.targets(y, len(X))
    weight = None if sample_weight is None else net.sample_weights(sample_weight, len(X))
    if class_weight is not None:
        of_class = class_weights(net, targets, class_weight)
        weight = as_weights(of_class if weight is None else of_class * weight, n=len(X), dtype=net.dtype)
    if label_smoothing:
        targets = smoothed(net, targets, label_smoothing)
    told = sorted(as_callbacks(callbacks), key=lambda callback: callback.saves)  # what is saved has seen everything
    if not any(isinstance(callback, Best) for callback in told):
        told.insert(0, Best(restore=restore_best))
    spare, validation = Observer.room(net, len(X)), None
    if validation_data is not None:
        if not isinstance(validation_data, (tuple, list)) or len(validation_data) not in (2, 3):
            raise TypeError("validation_data must be (X, y) or (X, y, sample_weight)")
        Xv, yv, wv = (*validation_data, None)[:3]
        n = len(Xv := net.rows(Xv, "validation X"))
        yv = net.targets(yv, n, "validation y")
        validation = Xv, yv, None if wv is None else net.sample_weights(wv, n, "validation sample_weight")
        spare = max(spare, net.evaluation_bytes(n))
    optimizer = optimizer or SGD(0.05, momentum=0.9)
    trainer = net.trainer(optimizer)
    trainer.clip = check_limit(clip_per_example)
    trainer.adopt(optimizer)
    if optimizer.varies:
        spare += -(-len(X) // int(batch_size)) * trainer.hyper.nbytes
    identity: dict[str, Any] = {}
    if resume is not None or any(callback.saves for callback in told):
        identity = {
            "layers": list(net.layers), "activations": list(net.activations), "loss": net.loss, "dtype": net.dtype.name,
            "output_activation": net.output_activation, "reduction": net.reduction, "precision": net.backend.precision,
            "seed": net.seed, "clip_per_example": trainer.clip,
            "dropout": list(net.dropout), "optimizer": type(optimizer).__name__, "batch_size": int(batch_size),
            "shuffle": bool(shuffle), "transform": transform is not None, "examples": len(X),
            "data": [None if array is None else _checksum(net.backend, array) for array in (X, targets, weight)],
        }  # fmt: skip
    data = Epochs(
        trainer, X, targets, weight, int(batch_size), micro_batch, spare, transform,
        squares=any(callback.measures_penalty for callback in told),
    )  # fmt: skip
    run = Run(
        net, data, optimizer, trainer, int(epochs), shuffle=shuffle, validation=validation,
        callbacks=told, identity=identity,
    )  # fmt: skip
    if resume is not None:
        run.resume(resume)
    return run.go()


def _permutation(given: Any, n: int) -> np.ndarray[Any, Any]:
    order = np.asarray(given)
    if order.dtype.kind not in "iu" or order.shape != (n,) or not np.array_equal(np.sort(order), np.arange(n)):
        raise ValueError(
            f"shuffle gave an array of shape {order.shape} and dtype {order.dtype}; expected 0 .. {n - 1} in any order"
        )
    return order.astype(np.int64)


def _checksum(backend: Backend, array: Array | Rows) -> int:
    """Of the bytes of an array, the same wherever it is."""
    value, blocks = 0, array.blocks() if isinstance(array, Rows) else [(0, backend.to_numpy(array))]
    for _, block in blocks:
        value = zlib.crc32(np.require(block, array.dtype, ["C"]).reshape(-1).view(np.uint8).data, value)
    return value
