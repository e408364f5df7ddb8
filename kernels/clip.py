"""Gradients and weights kept within bounds.

squares    sums[c] = sum of numbers^2 over chunk c of CHUNK numbers: acc = fma(x, x, acc) from +0, ascending
clip       g = g norm / |g| where |g| = sqrt(total of the sums) is larger than norm      Pascanu et al., ICML 2013
           then g = value or -value where |g_i| is larger than value
max_norm   each column of W is scaled to the length `limit` if it is longer, the squares summed in chunks as a product is
           Srebro and Shraibman, COLT 2005; Hinton et al., 2012
"""

from __future__ import annotations

from collections.abc import Callable

from .machine import CHUNK, GRAIN, Lanes
from .records import CLIP, MAX_NORM, SQUARES
from .team import record
from .vector import fma, load, load_splat, load_up_to, njit, select, splat, sqrt, store, store_up_to, transpose

CHUNKS, BLOCK, COLUMNS = GRAIN["squares"], GRAIN["clip"], GRAIN["max_norm"]


def squares(V: Lanes) -> Callable[..., None]:
    """The job is a SQUARES record; an item is CHUNKS chunks, as many at a time as a vector has lanes."""
    one, lanes, size = Lanes(V.dtype, 1, 1, 1), V.lanes, V.itemsize

    @njit
    def one_chunk(numbers: int, length: int, target: int) -> None:
        acc = splat(one, 0.0)
        for k in range(length):
            x = load(one, numbers + k * size)
            acc = fma(x, x, acc)
        store(target, acc)

    @njit
    def some_chunks(numbers: int, square: int, target: int) -> None:
        acc = splat(V, 0.0)
        for k in range(0, CHUNK, lanes):
            transpose(V, numbers + k * size, CHUNK * size, square, lanes * size)
            for j in range(lanes):
                x = load(V, square + j * lanes * size)
                acc = fma(x, x, acc)
        store(target, acc)

    def squares(job: int, scratch: int, step: int, item: int) -> None:
        p = record(SQUARES, job)
        c, end = item * CHUNKS, min((item + 1) * CHUNKS, (p.length + CHUNK - 1) // CHUNK)
        while c < end:
            numbers, target = p.numbers + c * CHUNK * size, p.sums + c * size
            if c + lanes <= end and (c + lanes) * CHUNK <= p.length:
                some_chunks(numbers, scratch, target)
                c += lanes
            else:
                one_chunk(numbers, min(CHUNK, p.length - c * CHUNK), target)
                c += 1

    return squares


def clip(V: Lanes) -> Callable[..., None]:
    """The job is a CLIP record."""
    lanes, size = V.lanes, V.itemsize

    def clip(job: int, scratch: int, step: int, item: int) -> None:
        p = record(CLIP, job)
        length, norm, value = (
            sqrt(load_splat(V, p.total + step * size)),
            load_splat(V, p.limits),
            load_splat(V, p.limits + size),
        )
        scale = select(length > norm, norm / length, 1.0)
        for i in range(item * BLOCK, min((item + 1) * BLOCK, p.length), lanes):
            count = min(lanes, p.length - i)
            g = load_up_to(V, p.gradient + i * size, count) * scale
            store_up_to(V, p.gradient + i * size, select(g > value, value, select(g < -value, -value, g)), count)

    return clip


def max_norm(V: Lanes) -> Callable[..., None]:
    """The job is a MAX_NORM record; an item is COLUMNS columns."""
    lanes, size = V.lanes, V.itemsize

    def max_norm(job: int, scratch: int, step: int, item: int) -> None:
        p = record(MAX_NORM, job)
        limit = load_splat(V, p.limit)
        for o in range(item * COLUMNS, min((item + 1) * COLUMNS, p.columns), lanes):
            count, column = min(lanes, p.columns - o), p.W + o * size
            total = splat(V, 0.0)
            for start in range(0, p.rows, CHUNK):
                acc = splat(V, 0.0)
                for i in range(start, min(start + CHUNK, p.rows)):
                    w = load_up_to(V, column + i * p.W_row, count)
                    acc = fma(w, w, acc)
                total = total + acc if start > 0 else acc
            length = sqrt(total)
            scale = select(length > limit, limit / length, 1.0)
            for i in range(p.rows):
                store_up_to(V, column + i * p.W_row, load_up_to(V, column + i * p.W_row, count) * scale, count)

    return max_norm
