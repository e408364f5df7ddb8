"""The backward pass of one hidden layer:  dZ = (dZ' W'^T) * f'(Z),  dZ' and W' of the layer above.

product.py makes blocks of its transpose, W' dZ'^T (i x n: so W' is read along its rows); this finishes them: each square
of the block is turned in registers, then multiplied by the gain f'(z), a constant since the forward pass.
"""

from __future__ import annotations

from collections.abc import Callable

from .activations import activation
from .machine import Lanes
from .records import HIDDEN
from .team import record
from .vector import load, load_up_to, store_up_to, transpose


def finish(V: Lanes, name: str) -> Callable[..., None]:
    _, gain = activation(V, name)
    lanes, size = V.lanes, V.itemsize

    def finish(job: int, block: int, block_row: int, square: int, row: int, rows: int, col: int, cols: int) -> None:
        p = record(HIDDEN, job)
        for c in range(0, cols, lanes):  # examples col + c ...
            for r in range(0, rows, lanes):  # units row + r ...
                transpose(V, block + r * block_row + c * size, block_row, square, lanes * size)
                count = min(lanes, rows - r)
                for n in range(min(lanes, cols - c)):
                    example, unit = col + c + n, (row + r) * size
                    g = gain(load_up_to(V, p.saved + example * p.saved_row + unit, count))
                    delta = load(V, square + n * lanes * size) * g
                    store_up_to(V, p.dZ + example * p.dZ_row + unit, delta, count)

    return finish
