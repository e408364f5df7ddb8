"""Dropout (Srivastava et al., JMLR 2014), inverted:  target = source / (1 - rate) where a mask keeps it, 0 elsewhere.

The mask is a function of (seed, stream), the stream being that of the layer plus the number of the step, and of the element
alone: element e has half e % 2 (the low one first) of word e // 2 of the sequence in bpgpu/random.py, and is kept if that is
threshold = rate 2^32 or more.  The same mask times delta is the backward pass.

The words are those of Philox4x64-10 (Salmon et al., SC 2011), four for each value 1, 2, 3, ... of its counter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .machine import GRAIN, Lanes
from .records import DROPOUT
from .team import record
from .vector import load, load_label, njit, select, splat, store

ELEMENTS = 8  # that one value of the counter decides on
BLOCK = ELEMENTS * GRAIN["dropout"]
MULTIPLIERS = np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157)
WEYL = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B)


@intrinsic
def multiply_high(typingctx: Any, a: Any, b: Any) -> Any:
    """The high 64 bits of the product of two uint64."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        wide = ir.IntType(128)
        product = builder.mul(*(builder.zext(x, wide) for x in args))
        return builder.trunc(builder.lshr(product, wide(64)), ir.IntType(64))

    return types.uint64(types.uint64, types.uint64), emit


@intrinsic
def real(typingctx: Any, bits: Any) -> Any:
    """The float64 with these bits."""
    return types.float64(types.intp), lambda context, builder, sig, args: builder.bitcast(args[0], ir.DoubleType())


@njit
def philox(counter: Any, key0: Any, key1: Any) -> Any:
    """The four words of (counter, 0, 0, 0) under a key."""
    a, b, c, d = counter, np.uint64(0), np.uint64(0), np.uint64(0)
    for _ in range(10):
        high0, low0 = multiply_high(MULTIPLIERS[0], a), MULTIPLIERS[0] * a
        high1, low1 = multiply_high(MULTIPLIERS[1], c), MULTIPLIERS[1] * c
        a, b, c, d = high1 ^ b ^ key0, low1, high0 ^ d ^ key1, low0
        key0, key1 = key0 + WEYL[0], key1 + WEYL[1]
    return a, b, c, d


def dropout(V: Lanes) -> Callable[..., None]:
    """The kernel for one dtype; its job is a DROPOUT record."""
    one, size = Lanes(V.dtype, 1, 1, 1), V.itemsize
    LOW, HALF = np.uint64(0xFFFFFFFF), np.uint64(32)

    @njit
    def halves(source: int, target: int, word: Any, count: int, threshold: int, scale: Any) -> None:
        """The elements that one word decides on: two, or at the end one."""
        for i in range(count):
            half = np.int64((word if i == 0 else word >> HALF) & LOW)
            kept = splat(one, np.int64(half >= threshold)) > 0.5
            store(target + i * size, select(kept, load(one, source + i * size) * scale, 0.0))

    def dropout(job: int, scratch: int, step: int, item: int) -> None:
        p = record(DROPOUT, job)
        key0, key1 = np.uint64(load_label(p.key)), np.uint64(p.stream + load_label(p.key + 8) + step)
        scale, threshold = splat(one, real(p.scale)), p.threshold
        for start in range(item * BLOCK, min((item + 1) * BLOCK, p.length), ELEMENTS):
            words = philox(np.uint64(p.block + start // ELEMENTS + 1), key0, key1)
            source, target, left = p.source + start * size, p.target + start * size, p.length - start
            if left >= ELEMENTS:
                halves(source, target, words[0], 2, threshold, scale)
                halves(source + 2 * size, target + 2 * size, words[1], 2, threshold, scale)
                halves(source + 4 * size, target + 4 * size, words[2], 2, threshold, scale)
                halves(source + 6 * size, target + 6 * size, words[3], 2, threshold, scale)
            else:
                halves(source, target, words[0], min(left, 2), threshold, scale)
                halves(source + 2 * size, target + 2 * size, words[1], min(left - 2, 2), threshold, scale)
                halves(source + 4 * size, target + 4 * size, words[2], min(left - 4, 2), threshold, scale)
                halves(source + 6 * size, target + 6 * size, words[3], min(left - 6, 2), threshold, scale)

    return dropout
