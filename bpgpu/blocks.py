"""How the products of the CPU backend are cut into blocks: so that each lies in a cache, and every thread has several.

`wanted` is how many items of work there should be, at least, for the threads.  No bit depends on it.
"""

from __future__ import annotations

from .kernels.machine import CHUNK, FIRST_CACHE, TALL_BLOCK, THIN_COLS, THIN_VECTORS, WIDE_BLOCK, Lanes


def even(length: int, most: int, unit: int) -> int:
    """The size of parts, at most `most` and a multiple of `unit`, that cut `length` most evenly."""
    parts = -(-length // max(most, unit))
    return min(-(-length // parts // unit) * unit, most // unit * unit) or unit


def is_thin(rows: int, V: Lanes) -> bool:
    """Whether a product has too few rows for the largest tile: kernels/thin.py computes it."""
    return rows < V.rows


def row_width(M: int, N: int, V: Lanes) -> int:
    """Columns of as many tiles as N columns take."""
    width = THIN_VECTORS * V.lanes if is_thin(M, V) else V.width
    return -(-N // width) * width


def product_block(name: str, M: int, N: int, K: int, V: Lanes, wanted: int) -> tuple[int, int]:
    """Rows and columns of a block of kernels/product.py."""
    # with a chunk of both operands it lies in the second cache, which is smaller where registers are, mostly
    most_rows, most_cols = TALL_BLOCK if V.rows == 8 and name != "dense_gradient" else WIDE_BLOCK
    rows, cols = even(M, most_rows, V.rows), even(N, most_cols, V.width)
    while -(-M // rows) * -(-N // cols) < wanted:
        shorter, narrower = rows > 4 * V.rows, cols > (2 if K > CHUNK else 1) * V.width
        # a gradient's rows first: two threads that write to the same rows of W take each other's cache lines away
        if shorter and (name == "dense_gradient" or not narrower):
            rows = even(M, rows // 2, V.rows)
        elif narrower:
            cols = even(N, cols // 2, V.width)
        else:
            break
    return rows, cols


def thin_block(M: int, N: int, V: Lanes, transposed: bool, chunks: int, wanted: int) -> tuple[int, int]:
    """Rows and columns of a block of kernels/thin.py, of whose product so many chunks may be items of their own: B is read
    along its rows, so they are long; but of a transposed B a panel has to stay in the first cache."""
    width = THIN_VECTORS * V.lanes
    most, chunks = (2 * width, 1) if transposed else (THIN_COLS, chunks)
    cols = even(N, most, width)
    while -(-N // cols) * chunks < wanted // 3 and cols > width:  # long rows are worth more than many items
        cols = even(N, cols // 2, width)
    return M, cols


def gradient_block(M: int, N: int, K: int, V: Lanes, wanted: int) -> tuple[str, int, int]:
    """The kernel of kernels/dense_gradient.py for a gradient of one chunk, and rows and columns of W in an item."""
    if V.rows < K:
        return "one_chunk", *product_block("dense_gradient", M, N, K, V, wanted)
    cols = even(N, FIRST_CACHE // (K * V.itemsize), V.lanes)  # the deltas stay in the first cache
    return "few_examples", -(-M // -(-wanted // -(-N // cols))), cols
