"""The numerics contract, bit for bit: every number is defined by its inputs, whatever the blocks, threads and vectors.

The oracle below is the contract written down once more, as plain loops over scalars: it shares nothing with kernels/.
"""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import pytest
from conftest import cpu_backend, hyper
from llvmlite import ir
from numba import njit
from numba.core import types
from numba.extending import intrinsic

import bpgpu
from bpgpu.backend import ACTIVATIONS, Backend
from bpgpu.kernels.names import RULES

Array = np.ndarray[Any, Any]
BORDER = 256  # of the contract, not taken from the library

# (examples, inputs, outputs).  Each length is in turn the one that is summed over: inputs in dense_forward, outputs in
# hidden_delta, examples in dense_gradient.
SHAPES = [
    (1, 1, 1), (5, 7, 3), (33, 257, 19), (1, 700, 10), (700, 3, 5), (1, 5, 700), (2, 1, 1), (1, 1, 513), (1000, 1, 1),
    *((3, K, 17) for K in (255, 256, 257, 513, 1000)),
    *((9, 17, K) for K in (255, 256, 257, 513, 1000)),
    *((K, 19, 33) for K in (255, 256, 257, 513, 1000)),
    *((7, w, w) for w in (15, 16, 17, 31, 32, 33, 63, 64, 65)),
    (1, 300, 1100), (1, 1100, 300), (2, 65, 2100), (3, 520, 66), (4, 257, 130), (5, 129, 1030), (8, 70, 1100),  # thin ones
    (65, 64, 63), (191, 5, 129), (192, 6, 128), (193, 7, 127), (6, 31, 97), (12, 193, 24), (13, 385, 47),
]  # fmt: skip


# -- the oracle -----------------------------------------------------------------------------------------------------------


@intrinsic
def fma(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """a b + c, rounded once."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = context.get_value_type(a)
        name = "llvm.fma.f32" if isinstance(kind, ir.FloatType) else "llvm.fma.f64"
        return builder.call(builder.module.declare_intrinsic(name, (), ir.FunctionType(kind, [kind] * 3)), args)

    return (a(a, a, a), emit) if a == b == c and isinstance(a, types.Float) else None


@njit
def product(A: Array, B: Array) -> Array:
    """A B: chunks of 256 terms, in each acc = fma(a, b, acc) from +0; the first chunk's sum copied, the others added."""
    C = np.empty((A.shape[0], B.shape[1]), A.dtype)
    for m in range(A.shape[0]):
        for n in range(B.shape[1]):
            total = A.dtype.type(0)
            for start in range(0, A.shape[1], 256):
                acc = A.dtype.type(0)
                for k in range(start, min(start + 256, A.shape[1])):
                    acc = fma(A[m, k], B[k, n], acc)
                total = acc if start == 0 else total + acc
            C[m, n] = total
    return C


@njit
def column_sums(D: Array) -> Array:
    """Plain sums over the rows, in the same chunks: in a chunk from its first term on, then the chunk sums."""
    sums = np.empty(D.shape[1], D.dtype)
    for n in range(D.shape[1]):
        total = D.dtype.type(0)
        for start in range(0, D.shape[0], 256):
            chunk = D[start, n]
            for k in range(start + 1, min(start + 256, D.shape[0])):
                chunk = chunk + D[k, n]
            total = chunk if start == 0 else total + chunk
        sums[n] = total
    return sums


@njit
def descend(w: Array, g: Array, first: Array, second: Array, rule: str, h: Array) -> None:
    """The rules of kernels/update.py's docstring: every a b + c one fma, the inner one first."""
    lr, l2, l1, decay, beta1, gain1, beta2, gain2, epsilon = h[0], h[1], h[2], h[3], h[4], h[5], h[6], h[7], h[8]
    for i in range(w.size):
        sign = w.dtype.type(1) if w[i] > 0 else w.dtype.type(-1) if w[i] < 0 else w.dtype.type(0)
        penalized = l2 != 0 or l1 != 0 or decay != 0
        step = fma(l2, w[i], g[i]) + l1 * sign if penalized else g[i]
        u = step
        if rule == "momentum" or rule == "nesterov" or rule == "adam":
            first[i] = fma(beta1, first[i], gain1 * step)
            u = fma(beta1, first[i], gain1 * step) if rule == "nesterov" else first[i]
        if rule == "adam":
            second[i] = fma(beta2, second[i], gain2 * (step * step))
            u = u / (np.sqrt(second[i]) + epsilon)
        if rule == "rmsprop":
            first[i] = fma(beta2, first[i], gain2 * (step * step))
            u = u / (np.sqrt(first[i]) + epsilon)
        w[i] = fma(-lr, u, fma(-decay, w[i], w[i]) if penalized else w[i])


def rounded(q: Fraction, bits: int, smallest: int) -> float:
    """The multiple of 2^smallest with at most `bits` bits that is nearest to q, ties to even."""
    if q == 0:
        return 0.0
    size = abs(q)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= size < Fraction(2) ** exponent  # 2^exponent <= |q|
    unit = Fraction(2) ** max(exponent - bits + 1, smallest)
    return float(round(q / unit) * unit)


def rational_product(a: Array, b: Array) -> float:
    """One number of the product by exact rational arithmetic."""
    bits, smallest = (24, -149) if a.dtype == np.float32 else (53, -1074)
    total = 0.0
    for start in range(0, len(a), BORDER):
        acc = 0.0
        for x, y in zip(a[start : start + BORDER].tolist(), b[start : start + BORDER].tolist(), strict=True):
            acc = rounded(Fraction(x) * Fraction(y) + Fraction(acc), bits, smallest)
        total = acc if start == 0 else rounded(Fraction(total) + Fraction(acc), bits, smallest)
    return total


# -- helpers --------------------------------------------------------------------------------------------------------------


def numbers(rng: np.random.Generator, *shape: int, dtype: Any) -> Array:
    """Numbers of very different sizes, so that another order of a sum gives other bits."""
    return (rng.standard_normal(shape) * 2.0 ** rng.integers(-9, 9, shape)).astype(dtype)


def assert_same_bits(got: Array, expected: Array, what: str = "") -> None:
    """The same bits, NaN for NaN (the contract does not say which NaN)."""
    assert got.shape == expected.shape and got.dtype == expected.dtype
    words = "u4" if got.dtype == np.float32 else "u8"
    same = got.view(words) == expected.view(words)
    same |= np.isnan(got) & np.isnan(expected)
    if not same.all():
        where = np.unravel_index(int(same.argmin()), same.shape)
        raise AssertionError(
            f"{what} {(~same).sum()} of {same.size} differ, first {where}: {got[where]!r}, {expected[where]!r}"
        )


def digest(*arrays: Array) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()


@contextmanager
def fenced(dtype: Any, *shapes: tuple[int, ...]) -> Iterator[list[Array]]:
    """Arrays to be written to, one number off any alignment and between fences, which must be whole afterwards."""
    lengths = [int(np.prod(shape)) for shape in shapes]
    buffers = [np.full(length + 2 * 67, 7e7, dtype) for length in lengths]
    inner = [buffer[67 : 67 + n].reshape(shape) for buffer, n, shape in zip(buffers, lengths, shapes, strict=True)]
    yield inner
    for buffer, n in zip(buffers, lengths, strict=True):
        assert (buffer[:67] == 7e7).all() and (buffer[67 + n :] == 7e7).all(), "written beyond the array"


def name_of(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


# -- the oracle is right, and the data can tell --------------------------------------------------------------------------


@pytest.mark.parametrize("K", [1, 3, 256, 258, 600])
def test_oracle_is_the_rational_contract(K: int, dtype: np.dtype, rng: np.random.Generator) -> None:
    A, B = numbers(rng, 2, K, dtype=dtype), numbers(rng, K, 2, dtype=dtype)
    A[0] *= np.ldexp(dtype.type(1), -80 if dtype == np.float32 else -700)  # with B so small that subnormals come in
    B[:, 0] *= np.ldexp(dtype.type(1), -50 if dtype == np.float32 else -355)
    expected = [[rational_product(a, b) for b in B.T] for a in A]
    assert_same_bits(product(A, B), np.array(expected, dtype))
    assert K > 1 or 0 < abs(expected[0][0]) < np.finfo(dtype).tiny


def test_the_order_shows_in_the_bits(dtype: np.dtype, rng: np.random.Generator) -> None:
    """Another order, other chunks, two roundings instead of fma, or k split elsewhere: each would be seen."""
    A, B = numbers(rng, 8, 1000, dtype=dtype), numbers(rng, 1000, 8, dtype=dtype)
    right = product(A, B)
    shifted = product(A[:, :250].copy(), B[:250].copy()) + product(A[:, 250:].copy(), B[250:].copy())
    twice_rounded = np.zeros_like(right)
    for start in range(0, 1000, BORDER):
        chunk = np.zeros_like(right)
        for k in range(start, min(start + BORDER, 1000)):
            chunk = chunk + A[:, k : k + 1] * B[k : k + 1]
        twice_rounded = chunk if start == 0 else twice_rounded + chunk
    for wrong in (product(A[:, ::-1].copy(), B[::-1].copy()), shifted, A @ B, twice_rounded):
        assert (wrong != right).mean() > 0.3


# -- the operations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=name_of)
def test_products(shape: tuple[int, int, int], dtype: np.dtype, cpu: Backend, rng: np.random.Generator) -> None:
    n, i, o = shape
    X, W, b = numbers(rng, n, i, dtype=dtype), numbers(rng, i, o, dtype=dtype), numbers(rng, o, dtype=dtype)
    dZ, saved = numbers(rng, n, o, dtype=dtype), numbers(rng, n, i, dtype=dtype)
    Z = product(X, W) + b
    below = product(dZ, W.T.copy())
    with fenced(dtype, (n, o), (n, o), (n, i), (i, o), (o,)) as (A, kept, dZ_below, dW, db):
        cpu.dense_forward(X, W, b, A=A)
        assert_same_bits(A, Z, "dense_forward")
        cpu.dense_forward(X, W, b, "relu", A=A, Z=kept)
        assert_same_bits(kept, Z, "dense_forward, Z")
        assert_same_bits(A, np.where(Z < 0, dtype.type(0), Z), "dense_forward, relu")
        cpu.hidden_delta(dZ, W, saved, dZ_below=dZ_below)
        assert_same_bits(dZ_below, below, "hidden_delta")
        cpu.hidden_delta(dZ, W, saved, "relu", dZ_below=dZ_below)
        assert_same_bits(dZ_below, below * (saved > 0).astype(dtype), "hidden_delta, relu")
        cpu.dense_gradient(X, dZ, dW=dW, db=db)
        assert_same_bits(dW, product(X.T.copy(), dZ), "dW")
        assert_same_bits(db, column_sums(dZ), "db")


NUMBERS = {"learning_rate": 0.05, "l2": 0.01, "l1": 0.003, "decay": 0.002, "beta1": 0.9, "gain1": 0.7, "beta2": 0.99}
NUMBERS |= {"gain2": 0.02, "epsilon": 1e-6}


def states(rng: np.random.Generator, *shape: int, dtype: Any) -> tuple[Array, Array]:
    """Two arrays that any rule may keep: its square has no negative numbers."""
    return abs(numbers(rng, *shape, dtype=dtype)), abs(numbers(rng, *shape, dtype=dtype))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("penalties", [{}, {"l1": 0, "decay": 0}, {"l2": 0, "l1": 0, "decay": 0}], ids=["all", "l2", "none"])
@pytest.mark.parametrize("length", [1, 7, 16, 33, 257, 8191, 8193, 40_000])
def test_update(
    rule: str, penalties: dict[str, float], length: int, dtype: np.dtype, cpu: Backend, rng: np.random.Generator
) -> None:
    w, g = (numbers(rng, length, dtype=dtype) for _ in range(2))
    w[1::5], g[2::7] = 0, -0.0
    kept, h = states(rng, length, dtype=dtype), hyper(dtype, **NUMBERS | penalties)
    expected = [w.copy(), *(s.copy() for s in kept)]
    descend(expected[0], g, *expected[1:], rule, h)
    with fenced(dtype, *[w.shape] * 3) as moved:
        for target, source in zip(moved, (w, *kept), strict=True):
            target[:] = source
        cpu.update(moved[0], g, rule, h, moved[1 : 1 + len(RULES[rule])])
        for name, got, wanted in zip(("w", "first", "second"), moved, expected, strict=True):
            assert_same_bits(got, wanted, name)
    assert not np.array_equal(w, expected[0])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (5, 7, 3), (257, 19, 33), (700, 33, 17), (1, 65, 31), (8, 3, 130), (513, 200, 9)], ids=name_of
)
def test_dense_update_is_gradient_then_update(
    rule: str, shape: tuple[int, int, int], dtype: np.dtype, cpu: Backend, rng: np.random.Generator
) -> None:
    n, i, o = shape
    X, dZ = numbers(rng, n, i, dtype=dtype), numbers(rng, n, o, dtype=dtype)
    W, b = numbers(rng, i, o, dtype=dtype), numbers(rng, o, dtype=dtype)
    (W1, W2), (b1, b2) = states(rng, i, o, dtype=dtype), states(rng, o, dtype=dtype)
    h = np.array([hyper(dtype, **NUMBERS), hyper(dtype, **{k: v / 2 for k, v in NUMBERS.items()})])  # not to be mixed up
    start, count = (W, b, W1, b1, W2, b2), len(RULES[rule])
    expected = [a.copy() for a in start]
    dW, db = cpu.dense_gradient(X, dZ)
    descend(expected[0].ravel(), dW.ravel(), expected[2].ravel(), expected[4].ravel(), rule, h[0])
    descend(expected[1], db, expected[3], expected[5], rule, h[1])
    by_hand = [a.copy() for a in start]
    cpu.update(by_hand[0].ravel(), dW.ravel(), rule, h[0], [by_hand[2 + 2 * s].ravel() for s in range(count)])
    cpu.update(by_hand[1], db, rule, h[1], [by_hand[3 + 2 * s] for s in range(count)])
    with fenced(dtype, *(a.shape for a in expected)) as folded:
        for target, source in zip(folded, start, strict=True):
            target[:] = source
        pairs = [(folded[2 + 2 * s], folded[3 + 2 * s]) for s in range(count)]
        cpu.dense_update(X, dZ, folded[0], folded[1], rule, h, pairs)
        for name, got, hand, wanted in zip(("W", "b", "W1", "b1", "W2", "b2"), folded, by_hand, expected, strict=True):
            assert_same_bits(got, wanted, name)
            assert_same_bits(hand, wanted, name)


@pytest.mark.parametrize(
    "shape",
    [(32, 784, 128), (5, 700, 33), (1, 1000, 10), (1, 784, 1100), (3, 4100, 70), (33, 257, 7), (9, 1300, 300)],
    ids=name_of,
)
def test_chunks_of_few_blocks_on_several_threads(
    shape: tuple[int, int, int], dtype: np.dtype, cpu: Backend, rng: np.random.Generator
) -> None:
    """A recorded product with fewer blocks than the threads want goes chunk by chunk: to the same bits."""
    n, i, o = shape
    X, W, b = numbers(rng, n, i, dtype=dtype), numbers(rng, i, o, dtype=dtype), numbers(rng, o, dtype=dtype)
    dZ, V = numbers(rng, n, i, dtype=dtype), numbers(rng, o, i, dtype=dtype)
    saved = numbers(rng, n, o, dtype=dtype)
    wanted = cpu.dense_forward(X, W, b, "tanh"), cpu.hidden_delta(dZ, V, saved, "tanh")
    with fenced(dtype, (n, o), (n, o), (n, o)) as (A, Z, dX):
        with cpu.capture() as program:
            cpu.dense_forward(X, W, b, "tanh", A=A, Z=Z)
            cpu.hidden_delta(dZ, V, saved, "tanh", dZ_below=dX)
        program.run(0, 2)
        assert_same_bits(A, wanted[0])
        assert_same_bits(dX, wanted[1])
        assert_same_bits(Z, cpu.dense_forward(X, W, b))


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 30, 32, 61])
@pytest.mark.parametrize("layers", [(784, 128, 64, 10), (3, 256, 257, 33), (600, 40, 300, 5), (17, 19, 23, 29)], ids=name_of)
def test_rows_may_go_through_all_layers_at_once(
    n: int, layers: tuple[int, int, int, int], dtype: np.dtype, cpu: Backend, rng: np.random.Generator
) -> None:
    """Both passes recorded by rows, of products small and large, and of fewer rows in the end: the bits of one at a time."""
    h, i, j, o = layers
    W = [numbers(rng, *shape, dtype=dtype) / 8 for shape in ((h, i), (i, j), (j, o))]
    b = [numbers(rng, len(w[0]), dtype=dtype) for w in W]
    X, y = numbers(rng, n, h, dtype=dtype), rng.integers(0, o, n)
    few = max(1, n - 8)
    with fenced(dtype, (n, i), (n, j), (n, o), (n, o), (n,), (n, j), (n, i), (few, j)) as (*a, d3, losses, d2, d1, again):

        def passes() -> list[Array]:
            for inputs, w, bias, A, f in zip((X, a[0], a[1]), W, b, a, ("tanh", "relu", "identity"), strict=True):
                cpu.dense_forward(inputs, w, bias, f, A=A)
            cpu.output_delta(a[2], y, dZ=d3, losses=losses)
            cpu.hidden_delta(d3, W[2], a[1], "relu", dZ_below=d2)
            cpu.hidden_delta(d2, W[1], a[0], "tanh", dZ_below=d1)
            return [*a, d3, losses, d2, d1]

        wanted = [array.copy() for array in passes()]
        wanted_again = cpu.dense_forward(a[0][:few], W[1], b[1], "relu")
        with cpu.capture() as program:
            with cpu.by_rows():
                passes()
            cpu.dense_forward(a[0][:few], W[1], b[1], "relu", A=again)
        for array in (*a, d3, losses, d2, d1):
            array[...] = np.nan
        program.run(0, 2)
        for got, want in zip((*a, d3, losses, d2, d1, again), (*wanted, wanted_again), strict=True):
            assert_same_bits(got, want)


@pytest.mark.parametrize(
    "shape", [(1030, 300, 37), (1100, 513, 130), (259, 1027, 40), (2100, 19, 300), (600, 790, 9), (100, 1030, 600)], ids=name_of
)
def test_many_blocks_that_share_an_operand(
    shape: tuple[int, int, int], dtype: np.dtype, cpu: Backend, rng: np.random.Generator
) -> None:
    """Recorded products of many rows pack W, dZ once for several blocks: to the same bits, whatever ran before."""
    n, i, o = shape
    X, W, b = numbers(rng, n, i, dtype=dtype), numbers(rng, i, o, dtype=dtype), numbers(rng, o, dtype=dtype)
    dZ, saved = numbers(rng, n, o, dtype=dtype), numbers(rng, n, i, dtype=dtype)
    with fenced(dtype, (n, o), (n, i), (i, o), (o,), (i, o), (o,)) as (A, dX, dW, db, dW_alone, db_alone):
        with cpu.capture() as program:
            cpu.dense_forward(X, W, b, A=A)
            cpu.hidden_delta(dZ, W, saved, dZ_below=dX)
            with cpu.together():
                cpu.dense_gradient(X[:77], dZ[:77], dW=dW_alone, db=db_alone)
                cpu.dense_gradient(X, dZ, dW=dW, db=db)
        program.run(0, 2)
        assert_same_bits(A, product(X, W) + b, "A")
        assert_same_bits(dX, product(dZ, W.T.copy()), "dX")
        assert_same_bits(dW, product(X.T.copy(), dZ), "dW")
        assert_same_bits(db, column_sums(dZ), "db")
        assert_same_bits(dW_alone, product(X[:77].T.copy(), dZ[:77]), "dW of some examples")


@pytest.mark.parametrize("length", [1, 2, 255, 256, 257, 512, 513, 1000])
def test_total(length: int, dtype: np.dtype, cpu: Backend, rng: np.random.Generator) -> None:
    losses = numbers(rng, length, dtype=dtype)
    with fenced(dtype, (1,)) as (target,):
        cpu.total(losses, target)
        assert_same_bits(target, column_sums(losses[:, None].copy()))


@pytest.mark.parametrize("outputs", [1, 5, 16, 33, 256, 257, 600])
@pytest.mark.parametrize("weighted", [False, True])
def test_output_delta_of_absolute_error(
    outputs: int, weighted: bool, dtype: np.dtype, cpu: Backend, rng: np.random.Generator
) -> None:
    """A loss that is one subtraction an output, so that only the order of the sum and the scale are left."""
    n = 19
    Z, y = numbers(rng, n, outputs, dtype=dtype), numbers(rng, n, outputs, dtype=dtype)
    Z[0, 0] = y[0, 0]
    scale = rng.uniform(0, 1, n if weighted else 1).astype(dtype)
    with fenced(dtype, (n, outputs), (n,)) as (dZ, losses):
        cpu.output_delta(Z, y, "absolute_error", "identity", scale=scale, dZ=dZ, losses=losses)
        assert_same_bits(losses, column_sums(abs(Z - y).T.copy()) * scale, "losses")
        assert_same_bits(dZ, np.sign(Z - y) * scale[:, None], "dZ")


@pytest.mark.parametrize("activation", [*ACTIVATIONS, "softmax"])
def test_activations_do_not_depend_on_the_place(
    activation: str, dtype: np.dtype, cpu: Backend, rng: np.random.Generator
) -> None:
    """Fused in the forward pass, on its own, in place, in a full vector or at the ragged end: the same bits."""
    Z = (4 * rng.standard_normal((21, 37))).astype(dtype)
    with fenced(dtype, Z.shape, Z.shape) as (A, in_place):
        cpu.activate(Z, activation, A=A)
        in_place[:] = Z
        cpu.activate(in_place, activation, A=in_place)
        assert_same_bits(in_place, A, "in place")
        if activation == "softmax":
            assert_same_bits(np.concatenate([cpu.activate(row[None], activation) for row in Z]), A, "row by row")
            return
        alone = [cpu.activate(Z[:, c : c + 1].copy(), activation) for c in range(Z.shape[1])]
        assert_same_bits(np.concatenate(alone, axis=1), A, "column by column")
        unit, zeros = np.eye(37, dtype=dtype), np.zeros(37, dtype)
        assert_same_bits(cpu.dense_forward(Z, unit, zeros, activation), A, "dense_forward")
        gains = cpu.hidden_delta(np.ones((21, 1), dtype), np.ones((37, 1), dtype), A, activation)
        one = [
            cpu.hidden_delta(np.ones((1, 1), dtype), np.ones((1, 1), dtype), a.reshape(1, 1), activation)[0, 0]
            for a in A[:2].ravel()
        ]
        assert_same_bits(np.array(one, dtype).reshape(2, 37), gains[:2].copy(), "hidden_delta")


@pytest.mark.parametrize("place", [0, 100, 255, 256, 511])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_infinities_and_nan_propagate(
    value: float, place: int, dtype: np.dtype, cpu: Backend, rng: np.random.Generator
) -> None:
    n, i, o = 5, 512, 6
    X, W, b = numbers(rng, n, i, dtype=dtype), numbers(rng, i, o, dtype=dtype), numbers(rng, o, dtype=dtype)
    X[2, place] = value
    W[place, 4] = 0  # inf times 0 is NaN
    Z = cpu.dense_forward(X, W, b)
    assert_same_bits(Z, product(X, W) + b)
    assert not np.isfinite(Z[2]).any() and np.isnan(Z[2, 4]) and np.isfinite(np.delete(Z, 2, 0)).all()
    D = numbers(rng, 512, 3, dtype=dtype)
    D[place, 1] = value
    dW, db = cpu.dense_gradient(X.T.copy(), D)
    assert_same_bits(dW, product(X.copy(), D), "dW")
    assert_same_bits(db, column_sums(D), "db")
    assert not np.isfinite(db[1]) and np.isfinite(db[[0, 2]]).all()
    below = cpu.hidden_delta(X[:, :3].copy(), D, np.ones((n, 512), dtype))
    assert_same_bits(below, product(X[:, :3].copy(), D.T.copy()), "hidden_delta")


def test_overflow_becomes_an_infinity(dtype: np.dtype, cpu: Backend) -> None:
    top = np.finfo(dtype).max
    X, W = np.full((3, 400), top, dtype), np.full((400, 2), 2, dtype)
    W[:, 1] = -2
    Z = cpu.dense_forward(X, W, np.zeros(2, dtype))
    assert (Z[:, 0] == np.inf).all() and (Z[:, 1] == -np.inf).all()


def test_subnormals_and_negative_zeros_are_kept(dtype: np.dtype, cpu: Backend) -> None:
    tiny, least = np.finfo(dtype).tiny, np.finfo(dtype).smallest_subnormal
    X, W = np.full((2, 300), least, dtype), np.ones((300, 3), dtype)
    W[:, 1], W[:, 2] = -1, 0.25
    Z = cpu.dense_forward(X, W, np.array([0, -0.0, 0], dtype))
    assert_same_bits(Z, np.tile(np.array([300 * least, -300 * least, 0], dtype), (2, 1)))
    quotients = cpu.dense_forward(np.full((1, 1), tiny, dtype), np.full((1, 5), 0.5, dtype), np.zeros(5, dtype))
    assert (quotients == tiny / 2).all() and (quotients > 0).all()
    minus = np.full((300, 5), -0.0, dtype)
    dW, db = cpu.dense_gradient(np.ones((300, 2), dtype), minus)
    assert not np.signbit(dW).any(), "a product starts from +0"
    assert np.signbit(db).all(), "a plain sum starts from its first term"
    for name in ("identity", "relu", "leaky_relu", "tanh", "scaled_tanh", "elu", "selu", "gelu", "silu"):
        assert np.signbit(cpu.activate(minus, name)).all(), f"{name} of -0"
        small = cpu.activate(np.full((1, 5), 8 * least, dtype), name)
        assert (small > 0).all(), f"{name} flushes subnormals"
    w = np.full(5, 2 * least, dtype)
    cpu.update(w, np.full(5, least, dtype), "sgd", hyper(dtype, learning_rate=1))
    assert (w == least).all()


# -- whole passes ---------------------------------------------------------------------------------------------------------

LAYERS = [37, 64, 33, 10]
MIXED = ["tanh", "gelu"]


def examples(n: int, inputs: int = 37, classes: int = 10, dtype: Any = "float32", seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, inputs)).astype(dtype), rng.integers(0, classes, n)


@pytest.mark.parametrize("row", [0, 5, 255, 256, 777, 999])
def test_a_row_alone_and_in_a_batch_of_1000(row: int, dtype: np.dtype, cpu: Backend) -> None:
    net = bpgpu.MLP(LAYERS, activation=MIXED, reduction="sum", dtype=dtype, backend=cpu)
    X, y = examples(1000, dtype=dtype)
    many, one = net.forward(X), net.forward(X[row : row + 1])
    back, alone = net.backward(many, y), net.backward(one, y[row : row + 1])
    for l in range(3):
        assert_same_bits(one.a[l + 1][0], many.a[l + 1][row], f"a[{l + 1}]")
        assert_same_bits(one.z(l)[0], many.z(l)[row], f"z({l})")
        assert_same_bits(alone.delta[l][0], back.delta[l][row], f"delta[{l}]")
    assert_same_bits(net.predict_proba(X[row : row + 1])[0], net.predict_proba(X)[row])


@pytest.mark.parametrize("cuts", [[256], [512], [768], [256, 512], [512, 768], [256, 512, 768]], ids=str)
def test_a_batch_split_on_borders(cuts: list[int], dtype: np.dtype, cpu: Backend) -> None:
    """The first part may be of several chunks; every other one of one, because chunk sums are added in ascending order."""
    net = bpgpu.MLP(LAYERS, activation=MIXED, reduction="sum", dtype=dtype, backend=cpu)
    starts = [0, *cuts]
    if len(cuts) < 3:
        starts = sorted({0, *cuts, *range(cuts[0], 1000, BORDER)})
    X, y = examples(1000, dtype=dtype)
    whole, gradient = net.gradient(X, y)
    parts = [net.gradient(X[s:e], y[s:e]) for s, e in zip(starts, [*starts[1:], 1000], strict=True)]
    loss, total = dtype.type(parts[0][0]), parts[0][1]
    for more, part in parts[1:]:
        loss, total = loss + dtype.type(more), total + part
    assert_same_bits(total, gradient)
    assert loss == dtype.type(whole)


def train(threads: int, dtype: Any, *, seed: int = 3) -> bpgpu.MLP:
    net = bpgpu.MLP(LAYERS, activation=MIXED, dtype=dtype, seed=seed, backend=cpu_backend(threads))
    X, y = examples(300, dtype=dtype)
    net.fit(X, y, epochs=2, batch_size=37, optimizer=bpgpu.SGD(0.05, momentum=0.9, weight_decay=1e-4))
    net.train_step(X, y, bpgpu.SGD(0.1, momentum=0.5, nesterov=True), sample_weight=np.linspace(0, 1, 300))
    return net


def test_training_does_not_depend_on_threads_or_the_run(dtype: np.dtype) -> None:
    first = train(1, dtype)
    assert np.isfinite(first.theta).all()
    for threads in (1, 2, 3, 2, 3):
        assert_same_bits(train(threads, dtype).theta, first.theta, f"{threads} threads")
    assert digest(train(2, dtype, seed=4).theta) != digest(first.theta)


def test_more_threads_than_work_and_many_runs() -> None:
    """Hundreds of programs of almost no work: where a missing barrier shows."""
    crowd = cpu_backend(7)
    X, W, b = np.ones((1, 3), "f4"), np.ones((3, 2), "f4"), np.zeros(2, "f4")
    for k in range(200):
        X[0, 0] = k
        assert crowd.dense_forward(X, W, b).tolist() == [[k + 2, k + 2]]


@pytest.mark.parametrize("runs", [[(0, 6)], [(0, 1), (1, 4), (5, 1)], [(t, 1) for t in range(6)]], ids=["one", "three", "six"])
def test_program_is_its_steps(runs: list[tuple[int, int]], dtype: np.dtype, cpu: Backend, rng: np.random.Generator) -> None:
    """run(0, N) is N single runs, and both are the operations called one by one."""
    X, order = numbers(rng, 40, 9, dtype=dtype), rng.permutation(40)[:36]
    W, b, v = numbers(rng, 9, 5, dtype=dtype), np.zeros(5, dtype), (np.zeros((9, 5), dtype), np.zeros(5, dtype))
    h = np.array([hyper(dtype, learning_rate=0.001, beta1=0.9, l2=l2) for l2 in (0.01, 0)])

    def step(t: int, batch: Array, A: Array, W: Array, b: Array, v: tuple[Array, Array], totals: Array) -> None:
        cpu.dense_forward(batch, W, b, "tanh", A=A)
        cpu.total(A[0], totals)
        cpu.dense_update(batch, A, W, b, "momentum", h, [v])

    W1, b1, v1 = W.copy(), b.copy(), (v[0].copy(), v[1].copy())
    expected = np.zeros(6, dtype)
    for t in range(6):
        step(t, X[order[6 * t : 6 * t + 6]], np.empty((6, 5), dtype), W1, b1, v1, expected[t : t + 1])
    batch, A, totals, before = np.empty((6, 9), dtype), np.empty((6, 5), dtype), np.zeros(6, dtype), W.copy()
    with cpu.capture() as program:
        cpu.gather(X, order, batch)
        step(0, batch, A, W, b, v, totals)
    assert_same_bits(W, before, "recording runs nothing:")
    for first, steps in runs:
        program.run(first, steps)
    for got, wanted in ((W, W1), (b, b1), (v[0], v1[0]), (v[1], v1[1]), (totals, expected)):
        assert_same_bits(got, wanted)
    for first, steps in ((0, 7), (6, 1), (-1, 1), (0, -1)):
        with pytest.raises(ValueError, match="of a program that has 6"):
            program.run(first, steps)
    assert_same_bits(W, W1)


# -- threads that are held up ----------------------------------------------------------------------------------------------

HELD_UP = """
import numpy as np
from numba import njit
from bpgpu.kernels import team
exchange, add, load = team.atomic_exchange, team.atomic_add, team.atomic_load

@njit
def delay(address, value):
    mixed = (value * 2654435761 + address // 64 * 40503) >> 7
    for _ in range(100_000 if mixed % 13 == 0 else mixed % 500):  # now and then 100 microseconds or more
        load(address)

@njit
def late_exchange(address, value):
    old = exchange(address, value)
    delay(address, value + old)
    return old

@njit
def late_add(address, value):
    old = add(address, value)
    delay(address, old)
    return old

team.atomic_exchange, team.atomic_add = late_exchange, late_add
from bpgpu.cpu import CPUBackend
from bpgpu.kernels.records import TEAM
X, W, b = np.ones((30, 3), "f4"), np.ones((3, 40), "f4"), np.zeros(40, "f4")
w, g, hyper = np.zeros(50_000, "f4"), np.ones(50_000, "f4"), np.array([1, 0, 0, 0, 0, 1, 0, 0, 0], "f4")
V, c, A, B = np.ones((40, 5), "f4"), np.zeros(5, "f4"), np.empty((30, 40), "f4"), np.empty((30, 5), "f4")
totals, steps = np.zeros(3, "f4"), 0
for threads in (2, 3):
    backend = CPUBackend(threads=threads)
    backend.team._shared.view(TEAM)[0]["running"] = team.STAGE_MASK - 1000  # the numbers of the stages begin again soon
    with backend.capture() as program:
        with backend.by_rows():
            backend.dense_forward(X, W, b, A=A)
            backend.dense_forward(A, V, c, A=B)
        backend.total(A[0], totals)  # one item alone: there is none for the second ticket
        backend.update(w, g, "sgd", hyper)
    for k in range(1000):
        X[:, 0] = k
        n = k % 3 + 1
        program.run(0, n)
        steps += n
        assert (A == k + 2).all() and (B == 40 * (k + 2)).all(), f"run {k}: {A} {B}"
        assert (w == -steps).all(), f"run {k}: items done twice or never, {np.unique(w)} after {steps} steps"
print("whole")
"""


def test_threads_may_be_held_up_anywhere(tmp_path: Path) -> None:
    """As by an operating system that takes a CPU away between two instructions: no hang, no item twice, none left out."""
    env = os.environ | {"BPGPU_CACHE_DIR": str(tmp_path)}  # kernels of its own, with a delay behind every atomic operation
    try:
        done = subprocess.run([sys.executable, "-c", HELD_UP], env=env, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        pytest.fail("the threads wait for each other for ever")
    assert done.returncode == 0 and done.stdout.strip() == "whole", done.stderr[-1000:]


# -- other machines -------------------------------------------------------------------------------------------------------

TRAINING = """
import hashlib
import numpy as np, bpgpu
from bpgpu.cpu import CPUBackend
digests = []
for dtype in dtypes:
    rng = np.random.default_rng(5)
    X, y = rng.standard_normal((300, 37)).astype(dtype), rng.integers(0, 10, 300)
    net = bpgpu.MLP([37, 65, 33, 10], activation=["tanh", "gelu"], dtype=dtype, seed=1, backend=CPUBackend(threads=2))
    history = net.fit(X, y, epochs=2, batch_size=267, optimizer=bpgpu.SGD(0.1, momentum=0.9), validation_data=(X, y))
    assert np.isfinite(net.theta).all()
    for array in (net.theta, np.array(history.loss + history.validation_loss)):
        digests.append(hashlib.sha256(array.tobytes()).hexdigest())
    net = bpgpu.MLP([37, 256, 245, 10], activation=["tanh", "gelu"], dtype=dtype, seed=2, backend=CPUBackend(threads=1))
    optimizer = bpgpu.SGD(0.1, momentum=0.9)
    for n in (1, 2, 3, 5, 6, 9):  # few rows of layers nearly as wide as a block may be
        net.train_step(X[:n], y[:n], optimizer)
        for array in (net.theta, net.outputs(X[:n])):
            digests.append(hashlib.sha256(array.tobytes()).hexdigest())
"""

MACHINES = {
    "SSE2": {"NUMBA_CPU_NAME": "generic"},  # fma is a call of libm
    "AVX": {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "+avx,+sse4.2,+sse4.1,+ssse3,+sse3,+sse2,+popcnt,+cx16"},
    "AVX2": {
        "NUMBA_CPU_NAME": "haswell",
        "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+sse4.2,+sse4.1,+ssse3,+sse3,+sse2,+popcnt,+cx16",
    },
}


def needed(machine: dict[str, str]) -> set[str]:
    return {f[1:] for f in machine.get("NUMBA_CPU_FEATURES", "").split(",") if f} & {"avx", "avx2", "fma"}


CASES = [("SSE2", "float32"), ("AVX2", "float64")]  # the others take a compilation of 6 s each
MORE_CASES = [(m, d) for m in MACHINES for d in ("float32", "float64") if (m, d) not in CASES]


@pytest.mark.parametrize(("machine", "dtype"), [*CASES, *(pytest.param(*c, marks=pytest.mark.exhaustive) for c in MORE_CASES)])
def test_smaller_machines_give_the_same_bits(machine: str, dtype: str, tmp_path: Path) -> None:
    if platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip("these machines are x86-64")
    if missing := sorted(f for f in needed(MACHINES[machine]) if not llvm.get_host_cpu_features().get(f)):
        pytest.skip(f"this processor has no {', '.join(missing)}")
    here: dict[str, Any] = {"dtypes": [dtype]}
    exec(TRAINING, here)
    env = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_CPU")}
    env |= MACHINES[machine] | {"BPGPU_CACHE_DIR": str(tmp_path / "cache")}
    code = f"dtypes = [{dtype!r}]\n{TRAINING}\nprint(*digests)"
    there = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
    assert there.returncode == 0, there.stderr
    assert there.stdout.split() == here["digests"]
    assert list((tmp_path / "cache").glob("*.kernel")), "the kernels were not compiled for that machine"


# -- nothing outside of the arrays is read --------------------------------------------------------------------------------

AT_THE_EDGE = """
import ctypes, mmap, sys
import numpy as np
from bpgpu.cpu import CPUBackend
libc = ctypes.CDLL(None, use_errno=True)
pages = []
def edge(array, at_end):
    '''A copy that ends where a page begins that may not be touched (or begins where one ends).'''
    size = -(-max(array.nbytes, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, size + 2 * mmap.PAGESIZE)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (base, base + mmap.PAGESIZE + size):
        assert libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    start = mmap.PAGESIZE + (size - array.nbytes if at_end else 0)
    copy = np.frombuffer(memory, array.dtype, array.size, start).reshape(array.shape)
    copy[...] = array
    pages.append(memory)
    return copy
rng = np.random.default_rng(0)
for dtype in ("float32", "float64"):
  for at_end in (True, False):
    def new(*shape): return edge(rng.standard_normal(shape).astype(dtype), at_end)
    for b in (CPUBackend(threads=1), CPUBackend(threads=2)):
      for n, i, o in ((1, 1, 1), (5, 7, 3), (33, 257, 19), (6, 16, 16), (7, 33, 15), (300, 17, 31), (2, 64, 65), (193, 3, 9),
                      (1, 300, 77), (3, 70, 261)):
        X, W, bias, Z, D, S = new(n, i), new(i, o), new(o), new(n, o), new(n, o), new(n, i)
        v, hyper = (new(i, o), new(o)), edge(np.full((2, 9), .1, dtype), at_end)
        b.dense_forward(X, W, bias, "relu", A=new(n, o), Z=Z)
        b.hidden_delta(D, W, S, "relu", dZ_below=new(n, i))
        b.dense_gradient(X, D, dW=new(i, o), db=new(o))
        b.dense_update(X, D, W, bias, "adam", hyper, [v, (new(i, o), new(o))])
        b.update(new(o), new(o), "adam", edge(np.full(9, .1, dtype), at_end), [new(o), new(o)])
        b.activate(Z, "relu", A=new(n, o)); b.activate(Z, "softmax", A=new(n, o))
        labels = edge(rng.integers(0, o, n), at_end)
        for scale in (new(1), new(n)):
            b.output_delta(Z, labels, scale=scale, dZ=new(n, o), losses=new(n))
            b.output_delta(Z, new(n, o), "absolute_error", "identity", scale=scale, dZ=new(n, o), losses=new(n))
        b.gather(X, edge(rng.permutation(n), at_end), new(n, i))
        b.gather(labels, edge(rng.permutation(n), at_end), labels.copy())
        b.total(edge(Z[:, 0], at_end), new(1))
print("whole")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs mprotect as Linux has it")
def test_nothing_beyond_an_array_is_touched() -> None:
    """Arrays that end where unmapped memory begins, as the caller's may: one element too far is a crash."""
    done = subprocess.run([sys.executable, "-c", AT_THE_EDGE], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.strip() == "whole", (done.returncode, done.stderr[-2000:])


# -- the seam refuses before it does anything ------------------------------------------------------------------------------


def seam_calls() -> dict[str, Callable[[Backend], object]]:
    """Calls that must raise ValueError or TypeError: wrong shapes, dtypes, layouts, names."""
    one, row = np.ones((4, 6), "f4"), np.ones(6, "f4")
    W, hyper = np.ones((6, 6), "f4"), np.ones((2, 9), "f4")
    wide = np.ones((4, 12), "f4")
    readonly = np.ones(6, "f4")
    readonly.flags.writeable = False
    labels, order = np.zeros(4, np.int64), np.arange(8)
    return {
        "shape": lambda b: b.dense_forward(one, np.ones((5, 6), "f4"), row),
        "bias": lambda b: b.dense_forward(one, W, np.ones(5, "f4")),
        "dtypes mixed": lambda b: b.dense_forward(one, W.astype("f8"), row),
        "float16": lambda b: b.activate(one.astype("f2"), "relu"),
        "byte order": lambda b: b.activate(one.astype(">f4"), "relu"),
        "integers": lambda b: b.activate(one.astype("i4"), "relu"),
        "list": lambda b: b.activate([[1.0]], "relu"),
        "no columns": lambda b: b.activate(np.ones((3, 0), "f4"), "relu"),
        "Fortran": lambda b: b.dense_forward(np.asfortranarray(one), W, row),
        "every other column": lambda b: b.activate(wide[:, ::2], "relu"),
        "A not C": lambda b: b.activate(one, "relu", A=wide[:, ::2]),
        "name": lambda b: b.activate(one, "rleu"),
        "softmax hidden": lambda b: b.dense_forward(one, W, row, "softmax"),
        "loss and activation": lambda b: b.output_delta(one, one, "cross_entropy", "sigmoid"),
        "labels of a regression": lambda b: b.output_delta(one, labels, "squared_error", "identity"),
        "int32 labels": lambda b: b.output_delta(one, labels.astype("i4")),
        "few labels": lambda b: b.output_delta(one, labels[:3]),
        "scale shape": lambda b: b.output_delta(one, labels, scale=np.ones(3, "f4")),
        "scale dtype": lambda b: b.output_delta(one, labels, scale=np.ones(4, "f8")),
        "label too large": lambda b: b.output_delta(one, np.array([0, 1, 2, 6])),
        "label far off": lambda b: b.output_delta(one, np.array([0, 1, 10**9, 0])),
        "label below 0": lambda b: b.output_delta(one, np.array([0, 1, -(10**9), 0])),
        "labels in a list": lambda b: b.output_delta(one, [0, 1, 2, 3]),
        "scale in a list": lambda b: b.output_delta(one, labels, scale=[1.0]),
        "losses shape": lambda b: b.output_delta(one, labels, losses=np.ones(3, "f4")),
        "rule": lambda b: b.update(row.copy(), row, "adagrad", hyper[0]),
        "no velocity": lambda b: b.update(row.copy(), row, "momentum", hyper[0]),
        "velocity shape": lambda b: b.update(row.copy(), row, "momentum", hyper[0], [row[:5].copy()]),
        "velocity dtype": lambda b: b.update(row.copy(), row, "momentum", hyper[0], [row.astype("f8")]),
        "velocity not C": lambda b: b.update(row.copy(), row, "momentum", hyper[0], [np.ones(12, "f4")[::2]]),
        "one velocity": lambda b: b.dense_update(one, one, W.copy(), row.copy(), "momentum", hyper, [(W.copy(),)]),
        "no square": lambda b: b.update(row.copy(), row, "adam", hyper[0], [row.copy()]),
        "velocity of nothing": lambda b: b.update(row.copy(), row, "sgd", hyper[0], [row.copy()]),
        "numbers": lambda b: b.update(row.copy(), row, "sgd", np.ones(3, "f4")),
        "numbers of b": lambda b: b.dense_update(one, one, W.copy(), row.copy(), "sgd", hyper[:1]),
        "parameter read-only": lambda b: b.update(readonly, row, "sgd", hyper[0]),
        "A read-only": lambda b: b.activate(readonly[None].copy(), "relu", A=readonly[None]),
        "gather dtypes": lambda b: b.gather(one, order[:4], one.astype("f8")),
        "gather order too short": lambda b: b.gather(one, order[:2], np.empty((4, 6), "f4")),
        "gather order not C": lambda b: b.gather(one, np.zeros(16, np.int64)[::2], np.empty((4, 6), "f4")),
        "gather source not C": lambda b: b.gather(wide[:, ::2], order[:4], np.empty((4, 6), "f4")),
        "gather target not C": lambda b: b.gather(one, order[:4], wide[:, ::2]),
        "gather too far": lambda b: b.gather(one, np.array([0, 4]), np.empty((2, 6), "f4")),
        "gather far off": lambda b: b.gather(one, np.array([0, -(10**9)]), np.empty((2, 6), "f4")),
        "gather by a list": lambda b: b.gather(one, [0, 1], np.empty((2, 6), "f4")),
        "gather from a list": lambda b: b.gather([[1.0]], order[:1], np.empty((1, 1), "f4")),
        "gather nothing": lambda b: b.gather(one, order[:4], np.empty((0, 6), "f4")),
        "key in a list": lambda b: b.dropout(one, 0.5, [0, 0], 0),
        "scale of clips in a list": lambda b: b.clip_examples(one.copy(), row[:4].copy(), row[:1].copy(), [1.0]),
        "total dtypes": lambda b: b.total(row, np.empty(1, "f8")),
    }


@pytest.mark.parametrize("call", seam_calls())
def test_the_seam_refuses(call: str) -> None:
    with pytest.raises((ValueError, TypeError)) as error:
        seam_calls()[call](cpu_backend(1))
    assert "\n" not in str(error.value) and len(str(error.value)) > 20


def test_labels_and_places_out_of_range_are_named() -> None:
    one = np.ones((4, 6), "f4")
    for backend in (cpu_backend(1), bpgpu.get_backend("numpy")):
        with pytest.raises(ValueError, match=r"^labels y\[2\] is 6; expected 0\.\.5$"):
            backend.output_delta(one, np.array([0, 5, 6, -1]))
        with pytest.raises(ValueError, match=r"^order\[1\] is -1; expected 0\.\.3$"):
            backend.gather(one, np.array([0, -1, 4]), np.empty((2, 6), "f4"))


def test_strided_labels_and_scale_are_refused_or_right() -> None:
    Z, labels, scale = np.eye(4, dtype="f4"), np.array([0, 3, 1, 3, 2, 3, 3, 3]), np.array([1, 9, 2, 9, 3, 9, 4, 9], "f4")
    expected = cpu_backend(1).output_delta(Z, labels[::2].copy(), scale=scale[::2].copy())
    try:
        got = cpu_backend(1).output_delta(Z, labels[::2], scale=scale[::2])
    except ValueError:
        return
    assert_same_bits(got[0], expected[0])
    assert_same_bits(got[1], expected[1])
