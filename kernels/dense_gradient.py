"""The product of both passes:  dW = X^T dZ,  db = sum_n dZ,  dC/dw = a * delta summed over the examples.

What becomes of dW is a rule of update.py, so that a step of gradient descent never writes the gradient: of a block that
product.py makes (X read down its columns); or, where the examples are no more than one chunk, of sums that are still in
registers.  The sum over n of db is in chunks of CHUNK, like every sum: in a chunk ascending
adds from the first term, then the chunk sums in ascending order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .machine import CHUNK, FIRST_CACHE, GRAIN, Lanes
from .panels import pack
from .product import bring, part_of
from .records import COLUMN_SUM, PRODUCT, UPDATE, offset
from .team import record
from .tile import tile_at, tile_fma, tile_zeros
from .update import rule
from .vector import copy_bytes, fma, inlined, load, load_splat, load_up_to, splat

LONG = 48  # examples from which on a tile takes longer than what it will read


def finish(V: Lanes, name: str) -> Callable[..., None]:
    (begin, apply), lanes, size = rule(V, name), V.lanes, V.itemsize

    def finish(job: int, block: int, block_row: int, row: int, rows: int, col: int, cols: int) -> None:
        parameter_row, begun = record(UPDATE, job).row, begin(job)
        for r in range(rows):
            for c in range(0, cols, lanes):
                g = load(V, block + r * block_row + c * size)
                apply(begun, (row + r) * parameter_row + (col + c) * size, g, min(lanes, cols - c))

    return finish


def few_examples(V: Lanes, name: str) -> Callable[..., None]:
    """The kernel of dW for so few examples that it takes longer to bring W from memory than to compute: each vector of dW is
    summed and used up in a register.  Its job is a PRODUCT record, whose finish_job is that of finish."""
    (begin, apply), lanes, size, WIDTH = rule(V, name), V.lanes, V.itemsize, 4 * V.lanes

    def few_examples(job: int, scratch: int, step: int, item: int) -> None:
        p = record(PRODUCT, job)
        begun, parameter_row = begin(p.finish_job), record(UPDATE, p.finish_job).row
        X, X_row, X_unit, dZ, dZ_row, examples = p.A, p.A_k, p.A_row, p.B, p.B_row, p.K
        start, rows, col, cols = part_of(job, item)
        for i in range(start, start + rows):
            at, whole = i * parameter_row + col * size, cols // WIDTH * WIDTH
            for c in range(0, whole, WIDTH):
                x, dz, g = X + i * X_unit, dZ + (col + c) * size, tile_zeros(V, 1, 4)
                for _ in range(examples):
                    g = tile_fma(g, 1, x, 0, X_row, dz, dZ_row)
                    x, dz = x + X_row, dz + dZ_row
                for v in range(4):
                    apply(begun, at + (c + v * lanes) * size, tile_at(g, v), lanes)
            for c in range(whole, cols, lanes):
                count, sums = min(lanes, cols - c), splat(V, 0.0)
                for n in range(examples):
                    dz = load_up_to(V, dZ + n * dZ_row + (col + c) * size, count)
                    sums = fma(load_splat(V, X + n * X_row + i * X_unit), dz, sums)
                apply(begun, at + c * size, sums, count)

    return few_examples


def one_chunk(V: Lanes, name: str) -> Callable[..., None]:
    """The kernel of dW for as many examples as one chunk has at most: product.py's tile, whose sums are used up in registers.
    Its job is the same."""
    (begin, apply), lanes, size, ROWS, WIDTH = rule(V, name), V.lanes, V.itemsize, V.rows, V.width
    vectors, fill, bring_tile = V.vectors, pack(V), bring(V)
    COLUMNS, UNROLL, AT_ONCE, panel_row = V.columns_start, 4, FIRST_CACHE // 2, V.width * V.itemsize

    @inlined
    def sums(X: int, X_row: int, dZ: int, examples: int) -> Any:
        """A tile of X^T dZ, for dZ in a panel."""
        acc = tile_zeros(V, ROWS, vectors)
        for _ in range(examples // UNROLL):
            acc = tile_fma(acc, UNROLL, X, size, X_row, dZ, panel_row)
            X, dZ = X + UNROLL * X_row, dZ + UNROLL * panel_row
        for _ in range(examples % UNROLL):
            acc = tile_fma(acc, 1, X, size, X_row, dZ, panel_row)
            X, dZ = X + X_row, dZ + panel_row
        return acc

    def one_chunk(job: int, scratch: int, step: int, item: int) -> None:
        p = record(PRODUCT, job)
        begun, W_row, examples = begin(p.finish_job), record(UPDATE, p.finish_job).row, p.K
        reads = (p.reads1, p.reads2, p.reads3), W_row
        start, rows, first, cols = part_of(job, item)
        panels, X, X_row = scratch, scratch + COLUMNS, (rows + ROWS - 1) // ROWS * ROWS * size
        for n in range(examples):
            copy_bytes(X + n * X_row, p.A + n * p.A_k + start * size, rows * size)
        # some panels of dZ at a time, which stay in the first cache while W is gone through, in rows as long as that allows
        span = max(WIDTH, AT_ONCE // (examples * size) // WIDTH * WIDTH)
        for left in range(first, first + cols, span):
            right = min(left + span, first + cols)
            for c in range(left, right, WIDTH):
                panel = panels + (c - left) * examples * size
                fill(p.B + c * size, p.B_row, examples, min(WIDTH, right - c), panel, panel_row)
            for r in range(0, rows, ROWS):
                for c in range(left, right, WIDTH):
                    W = (start + r) * W_row + c * size
                    if examples >= LONG:
                        bring_tile(reads, W)
                    dW = sums(X + r * size, X_row, panels + (c - left) * examples * size, examples)
                    if rows - r >= ROWS and right - c >= WIDTH:
                        for i in range(ROWS):
                            for v in range(vectors):
                                apply(begun, W + i * W_row + v * lanes * size, tile_at(dW, i * vectors + v), lanes)
                    else:  # an edge: more has been summed than there is
                        for i in range(min(ROWS, rows - r)):
                            for v in range((min(WIDTH, right - c) + lanes - 1) // lanes):
                                count = min(lanes, right - c - v * lanes)
                                apply(begun, W + i * W_row + v * lanes * size, tile_at(dW, i * vectors + v), count)

    return one_chunk


def column_sum(V: Lanes, name: str) -> Callable[..., None]:
    """The kernel of db; its job is a COLUMN_SUM record."""
    COLUMNS = GRAIN["column_sum"]
    (begin, apply), lanes, size, PARAMETERS = rule(V, name), V.lanes, V.itemsize, offset(COLUMN_SUM, "update")

    def column_sum(job: int, scratch: int, step: int, item: int) -> None:
        p, begun = record(COLUMN_SUM, job), begin(job + PARAMETERS)
        dZ, dZ_row, rows, columns = p.dZ, p.dZ_row, p.rows, p.columns
        for o in range(item * COLUMNS, min((item + 1) * COLUMNS, columns), lanes):
            count, column = min(lanes, columns - o), o * size
            total = load_up_to(V, dZ + column, count)
            for start in range(0, rows, CHUNK):
                chunk = load_up_to(V, dZ + start * dZ_row + column, count)
                for n in range(start + 1, min(start + CHUNK, rows)):
                    chunk = chunk + load_up_to(V, dZ + n * dZ_row + column, count)
                total = total + chunk if start > 0 else chunk
            apply(begun, column, total, count)

    return column_sum
