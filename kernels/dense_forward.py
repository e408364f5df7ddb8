"""The forward pass of one layer:  Z = X W + b,  A = f(Z).

product.py makes blocks of X W (X n x i through rows, W i x o row-major); this finishes them: one rounding for the bias,
then the activation.  Z is written only if it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable

from .activations import activation
from .machine import Lanes
from .records import FORWARD
from .team import record
from .vector import load, load_up_to, store_up_to


def finish(V: Lanes, name: str) -> Callable[..., None]:
    f, _ = activation(V, name)
    lanes, size = V.lanes, V.itemsize

    def finish(job: int, block: int, block_row: int, row: int, rows: int, col: int, cols: int) -> None:
        p = record(FORWARD, job)
        for r in range(rows):
            for c in range(0, cols, lanes):
                count, column = min(lanes, cols - c), (col + c) * size
                bias = load_up_to(V, p.bias + column, count)
                z = load(V, block + r * block_row + c * size) + bias
                if p.Z != 0:
                    store_up_to(V, p.Z + (row + r) * p.Z_row + column, z, count)
                store_up_to(V, p.A + (row + r) * p.A_row + column, f(z), count)

    return finish
