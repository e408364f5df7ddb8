"""fit: the loop over epochs, what is told of it (callbacks.py), and what is kept for the case that it diverges."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from . import checkpoint
from .backend import Array
from .callbacks import Best, Callback, Callbacks, as_callbacks, metrics_of
from .checks import as_weights, count
from .epochs import Epochs, Transform
from .health import Health, Observer
from .kernels.interrupt import whole
from .kernels.names import CHUNK
from .labels import class_weights, smoothed
from .mlp import MLP
from .optim import SGD, Optimizer
from .per_example import BLOCK, check_limit
from .random import SHUFFLE, permutation
from .streams import gathered
from .training import Trainer

REMEMBERED = 1000  # steps, after which the weights are kept anew for the case that the next ones diverge

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
    save: Callable[[str | os.PathLike[str]], None]  # writes a checkpoint, from which fit(resume=path) goes on; see Run.save


class Diverged(ArithmeticError):
    """The loss is no longer a finite number; the message says where.  The weights are the last ones that were kept, and whose
    loss was finite: from the beginning of the epoch, or in a long one from some 1000 steps before."""


class Run:
    """One call of fit: all that changes while it goes on."""

    def __init__(
        self, net: MLP, data: Epochs, optimizer: Optimizer, trainer: Trainer, epochs: int, *,
        shuffle: Order, validation: tuple[Any, Any, Any] | None, callbacks: list[Callback], identity: dict[str, Any],
    ) -> None:  # fmt: skip
        self.net, self.data, self.optimizer, self.trainer, self.epochs = net, data, optimizer, trainer, epochs
        self.shuffle, self.validation, self.callbacks, self.identity = shuffle, validation, callbacks, identity
        self.history, self.epoch, self.stopped = History(), 0, False
        self.seconds = 0.0  # that the steps of this epoch took
        self.untold: list[Callback] = []  # who is still to hear of the end of an epoch
        self.good = net.backend.copy(net.theta)  # weights that have given a finite loss, or the first ones
        self.start, self.first = self.good, 0  # weights that are kept, of which step of the epoch, and what the rule kept then
        self.start_states: dict[str, Array] = {}
        self.before = self.good  # weights before this epoch
        self.observer = Observer(net, data)

    def go(self) -> History:
        try:
            self.tell("on_fit_begin")
            while self.epoch < self.epochs and not self.stopped:
                self.one_epoch()
        except BaseException:
            try:
                self.end()
            except Exception as error:  # it must not hide the one that has ended the training
                print(f"bpgpu: {error}", file=sys.stderr)
            raise
        self.end()
        return self.history

    def progress(self, ended: bool = False) -> Progress:
        data, history = self.data, self.history
        loss = history.loss[-1] if ended else data.mean_loss(data.done) if data.done else math.nan
        return Progress(
            self.epoch, self.epochs, data.examples(data.done), self.epochs * data.n, loss, ended, history,
            self.net, self.optimizer, self.save,
        )  # fmt: skip

    def tell(self, event: str, ended: bool = False) -> None:
        progress = self.progress(ended)
        for i, callback in enumerate(self.callbacks):
            self.untold = self.callbacks[i:] if ended else []
            answer = getattr(callback, event)(progress)
            if isinstance(answer, (bool, np.bool_)) and answer:
                self.stopped = True
        self.untold = []

    def end(self) -> None:
        """Everybody hears of the end, even if one fails: first who saves, while the best weights are not restored yet."""
        progress, order = self.progress(), sorted(self.callbacks, key=lambda callback: not callback.saves)
        with ExitStack() as last_in_first_out:
            for callback in reversed(order):
                last_in_first_out.callback(callback.on_fit_end, progress)

    def one_epoch(self) -> None:
        net, data, history = self.net, self.data, self.history
        data.begin(self.optimizer, self.order(), data.done)
        self.remember()
        if data.done == 0:
            self.before = self.start
        begun = time.perf_counter() - self.seconds
        bad = None
        with closing(data.run(data.done, data.steps)) as taken:  # with it ends the thread that fills the next slab
            for steps, bad in taken:
                self.seconds = time.perf_counter() - begun
                if bad != self.first:  # the weights that were kept have given a finite loss
                    self.good = self.start
                if bad is not None:
                    break
                if steps < data.steps:
                    self.tell("on_batch_end")
                    if self.stopped:
                        return
                    if steps - self.first >= REMEMBERED:
                        self.remember()
        if bad is None and not np.isfinite(net.backend.to_numpy(net.theta)).all():
            bad = data.steps
        if bad is not None:
            raise self.diverged(bad)
        loss, accuracy = None, None
        if self.validation is not None:
            X, y, weight = self.validation
            loss, accuracy = net.evaluate(X, y, sample_weight=weight)
        with whole():
            self.untold = self.callbacks
            net.epochs_trained += 1
            history.loss.append(data.mean_loss(data.steps))
            history.seconds.append(self.seconds)
            if data.squares is not None:
                history.penalty.append(data.mean_penalty(self.optimizer))
            if loss is not None:
                history.validation_loss.append(loss)
            if accuracy is not None:
                history.validation_accuracy.append(accuracy)
        self.observer.look(self.before, history)
        self.tell("on_epoch_end", True)
        self.epoch, data.done, self.seconds = self.epoch + 1, 0, 0.0

    def order(self) -> np.ndarray[Any, Any]:
        n = self.data.n
        if callable(self.shuffle):
            return _permutation(self.shuffle(self.epoch), n)
        return permutation(self.net.seed, SHUFFLE + self.net.epochs_trained, n) if self.shuffle else np.arange(n)

    # -- divergence ------------------------------------------------------------------------------------------------------

    def remember(self) -> None:
        """Keep what is needed to take the next steps once more."""
        b = self.net.backend
        self.start, self.first = b.copy(self.net.theta), self.data.done
        for name, state in self.trainer.states.items():
            if name not in self.start_states:
                self.start_states[name] = b.empty(state.shape, state.dtype)
            b.write(self.start_states[name], state)

    def diverged(self, bad: int) -> Diverged:
        """Say where it happened: the steps before `bad` are taken once more, to the same bits, and that step is looked at."""
        net, b, data, trainer, first = self.net, self.net.backend, self.data, self.trainer, self.first
        b.write(net.theta, self.start)
        for name, state in trainer.states.items():
            b.write(state, self.start_states[name])
        trainer.steps_taken, data.done = trainer.steps_taken - (data.done - first), first
        rate = self.optimizer.rate(trainer.steps_taken + bad - first - (bad == data.steps))
        for _ in data.run(first, bad):
            pass
        data.between_steps = False  # what follows is no place to go on from
        if bad == data.steps:
            where = bad_layer(net, [None])
            what = f"the weights are no finite numbers at the end of epoch {self.epoch + 1}, {where}"
        else:
            end = data.examples(bad + 1)
            blocks = (data.rows(s, min(s + BLOCK, end))[0] for s in range(bad * data.batch, end, BLOCK))
            what = f"the loss is no finite number in step {bad + 1} of epoch {self.epoch + 1}, {bad_layer(net, blocks)}"
        b.write(net.theta, self.good)
        trainer.forget()
        return Diverged(
            f"{what}; the weights are those from before this: lower the learning rate (it is {rate:g}) or scale the inputs"
        )

    # -- checkpoints -----------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint, which is also a model file; nothing where there is no way on: if a number is not finite, a step
        was cut off, or an error has kept the end of an epoch from a callback that has a state.

        OSError, in one sentence: it cannot be written.
        """
        data, theta = self.data, self.net.backend.to_numpy(self.net.theta)
        cut_off = not data.between_steps or any(callback.state() for callback in self.untold if not callback.saves)
        if not cut_off and data.first_bad_step(data.done) is None and np.isfinite(theta).all():
            checkpoint.write(self, path)


def bad_layer(net: MLP, blocks: Iterable[Array | None]) -> str:
    """The first layer with weights, or outputs for blocks of examples, that are not finite."""
    found = []
    for X in blocks:
        X = None if X is None else net.backend.asarray(X)
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
    return f"first in the {('weights', 'biases', 'outputs')[kind]} of layer {l} of 0 to {len(net.weights) - 1}"


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
    """MLP.fit, where the arguments are described."""
    epochs, batch_size = count("epochs", epochs), count("batch_size", batch_size)
    if micro_batch is not None and (not isinstance(micro_batch, (int, np.integer)) or micro_batch < 1 or micro_batch % CHUNK):
        raise ValueError(f"micro_batch is {micro_batch!r}; expected a multiple of {CHUNK}, or None")
    if not isinstance(shuffle, (bool, np.bool_)) and not callable(shuffle):
        raise TypeError(f"shuffle is {shuffle!r}; expected True, False or a function of the epoch that gives its order")
    if y is None:
        if not isinstance(X, Iterable) or hasattr(X, "shape"):
            raise TypeError(f"y is a NoneType; X alone must be an iterable of batches (X, y), not a {type(X).__name__}")
        X, y = gathered(X, dtype=net.dtype, width=net.layers[0], on_host=net.on_host)
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
        spare += net.evaluation_bytes(n)
    metrics = ["loss", *([] if validation is None else metrics_of(net.loss))]
    metrics += [name for callback in told for name in callback.fills if name not in metrics]
    for callback in told:
        if isinstance(callback, Best):
            callback.check(metrics)
            spare += net.theta.nbytes if callback.restore_best else 0  # its copy of the best weights
    optimizer = optimizer or SGD(0.05, momentum=0.9)
    trainer = net.trainer(optimizer)
    trainer.clip = check_limit(clip_per_example)
    trainer.adopt(optimizer)
    if optimizer.varies:
        spare += -(-len(X) // batch_size) * trainer.hyper.nbytes
    wanted = any(callback.measures_penalty for callback in told)
    data = Epochs(trainer, X, targets, weight, batch_size, micro_batch, spare, transform, squares=wanted)
    identity: dict[str, Any] = {}
    if resume is not None or any(callback.saves for callback in told):
        identity = checkpoint.identity(
            net, optimizer, (X, targets, weight), validation, batch_size=batch_size, clip_per_example=trainer.clip,
            shuffle=shuffle, transform=transform, restore_best=restore_best, measures_penalty=wanted,
        )  # fmt: skip
    run = Run(net, data, optimizer, trainer, epochs, shuffle=shuffle, validation=validation, callbacks=told, identity=identity)
    if resume is not None:
        checkpoint.resume(run, resume)
    return run.go()


def _permutation(given: Any, n: int) -> np.ndarray[Any, Any]:
    order = np.asarray(given)
    if order.dtype.kind not in "iu" or order.shape != (n,) or not np.array_equal(np.sort(order), np.arange(n)):
        raise ValueError(
            f"shuffle gave an array of shape {order.shape} and dtype {order.dtype}; expected 0 .. {n - 1} in any order"
        )
    return order.astype(np.int64)
