"""The seam: what a network asks of a device.

`Backend` is some fifteen operations on arrays.  Each is checked here, once for all devices (shapes, dtypes, layout), and then
handed to the device's own method of the same name with an underscore.  cpu.py and cuda.py launch the kernels,
numpy_backend.py is plain NumPy; networks and training know only this file.

A `with backend.capture() as program:` block records operations instead of running them; `program.run(first, steps)` then
runs the whole list for step = first, first + 1, ...: one call for many training steps.
"""

from __future__ import annotations

import math
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np

from .checks import nearest, on_gpu
from .kernels.names import ACTIVATIONS, CHUNK, LOSSES
from .shapes import check_arrays, check_hyper, check_layout, check_pair, check_states, sizes

Array = Any  # a NumPy array on "cpu" and "numpy", a CuPy array on "cuda"

States = Sequence[tuple[Array, Array]]  # of an update: for each state of the rule, that of W and that of b

PRECISIONS = ("exact", "fp32-tc", "tf32", "bf16")  # of products; bpgpu/fast.py states the errors of all but the first


class BackendUnavailable(RuntimeError):
    """The backend asked for cannot run here; the message says why and what mends it."""


class Program(ABC):
    """A recorded list of operations."""

    limit = sys.maxsize  # steps for which there is an order to gather by and a place for the totals

    def ready(self) -> None:  # noqa: B027  on most devices it is
        """Do what has to be done once, as compiling kernels."""

    def run(self, first_step: int = 0, steps: int = 1) -> None:
        """Run the whole list for step = first_step, ..., first_step + steps - 1."""
        if not 0 <= first_step <= first_step + steps <= self.limit:
            raise ValueError(f"steps {first_step}..{first_step + steps - 1} of a program that has {self.limit}")
        self._run(first_step, steps)

    @abstractmethod
    def _run(self, first_step: int, steps: int) -> None: ...


class Buffer:
    """Room on the device for rows that come from the host, filled beside the operations that are under way."""

    def __init__(self, backend: Backend, shape: tuple[int, ...], dtype: Any) -> None:
        self.array = backend.empty(shape, dtype)

    def fill(self, rows: int, read: Callable[[np.ndarray[Any, Any]], None]) -> None:
        """Let `read` write array[:rows]:  begins when all is done that was issued before the last Backend.join."""
        read(self.array[:rows])


class Backend(ABC):
    """The operations of training on one device.

    Index letters: n example, i input unit, o output unit.  Arrays are C-contiguous, of one dtype (float32 or float64), and
    on the device.  Outputs may be given; otherwise they are allocated.  Wrong shapes, dtypes, layouts and names raise
    ValueError or TypeError before anything is done.
    """

    name: str
    precision = "exact"  # of PRECISIONS

    def __init__(self) -> None:
        self._of_thread = threading.local()  # one Python thread may record while another one computes

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by its name, by which get_backend opens it wherever it arrives."""
        from .devices import get_backend

        return get_backend, (self.name,)

    def __deepcopy__(self, memo: Any) -> Backend:
        return self  # a device has no copies

    @property
    def recorder(self) -> Program | None:
        """The Program that this thread's operations go into, if it is in a capture."""
        return getattr(self._of_thread, "recorder", None)

    @contextmanager
    def capture(self) -> Iterator[Program]:
        """Record the operations of a with block in a Program instead of running them."""
        if self.recorder is not None:
            raise RuntimeError("a capture is under way already; captures do not nest")
        self._of_thread.recorder = program = self._new_program()
        try:
            yield program
        finally:
            self._of_thread.recorder = None
        program.ready()

    def together(self) -> AbstractContextManager[None]:
        """In a capture: the operations of a with block do not depend on each other, and may run at the same time."""
        return nullcontext()

    def by_rows(self) -> AbstractContextManager[None]:
        """In a capture: of the results of a with block's operations, row n depends on row n of the others alone.

        So that a thread may take some rows through all of them.
        """
        return nullcontext()

    def _limit(self, steps: int) -> None:
        if self.recorder is not None:
            self.recorder.limit = min(self.recorder.limit, steps)

    def here(self) -> AbstractContextManager[Any]:
        """In a with block NumPy's functions compute on this device, in order with its operations."""
        return nullcontext()

    def _check_range(self, name: str, numbers: Array, end: int) -> None:
        """ValueError: not all are in 0 .. end - 1.  In a capture they are not looked at: they are read when it runs."""
        if self.recorder is not None:
            return
        with self.here():
            right = 0 <= int(numbers.min()) <= int(numbers.max()) < end
        if not right:
            found = self.to_numpy(numbers)
            first = int(((found < 0) | (found >= end)).argmax())
            raise ValueError(f"{name}[{first}] is {found[first]}; expected 0..{end - 1}")

    # -- arrays ----------------------------------------------------------------------------------------------------------

    @abstractmethod
    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """A new array on the device, its content undefined."""

    @abstractmethod
    def asarray(self, array: Any) -> Array:
        """The array on the device, C-contiguous; no copy where it is that already."""

    @abstractmethod
    def copy(self, array: Array) -> Array:
        """A new array on the device with the same content."""

    @abstractmethod
    def write(self, target: Array, source: Any) -> None:
        """Copy a host or device array into an array on the device."""

    @abstractmethod
    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        """The array on the host; no copy where it is there already."""

    def give(self, program: Program, place: Array, array: Any, *, changing: Sequence[Array] = ()) -> None:
        """Let the next run of a program find in `place`, which it only reads, what is in a host or device array of that shape.

        Where it can, it reads the array itself, which must be there until it has run.  changing: what else it writes.
        """
        self.write(place, array)

    def placed(self, array: np.ndarray[Any, Any]) -> Array:
        """A new array on the device, with the content of one on the host."""
        self.write(new := self.empty(array.shape, array.dtype), array)
        return new

    def adopt(self, array: Any, name: str) -> Any:
        """What a caller gives: an array on a GPU becomes one of this backend's, without a copy; all else stays as it is.

        TypeError: this backend does not compute on that GPU.
        """
        if on_gpu(array):
            raise TypeError(
                f"{name} is on a GPU, and this network's backend {self.name!r} computes on the host; "
                f"pass {name}.get() or {name}.cpu(), or make the network with backend='cuda'"
            )
        return array

    def free_bytes(self) -> float:
        """How much memory new arrays may take: without limit on the host, whose own limits are not ours to guess."""
        return math.inf

    def at(self, precision: str, dtype: Any) -> Backend:
        """This backend with products of a precision of PRECISIONS, for networks of a dtype.

        ValueError: it has no such products.  BackendUnavailable: what they need is not installed.
        """
        if nearest(precision, PRECISIONS, "precision") == "exact":
            return self
        if np.dtype(dtype) != np.float32:
            raise ValueError(f"precision {precision!r} goes with dtype 'float32', not {np.dtype(dtype).name!r}")
        return self._at(precision)

    def _at(self, precision: str) -> Backend:
        raise ValueError(f"precision {precision!r} is for GPUs; the backend {self.name!r} computes with precision='exact'")

    def buffer(self, shape: tuple[int, ...], dtype: Any) -> Buffer:
        return Buffer(self, shape, dtype)

    def join(self) -> None:  # noqa: B027  on the host a buffer is full when fill returns
        """Operations issued from here on find the buffers full whose filling has begun."""

    # -- operations --------------------------------------------------------------------------------------------------------

    def dense_forward(
        self, X: Array, W: Array, b: Array, activation: str = "identity", *, A: Array = None, Z: Array = None
    ) -> Array:
        """The forward pass of one layer:  Z = X W + b,  A = f(Z).

        X (n, i), W (i, o), b (o) give A (n, o), and Z (n, o) if an array for it is given.
        """
        s = sizes("X n i, W i o, b o, =A n o, =Z n o", X, W, b, A, Z)
        nearest(activation, ACTIVATIONS, "activation")
        A = self.empty((s["n"], s["o"]), X.dtype) if A is None else A
        self._dense_forward(X, W, b, activation, A, Z)
        return A

    def activate(self, Z: Array, activation: str, *, A: Array = None) -> Array:
        """A = f(Z) for any activation, or "softmax" over each row: Z (n, o) gives A (n, o)."""
        sizes("Z n o, =A n o", Z, A)
        nearest(activation, (*ACTIVATIONS, "softmax"), "activation")
        A = self.empty(Z.shape, Z.dtype) if A is None else A
        self._activate(Z, activation, A)
        return A

    def output_delta(
        self,
        Z: Array,
        y: Array,
        loss: str = "cross_entropy",
        activation: str = "softmax",
        *,
        scale: Array = None,
        dZ: Array = None,
        losses: Array = None,
    ) -> tuple[Array, Array]:
        """The output layer:  dZ = scale dC/dz  and  losses = scale C,  for each example.

        Z (n, o); y (n, o) targets, or for cross_entropy also (n,) int64 labels 0 .. o-1; scale (n) or (1), by default 1/n, the
        mean.
        Gives dZ (n, o) and losses (n).  cross_entropy goes with softmax, binary_cross_entropy with sigmoid.
        """
        check_arrays(y=y, scale=y if scale is None else scale)
        labels = y.ndim == 1
        s = sizes("Z n o, =dZ n o, =losses n", Z, dZ, losses)
        nearest(loss, LOSSES, "loss")
        check_pair(loss, activation)
        if labels:
            if loss != "cross_entropy":
                raise ValueError(f"labels go with the loss cross_entropy; {loss} takes targets y of shape (n, o)")
            if y.shape != (s["n"],) or y.dtype != np.int64:
                raise ValueError(f"labels y have shape {y.shape} and dtype {y.dtype}; expected ({s['n']},) and int64")
            self._check_range("labels y", y, s["o"])
        else:
            sizes("Z n o, y n o", Z, y)
        if scale is None:
            scale = self.asarray(np.full(1, 1.0 / s["n"], Z.dtype))
        elif scale.shape not in ((1,), (s["n"],)) or scale.dtype != Z.dtype:
            raise ValueError(f"scale has shape {scale.shape} and dtype {scale.dtype}; expected (1,) or (n,) of {Z.dtype}")
        dZ = self.empty(Z.shape, Z.dtype) if dZ is None else dZ
        losses = self.empty((s["n"],), Z.dtype) if losses is None else losses
        self._output_delta(Z, y, loss, activation, scale, dZ, losses)
        return dZ, losses

    def hidden_delta(self, dZ: Array, W: Array, saved: Array, activation: str = "identity", *, dZ_below: Array = None) -> Array:
        """The backward pass of one layer:  dZ_below = (dZ W^T) * f'(Z_below).

        dZ (n, o) and W (i, o) of a layer, `saved` (n, i) of the layer below, whose activation is named: its A, or its Z
        where f' is no function of a (gelu, silu).  Gives dZ_below (n, i).
        """
        s = sizes("dZ n o, W i o, saved n i, =dZ_below n i", dZ, W, saved, dZ_below)
        nearest(activation, ACTIVATIONS, "activation")
        dZ_below = self.empty((s["n"], s["i"]), dZ.dtype) if dZ_below is None else dZ_below
        self._hidden_delta(dZ, W, saved, activation, dZ_below)
        return dZ_below

    def dense_gradient(
        self, X: Array, dZ: Array, *, dW: Array = None, db: Array = None, add: bool = False
    ) -> tuple[Array, Array]:
        """The product of both passes:  dW = X^T dZ,  db = sum_n dZ.   X (n, i), dZ (n, o) give dW (i, o), db (o).

        With add they are added to what dW and db hold: so a batch may come in parts of 256 examples, to the same bits.
        """
        if add and (dW is None or db is None):
            raise ValueError("dense_gradient with add=True needs dW and db to add to")
        s = sizes("X n i, dZ n o, =dW i o, =db o", X, dZ, dW, db)
        dW = self.empty((s["i"], s["o"]), X.dtype) if dW is None else dW
        db = self.empty((s["o"],), X.dtype) if db is None else db
        self._dense_gradient(X, dZ, dW, db, add)
        return dW, db

    def dense_update(
        self,
        X: Array,
        dZ: Array,
        W: Array,
        b: Array,
        rule: str,
        hyper: Array,
        states: States = (),
    ) -> None:
        """dense_gradient and update in one: W and b move, no gradient is written.

        hyper (2, 9): the numbers of update for W, then for b; states: for each state of the rule a pair, of W and of b.
        """
        spec = "X n i, dZ n o, =W i o, =b o, hyper 2 h"
        for name in check_states(rule, states):
            spec += f", ={name}_W i o, ={name}_b o"
        if any(not isinstance(pair, (tuple, list)) or len(pair) != 2 for pair in states):
            raise ValueError(f"the states of {rule} are pairs of arrays, one shaped like W and one like b")
        check_hyper(sizes(spec, X, dZ, W, b, hyper, *(array for pair in states for array in pair)))
        self._dense_update(X, dZ, W, b, rule, hyper, states)

    def update(self, parameter: Array, gradient: Array, rule: str, hyper: Array, states: Sequence[Array] = ()) -> None:
        """Gradient descent, in place:  w <- w - lr g  and its relatives, kernels/update.py.

        parameter (p), gradient (p), hyper (9), the numbers of kernels/names.py HYPER, and an array (p) for each state of the
        rule in RULES: none for "sgd", the velocity for "momentum" and "nesterov", the mean and the square for "adam".
        """
        spec = "=parameter p, gradient p, hyper h" + "".join(f", ={name} p" for name in check_states(rule, states))
        check_hyper(sizes(spec, parameter, gradient, hyper, *states))
        self._update(parameter, gradient, rule, hyper, states)

    def dropout(self, A: Array, rate: float, key: Array, layer: int, *, first: int = 0, target: Array = None) -> Array:
        """Dropout:  target = A / (1 - rate) where the mask of (seed, layer, step) keeps an element, 0 elsewhere.

        A (n, u) gives target (n, u), which may be A; 0 < rate < 1; key int64 (2): the bits of the seed, and the number of the
        first step, to which Program.run's is added; first: the number of A's first element in the mask, a multiple of 8.  The
        same call on a delta is the backward pass.
        """
        sizes("A n u, =target n u", A, target)
        check_arrays(key=key)
        if not 0 < rate < 1:
            raise ValueError(f"the dropout rate is {rate!r}; expected a number between 0 and 1")
        if key.shape != (2,) or key.dtype != np.int64 or not 0 <= layer < 1 << 20:
            raise ValueError(
                f"dropout takes an int64 key (2) and a layer from 0 to 2^20 - 1, got {key.dtype} {key.shape}, {layer}"
            )
        if first < 0 or first % 8:
            raise ValueError(f"the mask's first element is {first!r}; expected a multiple of 8")
        check_layout("key", key, written=False)
        target = self.empty(A.shape, A.dtype) if target is None else target
        self._dropout(A, float(rate), key, layer, first, target)
        return target

    def squares(self, numbers: Array, sums: Array) -> None:
        """sums[c] = sum of numbers^2 over the 256 numbers of chunk c: numbers (p), sums (ceil(p / 256))."""
        s = sizes("numbers p, =sums c", numbers, sums)
        if s["c"] != -(-s["p"] // CHUNK):
            raise ValueError(
                f"sums has {s['c']} entries; expected {-(-s['p'] // CHUNK)}, one for each {CHUNK} of {s['p']} numbers"
            )
        self._squares(numbers, sums)

    def clip(self, gradient: Array, limits: Array, total: Array) -> None:
        """g <- g min(1, norm / |g|), then cut to [-value, value], in place: gradient (p), limits (2) = [norm, value].

        total (steps): |g|^2 of each step, the total of its squares; step counted by Program.run (0 outside of one).
        """
        sizes("=gradient p, limits 2, total steps", gradient, limits, total)
        self._limit(len(total))
        self._clip(gradient, limits, total)

    def max_norm(self, W: Array, limit: Array) -> None:
        """Each column of W (i, o) that is longer than limit (1) is scaled to that length, in place."""
        sizes("=W i o, limit 1", W, limit)
        self._max_norm(W, limit)

    def gather(self, source: Array, order: Array, target: Array) -> None:
        """A batch:  target[k] = source[order[step * len(target) + k]],  step counted by Program.run (0 outside of one).

        source (N, ...) and target (n, ...) of one dtype; order int64, each in 0..N-1.
        """
        check_arrays(source=source, order=order, target=target)
        if source.shape[1:] != target.shape[1:] or source.dtype != target.dtype or order.dtype != np.int64 or not target.size:
            raise ValueError(
                f"gather takes source and target of one dtype and row shape, not empty, and an int64 order; got "
                f"{source.dtype} {source.shape}, {target.dtype} {target.shape}, {order.dtype}"
            )
        if order.ndim != 1 or len(order) < len(target):
            raise ValueError(
                f"order has shape {tuple(order.shape)}; expected one entry for each of {len(target)} rows, or more"
            )
        for name, array in (("source", source), ("order", order), ("target", target)):
            check_layout(name, array, written=name == "target")
        self._check_range("order", order, len(source))
        self._limit(len(order) // len(target))
        self._gather(source, order, target)

    def example_norms(self, X: Array, dZ: Array, *, norms: Array = None, add: bool = False) -> Array:
        """|dC^n/dW|^2 + |dC^n/db|^2 = |x_n|^2 |dZ_n|^2 + |dZ_n|^2 of each example: X (n, i), dZ (n, o) give norms (n).

        With `add` they are added to what is in norms, so that the layers of a network come together.
        """
        s = sizes("X n i, dZ n o, =norms n", X, dZ, norms)
        if add and norms is None:
            raise ValueError("add needs norms to add to; pass norms, or leave add out")
        norms = self.empty((s["n"],), X.dtype) if norms is None else norms
        self._example_norms(X, dZ, norms, add)
        return norms

    def clip_examples(self, dZ: Array, norms: Array, limit: Array, scale: Array) -> None:
        """dZ_n = dZ_n min(1, limit scale_n / sqrt(norms_n)), in place: no example's gradient is longer than limit scale_n.

        dZ (n, o), norms (n) as example_norms gives them, limit (1), scale (n) or (1).
        """
        s = sizes("=dZ n o, norms n, limit 1", dZ, norms, limit)
        check_arrays(scale=scale)
        if scale.shape not in ((1,), (s["n"],)) or scale.dtype != dZ.dtype:
            raise ValueError(f"scale has shape {scale.shape} and dtype {scale.dtype}; expected (1,) or (n,) of {dZ.dtype}")
        self._clip_examples(dZ, norms, limit, scale)

    def total(self, numbers: Array, target: Array) -> None:
        """target[step] = sum of numbers (n), in the order of the numerics contract."""
        sizes("numbers n, =target steps", numbers, target)
        self._limit(len(target))
        self._total(numbers, target)

    # -- what a device implements: the same, checked and complete ----------------------------------------------------------

    @abstractmethod
    def _new_program(self) -> Program: ...
    @abstractmethod
    def _dense_forward(self, X: Array, W: Array, b: Array, activation: str, A: Array, Z: Array) -> None: ...
    @abstractmethod
    def _activate(self, Z: Array, activation: str, A: Array) -> None: ...
    @abstractmethod
    def _output_delta(self, Z: Array, y: Array, loss: str, activation: str, scale: Array, dZ: Array, losses: Array) -> None: ...
    @abstractmethod
    def _hidden_delta(self, dZ: Array, W: Array, saved: Array, activation: str, dZ_below: Array) -> None: ...
    @abstractmethod
    def _dense_gradient(self, X: Array, dZ: Array, dW: Array, db: Array, add: bool) -> None: ...
    @abstractmethod
    def _dense_update(self, X: Array, dZ: Array, W: Array, b: Array, rule: str, hyper: Array, states: States) -> None: ...
    @abstractmethod
    def _update(self, parameter: Array, gradient: Array, rule: str, hyper: Array, states: Sequence[Array]) -> None: ...
    @abstractmethod
    def _squares(self, numbers: Array, sums: Array) -> None: ...
    @abstractmethod
    def _clip(self, gradient: Array, limits: Array, total: Array) -> None: ...
    @abstractmethod
    def _max_norm(self, W: Array, limit: Array) -> None: ...
    @abstractmethod
    def _dropout(self, A: Array, rate: float, key: Array, layer: int, first: int, target: Array) -> None: ...
    @abstractmethod
    def _gather(self, source: Array, order: Array, target: Array) -> None: ...
    @abstractmethod
    def _example_norms(self, X: Array, dZ: Array, norms: Array, add: bool) -> None: ...
    @abstractmethod
    def _clip_examples(self, dZ: Array, norms: Array, limit: Array, scale: Array) -> None: ...
    @abstractmethod
    def _total(self, numbers: Array, target: Array) -> None: ...
