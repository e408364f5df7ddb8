"""The product of both passes:  dW = X^T dZ,  db = sum_n dZ,  dC/dw = a * delta summed over the examples.

product.py makes blocks of X^T dZ (X read down its columns); what becomes of them is a rule of update.py, so that a step of
gradient descent never writes the gradient.  The sum over n of db is in chunks of CHUNK, like every sum: in a chunk ascending
adds from the first term, then the chunk sums in ascending order.
"""

from __future__ import annotations

from collections.abc import Callable

from .machine import CHUNK, GRAIN, Lanes
from .records import COLUMN_SUM, UPDATE, offset
from .team import record
from .update import rule
from .vector import load, load_up_to


def finish(V: Lanes, name: str) -> Callable[..., None]:
    (begin, apply), lanes, size = rule(V, name), V.lanes, V.itemsize

    def finish(job: int, block: int, block_row: int, row: int, rows: int, col: int, cols: int) -> None:
        parameter_row, begun = record(UPDATE, job).row, begin(job)
        for r in range(rows):
            for c in range(0, cols, lanes):
                g = load(V, block + r * block_row + c * size)
                apply(begun, (row + r) * parameter_row + (col + c) * size, g, min(lanes, cols - c))

    return finish


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
