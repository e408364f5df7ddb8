"""Panels: parts of a product's right operand B, copied so that a tile reads them one vector after the other.

A panel is a chunk of B, some vectors wide: row after row of it, the columns that B does not have filled up with zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from .machine import CHUNK, Lanes
from .records import PRODUCT
from .team import record
from .vector import load_first, load_up_to, njit, splat, store, transpose


@cache
def pack(V: Lanes) -> Any:
    lanes, size = V.lanes, V.itemsize

    @njit
    def fill(B: int, B_row: int, K: int, cols: int, panel: int, panel_row: int) -> None:
        """Copy K x cols numbers into a panel, filled up with zeros to whole vectors."""
        for k in range(K):
            for c in range(0, cols, lanes):
                vector = load_up_to(V, B + k * B_row + c * size, min(lanes, cols - c))
                store(panel + k * panel_row + c * size, vector)

    return fill


@cache
def pack_transposed(V: Lanes) -> Any:
    lanes, size = V.lanes, V.itemsize

    @njit
    def fill_transposed(B: int, B_row: int, K: int, cols: int, panels: int, width: int, square: int) -> None:
        """The same from the transposed matrix: row c at B + c B_row holds column c of the panels."""
        for c in range(0, cols, lanes):
            column, panel_row = panels + c // width * width * CHUNK * size + c % width * size, width * size
            for k in range(0, K, lanes):
                source, target = B + c * B_row + k * size, column + k * panel_row
                if K - k >= lanes and cols - c >= lanes:
                    transpose(V, source, B_row, target, panel_row)
                else:  # an edge: through a full square
                    for r in range(lanes):
                        row = load_first(V, source + r * B_row, min(K - k, lanes)) if r < cols - c else splat(V, 0.0)
                        store(square + r * lanes * size, row)
                    transpose(V, square, lanes * size, target, panel_row)

    return fill_transposed


@cache
def panels_of_blocks(V: Lanes) -> Any:
    size = V.itemsize

    @njit
    def panels_of(job: int, k: int, col: int) -> int:
        """Where pack_panels puts a chunk of B for the blocks that begin at column `col`."""
        p = record(PRODUCT, job)
        chunks = (p.K + CHUNK - 1) // CHUNK
        address: int = p.panels + (col // p.col_block * chunks + k // CHUNK) * CHUNK * p.col_block * size
        return address

    return panels_of


def pack_panels(V: Lanes) -> Callable[..., None]:
    """Where many blocks of C take the same part of B: this packs all of B ahead of the product, whose PRODUCT record is the
    job."""
    WIDTH, size, SQUARE = V.width, V.itemsize, V.square_start
    panels_of, fill, fill_transposed = panels_of_blocks(V), pack(V), pack_transposed(V)

    def pack_panels(job: int, scratch: int, step: int, item: int) -> None:
        p = record(PRODUCT, job)
        chunks = (p.K + CHUNK - 1) // CHUNK
        k, col = item % chunks * CHUNK, item // chunks * p.col_block
        K, cols, panels = min(CHUNK, p.K - k), min(p.col_block, p.N - col), panels_of(job, k, col)
        if p.B_transposed:
            fill_transposed(p.B + col * p.B_row + k * size, p.B_row, K, cols, panels, WIDTH, scratch + SQUARE)
        else:
            for c in range(0, cols, WIDTH):
                source = p.B + k * p.B_row + (col + c) * size
                fill(source, p.B_row, K, min(WIDTH, cols - c), panels + c * CHUNK * size, WIDTH * size)

    return pack_panels
