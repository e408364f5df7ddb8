"""From operations to kernels: fills in the records of kernels/records.py, the same ones for the CPU and the GPU.

How a kernel is launched is the device's own (cpu.py, cuda.py): `_launch_product` for what kernels/product.py computes, with
the operation's own record beside the product's, `_launch_gradient` for dW and db, and `_launch` for everything else.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import numpy as np

from .backend import Array, Backend, Program, States
from .kernels import records
from .random import DROPOUT, threshold

Record = np.ndarray[Any, Any]  # of shape (), one of the dtypes of kernels/records.py


def new_record(dtype: np.dtype[np.void], **fields: Any) -> Record:
    record = np.zeros((), dtype)
    for name, value in fields.items():
        record[name] = value
    return record


W = TypeVar("W")


class StagedProgram(Program, Generic[W]):
    """Recorded work in stages: what is in one depends on nothing else in it."""

    def __init__(self) -> None:
        self.stages: list[list[W]] = []
        self.joining = False  # whether what is added joins the last stage

    @contextmanager
    def together(self, arranged: Callable[[list[W]], list[W]] = list) -> Iterator[None]:
        """What is added in a with block is one stage, at its end put in another order."""
        if self.joining:
            yield
            return
        self.joining = True
        self.stages.append([])
        try:
            yield
        finally:
            self.joining = False
            if stage := arranged(self.stages.pop()):
                self.stages.append(stage)


class KernelBackend(Backend):
    @abstractmethod
    def address(self, array: Array) -> int:
        """Where on the device the array starts."""

    @abstractmethod
    def _launch(self, name: str, dtype: str | None, options: tuple[str, ...], job: Record, items: int, *alive: Any) -> None:
        """Run a kernel; `items` counts its independent pieces of work, `alive` must outlive it."""

    @abstractmethod
    def _launch_product(self, name: str, dtype: str, option: str, product: Record, job: Record, *alive: Any) -> None:
        """Run a product with the finish of the operation called `name`."""

    @abstractmethod
    def _launch_gradient(self, dtype: str, rule: str, product: Record, job: Record, sums: Record, *alive: Any) -> None:
        """Run the product of dense_gradient, and the sums of columns beside it, under the same rule."""

    def _address(self, array: Array | None) -> int:
        return 0 if array is None else self.address(array)

    def _product(self, A: Array, B: Array, *, A_transposed: bool = False, B_transposed: bool = False) -> Record:
        """C (M, N) = A B, of whose operands either may be a transposed array."""
        row, step = A.shape[1] * A.itemsize, A.itemsize  # not A.strides: that of a single row may be any number
        (M, K), (A_row, A_k) = (A.shape[::-1], (step, row)) if A_transposed else (A.shape, (row, step))
        return new_record(
            records.PRODUCT, A=self.address(A), A_row=A_row, A_k=A_k, B=self.address(B), B_row=B.shape[1] * B.itemsize,
            B_transposed=B_transposed, M=M, N=B.shape[0] if B_transposed else B.shape[1], K=K,
        )  # fmt: skip

    def _dense_forward(self, X: Array, W: Array, b: Array, activation: str, A: Array, Z: Array | None) -> None:
        job = new_record(
            records.FORWARD, bias=self.address(b), A=self.address(A), A_row=A.strides[0],
            Z=self._address(Z), Z_row=0 if Z is None else Z.strides[0],
        )  # fmt: skip
        self._launch_product("dense_forward", X.dtype.name, activation, self._product(X, W), job, X, W, b, A, Z)

    def _hidden_delta(self, dZ: Array, W: Array, saved: Array, activation: str, dZ_below: Array) -> None:
        job = new_record(
            records.HIDDEN, saved=self.address(saved), saved_row=saved.strides[0],
            dZ=self.address(dZ_below), dZ_row=dZ_below.strides[0],
        )  # fmt: skip
        product = self._product(dZ, W, B_transposed=True)
        self._launch_product("hidden_delta", W.dtype.name, activation, product, job, W, dZ, saved, dZ_below)

    def _dense_gradient(self, X: Array, dZ: Array, dW: Array, db: Array, add: bool) -> None:
        self._weights_and_biases(X, dZ, dW, db, "add" if add else "store", (None, None), ())

    def _dense_update(self, X: Array, dZ: Array, W: Array, b: Array, rule: str, hyper: Array, states: States) -> None:
        self._weights_and_biases(X, dZ, W, b, rule, (hyper[0], hyper[1]), states)

    def _weights_and_biases(
        self, X: Array, dZ: Array, W: Array, b: Array, rule: str,
        hyper: tuple[Array | None, Array | None], states: States,
    ) -> None:  # fmt: skip
        dtype, alive = X.dtype.name, (X, dZ, W, b, hyper, states)
        of_W = self._parameters(W, hyper[0], [pair[0] for pair in states])
        sums = self._column_sum(dZ, b, hyper[1], [pair[1] for pair in states])
        self._launch_gradient(dtype, rule, self._product(X, dZ, A_transposed=True), of_W, sums, *alive)

    def _column_sum(self, dZ: Array, b: Array, hyper: Array | None, states: Sequence[Array]) -> Record:
        return new_record(
            records.COLUMN_SUM, dZ=self.address(dZ), dZ_row=dZ.strides[0], rows=len(dZ), columns=dZ.shape[1],
            update=self._parameters(b, hyper, states),
        )  # fmt: skip

    def _parameters(self, parameter: Array, hyper: Array | None, states: Sequence[Array]) -> Record:
        return new_record(
            records.UPDATE, parameter=self.address(parameter), row=parameter.strides[0], hyper=self._address(hyper),
            **{f"state{i}": self.address(state) for i, state in enumerate(states, 1)},
        )  # fmt: skip

    def _update(self, parameter: Array, gradient: Array, rule: str, hyper: Array, states: Sequence[Array]) -> None:
        job = new_record(
            records.FLAT_UPDATE, gradient=self.address(gradient), length=gradient.size,
            update=self._parameters(parameter, hyper, states),
        )  # fmt: skip
        self._launch("update", gradient.dtype.name, (rule,), job, gradient.size, parameter, gradient, hyper, states)

    def _activate(self, Z: Array, activation: str, A: Array) -> None:
        job = new_record(
            records.ACTIVATE, Z=self.address(Z), Z_row=Z.strides[0], rows=len(Z), columns=Z.shape[1],
            A=self.address(A), A_row=A.strides[0],
        )  # fmt: skip
        self._launch("activate", Z.dtype.name, (activation,), job, len(Z), Z, A)

    def _output_delta(self, Z: Array, y: Array, loss: str, activation: str, scale: Array, dZ: Array, losses: Array) -> None:
        job = new_record(
            records.OUTPUT, Z=self.address(Z), Z_row=Z.strides[0], rows=len(Z), columns=Z.shape[1],
            y=self.address(y), y_row=y.strides[0],
            scale=self.address(scale), scale_step=0 if len(scale) == 1 else scale.strides[0],
            dZ=self.address(dZ), dZ_row=dZ.strides[0], losses=self.address(losses),
        )  # fmt: skip
        options = loss, activation, "labels" if y.ndim == 1 else "targets"
        self._launch("output_delta", Z.dtype.name, options, job, len(Z), Z, y, scale, dZ, losses)

    def _squares(self, numbers: Array, sums: Array) -> None:
        job = new_record(records.SQUARES, numbers=self.address(numbers), length=len(numbers), sums=self.address(sums))
        self._launch("squares", numbers.dtype.name, (), job, len(sums), numbers, sums)

    def _clip(self, gradient: Array, limits: Array, total: Array) -> None:
        job = new_record(
            records.CLIP, gradient=self.address(gradient), length=len(gradient), total=self.address(total),
            limits=self.address(limits),
        )  # fmt: skip
        self._launch("clip", gradient.dtype.name, (), job, len(gradient), gradient, limits, total)

    def _max_norm(self, W: Array, limit: Array) -> None:
        job = new_record(
            records.MAX_NORM, W=self.address(W), W_row=W.strides[0], rows=len(W), columns=W.shape[1], limit=self.address(limit)
        )
        self._launch("max_norm", W.dtype.name, (), job, W.shape[1], W, limit)

    def _dropout(self, A: Array, rate: float, key: Array, layer: int, first: int, target: Array) -> None:
        job = new_record(
            records.DROPOUT, source=self.address(A), target=self.address(target), length=A.size,
            key=self.address(key), block=first // 8,
            stream=DROPOUT + (layer << 40), threshold=threshold(rate), scale=np.float64(1 / (1 - rate)).view(np.int64),
        )  # fmt: skip
        self._launch("dropout", A.dtype.name, (), job, -(-A.size // 8), A, key, target)

    def _gather(self, source: Array, order: Array, target: Array) -> None:
        job = new_record(
            records.GATHER, source=self.address(source), row_bytes=target.nbytes // len(target),
            order=self.address(order), rows=len(target), target=self.address(target),
        )  # fmt: skip
        self._launch("gather", None, (), job, len(target), source, order, target)

    def _example_norms(self, X: Array, dZ: Array, norms: Array, add: bool) -> None:
        job = new_record(
            records.EXAMPLE_NORMS, X=self.address(X), X_row=X.strides[0], X_columns=X.shape[1], dZ=self.address(dZ),
            dZ_row=dZ.strides[0], dZ_columns=dZ.shape[1], rows=len(X), add=add, norms=self.address(norms),
        )  # fmt: skip
        self._launch("example_norms", X.dtype.name, (), job, len(X), X, dZ, norms)

    def _clip_examples(self, dZ: Array, norms: Array, limit: Array, scale: Array) -> None:
        job = new_record(
            records.CLIP_EXAMPLES, dZ=self.address(dZ), dZ_row=dZ.strides[0], rows=len(dZ), columns=dZ.shape[1],
            norms=self.address(norms), limit=self.address(limit), scale=self.address(scale),
            scale_step=0 if len(scale) == 1 else scale.strides[0],
        )  # fmt: skip
        self._launch("clip_examples", dZ.dtype.name, (), job, len(dZ), dZ, norms, limit, scale)

    def _total(self, numbers: Array, target: Array) -> None:
        job = new_record(
            records.TOTAL, numbers=self.address(numbers), length=len(numbers), target=self.address(target),
            target_step=target.strides[0],
        )  # fmt: skip
        self._launch("total", numbers.dtype.name, (), job, 1, numbers, target)
