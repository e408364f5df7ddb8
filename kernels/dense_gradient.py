"""The product of both passes:  dW = X^T dZ,  db = sum_n dZ,  dC/dw = a * delta summed over the examples.

product.py makes blocks of X^T dZ (X read down its columns); what becomes of them is a rule of update.py, so that a step of
gradient descent never writes the gradient.  The sum over n of db is in chunks of CHUNK, like every sum: in a chunk ascending
adds from the first term, then the chunk sums in ascending order.
"""

from __future__ import annotations

from collections.abc import Callable

from .machine import CHUNK, GRAIN, Lanes
from .product import part_of
from .records import COLUMN_SUM, PRODUCT, UPDATE, offset
from .team import record
from .tile import tile_fma, tile_vector, tile_zeros
from .update import rule
from .vector import fma, load, load_splat, load_up_to, splat


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
                apply(begun, at + c * size, tile_vector(g, 0), lanes)
                apply(begun, at + (c + lanes) * size, tile_vector(g, 1), lanes)
                apply(begun, at + (c + 2 * lanes) * size, tile_vector(g, 2), lanes)
                apply(begun, at + (c + 3 * lanes) * size, tile_vector(g, 3), lanes)
            for c in range(whole, cols, lanes):
                count, sums = min(lanes, cols - c), splat(V, 0.0)
                for n in range(examples):
                    dz = load_up_to(V, dZ + n * dZ_row + (col + c) * size, count)
                    sums = fma(load_splat(V, X + n * X_row + i * X_unit), dz, sums)
                apply(begun, at + c * size, sums, count)

    return few_examples


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
