"""The matrix product under all three: Z = X W, dZ W^T and dW = X^T dZ.

    C(m, n) = finish( sum_k A(m, k) B(k, n) )

A is read through two strides (A_row between rows, A_k along k), B row by row or transposed.  A thread takes a block of C,
row_block x col_block, and goes along k in chunks of CHUNK: the chunk of B is packed into panels of `width` columns, and
tiles of `rows` x width sums stay in registers for the whole chunk.  The finished block, in cache, goes to `finish`: bias and
activation, times f'(z), or the weight update, whatever the operation is; that function alone writes to C.

The order of every sum is that of README.md: in a chunk acc = fma(a, b, acc) from +0 for ascending k, then the chunk
sums added in ascending order.  Rows, columns, blocks and threads are independent sums and may go in any order.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from .machine import CHUNK, ROWS, Lanes
from .panels import pack, pack_transposed, panels_of_blocks
from .records import CHUNKS, PRODUCT, offset
from .team import call, record
from .tile import tile_add, tile_fma, tile_store, tile_zeros
from .vector import copy_bytes, copy_row, inlined, load_up_to, njit, prefetch, store

Later = tuple[int, int, int]  # what is soon to be read: its address, the bytes between its rows, and its columns
Reads = tuple[tuple[int, int, int], int]  # the matrices (0: none) that finish will read, and the bytes between their rows

TALL = 64  # rows of a block from which on there is time to fetch the next chunk of B while this one is multiplied


def _tile_product(V: Lanes, rows: int, vectors: int, packing: bool = False) -> Any:
    unroll = 1 if packing else 4  # copies of more rows would take registers away from the sums

    @inlined
    def tile_product(
        A: int, A_row: int, A_k: int, B: int, B_k: int, K: int, C: int, C_row: int, first: bool, panel: int
    ) -> None:
        """One chunk of `rows` rows: C = A B for the first chunk, C = C + A B for the others; packing copies B to the panel."""
        acc = tile_zeros(V, rows, vectors)
        for _ in range(K // unroll):
            acc = tile_fma(acc, unroll, A, A_row, A_k, B, B_k)
            if packing:
                panel = copy_row(V, vectors, B, panel)
            A += unroll * A_k
            B += unroll * B_k
        for _ in range(K % unroll):
            acc = tile_fma(acc, 1, A, A_row, A_k, B, B_k)
            A += A_k
            B += B_k
        if not first:
            acc = tile_add(C, C_row, acc)
        tile_store(C, C_row, acc)

    return tile_product


@cache
def bring(V: Lanes) -> Any:
    rows, neighbours = V.rows, V.vectors

    @njit
    def bring_tile(reads: Reads, offset: int) -> None:
        """Ask for what finish will read at the place of a tile."""
        matrices, row = reads
        for matrix in matrices:
            if matrix != 0:
                for r in range(rows):
                    prefetch(V, neighbours, matrix + offset + r * row)

    return bring_tile


def _rows_product(V: Lanes, vectors: int) -> Any:
    tallest = V.rows
    tall, four, two, one = (_tile_product(V, rows, vectors) for rows in (tallest, 4, 2, 1))
    pair = 8 if tallest == 6 else 0  # 4 + 4 rows are done sooner than 6 + 2: few sums wait for each other
    bring_tile, size, width, neighbours = bring(V), V.itemsize, V.width, V.vectors

    @njit
    def rows_product(
        A: int, A_row: int, A_k: int, B: int, B_k: int, K: int, C: int, C_row: int, first: bool, rows: int,
        soon: tuple[int, Later, Later], reads: Reads, offset: int,
    ) -> None:  # fmt: skip
        """One chunk of any number of rows, in tiles of `tallest`, 4, 2 and 1; meanwhile memory comes nearer: `later` rows of A
        and B, and what finish reads."""
        later, later_A, later_B = soon
        share = later // (rows // tallest) + 1 if later > 0 else 0
        while rows >= tallest and rows != pair:
            for i in range(share):
                for start, row, cols in (later_A, later_B):
                    for c in range(0, cols, width):
                        prefetch(V, neighbours, start + i * row + c * size)
            later_A = (later_A[0] + share * later_A[1], later_A[1], later_A[2])
            later_B = (later_B[0] + share * later_B[1], later_B[1], later_B[2])
            bring_tile(reads, offset)
            offset += tallest * reads[1]
            tall(A, A_row, A_k, B, B_k, K, C, C_row, first, 0)
            A, C, rows = A + tallest * A_row, C + tallest * C_row, rows - tallest
        while rows >= 4:
            four(A, A_row, A_k, B, B_k, K, C, C_row, first, 0)
            A, C, rows = A + 4 * A_row, C + 4 * C_row, rows - 4
        if rows >= 2:
            two(A, A_row, A_k, B, B_k, K, C, C_row, first, 0)
            A, C, rows = A + 2 * A_row, C + 2 * C_row, rows - 2
        if rows == 1:
            one(A, A_row, A_k, B, B_k, K, C, C_row, first, 0)

    return rows_product


@njit
def part_of(job: int, item: int) -> tuple[int, int, int, int]:
    """First row, rows, first column and columns of an item's part of C.

    The items come in such an order that half of them are half of the units of a layer, in all three products (where they are
    not rows of a batch).
    """
    p = record(PRODUCT, job)
    parts = (p.M + p.item_rows - 1) // p.item_rows
    row, col = item % parts * p.item_rows, item // parts * p.col_block
    return row, min(p.item_rows, p.M - row), col, min(p.col_block, p.N - col)


def product(V: Lanes) -> Callable[..., None]:
    """The kernel for one dtype; its job is a PRODUCT record."""
    TILE_ROWS, WIDTH, lanes, size = V.rows, V.width, V.lanes, V.itemsize
    wide, narrow = (_rows_product(V, vectors) for vectors in (V.vectors, 1))
    packing = _tile_product(V, V.rows, V.vectors, True)
    bring_tile, fill, fill_transposed, panels_of = bring(V), pack(V), pack_transposed(V), panels_of_blocks(V)
    BLOCK, SQUARE, COLUMNS = V.block_start, V.square_start, V.columns_start

    @inlined
    def block_product(job: int, scratch: int, row: int, rows: int, end: int, col: int, cols: int, packed: bool) -> None:
        """A block of C, in an item that ends at row `end`.  packed: the one chunk of B there is, for the block above."""
        p = record(PRODUCT, job)
        panels, block, square, columns_of_A = scratch, scratch + BLOCK, scratch + SQUARE, scratch + COLUMNS
        C_row, panel_row = p.col_block * size, WIDTH * size
        packed = packed or p.panels != 0
        for k in range(0, p.K, CHUNK):
            if p.panels != 0:
                panels = panels_of(job, k, col)
            K, first = min(CHUNK, p.K - k), k == 0
            next_row, next_k = (row, k + CHUNK) if k + CHUNK < p.K else (row + rows, k)
            A, A_k, A_cols = p.A + row * p.A_row + k * p.A_k, p.A_k, 0
            if A_k != size and rows > TILE_ROWS:  # A is read down its columns: bring the rows of its block together
                A_cols = rows
                for i in range(K):
                    copy_bytes(columns_of_A + i * rows * size, A + i * A_k, rows * size)
                A, A_k = columns_of_A, rows * size
            reads = (p.reads1, p.reads2, p.reads3) if k + CHUNK >= p.K else (0, 0, 0), p.reads_row
            if p.B_transposed and not packed:
                fill_transposed(p.B + col * p.B_row + k * size, p.B_row, K, cols, panels, WIDTH, square)
            for c in range(0, cols, WIDTH):
                panel, source = panels + c * CHUNK * size, p.B + k * p.B_row + (col + c) * size
                offset = row * p.reads_row + (col + c) * size
                tile_A, C, B, B_k, left = A, block + c * size, panel, panel_row, rows
                if packed or p.B_transposed:
                    pass  # the panel is there
                elif cols - c < WIDTH:
                    fill(source, p.B_row, K, cols - c, panel, panel_row)
                elif rows <= ROWS:  # too few rows are not worth a copy
                    B, B_k = source, p.B_row
                else:
                    bring_tile(reads, offset)
                    offset += TILE_ROWS * p.reads_row
                    packing(A, p.A_row, A_k, source, p.B_row, K, C, C_row, first, panel)
                    tile_A, C, left = A + TILE_ROWS * p.A_row, C + TILE_ROWS * C_row, rows - TILE_ROWS
                # the share of this panel in what comes next: another chunk, or the block below
                later = K // ((cols + WIDTH - 1) // WIDTH) if rows >= TALL and (next_k > k or next_row < end) else 0
                there = next_k + c // WIDTH * later
                later_A = p.A + next_row * p.A_row + there * p.A_k, p.A_k, A_cols
                later_B = p.B + there * p.B_row + col * size, p.B_row, cols if next_k > k and not packed else 0
                if p.B_transposed and not packed:
                    later = min(later, WIDTH)
                    later_B = p.B + (col + c) * p.B_row + next_k * size, p.B_row, CHUNK if next_k > k else 0
                soon = later, later_A, later_B
                if cols - c <= lanes:
                    narrow(tile_A, p.A_row, A_k, B, B_k, K, C, C_row, first, left, soon, reads, offset)
                else:
                    wide(tile_A, p.A_row, A_k, B, B_k, K, C, C_row, first, left, soon, reads, offset)
        call(p.finish, (p.finish_job, block, C_row, row, rows, col, cols))

    def product(job: int, scratch: int, step: int, item: int) -> None:
        p = record(PRODUCT, job)
        start, rows, col, cols = part_of(job, item)
        for row in range(start, start + rows, p.row_block):
            block_product(job, scratch, row, min(p.row_block, start + rows - row), start + rows, col, cols, row > start)

    return product


def add_chunks(V: Lanes) -> Callable[..., None]:
    """Where blocks are too few for the threads, the chunks are products of their own: this adds them up, in ascending order,
    and finishes.  The job is a CHUNKS record."""
    lanes, size, BLOCK = V.lanes, V.itemsize, V.block_start
    WHOLE = offset(CHUNKS, "product")

    def add_chunks(job: int, scratch: int, step: int, item: int) -> None:
        p, whole = record(CHUNKS, job), record(PRODUCT, job + WHOLE)
        block, C_row = scratch + BLOCK, whole.col_block * size
        row, rows, col, cols = part_of(job + WHOLE, item)
        for r in range(rows):
            for c in range(0, cols, lanes):
                count, chunk = min(lanes, cols - c), p.sums + (row + r) * p.sums_row + (col + c) * size
                total = load_up_to(V, chunk, count)
                for _ in range(1, p.chunks):
                    chunk += p.sums_chunk
                    total = total + load_up_to(V, chunk, count)
                store(block + r * C_row + c * size, total)
        call(whole.finish, (whole.finish_job, block, C_row, row, rows, col, cols))

    return add_chunks
