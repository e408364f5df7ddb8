"""Training on the device: a step recorded once and replayed, and epochs of shuffled batches; fitting.py is the loop around it.

A step is the lecture's: forward pass, output delta, from the last layer to the first the hidden deltas, then the updates
(which take the place of the gradient: no gradient array is written).  On any backend the step is recorded as a Program, and
fit() replays it for many batches a call, so that Python is not in the way.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .backend import Array, Program
from .kernels.names import CHUNK, HYPER, RULES, SAVES_Z
from .optim import Optimizer

if TYPE_CHECKING:
    from .mlp import MLP

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

    def record(self, losses: Array, norms: Array, trainer: Trainer) -> None:
        """Issue the operations of the step; of step t L goes to losses[t], and |gradient|^2 to norms[t] if it is needed."""
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
        trainer.record_end(norms)


class Trainer:
    """One network under one optimizer: what the rule keeps, its numbers on the device, and recorded steps."""

    def __init__(self, net: MLP) -> None:
        self.net, self.form = net, ()  # type: MLP, tuple[Any, ...]
        self.hyper = net.backend.empty((len(net.weights), 2, len(HYPER)), net.dtype)
        self.losses = net.backend.empty((1,), net.dtype)
        self.key = net.backend.asarray(np.array([net.seed, 0], np.uint64).view(np.int64))  # of dropout: seed, first step
        self.norms = net.backend.asarray(np.zeros(1, net.dtype))
        self.limits = net.backend.empty((3,), net.dtype)
        self.gradient, self.sums = None, None  # type: Array, Array # if it is clipped: laid out as theta, and its squares
        self.states: dict[str, Array] = {}  # each like theta
        self.steps_taken = 0
        self.written: dict[str, Any] = {}  # the optimizer's attributes when `hyper` was written
        self._steps: dict[tuple[Any, ...], tuple[Step, Program]] = {}

    def record_update(self, l: int, a: Array, delta: Array) -> None:
        """The update of layer l; of a gradient that is to be clipped, the gradient."""
        net, (rule, by_norm, by_value, _) = self.net, self.form
        if by_norm or by_value:
            dW, db = net.views(self.gradient)
            net.backend.dense_gradient(a, delta, dW=dW[l], db=db[l])
        else:
            net.backend.dense_update(a, delta, net.weights[l], net.biases[l], rule, self.hyper[l], self._states_of(l))

    def record_end(self, norms: Array) -> None:
        """What needs the gradients of all layers, and what comes after the update."""
        net, b, (rule, by_norm, by_value, max_norm) = self.net, self.net.backend, self.form
        if by_norm:
            b.squares(self.gradient, self.sums)
            b.total(self.sums, norms)
        if by_norm or by_value:
            b.clip(self.gradient, self.limits[:2], norms)
            gradients = net.views(self.gradient)
            for l in range(len(net.weights)):
                for i, (parameter, g) in enumerate(((net.weights[l], gradients[0][l]), (net.biases[l], gradients[1][l]))):
                    states = [pair[i].reshape(-1) for pair in self._states_of(l)]
                    b.update(parameter.reshape(-1), g.reshape(-1), rule, self.hyper[l, i], states)
        for W in net.weights if max_norm else ():
            b.max_norm(W, self.limits[2:])

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
            self.form = optimizer.form
            self._steps.clear()
            for name in RULES[optimizer.rule]:
                if name not in self.states:
                    self.states[name] = net.backend.asarray(np.zeros(net.theta.shape, net.dtype))
            if self.gradient is None and (optimizer.clip_norm or optimizer.clip_value):
                self.gradient = net.backend.empty(net.theta.shape, net.dtype)
                self.sums = net.backend.empty((-(-net.theta.size // CHUNK),), net.dtype)
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

    def step(
        self, optimizer: Optimizer, X: Array, y: np.ndarray[Any, Any], scale: np.ndarray[Any, Any], examples: float
    ) -> float:
        """One step on one batch (arrays as the network's checks leave them); the loss before the step."""
        self.prepare(optimizer, examples)
        b, key = self.net.backend, (len(X), y.ndim, len(scale) > 1)
        if key not in self._steps:
            step = Step(self.net, len(X), y.ndim == 1, len(scale) > 1)
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
    """The recorded steps of whole epochs over one data set: full batches, and the smaller one at the end if there is one."""

    def __init__(
        self, trainer: Trainer, X: Array, y: Array, weight: np.ndarray[Any, Any] | None, batch_size: int,
        *, squares: bool = False,
    ) -> None:  # fmt: skip
        net, b = trainer.net, trainer.net.backend
        self.net, self.trainer, self.weight, self.n, self.batch = net, trainer, weight, len(y), min(batch_size, len(y))
        self.X, self.y = X, y
        self.full, self.rest = divmod(self.n, self.batch)
        self.steps = self.full + (self.rest > 0)
        self.order = b.empty((self.n,), np.int64)
        self.rows = self.order  # of X, where its examples are
        self.losses = b.empty((self.steps,), net.dtype)
        self.norms = b.asarray(np.zeros(self.steps, net.dtype))
        self.squares = b.empty((self.steps,), net.dtype) if squares else None  # |w|^2 before each step, w all weights
        self.scale = b.empty((self.n,), net.dtype)
        self.ascending = b.asarray(np.arange(self.n))
        self.shares: list[float] = []  # the size of each step's batch (or its sum of weights)
        self.table: Array = None  # the numbers of each step, where they vary
        self.programs: list[Program] = []
        self._recorded: tuple[Any, ...] = ()

    def _record(self, varies: bool) -> None:
        """The programs of an epoch under the trainer's rule; numbers that vary are gathered like the examples."""
        b, hyper = self.net.backend, self.trainer.hyper
        self.table = b.empty((self.steps, *hyper.shape), hyper.dtype) if varies else None
        self.programs = []
        for start, n, first, steps in ((0, self.batch, 0, self.full), (self.full * self.batch, self.rest, self.full, 1)):
            if n == 0:
                continue
            step = Step(self.net, n, self.y.ndim == 1, self.weight is not None)
            with b.capture() as program:
                with b.together():
                    if varies:
                        b.gather(self.table[first:], self.ascending[:steps], hyper.reshape(1, *hyper.shape))
                    b.gather(self.X, self.rows[start:], step.X)
                    b.gather(self.y, self.order[start:], step.y)
                    if self.weight is not None:
                        b.gather(self.scale[start:], self.ascending[: n * steps], step.scale)
                if self.squares is not None:
                    weights = self.net.theta[: sum(i * o for i, o in self.net.shapes)]
                    sums = b.empty((-(-len(weights) // CHUNK),), weights.dtype)
                    b.squares(weights, sums)
                    b.total(sums, self.squares[first : first + steps])
                step.record(self.losses[first : first + steps], self.norms[first : first + steps], self.trainer)
            self.programs.append(program)
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
        self.shares = examples
        varies = optimizer.varies
        numbers = trainer.adopt(optimizer, examples if varies else examples[:1], done)
        if self._recorded != (trainer.form, varies):
            self._record(varies)
        b.write(self.order, order)
        b.write(self.table if varies else trainer.hyper, numbers if varies else numbers[0])
        trainer.written = {} if varies else vars(optimizer).copy()

    def run(self, first: int, last: int) -> Iterator[int]:
        """Take the steps first .. last - 1 of the epoch, some a call; yields how many of the epoch are done."""
        steps_a_call = 1
        while first < last:
            program, begin, end = (
                (self.programs[0], 0, self.full) if first < self.full else (self.programs[-1], self.full, last)
            )
            count = min(steps_a_call, min(end, last) - first)
            self.trainer.aim(self.trainer.steps_taken - (first - begin))
            begun = time.perf_counter()
            program.run(first - begin, count)
            seconds = time.perf_counter() - begun
            first += count
            self.trainer.steps_taken += count
            steps_a_call = max(1, min(4 * steps_a_call, int(count * SLICE_SECONDS / max(seconds, 1e-9))))
            yield first

    def inputs(self, rows: np.ndarray[Any, Any]) -> Array:
        """Some rows of X."""
        return self.net.backend.asarray(self.net.backend.to_numpy(self.X)[rows])

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
