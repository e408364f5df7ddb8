"""Whole epochs over one data set on the device: shuffled batches, gathered there, many steps a call."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Any

import numpy as np

from .backend import Array, Program
from .checks import as_matrix, on_gpu
from .kernels.interrupt import whole
from .kernels.names import CHUNK
from .optim import Optimizer
from .random import TRANSFORM, generator
from .streams import Rows
from .training import Step, Trainer

Transform = Callable[[Any, np.random.Generator], Any]  # of a batch X (n, inputs) to another of the same shape

SLAB_BYTES = 1 << 26  # of a data set that is larger than the device should hold: what is copied there at a time
SLICE_SECONDS = 0.1  # how long a replay may take before Python looks at Ctrl-C and reports progress


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
        self.done, self.between_steps = 0, True  # how many steps of this epoch are done; whether none is done in part
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

    def run(self, first: int, last: int) -> Generator[tuple[int, int | None], None, None]:
        """Take the steps first .. last - 1 of the epoch, some a call; yields how many of the epoch are done, and the first of
        them whose loss is not finite."""
        if first == last:
            return
        b, steps_a_call, steps_of_slab = self.net.backend, 1, -(-self.slab // self.batch)
        b.join()
        for number in self._filled(first // steps_of_slab, -(-last // steps_of_slab)):
            end_of_slab = min((number + 1) * steps_of_slab, last)
            while first < end_of_slab:
                kind, begin, end = (0, 0, min(end_of_slab, self.full)) if first < self.full else (-1, self.full, end_of_slab)
                count = min(steps_a_call, end - first)
                begun = time.perf_counter()
                with whole():
                    self.between_steps = False
                    self.trainer.aim(self.trainer.steps_taken - (first - begin))
                    self.programs[kind][number % len(self.sources)].run(first - begin, count)
                    self.done = first = first + count
                    self.trainer.steps_taken += count
                    bad = self.first_bad_step(first)  # waits for a device that works on its own
                    self.between_steps = True
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
        squares = self.net.backend.to_numpy(self.squares).astype(np.float64) / optimizer.shares(self.shares)
        return 0.0 if optimizer.decoupled else optimizer.weight_decay / 2 * self._mean(squares)

    def _mean(self, numbers: np.ndarray[Any, Any]) -> float:
        """Of one number for each of the first steps."""
        examples = self.examples(len(numbers))
        sizes = np.diff(np.minimum(np.arange(len(numbers) + 1) * self.batch, examples))
        return float(numbers.sum() if self.net.reduction == "sum" else (numbers * sizes).sum() / examples)
