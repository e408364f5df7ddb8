"""Training on the device: a step recorded once and replayed, and epochs of shuffled batches; fitting.py is the loop around it.

A step is the lecture's: forward pass, output delta, from the last layer to the first the hidden deltas, then the updates
(which take the place of the gradient: no gradient array is written).  On any backend the step is recorded as a Program, and
fit() replays it for many batches a call, so that Python is not in the way.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from .backend import Array, Program
from .checks import as_matrix, on_gpu
from .kernels.names import HYPER, RULES, SAVES_Z
from .mlp import BLOCK, MLP
from .optim import Optimizer
from .random import TRANSFORM, generator
from .streams import Rows

Transform = Callable[[Any, np.random.Generator], Any]  # of a batch X (n, inputs) to another of the same shape

SLAB_BYTES = 1 << 26  # of a data set that is larger than the device should hold: what is copied there at a time
SLICE_SECONDS = 0.1  # how long a replay may take before Python looks at Ctrl-C and reports progress


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
        self.kept = [
            b.empty(a.shape, net.dtype) if rate else a for a, rate in zip(self.a, net.dropout, strict=False)
        ]  # of dropout
        hidden = zip(units[1:-1], net.activations, strict=True)
        self.z = [b.empty((n, o), net.dtype) if f in SAVES_Z else None for o, f in hidden]
        self.delta = [b.empty((n, o), net.dtype) for o in units[1:]]

    @staticmethod
    def bytes_each(net: MLP, labels: bool, weighted: bool) -> int:
        """How much memory the arrays take for each example of the batch."""
        units = net.layers
        dropped = sum(u for u, rate in zip(units, net.dropout, strict=False) if rate)
        numbers = sum(units) + dropped + net.saved_z + sum(units[1:]) + 1 + weighted + (0 if labels else units[-1])
        return numbers * net.dtype.itemsize + 8 * labels

    def record(self, losses: Array, trainer: Trainer) -> None:
        """Issue the operations of the step; L of step t goes to losses[t]."""
        net, b, last = self.net, self.net.backend, len(self.net.weights) - 1
        for l in range(last + 1):
            f, Z = (net.activations[l], self.z[l]) if l < last else ("identity", None)
            if net.dropout[l]:
                b.dropout(self.a[l], net.dropout[l], trainer.key, l, target=self.kept[l])
            b.dense_forward(self.kept[l], net.weights[l], net.biases[l], f, A=self.a[l + 1], Z=Z)
        b.output_delta(
            self.a[-1], self.y, net.loss, net.output_activation,
            scale=self.scale, dZ=self.delta[last], losses=self.losses,
        )  # fmt: skip
        for l in range(last, 0, -1):
            saved = self.a[l] if self.z[l - 1] is None else self.z[l - 1]
            b.hidden_delta(self.delta[l], net.weights[l], saved, net.activations[l - 1], dZ_below=self.delta[l - 1])
            if net.dropout[l]:
                b.dropout(self.delta[l - 1], net.dropout[l], trainer.key, l, target=self.delta[l - 1])
        with b.together():
            for l in range(last + 1):
                trainer.record_update(l, self.kept[l], self.delta[l])
            b.total(self.losses, losses)


class Trainer:
    """One network under one optimizer: what the rule keeps, its numbers on the device, and recorded steps."""

    def __init__(self, net: MLP) -> None:
        self.net, self.rule = net, ""
        self.hyper = net.backend.empty((len(net.weights), 2, len(HYPER)), net.dtype)
        self.losses = net.backend.empty((1,), net.dtype)
        self.key = net.backend.asarray(np.array([net.seed, 0], np.uint64).view(np.int64))  # of dropout: seed, first step
        self.states: dict[str, Array] = {}  # each like theta
        self.steps_taken = 0
        self.written: dict[str, Any] = {}  # the optimizer's attributes when `hyper` was written
        self._steps: dict[tuple[Any, ...], tuple[Step, Program]] = {}

    def record_update(self, l: int, a: Array, delta: Array) -> None:
        net, states = self.net, []
        for name in RULES[self.rule]:
            weights, biases = net.views(self.states[name])
            states.append((weights[l], biases[l]))
        net.backend.dense_update(a, delta, net.weights[l], net.biases[l], self.rule, self.hyper[l], states)

    def adopt(self, optimizer: Optimizer) -> None:
        """Take the optimizer's present rule.  (The optimizer is not kept, so that it can be let go.)"""
        net = self.net
        optimizer.hyper(net.dtype, len(net.weights), self.steps_taken)
        if self.rule != optimizer.rule:
            for name in RULES[optimizer.rule]:
                if name not in self.states:
                    self.states[name] = net.backend.asarray(np.zeros(net.theta.shape, net.dtype))
            self.rule = optimizer.rule
            self._steps.clear()

    def prepare(self, optimizer: Optimizer, examples: float) -> None:
        """Bring the numbers of the coming step, on a batch of so many examples, to the device."""
        present = vars(optimizer).copy()
        if optimizer.varies or present != self.written:
            self.adopt(optimizer)
            numbers = optimizer.hyper(self.net.dtype, len(self.net.weights), self.steps_taken, [examples])
            self.net.backend.write(self.hyper, numbers[0])
            self.written = present

    def aim(self, first: int) -> None:
        """Let the masks of dropout be those of steps first, first + 1, ..."""
        if any(self.net.dropout):
            self.net.backend.write(self.key, np.array([self.net.seed, first], np.uint64).view(np.int64))

    def forget(self) -> None:
        """Start again from rest."""
        self.steps_taken = 0
        for state in self.states.values():
            self.net.backend.write(state, np.zeros(state.shape, self.net.dtype))

    def step(self, optimizer: Optimizer, X: Array, y: Array, scale: np.ndarray[Any, Any], examples: float) -> float:
        """One step on one batch (arrays as the network's checks leave them); the loss before the step."""
        self.prepare(optimizer, examples)
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
        self.aim(self.steps_taken)
        program.run()
        self.steps_taken += 1
        return float(b.to_numpy(self.losses)[0])


class Epochs:
    """The recorded steps of whole epochs over one data set: full batches, and the smaller one at the end if there is one.

    X and y stay on the device, or come there slab by slab where they would not fit, are not in memory (streams.Rows), or are
    transformed: the steps gather their batches from one of two slabs while a thread fills the other one.  `slab` is the
    number of rows of a slab, all of them if the data stay; `spare` bytes of memory are left for others.
    """

    def __init__(
        self, trainer: Trainer, X: Array, y: Array, weight: np.ndarray[Any, Any] | None, batch_size: int, spare: int = 0,
        transform: Transform | None = None,
    ) -> None:  # fmt: skip
        net, b = trainer.net, trainer.net.backend
        self.net, self.trainer, self.weight, self.n, self.batch = net, trainer, weight, len(X), min(batch_size, len(X))
        self.full, self.rest = divmod(self.n, self.batch)
        self.steps = self.full + (self.rest > 0)
        self.transform, self.key = transform, (0, 0)
        self.resident, self.slab = self._room(X, y, spare)
        self.order = b.empty((self.n,), np.int64)
        self.losses = b.empty((self.steps,), net.dtype)
        self.scale = b.empty((self.n,), net.dtype)
        self.ascending = b.asarray(np.arange(self.n))
        if self.resident:
            self.sources = [(b.asarray(X), b.asarray(y))]
        else:
            self.host = b.to_numpy(X) if on_gpu(X) else X, b.to_numpy(y)
            self.slabs = [[b.buffer((self.slab, *part.shape[1:]), part.dtype) for part in self.host] for _ in range(2)]
            self.sources = [(X_slab.array, y_slab.array) for X_slab, y_slab in self.slabs]
            b.write(self.order, np.arange(self.n) % self.slab)  # in a slab the examples are in order
        sizes = [n for n in (self.batch, self.rest) if n]
        self.kinds = [Step(net, n, y.ndim == 1, weight is not None) for n in sizes]  # full batches, and the smaller one
        self.table: Array = None  # the numbers of each step, where they vary
        self.programs: list[list[Program]] = []  # of each kind, for each of the sources
        self._recorded = ("", False)

    def _room(self, X: Array, y: Array, spare: int) -> tuple[bool, int]:
        """Whether X and y stay on the device, and how many rows are there at a time.  MemoryError: not even two batches fit."""
        net, states = self.net, len(self.trainer.states)
        free, row = net.backend.free_bytes(), (X.nbytes + y.nbytes) // self.n
        each = Step.bytes_each(net, y.ndim == 1, self.weight is not None)
        # copies of theta and of what the rule keeps; order, losses and the like
        besides = spare + (3 + states) * net.theta.nbytes + self.n * (16 + net.dtype.itemsize)
        batches = (self.batch + self.rest) * each
        stays = not isinstance(X, Rows) and self.transform is None
        if stays and (on_gpu(X) or besides + batches + self.n * row <= free):
            net.check_room(self.batch + self.rest, each, besides)
            return True, self.n
        net.check_room(self.batch, 2 * (each + row), besides)
        room = min(SLAB_BYTES, (free - besides - batches) // 2)
        return False, min(max(1, int(room // (self.batch * row))), self.steps) * self.batch

    def _record(self, varies: bool) -> None:
        """The programs of an epoch under the trainer's rule; numbers that vary are gathered like the examples."""
        b, hyper = self.net.backend, self.trainer.hyper
        self.table = b.empty((self.steps, *hyper.shape), hyper.dtype) if varies else None
        self.programs = []
        for step, start, first, steps in zip(
            self.kinds, (0, self.full * self.batch), (0, self.full), (self.full, 1), strict=False
        ):
            self.programs.append([])
            for X, y in self.sources:
                with b.capture() as program:
                    with b.together():
                        if varies:
                            b.gather(self.table[first:], self.ascending[:steps], hyper.reshape(1, *hyper.shape))
                        b.gather(X, self.order[start:], step.X)
                        b.gather(y, self.order[start:], step.y)
                        if self.weight is not None:
                            b.gather(self.scale[start:], self.ascending[: step.n * steps], step.scale)
                    step.record(self.losses[first : first + steps], self.trainer)
                self.programs[-1].append(program)
        self._recorded = self.trainer.rule, varies

    def begin(self, optimizer: Optimizer, order: np.ndarray[Any, Any], done: int = 0) -> None:
        """Set the order of an epoch of which `done` steps are done, the weights of its examples and their numbers."""
        b, trainer = self.net.backend, self.trainer
        trainer.adopt(optimizer)
        if self._recorded != (trainer.rule, optimizer.varies):
            self._record(optimizer.varies)
        self.order_on_host, self.key = order, (self.net.seed, TRANSFORM + self.net.epochs_trained)
        if self.resident:
            b.write(self.order, order)
        starts = range(0, self.n, self.batch)
        examples = [float(min(self.batch, self.n - s)) for s in starts]
        if self.weight is not None:
            batches = [self.weight[order[s : s + self.batch]] for s in starts]
            b.write(self.scale, np.concatenate([self.net.normalized(batch) for batch in batches]))
            examples = [math.fsum(batch) for batch in batches]
        if self.table is None:
            trainer.prepare(optimizer, examples[0])  # which stay
        else:
            layers = len(self.net.weights)
            b.write(self.table, optimizer.hyper(self.net.dtype, layers, trainer.steps_taken - done, examples))
            trainer.written = {}

    def run(self, first: int, last: int) -> Iterator[tuple[int, int | None]]:
        """Take the steps first .. last - 1 of the epoch, some a call; yields how many of the epoch are done, and the first of
        them whose loss is not finite."""
        b, steps_a_call, steps_of_slab = self.net.backend, 1, -(-self.slab // self.batch)
        b.join()
        for number in self._filled(first // steps_of_slab, -(-last // steps_of_slab)):
            end_of_slab = min((number + 1) * steps_of_slab, last)
            while first < end_of_slab:
                kind, begin, end = (0, 0, min(end_of_slab, self.full)) if first < self.full else (-1, self.full, end_of_slab)
                count = min(steps_a_call, end - first)
                self.trainer.aim(self.trainer.steps_taken - (first - begin))
                begun = time.perf_counter()
                self.programs[kind][number % len(self.sources)].run(first - begin, count)
                first += count
                self.trainer.steps_taken += count
                bad = self.first_bad_step(first)  # waits for a device that works on its own
                seconds = time.perf_counter() - begun
                steps_a_call = max(1, min(4 * steps_a_call, int(count * SLICE_SECONDS / max(seconds, 1e-9))))
                yield first, bad

    def _filled(self, first: int, last: int) -> Iterator[int]:
        """The slabs first .. last - 1, each when it is on the device; while it is used, a thread fills the next one."""
        from concurrent.futures import ThreadPoolExecutor

        b = self.net.backend
        if self.resident:
            yield from range(first, last)
            return
        with ThreadPoolExecutor(1, "bpgpu-data") as thread:
            coming = thread.submit(self._fill, first)
            for number in range(first, last):
                coming.result()
                b.join()
                if number + 1 < last:
                    coming = thread.submit(self._fill, number + 1)
                yield number

    def _fill(self, number: int) -> None:
        """Bring slab `number` of the present order to the device."""
        start, end = number * self.slab, min((number + 1) * self.slab, self.n)
        for buffer, read in zip(self.slabs[number % 2], (self._read_X, self._read_y), strict=True):
            buffer.fill(end - start, partial(read, start))

    def _read_X(self, start: int, out: np.ndarray[Any, Any]) -> None:
        """The rows of X from place `start` of the present order on, where a batch begins, as the steps take them."""
        X, order = self.host[0], self.order_on_host[start : start + len(out)]
        if isinstance(X, Rows):
            X.take(order, out)
        else:
            np.take(X, order, axis=0, out=out, mode="clip")  # mode "raise" would go through a copy
        if self.transform is not None:
            for begin in range(0, len(out), self.batch):
                batch = out[begin : begin + self.batch]
                batch[:] = self._transformed(batch, (start + begin) // self.batch)

    def _transformed(self, batch: np.ndarray[Any, Any], step: int) -> np.ndarray[Any, Any]:
        assert self.transform is not None
        X = as_matrix(self.transform(batch, generator(*self.key, step)), dtype=batch.dtype, name="what transform gave")
        if X.shape != batch.shape:
            raise ValueError(f"transform made a batch of shape {batch.shape} one of {X.shape}; expected the same shape")
        return X

    def _read_y(self, start: int, out: np.ndarray[Any, Any]) -> None:
        np.take(self.host[1], self.order_on_host[start : start + len(out)], axis=0, out=out, mode="clip")

    def inputs(self, step: int) -> Iterator[Array]:
        """The rows of X that a step of this epoch takes, on the device, some at a time."""
        b, first, end = self.net.backend, step * self.batch, min((step + 1) * self.batch, self.n)
        if not self.resident:
            self._read_X(first, batch := np.empty((end - first, self.net.layers[0]), self.net.dtype))
        for start in range(first, end, BLOCK):
            rows = self.order_on_host[start : min(start + BLOCK, end)]
            if self.resident:
                X = self.sources[0][0]
                b.gather(X, b.asarray(rows), block := b.empty((len(rows), X.shape[1]), X.dtype))
                yield block
            else:
                yield b.asarray(batch[start - first : start - first + len(rows)])

    def examples(self, steps: int) -> int:
        """How many examples the first steps of an epoch take."""
        return min(steps * self.batch, self.n)

    def first_bad_step(self, steps: int) -> int | None:
        """The first of the first steps of this epoch whose loss is not finite."""
        bad = ~np.isfinite(self.net.backend.to_numpy(self.losses)[:steps])
        return int(bad.argmax()) if bad.any() else None

    def mean_loss(self, steps: int) -> float:
        """Of the first steps of this epoch: the mean over their examples (or for reduction "sum" the sum)."""
        examples = self.examples(steps)
        sizes = np.diff(np.minimum(np.arange(steps + 1) * self.batch, examples))
        losses = self.net.backend.to_numpy(self.losses)[:steps].astype(np.float64)
        return float(losses.sum() if self.net.reduction == "sum" else (losses * sizes).sum() / examples)
