"""precision="fp32-tc", "tf32" and "bf16": the CUDA backend with its products on the GPU's tensor cores, through cuBLASLt.

Arrays, weights and sums stay float32; the operands of a product lose bits on their way into it.  With e the relative error
of an operand, 2^-10 for tf32 (10 bits of fraction) and 2^-7 for bf16 (7 bits) where bits are cut off, half of that where they
are rounded to nearest, and 2^-23 for each of the K additions, whose order is the library's, a product differs from A B by at
most (Higham, Accuracy and Stability of Numerical Algorithms, 3.1 and 3.5; Blanchard et al., SIAM J. Sci. Comput. 42, 2020)

    |C - A B|  <=  (2 e + e^2 + 2^-23 K (1 + e)^2) |A| |B|        element by element

fp32-tc makes each operand the sum of two that lose nothing, a = high + low, and C the sum of three products, the smallest
first: A_low B_high + A_high B_low + A_high B_high.  What is left of a beside the two is 2^-22 |a|; A_low B_low is left out:

    |C - A B|  <=  (2^-20 + 2^-23 (K + 2) (1 + 2^-8)) |A| |B|

which is the error of float32 products whose additions are cut off; infinite operands give NaN.  (Markidis et al., IPDPSW 2018;
Ootomo and Yokota, Int. J. High Perform. Comput. Appl. 36, 2022)

Everything else is computed as in precision="exact", and the products that cuBLASLt has no algorithm for are so too.
"""

from __future__ import annotations

from typing import Any

from .backend import Array, Backend, States
from .cuda import CUDABackend
from .kernels import records
from .launching import new_record

BIAS_ALIGNMENT = 16  # bytes: the library may read so much at a time, and biases lie anywhere in theta


class FastBackend(CUDABackend):
    """CUDABackend, its float32 products in less than float32."""

    def __init__(self, exact: CUDABackend, precision: str) -> None:
        super().__init__(exact.device)
        self.name, self.precision, self.lock = f"{exact.name} {precision}", precision, exact.lock
        self.exact, self._products = exact, exact.device.products(precision)
        self._rooms: dict[str, Array] = {}  # for one dW, and for the parts of two operands, at a time

    def __reduce__(self) -> tuple[Any, ...]:
        return self.exact.at, (self.precision, "float32")

    def at(self, precision: str, dtype: Any) -> Backend:
        return self.exact.at(precision, dtype)

    def free_bytes(self) -> float:
        """Of which the parts of operands may take twice what everything else does."""
        return super().free_bytes() / (3 if self.precision == "fp32-tc" else 1)

    def _multiply(
        self, A: Array, B: Array, C: Array, *, A_transposed: bool = False, B_transposed: bool = False,
        bias: Array | None = None, relu: bool = False,
    ) -> bool:  # fmt: skip
        """C = A B + bias, or relu of it.  False: that has to be done otherwise."""
        terms, parts = [(A, B)], []
        with self.lock:
            if self.precision == "fp32-tc":
                parts = [(X, self._room(f"high {name}", X), self._room(f"low {name}", X)) for name, X in (("A", A), ("B", B))]
                (_, A_high, A_low), (_, B_high, B_low) = parts
                terms = [(A_low, B_high), (A_high, B_low), (A_high, B_high)]
            products = []
            for k, (left, right) in enumerate(terms, 1):
                end = k == len(terms)
                product = self._products.plan(
                    left, right, C, A_transposed=A_transposed, B_transposed=B_transposed, add=k > 1,
                    bias=bias if end else None, relu=relu and end,
                )  # fmt: skip
                if product is None:
                    return False
                products.append(product)
            for source, high, low in parts:
                addresses = {"source": self.address(source), "high": self.address(high), "low": self.address(low)}
                job = new_record(records.PARTS, length=source.size, **addresses)
                self._launch("parts", source.dtype.name, (), job, source.size, source, high, low)
            for product in products:
                self._do(product, (terms, C, bias))
        return True

    def _dense_forward(self, X: Array, W: Array, b: Array, activation: str, A: Array, Z: Array | None) -> None:
        fused = activation == "relu" and Z is None
        if self.address(b) % BIAS_ALIGNMENT:
            aligned = self.empty(b.shape, b.dtype)
            self._activate(b.reshape(1, -1), "identity", aligned.reshape(1, -1))  # a copy
            b = aligned
        target = A if Z is None else Z
        if not self._multiply(X, W, target, bias=b, relu=fused):
            super()._dense_forward(X, W, b, activation, A, Z)
        elif not fused and not (target is A and activation == "identity"):
            self._activate(target, activation, A)

    def _hidden_delta(self, dZ: Array, W: Array, saved: Array, activation: str, dZ_below: Array) -> None:
        if not self._multiply(dZ, W, dZ_below, B_transposed=True):
            super()._hidden_delta(dZ, W, saved, activation, dZ_below)
        elif activation != "identity":
            job = new_record(
                records.ACTIVATE, Z=self.address(saved), Z_row=saved.strides[0], rows=len(saved), columns=saved.shape[1],
                A=self.address(dZ_below), A_row=dZ_below.strides[0],
            )  # fmt: skip
            self._launch("amplify", saved.dtype.name, (activation,), job, len(saved), saved, dZ_below)

    def _weights_and_biases(
        self, X: Array, dZ: Array, W: Array, b: Array, rule: str,
        hyper: tuple[Array | None, Array | None], states: States,
    ) -> None:  # fmt: skip
        with self.lock:
            dW = W if rule == "store" else self._room("gradient", W)
            if not self._multiply(X, dZ, dW, A_transposed=True):
                super()._weights_and_biases(X, dZ, W, b, rule, hyper, states)
                return
            if rule != "store":
                self._update(W, dW, rule, hyper[0], [pair[0] for pair in states])
        sums = self._column_sum(dZ, b, hyper[1], [pair[1] for pair in states])
        self._launch("column_sum", dZ.dtype.name, (rule,), sums, dZ.shape[1], dZ, b, hyper[1], states)

    def _room(self, name: str, like: Array) -> Array:
        if name not in self._rooms or self._rooms[name].size < like.size:
            self._rooms[name] = self.empty((like.size,), like.dtype)
        return self._rooms[name][: like.size].reshape(like.shape)
