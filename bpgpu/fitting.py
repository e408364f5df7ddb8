"""fit: the loop over epochs, what is told of it (callbacks.py), and what a checkpoint needs to go on with it to the bit."""

from __future__ import annotations

import math
import os
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from .backend import Array
from .callbacks import Best, Callback, Callbacks, as_callbacks
from .checks import as_matrix, as_weights
from .labels import class_weights, smoothed
from .optim import SGD, Optimizer
from .random import SHUFFLE, permutation
from .sparse import SparseEpochs, is_sparse
from .training import Epochs, Trainer

if TYPE_CHECKING:
    from .mlp import MLP

Order: TypeAlias = bool | Callable[[int], Any]


@dataclass
class History:
    """What happened, one entry an epoch: mean loss of the batches, validation loss and accuracy, seconds of training."""

    loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    validation_accuracy: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
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
        shuffle: Order, validation: tuple[Any, Any] | None, callbacks: list[Callback], identity: dict[str, Any],
    ) -> None:  # fmt: skip
        self.net, self.data, self.optimizer, self.trainer, self.epochs = net, data, optimizer, trainer, epochs
        self.shuffle, self.validation, self.callbacks, self.identity = shuffle, validation, callbacks, identity
        self.history, self.epoch, self.steps, self.stopped = History(), 0, 0, False  # steps of this epoch that are done
        self.seconds = 0.0  # that they took
        self.good = net.backend.copy(net.theta)  # weights that have given a finite loss, or the first ones
        self.start = self.good  # weights before this epoch, and what the rule kept then
        self.start_states: dict[str, Array] = {}

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
        first = self.steps
        begun = time.perf_counter() - self.seconds
        for steps in data.run(first, data.steps):
            self.steps, self.seconds = steps, time.perf_counter() - begun
            bad = data.first_bad_step(steps)
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
        if data.squares is not None:
            history.penalty.append(data.mean_penalty(self.optimizer))
        if self.validation is not None:
            loss, accuracy = net.evaluate(*self.validation)
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
            X = data.inputs(b.to_numpy(data.order)[bad * data.batch : (bad + 1) * data.batch])
            what = f"the loss is no finite number in step {bad + 1} of epoch {self.epoch + 1}, {self.bad_layer(X)}"
        b.write(net.theta, self.good)
        trainer.forget()
        return Diverged(
            f"{what}; the weights are those from before this: lower the learning rate (it is {rate:g}) or scale the inputs"
        )

    def bad_layer(self, X: Array) -> str:
        """The first layer with weights, or outputs for X, that are not finite."""
        net, L = self.net, len(self.net.weights)
        for l, (W, bias) in enumerate(zip(net.weights, net.biases, strict=True)):
            if X is not None:
                X = net.backend.dense_forward(X, W, bias, (*net.activations, "identity")[l])
            for array, what in ((W, "weights"), (bias, "biases"), (X, "outputs")):
                if array is not None and not np.isfinite(net.backend.to_numpy(array)).all():
                    return f"first in the {what} of layer {l + 1} of {L}"
        return "though every layer is finite: the losses or their sum are too large"

    # -- checkpoints -----------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint, which is also a model file.  OSError, in one sentence: it cannot be written."""
        from .files import save

        b, trainer = self.net.backend, self.trainer
        tensors = {f"state.{name}": state for name, state in trainer.states.items()} | {
            "losses": self.data.losses[: self.steps]
        }
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
        if ended:
            del tensors["losses"]
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
        if self.steps:
            losses = b.to_numpy(self.data.losses).copy()
            losses[: self.steps] = tensors["losses"]
            b.write(self.data.losses, losses)
        self.good, self.stopped = b.copy(net.theta), header["stopped"]
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
    optimizer: Optimizer | None,
    validation_data: tuple[Any, Any] | None,
    sample_weight: Any,
    class_weight: Any,
    label_smoothing: float,
    shuffle: Order,
    restore_best: bool,
    callbacks: Callbacks,
    resume: str | os.PathLike[str] | None,
) -> History:
    """Train `net` on X (n, inputs) and y for `epochs` epochs of batches of `batch_size` (the last one may be smaller).

    validation_data  (X, y): loss and accuracy on it after each epoch
    sample_weight    (n,), none negative
    class_weight     {label: weight}, a weight for each class, or "balanced": the weight of an example is multiplied by it
    label_smoothing  the share of each target that is spread over all classes (Szegedy et al., CVPR 2016)
    shuffle          a new order each epoch, a function of the network's seed and the number of epochs it has trained; or a
                     function of the epoch (0, 1, 2, ...) that gives its order, a permutation of 0 .. n-1
    restore_best     leave the weights of the best epoch (by validation accuracy, else validation loss, else loss), also
                     when Ctrl-C or an error ends the training; without it those of the last step (an EarlyStopping among
                     the callbacks decides instead)
    callbacks        one or a list of bpgpu.callbacks.Callback, or of functions of one Progress, called some times a second and
                     after each epoch; True ends the training
    resume           a checkpoint (bpgpu.Checkpoint) of a run with the same network, data and arguments: goes on from there, to
                     the bits of the run that was never interrupted; `epochs` counts from that run's beginning

    Raises Diverged when the loss is no longer finite; ValueError and TypeError before any work if an argument is wrong.
    """
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} is {value!r}; expected a positive integer")
    X = X if is_sparse(X) else net._inputs(X)
    n = X.shape[0]
    targets = net.targets(y, n)
    weight = None if sample_weight is None else as_weights(sample_weight, n=n, dtype=net.dtype)
    if class_weight is not None:
        of_class = class_weights(net, targets, class_weight)
        weight = as_weights(of_class if weight is None else of_class * weight, n=n, dtype=net.dtype)
    if label_smoothing:
        targets = smoothed(net, targets, label_smoothing)
    told = sorted(as_callbacks(callbacks), key=lambda callback: callback.saves)  # what is saved has seen everything
    if not any(isinstance(callback, Best) for callback in told):
        told.insert(0, Best(restore=restore_best))
    if validation_data is not None:
        if not isinstance(validation_data, (tuple, list)) or len(validation_data) != 2:
            raise TypeError("validation_data must be a pair (X, y)")
        net.targets(validation_data[1], len(as_matrix(validation_data[0], dtype=net.dtype, width=net.layers[0])))
    optimizer = optimizer or SGD(0.05, momentum=0.9)
    trainer = net.trainer(optimizer)
    trainer.adopt(optimizer)
    identity: dict[str, Any] = {}
    if resume is not None or any(callback.saves for callback in told):
        identity = {
            "layers": list(net.layers), "activations": list(net.activations), "loss": net.loss, "dtype": net.dtype.name,
            "output_activation": net.output_activation, "reduction": net.reduction, "seed": net.seed,
            "dropout": list(net.dropout), "optimizer": type(optimizer).__name__, "batch_size": int(batch_size),
            "shuffle": bool(shuffle), "examples": n,
            "data": [
                None if array is None else _checksum(net.backend.to_numpy(array))
                for array in (X.data if is_sparse(X) else X, targets, weight)
            ],
        }  # fmt: skip
    squares = any(callback.measures_penalty for callback in told)
    data = (SparseEpochs if is_sparse(X) else Epochs)(
        trainer, X, net.backend.asarray(targets), weight, int(batch_size), squares=squares
    )
    run = Run(
        net, data, optimizer, trainer, int(epochs), shuffle=shuffle, validation=validation_data,
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


def _checksum(array: np.ndarray[Any, Any]) -> int:
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
