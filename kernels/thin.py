"""The product of product.py where C has few rows, as in both passes of a batch of one example.

There is nothing to gain from keeping sums in registers then: each number of B is needed a few times at most, and comes from
memory.  So a block is all rows of C, in the first cache, to which STEPS terms at a time are added from as many rows of B, each
read along; only a transposed B, and columns that do not fill a tile, go through a panel.  The job is a PRODUCT record, the
order of every sum the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .machine import CHUNK, MAX_BLOCK, THIN_PART, THIN_VECTORS, Lanes
from .panels import pack, pack_transposed
from .product import part_of
from .records import PRODUCT
from .team import call, record
from .tile import tile_fma, tile_load, tile_store, tile_zeros
from .vector import inlined, load, njit, store

STEPS = 4  # terms that are added while a sum is in a register


def _add_terms(V: Lanes, rows: int) -> Any:
    size, width = V.itemsize, THIN_VECTORS * V.lanes

    @njit
    def add_terms(A: int, A_row: int, A_k: int, B: int, B_k: int, K: int, C: int, C_row: int, cols: int, first: bool) -> None:
        """C = C + A B for `rows` rows and K terms; C = A B for the first terms."""
        for c in range(0, cols, width):
            a, b = A, B + c * size
            acc = tile_zeros(V, rows, THIN_VECTORS) if first else tile_load(V, rows, THIN_VECTORS, C + c * size, C_row)
            for _ in range(K // STEPS):
                acc = tile_fma(acc, STEPS, a, A_row, A_k, b, B_k)
                a, b = a + STEPS * A_k, b + STEPS * B_k
            for _ in range(K % STEPS):
                acc = tile_fma(acc, 1, a, A_row, A_k, b, B_k)
                a, b = a + A_k, b + B_k
            tile_store(C + c * size, C_row, acc)

    return add_terms


def _multiply(V: Lanes) -> Any:
    pair, one = _add_terms(V, 2), _add_terms(V, 1)

    @njit
    def multiply(
        A: int, A_row: int, A_k: int, B: int, B_k: int, K: int, C: int, C_row: int, rows: int, cols: int, first: bool,
        at_once: int,
    ) -> None:  # fmt: skip
        """The same for any number of rows, `at_once` terms at a time."""
        for k in range(0, K, at_once):
            terms = min(at_once, K - k)
            for r in range(0, rows - 1, 2):
                pair(A + r * A_row, A_row, A_k, B, B_k, terms, C + r * C_row, C_row, cols, first)
            if rows % 2 == 1:
                r = rows - 1
                one(A + r * A_row, A_row, A_k, B, B_k, terms, C + r * C_row, C_row, cols, first)
            A, B, first = A + terms * A_k, B + terms * B_k, False

    return multiply


def thin(V: Lanes) -> Callable[..., None]:
    WIDTH, lanes, size = THIN_VECTORS * V.lanes, V.lanes, V.itemsize
    multiply, fill, fill_transposed = _multiply(V), pack(V), pack_transposed(V)
    BLOCK, SQUARE = V.block_start, V.square_start
    SUMS = BLOCK + MAX_BLOCK // 2 * size

    @inlined
    def chunk_product(job: int, scratch: int, row: int, rows: int, col: int, cols: int, k: int, C: int) -> None:
        """C = A B for one chunk of k."""
        p = record(PRODUCT, job)
        K, A, C_row, panel = min(CHUNK, p.K - k), p.A + row * p.A_row + k * p.A_k, p.col_block * size, scratch
        whole, filled = cols // WIDTH * WIDTH, (cols + WIDTH - 1) // WIDTH * WIDTH
        first = K > 0  # and no literal, for which Numba would compile all of it once more
        if p.B_transposed:
            B = p.B + col * p.B_row + k * size
            for start in range(0, K, THIN_PART):
                part = min(THIN_PART, K - start)
                fill_transposed(B + start * size, p.B_row, part, cols, panel, filled, scratch + SQUARE)
                multiply(A, p.A_row, p.A_k, panel, filled * size, part, C, C_row, rows, filled, start == 0, part)
                A += part * p.A_k
        else:
            B = p.B + k * p.B_row + col * size
            multiply(A, p.A_row, p.A_k, B, p.B_row, K, C, C_row, rows, whole, first, STEPS)
            if whole < cols:
                C, panel_row = C + whole * size, (filled - whole) * size
                fill(B + whole * size, p.B_row, K, cols - whole, panel, panel_row)
                multiply(A, p.A_row, p.A_k, panel, panel_row, K, C, C_row, rows, filled - whole, first, K)

    def thin(job: int, scratch: int, step: int, item: int) -> None:
        p = record(PRODUCT, job)
        block, sums, C_row = scratch + BLOCK, scratch + SUMS, p.col_block * size
        row, rows, col, cols = part_of(job, item)
        for k in range(0, p.K, CHUNK):
            chunk_product(job, scratch, row, rows, col, cols, k, block if k == 0 else sums)
            if k > 0:
                for r in range(rows):
                    for at in range(r * C_row, r * C_row + cols * size, lanes * size):
                        store(block + at, load(V, block + at) + load(V, sums + at))
        call(p.finish, (p.finish_job, block, C_row, row, rows, col, cols))

    return thin
