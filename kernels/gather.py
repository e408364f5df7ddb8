"""A batch out of the data set:  target[n] = source[order[step * rows + n]],  rows of any kind as bytes."""

from __future__ import annotations

from collections.abc import Callable

from .machine import ROWS
from .records import GATHER
from .team import record
from .vector import copy_bytes, load_label


def gather() -> Callable[..., None]:
    """The job is a GATHER record."""

    def gather(job: int, scratch: int, step: int, item: int) -> None:
        p = record(GATHER, job)
        for n in range(item * ROWS, min((item + 1) * ROWS, p.rows)):
            source = p.source + load_label(p.order + (step * p.rows + n) * 8) * p.row_bytes
            copy_bytes(p.target + n * p.row_bytes, source, p.row_bytes)

    return gather
