"""Training on the device: a step recorded once and replayed, and epochs of shuffled batches; fitting.py is the loop around it.

A step is the lecture's: forward pass, output delta, from the last layer to the first the hidden deltas, then the updates
(which take the place of the gradient: no gradient array is written).  On any backend the step is recorded as a Program, and
fit() replays it for many batches a call, so that Python is not in the way.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from .backend import Array, Program
from .checks import as_matrix, on_gpu
from .kernels.names import CHUNK, HYPER, RULES, SAVES_Z
from .mlp import MLP
from .optim import Optimizer
from .per_example import clip
from .random import TRANSFORM, generator
from .streams import Rows

Transform = Callable[[Any, np.random.Generator], Any]  # of a batch X (n, inputs) to another of the same shape

SLAB_BYTES = 1 << 26  # of a data set that is larger than the device should hold: what is copied there at a time
SLICE_SECONDS = 0.1  # how long a replay may take before Python looks at Ctrl-C and reports progress


class Step:
    """The arrays of a training step for one batch size.  The batch goes through the network at once, or, with `micro`, in
    parts of so many rows, a multiple of CHUNK: the sums over the examples are the same, to the bit.

    limit: the longest that an example's gradient may be.
    """

    def __init__(
        self, net: MLP, n: int, labels: bool, weighted: bool, *, micro: int | None = None, limit: float | None = None
    ) -> None:
        b, units = net.backend, net.layers
        self.net, self.n, self.rows = net, n, min(n, micro or n)
        rows = self.rows
        self.X = b.empty((rows, units[0]), net.dtype)
        self.y = b.empty((rows,), np.int64) if labels else b.empty((rows, units[-1]), net.dtype)
        self.scale = b.empty((n,) if weighted else (1,), net.dtype)
        if not weighted:
            b.write(self.scale, net.scale(n))
        self.losses = b.empty((n,), net.dtype)
        self.a = [self.X, *(b.empty((rows, o), net.dtype) for o in units[1:])]
        drops = zip(self.a, net.dropout, strict=False)
        self.kept = [b.empty(a.shape, net.dtype) if rate else a for a, rate in drops]  # what dropout leaves of a
        hidden = zip(units[1:-1], net.activations, strict=True)
        self.z = [b.empty((rows, o), net.dtype) if f in SAVES_Z else None for o, f in hidden]
        self.limit = None if limit is None else b.asarray(np.full(1, limit, net.dtype))
        self.delta = [b.empty((rows, o), net.dtype) for o in units[1:]]

    @staticmethod
    def bytes_each(net: MLP, labels: bool, weighted: bool) -> int:
        """How much memory the arrays take for each example of the batch."""
        units = net.layers
        dropped = sum(u for u, rate in zip(units, net.dropout, strict=False) if rate)
        numbers = sum(units) + dropped + net.saved_z + sum(units[1:]) + 2 + weighted + (0 if labels else units[-1])
        return numbers * net.dtype.itemsize + 8 * labels

    def parts(self) -> list[tuple[int, int]]:
        """Where each part begins in the batch, and its rows."""
        return [(start, min(self.rows, self.n - start)) for start in range(0, self.n, self.rows)]

    def record(self, losses: Array, norms: Array, trainer: Trainer, fetch: Callable[[int, int], None] | None = None) -> None:
        """Issue the operations of the step; of step t L goes to losses[t], and |gradient|^2 to norms[t] if it is needed.

        fetch(start, rows) issues what brings a part of the batch to X and y, if it is not there.
        """
        b, whole = self.net.backend, self.rows == self.n
        for start, rows in self.parts():
            if fetch is not None:
                fetch(start, rows)
            kept, delta = self._record_passes(start, rows, trainer)
            if not whole:
                trainer.record_gradient(kept, delta, add=start > 0)
        with b.together():
            if whole:
                trainer.record_updates(kept, delta)
            b.total(self.losses, losses)
        trainer.record_end(norms, whole)

    def _record_passes(self, start: int, rows: int, trainer: Trainer) -> tuple[list[Array], list[Array]]:
        """Both passes of a part; gives what each layer's gradient is the product of."""
        net, b, last = self.net, self.net.backend, len(self.net.weights) - 1
        a, kept, delta = ([x[:rows] for x in arrays] for arrays in (self.a, self.kept, self.delta))
        z = [None if x is None else x[:rows] for x in self.z]
        scale = self.scale if len(self.scale) == 1 else self.scale[start : start + rows]

        def drop(l: int, source: Array, target: Array) -> None:
            if net.dropout[l]:
                b.dropout(source, net.dropout[l], trainer.key, l, first=start * net.layers[l], target=target)

        for l in range(last + 1):
            f, Z = (net.activations[l], z[l]) if l < last else ("identity", None)
            drop(l, a[l], kept[l])
            b.dense_forward(kept[l], net.weights[l], net.biases[l], f, A=a[l + 1], Z=Z)
        b.output_delta(
            a[-1], self.y[:rows], net.loss, net.output_activation,
            scale=scale, dZ=delta[last], losses=self.losses[start : start + rows],
        )  # fmt: skip
        for l in range(last, 0, -1):
            saved = a[l] if z[l - 1] is None else z[l - 1]
            b.hidden_delta(delta[l], net.weights[l], saved, net.activations[l - 1], dZ_below=delta[l - 1])
            drop(l, delta[l - 1], delta[l - 1])
        if self.limit is not None:
            clip(b, kept, delta, self.limit, scale)
        return kept, delta


class Trainer:
    """One network under one optimizer: what the rule keeps, its numbers on the device, and recorded steps."""

    def __init__(self, net: MLP) -> None:
        self.net, self.form = net, ()  # type: MLP, tuple[Any, ...]
        self.hyper = net.backend.empty((len(net.weights), 2, len(HYPER)), net.dtype)
        self.clip: float | None = None  # the longest that an example's gradient may be
        self.losses = net.backend.empty((1,), net.dtype)
        self.key = net.backend.asarray(np.array([net.seed, 0], np.uint64).view(np.int64))  # of dropout: seed, first step
        self.norms = net.backend.asarray(np.zeros(1, net.dtype))
        self.limits = net.backend.empty((3,), net.dtype)
        self.gradient, self.sums = None, None  # type: Array, Array # if a step writes it: laid out as theta, and its squares
        self.states: dict[str, Array] = {}  # each like theta
        self.steps_taken = 0
        self.written: dict[str, Any] = {}  # the optimizer's attributes when `hyper` was written
        self._steps: dict[tuple[Any, ...], tuple[Step, Program]] = {}

    def record_updates(self, a: list[Array], delta: list[Array]) -> None:
        """The updates of all layers; of a gradient that is to be clipped, the gradient."""
        net, (rule, by_norm, by_value, _) = self.net, self.form
        if by_norm or by_value:
            for l, (dW, db) in enumerate(zip(*self._gradients(), strict=True)):
                net.backend.dense_gradient(a[l], delta[l], dW=dW, db=db)
        else:
            for l, (W, bias) in enumerate(zip(net.weights, net.biases, strict=True)):
                net.backend.dense_update(a[l], delta[l], W, bias, rule, self.hyper[l], self._states_of(l))

    def record_gradient(self, a: list[Array], delta: list[Array], *, add: bool) -> None:
        """The share of some examples in the gradient, chunk by chunk as the sum over all of them goes."""
        b = self.net.backend
        for s in range(0, len(delta[0]), CHUNK):
            with b.together():
                for l, (dW, db) in enumerate(zip(*self._gradients(), strict=True)):
                    b.dense_gradient(a[l][s : s + CHUNK], delta[l][s : s + CHUNK], dW=dW, db=db, add=add or s > 0)

    def record_end(self, norms: Array, updated: bool) -> None:
        """What needs the gradients of all layers, and what comes after the update."""
        net, b, (rule, by_norm, by_value, max_norm) = self.net, self.net.backend, self.form
        if by_norm:
            b.squares(self.gradient, self.sums)
            b.total(self.sums, norms)
        if by_norm or by_value:
            b.clip(self.gradient, self.limits[:2], norms)
        if by_norm or by_value or not updated:
            dW, db = self._gradients()
            for l in range(len(net.weights)):
                for i, (parameter, g) in enumerate(((net.weights[l], dW[l]), (net.biases[l], db[l]))):
                    states = [pair[i].reshape(-1) for pair in self._states_of(l)]
                    b.update(parameter.reshape(-1), g.reshape(-1), rule, self.hyper[l, i], states)
        for W in net.weights if max_norm else ():
            b.max_norm(W, self.limits[2:])

    def _gradients(self) -> tuple[list[Array], list[Array]]:
        """dW and db of each layer, where a step writes its gradient."""
        net, b = self.net, self.net.backend
        if self.gradient is None:
            self.gradient = b.empty(net.theta.shape, net.dtype)
            self.sums = b.empty((-(-net.theta.size // CHUNK),), net.dtype)
        return net.views(self.gradient)

    def _states_of(self, l: int) -> list[tuple[Array, Array]]:
        parts = (self.net.views(self.states[name]) for name in RULES[self.form[0]])
        return [(weights[l], biases[l]) for weights, biases in parts]

    def adopt(self, optimizer: Optimizer, examples: Sequence[float] = (1,), done: int = 0) -> np.ndarray[Any, Any]:
        """Take the optimizer's present rule and limits; gives the numbers of the next steps, `done` of which are done already.

        (The optimizer is not kept, so that it can be let go.)
        """
        net = self.net
        numbers = optimizer.hyper(net.dtype, len(net.weights), self.steps_taken - done, examples)
        if self.form != optimizer.form:
            for name in RULES[optimizer.rule]:
                if name not in self.states:
                    self.states[name] = net.backend.placed(np.zeros(net.theta.shape, net.dtype))
            self.form = optimizer.form
            self._steps.clear()
        if any(self.form[1:]):
            net.backend.write(self.limits, optimizer.limits(net.dtype))
        return numbers

    def prepare(self, optimizer: Optimizer, examples: float) -> None:
        """Bring the numbers of the coming step, on a batch of so many examples, to the device."""
        present = vars(optimizer).copy()
        if optimizer.varies or present != self.written:
            self.net.backend.write(self.hyper, self.adopt(optimizer, [examples])[0])
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
        b, key = self.net.backend, (len(X), y.ndim, len(scale) > 1, self.clip)
        if key not in self._steps:
            self.net.check_room(len(X), Step.bytes_each(self.net, y.ndim == 1, len(scale) > 1))
            step = Step(self.net, len(X), y.ndim == 1, len(scale) > 1, limit=self.clip)
            with b.capture() as program:
                step.record(self.losses, self.norms, self)
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
        self, trainer: Trainer, X: Array | Rows, y: Array, weight: np.ndarray[Any, Any] | None, batch_size: int,
        micro: int | None = None, spare: int = 0, transform: Transform | None = None, *, squares: bool = False,
    ) -> None:  # fmt: skip
        net, b = trainer.net, trainer.net.backend
        self.net, self.trainer, self.weight, self.n, self.batch = net, trainer, weight, len(X), min(batch_size, len(X))
        self.full, self.rest = divmod(self.n, self.batch)
        self.steps = self.full + (self.rest > 0)
        self.transform, self.key = transform, (0, 0)
        self.resident, self.slab = self._room(X, y, min(self.batch, micro or self.batch), spare)
        self.order = b.empty((self.n,), np.int64)
        self.losses = b.empty((self.steps,), net.dtype)
        self.norms = b.asarray(np.zeros(self.steps, net.dtype))
        self.squares = b.empty((self.steps,), net.dtype) if squares else None  # |w|^2 before each step, w all weights
        self.scale = b.empty((self.n,), net.dtype)
        self.ascending = b.asarray(np.arange(self.n))
        if self.resident:
            self.sources = [(b.asarray(X), b.asarray(y))]
        else:
            self.host = b.to_numpy(X) if on_gpu(X) else X, b.to_numpy(y)
            self.slabs = [[b.buffer((self.slab, *part.shape[1:]), part.dtype) for part in self.host] for _ in range(2)]
            self.sources = [(X_slab.array, y_slab.array) for X_slab, y_slab in self.slabs]
        sizes = [n for n in (self.batch, self.rest) if n]  # of full batches, and of the smaller one
        self.kinds = [Step(net, n, y.ndim == 1, weight is not None, micro=micro, limit=trainer.clip) for n in sizes]
        moved: list[np.ndarray[Any, Any]] = []  # how the order is laid out on the device: part by part of the batches
        for step, start, steps in zip(self.kinds, (0, self.full * self.batch), (self.full, 1), strict=False):
            rows = start + np.arange(steps * step.n).reshape(steps, step.n)
            moved += [rows[:, s : s + r].ravel() for s, r in step.parts()]
        self.moved = np.concatenate(moved)
        if not self.resident:
            b.write(self.order, self.moved % self.slab)  # in a slab the examples are in order
        self.shares: list[float] = []  # the size of each step's batch (or its sum of weights)
        self.table: Array = None  # the numbers of each step, where they vary
        self.programs: list[list[Program]] = []  # of each kind, for each of the sources
        self._recorded: tuple[Any, ...] = ()

    def _room(self, X: Array | Rows, y: Array, part: int, spare: int) -> tuple[bool, int]:
        """Whether X and y stay on the device, and how many rows are there at a time; `part` go through the network at a time.

        MemoryError: not even two batches have room.
        """
        net, kept = self.net, 3 + len(self.trainer.states)  # copies of theta and of what the rule keeps
        kept += any(self.trainer.form[1:3]) or part < self.batch  # a gradient
        free, row = net.backend.free_bytes(), (X.nbytes + y.nbytes) // self.n
        each = Step.bytes_each(net, y.ndim == 1, self.weight is not None)
        besides = spare + kept * net.theta.nbytes + self.n * (16 + net.dtype.itemsize) + 2 * self.steps * net.dtype.itemsize
        rest = min(part, self.rest)
        batches = (part + rest) * each
        stays = not isinstance(X, Rows) and self.transform is None
        if stays and (on_gpu(X) or besides + batches + self.n * row <= free):
            net.check_room(part + rest, each, besides)
            return True, self.n
        if part < self.batch:  # then it is not the batch that takes most of it
            besides, each = besides + 2 * part * each, 0
        net.check_room(self.batch, 2 * (each + row), besides)
        room = min(SLAB_BYTES, (free - besides - batches) // 2)
        return False, min(max(1, int(room // (self.batch * row))), self.steps) * self.batch

    def _record(self, varies: bool) -> None:
        """The programs of an epoch under the trainer's rule; numbers that vary are gathered like the examples."""
        b, hyper = self.net.backend, self.trainer.hyper
        self.table = b.empty((self.steps, *hyper.shape), hyper.dtype) if varies else None
        self.programs = []
        for step, first, steps in zip(self.kinds, (0, self.full), (self.full, 1), strict=False):
            begin, end = first * self.batch, first * self.batch + steps * step.n  # of its examples
            self.programs.append([])
            for X, y in self.sources:

                def fetch(
                    part: int, rows: int, step: Step = step, X: Array = X, y: Array = y, begin: int = begin, steps: int = steps
                ) -> None:
                    order = self.order[begin + steps * part : begin + steps * (part + rows)]
                    with b.together():
                        b.gather(X, order, step.X[:rows])
                        b.gather(y, order, step.y[:rows])

                with b.capture() as program:
                    with b.together():
                        if varies:
                            b.gather(self.table[first:], self.ascending[:steps], hyper.reshape(1, *hyper.shape))
                        if self.weight is not None:
                            b.gather(self.scale[begin:], self.ascending[: end - begin], step.scale)
                    if self.squares is not None:
                        weights = self.net.theta[: sum(i * o for i, o in self.net.shapes)]
                        sums = b.empty((-(-len(weights) // CHUNK),), weights.dtype)
                        b.squares(weights, sums)
                        b.total(sums, self.squares[first : first + steps])
                    step.record(self.losses[first : first + steps], self.norms[first : first + steps], self.trainer, fetch)
                self.programs[-1].append(program)
        self._recorded = self.trainer.form, varies

    def begin(self, optimizer: Optimizer, order: np.ndarray[Any, Any], done: int = 0) -> None:
        """Set the order of an epoch of which `done` steps are done, the weights of its examples and their numbers."""
        b, trainer = self.net.backend, self.trainer
        starts = range(0, self.n, self.batch)
        examples = [float(min(self.batch, self.n - s)) for s in starts]
        if self.weight is not None:
            batches = [self.weight[order[s : s + self.batch]] for s in starts]
            b.write(self.scale, np.concatenate([self.net.normalized(batch) for batch in batches]))
            examples = [math.fsum(batch) for batch in batches]
        self.shares, varies = examples, optimizer.varies
        numbers = trainer.adopt(optimizer, examples if varies else examples[:1], done)
        if self._recorded != (trainer.form, varies):
            self._record(varies)
        self.order_on_host, self.key = order, (self.net.seed, TRANSFORM + self.net.epochs_trained)
        if self.resident:
            b.write(self.order, order[self.moved])
        b.write(self.table if varies else trainer.hyper, numbers if varies else numbers[0])
        trainer.written = {} if varies else vars(optimizer).copy()

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

    def _X(self, start: int, end: int) -> np.ndarray[Any, Any]:
        """The same from any place to another."""
        first, last = start // self.batch * self.batch, min(-(-end // self.batch) * self.batch, self.n)
        self._read_X(first, out := np.empty((last - first, self.net.layers[0]), self.net.dtype))
        return out[start - first : end - first]

    def _transformed(self, batch: np.ndarray[Any, Any], step: int) -> np.ndarray[Any, Any]:
        assert self.transform is not None
        X = as_matrix(self.transform(batch, generator(*self.key, step)), dtype=batch.dtype, name="what transform gave")
        if X.shape != batch.shape:
            raise ValueError(f"transform made a batch of shape {batch.shape} one of {X.shape}; expected the same shape")
        return X

    def _read_y(self, start: int, out: np.ndarray[Any, Any]) -> None:
        np.take(self.host[1], self.order_on_host[start : start + len(out)], axis=0, out=out, mode="clip")

    def rows(self, start: int, end: int) -> tuple[Array, Array]:
        """X and y of examples start .. end - 1 in the order of this epoch, on the device."""
        b, rows = self.net.backend, self.order_on_host[start:end]

        def of(part: int) -> Array:
            if not self.resident:
                return b.asarray(self._X(start, end) if part == 0 else self.host[1][rows])
            source = self.sources[0][part]
            b.gather(source, b.asarray(rows), target := b.empty((len(rows), *source.shape[1:]), source.dtype))
            return target

        return of(0), of(1)

    @property
    def measured(self) -> dict[str, Array]:
        """What the steps of this epoch have measured, a number each: the loss, and |w|^2 if that is wanted."""
        return {"losses": self.losses} | ({} if self.squares is None else {"squares": self.squares})

    def examples(self, steps: int) -> int:
        """How many examples the first steps of an epoch take."""
        return min(steps * self.batch, self.n)

    def first_bad_step(self, steps: int) -> int | None:
        """The first of the first steps of this epoch whose loss is not finite."""
        bad = ~np.isfinite(self.net.backend.to_numpy(self.losses)[:steps])
        return int(bad.argmax()) if bad.any() else None

    def mean_loss(self, steps: int) -> float:
        """Of the first steps of this epoch: the mean over their examples (or for reduction "sum" the sum)."""
        return self._mean(self.net.backend.to_numpy(self.losses)[:steps].astype(np.float64))

    def mean_penalty(self, optimizer: Optimizer) -> float:
        """What the optimizer's L2 penalty adds to the mean loss of this epoch, each step's being that of its weights."""
        squares = self.net.backend.to_numpy(self.squares).astype(np.float64)
        if optimizer.average_penalties:
            squares = squares / np.maximum(self.shares, np.finfo(np.float64).tiny)
        return 0.0 if optimizer.decoupled else optimizer.weight_decay / 2 * self._mean(squares)

    def _mean(self, numbers: np.ndarray[Any, Any]) -> float:
        """Of one number for each of the first steps."""
        examples = self.examples(len(numbers))
        sizes = np.diff(np.minimum(np.arange(len(numbers) + 1) * self.batch, examples))
        return float(numbers.sum() if self.net.reduction == "sum" else (numbers * sizes).sum() / examples)
