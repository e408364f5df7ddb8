"""A batch out of the data set:  target[n] = source[order[step * rows + n]],  rows of any kind as bytes."""

from __future__ import annotations

from collections.abc import Callable

from .records import GATHER
from .team import record, take
from .vector import copy_bytes, load_label


def gather() -> Callable[..., None]:
    """The job is a GATHER record."""

    def gather(job: int, team: int, rank: int, step: int) -> None:
        p = record(GATHER, job)
        item = take(team)
        while item * 8 < p.rows:
            for n in range(item * 8, min(item * 8 + 8, p.rows)):
                source = p.source + load_label(p.order + (step * p.rows + n) * 8) * p.row_bytes
                copy_bytes(p.target + n * p.row_bytes, source, p.row_bytes)
            item = take(team)

    return gather
