"""A training step on the device, recorded once and replayed; epochs.py takes it over a data set, fitting.py is the loop around.

A step is the lecture's: forward pass, output delta, from the last layer to the first the hidden deltas, then the updates
(which take the place of the gradient: no gradient array is written).  On any backend the step is recorded as a Program, and
fit() replays it for many batches a call, so that Python is not in the way.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .backend import Array, Program
from .inference import SIZES
from .kernels.names import CHUNK, HYPER, RULES, SAVES_Z
from .mlp import MLP
from .optim import Optimizer
from .per_example import clip, limit_array

AHEAD = 64  # steps whose numbers train_step computes at once: it takes as long as for one


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
        longest = limit_array(limit, net.dtype)
        self.limit = None if longest is None else b.asarray(longest)
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

        with b.by_rows():
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
        self.written: dict[str, Any] = {}  # what the numbers in `hyper` were made of: the optimizer's attributes
        self._first, self._numbers = 0, np.empty(0)  # the numbers of some steps, from one on
        self._steps: dict[tuple[Any, ...], tuple[Step, Program]] = {}
        self._lock = threading.Lock()

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
        if optimizer.average_penalties:
            present["examples"] = examples
        done = self.steps_taken - self._first
        if present != self.written or (optimizer.varies and not 0 <= done < len(self._numbers)):
            # a function is asked step by step: it may go by what has happened
            steps = AHEAD if optimizer.varies and not callable(optimizer.learning_rate) else 1
            numbers, done = self.adopt(optimizer, [examples] * steps), 0
            self._first, self._numbers, self.written = self.steps_taken, numbers, present
        elif not optimizer.varies:
            return
        self.net.backend.write(self.hyper, self._numbers[done])

    def aim(self, first: int) -> None:
        """Let the masks of dropout be those of steps first, first + 1, ..."""
        if any(self.net.dropout):
            self.net.backend.write(self.key, np.array([self.net.seed, first], np.uint64).view(np.int64))

    def forget(self) -> None:
        """Start again from rest."""
        self.steps_taken = 0
        for state in self.states.values():
            self.net.backend.write(state, np.zeros(state.shape, self.net.dtype))

    def step(self, optimizer: Optimizer, X: Array, y: Array, weight: np.ndarray[Any, Any] | None) -> float:
        """One step on one batch (arrays as the network's checks leave them); the loss before the step."""
        weighted = weight is not None
        self.prepare(optimizer, len(X) if weight is None else math.fsum(weight))
        b, key = self.net.backend, (len(X), y.ndim, weighted, self.clip)
        if key not in self._steps:
            if len(self._steps) == SIZES:
                del self._steps[next(iter(self._steps))]
            self.net.check_room(len(X), Step.bytes_each(self.net, y.ndim == 1, weighted))
            step = Step(self.net, len(X), y.ndim == 1, weighted, limit=self.clip)
            with b.capture() as program:
                step.record(self.losses, self.norms, self)
            self._steps[key] = step, program
        step, program = self._steps[key]
        with self._lock:  # what is given is not to be exchanged, or let go, by another Python thread
            b.give(program, step.X, X, changing=(self.net.theta, *self.states.values()))
            b.write(step.y, y)
            if weight is not None:
                b.write(step.scale, self.net.normalized(weight))
            self.aim(self.steps_taken)
            program.run()
            self.steps_taken += 1
            return float(b.to_numpy(self.losses)[0])
