"""The backward pass of one hidden layer:  dZ = (dZ' W'^T) * f'(Z),  dZ' and W' of the layer above.

product.py makes blocks of dZ' W'^T (W' i x o is turned where it is packed); this finishes them: each is multiplied by the
gain f'(z), a constant since the forward pass.
"""

from __future__ import annotations

from collections.abc import Callable

from .activations import activation
from .machine import Lanes
from .records import HIDDEN
from .team import record
from .vector import load, load_up_to, store_up_to


def finish(V: Lanes, name: str) -> Callable[..., None]:
    _, gain = activation(V, name)
    lanes, size = V.lanes, V.itemsize

    def finish(job: int, block: int, block_row: int, row: int, rows: int, col: int, cols: int) -> None:
        p = record(HIDDEN, job)
        for n in range(rows):
            for c in range(0, cols, lanes):
                count, unit = min(lanes, cols - c), (col + c) * size
                g = gain(load_up_to(V, p.saved + (row + n) * p.saved_row + unit, count))
                delta = load(V, block + n * block_row + c * size) * g
                store_up_to(V, p.dZ + (row + n) * p.dZ_row + unit, delta, count)

    return finish
