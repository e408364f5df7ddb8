"""Per-example gradients without forming them.  The gradient of C^n in a dense layer is an outer product, a_n delta_n^T, so

    |dC^n/dW|^2 + |dC^n/db|^2 = |a_n|^2 |delta_n|^2 + |delta_n|^2                        Goodfellow, arXiv:1510.01799 (2015)

and to scale it is to scale the row delta_n before the product of both passes (ghost clipping: Li et al., ICLR 2022).  The
square of a row is a sum of products like any other: chunks of CHUNK, one fma a term, ascending.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .machine import CHUNK, GRAIN, Lanes
from .records import CLIP_EXAMPLES, EXAMPLE_NORMS
from .team import record
from .vector import fma, load_splat, load_up_to, njit, select, splat, sqrt, store, store_up_to, transpose

ROWS = GRAIN["example_norms"]
assert GRAIN["clip_examples"] == ROWS


def _squares(V: Lanes) -> Any:
    lanes, size = V.lanes, V.itemsize

    @njit
    def squares(A: int, A_row: int, rows: int, columns: int, square: int) -> Any:
        """|row|^2 of up to `lanes` rows, one a lane: square blocks are turned, so that a vector runs down a column."""
        total = splat(V, 0.0)
        for start in range(0, columns, CHUNK):
            chunk = splat(V, 0.0)
            for c in range(start, min(start + CHUNK, columns), lanes):
                count = min(lanes, columns - c)
                for r in range(lanes):
                    store(square + r * lanes * size, load_up_to(V, A + min(r, rows - 1) * A_row + c * size, count))
                transpose(V, square, lanes * size, square, lanes * size)
                for k in range(count):
                    a = load_up_to(V, square + k * lanes * size, lanes)
                    chunk = fma(a, a, chunk)
            total = total + chunk
        return total

    return squares


def example_norms(V: Lanes) -> Callable[..., None]:
    """norms[n] = |x_n|^2 |delta_n|^2 + |delta_n|^2, added to what is there if `add`; the job is an EXAMPLE_NORMS record."""
    squares, lanes, size, SQUARE = _squares(V), V.lanes, V.itemsize, V.square_start

    def example_norms(job: int, scratch: int, step: int, item: int) -> None:
        p, square = record(EXAMPLE_NORMS, job), scratch + SQUARE
        for n in range(item * ROWS, min((item + 1) * ROWS, p.rows), lanes):
            count = min(lanes, p.rows - n)
            x = squares(p.X + n * p.X_row, p.X_row, count, p.X_columns, square)
            d = squares(p.dZ + n * p.dZ_row, p.dZ_row, count, p.dZ_columns, square)
            norm = fma(x, d, d)
            if p.add != 0:
                norm = load_up_to(V, p.norms + n * size, count) + norm
            store_up_to(V, p.norms + n * size, norm, count)

    return example_norms


def clip_examples(V: Lanes) -> Callable[..., None]:
    """delta_n = delta_n min(1, limit scale_n / sqrt(norms_n)); the job is a CLIP_EXAMPLES record."""
    lanes, size = V.lanes, V.itemsize

    def clip_examples(job: int, scratch: int, step: int, item: int) -> None:
        p = record(CLIP_EXAMPLES, job)
        for n in range(item * ROWS, min((item + 1) * ROWS, p.rows)):
            norm = sqrt(load_splat(V, p.norms + n * size))
            limit = load_splat(V, p.limit) * load_splat(V, p.scale + n * p.scale_step)
            factor, row = select(norm > limit, limit / norm, 1.0), p.dZ + n * p.dZ_row
            for o in range(0, p.columns, lanes):
                count = min(lanes, p.columns - o)
                store_up_to(V, row + o * size, load_up_to(V, row + o * size, count) * factor, count)

    return clip_examples
