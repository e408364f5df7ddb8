"""The machine the kernels are compiled for: its vectors, and the sizes of blocks that follow.  None of it changes a bit."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from functools import cache

import llvmlite.binding as llvm
import numpy as np

from .names import CHUNK as CHUNK

ROWS = 8  # of a batch in an item of the kernels that go row by row
ROWWISE = ("gather", "activate", "output_delta")
GRAIN = dict.fromkeys(ROWWISE, ROWS) | {  # of work in an item
    "update": 8192, "dropout": 256, "column_sum": 64, "total": 1, "squares": 64, "clip": 8192, "max_norm": 64,
    "example_norms": 16, "clip_examples": 16,
}  # fmt: skip
TALL_BLOCK, WIDE_BLOCK = BLOCKS = (256, 128), (132, 256)  # rows and columns, at most, of a thread's block of a product
# products of few rows: vectors of a tile, rows of a transposed operand's panel, columns of a block
THIN_VECTORS, THIN_PART, THIN_COLS = 4, 64, 1024
MAX_ROWS, MAX_COLS = (max(sizes) for sizes in zip(*BLOCKS, strict=True))
MAX_BLOCK = max(rows * cols for rows, cols in BLOCKS)
FIRST_CACHE = 1 << 15  # bytes, of any processor of today


@cache
def target() -> tuple[str, str]:
    """Name and features of the CPU, as LLVM spells them (NUMBA_CPU_NAME and NUMBA_CPU_FEATURES override, as in Numba)."""
    name, features = os.environ.get("NUMBA_CPU_NAME"), os.environ.get("NUMBA_CPU_FEATURES")
    if features is None:
        features = "" if name == "generic" else str(llvm.get_host_cpu_features().flatten())
    return name or str(llvm.get_host_cpu_name()), features


@dataclass(frozen=True)
class Lanes:
    """The vectors of one dtype: `lanes` numbers each, and `rows` x `vectors` of them in the largest register tile.

    That leaves room for a tile's operands in 16 registers (6 x 2, AVX2) or 32 (8 x 2, AVX-512; 6 x 4, NEON).
    """

    dtype: str
    lanes: int
    rows: int
    vectors: int

    @property
    def itemsize(self) -> int:
        return int(np.dtype(self.dtype).itemsize)

    @property
    def width(self) -> int:
        """Columns of the widest tile."""
        return self.lanes * self.vectors

    # what a product needs per thread: panels of B, a block of C, a square for transposing, columns of A

    @property
    def block_start(self) -> int:
        return CHUNK * MAX_COLS * self.itemsize

    @property
    def square_start(self) -> int:
        return self.block_start + MAX_BLOCK * self.itemsize

    @property
    def columns_start(self) -> int:
        return self.square_start + self.lanes * self.lanes * self.itemsize

    @property
    def scratch_bytes(self) -> int:
        return self.columns_start + CHUNK * MAX_ROWS * self.itemsize


@cache
def lanes(dtype: str) -> Lanes:
    features = target()[1].split(",")
    if platform.machine().lower() in ("arm64", "aarch64"):
        size, rows, vectors = 16, 6, 4
    else:
        size, rows, vectors = (64, 8, 2) if "+avx512f" in features else (32 if "+avx" in features else 16, 6, 2)
    return Lanes(dtype, size // np.dtype(dtype).itemsize, rows, vectors)
