"""The matrix product under all three: Z = X W, dX = dZ W^T and dW = X^T dZ.

    C(m, n) = finish( sum_k A(m, k) B(k, n) )

A is read through two strides (A_row between rows, A_k along k), B row by row or transposed.  A thread takes a block of C,
`row_block` rows x WIDTH columns, and goes along k in chunks of CHUNK: the chunk of B is packed into a contiguous panel,
and tiles of 6 x WIDTH sums stay in registers for the whole chunk.  The finished block, in cache, goes to `finish`: bias and
activation, times f'(z), or the weight update, whatever the operation is; that function alone writes to C.

The order of every sum is the contract of DESIGN: in a chunk acc = fma(a, b, acc) from +0 for ascending k, then the chunk
sums added in ascending order.  Rows, columns, blocks and threads are independent sums and may go in any order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

from .machine import CHUNK, LINE, ROW_BLOCK, TILE_ROWS, Lanes
from .records import PRODUCT
from .team import call, record, scratch, take
from .vector import (
    copy_bytes,
    load,
    load_first,
    prefetch,
    splat,
    store,
    tile_add,
    tile_fma,
    tile_store,
    tile_zeros,
    transpose,
)


def _tile_product(V: Lanes, rows: int, vectors: int) -> Any:
    @njit
    def tile_product(A: int, A_row: int, A_k: int, B: int, B_k: int, K: int, C: int, C_row: int, first: bool) -> None:
        """One chunk of `rows` rows: C = A B for the first chunk, C = C + A B for the others."""
        acc = tile_zeros(V, rows, vectors)
        for _ in range(K // 4):
            acc = tile_fma(acc, A, A_row, B)
            acc = tile_fma(acc, A + A_k, A_row, B + B_k)
            acc = tile_fma(acc, A + 2 * A_k, A_row, B + 2 * B_k)
            acc = tile_fma(acc, A + 3 * A_k, A_row, B + 3 * B_k)
            A += 4 * A_k
            B += 4 * B_k
        for _ in range(K % 4):
            acc = tile_fma(acc, A, A_row, B)
            A += A_k
            B += B_k
        if not first:
            acc = tile_add(C, C_row, acc)
        tile_store(C, C_row, acc)

    return tile_product


def _rows_product(V: Lanes, vectors: int) -> Any:
    six, four, two, one = (_tile_product(V, rows, vectors) for rows in (TILE_ROWS, 4, 2, 1))

    @njit
    def rows_product(
        A: int, A_row: int, A_k: int, B: int, B_k: int, K: int, C: int, C_row: int, first: bool, rows: int
    ) -> None:
        """One chunk of any number of rows, in tiles of 6, 4, 2 and 1."""
        while rows >= 6:
            six(A, A_row, A_k, B, B_k, K, C, C_row, first)
            A, C, rows = A + 6 * A_row, C + 6 * C_row, rows - 6
        if rows >= 4:
            four(A, A_row, A_k, B, B_k, K, C, C_row, first)
            A, C, rows = A + 4 * A_row, C + 4 * C_row, rows - 4
        if rows >= 2:
            two(A, A_row, A_k, B, B_k, K, C, C_row, first)
            A, C, rows = A + 2 * A_row, C + 2 * C_row, rows - 2
        if rows == 1:
            one(A, A_row, A_k, B, B_k, K, C, C_row, first)

    return rows_product


def _pack(V: Lanes) -> Any:
    lanes, size, panel_row = V.lanes, V.itemsize, V.width * V.itemsize

    @njit
    def pack(B: int, B_row: int, K: int, cols: int, panel: int) -> None:
        """Copy K x cols numbers, filled up with zeros to whole vectors."""
        for k in range(K):
            source, target = B + k * B_row, panel + k * panel_row
            for c in range(0, cols - lanes + 1, lanes):
                store(target + c * size, load(V, source + c * size))
            if cols % lanes:
                c = cols - cols % lanes
                store(target + c * size, load_first(V, source + c * size, cols % lanes))

    return pack


def _pack_transposed(V: Lanes) -> Any:
    lanes, size, panel_row = V.lanes, V.itemsize, V.width * V.itemsize

    @njit
    def pack_transposed(B: int, B_row: int, K: int, cols: int, panel: int, square: int) -> None:
        """The same from the transposed matrix: row c at B + c B_row holds column c of the panel."""
        for c in range(0, cols, lanes):
            for k in range(0, K, lanes):
                source, target = B + c * B_row + k * size, panel + k * panel_row + c * size
                if K - k >= lanes and cols - c >= lanes:
                    transpose(V, source, B_row, target, panel_row)
                else:  # an edge: through a full square
                    for r in range(lanes):
                        row = load_first(V, source + r * B_row, min(K - k, lanes)) if r < cols - c else splat(V, 0.0)
                        store(square + r * lanes * size, row)
                    transpose(V, square, lanes * size, target, panel_row)

    return pack_transposed


def product(V: Lanes) -> Callable[..., None]:
    """The kernel for one dtype; its job is a PRODUCT record."""
    wide, narrow = _rows_product(V, V.vectors), _rows_product(V, 1)
    pack, pack_transposed = _pack(V), _pack_transposed(V)
    lanes, size, columns = V.lanes, V.itemsize, V.width
    C_row, A_COPY = columns * size, (ROW_BLOCK + 8) * size

    def product(job: int, team: int, rank: int, step: int) -> None:
        p = record(PRODUCT, job)
        panel = scratch(team, rank)
        block = panel + CHUNK * C_row
        square = block + (ROW_BLOCK + lanes) * C_row
        columns_of_A = square + lanes * lanes * size
        panels = (p.N + columns - 1) // columns
        items = panels * ((p.M + p.row_block - 1) // p.row_block)
        item = take(team)
        while item < items:
            row, col = item // panels * p.row_block, item % panels * columns
            rows, cols = min(p.row_block, p.M - row), min(columns, p.N - col)
            if p.C != 0:
                for r in range(rows):
                    for line in range(0, cols * size, LINE):
                        prefetch(p.C + (row + r) * p.C_row + col * size + line)
            for k in range(0, p.K, CHUNK):
                K = min(CHUNK, p.K - k)
                A, A_k = p.A + row * p.A_row + k * p.A_k, p.A_k
                if A_k != size:  # A is read down its columns: rows of its block side by side
                    for i in range(K):
                        copy_bytes(columns_of_A + i * A_COPY, A + i * A_k, rows * size)
                    A, A_k = columns_of_A, A_COPY
                B, B_k = panel, C_row
                if p.B_transposed:
                    pack_transposed(p.B + col * p.B_row + k * size, p.B_row, K, cols, panel, square)
                elif rows > TILE_ROWS or (cols != columns and cols != lanes):
                    pack(p.B + k * p.B_row + col * size, p.B_row, K, cols, panel)
                else:  # too few rows to be worth a copy
                    B, B_k = p.B + k * p.B_row + col * size, p.B_row
                if cols > lanes:
                    wide(A, p.A_row, A_k, B, B_k, K, block, C_row, k == 0, rows)
                else:
                    narrow(A, p.A_row, A_k, B, B_k, K, block, C_row, k == 0, rows)
            call(p.finish, (p.finish_job, block, square, row, rows, col, cols))
            item = take(team)

    return product
