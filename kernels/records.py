"""The records through which the host and the kernels talk: addresses, sizes and strides (in bytes), all int64.

One dtype each, so that the host fills by name what a kernel reads by name.  Importing this file needs NumPy alone.
"""

from __future__ import annotations

import numpy as np


def _words(*names: str, **parts: np.dtype[np.void]) -> np.dtype[np.void]:
    return np.dtype([(name, "i8") for name in names] + list(parts.items()))


def _apart(*names: str) -> np.dtype[np.void]:
    """Words on cache lines of their own."""
    return np.dtype({"names": list(names), "formats": ["i8"] * len(names), "offsets": [64 * i for i in range(len(names))]})


# the team of threads and what it runs (team.py)
TEAM = _apart(
    "first_ticket", "second_ticket", "done", "running", "items", "entry", "step", "program", "size", "members",
    "acquire", "release", "never", "quit",
)  # fmt: skip
MEMBER = _apart("asleep", "lock", "scratch")
PROGRAM = _words("entries", "length", "first_step", "last_step")
ENTRY = _words(
    "kernel", "job", "items", "first", "along", "together", "all_items"
)  # the last two: of a stage, in its first entry

# operations (the file of the same name says what each field means)
PRODUCT = _words(
    "A", "A_row", "A_k", "B", "B_row", "B_transposed", "M", "N", "K", "row_block", "col_block", "item_rows", "panels",
    "finish", "finish_job", "reads1", "reads2", "reads3", "reads_row",
)  # fmt: skip
CHUNKS = _words("sums", "sums_row", "sums_chunk", "chunks", product=PRODUCT)
SPLIT = _words("partials", "arrived", "steps")  # on the GPU: how a product's sums are cut over blocks
FORWARD = _words("bias", "A", "A_row", "Z", "Z_row")
HIDDEN = _words("saved", "saved_row", "dZ", "dZ_row")
UPDATE = _words("parameter", "row", "hyper", "state1", "state2")
COLUMN_SUM = _words("dZ", "dZ_row", "rows", "columns", update=UPDATE)
FLAT_UPDATE = _words("gradient", "length", update=UPDATE)
OUTPUT = _words("Z", "Z_row", "rows", "columns", "y", "y_row", "scale", "scale_step", "dZ", "dZ_row", "losses")
ACTIVATE = _words("Z", "Z_row", "rows", "columns", "A", "A_row")
GATHER = _words("source", "row_bytes", "order", "rows", "target")
SQUARES = _words("numbers", "length", "sums")
CLIP = _words("gradient", "length", "total", "limits")
MAX_NORM = _words("W", "W_row", "rows", "columns", "limit")
DROPOUT = _words("source", "target", "length", "key", "stream", "block", "threshold", "scale")
TOTAL = _words("numbers", "length", "target", "target_step")
EXAMPLE_NORMS = _words("X", "X_row", "X_columns", "dZ", "dZ_row", "dZ_columns", "rows", "add", "norms")
CLIP_EXAMPLES = _words("dZ", "dZ_row", "rows", "columns", "norms", "scale", "scale_step", "limit")
PARTS = _words("source", "high", "low", "length")
STEP = _words("step")  # on the GPU: where the number of the step is

# a program on the GPU (team.cu)
WORK = _words("kernel", "width", "height", "end", "next", "records")
TEAM_OF_BLOCKS = _words("table", "works", "words", "arrivals", "first_step", "last_step")


def offset(dtype: np.dtype[np.void], field: str) -> int:
    """Where in a record a field starts, in bytes."""
    assert dtype.fields is not None
    return int(dtype.fields[field][1])
